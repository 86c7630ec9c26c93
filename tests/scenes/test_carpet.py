"""The key-value cache as a carpet: shares of sequences, writes, reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.viewer.carpet import SILENT_S, Carpet

CELLS = 8


def _write(carpet: Carpet, name: str, tokens: list[int], at_s: float = 0.0, first: int = 0) -> None:
    carpet.write((name, 0), np.array(tokens, np.int32), at_s, first=first)


def test_nothing_written_is_not_measured_and_not_empty() -> None:
    assert (Carpet(2, CELLS).texture(0.0)[..., 0] == -1.0).all()


def test_the_fill_is_the_share_of_sequences_that_have_cached_so_far() -> None:
    carpet = Carpet(1, CELLS)
    _write(carpet, "a", [2])
    _write(carpet, "b", [4])
    assert carpet.fill()[0].tolist() == pytest.approx([1.0, 1.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0])


@given(st.lists(st.integers(1, 200), min_size=1, max_size=9))
def test_the_fill_counts_every_sequence_in_every_cell(lengths: list[int]) -> None:
    carpet = Carpet(1, CELLS)
    for index, length in enumerate(lengths):
        _write(carpet, f"r{index}", [length])
    starts = np.arange(CELLS) * carpet.tokens_per_cell
    wanted = [(np.array(lengths) > start).mean() for start in starts]
    assert carpet.fill()[0].tolist() == pytest.approx(wanted)
    assert max(lengths) <= CELLS * carpet.tokens_per_cell


def test_layers_with_shorter_caches_are_shorter() -> None:
    carpet = Carpet(2, CELLS)
    _write(carpet, "a", [6, 3])
    assert carpet.fill().sum(axis=1).tolist() == [6.0, 3.0]


def test_only_new_positions_flash() -> None:
    carpet = Carpet(1, CELLS)
    _write(carpet, "a", [4], 1.0)
    _write(carpet, "a", [5], 2.0, first=4)
    assert carpet.written_s[0].tolist() == [1.0] * 4 + [2.0] + [-np.inf] * 3


def test_cells_double_when_a_sequence_outgrows_them_and_keep_their_stamps() -> None:
    carpet = Carpet(1, CELLS)
    _write(carpet, "a", [8], 1.0)
    carpet.read(0, 7, 1.5)
    _write(carpet, "a", [9], 2.0, first=8)
    assert carpet.tokens_per_cell == 2
    assert carpet.written_s[0].tolist() == [1.0] * 4 + [2.0] + [-np.inf] * 3
    assert carpet.read_s[0, 3] == 1.5


def test_positions_fall_into_cells_and_what_was_not_captured_into_none() -> None:
    carpet = Carpet(1, CELLS)
    _write(carpet, "a", [16])
    assert carpet.cell_of(np.array([-1, 0, 1, 2, 15, 99])).tolist() == [-1, 0, 0, 1, 7, 7]


def test_a_request_that_ended_or_fell_silent_leaves_no_fill() -> None:
    carpet = Carpet(1, CELLS)
    _write(carpet, "a", [4], 0.0)
    _write(carpet, "b", [8], 1.0)
    carpet.end("b")
    assert carpet.fill()[0].sum() == 4.0
    carpet.expire(SILENT_S + 0.1)
    assert carpet.fill()[0].sum() == 0.0


def test_cleared_it_is_as_new() -> None:
    carpet = Carpet(1, CELLS)
    _write(carpet, "a", [40])
    carpet.clear()
    assert carpet.tokens_per_cell == 1
    assert np.array_equal(carpet.texture(0.0), Carpet(1, CELLS).texture(0.0))
