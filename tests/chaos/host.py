"""The process with an agent in it: hands over numbered frames at a pace until it is told to stop.

It is run by `tests.chaos.rig`, with its orders as JSON in the first argument. On ``stop`` it waits until all
is settled, on ``leave`` it does not; either way its last line is its account.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from array import array
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from tests.chaos import numbered

from fulgurite.agent.config import DEFAULT_SPOOL_BYTES
from fulgurite.agent.exporter import GrpcExporter
from fulgurite.agent.link import LinkLimits
from fulgurite.wire.access import Access

LIMITS = {"welcome_s": 1.5, "silence_s": 1.5, "last_retry_s": 0.5}
"""As impatient as the run is short."""
LAST_CALLS: Final = 1 << 16
LONGEST_CONTROL_NS: Final = 200_000


class Times:
    """Times of calls: how many, the longest, those over 1 ms, and the last ones. It does not grow."""

    def __init__(self) -> None:
        self.calls = self.longest_ns = self.over_1_ms = 0
        self.slow: list[str] = []
        self._last_ns = array("Q", bytes(8 * LAST_CALLS))

    def add(self, ns: int) -> None:
        """One more."""
        self._last_ns[self.calls % LAST_CALLS] = ns
        self.longest_ns = max(self.longest_ns, ns)
        if ns > 1_000_000:
            self.over_1_ms += 1
            if len(self.slow) < 10:
                self.slow.append(f"{self.calls}: {ns / 1e6:.2f} ms")
        self.calls += 1

    @property
    def last_ms(self) -> Any:
        """The last ones. Shape (calls,), float64, ms."""
        return np.array(self._last_ns[: min(self.calls, LAST_CALLS)], np.float64) / 1e6


class Calls:
    """CPU time of our thread in each call, and in a control that looks at the clock for as long.

    What the machine does to a thread (interrupts, time that a hypervisor takes and the thread is charged
    with) hits it the more often the longer it runs: a control that is shorter than our call is spared.
    """

    def __init__(self) -> None:
        self.ours, self.control = Times(), Times()
        self._kept: deque[object] = deque(maxlen=4)

    def export(self, exporter: GrpcExporter, block: Any) -> None:
        """Hand over a block, between two looks at the thread's clock; then the control."""
        began_ns = time.thread_time_ns()
        exporter.export(block)
        taken_ns = time.thread_time_ns() - began_ns
        self.ours.add(taken_ns)
        began_ns = time.thread_time_ns()
        self._kept.append(block)
        until_ns = began_ns + min(taken_ns, LONGEST_CONTROL_NS)
        while (now_ns := time.thread_time_ns()) < until_ns:
            pass
        self.control.add(now_ns - began_ns)


class Replica(threading.Thread):
    """One agent and its share of the frames."""

    def __init__(self, orders: dict[str, Any], index: int, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.calls = Calls()
        self.made = 0
        self._orders, self._over = orders, over
        access = Access(ca=Path(orders["ca"])) if orders.get("ca") else None
        self.exporter = GrpcExporter(
            orders["endpoint"],
            encoding=orders["encoding"],
            budget_bytes=orders["budget_bytes"],
            access=access,
            limits=LinkLimits(
                **{
                    "window_bytes": min(8 << 20, orders["budget_bytes"] // 2),
                    **(LIMITS if orders["is_impatient"] else {}),
                }
            ),
            spool=Path(orders["spool"]) / str(index) if orders["spool"] else None,
            spool_bytes=orders["spool_bytes"] or DEFAULT_SPOOL_BYTES,
        )
        resource = {"service.name": "chaos", "service.instance.id": f"{orders['run']}-{index}"}
        self.exporter.attach(
            numbered.TOPOLOGY, level="heads", ceiling="heads", tokens="off", resource=resource
        )

    def run(self) -> None:
        """Make frames until it is over."""
        rows = self._orders["rows"]
        pause_s = rows / self._orders["frames_per_s"]
        due_s = time.monotonic()
        while not self._over.is_set():
            self.calls.export(self.exporter, numbered.block(self.made + 1, rows))
            self.made += rows
            due_s = max(due_s + pause_s, time.monotonic() - 1.0)  # behind by more than that it stays behind
            time.sleep(max(0.0, due_s - time.monotonic()))

    def account(self) -> dict[str, Any]:
        """What became of its frames."""
        return {"made": self.made, **asdict(self.exporter.stats())}


def jump(seconds: float) -> None:
    """Move the wall clock of this process, as all who look at it through `time` see it."""
    offset_ns = int(seconds * 1e9)
    time.time_ns = lambda: _time_ns() + offset_ns
    time.time = lambda: (_time_ns() + offset_ns) / 1e9


_time_ns = time.time_ns


def cost(times: list[Times]) -> dict[str, Any]:
    """Of calls, in ms."""
    last_ms = np.concatenate([one.last_ms for one in times])
    return {
        "calls": sum(one.calls for one in times),
        "p50_ms": float(np.percentile(last_ms, 50)) if len(last_ms) else 0.0,
        "p999_ms": float(np.percentile(last_ms, 99.9)) if len(last_ms) else 0.0,
        "max_ms": max(one.longest_ns for one in times) / 1e6,
        "over_1_ms": sum(one.over_1_ms for one in times),
        "at": [said for one in times for said in one.slow],
    }


def main() -> None:
    """Obey until the orders end."""
    orders = json.loads(sys.argv[1])
    over = threading.Event()
    replicas = [Replica(orders, index, over) for index in range(orders["replicas"])]
    print("ready", flush=True)
    if orders["waits"]:
        sys.stdin.readline()
    for replica in replicas:
        replica.start()
    for line in sys.stdin:
        word, _, amount = line.strip().partition(" ")
        if word in ("stop", "leave"):
            break
        if word == "jump":
            jump(float(amount))
            continue
        print(json.dumps([replica.account() for replica in replicas]), flush=True)
    over.set()
    for replica in replicas:
        replica.join()
    began_s = time.monotonic()
    flushed = [replica.exporter.flush(orders["flush_s"]) for replica in replicas] if "stop" in line else []
    flushed_s = time.monotonic() - began_s
    began_s = time.monotonic()
    for replica in replicas:
        replica.exporter.close(2.0)
    print(
        json.dumps(
            {
                "replicas": [replica.account() for replica in replicas],
                "flushed": all(flushed),
                "flushed_s": flushed_s,
                "closing_s": time.monotonic() - began_s,
                "ours": cost([replica.calls.ours for replica in replicas]),
                "control": cost([replica.calls.control for replica in replicas]),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
