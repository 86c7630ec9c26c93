"""The command line of the viewer: what is wrong with it is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fulgurite.viewer.config import parse, parse_address, parse_size


def test_defaults_are_the_documented_ones() -> None:
    config = parse([], {})
    assert (config.collector, config.listen, config.replicas) == ("127.0.0.1:4747", "127.0.0.1:8747", ())


def test_an_argument_beats_a_variable_and_a_variable_beats_the_default() -> None:
    environ = {"FULGURITE_COLLECTOR": "a:1", "FULGURITE_ENDPOINT": "b:2", "FULGURITE_VIEW_LISTEN": "c:3"}
    assert (parse([], environ).collector, parse([], environ).listen) == ("a:1", "c:3")
    assert parse([], {"FULGURITE_ENDPOINT": "b:2"}).collector == "b:2"
    assert parse(["--collector", "d:4"], environ).collector == "d:4"


def test_replicas_can_be_named_several_times() -> None:
    assert parse(["--replica", "a", "--replica", "b/1"], {}).replicas == ("a", "b/1")


def test_a_film_takes_ten_seconds_and_a_picture_four(tmp_path: Path) -> None:
    assert parse(["--headless", "--out", str(tmp_path / "x.mp4")], {}).seconds == 10.0
    assert parse(["--headless", "--out", str(tmp_path / "x.png")], {}).seconds == 4.0
    assert parse(["--headless", "--out", str(tmp_path / "x.png"), "--seconds", "2"], {}).seconds == 2.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--collector", "nowhere"], "write HOST:PORT"),
        (["--listen", "host:99999"], "port from 0 to 65535"),
        (["--headless"], "--headless needs --out"),
        (["--out", "x.mp4"], "--out needs --headless"),
        (["--headless", "--out", "x.avi"], "neither .mp4 nor .png"),
        (["--headless", "--out", "/no/such/folder/x.mp4"], "does not exist"),
        (["--headless", "--out", "x.mp4", "--seconds", "0"], "--seconds must be over 0"),
        (["--headless", "--out", "x.mp4", "--fps", "0"], "--fps must be 1 to 120"),
        (["--size", "wide"], "WIDTHxHEIGHT"),
        (["--size", "10x10"], "64 to 8192"),
        (["--history", "-1"], "--history must be"),
    ],
)
def test_a_wrong_command_line_says_what_is_wanted(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments, {})
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "parts"),
    [("127.0.0.1:4747", ("127.0.0.1", 4747)), ("host:0", ("host", 0)), ("[::1]:80", ("::1", 80))],
)
def test_addresses_are_read(text: str, parts: tuple[str, int]) -> None:
    assert parse_address(text) == parts


def test_sizes_are_read() -> None:
    assert parse_size("1280x720") == (1280, 720)


def test_the_page_may_ask_for_a_token_and_the_server_may_draw() -> None:
    assert parse([], {}).token == ""
    assert parse([], {"FULGURITE_VIEW_TOKEN": "from-variable"}).token == "from-variable"
    assert parse(["--token", "given"], {"FULGURITE_VIEW_TOKEN": "from-variable"}).token == "given"
    assert parse(["--remote"], {}).remote is True
    assert parse([], {}).remote is False


def test_remote_drawing_does_not_pretend_to_guard_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--remote", "--token", "x"], {})
    assert ended.value.code == 2
    assert "--token is for the page that draws for itself" in capsys.readouterr().err
