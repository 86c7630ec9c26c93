"""Settings: argument over variable over default, and clear errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from fulgurite.agent.config import resource, settings


def test_the_defaults_are_those_of_the_documentation() -> None:
    found = settings(env={})
    assert (found.endpoint, found.level, found.tokens) == ("127.0.0.1:4747", "heads", "off")
    assert (found.deep_ratio, found.budget, found.spool, found.disabled) == (1 / 16, 0.02, None, False)


def test_a_variable_beats_the_default_and_an_argument_beats_the_variable() -> None:
    env = {
        "FULGURITE_LEVEL": "deep",
        "FULGURITE_TOKENS": "ids",
        "FULGURITE_ENDPOINT": "collector:99",
        "FULGURITE_DEEP_RATIO": "0.5",
        "FULGURITE_BUDGET": "0.1",
        "FULGURITE_SPOOL": "/nowhere/spool",
    }
    found = settings(env=env)
    assert (found.level, found.tokens, found.endpoint) == ("deep", "ids", "collector:99")
    assert (found.deep_ratio, found.budget, found.spool) == (0.5, 0.1, Path("/nowhere/spool"))
    assert settings(level="pulse", budget="none", env=env).level == "pulse"
    assert settings(budget="none", env=env).budget is None
    assert settings(budget=0, env=env).budget is None


def test_in_the_process_every_step_is_deep_and_no_budget_holds() -> None:
    found = settings(in_process=True, env={})
    assert (found.deep_ratio, found.budget) == (1.0, None)
    assert settings(deep_ratio=1.0, env={}).budget is None
    assert settings(in_process=True, budget=0.3, env={}).budget == 0.3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"level": "loud"}, "level must be one of off, pulse, heads, deep, not 'loud'"),
        ({"tokens": "yes"}, "tokens must be one of off, ids, text, not 'yes'"),
        ({"endpoint": "nowhere"}, "endpoint must be HOST:PORT, for example 127.0.0.1:4747, not 'nowhere'"),
        (
            {"endpoint": "host:70000"},
            "endpoint must be HOST:PORT, for example 127.0.0.1:4747, not 'host:70000'",
        ),
        ({"deep_ratio": 1.5}, "deep_ratio must be between 0 and 1, not 1.5"),
        (
            {"budget": 2},
            "budget must be a share of step time between 0 and 1, for example 0.02, or 'none', not 2",
        ),
        ({"budget": "lots"}, "budget must be a number, not 'lots'"),
        ({"spool": __file__}, f"spool must be a folder, but {__file__} is a file"),
    ],
)
def test_a_setting_that_means_nothing_is_refused_with_what_would_be_right(
    wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        settings(**wrong, env={})  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_switch_is_true_or_false() -> None:
    assert settings(env={"FULGURITE_DISABLED": "true"}).disabled
    assert settings(env={"OTEL_SDK_DISABLED": "TRUE"}).disabled
    assert not settings(env={"OTEL_SDK_DISABLED": "nonsense"}).disabled  # as OpenTelemetry has it
    with pytest.raises(ValueError, match="FULGURITE_DISABLED must be true or false, not 'maybe'"):
        settings(env={"FULGURITE_DISABLED": "maybe"})


def test_the_resource_follows_opentelemetry_and_each_process_is_its_own_instance() -> None:
    env = {
        "OTEL_SERVICE_NAME": "chat",
        "OTEL_RESOURCE_ATTRIBUTES": "service.namespace=prod,service.name=other,team=a%20b",
    }
    found = resource(env, model_name="tiny")
    assert (found["service.namespace"], found["service.name"], found["team"]) == ("prod", "chat", "a b")
    assert resource({}, model_name="tiny")["service.name"] == "tiny"
    assert resource({})["service.instance.id"] != resource({})["service.instance.id"]
    named = {"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=pod-7"}
    assert resource(named)["service.instance.id"] == "pod-7"
