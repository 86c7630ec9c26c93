"""Rows of the target table that are about the agent alone, and about what it talks to being away."""

from __future__ import annotations

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
    return [_outlived(seconds, is_store=False)]


def store_away(seconds: float) -> list[Row]:
    """SIGKILL of Redis for so long, under W1."""
    return [_outlived(seconds, is_store=True)]


def _outlived(seconds: float, *, is_store: bool) -> Row:
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as name:
        folder, url = Path(name), programs.url_of(Path(name))
        store = _Killable(lambda: programs.start_store(folder))
        collector = _Killable(lambda: programs.start_collector(address, "--redis", url, *KEEP))
        victim, aftermath = store if is_store else collector, Aftermath(address, url)
        try:
            running_s = BEFORE_S + seconds + AFTER_S
            agent = start_module(AGENT, address, "--seconds", running_s, "--spool", folder / "spool")
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
            programs.end(collector.process)
            programs.end(store.process)
    told = ("calls", "calls_cpu_over_1_ms", "calls_over_1_ms", "control_over_1_ms", "spooled_mib", "grew_mib")
    return {
        "what": f"{'Redis gone' if is_store else 'no collector'} for {seconds:g} s, with a spool, W1",
        **{name: sent[name] for name in ("tokens", "captured", "acknowledged", "dropped", "pending")},
        "stored": len(set(stored)),
        "duplicates": len(stored) - len(set(stored)),
        "resumed_after_s": round(silent_s, 2),
        **{name: sent[name] for name in told},
        "target": "nothing lost, 0 duplicates, ledger exact, memory bounded",
    }


class _Killable:
    """A process that is killed, and started again as it was."""

    def __init__(self, start: Callable[[], subprocess.Popen[str]]) -> None:
        self._start = start
        self.process = start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        self.process = self._start()
