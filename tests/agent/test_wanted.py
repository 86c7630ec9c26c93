"""Of which tokens whole frames are wanted: all while somebody watches, else those of sampled requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fulgurite.agent.late import LateBlock
from fulgurite.agent.wanted import EVERYTHING, Wanted
from fulgurite.wire.frame import FrameBlock, RequestRef

ONE_IN_16 = Wanted(watched=False, one_in=16)
NAMES = [f"request-{n}" for n in range(4000)]
CHOSEN = [name for name in NAMES if ONE_IN_16.wants(RequestRef(name))]
OTHERS = [name for name in NAMES if name not in set(CHOSEN)]


def block(*requests: str, index: tuple[int, ...] = (0, 1, 0, 1)) -> FrameBlock:
    refs = tuple(RequestRef(name) for name in requests)
    return FrameBlock(refs, {"request_index": np.array(index, np.uint16)})


@pytest.mark.parametrize(
    "wanted", [EVERYTHING, Wanted(watched=True, one_in=0), Wanted(watched=False, one_in=1)]
)
def test_everything_is_wanted_while_somebody_watches_or_the_history_is_all(wanted: Wanted) -> None:
    assert wanted.is_all
    assert wanted.rows(block(OTHERS[0], OTHERS[1])) is True


def test_nothing_is_wanted_where_nobody_watches_and_no_history_is_kept() -> None:
    none = Wanted(watched=False, one_in=0)
    assert not any(none.wants(RequestRef(name)) for name in NAMES)
    assert none.rows(block(CHOSEN[0], CHOSEN[1])) is False


def test_about_one_request_in_so_many_is_chosen_and_always_the_same_ones() -> None:
    assert 4000 / 16 / 1.5 < len(CHOSEN) < 4000 / 16 * 1.5
    assert CHOSEN[:2] == ["request-5", "request-13"]  # in every process, of every version


def test_the_trace_chooses_where_there_is_one_so_that_all_its_requests_are_kept() -> None:
    of_a_trace = [ONE_IN_16.wants(RequestRef(name, trace_id=CHOSEN[0])) for name in NAMES[:50]]
    assert all(of_a_trace)
    assert not ONE_IN_16.wants(RequestRef(CHOSEN[0], trace_id=OTHERS[0]))


def test_a_name_that_is_no_unicode_can_be_chosen_too() -> None:
    assert ONE_IN_16.wants(RequestRef("\ud800")) in (True, False)


def test_rows_are_those_of_the_chosen_requests() -> None:
    rows = ONE_IN_16.rows(block(CHOSEN[0], OTHERS[0]))
    assert not isinstance(rows, bool)
    assert rows.tolist() == [True, False, True, False]
    assert ONE_IN_16.rows(block(CHOSEN[0], CHOSEN[1])) is True
    assert ONE_IN_16.rows(block(OTHERS[0], OTHERS[1])) is False
    assert ONE_IN_16.rows(block()) is False


def test_a_request_that_is_named_and_has_no_row_changes_nothing() -> None:
    assert ONE_IN_16.rows(block(CHOSEN[0], OTHERS[0], index=(0, 0))) is True
    assert ONE_IN_16.rows(block(CHOSEN[0], OTHERS[0], index=(1, 1))) is False


def test_columns_that_are_not_made_yet_are_not_made_to_choose() -> None:
    def make() -> Mapping[str, Any]:
        raise AssertionError("the host's thread would pay for it")

    def late(*requests: str) -> LateBlock:
        return LateBlock(tuple(RequestRef(name) for name in requests), make, rows=2, nbytes=10)

    assert ONE_IN_16.rows(late(CHOSEN[0], OTHERS[0])) is True
    assert ONE_IN_16.rows(late(OTHERS[0], OTHERS[1])) is False


@pytest.mark.parametrize(
    ("wanted", "asked", "ceiling", "level"),
    [
        (Wanted(watched=True, history_level="pulse"), None, "deep", None),
        (Wanted(watched=True, history_level="pulse"), "deep", "deep", "deep"),
        (Wanted(watched=False, history_level="heads"), None, "deep", "heads"),
        (Wanted(watched=False, history_level="heads"), None, "pulse", "pulse"),
        (Wanted(watched=False, history_level="heads"), "pulse", "deep", "pulse"),
        (Wanted(watched=False, history_level=""), None, "deep", None),
        (Wanted(watched=False, history_level="unheard of"), "deep", "deep", "deep"),
        (Wanted(watched=False, history_level="heads"), "off", "deep", "off"),
    ],
)
def test_nobody_watching_lowers_the_level_and_never_raises_it(
    wanted: Wanted, asked: str | None, ceiling: str, level: str | None
) -> None:
    assert wanted.level(asked, ceiling) == level
