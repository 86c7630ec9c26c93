"""`fulgurite replicas`: the replicas that a collector knows, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
import sys
import time

from fulgurite.cli.address import add_collector_argument
from fulgurite.cli.commands.command import Command


def _configure(parser: argparse.ArgumentParser) -> None:
    add_collector_argument(parser)
    parser.add_argument(
        "selectors",
        nargs="*",
        metavar="REPLICA",
        help="[NAMESPACE/]SERVICE[/INSTANCE] (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document; null: nothing was measured")


def _run(options: argparse.Namespace) -> int:
    from fulgurite.cli.client import Collector
    from fulgurite.cli.status import record, row, rows_table

    with Collector(options.collector) as collector:
        response = collector.replicas(options.selectors)
    now_ns = time.time_ns()
    rows = sorted((row(status, now_ns=now_ns) for status in response.replicas), key=lambda r: r.replica)
    if options.json:
        document = {"collector": str(options.collector), "store": response.store}
        print(json.dumps({**document, "replicas": [record(replica) for replica in rows]}, indent=2))
    elif rows:
        print(rows_table(rows))
    else:
        which = f" matches {' '.join(options.selectors)}" if options.selectors else " has reported yet"
        print(f"the collector at {options.collector} is up; no replica{which}", file=sys.stderr)
    return 0


COMMAND = Command(
    name="replicas",
    summary="the replicas that a collector knows, as a table",
    description="The replicas that a collector knows: what each is and what it did in its last seconds.",
    configure=_configure,
    run=_run,
)
