"""What is said of a replica whose agent is connected to another collector, or to none."""

from __future__ import annotations

import asyncio

import pytest
from tests.collector.stage import asynchronous

from fulgurite.collector.fleet import Fleet, Row, is_selected
from fulgurite.collector.store import ReplicaRow
from fulgurite.collector.stores.memory import MemoryStore
from fulgurite.v1 import viewer_pb2
from fulgurite.wire.replica import ReplicaKey

KEY = ReplicaKey("", "served", "a")


def row(state: str, *, alive: bool) -> Row:
    figures = viewer_pb2.ReplicaStatus(
        key=KEY.text, state=state, tokens_per_s=7.0, kv_tokens=9, running_sequences=2, tokens_total=50
    )
    figures.head_activity.append(1.0)
    return Row.of(ReplicaRow(KEY, b"", figures.SerializeToString(), alive))


@pytest.mark.parametrize(
    ("state", "alive", "told"),
    [
        ("live", True, "live"),
        ("idle", True, "idle"),
        ("live", False, "lost"),
        ("idle", False, "lost"),
        ("ended", True, "ended"),
        ("ended", False, "ended"),
    ],
)
def test_the_state_is_that_of_the_last_beat_unless_nobody_hears_it(
    state: str, alive: bool, told: str
) -> None:
    status = row(state, alive=alive).status()
    assert status.state == told
    assert status.tokens_total == 50


def test_of_a_replica_that_nobody_hears_nothing_is_said_of_now() -> None:
    lost = row("live", alive=False).status()
    assert (lost.tokens_per_s, lost.kv_tokens, lost.running_sequences) == (0.0, 0, 0)
    assert list(lost.head_activity) == []
    live = row("live", alive=True).status()
    assert (live.tokens_per_s, live.kv_tokens, live.running_sequences) == (7.0, 9, 2)


def test_a_row_without_figures_or_with_broken_ones_is_a_lost_replica() -> None:
    for blob in (b"", b"\xff"):
        status = Row.of(ReplicaRow(KEY, b"", blob, True)).status()
        assert (status.key, status.state) == ("/served/a", "lost")


class Counting(MemoryStore):
    """Counts how often it is asked."""

    asked = 0

    async def replicas(self) -> list[ReplicaRow]:
        """See `Store.replicas`."""
        self.asked += 1
        return await super().replicas()


@asynchronous
async def test_however_many_want_to_know_the_store_is_asked_once() -> None:
    store = Counting()
    await store.announce(KEY, b"", b"")
    fleet = Fleet(store)
    found = await asyncio.gather(*(fleet.rows() for _ in range(50)))
    assert store.asked == 1
    assert all(list(rows) == [KEY] for rows in found)
    fleet.expire()
    await fleet.rows()
    assert store.asked == 2


def test_who_listens_is_told_that_something_changed_until_it_ignores_it() -> None:
    fleet, told = Fleet(MemoryStore()), list[str]()

    def tell() -> None:
        told.append("changed")

    fleet.listen(tell)
    fleet.listen(tell)
    fleet.expire()
    assert told == ["changed"]
    fleet.ignore(tell)
    fleet.expire()
    assert told == ["changed"]


def test_no_selector_means_everyone() -> None:
    assert is_selected(KEY, ())
    assert is_selected(KEY, ("other", "serv*"))
    assert not is_selected(KEY, ("other",))
