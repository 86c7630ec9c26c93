"""`fulgurite control`: sets the level of replicas, pauses them, ends their capture, without touching them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from fulgurite.cli.address import add_collector_argument
from fulgurite.cli.commands.command import Command
from fulgurite.cli.errors import CommandError

LEVELS = ("off", "pulse", "heads", "deep", "own")


def _configure(parser: argparse.ArgumentParser) -> None:
    add_collector_argument(parser)
    parser.add_argument(
        "selectors", nargs="+", metavar="REPLICA", help="[NAMESPACE/]SERVICE[/INSTANCE]; * for all"
    )
    parser.add_argument(
        "--level",
        choices=LEVELS,
        help="what is captured, up to the ceiling of the attachment; own: what the process itself was told",
    )
    parser.add_argument(
        "--deep-ratio",
        metavar="RATIO",
        help="share of steps captured at deep, 0 to 1; own: what the process itself was told",
    )
    rest = parser.add_mutually_exclusive_group()
    rest.add_argument("--pause", action="store_true", help="capture nothing until --resume")
    rest.add_argument("--resume", action="store_true", help="undo --pause")
    rest.add_argument(
        "--kill", action="store_true", help="end the capture for good: until the process is started again"
    )


def _run(options: argparse.Namespace) -> int:
    from fulgurite.cli.client import Collector

    wanted = _wanted(options)
    if not wanted:
        raise CommandError(
            "nothing is asked for: say --level, --deep-ratio, --pause, --resume or --kill", status=2
        )
    with Collector(options.collector) as collector:
        states = collector.control(options.selectors, **wanted)
    if not states:
        raise CommandError(f"no replica matches {' '.join(options.selectors)}")
    for state in states:
        print(_told(state), file=sys.stderr if state.refusal else sys.stdout)
    return 1 if any(state.refusal for state in states) else 0


def _wanted(options: argparse.Namespace) -> dict[str, Any]:
    wanted: dict[str, Any] = {}
    if options.level is not None:
        wanted["level"] = "" if options.level == "own" else options.level
    if options.deep_ratio is not None:
        wanted["deep_ratio"] = _ratio(options.deep_ratio)
    if options.pause or options.resume:
        wanted["pause"] = options.pause
    if options.kill:
        wanted["kill"] = True
    return wanted


def _ratio(text: str) -> float:
    if text == "own":
        return -1.0
    try:
        ratio = float(text)
    except ValueError:
        ratio = float("nan")
    if not 0.0 <= ratio <= 1.0:
        raise CommandError(f"--deep-ratio is between 0 and 1, or own, not {text!r}", status=2)
    return ratio


def _told(state: Any) -> str:
    if state.refusal:
        return f"{state.key}: refused: {state.refusal}"
    control = state.control
    words = [f"level {control.level or 'its own'}"]
    if control.HasField("deep_ratio"):
        words.append(f"deep ratio {control.deep_ratio:g}")
    if control.pause:
        words.append("paused")
    if control.kill:
        words.append("capture ended")
    if state.state not in ("live", "idle"):
        words.append(f"it is {state.state}: this holds when it comes back")
    return f"{state.key}: {', '.join(words)}"


COMMAND = Command(
    name="control",
    summary="set the level of replicas, pause them, end their capture",
    description="Set what the agents of replicas capture. It takes effect within a second. A call in the "
    "serving process beats it, and its ceiling holds.",
    configure=_configure,
    run=_run,
)
