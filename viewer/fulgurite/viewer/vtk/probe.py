"""Whether VTK can draw here, tried in a subprocess.

Without a usable GL library VTK ends the process, and raises nothing. Run as a program it draws one picture
and prints what drew it. `choose_backend` sets the variable that VTK reads when it makes its first window; it
must come before that.
"""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from dataclasses import dataclass

VARIABLE = "VTK_DEFAULT_OPENGL_WINDOW"
BACKENDS = {"EGL": "vtkEGLRenderWindow", "OSMesa": "vtkOSOpenGLRenderWindow"}
PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri (or libosmesa6)"

_PROGRAM = """
import vtkmodules.vtkRenderingOpenGL2
from vtkmodules.vtkRenderingCore import vtkRenderWindow, vtkRenderer
window = vtkRenderWindow()
window.SetOffScreenRendering(1)
window.SetSize(32, 32)
renderer = vtkRenderer()
renderer.SetBackground(0.0, 0.5, 1.0)
window.AddRenderer(renderer)
window.Render()
from vtkmodules.vtkCommonCore import vtkUnsignedCharArray
pixels = vtkUnsignedCharArray()
window.GetPixelData(0, 0, 0, 0, 1, pixels, 0)
about = dict(line.split(":", 1) for line in window.ReportCapabilities().splitlines() if ":" in line)
name = about.get("OpenGL renderer string", "unknown renderer").strip()
drawn = pixels.GetTuple3(0) == (0.0, 128.0, 255.0) or pixels.GetTuple3(0) == (0.0, 127.0, 255.0)
print("DREW" if drawn else "BLANK", name, sep="\\t")
"""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What came of it.

    Attributes
    ----------
    ok : bool
        A picture was drawn.
    backend : str
        ``EGL``, ``OSMesa``, ``native``; empty where nothing drew.
    detail : str
        The renderer's name; or what went wrong with each backend, and what to install.
    """

    ok: bool
    backend: str
    detail: str


def probe(timeout_s: float = 60.0) -> ProbeResult:
    """Draw one picture in a subprocess: with what `VARIABLE` names, else with EGL, else with OSMesa."""
    named = os.environ.get(VARIABLE)
    if named:
        wanted = {next((name for name, window in BACKENDS.items() if window == named), named): named}
    elif sys.platform.startswith("linux"):
        wanted = dict(BACKENDS)
    else:
        wanted = {"native": ""}
    failures = []
    for name, window in wanted.items():
        drawn, detail = _try(window, timeout_s)
        if drawn:
            return ProbeResult(True, name, detail)
        failures.append(f"{name}: {detail}")
    return ProbeResult(False, "", f"{'; '.join(failures)}. Install {PACKAGES}")


def choose_backend() -> str:
    """Name an offscreen backend for this process, unless one is named.

    EGL where its library is found, else OSMesa. Returns the window class, empty where VTK is left to
    choose. Decides by the library alone; `probe` tries.
    """
    if VARIABLE not in os.environ and sys.platform.startswith("linux"):
        if ctypes.util.find_library("EGL"):
            os.environ[VARIABLE] = BACKENDS["EGL"]
        elif ctypes.util.find_library("OSMesa"):
            os.environ[VARIABLE] = BACKENDS["OSMesa"]
    return os.environ.get(VARIABLE, "")


def choose_screen() -> None:
    """Have VTK make windows that a screen shows; before its first one is made."""
    if sys.platform.startswith("linux"):
        os.environ[VARIABLE] = "vtkXOpenGLRenderWindow"


def _try(window: str, timeout_s: float) -> tuple[bool, str]:
    environment = {**os.environ, **({VARIABLE: window} if window else {})}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return False, f"nothing was drawn within {timeout_s:.0f} s"
    said = [line for line in done.stdout.splitlines() if line.startswith(("DREW\t", "BLANK\t"))]
    if done.returncode == 0 and said and said[-1].startswith("DREW"):
        return True, said[-1].partition("\t")[2]
    if done.returncode < 0:
        return False, f"the process ended with signal {-done.returncode}"
    if said:
        return False, f"the picture stayed blank ({said[-1].partition(chr(9))[2]})"
    complaint = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
    return False, complaint[0]
