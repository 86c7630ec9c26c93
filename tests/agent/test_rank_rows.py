"""Rows of a vocabulary that is split: all of them or nothing, of the step that is asked for, without end."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from fulgurite.agent.rank_rows import RowShare, RowTable, together

VOCABULARY, WIDTH = 10, 4
WHOLE = np.random.default_rng(0).standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
IDS = np.array([[7, 0, 3], [2, 9, 9]])


def share(first: int, last: int, ids: np.ndarray = IDS) -> RowShare:
    """What the rank with the rows `first` to `last` has."""
    held = (ids >= first) & (ids < last)
    rows = WHOLE[ids] * held[..., None]
    biases = (ids * held).astype(np.float32)
    total = WHOLE[first:last].astype(np.float64).sum(0)
    return RowShare(rows, biases, held, total, np.array([float(sum(range(first, last)))]), last - first)


def never() -> bool:
    return False


def test_all_shares_are_the_rows_themselves_and_their_sum() -> None:
    whole = together([share(0, 3), share(3, 8), share(8, 10)], VOCABULARY)
    assert whole is not None
    np.testing.assert_array_equal(whole.rows, WHOLE[IDS])
    np.testing.assert_array_equal(whole.biases, IDS)
    np.testing.assert_allclose(whole.total, WHOLE.astype(np.float64).sum(0))
    assert whole.bias_total[0] == sum(range(VOCABULARY))
    assert whole.count == VOCABULARY


@pytest.mark.parametrize(
    "shares",
    [
        [share(0, 3), share(3, 8)],
        [share(0, 5), share(0, 5)],
        [share(0, 5), share(5, 10, IDS[:1])],
    ],
    ids=["one is missing", "one came twice", "of other tokens"],
)
def test_what_is_not_all_is_nothing(shares: list[RowShare]) -> None:
    assert together(shares, VOCABULARY) is None


def test_a_share_comes_back_from_its_arrays() -> None:
    sent = share(0, 5)
    back = RowShare.of(sent.arrays())
    assert all(np.array_equal(sent.arrays()[name], found) for name, found in back.arrays().items())
    np.testing.assert_array_equal(sent.first_ids().rows, sent.rows[:, :1])


def test_arrays_that_do_not_fit_each_other_are_refused() -> None:
    arrays = share(0, 5).arrays()
    with pytest.raises(ValueError, match="not of the same tokens"):
        RowShare.of({**arrays, "held": arrays["held"][:1]})


def test_rows_that_are_told_later_are_waited_for() -> None:
    table = RowTable([1, 2])
    assert table.put(2, 5, share(8, 10))
    teller = threading.Thread(target=lambda: table.put(1, 5, share(3, 8)))
    teller.start()
    whole, waiting, late = table.gather(5, share(0, 3), VOCABULARY, wait_s=30, is_over=never)
    teller.join()
    assert whole is not None
    assert sorted(waiting) == [1, 2]
    assert late == []


def test_a_rank_that_tells_nothing_is_waited_for_once() -> None:
    table = RowTable([1])
    assert table.gather(5, share(0, 5), VOCABULARY, wait_s=0.01, is_over=never) == (None, [], [1])
    assert table.gather(6, share(0, 5), VOCABULARY, wait_s=600, is_over=never) == (None, [], [])
    assert table.put(1, 7, share(5, 10))  # it is back
    whole, _, _ = table.gather(7, share(0, 5), VOCABULARY, wait_s=600, is_over=never)
    assert whole is not None


def test_nobody_waits_for_a_rank_that_left_or_is_past_the_step_or_at_the_end() -> None:
    left, past, over = RowTable([1]), RowTable([1]), RowTable([1])
    left.left(1)
    past.passed(1, 5)
    for table, is_over in ((left, never), (past, never), (over, lambda: True)):
        whole, _, _ = table.gather(5, share(0, 5), VOCABULARY, wait_s=600, is_over=is_over)
        assert whole is None


def test_whoever_asked_of_a_step_that_is_over_is_told_so() -> None:
    table = RowTable([1])
    assert table.put(1, 5, share(5, 10))
    assert table.put(1, 9, share(5, 10))
    assert table.finish(6) == [(1, 5)]
    assert table.finish(6) == []
    assert not table.put(1, 6, share(5, 10))
    assert table.finish(9) == [(1, 9)]
