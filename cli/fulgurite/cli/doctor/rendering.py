"""Whether this machine can draw: probed in a subprocess, since VTK without EGL or OSMesa ends its process."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys

from fulgurite.cli.doctor.finding import Finding
from fulgurite.cli.extras import install_line, is_there

TIMEOUT_S = 90.0
DRAWING_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri"
FALLBACK_PACKAGES = "libosmesa6"
MEND = f"apt-get install {DRAWING_PACKAGES} (or, without EGL: {FALLBACK_PACKAGES})"


def rendering() -> list[Finding]:
    """Findings on drawing, on video, and on the browser."""
    return [*_drawing(), *_video(), _browser(), _display()]


def _drawing() -> list[Finding]:
    if not is_there("vtkmodules"):
        return [
            Finding(
                area="rendering",
                name="drawing",
                state="missing",
                detail="VTK is not installed",
                mend=install_line("viewer"),
            )
        ]
    from fulgurite.viewer.vtk.probe import probe

    result = probe(TIMEOUT_S)
    if result.ok:
        detail = f"{result.backend}, {result.detail}"
        return [Finding(area="rendering", name="drawing", state="ok", detail=detail)]
    return [
        Finding(area="rendering", name="drawing", state="broken", detail=result.detail, mend=MEND),
        *_libraries(),
    ]


def _libraries() -> list[Finding]:
    wanted = {"EGL": "libegl1", "GL": "libgl1", "OSMesa": FALLBACK_PACKAGES, "X11": "libx11-6"}
    return [
        Finding(
            area="rendering",
            name=f"lib{library}",
            state="missing",
            detail="shared library not found",
            mend=f"apt-get install {package}",
        )
        for library, package in wanted.items()
        if ctypes.util.find_library(library) is None
    ]


def _video() -> list[Finding]:
    if not is_there("av"):
        return []
    program = "import av; print('libx264' in av.codecs_available)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if done.stdout.strip() == "True":
        return [Finding(area="rendering", name="video", state="ok", detail="PyAV with libx264")]
    return [
        Finding(
            area="rendering",
            name="video",
            state="broken",
            detail="PyAV has no libx264 encoder: no MP4 can be written",
            mend="pip install --force-reinstall --only-binary av av",
        )
    ]


def _browser() -> Finding:
    names = ("chromium", "chromium-browser", "google-chrome", "firefox")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found:
        return Finding(area="rendering", name="browser", state="ok", detail=found)
    return Finding(
        area="rendering",
        name="browser",
        state="missing",
        detail="none on this machine; the page can be opened from another one",
        mend="apt-get install chromium",
    )


def _display() -> Finding:
    shown = os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY")
    if shown or sys.platform == "darwin":
        return Finding(area="rendering", name="display", state="ok", detail=shown or "macOS")
    detail = "none: the address of the page is printed; pictures and films need no display"
    return Finding(area="rendering", name="display", state="missing", detail=detail)
