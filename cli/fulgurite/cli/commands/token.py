"""`fulgurite token`: makes a token, and the entry for the collector's credentials file that knows it."""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import sys

from fulgurite.cli.commands.command import Command
from fulgurite.cli.errors import CommandError

SCOPES = ("ingest", "view", "admin")
PREFIX = "fg_"
"""So that scanners for secrets can find one that was left somewhere."""

DESCRIPTION = """\
Make a token. It goes to standard output, once; the entry that knows it, with nothing but its hash, goes to
standard error, or is added to the file that --add names:

  fulgurite token --name "chat servers" --scope ingest --replica 'prod/chat/*' --add credentials.toml > token

The collector that was started with `--credentials credentials.toml` knows it within a second. Agents, viewers
and commands show it with FULGURITE_TOKEN, or FULGURITE_TOKEN_FILE.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, help="what logs and messages call it")
    parser.add_argument("--scope", action="append", required=True, choices=SCOPES, help="repeatable")
    parser.add_argument(
        "--replica",
        action="append",
        default=[],
        metavar="NAMESPACE/SERVICE/INSTANCE",
        help="what it may write, with * and ?; repeatable; needed for ingest",
    )
    parser.add_argument("--add", metavar="FILE", help="add the entry to this file")


def entry(token: str, *, name: str, scopes: list[str], replicas: list[str]) -> str:
    """The entry that knows `token`, in TOML. A JSON string is one of TOML as well."""
    lines = [
        "[[credential]]",
        f"name = {json.dumps(name)}",
        f'token_sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"',
        f"scopes = {json.dumps(scopes)}",
    ]
    if replicas:
        lines.append(f"replicas = {json.dumps(replicas)}")
    return "\n".join(lines) + "\n"


def _run(options: argparse.Namespace) -> int:
    scopes = list(dict.fromkeys(options.scope))
    if "ingest" in scopes and not options.replica:
        raise CommandError(
            "a token that may ingest names what it may write: --replica 'prod/chat/*'", status=2
        )
    for pattern in options.replica:
        if pattern != "*" and (pattern.count("/") != 2 or not all(pattern.split("/")[1:])):
            raise CommandError(f"--replica is NAMESPACE/SERVICE/INSTANCE or '*', not {pattern!r}", status=2)
    token = PREFIX + secrets.token_urlsafe(32)
    made = entry(token, name=options.name, scopes=scopes, replicas=options.replica)
    if options.add is None:
        sys.stderr.write(made)
    else:
        _add(options.add, made)
    print(token)
    return 0


def _add(path: str, made: str) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(("\n" if file.tell() else "") + made)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from None


COMMAND = Command(
    name="token",
    summary="make a token for agents, viewers or administrators",
    description=DESCRIPTION,
    configure=_configure,
    run=_run,
)
