"""`HOST:PORT`, read from an argument or a variable."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

DEFAULT_COLLECTOR = "127.0.0.1:4747"
DEFAULT_PAGE = "127.0.0.1:8747"
COLLECTOR_VARIABLES = ("FULGURITE_COLLECTOR", "FULGURITE_ENDPOINT")


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a TCP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``host:port`` or ``[v6 address]:port``.

        Raises
        ------
        ValueError
            With what was expected.
        """
        host, separator, port = text.strip().rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not separator or not bare or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"{text!r} is not HOST:PORT, such as {DEFAULT_COLLECTOR}")
        return cls(bare, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def address_argument(text: str) -> Address:
    """`Address.parse` as an argument's type: argparse shows the message."""
    try:
        return Address.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_collector_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--collector HOST:PORT`: argument over variable over default."""
    variable = next((os.environ[name] for name in COLLECTOR_VARIABLES if os.environ.get(name)), None)
    parser.add_argument(
        "--collector",
        type=address_argument,
        default=variable or DEFAULT_COLLECTOR,
        metavar="HOST:PORT",
        help=f"the collector (variable {COLLECTOR_VARIABLES[0]}, default {DEFAULT_COLLECTOR})",
    )
