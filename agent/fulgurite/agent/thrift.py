"""Keeps one model's observation at what was asked for and within its budget: the same under every engine.

Runs on the host's thread, and waits for nothing.
"""

from __future__ import annotations

from typing import Final

from fulgurite.agent.config import Settings
from fulgurite.agent.exporter import Exporter
from fulgurite.agent.sampling import Budget, DeepRate, Demand, level_of_step
from fulgurite.agent.shield import Shield
from fulgurite.wire.channels import Level

REMEDY: Final = "a larger FULGURITE_BUDGET"
"""What brings a lowered level back in a server that nobody's code runs in."""


class Thrift:
    """The level of each step, and what the steps took.

    Parameters
    ----------
    deep_ratio : share of steps at ``deep`` that was asked for locally.
    exporter : what its remote side asks for is heard.
    remedy : what brings a lowered level back, for the log.

    Attributes
    ----------
    overhead_ratio : our share of step time in the last window; NaN before the first.
    """

    def __init__(
        self,
        demand: Demand,
        budget: Budget,
        deep_ratio: float,
        *,
        exporter: Exporter,
        shield: Shield,
        remedy: str = REMEDY,
    ) -> None:
        self.demand = demand
        self.budget = budget
        self.rate = DeepRate(deep_ratio)
        self.overhead_ratio = float("nan")
        self._exporter, self._shield, self._remedy = exporter, shield, remedy
        self._wanted_deep_ratio = getattr(exporter, "wanted_deep_ratio", None)  # an exporter may have it
        self._asked = getattr(exporter, "asked", None)  # and this
        self._heard: object = None

    @classmethod
    def of(cls, settings: Settings, *, exporter: Exporter, shield: Shield, remedy: str = REMEDY) -> Thrift:
        """As the settings say."""
        return cls(
            Demand(settings.level),
            Budget(settings.budget),
            settings.deep_ratio,
            exporter=exporter,
            shield=shield,
            remedy=remedy,
        )

    def hear(self) -> Level:
        """The level in force, after a look at what the remote side asks for."""
        asked = None if self._asked is None else self._asked()
        if asked is not None and asked is self._heard:
            return self.demand.level
        self._heard = asked  # looked at before what it stands for: a change in between is heard next time
        self.demand.hear(self._exporter.wanted_level())
        if self._wanted_deep_ratio is not None:
            self.rate.hear(self._wanted_deep_ratio())
        return self.demand.level

    def level_of(self, step: int) -> Level:
        """The level at which this step is captured."""
        return level_of_step(step, self.demand.level, self.rate.value)

    def judge(self, now_ns: int) -> bool | None:
        """At the end of a window, whether the level was lowered for it; None until then."""
        verdict = self.budget.verdict(now_ns)
        if verdict is None:
            return None
        self.overhead_ratio, over = verdict
        is_too_much = over or not self.rate.fits(self.budget, self.demand.level)
        lowered = self.demand.degrade() if is_too_much else None
        if lowered is not None:
            self._shield.say_once(
                f"budget:{lowered}",
                "capture took %.1f %% of step time, over the budget of %.1f %%: level lowered to %s "
                "(%s brings it back)",
                100 * self.overhead_ratio,
                100 * (self.budget.limit or 0.0),
                lowered,
                self._remedy,
            )
        if self.rate.is_lowered:
            self._shield.say_once("budget:rate", "%s", self.rate.said(self.budget))
        return lowered is not None
