"""The real processes of a run: Redis or Valkey, the collector, the host. Started, hurt, started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.chaos.disk import as_a_writer

ROOT: Final = Path(__file__).parents[2]
START_S: Final = 120.0
END_S: Final = 15.0
MOST_ATTEMPTS: Final = 10


class Actor:
    """One process, which may end and be started again under the same command.

    Parameters
    ----------
    is_ready : callable
        Whether it can be talked to.
    log : Path
        Where what it says goes, over all its lives.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        is_ready: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._command, self._is_ready, self._log, self._folder = list(command), is_ready, log, folder
        self._environment = {**os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1"}
        self.process: subprocess.Popen[str] | None = None
        self.starts = 0
        self._is_ending = False

    @property
    def pid(self) -> int:
        """Of the life that it lives, or that it lived last."""
        assert self.process is not None
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it runs (a stopped one does)."""
        return self.process is not None and self.process.poll() is None

    def start(self, *, wait: bool = True) -> None:
        """Start it, if it is not there. One that was told to end is awaited first, where there is time."""
        if wait and self._is_ending:
            self._see_it_end()
        if not self.is_alive:
            self._is_ending = False
            self.starts += 1
            with self._log.open("a") as log:
                self.process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE if self.keeps_stdout else log,
                    stderr=log,
                    text=True,
                    env=self._environment,
                    cwd=self._folder or ROOT,
                    start_new_session=True,
                    preexec_fn=as_a_writer,  # noqa: PLW1509 - nothing here holds a lock that it needs
                )
        if wait:
            self.wait_until_ready()

    keeps_stdout = False

    def wait_until_ready(self) -> None:
        """Wait until it can be talked to; one that ends meanwhile is started again."""
        limit_s = time.monotonic() + START_S
        attempts = 0
        while not self._is_ready():
            if time.monotonic() > limit_s:
                raise RuntimeError(f"{self._command[:4]} does not come up:\n{self.last_words}")
            if not self.is_alive and (attempts := attempts + 1) > MOST_ATTEMPTS:
                raise RuntimeError(f"{self._command[:4]} ends again and again:\n{self.last_words}")
            if not self.is_alive:
                time.sleep(0.1)
                self.start(wait=False)
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self.process is not None and self.is_alive:
            self._is_ending = self._is_ending or number in (signal.SIGTERM, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def come_back(self) -> None:
        """Start it again after it was told to end, when it has."""
        self._see_it_end()
        self.start(wait=False)

    def _see_it_end(self) -> None:
        self.signal(signal.SIGCONT)  # one that is stopped does not hear that it is to end
        if self.process is not None:
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL, and wait for it."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(10.0)
            for stream in (self.process.stdin, self.process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()

    @property
    def last_words(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""


class Host(Actor):
    """The one whose output is read, and whose orders come on its input."""

    keeps_stdout = True

    def tell(self, word: str) -> None:
        """Give it an order."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def line(self) -> str:
        """Its next line; empty where it ended."""
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout.readline()


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers_ping(port: int) -> bool:
    """Whether a server answers PING there, in the clear, and has read what it had on disk."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0) as client:
        client.sendall(b"PING\r\n")
        return client.recv(64).startswith(b"+PONG")
    return False


def server_binary(kind: str) -> str | None:
    """The program of a Redis-compatible server, where this machine has it."""
    if kind == "redis":
        return shutil.which("redis-server")
    try:
        from fulgurite.collector.embedded import EmbeddedUnavailable, server_binary
    except ImportError:
        return None
    try:
        return str(server_binary())
    except EmbeddedUnavailable:
        return None


def python(*arguments: str) -> list[str]:
    """A command of this interpreter."""
    return [sys.executable, *arguments]
