"""The link's decisions, without a clock, a thread or a socket."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgurite.agent.link import (
    Action,
    Answer,
    Draw,
    Hang,
    Link,
    LinkLimits,
    Open,
    Parcel,
    Report,
    Send,
    Stop,
    Wait,
)
from fulgurite.v1 import agent_pb2, frame_pb2
from fulgurite.wire.codec import agent_message_bytes, batch_bytes
from fulgurite.wire.ledger import Ledger

EPOCH = 1000


def link_of(ledger: Ledger | None = None, jitter: float = 1.0, **limits: Any) -> Link:
    return Link(ledger or Ledger(), jitter=lambda: jitter, limits=LinkLimits(**limits))


def message(**kinds: Any) -> agent_pb2.CollectorMessage:
    return agent_pb2.CollectorMessage(**kinds)


def welcome(epoch_ms: int = EPOCH, resume_after: int = 0, credit: int = 8, level: str = "") -> Any:
    fields: dict[str, Any] = {
        "epoch_ms": epoch_ms,
        "resume_after": resume_after,
        "credit": credit,
        "level": level,
    }
    return message(welcome=agent_pb2.Welcome(**fields))


def ack(sequence: int, **fields: Any) -> Any:
    return message(ack=agent_pb2.Ack(**{"epoch_ms": EPOCH, "sequence": sequence, "credit": 8} | fields))


def settle_in(link: Link, now_s: float = 0.0, **fields: Any) -> None:
    """Open, be welcomed, and have the first account out of the way."""
    assert link.due(now_s) == Open()
    link.opened(now_s)
    link.received(welcome(**fields), now_s)
    assert link.due(now_s) == Report()


def add(link: Link, ledger: Ledger, first: int, frames: int) -> Parcel:
    """A batch that was drawn, as the pump stamps it."""
    ledger.capture(frames)
    batch = frame_pb2.Batch(epoch_ms=link.epoch_ms, first_sequence=link.sequence_of(first), count=frames)
    parcel = Parcel(first, frames, agent_message_bytes(batch.SerializeToString()))
    link.add(parcel)
    return parcel


def sent(action: Action) -> frame_pb2.Batch:
    assert isinstance(action, Send)
    return frame_pb2.Batch.FromString(batch_bytes(action.data) or b"")


# --- opening


def test_it_opens_at_once_and_waits_for_the_welcome_for_so_long() -> None:
    link = link_of(welcome_s=5)
    assert link.due(0.0) == Open()
    link.opened(0.0)
    assert link.due(4.9) == Wait(5.0)
    assert link.due(5.0) == Hang("silent", "no welcome within 5 s")


def test_the_back_off_doubles_to_its_longest_and_is_jittered_in_full() -> None:
    link = link_of(jitter=0.5)
    now, waits = 0.0, []
    for _ in range(10):
        link.opened(now)
        link.broken(now)
        action = link.due(now)
        assert isinstance(action, Wait)
        waits.append(action.until_s - now)
        now = action.until_s
    assert waits[:4] == pytest.approx([0.05, 0.1, 0.2, 0.4])
    assert waits[-2:] == pytest.approx([5.0, 5.0])


def test_the_back_off_begins_anew_after_an_acknowledgement() -> None:
    ledger = Ledger()
    link = link_of(ledger)
    for _ in range(5):
        link.opened(0.0)
        link.broken(0.0)
    settle_in(link, 100.0)
    add(link, ledger, 1, 1)
    link.due(100.0)
    link.received(ack(1), 100.0)
    link.broken(100.0)
    assert link.due(100.0) == Wait(100.0 + LinkLimits().first_retry_s)


@pytest.mark.parametrize("level", ["off", "pulse", "heads", "deep"])
def test_the_welcome_names_the_level_and_an_empty_one_leaves_it_to_the_agent(level: str) -> None:
    link = link_of()
    settle_in(link, level=level)
    assert link.level == level
    link.broken(0.0)
    settle_in(link, 100.0)
    assert link.level is None


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (welcome(epoch_ms=0), "a welcome without an epoch"),
        (welcome(resume_after=3), "a new epoch that begins behind 3"),
    ],
)
def test_a_welcome_that_cannot_be_ends_the_stream(reply: Any, says: str) -> None:
    link = link_of()
    link.opened(0.0)
    link.received(reply, 0.0)
    assert link.due(0.0) == Hang("garbled", says)


def test_a_message_out_of_turn_ends_the_stream_and_an_unknown_one_does_not() -> None:
    link = link_of()
    link.opened(0.0)
    link.received(agent_pb2.CollectorMessage(), 0.0)
    assert isinstance(link.due(0.0), Wait)
    link.received(ack(1), 0.0)
    assert link.due(0.0) == Hang("garbled", "a ack out of turn")


# --- sending


def test_no_more_batches_are_under_way_than_the_credit_allows() -> None:
    ledger = Ledger()
    link = link_of(ledger)
    settle_in(link, credit=2)
    for first in (1, 2, 3):
        add(link, ledger, first, 1)
    assert [sent(link.due(0.0)).first_sequence for _ in range(2)] == [1, 2]
    assert isinstance(link.due(0.0), Wait)
    link.received(ack(1, credit=2), 0.0)
    assert sent(link.due(0.0)).first_sequence == 3


def test_nothing_is_drawn_while_the_window_is_full() -> None:
    ledger = Ledger()
    link = link_of(ledger, window_bytes=1)
    settle_in(link)
    assert isinstance(link.due(0.0), Draw)
    add(link, ledger, 1, 1)
    link.due(0.0)
    assert isinstance(link.due(0.0), Wait)
    link.received(ack(1), 0.0)
    assert isinstance(link.due(0.0), Draw)


def test_silence_while_a_batch_is_under_way_ends_the_stream() -> None:
    ledger = Ledger()
    link = link_of(ledger, silence_s=20)
    settle_in(link)
    assert isinstance(link.due(500.0), Report)  # nothing is under way: an idle stream may be silent
    add(link, ledger, 1, 1)
    assert isinstance(link.due(500.0), Send)
    assert isinstance(link.due(519.0), Report)
    assert link.due(520.0) == Hang("silent", "no acknowledgement for 20 s")


def test_an_acknowledgement_settles_whole_batches_and_counts_what_was_rejected() -> None:
    ledger = Ledger()
    link = link_of(ledger)
    settle_in(link)
    for first in (1, 4, 7):
        add(link, ledger, first, 3)
        link.due(0.0)
    link.received(ack(8, rejected=2), 0.0)
    account = ledger.account()
    assert (account.acknowledged, account.dropped, account.pending) == (4, {"refused": 2}, 3)
    link.received(ack(9, rejected=9), 0.0)
    account = ledger.account()
    assert (account.acknowledged, account.dropped, account.pending) == (4, {"refused": 5}, 0)
    assert link.errors["rejected_more_than_sent"] == 1


def test_an_acknowledgement_of_what_was_never_sent_ends_the_stream_and_settles_nothing() -> None:
    ledger = Ledger()
    link = link_of(ledger)
    settle_in(link)
    add(link, ledger, 1, 3)
    link.received(ack(3), 0.0)
    assert link.due(0.0) == Hang("garbled", "an acknowledgement of frame 3, which was not sent")
    assert ledger.account().pending == 3


def test_an_acknowledgement_of_another_epoch_settles_nothing() -> None:
    ledger = Ledger()
    link = link_of(ledger)
    settle_in(link)
    add(link, ledger, 1, 3)
    link.due(0.0)
    link.received(ack(3, epoch_ms=EPOCH + 1), 0.0)
    assert ledger.account().pending == 3
    assert link.errors == {"ack_of_another_epoch": 1}


def test_back_pressure_holds_and_then_sends_again_from_there_the_same_bytes() -> None:
    ledger = Ledger()
    link = link_of(ledger)
    settle_in(link)
    parcels = [add(link, ledger, first, 1) for first in (1, 2)]
    for _ in parcels:
        link.due(0.0)
    link.received(ack(1, retry_after_ms=500), 0.0)
    assert link.due(0.0) == Wait(0.5)
    assert link.due(0.5) == Send(parcels[1].data)


def test_events_alone_are_done_when_they_are_sent_and_take_no_credit() -> None:
    ledger = Ledger()
    link = link_of(ledger)
    settle_in(link, credit=1)
    for _ in range(3):
        add(link, ledger, 1, 0)
        assert isinstance(link.due(0.0), Send)
    assert (link.unacknowledged, link.window_bytes) == (0, 0)


def test_events_behind_frames_that_are_under_way_are_sent_again_with_them() -> None:
    ledger = Ledger()
    link = link_of(ledger)
    settle_in(link)
    parcels = [add(link, ledger, 1, 2), add(link, ledger, 3, 0)]
    for _ in parcels:
        link.due(0.0)
    assert link.unacknowledged == 2
    link.broken(0.0)
    settle_in(link, 100.0)
    assert [link.due(100.0) for _ in parcels] == [Send(parcel.data) for parcel in parcels]


# --- resuming


def test_after_a_break_what_is_stored_counts_and_the_rest_is_sent_again_byte_by_byte() -> None:
    ledger = Ledger()
    link = link_of(ledger)
    settle_in(link)
    parcels = [add(link, ledger, first, 3) for first in (1, 4, 7)]
    for _ in parcels:
        link.due(0.0)
    link.broken(0.0)
    settle_in(link, 100.0, resume_after=3)
    assert ledger.account().acknowledged == 3
    assert [link.due(100.0) for _ in range(2)] == [Send(parcel.data) for parcel in parcels[1:]]


def test_a_store_that_lost_what_it_acknowledged_leads_to_a_new_epoch() -> None:
    ledger = Ledger()
    link = link_of(ledger)
    settle_in(link)
    for first in (1, 4):
        add(link, ledger, first, 3)
        link.due(0.0)
    link.received(ack(3), 0.0)
    link.broken(0.0)
    link.opened(100.0)
    link.received(welcome(resume_after=0), 100.0)
    assert link.due(100.0) == Hang("lost_store", "it has 0 of 3 frames")
    link.broken(100.0)
    assert link.epoch_ms == 0
    settle_in(link, 200.0, epoch_ms=EPOCH + 5)
    batch = sent(link.due(200.0))
    assert (batch.epoch_ms, batch.first_sequence, batch.count) == (EPOCH + 5, 1, 3)
    link.received(ack(3, epoch_ms=EPOCH + 5), 200.0)
    assert ledger.account().acknowledged == 6


def test_frames_in_our_epoch_that_we_never_sent_lead_to_a_new_epoch() -> None:
    ledger = Ledger()
    link = link_of(ledger)
    settle_in(link)
    add(link, ledger, 1, 3)
    link.due(0.0)
    link.broken(0.0)
    link.opened(100.0)
    link.received(welcome(resume_after=4), 100.0)
    assert isinstance(link.due(100.0), Hang)
    assert link.epoch_ms == 0
    assert ledger.account().acknowledged == 0


def test_a_collector_may_give_another_epoch_at_any_time() -> None:
    ledger = Ledger()
    link = link_of(ledger)
    settle_in(link)
    add(link, ledger, 1, 2)
    link.due(0.0)
    link.received(ack(2), 0.0)
    link.broken(0.0)
    settle_in(link, 100.0, epoch_ms=EPOCH + 1)
    add(link, ledger, 3, 1)
    batch = sent(link.due(100.0))
    assert (batch.epoch_ms, batch.first_sequence) == (EPOCH + 1, 1)


def test_frames_that_were_dropped_before_the_first_epoch_are_a_gap_in_it() -> None:
    ledger = Ledger()
    link = link_of(ledger)
    settle_in(link)
    add(link, ledger, 41, 2)
    assert sent(link.due(0.0)).first_sequence == 41


# --- control


def test_control_sets_the_level_and_the_pause_and_ignores_what_is_no_level() -> None:
    link = link_of()
    settle_in(link)
    link.received(message(control=agent_pb2.Control(level="deep", pause=True)), 0.0)
    assert (link.level, link.paused) == ("deep", True)
    link.received(message(control=agent_pb2.Control(level="everything")), 0.0)
    assert (link.level, link.paused, link.errors) == ("deep", False, {"unknown_level": 1})


SAYINGS: dict[str, Any] = {
    "level": agent_pb2.Control(level="deep"),
    "pause": agent_pb2.Control(pause=True),
    "share": agent_pb2.Control(deep_ratio=0.5),
    "own level": agent_pb2.Control(own_level=True),
    "demand": agent_pb2.Control(demand=agent_pb2.Demand(watched=False, one_in=16)),
    "kill": agent_pb2.Control(kill=True),
}


@pytest.mark.parametrize("said", SAYINGS)
def test_whoever_looks_at_one_thing_alone_sees_that_something_else_is_asked_for(said: str) -> None:
    link = link_of()
    before = link.asked
    settle_in(link)
    settled = link.asked
    assert settled is not before
    link.received(message(ping=agent_pb2.Ping(ping_ns=7)), 0.0)
    assert link.asked is settled
    link.received(message(control=SAYINGS[said]), 0.0)
    assert link.asked is not settled


def test_a_refusal_for_good_is_seen_so_too() -> None:
    link = link_of()
    settle_in(link)
    before = link.asked
    link.received(message(refusal=agent_pb2.Refusal(reason="no", final=True)), 0.0)
    assert link.asked is not before


def test_a_ping_is_answered_before_anything_else() -> None:
    ledger = Ledger()
    link = link_of(ledger)
    settle_in(link)
    add(link, ledger, 1, 1)
    link.received(message(ping=agent_pb2.Ping(ping_ns=7)), 0.0)
    assert link.due(0.0) == Answer(7)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (message(control=agent_pb2.Control(kill=True)), "killed"),
        (message(refusal=agent_pb2.Refusal(reason="no", final=True)), "refused"),
    ],
)
def test_a_final_word_stops_the_link_for_good_and_drops_the_window(said: Any, reason: str) -> None:
    ledger = Ledger()
    link = link_of(ledger)
    settle_in(link)
    add(link, ledger, 1, 3)
    link.received(said, 0.0)
    assert link.due(0.0) == Stop(reason)
    link.broken(0.0)
    assert link.due(1e9) == Stop(reason)
    assert ledger.account().dropped == {reason: 3}


def test_a_refusal_that_is_not_final_is_tried_again() -> None:
    link = link_of()
    link.opened(0.0)
    link.received(message(refusal=agent_pb2.Refusal(reason="full")), 0.0)
    assert link.due(0.0) == Hang("refused", "full")
    link.broken(0.0)
    assert link.due(100.0) == Open()


# --- everything at once


class Collector:
    """A collector with a store, as the protocol describes it: appends each id once, says how far it is."""

    def __init__(self) -> None:
        self.stored: dict[int, list[tuple[int, int]]] = {}
        self.epochs = EPOCH

    def greet(self, epoch_ms: int) -> Any:
        if epoch_ms not in self.stored:
            self.epochs += 1
            epoch_ms = self.epochs
            self.stored[epoch_ms] = []
        return welcome(epoch_ms=epoch_ms, resume_after=self.high(epoch_ms))

    def high(self, epoch_ms: int) -> int:
        return max((last for _, last in self.stored[epoch_ms]), default=0)

    def store(self, batch: frame_pb2.Batch) -> Any:
        assert batch.first_sequence > self.high(batch.epoch_ms), "sent twice, or out of order"
        last = batch.first_sequence + batch.count - 1
        self.stored[batch.epoch_ms].append((batch.first_sequence, last))
        return ack(last, epoch_ms=batch.epoch_ms)

    def frames(self) -> int:
        return sum(last - first + 1 for ranges in self.stored.values() for first, last in ranges)


STEPS = st.lists(
    st.sampled_from(["draw", "draw", "skip", "step", "step", "step", "store", "hear", "break"]), max_size=120
)


@settings(deadline=None, max_examples=200)
@given(STEPS, st.randoms(use_true_random=False))
def test_under_any_breaks_what_is_acknowledged_is_stored_once_and_the_ledger_balances(
    steps: list[str], random: Any
) -> None:
    ledger = Ledger()
    link = Link(ledger, jitter=random.random)
    collector = Collector()
    up: deque[frame_pb2.Batch] = deque()
    down: deque[Any] = deque()
    now, place = 0.0, 0

    def step() -> None:
        nonlocal now, place
        now += 0.05
        action = link.due(now)
        if isinstance(action, Open):
            link.opened(now)
            down.append(collector.greet(link.epoch_ms))
        elif isinstance(action, Send):
            up.append(sent(action))
        elif isinstance(action, Draw) and wanted:
            frames = wanted.popleft()
            add(link, ledger, place + 1, frames)
            place += frames
        elif isinstance(action, Wait):
            now = max(now, min(action.until_s, now + 1))
        elif isinstance(action, Hang):
            cut()

    def cut() -> None:
        up.clear()
        down.clear()
        link.broken(now)

    wanted: deque[int] = deque()
    for what in steps:
        if what == "draw":
            wanted.append(random.randint(1, 5))
        elif what == "skip":  # evicted from the outbox: a gap
            place += 3
        elif what == "step":
            step()
        elif what == "store" and up:
            down.append(collector.store(up.popleft()))
        elif what == "hear" and down:
            link.received(down.popleft(), now)
        elif what == "break" and link.phase != "apart":
            cut()
        assert ledger.account().acknowledged <= collector.frames()
        assert ledger.account().pending >= 0
    for _ in range(400):  # the faults end: everything arrives
        step()
        while up:
            down.append(collector.store(up.popleft()))
        while down:
            link.received(down.popleft(), now)
    account = ledger.account()
    assert (account.pending, account.dropped) == (0, {})
    assert account.acknowledged == collector.frames() == account.captured
    assert sum(bool(ranges) for ranges in collector.stored.values()) <= 1
