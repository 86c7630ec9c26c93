"""Several processes on one port: started, watched, started again where one dies, ended together.

The kernel spreads connections over the processes that listen on the port (SO_REUSEPORT). They share the
store, so any viewer of any of them sees every replica. A process is told its settings through its input,
never on its command line, which others may read; when that input ends it ends too, however this one ended.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import pickle
import socket
import sys
import time
from dataclasses import dataclass, replace
from typing import Final

from fulgurite.collector.config import Listen, Settings

log = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 30.0
FIRST_RESTART_S: Final = 0.2
LONGEST_RESTART_S: Final = 5.0
STEADY_S: Final = 30.0
"""A process that lived so long is started again at once."""
GRACE_S: Final = 5.0
READY: Final = "ready"
FAILED: Final = "failed "


class WorkerFailed(Exception):
    """A process could not begin to serve. The message says why."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a process is told.

    Attributes
    ----------
    store_label : str
        What to call the store in messages; empty: by its URL.
    """

    settings: Settings
    store_label: str
    number: int
    of: int

    def written(self) -> bytes:
        """As one line."""
        return base64.b64encode(pickle.dumps(self)) + b"\n"

    @staticmethod
    def read(line: bytes) -> Job:
        """What `written` gave. Only ever from the process that started this one."""
        job = pickle.loads(base64.b64decode(line))
        assert isinstance(job, Job)
        return job


class Workers:
    """The processes, for the length of an `async with`.

    Parameters
    ----------
    settings : Settings
        With the URL of a store that all can reach.

    Attributes
    ----------
    address : Listen
        With the port that was found, once it is entered.
    otlp_http : Listen or None
        Where one of them takes OTLP over HTTP.

    Raises
    ------
    WorkerFailed
        On entering, where one does not come up.
    """

    def __init__(self, settings: Settings, *, store_label: str = "") -> None:
        self.address = settings.listen
        self.otlp_http = settings.otlp_http
        self._settings = settings
        self._label = store_label
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._watching: list[asyncio.Task[None]] = []
        self._closing = False

    @property
    def pids(self) -> list[int]:
        """Process ids, by number."""
        return [self._processes[number].pid for number in sorted(self._processes)]

    async def __aenter__(self) -> Workers:
        self._port = _reserved(self.address)
        self.address = Listen(self.address.host, self._port.getsockname()[1])
        try:
            await asyncio.gather(*(self._start(number) for number in range(self._settings.workers)))
        except BaseException:
            await self._end()
            raise
        self._watching = [asyncio.create_task(self._watch(number)) for number in self._processes]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    def _job(self, number: int) -> Job:
        # One of them is enough for the port that cannot be shared.
        otlp_http = self._settings.otlp_http if number == 0 else None
        settings = replace(self._settings, listen=self.address, otlp_http=otlp_http)
        return Job(settings, self._label, number, self._settings.workers)

    async def _start(self, number: int) -> None:
        safe_path = ["-P"] if sys.flags.safe_path else []
        process = await asyncio.create_subprocess_exec(
            sys.executable, *safe_path, "-m", "fulgurite.collector.worker",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._processes[number] = process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(self._job(number).written())
        try:
            said = (await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S)).decode().strip()
        except TimeoutError:
            raise WorkerFailed(f"worker {number} did not come up within {START_TIMEOUT_S:g} s") from None
        if said != READY:
            raise WorkerFailed(said.removeprefix(FAILED) or f"worker {number} ended before it served")

    async def _watch(self, number: int) -> None:
        pause_s = FIRST_RESTART_S
        while True:
            began_s = time.monotonic()
            status = await self._processes[number].wait()
            if self._closing:
                return
            pause_s = FIRST_RESTART_S if time.monotonic() - began_s > STEADY_S else pause_s
            log.error("worker %d ended (status %s); starting another", number, status)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_RESTART_S)
            try:
                await self._start(number)
            except (WorkerFailed, OSError) as error:
                log.error("worker %d: %s", number, error)
                await _ended(self._processes[number], 0.0)

    async def _end(self) -> None:
        """All drain at once; who does not end in time is ended."""
        self._closing = True
        for task in self._watching:
            task.cancel()
        grace_s = self._settings.drain_s + GRACE_S
        await asyncio.gather(*(_ended(process, grace_s) for process in self._processes.values()))
        self._port.close()


async def _ended(process: asyncio.subprocess.Process, grace_s: float) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), grace_s)
    except TimeoutError:
        process.kill()
        await process.wait()


def _reserved(listen: Listen) -> socket.socket:
    """The port, bound and not listened on: it takes no connection, and nobody else gets it meanwhile."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    port = socket.socket(family, kind, protocol)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    port.bind(address)
    return port
