"""`fulgurite export`: frames as files that analysis tools read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fulgurite.cli.address import add_collector_argument
from fulgurite.cli.commands.command import Command

FORMATS = ("parquet", "arrow", "jsonl", "perfetto")
SUFFIXES = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".jsonl": "jsonl",
    ".json": "perfetto",
}

DESCRIPTION = """\
What replicas measured, as a file. A row is a token:

  parquet   a column per channel, arrays as nested lists, units in the metadata (pandas, polars, DuckDB)
  arrow     the same as an Arrow IPC file
  jsonl     the frames as `fulgurite tail` prints them
  perfetto  requests and tokens as a timeline for ui.perfetto.dev and chrome://tracing

With --aggregates the rows are figures per request in place of tokens (parquet, arrow, jsonl).
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    add_collector_argument(parser)
    parser.add_argument(
        "out", type=Path, metavar="FILE", help="its ending says the format, unless --format does"
    )
    parser.add_argument("--format", choices=FORMATS)
    parser.add_argument(
        "--replica", action="append", default=[], metavar="SELECTOR", help="repeatable (default: all)"
    )
    parser.add_argument(
        "--history", type=float, default=300.0, metavar="SECONDS", help="begin so far back (default: 300)"
    )
    parser.add_argument(
        "--follow", type=float, default=0.0, metavar="SECONDS", help="and go on for so long (default: 0)"
    )
    parser.add_argument("--aggregates", action="store_true", help="a row per request")


def _run(options: argparse.Namespace) -> int:
    from fulgurite.cli.errors import CommandError
    from fulgurite.cli.export.files import write

    form = options.format or SUFFIXES.get(options.out.suffix.lower())
    if form is None:
        raise CommandError(
            f"which format is {options.out.name}? end it in {', '.join(SUFFIXES)}, or say --format", status=2
        )
    if options.aggregates and form == "perfetto":
        raise CommandError("perfetto shows requests and tokens together: leave --aggregates out", status=2)
    written = write(
        options.collector,
        options.out,
        form,
        selectors=options.replica,
        history_s=options.history,
        follow_s=options.follow,
        aggregates=options.aggregates,
    )
    print(f"{options.out}: {written.rows} rows of {written.replicas} replicas", file=sys.stderr)
    for gap in written.gaps:
        print(f"fulgurite export: {gap}", file=sys.stderr)
    return 0


COMMAND = Command(
    name="export",
    summary="frames as Parquet, Arrow, JSON lines or a Perfetto timeline",
    description=DESCRIPTION,
    configure=_configure,
    run=_run,
)
