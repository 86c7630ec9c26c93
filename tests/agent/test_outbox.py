"""The outbox holds no more than its budget, loses only the oldest, and counts what it loses."""

from __future__ import annotations

import time
from threading import Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgurite.agent.late import LateBlock
from fulgurite.agent.outbox import NEVER, Drawn, Outbox
from fulgurite.wire.frame import FrameBlock, RequestEvent, RequestRef
from fulgurite.wire.ledger import Ledger

BUDGET = 1 << 16


def block_of(frames: int, floats: int = 100) -> FrameBlock:
    columns = {"position": np.zeros(frames, np.int32), "logprob": np.zeros((frames, floats), np.float32)}
    return FrameBlock((RequestRef("r"),), columns)


def drawn_from(outbox: Outbox) -> list[Drawn]:
    taken = []
    while (drawn := outbox.take()) is not None:
        taken.append(drawn)
    return taken


def test_blocks_come_out_in_order_with_their_places() -> None:
    outbox = Outbox(Ledger())
    for frames in (2, 3, 1):
        outbox.put(block_of(frames))
    assert [(d.first_sequence, d.frames) for d in drawn_from(outbox)] == [(1, 2), (3, 3), (6, 1)]
    assert (outbox.frames, outbox.nbytes, len(outbox)) == (0, 0, 0)


def test_when_it_is_full_the_oldest_goes_and_is_counted_and_leaves_a_gap() -> None:
    ledger = Ledger()
    outbox = Outbox(ledger, BUDGET)
    for _ in range(40):
        outbox.put(block_of(4))
    assert outbox.nbytes <= BUDGET
    account = ledger.account()
    assert account.dropped["outbox_full"] > 0
    assert account.pending == outbox.frames
    first, *rest = drawn_from(outbox)
    assert first.first_sequence == account.dropped["outbox_full"] + 1
    assert rest[-1].first_sequence + rest[-1].frames - 1 == 160


def test_a_block_whose_makings_do_not_fit_is_put_as_what_is_made_of_them() -> None:
    ledger = Ledger()
    outbox = Outbox(ledger, BUDGET)
    made = block_of(3)
    outbox.put(LateBlock(made.requests, lambda: made.columns, rows=3, nbytes=2 * BUDGET))
    assert ledger.account().dropped == {}
    assert outbox.nbytes < BUDGET
    (drawn,) = drawn_from(outbox)
    assert drawn.frames == 3


def test_a_block_that_does_not_fit_and_cannot_be_made_counts_as_invalid() -> None:
    ledger = Ledger()
    outbox = Outbox(ledger, BUDGET)

    def fails() -> Any:
        raise ValueError("no columns")

    with pytest.raises(ValueError, match="no columns"):
        outbox.put(LateBlock((RequestRef("r"),), fails, rows=3, nbytes=2 * BUDGET))
    account = ledger.account()
    assert (account.captured, account.pending, account.dropped) == (3, 0, {"invalid": 3})
    outbox.put(block_of(2))
    (drawn,) = drawn_from(outbox)
    assert (drawn.frames, drawn.first_sequence) == (2, 1)


def test_a_block_larger_than_the_budget_is_dropped_and_nothing_else_breaks() -> None:
    ledger = Ledger()
    outbox = Outbox(ledger, BUDGET)
    outbox.put(block_of(1, floats=BUDGET))
    assert (len(outbox), ledger.account().dropped) == (0, {"outbox_full": 1})
    outbox.put(block_of(1))
    assert [d.first_sequence for d in drawn_from(outbox)] == [2]


def test_what_the_sender_holds_is_taken_from_the_budget() -> None:
    ledger = Ledger()
    outbox = Outbox(ledger, BUDGET)
    outbox.reserve(BUDGET - 10_000)
    for _ in range(5):
        outbox.put(block_of(2))
    assert outbox.nbytes <= 10_000
    assert ledger.account().dropped["outbox_full"] > 0


def test_events_keep_their_place_and_are_counted_when_they_go() -> None:
    outbox = Outbox(Ledger(), BUDGET)
    outbox.put(block_of(2))
    outbox.put_event(RequestEvent(request_id="r", kind="finished", time_ns=1))
    outbox.put(block_of(1))
    assert [(d.first_sequence, d.frames) for d in drawn_from(outbox)] == [(1, 2), (3, 0), (3, 1)]
    for _ in range(500):
        outbox.put_event(RequestEvent(request_id="r", kind="started", time_ns=1, prompt_texts=("x" * 1000,)))
    assert outbox.nbytes <= BUDGET
    assert outbox.events_evicted == 500 - len(outbox) > 0


def test_an_empty_block_is_nothing() -> None:
    ledger = Ledger()
    outbox = Outbox(ledger)
    outbox.put(block_of(0))
    assert (len(outbox), ledger.account().captured) == (0, 0)


@pytest.mark.parametrize("budget", [0, 1000, (32 << 20) + 1])
def test_a_budget_beyond_the_bounds_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match="an outbox holds 64 KiB to 32 MiB"):
        Outbox(Ledger(), budget)


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(1, 40), st.sampled_from(["take", "reserve", "free"])), max_size=80))
def test_whatever_is_done_the_bounds_hold_and_every_place_is_taken_or_dropped_once(
    steps: list[int | str],
) -> None:
    ledger = Ledger()
    outbox = Outbox(ledger, BUDGET)
    taken: list[Drawn] = []
    for step in steps:
        if isinstance(step, int):
            outbox.put(block_of(step))
        elif step == "take":
            drawn = outbox.take()
            if drawn is not None:
                taken.append(drawn)
        else:
            outbox.reserve(BUDGET // 2 if step == "reserve" else 0)
        assert outbox.nbytes <= BUDGET
        assert ledger.account().pending == outbox.frames + sum(d.frames for d in taken)
    taken += drawn_from(outbox)
    places = [place for d in taken for place in range(d.first_sequence, d.first_sequence + d.frames)]
    assert places == sorted(set(places))
    account = ledger.account()
    assert len(places) + account.dropped.get("outbox_full", 0) == account.captured


def test_threads_that_put_while_one_takes_lose_no_count_and_no_order() -> None:
    ledger = Ledger()
    outbox = Outbox(ledger, BUDGET)
    taken: list[Drawn] = []

    def produce() -> None:
        for i in range(2000):
            outbox.put(block_of(1 + i % 3))

    producers = [Thread(target=produce) for _ in range(3)]

    def consume() -> None:
        while any(thread.is_alive() for thread in producers) or len(outbox):
            drawn = outbox.take()
            if drawn is not None:
                taken.append(drawn)

    consumer = Thread(target=consume)
    for thread in (*producers, consumer):
        thread.start()
    for thread in (*producers, consumer):
        thread.join()
    taken += drawn_from(outbox)
    frames = sum(drawn.frames for drawn in taken)
    account = ledger.account()
    assert account.captured == frames + account.dropped.get("outbox_full", 0)
    assert (outbox.nbytes, outbox.frames) == (0, 0)
    ends = [0] + [drawn.first_sequence + drawn.frames - 1 for drawn in taken]
    assert all(drawn.first_sequence > end for drawn, end in zip(taken, ends, strict=False))


def test_the_sender_sleeps_until_enough_frames_wait() -> None:
    outbox = Outbox(Ledger())
    woken: list[float] = []

    def sender() -> None:
        outbox.wait(30.0, frames=4)
        woken.append(time.monotonic())

    thread = Thread(target=sender)
    thread.start()
    outbox.put(block_of(3))
    thread.join(0.05)
    assert not woken
    outbox.put(block_of(1))
    thread.join(10.0)
    assert woken


def test_a_wake_before_the_sleep_is_not_lost() -> None:
    outbox = Outbox(Ledger())
    outbox.wake()
    outbox.wake()
    began = time.monotonic()
    outbox.wait(30.0, frames=NEVER)
    assert time.monotonic() - began < 10.0


def test_the_oldest_item_says_when_it_came() -> None:
    outbox = Outbox(Ledger())
    assert outbox.oldest_s(5.0) == 5.0
    before_s = time.monotonic()
    outbox.put(block_of(1))
    between_s = time.monotonic()
    outbox.put(block_of(1))
    assert before_s <= outbox.oldest_s(float("inf")) <= between_s
    assert outbox.oldest_s(before_s - 1.0) == before_s - 1.0  # never later than now
    outbox.take()
    assert outbox.oldest_s(float("inf")) >= between_s


def test_a_sleep_ends_with_its_time() -> None:
    began = time.monotonic()
    Outbox(Ledger()).wait(0.02)
    assert time.monotonic() - began >= 0.015
