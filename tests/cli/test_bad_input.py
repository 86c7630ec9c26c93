"""What a person gets wrong is told in one line, with a status that is not 0, and without a traceback."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fulgurite.cli.demo.processes import End
from fulgurite.cli.demo.show import obituary
from fulgurite.cli.extras import failed_import

Call = Callable[..., Any]


@pytest.fixture
def taken() -> Iterator[str]:
    """An address at which a web server listens."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def free() -> str:
    """An address at which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["replicas", "--collector", "nowhere"],
        ["tail", "--collector", ":4747"],
        ["tail", "--history", "soon"],
        ["doctor", "--collector", "127.0.0.1:99999"],
        ["demo", "--port", "0"],
        ["demo", "--replicas", "many"],
    ],
)
def test_a_malformed_argument(arguments: list[str], fulgurite: Call) -> None:
    result = fulgurite(*arguments)
    assert result.status == 2
    assert "error:" in result.complaint
    assert arguments[-1] in result.complaint


def test_a_malformed_variable(fulgurite: Call) -> None:
    result = fulgurite("replicas", environment={"FULGURITE_COLLECTOR": "nowhere"})
    assert result.status == 2
    assert "'nowhere' is not HOST:PORT" in result.complaint


def test_an_occupied_port_of_the_collector(fulgurite: Call, taken: str) -> None:
    pytest.importorskip("redis", reason="the collector needs the extra: collector")
    result = fulgurite("collector", "--listen", taken)
    assert result.status != 0
    assert taken in result.complaint


def test_an_occupied_port_of_the_page(fulgurite: Call, taken: str, free: str) -> None:
    pytest.importorskip("trame", reason="the viewer needs the extra: viewer")
    result = fulgurite("view", "--listen", taken, "--collector", free)
    assert result.status != 0
    assert f"{taken} is in use" in result.complaint


def test_a_viewer_of_something_that_is_no_collector(fulgurite: Call, taken: str) -> None:
    pytest.importorskip("trame", reason="the viewer needs the extra: viewer")
    result = fulgurite("view", "--collector", taken)
    assert result.status != 0
    assert f"{taken} is not a Fulgurite collector" in result.complaint


def test_an_occupied_port_of_the_demo(fulgurite: Call, taken: str) -> None:
    for module in ("torch", "trame", "redis"):
        pytest.importorskip(module, reason="the demo needs the extra: demo")
    result = fulgurite("demo", "--no-browser", "--port", taken.rpartition(":")[2])
    assert result.status == 1
    assert "is in use" in result.complaint


@pytest.mark.system
def test_a_model_that_is_not_there(fulgurite: Call, tmp_path: Path) -> None:
    for module in ("torch", "trame", "redis"):
        pytest.importorskip(module, reason="the demo needs the extra: demo")
    picture = str(tmp_path / "x.png")
    result = fulgurite("demo", "--headless", "--out", picture, "--model", str(tmp_path / "none"))
    assert result.status == 1
    assert f"cannot load the model '{tmp_path / 'none'}'" in result.complaint


def test_a_process_that_said_one_line_is_told_in_one_line() -> None:
    end = End("replica-0", 1, True)
    assert obituary(end, ["no model"]) == "replica-0 ended with status 1: no model"
    assert obituary(end, []) == "replica-0 ended with status 1 and said nothing"
    assert obituary(end, ["a", "b"]).splitlines()[1:] == ["    a", "    b"]


def test_a_package_that_is_there_and_cannot_be_loaded_is_no_missing_extra() -> None:
    broken = ImportError("libGL.so.1: cannot open shared object file", name="vtkmodules.vtkRenderingOpenGL2")
    told = failed_import("view", broken)
    assert told is not None
    assert str(told) == (
        "vtkmodules cannot be imported (libGL.so.1: cannot open shared object file): "
        "`fulgurite doctor` says how to mend it"
    )


def test_an_import_that_fails_in_our_own_code_is_not_hidden() -> None:
    ours = ImportError("cannot import name 'x' from 'fulgurite.viewer'", name="fulgurite.viewer")
    assert failed_import("view", ours) is None
    assert failed_import("view", ModuleNotFoundError("No module named 'y'", name="y")) is None
