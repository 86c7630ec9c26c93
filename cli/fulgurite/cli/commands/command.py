"""What a command is to the program: a name, its arguments, and what runs it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


def no_arguments(_: argparse.ArgumentParser) -> None:
    """Add nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command.

    Defining one MUST cost nothing: whatever is not in the standard library is imported when it runs.

    Attributes
    ----------
    name, summary, description : str
        As the help prints them.
    run : callable
        Gets the parsed arguments, returns the exit status, raises `CommandError` where it cannot go on.
    configure : callable
        Adds the arguments to the parser.
    pass_on : callable, optional
        Gets the arguments unparsed in place of `run`: the part behind the command has a parser of its own.
    """

    name: str
    summary: str
    description: str = ""
    run: Callable[[argparse.Namespace], int]
    configure: Callable[[argparse.ArgumentParser], None] = no_arguments
    pass_on: Callable[[list[str]], int] | None = None
