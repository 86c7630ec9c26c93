"""Real processes for the tests: started, listened to with a deadline, and gone at the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

MARK = "FULGURITE_TEST_MARK"
DEADLINE_S = 90.0
SURROUNDINGS = {
    "PYTHONUNBUFFERED": "1",
    "OMP_NUM_THREADS": "1",
    "FULGURITE_HISTORY": "all",  # every frame is stored, whether or not somebody watches
}


class Background:
    """A process whose output is read as it comes."""

    def __init__(self, *command: str, environment: Mapping[str, str]) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**SURROUNDINGS, **os.environ, **environment},
            start_new_session=True,
        )
        streams = ((self.process.stdout, self.out), (self.process.stderr, self.err))
        self._readers = [threading.Thread(target=_read, args=pair, daemon=True) for pair in streams]
        for reader in self._readers:
            reader.start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, not to its children."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        """Wait for its end; returns the exit status."""
        status = self.process.wait(timeout_s)
        for reader in self._readers:
            reader.join(5.0)
        return status

    def until(self, condition: Callable[[], object], timeout_s: float = DEADLINE_S) -> None:
        """Wait until `condition` holds; a process that ends before is a failure."""
        limit_s = time.monotonic() + timeout_s
        while not condition():
            story = "\n".join([*self.out[-20:], *self.err[-20:]])
            assert self.process.poll() is None or condition(), f"it ended:\n{story}"
            assert time.monotonic() < limit_s, f"not within {timeout_s} s:\n{story}"
            time.sleep(0.05)

    def says(self, text: str, timeout_s: float = DEADLINE_S) -> None:
        """Wait until a line of stdout contains `text`."""
        self.until(lambda: any(text in line for line in self.out), timeout_s)


def _read(stream: object, lines: list[str]) -> None:
    for line in stream:  # type: ignore[attr-defined]
        lines.append(line.rstrip("\n"))


class Stage:
    """Starts processes that carry a mark, by which whatever they start in turn is found again."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self._started: list[Background] = []

    def python(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Background:
        """Start a Python process."""
        return self.start(sys.executable, "-P", *arguments, environment=environment)

    def fulgurite(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Background:
        """Start `fulgurite ARGUMENTS`."""
        return self.python("-m", "fulgurite.cli", *arguments, environment=environment)

    def start(self, *command: str, environment: Mapping[str, str] | None = None) -> Background:
        """Start any process."""
        started = Background(*command, environment={**(environment or {}), MARK: self._mark})
        self._started.append(started)
        return started

    def left(self) -> list[psutil.Process]:
        """Every live process that carries the mark."""
        return [process for process in psutil.process_iter() if _carries(process, self._mark)]

    def nobody_is_left(self, timeout_s: float = 15.0) -> None:
        """Assert that soon no process is left."""
        limit_s = time.monotonic() + timeout_s
        while (left := self.left()) and time.monotonic() < limit_s:
            time.sleep(0.1)
        assert not left, [process.cmdline() for process in left]

    def clear(self) -> None:
        """Kill whatever is left."""
        for process in self.left():
            process.kill()
        for started in self._started:
            started.process.kill()  # one that rewrote its environment carries no mark: redis-server does
        for started in self._started:
            started.wait(10.0)


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    except psutil.Error:
        return False


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Where processes are started; whatever is left of them is killed at the end."""
    stage = Stage()
    yield stage
    stage.clear()


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Ports that were free a moment ago."""

    def find() -> int:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return int(listener.getsockname()[1])

    return find


@pytest.fixture
def host_program(tmp_path: Path) -> Path:
    """A serving process: a small model with random weights under steady load, which tells how it fares."""
    path = tmp_path / "host.py"
    path.write_text(HOST)
    return path


HOST = '''
"""Generates until SIGTERM; one JSON line per request with the agent's account of itself."""
import json, signal, sys, time
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from fulgurite.agent import instrument

leave = []
signal.signal(signal.SIGTERM, lambda *_: leave.append(True))
torch.set_num_threads(1)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128,
)).eval()
agent = instrument(model, endpoint=sys.argv[1], level="heads", budget="off")
tokens = 0

def tell(**more):
    stats = agent.stats()
    print(json.dumps({
        "tokens": tokens, "captured": stats.captured, "acknowledged": stats.acknowledged,
        "pending": stats.pending, "dropped": dict(stats.dropped), **more,
    }), flush=True)

while not leave:
    began = time.monotonic()
    ids = torch.randint(3, 64, (2, 6))
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12,
                             do_sample=False, pad_token_id=0)
    tokens += 2 * 12
    tell(seconds=time.monotonic() - began)
    time.sleep(0.02)
began = time.monotonic()
agent.close()
tell(last=True, closing_s=time.monotonic() - began)
'''
