"""A disk that is full gives an error to who writes there, and room again afterwards."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from tests.chaos.disk import LimitedDisk, as_a_writer, disk_at

WRITER = """
import os, sys
path = sys.argv[1]
for line in sys.stdin:
    try:
        with open(path, "ab", buffering=0) as file:
            file.write(bytes(200_000))
        print("written", flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


@pytest.mark.parametrize("kind", ["limited", "best"])
def test_a_full_disk_refuses_and_a_free_one_takes(kind: str, tmp_path: Path) -> None:
    with LimitedDisk(tmp_path / "disk") if kind == "limited" else disk_at(tmp_path, "disk") as disk:
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(disk.folder / "file")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=as_a_writer,  # noqa: PLW1509 - it takes no lock
        )
        assert writer.stdin is not None
        assert writer.stdout is not None

        def writes() -> str:
            print("", file=writer.stdin, flush=True)
            return writer.stdout.readline().strip()  # type: ignore[union-attr]

        try:
            assert writes() == "written"
            disk.fill(writer.pid)
            writes()  # what is left of the last block may still take some
            assert writes() in (str(errno.ENOSPC), str(errno.EFBIG))
            disk.free(writer.pid)
            assert writes() == "written"
        finally:
            writer.kill()
            writer.wait()
            writer.stdin.close()
            writer.stdout.close()
