"""Whether VTK can draw is tried in a subprocess: what ends a process there is a sentence here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fulgurite.viewer.vtk.probe import PACKAGES, VARIABLE, ProbeResult, probe


def _probe_with(window: str) -> str:
    """What `probe` says in a process where this window class is named."""
    script = (
        "from fulgurite.viewer.vtk.probe import probe; r = probe(); print(r.ok, r.backend, r.detail, sep='|')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, VARIABLE: window},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.strip()


def test_where_it_can_draw_the_probe_names_backend_and_renderer(drawing: ProbeResult) -> None:
    assert drawing.ok
    assert drawing.backend
    assert drawing.detail not in ("", "unknown renderer")


def test_a_named_window_that_cannot_draw_says_what_to_install() -> None:
    pytest.importorskip("vtkmodules")
    if probe().backend == "OSMesa":
        pytest.skip("OSMesa draws here, so there is nothing to fail")
    ok, _, detail = _probe_with("vtkOSOpenGLRenderWindow").split("|", 2)
    if ok == "True":
        pytest.skip("OSMesa is installed beside EGL")
    assert detail.startswith("OSMesa: ")
    assert detail.endswith(f"Install {PACKAGES}")


def test_importing_the_drawing_opens_no_window() -> None:
    pytest.importorskip("vtkmodules")
    script = (
        "import fulgurite.viewer.vtk, fulgurite.viewer.vtk.probe, sys; print('vtkmodules' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"
