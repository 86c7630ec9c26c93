"""Where one viewer stands in one replica's stream, and what it must be told on the way. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fulgurite.collector.store import Entry, EntryId, Position

BEFORE_ALL: Final = EntryId(0, 1)
"""Where a stream is awaited from its beginning: the first frame of any epoch is the next."""

NOTHING: Final[Mapping[int, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Missing:
    """Frames of one epoch that a viewer did not get: from `first` to `last`, both included."""

    epoch_ms: int
    first: int
    last: int


class Cursor:
    """Follows one stream.

    Parameters
    ----------
    key : str
        Of the replica, as it is written.
    position : Position
        What is at or before it was seen, or is not wanted.
    expected : EntryId, optional
        The frame that comes next if none is missing; None where any may be the first.
    events_from : EntryId
        Events that stand behind an earlier frame are not wanted.
    """

    def __init__(
        self,
        key: str,
        *,
        position: Position,
        expected: EntryId | None,
        events_from: EntryId = EntryId(),  # noqa: B008 - frozen
    ) -> None:
        self.key = key
        self.position = position
        self._expected = expected
        self._events_from = events_from

    @classmethod
    def at(cls, key: str, position: Position) -> Cursor:
        """At `position`, from which nothing is to be missing."""
        newest = position.frames
        return cls(key, position=position, expected=newest.next if newest != EntryId() else BEFORE_ALL)

    @property
    def is_at_the_beginning(self) -> bool:
        """Whether nothing came yet, and everything is wanted."""
        return self._expected == BEFORE_ALL

    def wants(self, entry: Entry) -> bool:
        """Whether `entry` is new here."""
        if self.position.covers(entry):
            return False
        return bool(entry.count) or entry.id >= self._events_from

    def expects(self, entry: Entry) -> bool:
        """Whether `entry` has the frames that come next, and none is missing before it."""
        expected = self._expected
        return (
            expected is not None
            and entry.count > 0
            and entry.first_sequence == expected.sequence
            and entry.id.epoch_ms == expected.epoch_ms
            and not self.position.covers(entry)
        )

    def missing_before(self, entry: Entry, ends: Mapping[int, int] = NOTHING) -> list[Missing]:
        """What lies between the last frame and those of `entry`.

        Parameters
        ----------
        ends : the last sequence that epochs are known to have had.
        """
        if not entry.count or self._expected is None:
            return []
        missing = self._rest_of_epoch(entry.id.epoch_ms, ends)
        first = self._expected.sequence if self._expected.epoch_ms == entry.id.epoch_ms else 1
        last = entry.first_sequence - 1
        return [*missing, Missing(entry.id.epoch_ms, first, last)] if last >= first else missing

    def _rest_of_epoch(self, epoch_ms: int, ends: Mapping[int, int]) -> list[Missing]:
        """What was to come in the epoch that was left for `epoch_ms`, as far as that is known."""
        expected = self._expected
        if expected is None or expected == BEFORE_ALL or expected.epoch_ms == epoch_ms:
            return []
        last = ends.get(expected.epoch_ms, 0)
        return [Missing(expected.epoch_ms, expected.sequence, last)] if last >= expected.sequence else []

    def pass_over(self, entry: Entry) -> None:
        """`entry` was told, or is not wanted."""
        self.position = self.position.past(entry)
        if entry.count:
            self._expected = entry.id.next

    def skip_to(self, position: Position, ends: Mapping[int, int] = NOTHING) -> list[Missing]:
        """Leave out everything up to `position`; returns which frames those are."""
        newest, expected = position.frames, self._expected
        self.position = position
        if newest == EntryId():
            return []
        missing = self._rest_of_epoch(newest.epoch_ms, ends)
        self._expected = newest.next
        first = expected.sequence if expected is not None and expected.epoch_ms == newest.epoch_ms else 1
        if first <= newest.sequence:
            missing.append(Missing(newest.epoch_ms, first, newest.sequence))
        return missing
