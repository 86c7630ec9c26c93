"""`fulgurite demo`: everything at once, on this machine, with a model that comes along."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fulgurite.cli.address import DEFAULT_COLLECTOR, DEFAULT_PAGE, Address
from fulgurite.cli.commands.command import Command
from fulgurite.cli.errors import CommandError

if TYPE_CHECKING:
    from fulgurite.cli.demo.plan import Options

DESCRIPTION = """\
Starts a collector with its embedded server, replicas of a small model under steady traffic, and the viewer,
each in its own process; Ctrl-C stops them all. The prompts are made up, and their text, which otherwise never
leaves a serving process, is switched on for them.
"""
HEADLESS_SECONDS = 15.0
SUFFIXES = (".mp4", ".png")
DEFAULT_PACE = 30.0


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _pace(text: str) -> float:
    return 0.0 if text == "0" else _positive(text)


def _replicas(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of replicas from 1 to 16")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def _out(text: str) -> Path:
    path = Path(text)
    if path.suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {' or '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.absolute().parent}")
    return path


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="ID_OR_PATH", help="a transformers model (default: bundled)")
    parser.add_argument("--replicas", type=_replicas, default=2, metavar="N", help="serving processes (2)")
    parser.add_argument(
        "--port", type=_port, metavar="P", help=f"of the page (default {DEFAULT_PAGE}, or a free one)"
    )
    parser.add_argument(
        "--pace",
        type=_pace,
        default=DEFAULT_PACE,
        metavar="TOKENS_PER_S",
        help=f"of each replica, so that people can follow (default {DEFAULT_PACE:g}; 0: as fast as it goes)",
    )
    parser.add_argument(
        "--headless", action="store_true", help="no page: write a film or picture, then leave"
    )
    parser.add_argument(
        "--seconds", type=_positive, metavar="N", help=f"leave after so long (headless: {HEADLESS_SECONDS:g})"
    )
    parser.add_argument("--out", type=_out, metavar="FILE", help="X.mp4 or X.png (with --headless)")
    parser.add_argument("--desktop", action="store_true", help="a native window in place of the page")
    parser.add_argument("--no-browser", action="store_true", help="print the page's address, open nothing")
    parser.add_argument("--verbose", action="store_true", help="pass on what the processes say")


def _run(options: argparse.Namespace) -> int:
    _check(options)
    from fulgurite.cli.extras import need

    need("demo", "demo")
    from fulgurite.cli.demo.ports import default_or_free, required
    from fulgurite.cli.demo.show import Show

    default_page = Address.parse(DEFAULT_PAGE)
    asked_page = None if options.port is None else Address(default_page.host, options.port)
    page = default_or_free(default_page) if asked_page is None else required(asked_page)
    collector = default_or_free(Address.parse(DEFAULT_COLLECTOR))
    plan = _plan(options, collector, page)
    _introduce(plan)
    return Show(plan, browser=not options.no_browser, verbose=options.verbose).run()


def _check(options: argparse.Namespace) -> None:
    if options.desktop and (options.headless or options.port is not None):
        raise CommandError("--desktop is a window: leave out --headless and --port", status=2)
    if options.desktop and sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        raise CommandError(
            "there is no display for a window: set DISPLAY, or leave out --desktop and take the page"
        )
    if options.headless and options.out is None:
        raise CommandError("--headless needs --out FILE.mp4 or FILE.png", status=2)
    if options.out is not None and not options.headless:
        raise CommandError("--out needs --headless", status=2)


def _plan(options: argparse.Namespace, collector: Address, page: Address) -> Options:
    from fulgurite.cli.demo.plan import Options

    return Options(
        collector=collector,
        page=page,
        page_was_asked_for=options.port is not None,
        model=options.model,
        replicas=options.replicas,
        pace=options.pace,
        seconds=options.seconds or (HEADLESS_SECONDS if options.headless else None),
        out=options.out,
        desktop=options.desktop,
    )


def _introduce(plan: Options) -> None:
    what = "the bundled model" if plan.model is None else plan.model
    pace = f"paced at {plan.pace:g} tokens/s each" if plan.pace else "as fast as they go"
    print(f"{plan.replicas} replicas of {what}, {pace}, one thread each; a collector; a viewer.")
    print("Token text is switched on for the demo's own made-up prompts; elsewhere it is off by default.")


COMMAND = Command(
    name="demo",
    summary="see it at once: collector, replicas of a small model, viewer",
    description=DESCRIPTION,
    configure=_configure,
    run=_run,
)
