"""What the sequences of a replica hold, while they change between frames and sketches: each counted once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.collector.played import (
    BYTES,
    FOLDED,
    KEPT,
    ONE_IN,
    SECOND_NS,
    STEP_S,
    T0_NS,
    Played,
    block_of,
)

from fulgurite.agent.wanted import Wanted
from fulgurite.collector.gauges import Gauges, is_kept_whole
from fulgurite.wire.frame import RequestRef
from fulgurite.wire.sketch import FIRST_TOKEN, INTER_TOKEN, Sketch
from fulgurite.wire.sketch_codec import columns_from_pb

HELD_LOOKS = 26
"""Of five steps each: longer than a sketch is gathered, and holds."""


def test_a_viewer_that_comes_counts_no_sequence_twice() -> None:
    played = Played()
    for name in FOLDED[:4]:
        played.begin(name)
    played.turn(130)
    assert played.status().running_sequences == 4
    played.watched = True
    for _ in range(130):
        played.turn()
        status = played.status()
        assert (status.running_sequences, status.kv_tokens) == (4, played.kv_tokens)
        assert status.kv_bytes == BYTES * played.kv_tokens


def test_the_last_viewer_that_leaves_counts_no_sequence_twice() -> None:
    played = Played(watched=True)
    for name in FOLDED[:4]:
        played.begin(name)
    played.turn(130)
    played.watched = False
    for _ in range(130):
        before = played.kv_tokens
        played.turn()
        status = played.status()
        assert status.running_sequences == 4
        # Never more than there is; and a sketch is of the second that it closes.
        assert before - 4 * 1.6 / STEP_S <= status.kv_tokens <= played.kv_tokens


def test_beside_a_request_that_is_kept_whole_the_sketch_is_of_the_others() -> None:
    played = Played()
    played.begin(KEPT[0])
    for name in FOLDED[:3]:
        played.begin(name)
    played.turn(100)
    for _ in range(120):
        played.turn()
        assert played.status().running_sequences == 4
    played.end(KEPT[0])
    for _ in range(120):
        played.turn()
        assert played.status().running_sequences == 3


def test_a_request_that_ends_after_it_changed_over_does_not_come_back_with_the_sketch() -> None:
    played = Played()
    for name in FOLDED[:3]:
        played.begin(name)
    played.turn(130)
    played.watched = True
    played.turn(2)
    played.end(FOLDED[0])
    for _ in range(120):
        played.turn()
        status = played.status()
        assert (status.running_sequences, status.kv_tokens) == (2, played.kv_tokens)


def test_a_sequence_that_is_folded_elsewhere_stays_in_what_is_left_of_the_sketch() -> None:
    gauges = Gauges(lambda request: is_kept_whole(request, ONE_IN))
    sketch = Sketch(
        tokens=9, start_ns=T0_NS, end_ns=T0_NS + 100, columns={}, sequences=3, kv_tokens=60, kv_bytes=600
    )
    gauges.take(sketch, 0)
    block = block_of(FOLDED[:1], [20], np.array([False]), T0_NS + 200)
    gauges.see([block], 0)
    held = gauges.now(0)
    assert (held.sequences, held.kv_tokens, held.kv_bytes) == (3, 60, 20 * BYTES + max(0, 600 - 20 * BYTES))


CHANGES = st.sampled_from(["watch", "leave", "begin", "begin whole", "end", "nothing"])


@given(plan=st.lists(st.tuples(CHANGES, st.integers(1, 18)), min_size=1, max_size=10))
@settings(max_examples=8, deadline=None)
def test_whatever_comes_and_goes_a_sequence_is_counted_once_and_so_is_a_token(
    plan: list[tuple[str, int]],
) -> None:
    played = Played()
    folded, whole = iter(FOLDED), iter(KEPT)
    there: list[set[str]] = []
    for what, looks in [("begin", 20), *plan, ("nothing", 40)]:
        if what in ("watch", "leave"):
            played.watched = what == "watch"
        elif what.startswith("begin"):
            played.begin(next(whole if "whole" in what else folded))
        elif what == "end" and played.tokens:
            played.end(next(iter(played.tokens)))
        for _ in range(looks):
            played.turn(5)
            there = [*there[1 - HELD_LOOKS :], set(played.tokens)]
            running = played.status().running_sequences
            if len(there) == HELD_LOOKS:  # what a sketch says may be of a moment ago
                assert len(set.intersection(*there)) <= running <= len(set.union(*there))
    assert played.status().running_sequences == len(played.tokens)
    check_that_each_token_counts_once(played)


def check_that_each_token_counts_once(played: Played) -> None:
    played.settle()
    assert played.figures.tokens_total == played.made
    closed = played.figures.closed(played.now_ns + 3600 * SECOND_NS)
    for width_s in (1, 10, 60):
        windows = [window for window in closed if window.width_s == width_s]
        assert sum(window.frames + window.folded for window in windows) == played.made
        moments = [columns_from_pb(window.columns) for window in windows]
        heads = [told["head_write"].count for told in moments if "head_write" in told]
        assert np.sum(heads, axis=0).tolist() == [played.made] * 4
        # A token has one time: to the first, or since the one before. Nobody has that of a change-over.
        times = sum(
            int(told[n].count[0]) for told in moments for n in (FIRST_TOKEN, INTER_TOKEN) if n in told
        )
        assert played.made - played.changes <= times <= played.made


def test_the_choice_of_requests_is_that_of_agents() -> None:
    for one_in in (0, 1, 2, 16):
        wanted = Wanted(watched=False, one_in=one_in)
        for number in range(64):
            for request in (RequestRef(f"r{number}"), RequestRef("r", trace_id=f"{number:032x}")):
                assert is_kept_whole(request, one_in) == wanted.wants(request)
