"""Makes the environments of the peers, one each, under `build/`; what does not install is skipped by name."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.overhead.peers import PACKAGES
from benchmarks.overhead.workers import ROOT

FOLDER = ROOT / "build" / "peers"
INSTALL_LIMIT_S = 1200.0


@dataclass(frozen=True, slots=True)
class Environment:
    """A peer that can be measured, with the version that was installed."""

    peer: str
    python: Path
    version: str


def make(peer: str) -> Environment | str:
    """The environment of `peer`, as it is where it was made before; where there can be none, the reason."""
    python = FOLDER / PACKAGES[peer] / "bin" / "python"
    try:
        if not python.exists():
            _run(sys.executable, "-m", "venv", str(python.parents[1]))
        try:
            version = _version(peer, python)
        except subprocess.CalledProcessError:  # it is not there yet: it is what is installed last
            _install(peer, python)
            version = _version(peer, python)
        return Environment(peer, python, version)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        return said[-1] if said else "could not be installed"


def _version(peer: str, python: Path) -> str:
    program = f"import importlib.metadata as m; print(m.version({PACKAGES[peer].replace('_', '-')!r}))"
    return _run(str(python), "-c", program).strip()


def _install(peer: str, python: Path) -> None:
    pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    # torch first, at the version of our own environment: an open range would take a build of several GB.
    _run(*pip, "torch", "transformers", "numpy")
    _run(*pip, PACKAGES[peer])


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=True)
    return done.stdout
