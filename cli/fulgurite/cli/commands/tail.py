"""`fulgurite tail`: what replicas measure, as JSON lines."""

from __future__ import annotations

import argparse
import json
import math

from fulgurite.cli.address import add_collector_argument
from fulgurite.cli.commands.command import Command

DESCRIPTION = """\
What replicas measure, one JSON object a line, until Ctrl-C. The field `type` says what a line is:

  replica      a replica that follows, with the shape of its model
  frame        one generated token with every captured channel
  event        what happened to a request: started, finished, aborted, preempted
  gap          frames that this reader did not get, and why
  caught_up    from here on the frames of this replica are live (with --history)
  undecodable  a batch that could not be read, and why

A channel that was not captured is absent; an undefined value is null.
"""


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of frames: 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds: 0 or more")
    return value


def _configure(parser: argparse.ArgumentParser) -> None:
    add_collector_argument(parser)
    parser.add_argument(
        "--replica",
        action="append",
        default=[],
        metavar="SELECTOR",
        help="[NAMESPACE/]SERVICE[/INSTANCE], repeatable (default: all)",
    )
    parser.add_argument(
        "--history", type=_seconds, default=0.0, metavar="SECONDS", help="begin so far back (default: now)"
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="leave after N frames")


def _run(options: argparse.Namespace) -> int:
    from fulgurite.cli.client import Collector
    from fulgurite.cli.tail import Tail

    tail = Tail(limit=options.limit)
    with Collector(options.collector) as collector:
        for message in collector.watch(options.replica, history_s=options.history):
            for line in tail.lines(message):
                print(json.dumps(line, ensure_ascii=False), flush=True)
            if tail.is_done:
                break
    return 0


COMMAND = Command(
    name="tail",
    summary="what replicas measure, as JSON lines",
    description=DESCRIPTION,
    configure=_configure,
    run=_run,
)
