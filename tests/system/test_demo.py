"""The demo, as a person starts it: real processes, a real model, a real picture, and nothing left behind."""

from __future__ import annotations

import re
import signal
import socket
import urllib.request
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("torch", reason="the demo needs the extra: demo")
av = pytest.importorskip("av", reason="the demo needs the extra: demo")
pytest.importorskip("vtkmodules", reason="the demo needs the extra: demo")

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

FILM_S = 5.0
FIRST_TOKEN_LIMIT_S = 60.0
"""20 s are promised on a machine of its own; tests share theirs."""


def tokens_stored(lines: list[str]) -> dict[str, int]:
    """Tokens by replica, as the last lines of a run tell them."""
    line = next(line for line in lines if "tokens stored" in line)
    return {name: int(count) for name, count in re.findall(r"(replica-\d+) (\d+)", line)}


def test_a_headless_demo_films_two_replicas_and_leaves_nothing(stage: Any, tmp_path: Path) -> None:
    film = tmp_path / "demo.mp4"
    demo = stage.fulgurite("demo", "--headless", "--seconds", f"{FILM_S:g}", "--out", str(film))
    assert demo.wait(240.0) == 0, "\n".join([*demo.out, *demo.err])
    stage.nobody_is_left()
    counts = tokens_stored(demo.out)
    assert set(counts) == {"replica-0", "replica-1"}
    assert all(count >= 50 for count in counts.values())
    assert any("token text is switched on" in line.lower() for line in demo.out)
    _plays_and_moves(film)


def _plays_and_moves(film: Path) -> None:
    with av.open(str(film)) as container:
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        rate = float(container.streams.video[0].average_rate)
    assert len(frames) / rate == pytest.approx(FILM_S, rel=0.2)
    assert all(frame.max() > 100 for frame in frames)
    thirds = [frames[len(frames) * part // 4].astype(np.int16) for part in (1, 2, 3)]
    changed = [np.mean(np.abs(a - b) > 16) for a, b in pairwise(thirds)]
    assert min(changed) > 0.001


def test_a_picture_is_drawn_in_place_of_a_film(stage: Any, tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    demo = stage.fulgurite("demo", "--headless", "--seconds", "1", "--replicas", "1", "--out", str(picture))
    assert demo.wait(240.0) == 0, "\n".join([*demo.out, *demo.err])
    assert picture.read_bytes().startswith(b"\x89PNG")
    stage.nobody_is_left()


def test_ctrl_c_stops_everything(stage: Any, free_port: Callable[[], int]) -> None:
    port = free_port()
    demo = stage.fulgurite("demo", "--no-browser", "--port", str(port))
    demo.says("watch it at", 120.0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        assert answer.status == 200
    assert len(stage.left()) >= 5
    demo.signal(signal.SIGINT)
    assert demo.wait(30.0) == 0, demo.err
    assert demo.err == []
    stage.nobody_is_left()


TAKEN = """
import sys
from fulgurite.cli.address import Address
from fulgurite.cli.demo.plan import Options
from fulgurite.cli.demo.show import Show

collector, page = (Address("127.0.0.1", int(port)) for port in sys.argv[1:])
plan = Options(collector=collector, page=page, replicas=1, seconds=1.0)
sys.exit(Show(plan, browser=False, verbose=False).run())
"""


def test_ports_that_others_took_after_we_looked_give_way_and_strangers_are_not_taken_for_ours(
    stage: Any, free_port: Callable[[], int]
) -> None:
    port = free_port()
    stranger = stage.fulgurite("collector", "--listen", f"127.0.0.1:{port}", "--redis", "memory://")
    stranger.says("listening on")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        page = listener.getsockname()[1]
        demo = stage.python("-c", TAKEN, str(port), str(page))
        assert demo.wait(120.0) == 0, "\n".join([*demo.out, *demo.err])
    assert tokens_stored(demo.out)["replica-0"] > 0
    listens = next(line for line in demo.out if "collector listens on" in line)
    watch = next(line for line in demo.out if "watch it at" in line)
    assert f":{port}," not in listens
    assert f":{page}/" not in watch
    stranger.signal(signal.SIGTERM)
    stage.nobody_is_left()


def test_a_demo_that_is_killed_takes_everything_with_it(stage: Any, free_port: Callable[[], int]) -> None:
    demo = stage.fulgurite("demo", "--no-browser", "--port", str(free_port()))
    demo.says("collector listens", 120.0)
    assert len(stage.left()) >= 5
    demo.signal(signal.SIGKILL)
    stage.nobody_is_left(30.0)


def test_a_replica_that_dies_ends_the_demo_with_its_last_words(
    stage: Any, free_port: Callable[[], int]
) -> None:
    demo = stage.fulgurite("demo", "--no-browser", "--replicas", "1", "--port", str(free_port()))
    demo.says("replica-0: first token stored", FIRST_TOKEN_LIMIT_S)
    (replica,) = (process for process in stage.left() if "fulgurite.cli.demo.replica" in process.cmdline())
    psutil.Process(replica.pid).send_signal(signal.SIGKILL)
    assert demo.wait(60.0) == 1
    assert any("replica-0 ended with signal SIGKILL" in line for line in demo.err), demo.err
    stage.nobody_is_left()


def test_a_model_that_is_not_there_is_said_and_nothing_is_left(
    stage: Any, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    absent = tmp_path / "no-such-model"
    demo = stage.fulgurite("demo", "--no-browser", "--model", str(absent), "--port", str(free_port()))
    assert demo.wait(120.0) == 1
    said = "\n".join(demo.err)
    assert "cannot load the model" in said
    assert "no-such-model" in said
    stage.nobody_is_left()


def test_a_page_port_that_is_taken_is_an_error_before_anything_starts(stage: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        demo = stage.fulgurite("demo", "--no-browser", "--port", str(port))
        assert demo.wait(30.0) == 1
    assert demo.err == [f"fulgurite demo: port {port} is in use: give another with --port, or leave it out"]
    stage.nobody_is_left()
