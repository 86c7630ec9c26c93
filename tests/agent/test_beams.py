"""The lineage of a beam search, on a search small enough to follow by hand."""

from __future__ import annotations

import numpy as np

from fulgurite.agent.beams import Beams
from fulgurite.agent.identity import new_ref, new_request


def two_beams(prompts: int = 1) -> Beams:
    """Two beams of each prompt (7, 8), (9, 10), …"""
    texts = np.array([[7 + 2 * p, 8 + 2 * p] for p in range(prompts) for _ in range(2)])
    return Beams(new_request(new_ref(), rows=2 * prompts, width=2, mask=None), texts, 2)


def test_a_line_that_changes_rows_is_followed_by_its_parents() -> None:
    beams = two_beams()
    first, tokens = beams.go_on(
        np.array([[7, 8, 1], [7, 8, 2], [7, 8, 3]]), np.array([0, 0]), np.array([1, 2])
    )
    assert (first.sequence.tolist(), first.row.tolist(), first.parent.tolist()) == ([0, 1], [0, 0], [-1, -1])
    assert (tokens.tolist(), first.position.tolist()) == ([1, 2], [2, 2])
    second, _ = beams.go_on(
        np.array([[7, 8, 2, 5], [7, 8, 1, 6], [7, 8, 2, 9]]), np.array([1, 0]), np.array([5, 6])
    )
    assert (second.sequence.tolist(), second.parent.tolist()) == ([0, 1], [1, 0])
    last, tokens = beams.end(np.array([[7, 8, 1, 6, 4], [7, 8, 1, 6, 3]]))
    assert (last.sequence.tolist(), last.parent.tolist(), tokens.tolist()) == ([0, 1], [1, 1], [4, 3])
    assert last.position.tolist() == [4, 4]
    assert beams.winners(np.array([[7, 8, 1, 6, 3], [7, 8, 1, 6, 4]])) == (1, 0)


def test_a_line_that_ends_before_the_others_gets_a_number_behind_the_rows() -> None:
    beams = two_beams(prompts=2)
    candidates = np.array([[7, 8, 0], [7, 8, 1], [7, 8, 2], [9, 10, 3], [9, 10, 4], [9, 10, 5]])
    found, tokens = beams.go_on(candidates, np.array([0, 0, 2, 2]), np.array([1, 2, 3, 4]))
    assert found.sequence.tolist() == [0, 1, 2, 3, 4]
    assert tokens.tolist() == [1, 2, 3, 4, 0]
    assert found.row.tolist() == [0, 0, 2, 2, 0]
    assert beams.winners(np.array([[7, 8, 0, 0, 0], [9, 10, 3, 3, 3]])) == (4, -1)


def test_a_candidate_behind_the_best_has_not_ended_though_it_does_not_go_on() -> None:
    beams = two_beams()
    found, _ = beams.go_on(np.array([[7, 8, 1], [7, 8, 2], [7, 8, 0]]), np.array([0, 0]), np.array([1, 2]))
    assert found.sequence.tolist() == [0, 1]
    assert beams.winners(np.array([[7, 8, 0]])) == (-1,)


def test_rows_are_told_from_whole_texts_where_there_is_no_cache() -> None:
    beams = two_beams()
    beams.go_on(np.array([[7, 8, 1], [7, 8, 2]]), np.array([0, 0]), np.array([1, 2]))
    assert beams.rows_of(np.array([[7, 8, 2, 4], [7, 8, 2, 5]])).tolist() == [1, 1]
    assert beams.length == 3
