"""What a graph leaves: the right rows, stamped, and nothing while the gate is shut."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")

from fulgurite.agent.shelf import ROWS, Shelf  # noqa: E402

CPU = torch.device("cpu")


def left(shelf: Shelf, x: Any) -> Any:
    place = shelf.place((0, "in"), x.shape[-1], CPU)
    torch.ops.fulgurite.leave(x, place.buffer, place.clock)
    return place


def test_what_fits_is_left_whole_and_read_from_its_end() -> None:
    shelf, x = Shelf(), torch.randn(2, 3, 5)
    place = left(shelf, x)
    assert torch.equal(place.read(2, 3, 1), x[:, -1:])
    assert torch.equal(place.read(2, 3, 2), x[:, -2:])
    assert bool(shelf.alive([place], 2, 3))
    assert not bool(shelf.alive([place], 3, 1))


def test_of_a_long_pass_the_last_positions_are_left() -> None:
    shelf, x = Shelf(), torch.randn(2, ROWS, 5)
    place = left(shelf, x)
    assert torch.equal(place.read(2, ROWS, 1), x[:, -1:])
    assert place.read(2, ROWS, 2) is None
    assert bool(shelf.alive([place], 2, ROWS))


def test_more_rows_than_there_are_leave_nothing() -> None:
    shelf = Shelf()
    place = left(shelf, torch.randn(ROWS + 1, 1, 5))
    assert place.read(ROWS + 1, 1, 1) is None
    assert not bool(shelf.alive([place], ROWS + 1, 1))
    assert place.written == 0


def test_what_was_left_in_an_earlier_pass_is_not_of_this_one() -> None:
    shelf = Shelf()
    place = left(shelf, torch.randn(1, 1, 5))
    shelf.is_used = True
    assert bool(shelf.alive([place], 1, 1))
    shelf.tick()
    assert not bool(shelf.alive([place], 1, 1))
    left(shelf, torch.randn(1, 1, 5))
    assert bool(shelf.alive([place], 1, 1))
    assert place.written == 2


def test_a_shut_gate_keeps_what_is_there() -> None:
    shelf, first = Shelf(), torch.randn(1, 1, 5)
    place = left(shelf, first)
    shelf.gate(False)
    left(shelf, torch.randn(1, 1, 5))
    assert torch.equal(place.read(1, 1, 1), first)
    shelf.gate(True)
    second = torch.randn(1, 1, 5)
    left(shelf, second)
    assert torch.equal(place.read(1, 1, 1), second)


def test_half_precision_is_kept_exactly() -> None:
    x = torch.randn(1, 1, 5).bfloat16()
    assert torch.equal(left(Shelf(), x).read(1, 1, 1), x.float())
