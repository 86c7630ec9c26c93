"""`fulgurite status`: how a collector is, and every replica with its link and its ledger."""

from __future__ import annotations

import argparse
import json
import time

from fulgurite.cli.address import add_collector_argument
from fulgurite.cli.commands.command import Command


def _configure(parser: argparse.ArgumentParser) -> None:
    add_collector_argument(parser)
    parser.add_argument(
        "selectors", nargs="*", metavar="REPLICA", help="[NAMESPACE/]SERVICE[/INSTANCE] (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document; null: nothing is known")


def _run(options: argparse.Namespace) -> int:
    from fulgurite.cli import admin
    from fulgurite.cli.client import Collector

    with Collector(options.collector) as collector:
        told = collector.describe(options.selectors)
    process = admin.process(told, now_ns=time.time_ns())
    rows = sorted(map(admin.link_row, told.replicas), key=lambda row: row.replica)
    if options.json:
        print(json.dumps(admin.record(process, rows), indent=2))
    else:
        print(admin.text(process, rows, address=str(options.collector)))
    return 1 if process.store_away else 0


COMMAND = Command(
    name="status",
    summary="how a collector is: process, store, calls, links, ledgers",
    description="How a collector is, and every replica with its link and its ledger. Needs the scope admin "
    "where credentials are asked for. Exit status 1 while the store is away.",
    configure=_configure,
    run=_run,
)
