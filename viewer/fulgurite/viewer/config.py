"""Settings of the viewer: argument over `FULGURITE_*` variable over default."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_COLLECTOR = "127.0.0.1:4747"
DEFAULT_PAGE = "127.0.0.1:8747"
FILM_SUFFIXES = (".mp4", ".png")


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewConfig:
    """What `fulgurite view` was asked for.

    Attributes
    ----------
    collector, listen : ``HOST:PORT``.
    replicas : selectors ``[namespace/]service[/instance]``; empty: every replica.
    history_s : how much of the past is asked for when the viewer comes, in seconds.
    width, height : of the film in pixels; the page takes the browser's size.
    wait_s : how long the film waits for the first token.
    desktop : a native window in place of the page.
    remote : the scene is drawn here, one camera for all, in place of in each browser.
    token : what a browser must show to be served; empty: nothing.
    """

    collector: str = DEFAULT_COLLECTOR
    listen: str = DEFAULT_PAGE
    replicas: tuple[str, ...] = ()
    history_s: float = 60.0
    headless: bool = False
    seconds: float = 10.0
    out: Path | None = None
    width: int = 1280
    height: int = 720
    fps: float = 24.0
    wait_s: float = 60.0
    desktop: bool = False
    remote: bool = False
    token: str = ""


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[IPV6]:PORT``.

    Raises
    ------
    ValueError
        With what was given and what is wanted.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not host or (":" in host and not text.startswith("[")):
        raise ValueError(f"{text!r} is not an address: write HOST:PORT, for example {DEFAULT_COLLECTOR}")
    if not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text!r} has no usable port: write HOST:PORT with a port from 0 to 65535")
    return host, int(port)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in pixels of ``1280x720``.

    Raises
    ------
    ValueError
        With what was given and what is wanted.
    """
    width, x, height = text.lower().partition("x")
    if not x or not width.isdecimal() or not height.isdecimal():
        raise ValueError(f"{text!r} is not a size: write WIDTHxHEIGHT, for example 1280x720")
    size = int(width), int(height)
    if not all(64 <= side <= 8192 for side in size):
        raise ValueError(f"{text!r} is out of range: each side must be 64 to 8192 pixels")
    return size


def parser(environ: Mapping[str, str] = os.environ) -> argparse.ArgumentParser:
    """The command line of `fulgurite view`; defaults come from `environ`."""
    made = argparse.ArgumentParser(
        prog="fulgurite view",
        description="See the tokens of running models as lightning: in a page, or as a film or picture.",
    )
    add = made.add_argument
    add(
        "--collector",
        metavar="HOST:PORT",
        default=environ.get("FULGURITE_COLLECTOR") or environ.get("FULGURITE_ENDPOINT") or DEFAULT_COLLECTOR,
        help="where frames come from (default: %(default)s)",
    )
    add(
        "--listen",
        metavar="HOST:PORT",
        default=environ.get("FULGURITE_VIEW_LISTEN") or DEFAULT_PAGE,
        help="where the page is served (default: %(default)s)",
    )
    add(
        "--replica",
        metavar="SELECTOR",
        action="append",
        default=[],
        help="show only these replicas, [namespace/]service[/instance]; repeatable",
    )
    add("--history", type=float, default=60.0, metavar="S", help="seconds of the past to begin with (60)")
    add(
        "--remote",
        action="store_true",
        help="draw here, with one camera for all: for browsers without WebGL2",
    )
    add(
        "--token",
        default=environ.get("FULGURITE_VIEW_TOKEN") or "",
        help="serve the page only to who shows this token (or FULGURITE_VIEW_TOKEN)",
    )
    add("--desktop", action="store_true", help="a native window in place of the page")
    add("--headless", action="store_true", help="no page: render a film or a picture to --out")
    add(
        "--seconds",
        type=float,
        metavar="N",
        help="length of the film (10), or the time before the picture (4)",
    )
    add("--out", type=Path, metavar="FILE", help="FILE.mp4 or FILE.png")
    add("--size", default="1280x720", metavar="WxH", help="of the film or picture (default: %(default)s)")
    add("--fps", type=float, default=24.0, metavar="N", help="most frames per second of the film (24)")
    add("--wait", type=float, default=60.0, metavar="S", help="seconds to wait for the first token (60)")
    return made


def parse(argv: Sequence[str] | None, environ: Mapping[str, str] = os.environ) -> ViewConfig:
    """Settings of a command line. A wrong one ends the program with status 2 and one clear line."""
    options = parser(environ)
    given = options.parse_args(argv)
    try:
        width, height = parse_size(given.size)
        parse_address(given.collector)
        parse_address(given.listen)
        _check(given)
    except ValueError as error:
        options.error(str(error))
    return ViewConfig(
        collector=given.collector,
        listen=given.listen,
        replicas=tuple(given.replica),
        history_s=given.history,
        desktop=given.desktop,
        headless=given.headless,
        seconds=_seconds(given),
        out=given.out,
        width=width,
        height=height,
        fps=given.fps,
        wait_s=given.wait,
        remote=given.remote,
        token=given.token,
    )


def _seconds(given: argparse.Namespace) -> float:
    if given.seconds is not None:
        return float(given.seconds)
    return 4.0 if given.out is not None and given.out.suffix.lower() == ".png" else 10.0


def _check(given: argparse.Namespace) -> None:
    if not 0.0 <= given.history <= 3600.0:
        raise ValueError(f"--history must be 0 to 3600 seconds, not {given.history:g}")
    if given.remote and given.token:
        raise ValueError(
            "--token is for the page that draws for itself: put --remote behind a proxy that asks"
        )
    if given.desktop and (given.headless or given.remote):
        raise ValueError("--desktop is a window: leave out --headless and --remote")
    if not given.headless:
        if given.out is not None:
            raise ValueError("--out needs --headless")
        return
    if given.out is None:
        raise ValueError("--headless needs --out FILE.mp4 or --out FILE.png")
    if given.out.suffix.lower() not in FILM_SUFFIXES:
        raise ValueError(f"--out {given.out} is neither .mp4 nor .png")
    if not given.out.absolute().parent.is_dir():
        raise ValueError(f"--out {given.out}: the folder {given.out.absolute().parent} does not exist")
    if not 0.0 < _seconds(given) <= 3600.0:
        raise ValueError(f"--seconds must be over 0 and at most 3600, not {given.seconds:g}")
    if not 1.0 <= given.fps <= 120.0:
        raise ValueError(f"--fps must be 1 to 120, not {given.fps:g}")
    if given.wait < 0.0:
        raise ValueError(f"--wait must be 0 or more seconds, not {given.wait:g}")
