"""Free ports."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from fulgurite.cli.address import Address
from fulgurite.cli.demo.ports import any_free, default_or_free, required
from fulgurite.cli.errors import CommandError


@pytest.fixture
def taken() -> Iterator[Address]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Address("127.0.0.1", listener.getsockname()[1])


def test_a_default_that_is_taken_gives_way_to_a_free_port(taken: Address) -> None:
    chosen = default_or_free(taken)
    assert chosen.port != taken.port
    assert default_or_free(chosen) == chosen


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(taken: Address) -> None:
    with pytest.raises(CommandError, match=f"port {taken.port} is in use: give another with --port"):
        required(taken)


def test_a_port_that_was_asked_for_and_is_free_is_used() -> None:
    free = any_free()
    assert required(free) == free
