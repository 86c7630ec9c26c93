"""The parts of each token from all ranks of a model that is split over processes, matched by step.

Pure: knows no socket, thread or clock. The first rank's own blocks and events come out in their order, each
block with the parts of the others in it as soon as they are there. A rank that is late holds the others up
once, for `wait_s`; then it counts as absent until it delivers again, and its heads are missing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from fulgurite.agent.ranks import merge, partial
from fulgurite.wire.frame import FrameBlock, RequestEvent

MOST_PARTS = 4096  # of a rank that is ahead of the first one


@dataclass(frozen=True, slots=True)
class _Own:
    item: FrameBlock | RequestEvent
    came_s: float


@dataclass(slots=True)
class _Member:
    parts: deque[tuple[int, FrameBlock]] = field(default_factory=lambda: deque(maxlen=MOST_PARTS))
    is_absent: bool = False
    is_out: bool = False

    def part_of(self, step: int) -> FrameBlock | None:
        while self.parts and self.parts[0][0] < step:
            self.parts.popleft()
        if self.parts and self.parts[0][0] == step:
            return self.parts[0][1]
        return None


class Joint:
    """What the ranks delivered and what is not put together yet.

    Parameters
    ----------
    places : of the other ranks, in their order.
    wait_s : how long a block waits for the parts of the others.

    Attributes
    ----------
    notes : what is worth a line in the log since the last look, as (kind, place).
    """

    def __init__(self, places: tuple[int, ...], wait_s: float) -> None:
        self._own: deque[_Own] = deque()
        self._members = {place: _Member() for place in places}
        self._wait_s = wait_s
        self.notes: list[tuple[str, int]] = []

    def __len__(self) -> int:
        """Frames of the first rank that wait."""
        return sum(len(own.item) for own in self._own if isinstance(own.item, FrameBlock))

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._own

    def put_own(self, item: FrameBlock | RequestEvent, now_s: float) -> None:
        """A block or an event of the first rank."""
        self._own.append(_Own(item, now_s))

    def put_part(self, place: int, block: FrameBlock) -> None:
        """A block of another rank."""
        member = self._members[place]
        if not member.is_out:
            member.parts.append((_step_of(block), block))

    def left(self, place: int) -> None:
        """A rank will deliver no more."""
        member = self._members[place]
        if not member.is_absent:
            self.notes.append(("lost", place))
        member.is_absent = True

    def late(self, place: int) -> None:
        """A rank was waited for in vain."""
        member = self._members[place]
        if not member.is_absent:
            self.notes.append(("late", place))
        member.is_absent = True

    def take(self, now_s: float) -> list[FrameBlock | RequestEvent]:
        """What is complete by now, in order."""
        found: list[FrameBlock | RequestEvent] = []
        while self._own:
            own = self._own[0]
            item = self._joined(own.item, own.came_s, now_s) if isinstance(own.item, FrameBlock) else own.item
            if item is None:
                break
            found.append(item)
            self._own.popleft()
        return found

    def _joined(self, block: FrameBlock, came_s: float, now_s: float) -> FrameBlock | None:
        step = _step_of(block)
        parts = {place: member.part_of(step) for place, member in self._members.items()}
        missing = [p for p, part in parts.items() if part is None and not self._members[p].is_absent]
        if missing and now_s - came_s < self._wait_s:
            return None
        for place in missing:
            self.late(place)
        for place, part in tuple(parts.items()):
            if part is None:
                continue
            self._members[place].is_absent = False
            try:
                block = merge([block, part])
            except ValueError:
                self._members[place].is_absent = self._members[place].is_out = True
                self.notes.append(("out of step", place))
        whole = all(part is not None and not self._members[place].is_out for place, part in parts.items())
        return block if whole else partial(block)


def _step_of(block: FrameBlock) -> int:
    return int(block.columns["step"][0])
