"""Child processes: started, listened to, noticed when they die, and all of them gone at the end.

What to do about the children is decided by pure functions (`end_of`, `stop_waves`); `Processes` does it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import IO

from fulgurite.cli.demo.plan import STOP_ORDER, ProcessSpec

ENDS_ITSELF = ("film", "window")  # when its work is done, or when somebody closes it
LAST_LINES = 12
GRACE_S = 6.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class End:
    """How the run is over: a process finished its work, or one died that should not have."""

    name: str
    status: int
    is_failure: bool


def end_of(specs: Sequence[ProcessSpec], statuses: Mapping[str, int | None]) -> End | None:
    """Whether the run is over, by each process's exit status (None: it runs). A failure comes first."""
    over = [(spec, status) for spec in specs if (status := statuses.get(spec.name)) is not None]
    ends = [End(spec.name, status, spec.role not in ENDS_ITSELF or status != 0) for spec, status in over]
    return min(ends, key=lambda end: not end.is_failure, default=None)


def stop_waves(specs: Sequence[ProcessSpec]) -> list[list[str]]:
    """Names in the order in which they are asked to leave; those of one wave together."""
    first = [spec.name for spec in specs if spec.role != "collector"]
    last = [spec.name for spec in specs if spec.role == "collector"]
    return [wave for wave in (first, last) if wave]


def exit_text(status: int) -> str:
    """An exit status as `Popen` reports it, in words."""
    if status >= 0:
        return f"status {status}"
    return f"signal {signal.Signals(-status).name}"


class Child:
    """One running process with the last lines that it wrote."""

    def __init__(self, spec: ProcessSpec, said: SimpleQueue[tuple[str, str]]) -> None:
        command = [sys.executable, "-P", "-m", "fulgurite.cli.demo.tether", str(os.getpid()), spec.module]
        self.spec = spec
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self.is_listening = False
        # A session of its own: Ctrl-C in the terminal reaches us alone, and we end the others in order; and
        # its process group takes with it whatever it started itself.
        self._process = subprocess.Popen(
            [*command, *spec.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **spec.environment, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self._process.stdout, said), daemon=True),
            threading.Thread(target=self._read, args=(self._process.stderr, None), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[bytes], said: SimpleQueue[tuple[str, str]] | None) -> None:
        with stream:
            for raw in stream:
                line = raw.decode(errors="replace").rstrip()
                if not line:
                    continue
                self.last_lines.append(line)
                if said is not None:
                    self.is_listening |= bool(self.spec.listening) and self.spec.listening in line
                    said.put((self.spec.name, line))

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its process group."""
        return self._process.pid

    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def ask_to_leave(self) -> None:
        """SIGTERM, to it alone: it knows best how to end what it started."""
        if self.status() is None:
            self._process.terminate()

    def finish(self) -> None:
        """Kill what is left of its process group, and reap it."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self._process.wait()
        self.hear_out()

    def hear_out(self) -> None:
        """Wait until all is read that it wrote before it ended."""
        for reader in self._readers:
            reader.join(timeout=1.0)


class Processes:
    """The children of one run.

    Attributes
    ----------
    said : queue of (name, line)
        What the children write on stdout, as it comes.
    """

    def __init__(self) -> None:
        self._children: dict[str, Child] = {}
        self.said: SimpleQueue[tuple[str, str]] = SimpleQueue()

    def start(self, spec: ProcessSpec) -> None:
        """Start one more, or one that ended once more."""
        if spec.name in self._children:
            self._children[spec.name].finish()
        self._children[spec.name] = Child(spec, self.said)

    def end(self) -> End | None:
        """How the run is over; None while it goes on."""
        specs = [child.spec for child in self._children.values()]
        return end_of(specs, {name: child.status() for name, child in self._children.items()})

    def last_lines(self, name: str) -> list[str]:
        """The last lines that a process wrote."""
        child = self._children[name]
        if child.status() is not None:
            child.hear_out()
        return list(child.last_lines)

    def is_listening(self, name: str) -> bool:
        """Whether a process said so. That something answers at its port may be the work of a stranger."""
        child = self._children.get(name)
        return child is not None and child.is_listening

    def pids(self) -> dict[str, int]:
        """Process id by name."""
        return {name: child.pid for name, child in self._children.items()}

    def stop(self, *, grace_s: float = GRACE_S) -> None:
        """End every process: first asked, wave by wave, then killed. Returns when none is left."""
        specs = sorted((c.spec for c in self._children.values()), key=lambda s: STOP_ORDER.index(s.role))
        try:
            for wave in stop_waves(specs):
                children = [self._children[name] for name in wave]
                for child in children:
                    child.ask_to_leave()
                _wait(children, time.monotonic() + grace_s)
        finally:
            for child in self._children.values():
                child.finish()


def _wait(children: Sequence[Child], until_s: float) -> None:
    while any(child.status() is None for child in children) and time.monotonic() < until_s:
        time.sleep(POLL_S)
