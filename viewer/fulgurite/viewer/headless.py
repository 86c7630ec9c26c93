"""A film or a picture of the live stream, without a window: drawn in real time, by the wall clock.

Where drawing is slower than the film's pictures per second, fewer are drawn and each stays longer: the
film's time is true, and a token is seen in it when it was seen live.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fulgurite.viewer.inbox import Inbox
from fulgurite.viewer.session import Session
from fulgurite.viewer.studio import Painter, png

WAIT_STEP_S = 0.05


class Film(Protocol):
    """What pictures are written to: `fulgurite.viewer.film.Mp4`."""

    def add(self, image: NDArray[np.uint8], at_s: float) -> None:
        """The picture (height, width, 3) that is seen from `at_s` on."""

    def close(self, end_s: float) -> None:
        """The last picture is seen until `end_s`; the file is complete."""


class NothingToSeeError(Exception):
    """No token came in time. The message says what was tried and what to do."""


@dataclass(frozen=True, slots=True)
class Shot:
    """What came of it.

    Attributes
    ----------
    pictures : drawn.
    tokens : lit while the film ran.
    replicas : names of those that were shown.
    seconds : length of the film.
    """

    pictures: int
    tokens: int
    replicas: tuple[str, ...]
    seconds: float


class Camera:
    """Films a session.

    Parameters
    ----------
    stopping : set where the film is to end early; what there is of it is kept.
    say : gets a line of progress now and then.
    """

    def __init__(
        self,
        session: Session,
        inbox: Inbox,
        painter: Painter,
        *,
        stopping: threading.Event,
        say: Callable[[str], None],
    ) -> None:
        self._session = session
        self._inbox = inbox
        self._painter = painter
        self._stopping = stopping
        self._say = say

    def wait(self, wait_s: float) -> None:
        """Until the first token is lit.

        Raises
        ------
        NothingToSeeError
            After `wait_s`.
        """
        deadline_s = time.monotonic() + wait_s
        told = ""
        while not self._session.tokens and not self._stopping.is_set():
            if time.monotonic() > deadline_s:
                raise NothingToSeeError(f"no token came within {wait_s:g} s: {self._reason()}")
            self._turn()
            if self._reason() != told and self._session.connected is not None:
                told = self._reason()
                self._say(f"waiting: {told}")
            self._stopping.wait(WAIT_STEP_S)

    def _reason(self) -> str:
        session = self._session
        if not session.connected:
            return session.down_reason or f"the collector at {session.address} did not answer yet"
        if not session.replicas:
            return f"the collector at {session.address} answers, but no replica sends to it"
        return f"{', '.join(map(session.name, session.replicas))}: there, but no token has come yet"

    def film(self, film: Film, *, seconds: float, fps: float) -> Shot:
        """Draw for `seconds`, at most `fps` pictures per second."""
        before, pictures = self._session.tokens, 0
        began_s = time.monotonic()
        at_s = 0.0
        try:
            while at_s < seconds and not self._stopping.is_set():
                film.add(self._picture(), at_s)
                pictures += 1
                due_s = began_s + (int(at_s * fps) + 1) / fps
                self._stopping.wait(max(0.0, due_s - time.monotonic()))
                at_s = time.monotonic() - began_s
        finally:  # what there is of it can be played
            length_s = min(seconds, time.monotonic() - began_s)
            film.close(length_s)
        return self._shot(pictures, before, length_s)

    def picture(self, path: Path, *, seconds: float) -> Shot:
        """Follow the stream for `seconds`, then save one picture as PNG."""
        before = self._session.tokens
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s and not self._stopping.is_set():
            self._picture()
            self._stopping.wait(WAIT_STEP_S)
        path.write_bytes(png(self._picture()))
        return self._shot(1, before, seconds)

    def _shot(self, pictures: int, before: int, seconds: float) -> Shot:
        session = self._session
        names = tuple(session.name(key) for key in session.shown)
        return Shot(pictures, session.tokens - before, names, seconds)

    def _turn(self) -> None:
        now_s = time.time()
        self._session.absorb(self._inbox.take(), now_s)
        self._session.advance(now_s)

    def _picture(self) -> NDArray[np.uint8]:
        self._turn()
        image = self._painter.render(self._session.scene_s, time.monotonic())
        self._session.on_screen(time.time())
        return image
