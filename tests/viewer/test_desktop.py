"""The native window, opened for real on a display of its own, used with mouse and keys."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vtkmodules")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where the display keeps what it shows."""
    return tmp_path_factory.mktemp("screen")


@pytest.fixture(scope="module")
def display(screen: Path) -> Iterator[str]:
    """A display without a screen."""
    server = shutil.which("Xvfb")
    if server is None:
        pytest.skip("no Xvfb here: no window can be opened")
    read, write = os.pipe()
    command = [server, "-displayfd", str(write), "-screen", "0", "1280x800x24", "-nolisten", "tcp"]
    command += ["-fbdir", str(screen)]
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


def _on_screen(folder: Path) -> np.ndarray[Any, Any]:
    """What the display shows, RGB: its memory is an X window dump, a header before rows of BGRX."""
    data = (folder / "Xvfb_screen0").read_bytes()
    size, _, _, _, width, height, *rest = struct.unpack(">25I", data[:100])
    bytes_per_line, colors = rest[6], rest[13]
    rows = np.frombuffer(data, np.uint8, offset=size + 12 * colors, count=height * bytes_per_line)
    return rows.reshape(height, bytes_per_line)[:, : 4 * width].reshape(height, width, 4)[..., 2::-1]


def test_the_demo_opens_a_window_and_closes_it(display: str, screen: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the demo needs the extra: demo")
    environment = {**os.environ, "DISPLAY": display, "OMP_NUM_THREADS": "1"}
    environment.pop("VTK_DEFAULT_OPENGL_WINDOW", None)
    command = [sys.executable, "-m", "fulgurite.cli", "demo", "--desktop", "--replicas", "1", "--pace", "12"]
    with (tmp_path / "said").open("w") as said:
        demo = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
    try:
        _until(lambda: _lit(_on_screen(screen)) > 2e-3, demo, "lightning is on the screen")
        before = _on_screen(screen)
        _until(lambda: (_on_screen(screen) != before).any(axis=-1).mean() > 1e-3, demo, "it moves")
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(60)
    assert demo.returncode == 0, (tmp_path / "said").read_text()
    assert "watch it in the window" in (tmp_path / "said").read_text()


def _lit(picture: np.ndarray[Any, Any]) -> float:
    """The share of pixels with a warm light: heads and blocks that are lit."""
    red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
    return float(((red > 150) & (red - blue > 60)).mean())


def _until(condition: Callable[[], object], demo: subprocess.Popen[bytes], what: str) -> None:
    deadline_s = time.monotonic() + 180.0
    while not condition():
        assert demo.poll() is None, f"the demo ended before {what}"
        assert time.monotonic() < deadline_s, f"not within 180 s: {what}"
        time.sleep(0.3)
