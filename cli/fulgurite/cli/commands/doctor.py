"""`fulgurite doctor`: what is installed, what is reachable, what draws, and how to mend what does not."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os

from fulgurite.cli.address import add_collector_argument
from fulgurite.cli.commands.command import Command

DESCRIPTION = """\
Looks at what is installed, whether this machine can draw, what is reachable and attached. Each line is

  ok       it works
  missing  it is not there; only what needs it does not work
  broken   it is there, or was asked for, and does not work

Exit status 1 where something is broken.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    add_collector_argument(parser)
    parser.add_argument(
        "--redis",
        default=os.environ.get("FULGURITE_REDIS") or None,
        metavar="URL",
        help="the Redis-compatible server to look for (variable FULGURITE_REDIS; default: the embedded one)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _run(options: argparse.Namespace) -> int:
    from fulgurite.cli.doctor.bundled import bundled_model
    from fulgurite.cli.doctor.finding import is_broken, report
    from fulgurite.cli.doctor.imports import installed
    from fulgurite.cli.doctor.reachable import collector, redis
    from fulgurite.cli.doctor.rendering import rendering

    findings = [
        *installed(),
        bundled_model(),
        *rendering(),
        *redis(options.redis),
        *collector(options.collector),
    ]
    if options.json:
        document = {
            "broken": is_broken(findings),
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        print(json.dumps(document, indent=2))
    else:
        print(report(findings))
    return 1 if is_broken(findings) else 0


COMMAND = Command(
    name="doctor",
    summary="what is installed, reachable and attached, and how to mend what is not",
    description=DESCRIPTION,
    configure=_configure,
    run=_run,
)
