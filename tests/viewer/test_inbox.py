"""The queue between the feed and the drawing: bounded, and honest about what it gave up."""

from __future__ import annotations

import numpy as np

from fulgurite.viewer.events import CaughtUp, Event, FeedUp, Frames, GapSeen, ReplicaStatus, StatusSeen
from fulgurite.viewer.inbox import SLOW, Inbox
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestRef


def _frames(key: str, first: int, count: int, nbytes: int = 100) -> Frames:
    block = FrameBlock((RequestRef("r"),), {"position": np.arange(count, dtype=np.int32)})
    batch = FrameBatch(epoch_ms=7, first_sequence=first, blocks=(block,))
    return Frames(key=key, batch=batch, live=True, received_ns=0, nbytes=nbytes)


def test_events_come_out_in_the_order_in_which_they_went_in() -> None:
    inbox = Inbox()
    given: list[Event] = [FeedUp(address="x"), _frames("a", 1, 2), CaughtUp(key="a"), _frames("a", 3, 1)]
    for event in given:
        inbox.put(event)
    assert inbox.take() == given
    assert inbox.take() == []


def test_a_full_queue_gives_up_the_past_and_says_how_much() -> None:
    inbox = Inbox(budget_bytes=250)
    for first in (1, 4, 7):
        inbox.put(_frames("a", first, 3))
    gap, live = inbox.take()
    assert gap == GapSeen(key="a", epoch_ms=7, first_sequence=1, last_sequence=6, frames=6, reason=SLOW)
    assert isinstance(live, Frames)
    assert live.batch.first_sequence == 7
    assert inbox.skipped == 6


def test_gaps_of_a_reader_that_never_comes_are_merged_and_every_frame_is_counted() -> None:
    inbox = Inbox(budget_bytes=250, budget_events=50)
    for index in range(1_000):
        inbox.put(_frames("ab"[index % 2], 1 + 2 * (index // 2), 2))
        inbox.put(GapSeen(key="a", epoch_ms=7, first_sequence=0, last_sequence=0, frames=1, reason="lost"))
    events = inbox.take()
    assert len(events) < 60
    seen = sum(len(event.batch) for event in events if isinstance(event, Frames))
    slow = sum(event.frames for event in events if isinstance(event, GapSeen) and event.reason == SLOW)
    lost = sum(event.frames for event in events if isinstance(event, GapSeen) and event.reason == "lost")
    assert (seen + slow, lost) == (2_000, 1_000)


def test_what_is_not_a_frame_survives_a_full_queue() -> None:
    inbox = Inbox(budget_bytes=150)
    inbox.put(FeedUp(address="x"))
    inbox.put(_frames("a", 1, 1))
    inbox.put(_frames("a", 2, 1))
    assert [type(event).__name__ for event in inbox.take()] == ["FeedUp", "GapSeen", "Frames"]


def test_of_a_status_only_the_newest_is_kept() -> None:
    inbox = Inbox()
    for total in range(100):
        status = ReplicaStatus(key="a", state="live", tokens_total=total)
        inbox.put(StatusSeen(status=status))
    assert [event.status.tokens_total for event in inbox.take() if isinstance(event, StatusSeen)] == [99]
