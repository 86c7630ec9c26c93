"""`fulgurite trace`: one trace, from the HTTP client's span down to the tokens."""

from __future__ import annotations

import argparse
import json
import re

from fulgurite.cli.address import add_collector_argument
from fulgurite.cli.commands.command import Command

DESCRIPTION = """\
One trace as a tree: the spans that others sent to the collector by OTLP, and below the span that a request
ran under, the request itself with its tokens, put together from the frames that are stored.
"""


def _trace_id(text: str) -> str:
    """A trace id, or the traceparent header that it is in."""
    match = re.fullmatch(r"(?:00-)?([0-9a-fA-F]{32})(?:-[0-9a-fA-F]{16}-[0-9a-fA-F]{2})?", text.strip())
    if not match or not int(match[1], 16):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a trace id: 32 hexadecimal digits")
    return match[1].lower()


def _configure(parser: argparse.ArgumentParser) -> None:
    add_collector_argument(parser)
    parser.add_argument("trace", type=_trace_id, metavar="TRACE_ID", help="or a traceparent header")
    parser.add_argument(
        "--history",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how far back frames are looked for (default: 300)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _run(options: argparse.Namespace) -> int:
    from fulgurite.cli.client import Collector
    from fulgurite.cli.errors import CommandError
    from fulgurite.cli.trace import document, find, tree

    with Collector(options.collector) as collector:
        trace = find(collector, options.trace, history_s=options.history)
    if not trace.spans:
        raise CommandError(
            f"the collector at {options.collector} knows nothing of trace {options.trace}: spans and frames "
            "are kept for the collector's retention (--retention-s)"
        )
    print(json.dumps(document(trace), indent=2) if options.json else tree(trace))
    return 0


COMMAND = Command(
    name="trace",
    summary="one trace: the spans of others, and the tokens under them",
    description=DESCRIPTION,
    configure=_configure,
    run=_run,
)
