"""`fulgurite collector`: hands its arguments to the collector's own program."""

from __future__ import annotations

import argparse

from fulgurite.cli.commands.command import Command


def _pass_on(arguments: list[str]) -> int:
    from fulgurite.collector.__main__ import main

    return int(main(arguments) or 0)


def _run(_: argparse.Namespace) -> int:
    return _pass_on([])


COMMAND = Command(
    name="collector",
    summary="take in frames from agents, store them, hand them to viewers",
    run=_run,
    pass_on=_pass_on,
)
