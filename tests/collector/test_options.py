"""Argument over variable over default, and what means nothing is said in one line."""

from __future__ import annotations

import pytest

from fulgurite.collector.config import Listen, Settings
from fulgurite.collector.options import UsageError, parse

VARIABLES = {
    "FULGURITE_COLLECTOR_LISTEN": "127.0.0.1:5000",
    "FULGURITE_REDIS": "redis://one",
    "FULGURITE_DURABILITY": "always",
    "FULGURITE_RETENTION_S": "60",
    "FULGURITE_RETENTION_BYTES": "2097152",
    "FULGURITE_INSECURE": "true",
}


def test_without_anything_the_defaults_hold() -> None:
    assert parse([], {}) == Settings()
    assert parse([], dict.fromkeys(VARIABLES, "")) == Settings()
    assert str(Settings().listen) == "127.0.0.1:4747"


def test_a_variable_stands_over_the_default() -> None:
    assert parse([], VARIABLES) == Settings(
        listen=Listen("127.0.0.1", 5000),
        redis_url="redis://one",
        durability="always",
        retention_s=60.0,
        retention_bytes=2 << 20,
        insecure=True,
    )


def test_an_argument_stands_over_the_variable() -> None:
    arguments = ["--listen", "[::1]:6000", "--redis", "memory://", "--durability", "none"]
    arguments += ["--retention-s", "90.5", "--retention-bytes", "1048576"]
    assert parse(arguments, {**VARIABLES, "FULGURITE_INSECURE": "no"}) == Settings(
        listen=Listen("::1", 6000),
        redis_url="memory://",
        durability="none",
        retention_s=90.5,
        retention_bytes=1 << 20,
    )


def test_a_public_address_needs_to_be_meant() -> None:
    with pytest.raises(UsageError) as error:
        parse(["--listen", "0.0.0.0:4747"], {})
    assert str(error.value) == (
        "0.0.0.0:4747 can be reached from other machines, and nobody would have to show credentials: "
        "give --credentials FILE or --tls-client-ca FILE, listen on 127.0.0.1, or say --insecure if the "
        "network is trusted"
    )
    assert parse(["--listen", "0.0.0.0:4747", "--insecure"], {}).insecure


@pytest.mark.parametrize(
    ("arguments", "variables", "reason"),
    [
        (
            ["--listen", "here"],
            {},
            "not an address to listen on: 'here'; write HOST:PORT, such as 127.0.0.1:4747",
        ),
        (
            [],
            {"FULGURITE_COLLECTOR_LISTEN": "127.0.0.1:70000"},
            "not an address to listen on: '127.0.0.1:70000'; write HOST:PORT, such as 127.0.0.1:4747",
        ),
        (
            ["--durability", "some"],
            {},
            "no such durability: 'some'; choose one of none, everysec, always, waitaof",
        ),
        (["--retention-s", "long"], {}, "--retention-s is a number of seconds, not 'long'"),
        (["--retention-s", "0"], {}, "the retention must be 1 s to 30 days, not 0 s"),
        (["--retention-s", "nan"], {}, "the retention must be 1 s to 30 days, not nan s"),
        (
            [],
            {"FULGURITE_RETENTION_BYTES": "64M"},
            "FULGURITE_RETENTION_BYTES is a number of bytes, not '64M'",
        ),
        (["--retention-bytes", "5"], {}, "the retention must be at least 1048576 bytes, not 5"),
        ([], {"FULGURITE_INSECURE": "maybe"}, "FULGURITE_INSECURE is true or false, not 'maybe'"),
        (["--lisen", "x"], {}, "unrecognized arguments: --lisen x; see `fulgurite collector --help`"),
        (["--listen"], {}, "argument --listen: expected one argument; see `fulgurite collector --help`"),
    ],
)
def test_what_means_nothing_is_said(arguments: list[str], variables: dict[str, str], reason: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(arguments, variables)
    assert str(error.value) == reason
