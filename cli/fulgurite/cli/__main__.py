"""The program `fulgurite`: finds the command, runs it, turns expected failures into one line and a status.

Nothing but the standard library is imported before a command runs, so that `fulgurite --help` is instant and
works with the bare installation.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from fulgurite.cli import extras
from fulgurite.cli.commands import COMMANDS
from fulgurite.cli.errors import CommandError

INTERRUPTED = 130


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: the metadata costs as much as all the rest."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from fulgurite.cli.version import version

        print(f"fulgurite {version()}")
        parser.exit(0)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage, which may fill a screen, is for those who ask for it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see `{self.prog} --help`)\n")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole program."""
    root = _Parser(
        prog="fulgurite",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=16),
        description="See a language model work while it serves: every light is a measured quantity.",
    )
    root.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        own = commands.add_parser(
            command.name,
            help=command.summary,
            description=command.description or command.summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.configure(own)
        own.set_defaults(run=command.run)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns
    -------
    int
        Exit status: 0 done, 1 an expected failure (told in one line on stderr), 2 wrong arguments,
        130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    try:
        status = _run(name, arguments)
        sys.stdout.flush()
    except CommandError as error:
        return _fail(name, str(error), error.status)
    except ImportError as error:
        known = extras.failed_import(name, error)
        if known is None:
            raise
        return _fail(name, str(known), known.status)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has left (`… | head`). Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _run(name: str, arguments: list[str]) -> int:
    command = COMMANDS.get(name)
    if command is not None and command.pass_on is not None:
        return command.pass_on(arguments[1:])
    options = parser().parse_args(arguments)
    return int(options.run(options))


def _fail(name: str, message: str, status: int) -> int:
    program = f"fulgurite {name}" if name in COMMANDS else "fulgurite"
    print(f"{program}: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
