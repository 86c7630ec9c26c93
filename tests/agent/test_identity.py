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
    found = request.commit(np.array([7, 7, 7]), NONE)
    assert (found.real.tolist(), found.position.tolist()) == ([0, 1, 2], [3, 3, 5])
    assert request.commit(np.array([7, 7, 7]), NONE).position.tolist() == [4, 4, 6]


def test_the_stop_token_is_committed_and_what_comes_after_is_not() -> None:
    request = new_request(new_ref(), rows=2, width=4, mask=None)
    assert request.commit(np.array([2, 9]), frozenset({2})).real.tolist() == [0, 1]
    found = request.commit(np.array([0, 2]), frozenset({2}))
    assert (found.real.tolist(), found.position[found.real].tolist()) == ([1], [5])
    assert request.commit(np.array([0, 0]), frozenset({2})).real.tolist() == []
    assert request.finished.all()


def test_several_tokens_of_one_pass_follow_one_another_up_to_the_stop() -> None:
    request = new_request(new_ref(), rows=2, width=4, mask=np.array([[0, 1, 1, 1], [1, 1, 1, 1]]))
    request.commit(np.array([7, 7]), NONE)
    found = request.commit(np.array([[7, 8, 9], [7, 2, 9]]), frozenset({2}))
    assert found.real.tolist() == [0, 1, 2, 3, 4]
    assert found.sequence.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.position.tolist() == [4, 5, 6, 5, 6, 7]
    assert found.passes.tolist() == [1, 2, 3, 1, 2, 3]
    assert request.generated.tolist() == [4, 3]
    assert request.finished.tolist() == [False, True]


@given(tokens=st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=1, max_size=6))
def test_one_by_one_and_several_at_once_are_the_same(tokens: list[list[int]]) -> None:
    each, together = (new_request(new_ref(), rows=2, width=4, mask=None) for _ in range(2))
    stops = frozenset({0})
    steps = [each.commit(np.array(step), stops) for step in tokens]
    found = [(int(s.sequence[r]), int(s.position[r])) for s in steps for r in s.real]
    once = together.commit(np.array(tokens).T, stops)
    assert sorted(found) == [(int(once.sequence[r]), int(once.position[r])) for r in once.real]
    assert each.generated.tolist() == together.generated.tolist()
    assert each.finished.tolist() == together.finished.tolist()


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
    found = request.cached(np.array([resident, -1]), np.array([0]), np.array([passes]))
    assert found.tolist() == [[wanted, -1]]


def test_every_request_has_an_id_of_its_own() -> None:
    assert new_ref().request_id != new_ref().request_id
    assert new_ref(request_id="given").request_id == "given"
