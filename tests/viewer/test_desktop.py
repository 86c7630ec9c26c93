"""The native window, opened for real on a display of its own, used with mouse and keys."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vtkmodules")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """A display without a screen."""
    server = shutil.which("Xvfb")
    if server is None:
        pytest.skip("no Xvfb here: no window can be opened")
    read, write = os.pipe()
    command = [server, "-displayfd", str(write), "-screen", "0", "1280x800x24", "-nolisten", "tcp"]
    process = subprocess.Popen(command, pass_fds=(write,), stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as told:
        number = told.readline().strip()
    if not number:
        process.wait(10)
        pytest.skip("Xvfb does not start here")
    yield f":{number}"
    process.terminate()
    process.wait(10)


def _told(display: str, folder: Path, what: str) -> dict[str, Any]:
    environment = {**os.environ, "DISPLAY": display, "PYTHONPATH": str(ROOT)}
    environment.pop("VTK_DEFAULT_OPENGL_WINDOW", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.viewer.window_program", what, str(folder)],
        capture_output=True, text=True, timeout=240, env=environment, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_a_person_gets_what_mouse_and_keys_promise(display: str, tmp_path: Path) -> None:
    assert _told(display, tmp_path, "habits") == {
        "paused": "paused",
        "stepped back": True,
        "slow token": 35,
        "most active": True,
        "hovered": "head",
        "pinned": [1, 5],
        "one layer on": 2,
        "only": "layer 2",
        "focus changes the picture": True,
        "searched": "layer 2",
        "cleared": "",
        "turned": True,
        "scrubbed": True,
        "light theme": True,
        "palette": "frost",
        "still": True,
        "help is shown": True,
        "panels": True,
        "saved": 1,
        "live": "live",
    }


@pytest.mark.parametrize("shape", ["balls", "shelf", "wall", "experts"])
def test_pointing_in_the_window_finds_every_kind_of_node(display: str, tmp_path: Path, shape: str) -> None:
    found = _told(display, tmp_path, shape)
    assert set(found) == {"head", "ffn", "cell"}
    for kind, (right, asked) in found.items():
        assert asked >= 3, kind
        assert right >= asked - 2, kind  # where it is none, another node lies before it


def test_without_a_display_it_says_so(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    done = subprocess.run(
        [sys.executable, "-m", "fulgurite.viewer", "--desktop", "--collector", "127.0.0.1:9"],
        capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "there is no display for a window" in done.stderr
    assert "Traceback" not in done.stderr
