"""Starts the workers, each with the Python of its environment, and asks them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LAST_BYTES = 2000


class WorkerError(RuntimeError):
    """A worker ended; the message is the last thing that it said."""


class Worker:
    """One process that measures.

    Parameters
    ----------
    python : the interpreter of its environment.
    arguments : folder, dtype, endpoint, peer; ``-`` for none.
    under : a program, with its own arguments, that runs it.
    """

    def __init__(self, python: Path, *arguments: str, under: Sequence[str] = ()) -> None:
        self._said = TemporaryFile()  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            [*under, str(python), "-m", "benchmarks.overhead.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        self.variants: list[str] = self._answer()

    def ask(self, act: str, variant: str, **options: int) -> dict[str, Any]:
        """``measure``, ``count`` and so on: one of the acts of the worker, with one variant.

        Raises
        ------
        WorkerError
            Where the worker did not survive it.
        """
        assert self._process.stdin is not None
        print(json.dumps({"act": act, "variant": variant, **options}), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = self._answer()
        return answer

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - LAST_BYTES))
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        raise WorkerError(lines[-1] if lines else f"ended with status {self._process.returncode}")

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._said.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
