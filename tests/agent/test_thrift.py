"""One account of level and budget, whatever engine runs: what is heard, what is lowered, what is said."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from tests.agent.asked import Asked

from fulgurite.agent.exporter import InMemoryExporter
from fulgurite.agent.sampling import Budget, Demand
from fulgurite.agent.shield import Shield
from fulgurite.agent.thrift import Thrift

WINDOW_NS = 1_000_000_001


def thrift(ceiling: Any, limit: float | None, exporter: InMemoryExporter, ratio: float = 1 / 16) -> Thrift:
    return Thrift(Demand(ceiling), Budget(limit), ratio, exporter=exporter, shield=Shield(), remedy="prayer")


def windows(one: Thrift, count: int, own_ns: int, step_ns: int) -> list[bool | None]:
    """What was judged at the end of each."""
    told = []
    for number in range(count):
        for _ in range(20):
            one.budget.spend(own_ns, step_ns, is_deep=one.demand.level == "deep")
        told.append(one.judge(1 + number * WINDOW_NS))
    return told


def test_what_the_remote_side_asks_for_is_heard() -> None:
    exporter = Asked()
    one = thrift("deep", None, exporter)
    assert (one.hear(), one.rate.value) == ("deep", 1 / 16)
    exporter.level_asked, exporter.ratio_asked = "heads", 0.5
    assert (one.hear(), one.rate.value) == ("heads", 0.5)
    exporter.level_asked = exporter.ratio_asked = None
    assert (one.hear(), one.rate.value) == ("deep", 1 / 16)


class Counted(Asked):
    """One that says when to ask again, and counts how often it was."""

    mark: object = None
    times = 0

    def asked(self) -> object:
        """As of an exporter that has it."""
        return self.mark

    def wanted_level(self) -> str | None:
        """See `Exporter.wanted_level`."""
        self.times += 1
        return super().wanted_level()


def test_an_exporter_that_says_when_is_asked_then_and_not_in_every_step() -> None:
    exporter = Counted()
    one = thrift("deep", None, exporter)
    assert [one.hear(), one.hear(), exporter.times] == ["deep", "deep", 2]  # it knows nothing yet
    exporter.mark, exporter.level_asked = object(), "heads"
    assert [one.hear() for _ in range(5)] == ["heads"] * 5
    assert exporter.times == 3
    one.demand.ask("pulse")
    assert [one.hear() for _ in range(5)] == ["pulse"] * 5
    exporter.mark, exporter.ratio_asked = object(), 0.5
    assert (one.hear(), one.rate.value, exporter.times) == ("pulse", 0.5, 4)
    exporter.mark = exporter.level_asked = exporter.ratio_asked = None  # as after a fork
    one.hear()
    assert (one.rate.value, exporter.times) == (1 / 16, 5)


def test_an_exporter_without_a_remote_side_leaves_what_was_asked_for_here() -> None:
    one = thrift("deep", None, InMemoryExporter(), ratio=0.25)
    assert (one.hear(), one.rate.value) == ("deep", 0.25)
    assert [one.level_of(step) for step in range(8)].count("deep") == 2


def test_a_level_over_the_budget_is_lowered_once_and_said(caplog: pytest.LogCaptureFixture) -> None:
    one = thrift("heads", 0.02, InMemoryExporter())
    with caplog.at_level(logging.WARNING, "fulgurite.agent"):
        told = windows(one, 5, own_ns=100, step_ns=1000)
    assert told[0] is None  # the first window has only begun
    assert told.count(True) == 1
    assert one.demand.level == "pulse"
    assert one.overhead_ratio == pytest.approx(0.1)
    (line,) = [record.getMessage() for record in caplog.records]
    told_of = ("10.0 %", "2.0 %", "lowered to pulse (prayer brings it back)")
    assert all(part in line for part in told_of)


def test_within_the_budget_nothing_is_lowered_or_said(caplog: pytest.LogCaptureFixture) -> None:
    one = thrift("heads", 0.02, InMemoryExporter())
    with caplog.at_level(logging.WARNING, "fulgurite.agent"):
        assert windows(one, 6, own_ns=10, step_ns=1000) == [None, *[False] * 5]
    assert (one.demand.level, caplog.records) == ("heads", [])
