"""Free TCP ports on this machine."""

from __future__ import annotations

import socket

from fulgurite.cli.address import Address
from fulgurite.cli.errors import CommandError


def is_free(address: Address) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, address.port))
            listener.listen(1)
        except OSError:
            return False
    return True


def any_free(host: str = "127.0.0.1") -> Address:
    """An address with a port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        return Address(host, listener.getsockname()[1])


def default_or_free(default: Address) -> Address:
    """`default`, or another port of the same host where that one is taken."""
    return default if is_free(default) else any_free(default.host)


def required(address: Address) -> Address:
    """`address`, which was asked for.

    Raises
    ------
    CommandError
        Where something listens there already.
    """
    if not is_free(address):
        raise CommandError(f"port {address.port} is in use: give another with --port, or leave it out")
    return address
