"""`fulgurite telemetry`: hands its arguments to the telemetry process's own program."""

from __future__ import annotations

import argparse

from fulgurite.cli.commands.command import Command


def _pass_on(arguments: list[str]) -> int:
    from fulgurite.collector.telemetry.__main__ import main

    return int(main(arguments) or 0)


def _run(_: argparse.Namespace) -> int:
    return _pass_on([])


COMMAND = Command(
    name="telemetry",
    summary="send what collectors store by OTLP, and show it to Prometheus",
    run=_run,
    pass_on=_pass_on,
)
