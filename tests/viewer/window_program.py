"""A program for a test: opens a real window, does with it what a person would, prints what came of it.

Events come through VTK's interactor, as the window system would send them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tests.scenes.streams import SCALE, block, topology

from fulgurite.viewer.camera import Pick
from fulgurite.viewer.desktop import Desk
from fulgurite.viewer.events import FeedUp, Frames, ReplicaSeen
from fulgurite.viewer.inbox import Inbox
from fulgurite.viewer.session import Session
from fulgurite.viewer.vtk.window import Window, _Hands
from fulgurite.wire.frame import FrameBatch

KEY = "demo/made-up/one"
SHAPES = {
    "balls": topology(4, 6),
    "shelf": topology(32, 32, experts=8),
    "wall": topology(80, 64),
    "experts": topology(61, 128, experts=256),
}


class Person:
    """Does things with a window."""

    def __init__(self, window: Window, desk: Desk) -> None:
        self._window = window
        self._desk = desk
        self._clock_s = 0.0

    def turn(self) -> None:
        self._clock_s += 0.2
        self._desk.turn(time.time(), self._clock_s)

    def point(self, x: float, y: float, event: str = "MouseMoveEvent", *, shift: bool = False) -> None:
        interactor = self._window.interactor
        lower = self._window.size[1] - 1 - round(y)
        interactor.SetEventInformation(round(x), lower, 0, int(shift), "\0", 0, None)
        interactor.InvokeEvent(event)
        self.turn()

    def click(self, x: float, y: float) -> None:
        self.point(x, y, "LeftButtonPressEvent")
        self.point(x, y, "LeftButtonReleaseEvent")

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.point(*start, "LeftButtonPressEvent")
        self.point(*end)
        self.point(*end, "LeftButtonReleaseEvent")

    def press(self, symbol: str, *, shift: bool = False, control: bool = False) -> None:
        self._window.interactor.SetEventInformation(0, 0, int(control), int(shift), "\0", 0, symbol)
        self._window.interactor.InvokeEvent("KeyPressEvent")
        self.turn()


def open_window(shape: str, folder: Path) -> tuple[Session, Window, Desk, Person]:
    session, inbox = Session(address="nowhere"), Inbox()
    window = Window(session, width=880, height=500)
    desk = Desk(session, inbox, window, folder=folder)
    _Hands(window, desk)
    now_s = time.time()
    seen = ReplicaSeen(
        key=KEY, topology=SHAPES[shape], level="deep", tokens="text", scale=SCALE, attributes={}
    )
    session.absorb([FeedUp(address="nowhere"), seen], now_s)
    for index in range(12):
        made = block(SHAPES[shape], position=30 + index, requests=("a", "b"), deep=True)
        made.columns["ended_ns"][:] = int((now_s - 3.0 + 0.2 * index) * 1e9)
        made.columns["started_ns"][:] = made.columns["ended_ns"] - (400_000_000 if index == 5 else 10**7)
        batch = FrameBatch(epoch_ms=1, first_sequence=2 * index + 1, blocks=(made,))
        frames = Frames(key=KEY, batch=batch, live=True, received_ns=int(now_s * 1e9), nbytes=1)
        session.absorb([frames], now_s)
    window.interactor.Initialize()
    person = Person(window, desk)
    for _ in range(2):
        person.turn()
    limit_s = time.monotonic() + 30.0
    while session.scene_s <= (session.timeline.span() or (0.0, now_s))[1]:  # there is a past to go back to
        assert time.monotonic() < limit_s, "the present never came to the tokens"
        time.sleep(0.02)
        person.turn()
    return session, window, desk, person


def _apart(window: Window, places: Any, node: Pick, x: float, y: float) -> float:
    at = window._renderer.project(KEY, places[node.layer, max(0, node.head)])
    return float(np.hypot(at[0] - x, at[1] - y))


def picks(shape: str, folder: Path) -> dict[str, Any]:
    """Points at the middle of nodes of every kind: what the window says is there, and what it should."""
    session, window, _, person = open_window(shape, folder)
    layout, storm = session.storm[KEY].layout, session.storm
    found = {}
    person.press("space")
    quads = {"ffn": layout.plates, "cell": layout.cells}
    if layout.walls is not None:
        quads["head"] = layout.walls
    for kind in ("head", "ffn", "cell"):
        right = asked = 0
        places = quads[kind].mean(axis=2) if kind in quads else layout.heads
        for layer in range(0, places.shape[0], max(1, places.shape[0] // 5)):
            index = (7 * layer) % places.shape[1]
            x, y, _ = window._renderer.project(KEY, places[layer, index])
            person.point(x, y)
            if session.hovered is not None:
                asked += 1
                node = session.hovered[1]
                exact = (node.kind, node.layer) == (kind, layer) and node.head in (index, -1)
                # the pointer stands on whole pixels: of nodes smaller than one it finds one that is there
                right += exact or (node.kind == kind and _apart(window, places, node, x, y) <= 1.5)
        found[kind] = [right, asked]
    assert storm.shown
    window.close()
    return found


def habits(folder: Path) -> dict[str, Any]:
    """One thing after the other, as a person would."""
    session, window, _, person = open_window("balls", folder)
    said: dict[str, Any] = {}
    person.press("space")
    said["paused"] = session.timeline.mode.value
    before = session.scene_s
    person.press("comma")
    said["stepped back"] = session.scene_s < before
    person.press("w")
    said["slow token"] = session.chosen is not None and int(session.chosen.block.columns["position"][0])
    person.press("m")
    heads = session.storm[KEY].head_values
    said["most active"] = session.pinned is not None and [
        session.pinned[1].layer,
        session.pinned[1].head,
    ] == [int(i) for i in np.unravel_index(int(np.nanargmax(heads)), heads.shape)]
    person.press("Escape")
    x, y, _ = window._renderer.project(KEY, session.storm[KEY].layout.heads[1, 5])
    person.point(x, y)
    said["hovered"] = session.hovered is not None and session.hovered[1].kind
    person.click(x, y)
    said["pinned"] = session.pinned is not None and [session.pinned[1].layer, session.pinned[1].head]
    person.press("Up")
    said["one layer on"] = session.pinned is not None and session.pinned[1].layer
    person.press("x")
    said["only"] = session.focus.text
    bare = window.read()
    person.press("x")
    said["focus changes the picture"] = bool((window.read() != bare).any())
    for symbol in ("slash", "L", "2", "Return"):
        person.press(symbol, shift=symbol == "L")
    said["searched"] = session.focus.text
    person.press("Escape")
    person.press("Escape")
    said["cleared"] = session.focus.text
    turn = list(session.storm.camera._turn)
    person.drag((300, 200), (360, 220))
    said["turned"] = session.storm.camera._turn != turn
    person.drag((500, window.size[1] - 6), (30, window.size[1] - 6))
    said["scrubbed"] = session.scene_s < before
    dark = window.read().mean()
    person.press("d")
    said["light theme"] = bool(window.read().mean() > 180 > 80 > dark)
    person.press("d")
    person.press("v")
    said["palette"] = session.storm.palette.name
    person.press("n")
    said["still"] = session.storm.is_still
    person.press("question", shift=True)
    said["help is shown"] = "help" in window._renderer._sheets
    person.press("Escape")
    person.press("g")
    said["panels"] = f"panels {KEY}" in window._renderer._sheets
    person.press("s")
    said["saved"] = len(list(folder.glob("fulgurite-*.png")))
    person.press("l")
    said["live"] = session.timeline.mode.value
    window.close()
    return said


if __name__ == "__main__":
    where = Path(sys.argv[2])
    told = habits(where) if sys.argv[1] == "habits" else picks(sys.argv[1], where)
    sys.stdout.write(json.dumps(told) + "\n")
