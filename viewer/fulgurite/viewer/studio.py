"""The drawing thread of the page: takes what the feed brought, moves time, draws, encodes, hands over.

It owns the session and the renderer: nobody else touches them. Others post what they want done; it is done
between two pictures. Nothing is drawn while nobody looks, or while nothing changes.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fulgurite.viewer.camera import Pick
from fulgurite.viewer.facts import facts
from fulgurite.viewer.inbox import Inbox
from fulgurite.viewer.pace import Pace
from fulgurite.viewer.session import Session
from fulgurite.viewer.timeline import Mode

log = logging.getLogger(__name__)

MOVING_QUALITY = 84
STILL_QUALITY = 94
STILL_AFTER_S = 0.35
IDLE_PERIOD_S = 0.1
PAGE_PERIOD_S = 0.2
LARGEST_PIXELS = 2_600_000


class Painter(Protocol):
    """What draws a session: `fulgurite.viewer.vtk.renderer.Renderer`."""

    def render(self, now_s: float, clock_s: float | None = None) -> NDArray[np.uint8]:
        """The picture at `now_s`, the camera as it is at `clock_s`: RGB, shape (height, width, 3)."""

    def resize(self, width: int, height: int) -> None:
        """Draw at this size from now on, in pixels."""

    def pick(self, x: float, y: float) -> tuple[str, Pick] | None:
        """The replica and the node under a pixel of the picture that was drawn last."""

    def place(self, key: str, node: Pick) -> tuple[float, float, float] | None:
        """Where a node is seen in the picture that was drawn last: x, y and its reach, in pixels."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture."""

    jpeg: bytes
    width: int
    height: int
    made_ns: int


def encoded(image: NDArray[np.uint8], *, still: bool) -> bytes:
    """`image` (height, width, 3) as JPEG; a still one with its colours at full resolution."""
    buffer = io.BytesIO()
    quality, subsampling = (STILL_QUALITY, "4:4:4") if still else (MOVING_QUALITY, "4:2:0")
    Image.fromarray(image).save(buffer, "jpeg", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def png(image: NDArray[np.uint8]) -> bytes:
    """`image` (height, width, 3) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


class Studio:
    """Draws a session for the page.

    Parameters
    ----------
    on_picture, on_page : called on the drawing thread with every new picture, and with what the page shows
        around it.
    """

    def __init__(
        self,
        session: Session,
        inbox: Inbox,
        open_painter: Callable[[], Painter],
        *,
        on_picture: Callable[[Picture], None],
        on_page: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._session = session
        self._inbox = inbox
        self._open_painter = open_painter
        self._on_picture = on_picture
        self._on_page = on_page
        self._posted: deque[Callable[[Session], None]] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._pace = Pace()
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="fulgurite-encoder")
        self._encoding: Future[None] | None = None
        self._asked_size = (1280, 720)
        self._size = (0, 0)
        self._watchers = 0
        self._stale = True
        self._still = False
        self._pointer: tuple[float, float] | None = None
        self._clicks: deque[tuple[float, float]] = deque(maxlen=4)
        self._image: NDArray[np.uint8] | None = None
        self._drawn_s = 0.0
        self._told_s = 0.0
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fulgurite-studio", daemon=True)

    def start(self) -> Studio:
        """Begin to draw."""
        self._thread.start()
        return self

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop drawing and give the window back."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def post(self, action: Callable[[Session], None]) -> None:
        """Have `action` done to the session, and its result drawn."""
        self._posted.append(action)
        self._wake.set()

    def look(self, watchers: int) -> None:
        """So many pages are open."""
        self._watchers = watchers
        self._stale = True
        self._wake.set()

    def resize(self, width: int, height: int) -> None:
        """A page shows the picture at this size, in pixels."""
        self._asked_size = (max(64, width), max(64, height))
        self._stale = True
        self._wake.set()

    def point(self, at: tuple[float, float] | None) -> None:
        """The pointer is there, in shares of the picture's width and height; None: it left."""
        self._pointer = at
        self._wake.set()

    def click(self, at: tuple[float, float]) -> None:
        """A click there: the card of that node stays."""
        self._clicks.append(at)
        self._wake.set()

    def picture(self, give: Callable[[bytes], None]) -> None:
        """Hand the picture on screen to `give`, as PNG."""
        self.post(lambda _session: give(png(self._image)) if self._image is not None else None)

    def _run(self) -> None:
        try:
            painter = self._open_painter()
        except Exception as error:
            log.exception("the scene cannot be drawn")
            self.failure = error
            self._on_page({"fg_failure": f"The scene cannot be drawn: {error}. Ask `fulgurite doctor`."})
            return
        try:
            while not self._closing.is_set():
                self._wake.clear()
                began_s = time.monotonic()
                self._turn(painter)
                self._rest(began_s)
        except Exception as error:
            log.exception("drawing failed")
            self.failure = error
            self._on_page({"fg_failure": f"Drawing failed: {error}. The log says where."})
        finally:
            self._encoder.shutdown()
            painter.close()

    def _rest(self, began_s: float) -> None:
        period_s = self._pace.period_s if self._watchers and not self._still else IDLE_PERIOD_S
        left_s = began_s + period_s - time.monotonic()
        if self._watchers and not self._still:
            self._closing.wait(max(0.002, left_s))
        else:
            self._wake.wait(max(0.002, left_s))

    def _turn(self, painter: Painter) -> None:
        while self._posted:
            self._posted.popleft()(self._session)
            self._stale = True
        now_s = time.time()
        self._session.absorb(self._inbox.take(), now_s)
        changed = self._session.advance(now_s) or self._stale
        if not self._watchers:
            return
        if changed:
            self._draw(painter, still=False)
            self._still = False
        elif not self._still and time.monotonic() - self._drawn_s > STILL_AFTER_S:
            self._draw(painter, still=True)
            self._still = True
        self._aim(painter)
        if time.monotonic() - self._told_s >= PAGE_PERIOD_S or self._stale:
            self._told_s = time.monotonic()
            self._on_page(facts(self._session))
        self._stale = False

    def _aim(self, painter: Painter) -> None:
        """Which node the pointer is over; who points hears of it at once."""
        session, before = self._session, (self._session.hovered, self._session.pinned)
        if self._pointer is not None or session.hovered is not None:
            session.hover(None if self._pointer is None else self._under(painter, self._pointer))
        while self._clicks:
            session.pin(self._under(painter, self._clicks.popleft()))
        if (session.hovered, session.pinned) != before:
            self._told_s = 0.0
        place = painter.place(*session.inspected) if session.inspected is not None else None
        width, height = self._size
        session.mark_at(None if place is None else (place[0] / width, place[1] / height, place[2] / height))

    def _under(self, painter: Painter, at: tuple[float, float]) -> tuple[str, Pick] | None:
        return painter.pick(at[0] * self._size[0], at[1] * self._size[1])

    def _draw(self, painter: Painter, *, still: bool) -> None:
        began_s = time.perf_counter()
        self._fit(painter, 1.0 if still else self._pace.scale)
        held = self._session.timeline.mode is Mode.PAUSED
        if not held:
            self._session.storm.arcs = self._pace.arcs
        self._session.storm.shed = 0 if still else self._pace.shed
        image = painter.render(self._session.scene_s, time.monotonic())
        if self._encoding is not None:
            self._encoding.result()  # one picture is drawn while the one before is encoded, never more
        self._image = image
        self._encoding = self._encoder.submit(self._hand_over, image, still)
        self._session.on_screen(time.time())
        self._drawn_s = time.monotonic()
        if not still and self._pace.learn(time.perf_counter() - began_s, held=held):
            self._stale = True

    def _hand_over(self, image: NDArray[np.uint8], still: bool) -> None:
        height, width = image.shape[:2]
        self._on_picture(Picture(encoded(image, still=still), width, height, time.time_ns()))

    def _fit(self, painter: Painter, scale: float) -> None:
        width, height = self._asked_size
        most = min(1.0, (LARGEST_PIXELS / (width * height)) ** 0.5) * scale
        size = (int(width * most) // 2 * 2, int(height * most) // 2 * 2)
        if size != self._size:
            painter.resize(*size)
            self._size = size
