"""CPU time and memory of the processes that are measured."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

import psutil

SAMPLE_S: Final = 0.1
STORES: Final = ("valkey-server", "redis-server")


@dataclass(frozen=True, slots=True)
class Cost:
    """What processes used between two moments.

    Attributes
    ----------
    cpu_s, store_cpu_s : float
        CPU time of the program and its workers; of the store that it started.
    rss_mib : float
        The most memory that the program and its workers had together; pages they share count once each.
    """

    cpu_s: float
    store_cpu_s: float
    rss_mib: float


class Meter:
    """Watches a program and what it started, for the length of a `with`; then `cost` is known."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Meter:
        self._before = self._cpu()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        own, store = self._cpu()
        mib = self._peak / 2**20
        self.cost = Cost(own - self._before[0], store - self._before[1], round(mib, 1))

    def _processes(self) -> list[tuple[psutil.Process, bool]]:
        """Every process, and whether it is a store."""
        found = [self._root, *self._root.children(recursive=True)]
        return [(process, process.name() in STORES) for process in found]

    def _cpu(self) -> tuple[float, float]:
        own = store = 0.0
        for process, is_store in self._processes():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            used = times.user + times.system
            own, store = (own, store + used) if is_store else (own + used, store)
        return own, store

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            try:
                rss = sum(
                    process.memory_info().rss for process, is_store in self._processes() if not is_store
                )
            except psutil.NoSuchProcess:
                continue
            self._peak = max(self._peak, rss)


def micros(seconds: float, tokens: int) -> float | None:
    """CPU time of one token in µs; None where there was none."""
    return round(seconds / tokens * 1e6, 2) if tokens else None
