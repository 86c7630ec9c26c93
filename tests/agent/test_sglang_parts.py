"""What of the plugin for SGLang can be asked without SGLang; the rest is in tests/engines."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fulgurite.agent.engines.sglang import frontend, plugin

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{SPAN}-01"}


def _asked(sampling_params: Any, headers: dict[str, str]) -> Any:
    asked = SimpleNamespace(sampling_params=sampling_params)
    given: list[Any] = []

    def original(manager: Any, obj: Any, request: Any) -> str:
        given.append((manager, obj, request))
        return "a generator"

    request = SimpleNamespace(headers=headers)
    assert frontend.asking(original, "manager", asked, request) == "a generator"
    assert given == [("manager", asked, request)]
    return asked.sampling_params


@pytest.mark.parametrize("params", [None, {}, {"temperature": 0.5}, {"custom_params": {"mine": 1}}])
def test_the_trace_goes_along_and_is_taken_out_again(params: Any) -> None:
    mine = (params or {}).get("custom_params")
    made = _asked(params, HEADERS)
    received = SimpleNamespace(**made)
    assert frontend.told_of(received) == {"trace_id": TRACE, "span_id": SPAN}
    assert received.custom_params == mine
    assert frontend.told_of(received) == {}


def test_each_of_several_prompts_carries_it() -> None:
    made = _asked([{"temperature": 0}, {}], HEADERS)
    assert [frontend.told_of(SimpleNamespace(**one))["trace_id"] for one in made] == [TRACE, TRACE]


@pytest.mark.parametrize(
    "headers", [{}, {"traceparent": "00-nonsense-01"}, {"traceparent": f"00-{'0' * 32}-{SPAN}-01"}]
)
def test_without_a_trace_nothing_is_touched(headers: dict[str, str]) -> None:
    assert _asked({"temperature": 0}, headers) == {"temperature": 0}


def test_nothing_is_done_where_nothing_is_configured() -> None:
    assert not plugin.activate({})


def test_a_version_that_is_not_known_is_left_alone_with_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plugin, "_installed_version", lambda: "9.9.9")
    for _ in range(2):
        assert not plugin.activate({"FULGURITE_LEVEL": "heads"})
    (line,) = [record.message for record in caplog.records]
    assert "9.9.9" in line
    assert plugin.SUPPORTED[-1] in line
