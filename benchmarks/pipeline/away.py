"""Rows of the target table that are about the agent alone, and about what it talks to being away."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.collector_process import free_port
from benchmarks.pipeline import programs
from benchmarks.pipeline.aftermath import Aftermath
from benchmarks.pipeline.programs import result, start_module
from benchmarks.wire import LOADS, bare_server, load_row

Row = dict[str, Any]
AGENT: Final = "benchmarks.pipeline.agent_load"
BEFORE_S: Final = 10.0
AFTER_S: Final = 25.0
KEEP: Final = ("--history", "all", "--retention-bytes", str(1 << 30))
"""Whole frames of everything, as if somebody watched; and nothing is trimmed before it is counted."""


def agent(seconds: float) -> list[Row]:
    """The hand-over on the host's thread, and what all threads of the agent take."""
    rows = []
    with bare_server() as endpoint:
        for load in LOADS:
            found = load_row(load, "exact", endpoint, seconds)
            rows.append(
                {
                    "what": f"agent at {load.name}, {load.tokens_per_s} tokens/s",
                    "hand_over_p50_us": found["hand_over_p50_us"],
                    "hand_over_p99_us": found["hand_over_p99_us"],
                    "after_sleep_p50_us": found["hand_over_after_sleep_p50_us"],
                    "after_sleep_p99_us": found["hand_over_after_sleep_p99_us"],
                    "cpu_share": found["agent_cpu_share"],
                    "dropped": found["dropped"],
                    "target": "<= 5 us p50, <= 20 us p99; <= 5 % of a core at W1",
                }
            )
    return rows


def collector_away(seconds: float) -> list[Row]:
    """SIGKILL of the collector for so long, under W1, with a spool on the disk."""
    with tempfile.TemporaryDirectory() as folder, programs.store(Path(folder)) as url:
        return [_outlived(f"no collector for {seconds:g} s, with a spool", folder, url, seconds, _Collector)]


def store_away(seconds: float) -> list[Row]:
    """SIGKILL of Redis for so long, under W1."""
    with tempfile.TemporaryDirectory() as folder:
        store = _Store(Path(folder))
        try:
            name = f"Redis gone for {seconds:g} s, with a spool"
            return [_outlived(name, folder, store.url, seconds, lambda *_: store)]
        finally:
            store.kill()


def _outlived(
    what: str, folder: str, url: str, seconds: float, victim_of: Callable[[subprocess.Popen[str], Any], Any]
) -> Row:
    address = f"127.0.0.1:{free_port()}"
    command = ("--redis", url, *KEEP)
    collector = _start(address, command)
    victim = victim_of(collector, (address, command))
    aftermath = Aftermath(address, url)
    try:
        running_s = BEFORE_S + seconds + AFTER_S
        agent = start_module(AGENT, address, "--seconds", running_s, "--spool", Path(folder) / "spool")
        time.sleep(BEFORE_S)
        victim.kill()
        time.sleep(seconds)
        victim.start()
        back_s = time.monotonic()
        aftermath.await_frames()
        silent_s = time.monotonic() - back_s
        sent = result(agent, timeout_s=running_s + 120)
        stored = aftermath.stored()
    finally:
        programs.end(victim.process if isinstance(victim, _Collector) else collector)
    return {
        "what": f"{what}, W1",
        "tokens": sent["tokens"],
        "captured": sent["captured"],
        "acknowledged": sent["acknowledged"],
        "dropped": sent["dropped"],
        "pending": sent["pending"],
        "stored": len(set(stored)),
        "duplicates": len(stored) - len(set(stored)),
        "resumed_after_s": round(silent_s, 2),
        "calls": sent["calls"],
        "calls_cpu_over_1_ms": sent["calls_cpu_over_1_ms"],
        "calls_over_1_ms": sent["calls_over_1_ms"],
        "control_over_1_ms": sent["control_over_1_ms"],
        "spooled_mib": sent["spooled_mib"],
        "agent_grew_mib": sent["grew_mib"],
        "target": "nothing lost, 0 duplicates, ledger exact, memory bounded",
    }


class _Collector:
    """A collector that is killed and started again, at the same address."""

    def __init__(self, process: subprocess.Popen[str], started: tuple[str, tuple[str, ...]]) -> None:
        self.process, self._started = process, started

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def start(self) -> None:
        self.process = _start(*self._started)


class _Store:
    """A Redis that is killed and started again, over the same files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.start()

    @property
    def url(self) -> str:
        return programs.url_of(self._folder)

    def start(self) -> None:
        self.process = programs.start_store(self._folder)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def _start(address: str, arguments: tuple[str, ...]) -> subprocess.Popen[str]:
    process = start_module("fulgurite.collector", "--listen", address, *arguments)
    programs.await_ready(address)
    return process
