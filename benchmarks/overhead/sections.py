"""How long the agent's own sections take on the host's thread: measured where they run, so that no noise of
the model's own work hides it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

WAYS_IN = ("opens", "closes", "committed")


Clock = Callable[[], int]
CLOCKS: tuple[Clock, ...] = (time.thread_time_ns, time.perf_counter_ns)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was spent up to a moment: nanoseconds, and how many sections each clock timed."""

    ns: int
    timed: tuple[int, ...]


class Spent:
    """What is spent in all sections together.

    To look at a clock takes time of its own, some microseconds where nothing of it is in a cache, as after a
    pass of a model. Each reading looks at how much, by two looks with nothing between them; `between` takes
    the median of that off for each section.
    """

    def __init__(self, clocks: Sequence[Clock] = CLOCKS) -> None:
        self._ns = 0
        self._timed = dict.fromkeys(clocks, 0)
        self._nothing: dict[Clock, list[int]] = {clock: [] for clock in clocks}

    def read(self) -> Reading:
        """What was spent by now."""
        for clock, found in self._nothing.items():
            started = clock()
            found.append(clock() - started)
        return Reading(self._ns, tuple(self._timed.values()))

    def between(self, before: Reading, after: Reading) -> float:
        """Nanoseconds from one reading to a later one."""
        clocks_ns = sum(
            (late - early) * median(nothing)
            for early, late, nothing in zip(before.timed, after.timed, self._nothing.values(), strict=True)
        )
        return after.ns - before.ns - clocks_ns

    def timed(self, call: Callable[..., Any], clock: Clock) -> Callable[..., Any]:
        """`call`, which adds its time up. Sections do not nest."""

        def timing(*args: Any, **kwargs: Any) -> Any:
            started = clock()
            try:
                return call(*args, **kwargs)
            finally:
                self._ns += clock() - started
                self._timed[clock] += 1

        return timing


@contextmanager
def sections() -> Iterator[Spent]:
    """While it is entered, what is spent in the agent's ways in (CPU time of the thread) and in the bodies of
    its probes (wall time: they are shorter than the other clock can tell)."""
    from fulgurite.agent.engines.transformers import Engine
    from fulgurite.agent.looks import _Look
    from fulgurite.agent.lull_probe import LullProbe
    from fulgurite.agent.probes import InputProbe, OutputProbe

    spent = Spent()
    places: list[tuple[Any, str, Clock]] = [(Engine, name, time.thread_time_ns) for name in WAYS_IN]
    places += [(_Look, "called", time.thread_time_ns), (LullProbe, "__call__", time.thread_time_ns)]
    places += [(probe, "__call__", time.perf_counter_ns) for probe in (InputProbe, OutputProbe)]
    with ExitStack() as stack:
        for owner, name, clock in places:
            plain = getattr(owner, name)
            setattr(owner, name, spent.timed(plain, clock))
            stack.callback(setattr, owner, name, plain)
        yield spent
