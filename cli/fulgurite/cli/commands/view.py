"""`fulgurite view`: hands its arguments to the viewer's own program."""

from __future__ import annotations

import argparse

from fulgurite.cli.commands.command import Command


def _pass_on(arguments: list[str]) -> int:
    from fulgurite.viewer.__main__ import main

    return int(main(arguments) or 0)


def _run(_: argparse.Namespace) -> int:
    return _pass_on([])


COMMAND = Command(
    name="view",
    summary="watch replicas: lightning in a browser page",
    run=_run,
    pass_on=_pass_on,
)
