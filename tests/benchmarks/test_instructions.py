"""Instructions are counted between the two moments that a program names, and of each thread apart."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.overhead.instructions import HOST_THREAD, Callgrind, read

ROOT = Path(__file__).parents[2]
ON_X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions are counted on x86-64 only")
PROGRAM = """
import sys
from benchmarks.overhead.instructions import Callgrind

def turn(times):
    for i in range(times):
        pass

callgrind = Callgrind()
turn(50_000)
callgrind.begin()
turn(int(sys.argv[1]))
callgrind.end()
turn(50_000)
"""


@ON_X86
def test_without_valgrind_nothing_happens() -> None:
    callgrind = Callgrind()
    callgrind.begin()
    callgrind.end()


def test_the_counts_of_a_dump_are_read_by_thread_and_taken_away(tmp_path: Path) -> None:
    (tmp_path / "out.1-01").write_text("version: 1\nthread: 1\nevents: Ir\nfn=(1)\n1 5\n\ntotals: 700\n")
    (tmp_path / "out.1-02").write_text("thread: 2\nsummary: 30\n")
    (tmp_path / "out.1").write_text("no counts in it\n")
    assert read(tmp_path) == {1: 700, 2: 30}
    assert not list(tmp_path.iterdir())


@ON_X86
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_what_is_counted_lies_between_the_two_moments(tmp_path: Path) -> None:
    def counted(times: int) -> int:
        command = [
            "valgrind", "--tool=callgrind", "--instr-atstart=no", "--separate-threads=yes",
            f"--callgrind-out-file={tmp_path / 'out'}", sys.executable, "-c", PROGRAM, str(times),
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
        return read(tmp_path)[HOST_THREAD]

    none, once, twice = counted(0), counted(20_000), counted(40_000)
    assert once - none > 20_000 * 10  # no turn of a loop of Python takes fewer
    assert twice - once == pytest.approx(once - none, rel=0.05)
