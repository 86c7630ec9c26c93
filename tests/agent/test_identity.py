"""Rows, positions and cached tokens, against plain counting."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.agent.identity import new_ref, new_request

NONE: frozenset[int] = frozenset()


def test_positions_leave_padding_out_on_either_side() -> None:
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    request = new_request(new_ref(), rows=3, width=5, mask=mask)
    assert request.prompt.tolist() == [3, 3, 5]
    assert request.left.tolist() == [2, 0, 0]
    rows, positions = request.commit(np.array([7, 7, 7]), NONE)
    assert (rows.tolist(), positions.tolist()) == ([0, 1, 2], [3, 3, 5])
    rows, positions = request.commit(np.array([7, 7, 7]), NONE)
    assert positions.tolist() == [4, 4, 6]


def test_the_stop_token_is_committed_and_what_comes_after_is_not() -> None:
    request = new_request(new_ref(), rows=2, width=4, mask=None)
    rows, _ = request.commit(np.array([2, 9]), frozenset({2}))
    assert rows.tolist() == [0, 1]
    rows, positions = request.commit(np.array([0, 2]), frozenset({2}))
    assert (rows.tolist(), positions.tolist()) == ([1], [5])
    rows, _ = request.commit(np.array([0, 0]), frozenset({2}))
    assert rows.tolist() == []
    assert request.finished.all()


@given(
    left=st.integers(0, 5),
    real=st.integers(1, 6),
    right=st.integers(0, 5),
    passes=st.integers(0, 8),
    window=st.integers(1, 20),
)
def test_cached_tokens_are_the_real_ones_among_the_last_positions(
    left: int, real: int, right: int, passes: int, window: int
) -> None:
    line = [0] * left + [1] * real + [0] * right
    request = new_request(new_ref(), rows=1, width=len(line), mask=np.array([line]))
    fed = line + [1] * passes
    resident = min(window, len(fed))
    wanted = sum(fed[len(fed) - resident :])
    assert request.cached(np.array([resident, -1]), passes).tolist() == [[wanted, -1]]


def test_every_request_has_an_id_of_its_own() -> None:
    assert new_ref().request_id != new_ref().request_id
    assert new_ref(request_id="given").request_id == "given"
