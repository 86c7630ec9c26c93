"""`fulgurite run -- CMD…`: runs a Python server with the agent attached, without a change of its code."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from fulgurite.cli.address import DEFAULT_COLLECTOR
from fulgurite.cli.commands.command import Command
from fulgurite.cli.errors import CommandError

DESCRIPTION = """\
Runs a command in the place of this one: its signals, its output and its exit status are its own. In it, and
in every Python process that it starts, the models of transformers that are loaded are observed; vLLM is
observed through its own plugin system. The server's Python needs fulgurite installed.

  fulgurite run -- transformers serve
  fulgurite run --level deep -- gunicorn --preload app:app
  fulgurite run -- vllm serve MODEL

Options are shown here as arguments, and can be given as the variables FULGURITE_ENDPOINT, FULGURITE_LEVEL,
FULGURITE_TOKENS, FULGURITE_DEEP_RATIO and FULGURITE_BUDGET.
"""
SETTINGS = {
    "collector": "FULGURITE_ENDPOINT",
    "level": "FULGURITE_LEVEL",
    "tokens": "FULGURITE_TOKENS",
    "deep_ratio": "FULGURITE_DEEP_RATIO",
    "budget": "FULGURITE_BUDGET",
    "name": "OTEL_SERVICE_NAME",
}


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--collector", metavar="HOST:PORT", help=f"where frames go (default {DEFAULT_COLLECTOR})"
    )
    parser.add_argument(
        "--level", choices=("off", "pulse", "heads", "deep"), help="what is captured (default heads)"
    )
    parser.add_argument(
        "--tokens", choices=("off", "ids", "text"), help="what of a token may leave the process (default off)"
    )
    parser.add_argument("--deep-ratio", metavar="SHARE", help="share of steps at level deep (default 1/16)")
    parser.add_argument(
        "--budget", metavar="SHARE", help="share of step time that capture may take (default 0.02)"
    )
    parser.add_argument(
        "--name", metavar="SERVICE", help="service.name of the replica (default: the model's)"
    )
    parser.add_argument("command_line", nargs=argparse.REMAINDER, metavar="-- CMD…", help="what to run")


def environment(options: Mapping[str, object], env: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The environment in which the command runs.

    Parameters
    ----------
    folder : which Python looks into first.

    Raises
    ------
    CommandError
        For a setting that means nothing.
    """
    from fulgurite.agent import config

    given = {
        SETTINGS[name]: str(value)
        for name, value in options.items()
        if name in SETTINGS and value is not None
    }
    found = {**env, **given, "FULGURITE_RUN": "1"}
    places = [
        place for place in found.get("PYTHONPATH", "").split(os.pathsep) if place and place != str(folder)
    ]
    found["PYTHONPATH"] = os.pathsep.join([str(folder), *places])
    try:
        config.settings(env=found)
    except ValueError as error:
        raise CommandError(str(error), status=2) from None
    return found


def command_line(given: Sequence[str]) -> list[str]:
    """The command to run, with the path of its program.

    Raises
    ------
    CommandError
        Where there is none, or no such program.
    """
    words = list(given[1:] if given and given[0] == "--" else given)
    if not words:
        raise CommandError("name what to run, for example: fulgurite run -- transformers serve", status=2)
    program = shutil.which(words[0])
    if program is None:
        raise CommandError(f"there is no program {words[0]!r} to run", status=127)
    return [program, *words[1:]]


def _run(options: argparse.Namespace) -> int:
    words = command_line(options.command_line)
    import fulgurite.agent

    folder = Path(fulgurite.agent.__file__).with_name("autostart")
    env = environment(vars(options), os.environ, folder)
    try:
        os.execve(words[0], words, env)
    except OSError as error:
        raise CommandError(f"{words[0]} cannot be run: {error.strerror}", status=126) from None


COMMAND = Command(
    name="run",
    summary="run a Python server with the agent attached, no code change: run -- CMD…",
    description=DESCRIPTION,
    configure=_configure,
    run=_run,
)
