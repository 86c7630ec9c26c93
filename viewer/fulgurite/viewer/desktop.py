"""The native window: the same session, scene and table of commands as the page, without a browser.

A `Desk` is told what a person does (keys by the names of `panel`, mouse in pixels of the window) and turns
once per picture. Its window draws. No VTK here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fulgurite.viewer import panel, sheets
from fulgurite.viewer.camera import PRESETS
from fulgurite.viewer.facts import facts
from fulgurite.viewer.inspection import card
from fulgurite.viewer.pace import Pace
from fulgurite.viewer.studio import png
from fulgurite.viewer.timeline import Mode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fulgurite.viewer.camera import Pick
    from fulgurite.viewer.inbox import Inbox
    from fulgurite.viewer.session import Session

SAID_FOR_S = 4.0
CLICK_PIXELS = 4  # a press that moves no further is a click
SHEETS_PERIOD_S = 0.1
WORDS_PERIOD_S = 0.1
FASTEST_FPS, SLOWEST_FPS = 60.0, 24.0
STILL_AFTER_S = 0.35


class Window(Protocol):
    """What draws: `fulgurite.viewer.vtk.window.Window`."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""

    def draw(self, now_s: float, clock_s: float) -> None:
        """Show the picture of `now_s`."""

    def read(self) -> NDArray[np.uint8]:
        """The picture that was drawn last, shape (height, width, 3)."""

    def pick(self, x: float, y: float) -> tuple[str, Pick] | None:
        """The replica and the node under a pixel."""

    def place(self, key: str, node: Pick) -> tuple[float, float, float] | None:
        """Where a node is seen: x, y and its reach in pixels."""

    def show_sheet(self, name: str, pixels: NDArray[np.uint8] | None, x: int = 0, y: int = 0) -> None:
        """Lay a sheet over the picture; None takes it away."""

    def toggle_fullscreen(self) -> None:
        """The whole screen, or as before."""

    def leave(self) -> None:
        """End: close the window."""


class Desk:
    """What a person does at the window; a `panel.Stage`.

    Parameters
    ----------
    session, inbox : of the feed.
    window : what draws.
    folder : where pictures are saved.
    """

    def __init__(self, session: Session, inbox: Inbox, window: Window, *, folder: Path | None = None) -> None:
        self._session = session
        self._inbox = inbox
        self._window = window
        self._folder = folder or Path.cwd()
        self._table = panel.commands(tuple((preset.label, preset.tooltip) for preset in PRESETS))
        self._keys = panel.by_shortcut(self._table)
        self._pace = Pace(fastest_fps=FASTEST_FPS, slowest_fps=SLOWEST_FPS)
        self._drawn_s = 0.0
        self._stale = True
        self._held: tuple[int, int] | None = None
        self._pressed: tuple[int, int] | None = None
        self._is_on_bar = False
        self._said, self._said_s = "", 0.0
        self._typed: str | None = None
        self._help = False
        self._sheets_s = 0.0
        self._sheet_keys: dict[str, Any] = {}
        session.storm.tokens_visible = True

    @property
    def scale(self) -> float:
        """Size of the words."""
        width, height = self._window.size
        return float(min(3.0, max(0.72, min(height / 620.0, width / 620.0))))

    # a picture

    def turn(self, now_s: float, clock_s: float) -> bool:
        """Take in what came, and draw it if it changed; whether it was drawn."""
        session, began_s = self._session, time.perf_counter()
        session.absorb(self._inbox.take(), now_s)
        changed = session.advance(now_s) or self._stale
        self._stale = False
        if clock_s - self._sheets_s >= SHEETS_PERIOD_S or changed:
            self._sheets_s = clock_s
            changed = self._write_sheets(now_s) or changed
        if changed:
            self._drawn_s = clock_s
            held = session.timeline.mode is Mode.PAUSED
            if not held:
                session.storm.arcs = self._pace.arcs
            session.storm.shed = self._pace.shed
            self._window.draw(session.scene_s, clock_s)
            session.on_screen(time.time())
            self._pace.learn(time.perf_counter() - began_s, held=held)
        elif session.storm.shed and clock_s - self._drawn_s > STILL_AFTER_S:
            session.storm.shed = 0  # a picture that stands is whole
            self._window.draw(session.scene_s, clock_s)
        else:
            return False
        return True

    @property
    def period_s(self) -> float:
        """Time from one picture to the next."""
        return self._pace.period_s

    # keys

    def key(self, name: str) -> None:
        """A key, as `panel` names them; while a search is typed, its letters."""
        if self._typed is not None:
            self._type(name)
        elif name in ("/", "Control+f"):
            self._typed = ""
        elif name in self._keys:
            self._keys[name].do(self)
        self._stale = True

    def _type(self, name: str) -> None:
        assert self._typed is not None
        if name == "Escape":
            self._typed = None
        elif name == "Enter":
            text, self._typed = self._typed, None
            try:
                self._session.search(text)
            except ValueError as error:
                self._say(str(error))
        elif name == "Backspace":
            self._typed = self._typed[:-1]
        else:
            letter = name.removeprefix("Shift+")
            self._typed += {"Space": " "}.get(letter, letter if len(letter) == 1 else "")

    # the mouse, in pixels from the upper left

    def press(self, x: int, y: int) -> None:
        """A button goes down."""
        self._held = self._pressed = (x, y)
        self._is_on_bar = y >= self._bar_top
        if self._is_on_bar:
            self._scrub(x)

    def move(self, x: int, y: int, *, moves: bool = False) -> None:
        """The pointer goes there; `moves` shifts the picture in place of turning it."""
        if self._held is None:
            self._session.hover(None if y >= self._bar_top else self._window.pick(x, y))
            return
        by = (x - self._held[0], y - self._held[1])
        self._held = (x, y)
        if self._is_on_bar:
            self._scrub(x)
        else:
            (self._session.pan if moves else self._session.orbit)(*by)
        self._stale = True

    def release(self, x: int, y: int) -> None:
        """The button goes up: where the pointer hardly moved, it was a click."""
        pressed, self._held, self._pressed = self._pressed, None, None
        if pressed is None or self._is_on_bar:
            return
        if abs(x - pressed[0]) <= CLICK_PIXELS and abs(y - pressed[1]) <= CLICK_PIXELS:
            self._session.pin(self._window.pick(x, y))
            self._stale = True

    def wheel(self, turns: float) -> None:
        """Towards the model (over 0) or away."""
        self._session.zoom(1.1**turns)
        self._stale = True

    def _scrub(self, x: int) -> None:
        self._session.seek_fraction(sheets.bar_share(x, self._window.size[0], self.scale))
        self._stale = True

    @property
    def _bar_top(self) -> float:
        return self._window.size[1] - sheets.BAR_HEIGHT * self.scale

    # what is laid over the picture

    def _write_sheets(self, now_s: float) -> bool:
        """Paint again what says something else than before; whether any does."""
        session, scale = self._session, self.scale
        width, height = self._window.size
        told = facts(session)
        found = session.inspected
        shown = None if found is None else card(session.storm[found[0]], found[1], session.scene_s)
        line = "search: " + self._typed + "▏" if self._typed is not None else ""
        if not line and now_s - self._said_s < SAID_FOR_S:
            line = self._said
        wanted: dict[str, tuple[Any, Callable[[], NDArray[np.uint8]]] | None] = {
            "bar": (
                (repr(told["fg_time"]), told["fg_mode"], told["fg_behind"], width),
                lambda: sheets.paint_bar(told["fg_time"], told["fg_mode"], told["fg_behind"], width, scale),
            ),
            "card": None if shown is None else (repr(shown), lambda: sheets.paint_card(shown, scale)),
            "help": ((width, height), lambda: sheets.paint_help(self._table, width - 80, height - 80, scale))
            if self._help
            else None,
            "line": (line, lambda: sheets.paint_line(line, scale)) if line else None,
        }
        laid = [self._lay(name, sheet) for name, sheet in wanted.items()]
        return any(laid)

    def _lay(self, name: str, sheet: tuple[Any, Callable[[], NDArray[np.uint8]]] | None) -> bool:
        key = None if sheet is None else (sheet[0], self._window.size)
        if self._sheet_keys.get(name) == key:
            return False
        self._sheet_keys[name] = key
        if sheet is None:
            self._window.show_sheet(name, None)
            return True
        pixels = sheet[1]()
        self._window.show_sheet(name, pixels, *self._corner(name, pixels.shape[1], pixels.shape[0]))
        return True

    def _corner(self, name: str, width: int, height: int) -> tuple[int, int]:
        """Where the upper left corner of a sheet goes."""
        whole, tall = self._window.size
        if name == "bar":
            return 0, tall - height
        if name == "help":
            return 40, 40
        if name == "line":
            return (whole - width) // 2, round(tall - (sheets.BAR_HEIGHT + 44) * self.scale)
        found = self._session.inspected
        place = self._window.place(*found) if found is not None else None
        if place is None:
            return whole - width - 12, round(90 * self.scale)
        x, y, reach = place
        left = x + reach + 14 if x + reach + 14 + width < whole else x - reach - 14 - width
        return max(8, round(left)), max(8, min(round(y - height / 3), tall - height - 40))

    def _say(self, text: str) -> None:
        self._said, self._said_s = text, self._session.now_s

    # panel.Stage

    def ask(self, action: Callable[[Session], None]) -> None:
        """Have this done to the session, and its result drawn."""
        action(self._session)

    def toggle_pause(self) -> None:
        """Stand still, or go on from there."""
        self._session.toggle_pause()

    def go_live(self) -> None:
        """Back to the present."""
        self._session.go_live()

    def seek_by(self, seconds: float) -> None:
        """Move through the past."""
        self._session.seek_by(seconds)

    def seek_to_start(self) -> None:
        """To the oldest token that is kept."""
        self._session.seek_fraction(0.0)

    def seek_to_end(self) -> None:
        """To the newest token that is kept."""
        self._session.seek_fraction(1.0)

    def step(self, tokens: int) -> None:
        """To the next or previous token."""
        self._session.step(tokens)

    def faster(self, factor: float) -> None:
        """Multiply the speed at which the past is played."""
        self._session.faster(factor)

    def show_camera(self, index: int) -> None:
        """One of the camera presets."""
        self._session.show_camera(index)

    def next_replica(self, by: int) -> None:
        """Show the next replica alone."""
        self._session.next_replica(by)

    def show_all_replicas(self) -> None:
        """Every replica, side by side."""
        self._session.show_all()

    def toggle_hud(self) -> None:
        """Titles, figures and legends in the picture."""
        self._session.toggle_hud()

    def toggle_tokens(self) -> None:
        """The token strip."""
        self._session.storm.tokens_visible = not self._session.storm.tokens_visible

    def toggle_contribution(self) -> None:
        """Hue: the signed push on the emitted token, or the request."""
        self._session.toggle_contribution()

    def toggle_help(self) -> None:
        """Every key."""
        self._help = not self._help

    def save_picture(self) -> None:
        """Save what is on screen as a PNG file."""
        path = self._folder / time.strftime("fulgurite-%Y%m%d-%H%M%S.png")
        try:
            path.write_bytes(png(self._window.read()))
            self._say(f"saved {path}")
        except OSError as error:
            self._say(f"{path} cannot be written: {error.strerror}")

    def toggle_fullscreen(self) -> None:
        """The whole screen, or as before."""
        self._window.toggle_fullscreen()

    def clear(self) -> None:
        """Close what is open; with nothing open, show everything again."""
        if self._help:
            self._help = False
        elif self._session.pinned is not None:
            self._session.pin(None)
        else:
            with contextlib.suppress(ValueError):
                self._session.search("")


__all__ = ["WORDS_PERIOD_S", "Desk", "Window"]
