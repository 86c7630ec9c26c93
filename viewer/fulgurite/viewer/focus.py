"""What is looked at: some layers, a head, a request, a trace; the rest is left out of the picture.

A focus by node leaves the other nodes bare; a focus by request or trace leaves the other tokens out, so that
every light is one of theirs. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.wire.frame import FrameBlock
    from fulgurite.wire.topology import Topology

_PATTERN = re.compile(
    r"\s*(?:l(?:ayers?)?\s*(?P<layer>\d+)(?:\s*(?:-|–|to|\.\.)\s*(?P<last>\d+))?)?"
    r"[\s,·/]*(?:h(?:eads?)?\s*(?P<head>\d+))?\s*$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Focus:
    """What is looked at. The default: everything.

    Attributes
    ----------
    layers : first and last layer that are looked at; None: all.
    head : of every layer that is looked at; None: all.
    request, trace : part of the id of the requests, or of the traces, whose tokens are looked at.
    is_hidden : the nodes named by `layers` and `head` are left out, and the rest is looked at.
    """

    layers: tuple[int, int] | None = None
    head: int | None = None
    request: str = ""
    trace: str = ""
    is_hidden: bool = False

    @property
    def text(self) -> str:
        """What is said over the picture; empty: everything is looked at."""
        words = []
        if self.layers is not None:
            first, last = self.layers
            words.append(f"layer {first}" if first == last else f"layers {first}–{last}")
        if self.head is not None:
            words.append(f"head {self.head}")
        nodes = " · ".join(words)
        if nodes and self.is_hidden:
            nodes = f"without {nodes}"
        return ", ".join(
            part
            for part in (
                nodes,
                f"request {self.request}" if self.request else "",
                f"trace {self.trace}" if self.trace else "",
            )
            if part
        )

    def rows(self, block: FrameBlock) -> NDArray[np.intp] | None:
        """The frames of a block that are looked at; None: all."""
        if not self.request and not self.trace:
            return None
        wanted = np.array([self.request in r.request_id and self.trace in r.trace_id for r in block.requests])
        return np.flatnonzero(wanted[block.columns["request_index"].astype(np.intp)])

    def hidden_heads(self, topology: Topology) -> NDArray[np.bool_] | None:
        """Heads that are left out, shape (L, H); None: none is."""
        if self.layers is None and self.head is None:
            return None
        seen = np.ones((topology.layers, topology.heads), np.bool_)
        if self.layers is not None:
            seen &= self._in_layers(topology)[:, None]
        if self.head is not None:
            seen &= np.arange(topology.heads) == self.head
        return seen if self.is_hidden else ~seen

    def hidden_blocks(self, topology: Topology) -> NDArray[np.bool_] | None:
        """Layers whose FFN block is left out, shape (L,); None: none is."""
        if self.layers is None and self.head is None:
            return None
        if self.head is not None:
            return None if self.is_hidden else np.ones(topology.layers, np.bool_)
        return self._in_layers(topology) if self.is_hidden else ~self._in_layers(topology)

    def _in_layers(self, topology: Topology) -> NDArray[np.bool_]:
        assert self.layers is not None
        layer = np.arange(topology.layers)
        return (layer >= self.layers[0]) & (layer <= self.layers[1])


EVERYTHING = Focus()


def parse(text: str) -> Focus:
    """The focus that a person asked for: ``layer 3``, ``L3-7``, ``L3 H5``, ``request abc``, ``trace ff``.

    A leading ``not`` or ``-`` leaves the nodes out.

    Raises
    ------
    ValueError
        Where it names nothing; says what can be written.
    """
    asked = text.strip()
    word, _, rest = asked.partition(" ")
    if word.lower() in ("request", "trace") and rest.strip():
        return Focus(request=rest.strip()) if word.lower() == "request" else Focus(trace=rest.strip())
    is_hidden = word.lower() in ("not", "without") or asked.startswith("-")
    if is_hidden:
        asked = rest if word.lower() in ("not", "without") else asked[1:]
    found = _PATTERN.match(asked)
    if found is None or not asked.strip() or (found["layer"] is None and found["head"] is None):
        raise ValueError(
            f"{text.strip()!r} names nothing: write layer 3, L3-7, L3 H5, head 5, request ID or trace ID"
        )
    layers = None
    if found["layer"] is not None:
        first, last = int(found["layer"]), int(found["last"] or found["layer"])
        layers = (min(first, last), max(first, last))
    return Focus(
        layers=layers, head=None if found["head"] is None else int(found["head"]), is_hidden=is_hidden
    )
