"""For which tokens the collector wants whole frames. Pure.

Nothing heard yet, or a collector that says nothing of it: of all. The choice among requests is a hash of the
trace, or of the request where there is none: the same in every process, without a state.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from fulgurite.agent.late import LateBlock
from fulgurite.agent.sampling import lower
from fulgurite.wire.channels import LEVELS, Level
from fulgurite.wire.frame import Array, FrameBlock, RequestRef


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for.

    Attributes
    ----------
    watched : somebody watches: all of it.
    one_in : one request in so many; 1: all of it, 0: none.
    history_level : the most that is captured while nobody watches; empty: what the attachment gives.
    """

    watched: bool = True
    one_in: int = 1
    history_level: str = ""

    @property
    def is_all(self) -> bool:
        """Whether every token is wanted."""
        return self.watched or self.one_in == 1

    def level(self, asked: str | None, ceiling: str) -> str | None:
        """The level to ask for, where `asked` was (None: nothing) and no more than `ceiling` can be."""
        if self.watched or self.history_level not in LEVELS:
            return asked
        return lower(_level(asked or ceiling), _level(self.history_level))

    def wants(self, request: RequestRef) -> bool:
        """Whether this request's frames are wanted."""
        if self.is_all:
            return True
        name = request.trace_id or request.request_id
        return self.one_in > 0 and crc32(name.encode("utf-8", "replace")) % self.one_in == 0

    def rows(self, block: FrameBlock) -> Array | bool:
        """Which rows of `block` are wanted: all, none, or ndarray of bool, shape (n,).

        A block whose columns are not made yet is wanted as a whole where any of its requests is.
        """
        if self.is_all:
            return True
        verdicts = [self.wants(request) for request in block.requests]
        if all(verdicts) or not any(verdicts):
            return bool(verdicts) and verdicts[0]
        if isinstance(block, LateBlock):
            return True
        rows: Array = np.array(verdicts)[block.columns["request_index"]]
        return True if rows.all() else rows if rows.any() else False


EVERYTHING = Wanted()


def _level(name: str) -> Level:
    return next((level for level in LEVELS if level == name), "off")
