"""HOST:PORT."""

from __future__ import annotations

import argparse

import pytest

from fulgurite.cli.address import Address, add_collector_argument


@pytest.mark.parametrize("text", ["127.0.0.1:4747", "collector.example:1", "[::1]:65535"])
def test_an_address_reads_back_as_it_was_written(text: str) -> None:
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize("text", ["", ":", "host", "host:", ":1", "h:0", "h:65536", "h:-1", "h:http"])
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not HOST:PORT, such as 127\.0\.0\.1:4747"):
        Address.parse(text)


def test_the_argument_wins_over_the_variable_and_the_variable_over_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def chosen(*arguments: str) -> str:
        parser = argparse.ArgumentParser()
        add_collector_argument(parser)
        return str(parser.parse_args(arguments).collector)

    for name in ("FULGURITE_COLLECTOR", "FULGURITE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert chosen() == "127.0.0.1:4747"
    monkeypatch.setenv("FULGURITE_ENDPOINT", "agents:1")
    assert chosen() == "agents:1"
    monkeypatch.setenv("FULGURITE_COLLECTOR", "viewers:2")
    assert chosen() == "viewers:2"
    assert chosen("--collector", "argument:3") == "argument:3"
