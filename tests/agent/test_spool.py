"""A queue on disk: in order, within its budget, without a name; what a disk does to it is told."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.agent.link import Parcel
from fulgurite.agent.spool import RETRY_S, SEGMENT_BYTES, Spool

STAMP = (7, 1)


def parcel(first: int, frames: int = 2, nbytes: int = 100) -> Parcel:
    return Parcel(first, frames, bytes([first % 256]) * nbytes)


def read(spool: Spool) -> Parcel:
    found = spool.read()
    assert found is not None
    taken, _, is_whole = found
    assert is_whole
    return taken


def test_what_is_written_comes_back_in_order_with_its_stamp_and_is_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for n in range(3):
        spool.write(parcel(1 + 2 * n), (7 + n, n), 0.0)
    assert (len(spool), spool.frames, spool.nbytes) == (3, 6, 300)
    for n in range(3):
        assert spool.read() == (parcel(1 + 2 * n), (7 + n, n), True)
    assert (len(spool), spool.frames, spool.nbytes) == (0, 0, 0)
    assert spool.read() is None


def test_the_folder_is_made_with_the_first_write_and_its_files_have_no_name(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    spool = Spool(folder)
    assert not folder.exists()
    spool.write(parcel(1), STAMP, 0.0)
    assert list(folder.iterdir()) == []
    assert read(spool) == parcel(1)
    spool.close()


def test_it_takes_no_more_than_its_budget(tmp_path: Path) -> None:
    spool = Spool(tmp_path, budget_bytes=250)
    assert spool.takes(250, 0.0)
    assert not spool.takes(251, 0.0)
    spool.write(parcel(1), STAMP, 0.0)
    spool.write(parcel(3), STAMP, 0.0)
    assert not spool.takes(100, 0.0)
    read(spool)
    assert spool.takes(100, 0.0)
    spool.close()


def test_a_file_that_was_read_is_given_back_to_the_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    half = SEGMENT_BYTES // 2
    for n in range(6):
        spool.write(parcel(1 + n, frames=1, nbytes=half), STAMP, 0.0)
    assert len(os.listdir("/proc/self/fd")) == before + 3
    for left in (3, 2, 2, 1, 1, 0):
        read(spool)
        assert len(os.listdir("/proc/self/fd")) == before + left
    spool.write(parcel(9), STAMP, 0.0)
    assert read(spool) == parcel(9)


def test_a_disk_that_refuses_is_left_alone_for_a_while(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    spool = Spool(tmp_path / "file" / "spool")
    with pytest.raises(OSError):
        spool.write(parcel(1), STAMP, 10.0)
    assert (len(spool), spool.frames, spool.nbytes) == (0, 0, 0)
    assert not spool.takes(1, 10.0 + RETRY_S - 0.1)
    assert spool.takes(1, 10.0 + RETRY_S)


def test_bytes_that_the_disk_changed_are_told_from_whole_ones(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.write(parcel(1), STAMP, 0.0)
    spool.write(parcel(3), STAMP, 0.0)
    (segment,) = spool._segments
    os.pwrite(segment.fd, b"\xff", 50)
    found = spool.read()
    assert found is not None
    damaged, stamp, is_whole = found
    assert (damaged.first_sequence, damaged.frames, stamp, is_whole) == (1, 2, STAMP, False)
    assert read(spool) == parcel(3)


def test_closing_says_how_many_frames_waited_and_leaves_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    spool = Spool(tmp_path)
    spool.write(parcel(1, frames=5), STAMP, 0.0)
    spool.write(parcel(6, frames=2), STAMP, 0.0)
    read(spool)
    assert spool.close() == 2
    assert (len(spool), spool.frames, spool.nbytes) == (0, 0, 0)
    assert len(os.listdir("/proc/self/fd")) == before
    assert spool.close() == 0


@given(st.lists(st.one_of(st.integers(1, 200_000), st.none()), max_size=60))
def test_it_is_a_queue_whatever_comes_and_goes(steps: list[int | None]) -> None:
    spool, waiting = Spool(Path(tempfile.gettempdir())), list[Parcel]()
    try:
        for first, nbytes in enumerate(steps, 1):
            if nbytes is not None:
                spool.write(parcel(first, frames=1, nbytes=nbytes), STAMP, 0.0)
                waiting.append(parcel(first, frames=1, nbytes=nbytes))
            elif waiting:
                assert read(spool) == waiting.pop(0)
            else:
                assert spool.read() is None
            assert spool.frames == len(spool) == len(waiting)
            assert spool.nbytes == sum(len(one.data) for one in waiting)
    finally:
        spool.close()
