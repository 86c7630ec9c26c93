"""What a picture of the storm costs at 1280 × 720, beside the same nodes and arcs redrawn with PyVista.

Streams are synthetic (drawn numbers in the shape of the model; no model ran), each token with all its heads.
*Python* is the work of a picture (processor time of its thread): light, slots, textures, camera, words.
*Tokens* is what taking in those tokens costs that came since the last picture, 1/60 s of stream; it grows
with tokens/s × heads. PyVista redraws all nodes as sphere glyphs and all arcs as tubes, or as lines, in
every picture, the way its documentation shows; it was given one try per number of arcs in the same run. Ours
is the picture with its words as the live window draws it: where fewer than 45 a second fit, it leaves
ornaments out (*left out*, said in the picture). PyVista's has neither words nor glow.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.viewer.load import MODELS, Model
from benchmarks.viewer.ours import measure, memory, positions

ROOT = Path(__file__).parents[2]
PEER = ROOT / "build" / "peers" / "pyvista"
PEER_PACKAGES = ("pyvista>=0.48", "vtk>=9.7,<9.8")
SIZE = (1280, 720)
ARCS, RATES = (0, 200, 2000), (10, 1000, 10_000)
QUICK = (MODELS[0], MODELS[-1]), (200, 2000), (1000,)
PEER_RATE = 1000  # the row that the peer's figures are put in
PROGRAM = Path(__file__).parent / "with_pyvista.py"


def run(*, quick: bool) -> list[dict[str, Any]]:
    """Every model, number of arcs and pace (quick: a few of them): rows of a table."""
    models, numbers, rates = QUICK if quick else (MODELS, ARCS, RATES)
    pictures, stream_s = (12, 120.0) if quick else (40, 3600.0)
    python = _peer()
    rows: list[dict[str, Any]] = []
    for model in models:
        for arcs in numbers:
            peer = _pyvista(python, model, arcs, 2 if quick else 5)
            for rate in rates:
                rows.append(_row(model, arcs, rate, pictures) | (peer if rate == PEER_RATE else {}))
                print(rows[-1], flush=True)
    rows.append(_memory_row(stream_s))
    return rows


def _row(model: Model, arcs: int, rate: int, pictures: int) -> dict[str, Any]:
    cost = measure(model, arcs, rate, pictures=pictures, size=SIZE)
    return {
        "model": model.name,
        "most arcs": arcs,
        "tokens/s": rate,
        "arcs live": round(cost.live),
        "frame ms": round(cost.frame, 1),
        "p95 ms": round(cost.frame_p95, 1),
        "frames/s": round(1e3 / cost.frame),
        "Python ms": round(cost.prepare, 2),
        "tokens ms": round(cost.tokens, 2),
        "left out": cost.left_out or "nothing",
    }


def _memory_row(stream_s: float) -> dict[str, Any]:
    before, after = memory(MODELS[1], stream_s=stream_s)
    return {
        "model": MODELS[1].name,
        "tokens/s": 1000,
        "resident MiB after 1 min of stream": round(before, 1),
        f"after {stream_s / 60:g} min": round(after, 1),
    }


def _peer() -> Path:
    """Python of the environment with PyVista, made where it is not there."""
    python = PEER / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
    return python


def _pyvista(python: Path, model: Model, arcs: int, pictures: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "places.npz"
        np.savez(file, **positions(model))  # type: ignore[arg-type]
        for way in ("tubes", "lines") if arcs else ("lines",):
            arguments = [str(file), str(arcs), str(pictures), *map(str, SIZE), way]
            done = subprocess.run(
                [str(python), str(PROGRAM), *arguments],
                capture_output=True,
                text=True,
                check=True,
                timeout=600,
            )
            told = json.loads(done.stdout.strip().splitlines()[-1])
            name = f"PyVista {told['version']}, {way}" if arcs else f"PyVista {told['version']}, lines"
            found[f"{name}: frame ms"] = round(told["frame_ms"], 1)
    return found
