"""`fulgurite view` as a process: what cannot work ends with one clear line and a status."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from time import monotonic, sleep

import grpc
import numpy
import pytest

import fulgurite.viewer.feed as anchor

SOURCES = [str(Path(path).parent) for path in sys.modules["fulgurite"].__path__]


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def _view(*arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fulgurite.viewer", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def _nobody() -> str:
    return f"127.0.0.1:{_free_port()}"


def test_an_occupied_port_is_one_line_and_status_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = _view("--collector", _nobody(), "--listen", listen)
    assert done.returncode == 2
    told = f"fulgurite view: {listen} is in use: choose another with --listen 127.0.0.1:PORT, "
    assert done.stderr == told + "or stop what is there\n"


def test_a_port_that_is_no_collectors_is_one_line_and_status_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_answer_rubbish, args=(server,), daemon=True).start()
        done = _view("--collector", f"127.0.0.1:{server.getsockname()[1]}", "--listen", _nobody())
    assert done.returncode == 2
    assert "is not a Fulgurite collector" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def _answer_rubbish(server: socket.socket) -> None:
    try:
        while True:
            connection, _ = server.accept()
            connection.sendall(b"-ERR unknown command\r\n")
            connection.close()
    except OSError:
        return


def test_a_film_of_nothing_ends_with_a_line_and_status_1(tmp_path: Path) -> None:
    out = tmp_path / "film.png"
    done = _view("--collector", _nobody(), "--headless", "--out", str(out), "--wait", "1")
    assert done.returncode == 1
    assert "no token came within 1 s: no collector answers at" in done.stderr
    assert not out.exists()


def test_a_missing_extra_is_one_line_that_names_it(tmp_path: Path) -> None:
    for package in (grpc, numpy, sys.modules["google.protobuf"]):
        folder = Path(str(package.__file__)).parent
        for found in _needed(folder):
            (tmp_path / found.name).symlink_to(found)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "fulgurite.viewer"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*SOURCES, str(tmp_path)])},
    )
    if "trame" in os.listdir(SOURCES[0]):
        pytest.skip("Fulgurite is installed beside trame: the extra cannot be taken away")
    assert done.returncode == 1
    assert "pip install 'fulgurite[viewer]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def _needed(folder: Path) -> list[Path]:
    """A package, its shared libraries beside it, and what grpc imports."""
    site = folder.parent if folder.name != "protobuf" else folder.parent.parent
    top = folder if folder.name != "protobuf" else folder.parent
    beside = [site / f"{top.name}.libs", site / "typing_extensions.py"] if top.name == "numpy" else []
    return [path for path in (top, *beside) if path.exists()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_page_cleanly(number: signal.Signals) -> None:
    listen = _nobody()
    command = [sys.executable, "-m", "fulgurite.viewer", "--collector", _nobody(), "--listen", listen]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _until_served(process, listen)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert err == ""
    assert out.startswith(f"fulgurite view: http://{listen}/")


def _until_served(process: subprocess.Popen[str], listen: str, within_s: float = 40.0) -> None:
    deadline_s = monotonic() + within_s
    while monotonic() < deadline_s and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{listen}/", timeout=1.0) as answer:
                assert answer.status == 200
                return
        except OSError:
            sleep(0.1)
    pytest.fail(f"the page was not served within {within_s} s")


def test_importing_the_feed_needs_no_extra() -> None:
    assert anchor.__file__ is not None
    done = subprocess.run(
        [sys.executable, "-c", "import sys, fulgurite.viewer.feed; print('vtkmodules' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
