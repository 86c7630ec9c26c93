"""A bounded queue between the feed's thread and the drawing: never blocks, gives up the past first.

Whoever draws slower than tokens arrive finds the queue full; then everything queued is given up at once,
the reader is live again, and one gap per stream says how many frames it did not see.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from fulgurite.viewer.events import Event, Frames, GapSeen, ReplicaStatus, StatusSeen
from fulgurite.viewer.latest import Latest

SLOW = "slow_viewer"


class Inbox:
    """Events in the order in which they came; statuses only the newest per replica.

    Parameters
    ----------
    budget_bytes : most bytes of queued frames, as they were received.
    budget_events : most queued events of any kind.
    """

    def __init__(self, *, budget_bytes: int = 64 << 20, budget_events: int = 20_000) -> None:
        self._budget_bytes = budget_bytes
        self._budget_events = budget_events
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._bytes = 0
        self._skipped = 0
        self._statuses: Latest[str, ReplicaStatus] = Latest()

    @property
    def skipped(self) -> int:
        """Frames given up so far because nobody took them in time."""
        return self._skipped

    def put(self, event: Event) -> None:
        """Queue `event`. Never blocks on the reader."""
        if isinstance(event, StatusSeen):
            self._statuses.put(event.status.key, event.status)
            return
        with self._lock:
            size = event.nbytes if isinstance(event, Frames) else 0
            if self._bytes + size > self._budget_bytes or len(self._events) >= self._budget_events:
                self._give_up()
            self._events.append(event)
            self._bytes += size

    def take(self) -> list[Event]:
        """Everything queued, oldest first. It is read now."""
        with self._lock:
            events, self._events, self._bytes = self._events, [], 0
        return [*events, *(StatusSeen(status=status) for status in self._statuses.take())]

    def _give_up(self) -> None:
        gone = [event for event in self._events if isinstance(event, Frames)]
        self._skipped += sum(len(event.batch) for event in gone)
        told = [event for event in self._events if isinstance(event, GapSeen)]
        rest = _newest(event for event in self._events if not isinstance(event, (Frames, GapSeen)))
        self._events = [*rest, *merged([*told, *(_gap(event) for event in gone)])]
        self._bytes = 0


def _gap(event: Frames) -> GapSeen:
    batch = event.batch
    return GapSeen(
        key=event.key,
        epoch_ms=batch.epoch_ms,
        first_sequence=batch.first_sequence,
        last_sequence=batch.last_sequence,
        frames=len(batch),
        reason=SLOW,
    )


def merged(gaps: Iterable[GapSeen]) -> list[GapSeen]:
    """One gap per stream and reason: from the first missing frame to the last, with all their frames."""
    wide: dict[tuple[str, int, str], GapSeen] = {}
    for gap in gaps:
        stream = (gap.key, gap.epoch_ms, gap.reason)
        known = wide.get(stream, gap)
        wide[stream] = GapSeen(
            key=gap.key,
            epoch_ms=gap.epoch_ms,
            first_sequence=min(known.first_sequence, gap.first_sequence),
            last_sequence=max(known.last_sequence, gap.last_sequence),
            frames=gap.frames + (known.frames if known is not gap else 0),
            reason=gap.reason,
        )
    return list(wide.values())


def _newest(events: Iterable[Event]) -> list[Event]:
    """The last of each kind and replica, in the order of the last ones."""
    last: dict[tuple[type, str], Event] = {}
    for event in events:
        of = (type(event), str(getattr(event, "key", "")))
        last.pop(of, None)
        last[of] = event
    return list(last.values())
