"""Frames that wait on disk for a collector: in order, within a budget of bytes, for the life of this process.

A file has no name (it is unlinked as soon as it is open), so nothing is left behind however the process ends.
That it does not survive the process is meant: a process that starts again is another replica with a ledger of
its own, and in the old one's ledger these frames are dropped. The sending thread alone calls this; a disk
that hangs holds up nobody else.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from zlib import crc32

from fulgurite.agent.config import DEFAULT_SPOOL_BYTES
from fulgurite.agent.link import Parcel

SEGMENT_BYTES: Final = 4 << 20
"""Of a file: what was read of it is given back to the disk when all of it was."""
RETRY_S: Final = 5.0
"""After a write that failed nothing is written for so long."""


Stamp = tuple[int, int]
"""Epoch and sequence that the data of a parcel says its first frame has."""


@dataclass(frozen=True, slots=True)
class _Record:
    first_sequence: int
    frames: int
    stamp: Stamp
    offset: int
    nbytes: int
    checksum: int


@dataclass(slots=True)
class _Segment:
    fd: int
    written: int = 0
    records: deque[_Record] = field(default_factory=deque)


class Spool:
    """A queue of parcels on disk.

    Parameters
    ----------
    folder : Path
        Made with the first write, where it is not there.
    budget_bytes : int
        What may wait.

    Attributes
    ----------
    nbytes, frames : int
        What waits.
    lost : int
        Parcels that could not be read again.
    """

    def __init__(self, folder: Path, budget_bytes: int = DEFAULT_SPOOL_BYTES) -> None:
        self._folder, self._budget = folder, budget_bytes
        self._segments: deque[_Segment] = deque()
        self._closed_until_s = 0.0
        self.nbytes = self.frames = 0

    def __len__(self) -> int:
        """Parcels that wait."""
        return sum(len(segment.records) for segment in self._segments)

    def takes(self, nbytes: int, now_s: float) -> bool:
        """Whether there is room for so many bytes, and the disk is not known to refuse."""
        return now_s >= self._closed_until_s and self.nbytes + nbytes <= self._budget

    def write(self, parcel: Parcel, stamp: Stamp, now_s: float) -> None:
        """Add a parcel.

        Raises
        ------
        OSError
            Where the disk refuses; the parcel is not in the spool.
        """
        try:
            segment = self._open()
            _write_all(segment.fd, parcel.data, segment.written)
        except OSError:
            self._closed_until_s = now_s + RETRY_S
            raise
        record = _Record(
            parcel.first_sequence,
            parcel.frames,
            stamp,
            segment.written,
            len(parcel.data),
            crc32(parcel.data),
        )
        segment.written += len(parcel.data)
        segment.records.append(record)
        self.nbytes += record.nbytes
        self.frames += record.frames

    def read(self) -> tuple[Parcel, Stamp, bool] | None:
        """Take the oldest out: the parcel, its stamp, and whether its bytes are as they were written."""
        segment = next((one for one in self._segments if one.records), None)
        if segment is None:
            return None
        record = segment.records.popleft()
        self.nbytes -= record.nbytes
        self.frames -= record.frames
        try:
            data = os.pread(segment.fd, record.nbytes, record.offset)
        except OSError:
            data = b""
        self._give_back()
        is_whole = len(data) == record.nbytes and crc32(data) == record.checksum
        return Parcel(record.first_sequence, record.frames, data), record.stamp, is_whole

    def close(self) -> int:
        """Let go of all; how many frames waited."""
        waited = self.frames
        for segment in self._segments:
            os.close(segment.fd)
        self._segments.clear()
        self.nbytes = self.frames = 0
        return waited

    def _open(self) -> _Segment:
        if not self._segments or self._segments[-1].written >= SEGMENT_BYTES:
            self._folder.mkdir(parents=True, exist_ok=True)
            fd, name = tempfile.mkstemp(prefix="fulgurite-", suffix=".spool", dir=self._folder)
            os.unlink(name)
            self._segments.append(_Segment(fd))
        return self._segments[-1]

    def _give_back(self) -> None:
        while self._segments and not self._segments[0].records:
            os.close(self._segments.popleft().fd)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count
