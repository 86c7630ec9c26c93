"""How long the agent's own sections take on the host's thread: measured where they run, so that no noise of
the model's own work hides it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

WAYS_IN = ("opens", "closes", "committed")


class Spent:
    """Nanoseconds of all sections together."""

    def __init__(self) -> None:
        self.ns = 0

    def timed(self, call: Callable[..., Any], clock: Callable[[], int]) -> Callable[..., Any]:
        """`call`, which adds its time up. Sections do not nest."""

        def timing(*args: Any, **kwargs: Any) -> Any:
            started = clock()
            try:
                return call(*args, **kwargs)
            finally:
                self.ns += clock() - started

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
    places: list[tuple[Any, str, Callable[[], int]]] = [
        (Engine, name, time.thread_time_ns) for name in WAYS_IN
    ]
    places += [(_Look, "called", time.thread_time_ns), (LullProbe, "__call__", time.thread_time_ns)]
    places += [(probe, "__call__", time.perf_counter_ns) for probe in (InputProbe, OutputProbe)]
    with ExitStack() as stack:
        for owner, name, clock in places:
            plain = getattr(owner, name)
            setattr(owner, name, spent.timed(plain, clock))
            stack.callback(setattr, owner, name, plain)
        yield spent
