"""Requests are put together from what came, in any order in which it can come."""

from __future__ import annotations

import numpy as np
from tests.telemetry.made import MS, SPAN, START_NS, TRACE, batch, block, ended, started

from fulgurite.telemetry.requests import HELD_NS, MOST_REQUESTS, SILENT_NS, Requests
from fulgurite.telemetry.spans import generation_times


def test_a_request_has_the_times_and_counts_that_were_sent() -> None:
    requests = Requests("d/s/i")
    assert requests.fold(batch(events=(started(),))) == []
    assert requests.fold(batch(block(3), first=1)) == []
    (record,) = requests.fold(batch(block(1, first=3), events=(ended(),), first=4))
    assert (record.outcome, record.reason) == ("finished", "stop")
    assert (record.prompt_tokens, record.output_tokens, record.sequences) == (5, 4, 1)
    assert (record.trace_id, record.span_id) == (TRACE, SPAN)
    assert record.first_token_s == 0.03
    assert record.duration_s == 0.1
    assert record.columns["position"].tolist() == [5, 6, 7, 8]
    assert np.allclose(generation_times(record), [0.03, 0.01, 0.01, 0.01])
    assert len(requests) == 0


def test_rows_of_several_requests_in_one_block_are_told_apart() -> None:
    one, two = block(2, request="one"), block(2, request="two", first=4)
    columns = {name: np.concatenate([one.columns[name], two.columns[name]]) for name in one.columns}
    columns["request_index"] = np.asarray([0, 0, 1, 1], np.uint16)
    mixed = type(one)((one.requests[0], two.requests[0]), columns)
    requests = Requests("d/s/i")
    records = requests.fold(batch(mixed, events=(started("one"), started("two"), ended("one"), ended("two"))))
    assert [(r.request_id, r.columns["position"].tolist()) for r in records] == [
        ("one", [5, 6]),
        ("two", [9, 10]),
    ]


def test_a_channel_that_some_tokens_lack_is_nan_there() -> None:
    poor = block(2, first=2)
    columns = {
        name: column for name, column in poor.columns.items() if name not in ("head_write", "kv_tokens")
    }
    requests = Requests("d/s/i")
    bare = type(poor)(poor.requests, columns)
    (record,) = requests.fold(batch(block(2), bare, events=(started(), ended())))
    assert np.isnan(record.columns["head_write_max"]).tolist() == [False, False, True, True]
    assert record.columns["head_write_layer"][2:].tolist() == [-1, -1]
    assert record.columns["kv_tokens"].tolist() == [6, 7, -1, -1]


def test_the_most_active_head_is_named_with_its_layer() -> None:
    heads = np.zeros((1, 2, 4), np.float32)
    heads[0, 1, 2] = 0.5
    heads[0, 0, 0] = np.nan
    requests = Requests("d/s/i")
    (record,) = requests.fold(batch(block(1, head_write=heads), events=(started(), ended())))
    found = [record.columns[f"head_write_{what}"][0] for what in ("max", "layer", "head")]
    assert found == [0.5, 1, 2]


def test_an_end_without_a_beginning_is_a_request_all_the_same() -> None:
    requests = Requests("d/s/i")
    event = ended(kind="aborted", reason="OutOfMemoryError")
    assert requests.fold(batch(events=(event,))) == [], "its tokens may come yet"
    (record,) = requests.give_up(event.time_ns + HELD_NS + 1)
    assert (record.outcome, record.output_tokens, record.duration_s) == ("aborted", 0, 0.0)


def test_requests_that_nobody_hears_of_are_given_up() -> None:
    requests = Requests("d/s/i")
    requests.fold(batch(events=(started("old"), started("new", at_ns=START_NS + SILENT_NS))))
    (record,) = requests.give_up(START_NS + SILENT_NS + 1 * MS)
    assert (record.request_id, record.outcome) == ("old", "given_up")
    assert len(requests) == 1


def test_memory_is_bounded_however_many_requests_never_end() -> None:
    requests = Requests("d/s/i")
    for at in range(MOST_REQUESTS + 10):
        requests.fold(batch(events=(started(str(at), at_ns=START_NS + at),)))
    gone = requests.give_up(START_NS + MOST_REQUESTS)
    assert [record.request_id for record in gone] == [str(at) for at in range(10)]
    assert len(requests) == MOST_REQUESTS


def test_the_ids_of_a_span_are_the_same_wherever_it_is_made() -> None:
    made = [Requests("d/s/i").fold(batch(block(1), events=(started(), ended())))[0] for _ in range(2)]
    other = Requests("d/s/j").fold(batch(block(1), events=(started(), ended())))[0]
    assert made[0].own_span_id == made[1].own_span_id != other.own_span_id
    assert made[0].own_trace_id == TRACE
