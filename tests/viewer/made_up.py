"""A made-up model on a real collector, for tests of the pages: every step other values, known to the test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fulgurite.agent.exporter import GrpcExporter
from fulgurite.wire.frame import FrameBlock, RequestEvent, RequestRef
from fulgurite.wire.topology import Topology

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
STEP_S = 0.06
TOPOLOGY = Topology(
    model_name="made-up",
    architecture="llama",
    layers=4,
    heads=6,
    kv_heads=3,
    head_dim=8,
    hidden_size=48,
    ffn_size=96,
    vocab_size=100,
    parameters=100_000,
)


def free_address() -> str:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{bound.getsockname()[1]}"


def until(condition: Callable[[], object], what: str, within_s: float = 40.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {what}"
        time.sleep(0.1)


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(15.0)
        finally:
            started.kill()


def wave(step: int, n: int) -> np.ndarray[Any, Any]:
    """What the values of a step are made of, 0 to 1, shape (n, 4, 6)."""
    return 0.5 + 0.5 * np.sin(step + np.arange(n * 24, dtype=np.float32).reshape(n, 4, 6) * 2.3)


class Replica:
    """A made-up model: every step emits a token of each of its requests, with other values each time."""

    def __init__(
        self,
        endpoint: str,
        name: str,
        requests: int,
        pace: threading.Event,
        *,
        step_s: float = STEP_S,
        trace_id: str = "",
    ) -> None:
        self._requests = tuple(RequestRef(f"{name}-{index}", trace_id) for index in range(requests))
        self._step_s = step_s
        self._closing = threading.Event()
        self._flowing = pace
        self._exporter = GrpcExporter(endpoint)
        self._exporter.attach(
            TOPOLOGY,
            level="deep",
            ceiling="deep",
            tokens="text",
            resource={"service.name": "made-up", "service.instance.id": name},
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for request in self._requests:
            started = RequestEvent(request_id=request.request_id, kind="started", time_ns=time.time_ns())
            self._exporter.event(started)
        step = 0
        while not self._closing.wait(self._step_s):
            if self._flowing.is_set():
                self._exporter.export(self._block(step))
                step += 1

    def _block(self, step: int) -> FrameBlock:
        n, now_ns = len(self._requests), time.time_ns()
        waves = wave(step, n)
        columns: dict[str, Any] = {
            "request_index": np.arange(n, dtype=np.uint16),
            "sequence": np.zeros(n, np.uint16),
            "position": np.full(n, 5 + step % 200, np.int32),
            "token_id": np.full(n, step % 100, np.int32),
            "phase": np.ones(n, np.uint8),
            "level": np.full(n, 3, np.uint8),
            "step": np.full(n, step, np.int64),
            "parent_row": np.full(n, -1, np.int16),
            "started_ns": np.full(n, now_ns - 9_000_000, np.int64),
            "ended_ns": np.full(n, now_ns, np.int64),
            "batch_size": np.full(n, n, np.uint16),
            "logprob": np.full(n, -0.1 - (step % 7) / 3, np.float32),
            "entropy": np.full(n, 1.0, np.float32),
            "head_write": 0.05 + 0.4 * waves**3,
            "ffn_write": 0.1 + 0.5 * waves.mean(axis=-1),
            "kv_tokens": np.full((n, 4), 5 + step % 200, np.int32),
            "kv_bytes": np.full(n, 4096, np.int64),
            "attention_entropy": np.full((n, 4, 6), 1.5, np.float32),
            "attended_positions": np.broadcast_to(np.arange(8, dtype=np.int32), (n, 4, 6, 8)).copy(),
            "attended_weights": np.broadcast_to(0.5 ** np.arange(1, 9), (n, 4, 6, 8)).astype(np.float32),
            "measured_layers": np.ones((n, 4), np.uint8),
            "head_contribution": (4.0 * waves - 2.0).astype(np.float32),
            "ffn_contribution": np.full((n, 4), 0.5, np.float32),
            "embedding_contribution": np.zeros(n, np.float32),
            "other_contribution": np.zeros(n, np.float32),
            "logit_centered": (4.0 * waves - 2.0).sum(axis=(1, 2)).astype(np.float32) + np.float32(2.0),
            "residue": np.zeros(n, np.float32),
        }
        return FrameBlock(self._requests, columns, tuple(f" w{step}" for _ in range(n)))

    def close(self) -> None:
        """End the model."""
        self._closing.set()
        self._thread.join(5.0)
        self._exporter.close(2.0)
