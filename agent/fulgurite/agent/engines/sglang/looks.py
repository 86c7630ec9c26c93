"""How a model of SGLang adds its parts, from the values of its first forward pass.

Layers of SGLang hand on what was written last and keep the residual stream aside, in the batch; the next norm
adds the two, so the stream is seen where a norm meets it: what enters a layer is what its first norm is
given, and what leaves it is what enters the next one, or the final norm. The wiring is found from these
values as anywhere else (`fulgurite.agent.wiring`).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import nn

from fulgurite.agent.anatomy import Anatomy, declared
from fulgurite.agent.engines.flat.seen import Trial, gathered
from fulgurite.agent.engines.flat.taps import candidates, hook, watch_down
from fulgurite.agent.wiring import Tap, part_of, wire

Array = np.ndarray[Any, Any]
ROWS: Final = 16  # of the pass that are looked at: the last ones
FEWEST: Final = 4  # rows that tell one way of adding from another
FINAL: Final = Tap("norm", "in")


class Look:
    """Watches one forward pass."""

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._seen: list[dict[Tap, Array]] = [{} for _ in anatomy.layers]
        self._handed: dict[int, Array] = {}
        self._down_handed: dict[int, Array] = {}
        self._down_gave: dict[int, Array] = {}
        self._final: dict[str, Array] = {}
        self._first_norm: dict[int, str] = {}
        self._handles = []
        width = anatomy.topology.hidden_size
        for layer in anatomy.layers:
            for tap in candidates(layer):
                module = part_of(layer, tap.part)
                if module is not None and tap.part != "block":
                    seen = self._into(self._seen[layer.index], tap, layer.index)
                    self._handles.append(hook(module, tap, width, seen=seen))
            if layer.projection is not None:
                inputs = layer.held_heads * layer.head_dim
                keep = self._into(self._handed, layer.index, None)
                self._handles.append(hook(layer.projection, Tap("projection", "in"), inputs, seen=keep))
            fed, gave = (self._into(book, layer.index, None) for book in (self._down_handed, self._down_gave))
            self._handles += watch_down(layer, width, fed, gave)
        if anatomy.final_norm is not None:
            for name, side in (("into", "in"), ("out", "out")):
                tap = Tap("norm", side)  # type: ignore[arg-type]
                keep = self._into(self._final, name, None)
                self._handles.append(hook(anatomy.final_norm, tap, width, seen=keep))

    def _into(self, book: dict[Any, Array], key: Any, layer: int | None) -> Any:
        def keep(x: torch.Tensor, y: torch.Tensor | None) -> None:
            if layer is not None and key.part.startswith("norm"):
                self._first_norm.setdefault(layer, key.part)
            total = x[-ROWS:] if y is None else x[-ROWS:] + y[-ROWS:]
            book[key] = total.detach().to("cpu", torch.float64).numpy().copy()

        return keep

    def close(self) -> None:
        """Take the hooks off."""
        while self._handles:
            self._handles.pop().remove()

    def places(self) -> dict[tuple[int, str], Tap]:
        """Where the stream is that enters each layer, by layer and ``in``."""
        return {(i, "in"): Tap(part, "in") for i, part in self._first_norm.items()}

    def found(self, logits: torch.Tensor, dtype: torch.dtype) -> Trial:
        """What the pass showed; `logits` (1, V) are of its last row."""
        anatomy = self._anatomy
        entered = [seen.get(Tap(self._first_norm.get(i, "norm0"), "in")) for i, seen in enumerate(self._seen)]
        left = [*entered[1:], self._final.get("into")]
        for seen, into, onward in zip(self._seen, entered, left, strict=True):
            if into is not None and onward is not None:
                seen[Tap("block", "in")], seen[Tap("block", "out")] = into, onward
        if "into" in self._final:
            self._final["end"] = self._final["into"]
        epsilon = float(torch.finfo(dtype).eps)
        wiring = tuple(
            wire(layer, seen, epsilon=epsilon, constants=anatomy.constants + declared(layer.block))
            for layer, seen in zip(anatomy.layers, self._seen, strict=True)
        )
        out = Tap("projection", "out")
        gave, ffn_gave = gathered(self._seen, out), gathered(self._seen, Tap("ffn", "out"))
        last = {name: rows[-1:] for name, rows in self._final.items()}
        return Trial(
            wiring,
            self._handed,
            gave,
            last,
            logits,
            epsilon,
            down_handed=self._down_handed,
            down_gave=self._down_gave,
            ffn_gave=ffn_gave,
        )


def where(
    anatomy: Anatomy, places: dict[tuple[int, str], Tap], layer: int, tap: Tap
) -> tuple[nn.Module, Tap]:
    """The module to hook for `tap` of `layer`, and what of it to read."""
    if tap.part != "block":
        module = part_of(anatomy.layers[layer], tap.part)
        assert module is not None
        return module, tap
    after = layer + (tap.side == "out")
    if after == len(anatomy.layers):
        assert anatomy.final_norm is not None
        return anatomy.final_norm, FINAL
    stream = places[after, "in"]
    module = part_of(anatomy.layers[after], stream.part)
    assert module is not None
    return module, stream
