"""A window on the desktop: VTK's own, its events translated to the names of `panel`.

    run(session, inbox, width=1280, height=720)     # until it is closed

Needs a display. The words are in the picture, so there is no toolkit beside VTK.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fulgurite.viewer.colors import on_paper
from fulgurite.viewer.desktop import WORDS_PERIOD_S, Desk
from fulgurite.viewer.vtk.probe import choose_screen

choose_screen()

from fulgurite.viewer.vtk.renderer import Renderer  # isort: skip  # noqa: E402
from vtkmodules.util.numpy_support import numpy_to_vtk  # noqa: E402  # isort: skip
from vtkmodules.vtkRenderingCore import vtkRenderWindowInteractor  # noqa: E402  # isort: skip
import vtkmodules.vtkRenderingUI  # noqa: E402, F401  # isort: skip  # makes the interactor of this platform

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from fulgurite.viewer.camera import Pick
    from fulgurite.viewer.inbox import Inbox
    from fulgurite.viewer.session import Session

TIMER_MS = 4  # looks so often whether a picture is due
KEYS = {
    "space": "Space", "Left": "ArrowLeft", "Right": "ArrowRight", "Up": "ArrowUp", "Down": "ArrowDown",
    "Return": "Enter", "KP_Enter": "Enter", "BackSpace": "Backspace", "comma": ",", "period": ".",
    "bracketleft": "[", "bracketright": "]", "question": "?", "slash": "/", "plus": "+", "minus": "-",
    "equal": "=", "KP_Add": "+", "KP_Subtract": "-", "ISO_Left_Tab": "Tab",
}  # fmt: skip
SYMBOLS = frozenset("?+=/-,.[]")
MODIFIERS = ("Shift", "Control", "Alt", "Meta", "Super", "Caps", "ISO_Level")


def key_name(symbol: str, *, shift: bool, control: bool, alt: bool) -> str | None:
    """The name that `panel` gives to a key of X or of Windows; None: a modifier alone."""
    if symbol.startswith(MODIFIERS) and symbol != "ISO_Left_Tab":
        return None
    name = KEYS.get(symbol, symbol)
    if len(name) == 1 and name.isalpha():
        name = name.upper() if shift else name.lower()
    held = [*(["Control"] if control else []), *(["Shift"] if shift and name not in SYMBOLS else [])]
    return "+".join([*held, *(["Alt"] if alt else []), name])


class Window:
    """The window; `desktop.Window`.

    Parameters
    ----------
    width, height : int
        In pixels.
    """

    def __init__(self, session: Session, *, width: int, height: int) -> None:
        self._storm = session.storm
        self._renderer = Renderer(
            session.storm, width=width, height=height, offscreen=False, words_period_s=WORDS_PERIOD_S
        )
        self._window = self._renderer.render_window
        self.interactor = vtkRenderWindowInteractor()
        self.interactor.SetRenderWindow(self._window)
        self.interactor.SetInteractorStyle(None)  # type: ignore[arg-type]  # none of VTK's own handling
        self._is_full = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self._renderer.size

    def draw(self, now_s: float, clock_s: float) -> None:
        """Show the picture of `now_s`."""
        self._renderer.prepare(now_s, clock_s)
        if not self._storm.is_light:
            self._window.Render()
            return
        self._window.SwapBuffersOff()
        self._window.Render()
        width, height = self.size
        lines = on_paper(self._renderer.raw(shown=False))[::-1].reshape(-1, 3)
        self._paper = numpy_to_vtk(lines, deep=True)  # type: ignore[no-untyped-call]
        self._window.SetPixelData(0, 0, width - 1, height - 1, self._paper, 0, 0)
        self._window.SwapBuffersOn()
        self._window.Frame()

    def read(self) -> NDArray[np.uint8]:
        """The picture that was drawn last, shape (height, width, 3)."""
        return self._renderer.raw(shown=True).copy()

    def pick(self, x: float, y: float) -> tuple[str, Pick] | None:
        """The replica and the node under a pixel."""
        return self._renderer.pick(x, y)

    def place(self, key: str, node: Pick) -> tuple[float, float, float] | None:
        """Where a node is seen: x, y and its reach in pixels."""
        return self._renderer.place(key, node)

    def show_sheet(self, name: str, pixels: NDArray[np.uint8] | None, x: int = 0, y: int = 0) -> None:
        """Lay a sheet over the picture; None takes it away."""
        self._renderer.show_sheet(name, pixels, x, y)

    def toggle_fullscreen(self) -> None:
        """The whole screen, or as before."""
        self._is_full = not self._is_full
        self._window.SetFullScreen(self._is_full)

    def leave(self) -> None:
        """End: close the window."""
        self.interactor.TerminateApp()

    def close(self) -> None:
        """Give the window back."""
        self._renderer.close()


class _Hands:
    """Hands the interactor's events to a desk."""

    def __init__(self, window: Window, desk: Desk) -> None:
        self._window = window
        self._desk = desk
        self._due_s = 0.0
        interactor = window.interactor
        for event, action in (
            ("TimerEvent", self._tick),
            ("KeyPressEvent", self._key),
            ("LeftButtonPressEvent", self._press),
            ("MiddleButtonPressEvent", self._press),
            ("LeftButtonReleaseEvent", self._release),
            ("MiddleButtonReleaseEvent", self._release),
            ("MouseMoveEvent", self._move),
            ("MouseWheelForwardEvent", lambda *_: desk.wheel(1.0)),
            ("MouseWheelBackwardEvent", lambda *_: desk.wheel(-1.0)),
            ("ConfigureEvent", lambda *_: desk.key("")),
        ):
            interactor.AddObserver(event, action)  # type: ignore[arg-type]

    def _at(self) -> tuple[int, int]:
        x, y = self._window.interactor.GetEventPosition()
        return int(x), self._window.size[1] - 1 - int(y)

    def _tick(self, *_: Any) -> None:
        clock_s = time.monotonic()
        if clock_s >= self._due_s:
            self._desk.turn(time.time(), clock_s)
            self._due_s = clock_s + self._desk.period_s

    def _key(self, *_: Any) -> None:
        interactor = self._window.interactor
        name = key_name(
            interactor.GetKeySym() or "",
            shift=bool(interactor.GetShiftKey()),
            control=bool(interactor.GetControlKey()),
            alt=bool(interactor.GetAltKey()),
        )
        if name == "Control+q":
            self._window.leave()
        elif name is not None:
            self._desk.key(name)

    def _press(self, *_: Any) -> None:
        self._desk.press(*self._at())

    def _release(self, *_: Any) -> None:
        self._desk.release(*self._at())

    def _move(self, *_: Any) -> None:
        self._desk.move(*self._at(), moves=bool(self._window.interactor.GetShiftKey()))


def run(session: Session, inbox: Inbox, *, width: int, height: int, folder: Path | None = None) -> None:
    """Show a session in a window until it is closed (or Ctrl+Q)."""
    window = Window(session, width=width, height=height)
    desk = Desk(session, inbox, window, folder=folder)
    _hands = _Hands(window, desk)
    window.interactor.Initialize()
    desk.turn(time.time(), time.monotonic())
    window.interactor.CreateRepeatingTimer(TIMER_MS)
    window.interactor.Start()
    window.close()


__all__ = ["KEYS", "Window", "key_name", "run"]
