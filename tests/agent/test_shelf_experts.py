"""What a graph leaves of routing: the rows that matter, of this pass, for the experts that were chosen."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")

from fulgurite.agent.shelf import ROWS, Place, Shelf  # noqa: E402
from fulgurite.agent.shelf_experts import leave_routing, read_routing, width_of  # noqa: E402

CPU = torch.device("cpu")


def routed(batch: int, width: int, chosen: int) -> tuple[Any, Any]:
    ids = torch.randint(0, 64, (batch * width, chosen))
    return ids, torch.rand(batch * width, chosen)


def place_of(shelf: Shelf, chosen: int) -> Place:
    place = shelf.place((0, "experts"), width_of(chosen), CPU)
    assert place is not None
    return place


def beside(shelf: Shelf, batch: int, width: int) -> Place:
    place = shelf.place((0, "in"), 5, CPU)
    assert place is not None
    torch.ops.fulgurite.leave(torch.randn(batch, width, 5), place.buffer, place.clock)
    return place


def ends(tensor: Any, batch: int) -> Any:
    return tensor.reshape(batch, -1, tensor.shape[-1])[:, -1:]


def assert_read(place: Place, wanted: tuple[Any, Any], batch: int, width: int) -> None:
    found = read_routing(place, wanted[0].shape[-1], batch, width, 1)
    assert found is not None
    for got, ought in zip(found, wanted, strict=True):
        assert torch.equal(got, ends(ought, batch).float())


@pytest.mark.parametrize("chosen", [1, 2, 8])
def test_what_fits_is_left_whole(chosen: int) -> None:
    shelf = Shelf()
    place, wanted = place_of(shelf, chosen), routed(2, 3, chosen)
    leave_routing(wanted, place, chosen, None)
    assert bool(shelf.alive([place], 2, 3))
    assert_read(place, wanted, 2, 3)
    every = read_routing(place, chosen, 2, 3, 3)
    assert every is not None
    assert torch.equal(every[0].reshape(6, -1), wanted[0].float())


def test_of_a_long_pass_the_last_positions_are_left_where_a_probe_counted_its_rows() -> None:
    shelf = Shelf()
    place, wanted = place_of(shelf, 2), routed(3, ROWS, 2)
    leave_routing(wanted, place, 2, beside(shelf, 3, ROWS))
    assert bool(shelf.alive([place], 3, ROWS))
    assert_read(place, wanted, 3, ROWS)


def test_of_a_long_pass_nothing_is_left_where_nobody_counted_its_rows() -> None:
    shelf = Shelf()
    shelf.is_used = True
    place, other = place_of(shelf, 2), beside(shelf, 3, ROWS)
    leave_routing(routed(3, ROWS, 2), place, 2, None)
    assert place.written == 0
    shelf.tick()  # what was counted is of another pass
    leave_routing(routed(3, ROWS, 2), place, 2, other)
    assert place.written == 0


def test_rows_that_are_no_multiple_of_what_was_counted_leave_nothing() -> None:
    shelf = Shelf()
    place = place_of(shelf, 2)
    leave_routing(routed(1, 3 * ROWS + 1, 2), place, 2, beside(shelf, 3, ROWS))
    assert place.written == 0


def test_another_number_of_experts_than_was_told_leaves_nothing() -> None:
    shelf = Shelf()
    place = place_of(shelf, 2)
    leave_routing(routed(2, 1, 1), place, 2, None)
    leave_routing(routed(2, 1, 3), place, 2, None)
    leave_routing(None, place, 2, None)
    assert place.written == 0


def test_a_shut_gate_keeps_what_is_there() -> None:
    shelf = Shelf()
    place, first = place_of(shelf, 2), routed(2, 1, 2)
    leave_routing(first, place, 2, None)
    shelf.gate(False)
    leave_routing(routed(2, 1, 2), place, 2, None)
    assert_read(place, first, 2, 1)
