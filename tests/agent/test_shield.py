"""One shield: swallow, count, say once; in strict mode raise."""

from __future__ import annotations

import logging

import pytest

from fulgurite.agent.shield import Shield


def test_a_failure_is_swallowed_counted_and_logged_the_first_time(caplog: pytest.LogCaptureFixture) -> None:
    shield = Shield(strict=False)
    for _ in range(3):
        with shield.at("commit"):
            raise ZeroDivisionError("ours")
    assert shield.errors == {"commit:ZeroDivisionError": 3}
    assert [r.getMessage() for r in caplog.records] == [
        "commit failed and was left out (ours); the model is not affected"
    ]


def test_what_is_not_an_exception_of_ours_passes() -> None:
    shield = Shield(strict=False)
    with pytest.raises(KeyboardInterrupt), shield.at("commit"):
        raise KeyboardInterrupt
    assert shield.errors == {}


def test_strict_raises_and_still_counts() -> None:
    shield = Shield(strict=True)
    with pytest.raises(ZeroDivisionError), shield.at("commit"):
        raise ZeroDivisionError
    assert shield.errors == {"commit:ZeroDivisionError": 1}


def test_the_environment_decides_where_nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Shield().strict
    monkeypatch.setenv("FULGURITE_STRICT", "0")
    assert not Shield().strict


def test_a_line_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    shield = Shield(strict=False)
    with caplog.at_level(logging.WARNING, "fulgurite"):
        shield.say_once("a", "value %d", 1)
        shield.say_once("a", "value %d", 2)
        shield.say_once("b", "value %d", 3)
    assert [r.getMessage() for r in caplog.records] == ["value 1", "value 3"]
