"""A batch that is encoded once and sent many times, with its clocks and positions set anew each time.

To encode every batch would measure the generator. The bytes behind the columns `started_ns`, `ended_ns`,
`position` and `step` are found once, and written in place; epoch, sequence and time of sending go into a
header, which may stand anywhere in a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from fulgurite.v1 import frame_pb2
from fulgurite.wire.codec import Codec, agent_message_bytes
from fulgurite.wire.frame import FrameBatch, FrameBlock

MOVING: Final = ("started_ns", "ended_ns", "position", "step")

Array = np.ndarray[Any, Any]


class Template:
    """A run of frames as one batch.

    Parameters
    ----------
    blocks : sequence of FrameBlock
        Blocks with the same channels; all of them are sent each time.

    Attributes
    ----------
    count : int
        Frames.
    nbytes : int
        Of a message, about.
    """

    def __init__(self, codec: Codec, blocks: Sequence[FrameBlock]) -> None:
        self.count = sum(len(block) for block in blocks)
        self._steps = len(blocks)
        message = codec.encode(FrameBatch(epoch_ms=1, first_sequence=1, blocks=_marked(blocks)))
        for name in ("epoch_ms", "first_sequence", "sent_ns"):
            message.ClearField(name)
        self._body = bytearray(message.SerializeToString())
        self.nbytes = len(self._body)
        names = [column.name for column in codec.schema.columns]
        views = [self._views(block, names) for block in message.blocks]
        self._moving = {name: [view[name] for view in views] for name in MOVING}
        self._initial = {name: self._original(blocks, name) for name in MOVING}

    def _views(self, block: frame_pb2.Block, names: list[str]) -> dict[str, Array]:
        """The bytes of the moving columns of one encoded block, to be written to."""
        found = {}
        for index, data in zip(block.column_index, block.column_data, strict=True):
            if names[index] in MOVING:
                dtype = np.dtype("<i4") if names[index] == "position" else np.dtype("<i8")
                at = self._body.index(data)
                found[names[index]] = np.frombuffer(self._body, dtype, block.count, at)
        return found

    def _original(self, blocks: Sequence[FrameBlock], name: str) -> list[Array]:
        joined = np.concatenate([block.columns[name] for block in blocks])
        bounds = np.cumsum([len(view) for view in self._moving[name]])[:-1]
        return np.split(joined, bounds)

    def message(self, *, epoch_ms: int, first_sequence: int, ended_ns: int, turn: int) -> bytes:
        """A serialised `AgentMessage`.

        Parameters
        ----------
        ended_ns : int
            UNIX time at which the last of these tokens was there; those before it keep their distances.
        turn : int
            How often it was sent before: positions and steps go on from there.
        """
        last = int(self._initial["ended_ns"][-1].max())
        for name, delta in (
            ("started_ns", ended_ns - last),
            ("ended_ns", ended_ns - last),
            ("position", turn * self._steps),
            ("step", turn * self._steps),
        ):
            for view, initial in zip(self._moving[name], self._initial[name], strict=True):
                np.add(initial, delta, out=view, casting="same_kind")
        header = frame_pb2.Batch(epoch_ms=epoch_ms, first_sequence=first_sequence, sent_ns=ended_ns)
        return agent_message_bytes(header.SerializeToString() + self._body)


def _marked(blocks: Sequence[FrameBlock]) -> tuple[FrameBlock, ...]:
    """The blocks with drawn values in the moving columns: bytes that stand nowhere else."""
    rng = np.random.default_rng(7)
    marked = []
    for block in blocks:
        drawn = {
            name: rng.integers(1 << 24, 1 << 30, len(block)).astype(block.columns[name].dtype)
            for name in MOVING
        }
        marked.append(FrameBlock(block.requests, {**block.columns, **drawn}, block.texts))
    return tuple(marked)


def templates(
    codec: Codec, blocks: Sequence[FrameBlock], *, tokens: int, max_bytes: int
) -> tuple[Template, ...]:
    """Templates of at most `tokens` frames and about `max_bytes` each, as an agent would cut them."""
    alike = [block for block in blocks if block.columns.keys() == blocks[-1].columns.keys()]
    each = Template(codec, alike[:1]).nbytes / len(alike[0])
    most = max(1, min(tokens, int(max_bytes // each)))
    made, run = [], list[FrameBlock]()
    for block in alike:
        if run and sum(len(one) for one in [*run, block]) > most:
            made.append(Template(codec, run))
            run = []
        run.append(block)
    return (*made, Template(codec, run)) if run else tuple(made)
