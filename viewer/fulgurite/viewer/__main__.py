"""`fulgurite view`: puts the viewer together, as a page or as a film.

Exit status: 0 done, 1 something is missing (an extra, a token, a drawing library), 2 the command line is
wrong or cannot be followed (an occupied port, an address that is no collector).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fulgurite.viewer.config import ViewConfig, parse, parse_address
from fulgurite.viewer.inbox import Inbox

if TYPE_CHECKING:
    from fulgurite.viewer.feed import Feed
    from fulgurite.viewer.headless import Camera, Shot
    from fulgurite.viewer.scene import Storm
    from fulgurite.viewer.studio import Painter

log = logging.getLogger("fulgurite.viewer")

PAGE_EXTRA = ("aiohttp", "PIL")
DRAWING_EXTRA = ("vtkmodules", "PIL")
REMOTE_EXTRA = ("trame", "trame_rca", "trame_vuetify", "wslink")
FILM_EXTRA = ("av",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fulgurite view` with these arguments; the exit status."""
    config = parse(argv)
    missing = missing_packages(config)
    if missing:
        return _fail(
            f"the viewer needs {', '.join(missing)}: install it with `pip install 'fulgurite[viewer]'`",
            1,
        )
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    foreign = _is_foreign(config)
    if foreign:
        return _fail(foreign, 2)
    if config.headless:
        return _film(config)
    if config.desktop:
        return _desktop(config)
    drawn_there = (files("fulgurite.viewer") / "page" / "index.html").is_file()
    return _page(config) if drawn_there and not config.remote else _remote_page(config)


def missing_packages(config: ViewConfig) -> list[str]:
    """What this command needs and is not installed."""
    film = FILM_EXTRA if config.out is not None and config.out.suffix.lower() == ".mp4" else ()
    wanted: tuple[str, ...] = PAGE_EXTRA
    if config.headless or config.remote or config.desktop:
        wanted = DRAWING_EXTRA + (film if config.headless else REMOTE_EXTRA if config.remote else ())
    return [name for name in wanted if find_spec(name) is None]


def _fail(line: str, status: int) -> int:
    print(f"fulgurite view: {line}", file=sys.stderr)
    return status


def _is_foreign(config: ViewConfig) -> str:
    """Why the collector's address is a mistake; empty where it is none: who is absent may still come."""
    from fulgurite.viewer.feed import probe

    found = probe(config.collector)
    return found.reason if found.answer in ("foreign", "refused") else ""


def _painter(storm: Storm, width: int, height: int) -> Painter:
    from fulgurite.viewer.vtk.probe import choose_backend

    choose_backend()
    from fulgurite.viewer.vtk.renderer import Renderer

    return Renderer(storm, width=width, height=height)


def _feed(config: ViewConfig, inbox: Inbox) -> Feed:
    from fulgurite.viewer.feed import Feed

    return Feed(config.collector, inbox, selectors=config.replicas, history_s=config.history_s)


def _page(config: ViewConfig) -> int:
    from fulgurite.viewer.remote import Remote
    from fulgurite.viewer.spans import Spans
    from fulgurite.viewer.story import Story
    from fulgurite.viewer.website import Website, is_free

    host, port = parse_address(config.listen)
    if not is_free(host, port):
        return _fail(_taken(config, host), 2)
    inbox = Inbox()
    story = Story(name=f"{time.time_ns():x}", address=config.collector)
    chosen = [argument for selector in config.replicas for argument in ("--replica", selector)]
    able = all(find_spec(name) is not None for name in DRAWING_EXTRA + REMOTE_EXTRA)
    remote = Remote(["--collector", config.collector, *chosen]) if able else None
    website = Website(story, inbox, token=config.token, remote=remote, spans=Spans(config.collector))
    feed = _feed(config, inbox).start()
    try:
        website.serve(host, port, on_ready=lambda bound: _announce(host, bound, config))
    finally:
        feed.close()
    return 0


def _taken(config: ViewConfig, host: str) -> str:
    return f"{config.listen} is in use: choose another with --listen {host}:PORT, or stop what is there"


def _remote_page(config: ViewConfig) -> int:
    from fulgurite.viewer.browser import Page
    from fulgurite.viewer.camera import PRESETS
    from fulgurite.viewer.session import Session
    from fulgurite.viewer.studio import Studio
    from fulgurite.viewer.website import is_free

    host, port = parse_address(config.listen)
    if not is_free(host, port):
        return _fail(_taken(config, host), 2)
    session, inbox = Session(address=config.collector), Inbox()
    session.storm.tokens_visible = False  # the page has its own strip
    page = Page(tuple((preset.label, preset.tooltip) for preset in PRESETS))
    studio = Studio(
        session,
        inbox,
        lambda: _painter(session.storm, config.width, config.height),
        on_picture=page.show,
        on_page=page.tell,
    )
    feed = _feed(config, inbox).start()
    studio.start()
    try:
        page.serve(host, port, studio, on_ready=lambda bound: _announce(host, bound, config))
    finally:
        studio.close()
        feed.close()
    return 0


def _announce(host: str, port: int, config: ViewConfig) -> None:
    shown = f"[{host}]" if ":" in host else host
    _say(f"http://{shown}:{port}/ shows what comes from {config.collector}")


def _desktop(config: ViewConfig) -> int:
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        return _fail(
            "there is no display for a window: set DISPLAY, or leave out --desktop and take the page",
            1,
        )
    from fulgurite.viewer.session import Session
    from fulgurite.viewer.vtk.window import run

    session, inbox = Session(address=config.collector), Inbox()
    feed = _feed(config, inbox).start()
    try:
        run(session, inbox, width=config.width, height=config.height)
    finally:
        feed.close()
    return 0


def _film(config: ViewConfig) -> int:
    from fulgurite.viewer.headless import Camera, NothingToSeeError
    from fulgurite.viewer.session import Session

    session, inbox, stopping = Session(address=config.collector), Inbox(), _stop_signals()
    feed = _feed(config, inbox).start()
    painter: Painter | None = None
    try:
        painter = _painter(session.storm, config.width, config.height)
        camera = Camera(session, inbox, painter, stopping=stopping, say=_say)
        camera.wait(config.wait_s)
        shot = _shoot(config, camera)
    except NothingToSeeError as nothing:
        return _fail(str(nothing), 1)
    except OSError as error:
        return _fail(f"{config.out} cannot be written: {error}", 1)
    finally:
        if painter is not None:
            painter.close()
        feed.close()
    _say(
        f"{config.out}: {shot.seconds:.1f} s, {shot.pictures} pictures, {shot.tokens} tokens of "
        f"{len(shot.replicas)} replica{'s' if len(shot.replicas) != 1 else ''} ({', '.join(shot.replicas)})"
    )
    return 0


def _shoot(config: ViewConfig, camera: Camera) -> Shot:
    assert config.out is not None
    if config.out.suffix.lower() == ".png":
        return camera.picture(config.out, seconds=config.seconds)
    from fulgurite.viewer.film import Mp4

    return camera.film(
        Mp4(config.out, config.width, config.height, fps=config.fps), seconds=config.seconds, fps=config.fps
    )


def _say(line: str) -> None:
    print(f"fulgurite view: {line}", flush=True)


def _stop_signals() -> threading.Event:
    """Set by SIGINT and SIGTERM."""
    stopping = threading.Event()
    handler: Callable[..., None] = lambda *_: stopping.set()  # noqa: E731
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    return stopping


if __name__ == "__main__":
    sys.exit(main())
