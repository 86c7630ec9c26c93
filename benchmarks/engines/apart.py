"""Runs these benchmarks in the environment of the serving engines, from any other."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "build" / "engines" / "bin" / "python"


def run(module: str, *, quick: bool) -> dict[str, Any]:
    """The record of a module of this package.

    Raises
    ------
    ValueError
        Where that environment is not there, or the run failed.
    """
    if not PYTHON.exists():
        raise ValueError("engines: build/engines is not there: scripts/engines-environment.sh builds it")
    with tempfile.TemporaryDirectory(prefix="fulgurite-engines-") as folder:
        out = Path(folder) / "record.json"
        command = [
            str(PYTHON),
            "-m",
            module,
            "--out",
            str(out),
            *(["--quick"] if quick else []),
        ]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            raise ValueError("engines: the run failed, see above")
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found
