"""What the first rank of a model is asked for, the others hear: over real sockets, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from torch._C._distributed_c10d import HashStore

from fulgurite.agent import InMemoryExporter
from fulgurite.agent.rank_exporters import LeadExporter, MemberExporter
from fulgurite.agent.rank_group import RankGroup
from fulgurite.agent.shield import Shield
from fulgurite.wire.topology import Topology

TOPOLOGY = Topology(
    model_name="m", architecture="a", layers=1, heads=2, kv_heads=2, head_dim=4, hidden_size=8, ffn_size=8,
    vocab_size=16,
)  # fmt: skip


class Asked(InMemoryExporter):
    """One whose remote side asks for something."""

    level_asked: str | None = None
    ratio_asked: float | None = None

    def wanted_level(self) -> str | None:
        """See `Exporter.wanted_level`."""
        return self.level_asked

    def wanted_deep_ratio(self) -> float | None:
        """As of an exporter that has a remote side."""
        return self.ratio_asked


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
