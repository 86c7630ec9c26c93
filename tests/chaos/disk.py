"""A folder whose disk can be made full and be given room again."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

DISK_BYTES: Final = 32 << 20
ROOM_BYTES: Final = 64 << 10
PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


class Disk(Protocol):
    """Where a server writes. `folder` exists for the length of a `with`."""

    folder: Path
    kind: str

    def fill(self, writer: int) -> None:
        """From now on the process `writer` gets an error for what it writes."""

    def free(self, writer: int) -> None:
        """There is room again."""

    def __enter__(self) -> Disk: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class MountedDisk:
    """A file system of its own in memory: full is ENOSPC. Needs the right to mount."""

    kind = "mounted"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def __enter__(self) -> MountedDisk:
        self.folder.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "fulgurite-chaos"]
        subprocess.run(["mount", *options, str(self.folder)], check=True, capture_output=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=False, capture_output=True)

    def fill(self, writer: int) -> None:
        """See `Disk.fill`."""
        with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as file:
            while file.write(bytes(ROOM_BYTES)):
                pass

    def free(self, writer: int) -> None:
        """See `Disk.free`."""
        self._ballast.unlink(missing_ok=True)


class LimitedDisk:
    """A folder like any other; full is a limit on the size of a file (EFBIG) that the writer gets.

    The writer is to be started with SIGXFSZ ignored (`as_a_writer`), or the limit would end it.
    """

    kind = "limited"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> LimitedDisk:
        self.folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def fill(self, writer: int) -> None:
        """See `Disk.fill`."""
        largest = max((path.stat().st_size for path in self.folder.rglob("*") if path.is_file()), default=0)
        _limit(writer, largest + 1)

    def free(self, writer: int) -> None:
        """See `Disk.free`."""
        with contextlib.suppress(ProcessLookupError):
            _limit(writer, resource.RLIM_INFINITY)


def _limit(pid: int, nbytes: int) -> None:
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (nbytes, most))


def as_a_writer() -> None:
    """In a child before it becomes the writer.

    A file at its limit is an error there, not the end; and it ends with whoever started it.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def disk_at(folder: Path, name: str, *, mounts: bool = True) -> Disk:
    """The better of both that this machine allows."""
    if mounts and os.geteuid() == 0:
        with contextlib.suppress(OSError, subprocess.CalledProcessError), MountedDisk(folder / "probe"):
            return MountedDisk(folder / name)
    return LimitedDisk(folder / name)
