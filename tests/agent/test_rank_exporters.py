"""What the first rank of a model is asked for, the others hear: over real sockets, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from tests.agent.asked import Asked
from torch._C._distributed_c10d import HashStore

from fulgurite.agent import InMemoryExporter
from fulgurite.agent.rank_exporters import LeadExporter, MemberExporter
from fulgurite.agent.rank_group import RankGroup
from fulgurite.agent.rank_rows import RowShare
from fulgurite.agent.shield import Shield
from fulgurite.wire.topology import Topology

TOPOLOGY = Topology(
    model_name="m", architecture="a", layers=1, heads=2, kv_heads=2, head_dim=4, hidden_size=8, ffn_size=8,
    vocab_size=16,
)  # fmt: skip


@contextmanager
def ranks(inner: InMemoryExporter) -> Iterator[tuple[LeadExporter, MemberExporter]]:
    """Two ranks that have met, or are about to."""
    store = HashStore()
    lead = LeadExporter(inner, RankGroup((0, 1), 0, "fulgurite/test", store), Shield())
    member = MemberExporter(RankGroup((0, 1), 1, "fulgurite/test", store), Shield())
    for exporter in (lead, member):
        exporter.attach(TOPOLOGY, level="deep", ceiling="deep", tokens="off", resource={})
    try:
        yield lead, member
    finally:
        member.close(1.0)
        lead.close(1.0)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.005)


def test_all_ranks_capture_the_share_of_steps_that_the_first_one_is_asked_for() -> None:
    inner = Asked()
    with ranks(inner) as (lead, member):
        assert lead.wanted_deep_ratio() is None
        assert member.wanted_deep_ratio() is None
        inner.level_asked, inner.ratio_asked = "deep", 0.25
        until(lambda: member.wanted_level() == "deep", "the level")
        until(lambda: member.wanted_deep_ratio() == 0.25, "the share")
        assert lead.wanted_deep_ratio() == 0.25
        inner.ratio_asked = None
        until(lambda: member.wanted_deep_ratio() is None, "that nothing is asked")
        assert member.wanted_level() == "deep"


def test_an_exporter_without_a_remote_side_asks_for_no_share() -> None:
    with ranks(InMemoryExporter()) as (lead, member):
        lead.report(overhead_ratio=np.nan, level="heads", running_requests=0, kv_bytes=0)
        until(lambda: member.wanted_level() == "heads", "the level of the first rank")
        assert lead.wanted_deep_ratio() is None
        assert member.wanted_deep_ratio() is None


def rows_of(first: int, last: int, ids: tuple[int, ...]) -> RowShare:
    """What the rank with the rows `first` to `last` has of a token and its candidates; row 3 is (3, 3)."""
    held = np.array([[first <= token < last for token in ids]])
    rows = (np.array([ids], np.float32) * held)[..., None].repeat(2, -1)
    total = np.full(2, float(sum(range(first, last))))
    return RowShare(rows, rows[..., 0], held, total, total[:1], last - first)


def test_ranks_hand_each_other_the_rows_that_they_lack() -> None:
    inner = Asked()
    inner.level_asked = "deep"
    with ranks(inner) as (lead, member), ThreadPoolExecutor(1) as other:
        until(lambda: member.wanted_level() == "deep", "that they meet")
        for step, ids in ((0, (3, 12, 5)), (1, (12, 3, 9))):
            asked = other.submit(member.exchange, step, rows_of(8, 16, ids), 16)
            whole = lead.exchange(step, rows_of(0, 8, ids), 16)
            told = asked.result(30)
            assert whole is not None
            assert told is not None
            np.testing.assert_array_equal(whole.rows[0, :, 0], ids)
            np.testing.assert_array_equal(told.rows[0, :, 1], ids[:1])  # candidates are the first rank's
            assert told.total.tolist() == whole.total.tolist() == [120.0, 120.0]
            assert told.count == 16


def test_rows_leave_the_machine_only_where_tokens_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    group = RankGroup((0, 1), 0, "fulgurite/test", HashStore())
    assert LeadExporter(InMemoryExporter(), group, Shield()).exchanges
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    assert not LeadExporter(InMemoryExporter(), group, Shield()).exchanges
    assert not MemberExporter(group, Shield()).exchanges
    assert MemberExporter(group, Shield(), tells_tokens=True).exchanges
