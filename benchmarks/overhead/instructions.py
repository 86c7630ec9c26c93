"""Instructions per token step, counted by callgrind: what resolves where the noise of a machine hides times.

The worker runs under valgrind, which counts between two moments that the worker itself names, with a client
request: a sequence of instructions that does nothing on a processor and that valgrind knows (its manual,
"The Client Request mechanism"). So what is counted is the decoding alone, from the first token to the last.

Instructions are no time: they know no cache, no lock and no wait, and valgrind runs one thread at a time.
They come out nearly the same in every run.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.collector_process import collector_process
from benchmarks.overhead.subject import Shape, build
from benchmarks.overhead.workers import Worker

VARIANTS = ("off", "off again", "pulse", "heads", "deep (1 step in 16)", "deep, every token")
PROMPT, TOKENS = 16, 17  # 16 steps: one of them a deep one, where 1 in 16 is
HOST_THREAD = 1
ABOUT = """\
Instructions per token step by callgrind, of decoding with a Llama of random weights, float32, batch 1, one
torch thread, from the first token to the last. `host` are those of the generating thread, `added` what they
are more than at `off`, `share` that as a share of `off`. The threads that send are not counted. Instructions
are no time: what waits or misses the cache costs none.
"""

# mov rax, rdi; xor edx, edx; rol rdi by 3, 13, 61, 51; xchg rbx, rbx; mov rax, rdx; ret
_REQUEST = bytes.fromhex("4889f831d248c1c70348c1c70d48c1c73d48c1c7334887db4889d0c3")
_BASE = ord("C") << 24 | ord("T") << 16
_DUMP, _ZERO, _START, _STOP = _BASE, _BASE + 1, _BASE + 4, _BASE + 5


class Callgrind:
    """Tells the valgrind that this process runs under when to count; does nothing where it runs under none.

    Raises
    ------
    ValueError
        On another processor than x86-64.
    """

    def __init__(self) -> None:
        if platform.machine() not in ("x86_64", "AMD64"):
            raise ValueError("instructions are counted on x86-64 only")
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code.write(_REQUEST)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)

    def _ask(self, code: int) -> None:
        arguments = (ctypes.c_uint64 * 6)(code)
        self._call(ctypes.addressof(arguments))

    def begin(self) -> None:
        """Count from here."""
        self._ask(_START)
        self._ask(_ZERO)

    def end(self) -> None:
        """Write what was counted, and count no more."""
        self._ask(_DUMP)
        self._ask(_STOP)


def instructions(*, quick: bool) -> dict[str, Any]:
    """Of every variant.

    Raises
    ------
    ValueError
        Where there is no valgrind.
    """
    if shutil.which("valgrind") is None:
        raise ValueError("instructions: valgrind is not there: install the package `valgrind`")
    shape = Shape(layers=2, width=128, heads=4, kv_heads=2, ffn=256, vocabulary=1000) if quick else Shape()
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder, collector_process("--history", "all") as endpoint:
        model, counts = Path(folder) / "model", Path(folder) / "counts"
        counts.mkdir()
        parameters = build(shape, model)
        under = (
            "valgrind", "--tool=callgrind", "--instr-atstart=no", "--separate-threads=yes",
            f"--callgrind-out-file={counts / 'out'}",
        )  # fmt: skip
        with Worker(Path(sys.executable), str(model), "float32", endpoint, "-", under=under) as worker:
            for variant in VARIANTS:
                worker.ask("instructions", variant, rows=1, length=PROMPT, tokens=TOKENS)
                rows.append({"variant": variant, **_row(counts, rows)})
                print(rows[-1], flush=True)
    told = f"Llama, random weights, {parameters / 1e6:.0f} M parameters, {shape}"
    return {"about": ABOUT.strip(), "model": told, "rows": rows}


def _row(counts: Path, before: Sequence[dict[str, Any]]) -> dict[str, Any]:
    host = read(counts)[HOST_THREAD] / (TOKENS - 1)  # a request writes what its own thread did
    off = before[0]["host"] if before else host
    return {
        "host": round(host),
        "added": round(host - off),
        "share": f"{(host - off) / off:.2%}",
    }


def read(counts: Path) -> dict[int, int]:
    """Instructions of each thread in the files that a dump wrote, which are then gone."""
    found: dict[int, int] = {}
    for file in sorted(counts.iterdir()):
        thread = total = None
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name == "thread":
                    thread = int(value)
                elif name in ("totals", "summary"):
                    total = int(value.split()[0])
        file.unlink()
        if thread is not None and total is not None:
            found[thread] = found.get(thread, 0) + total
    return found
