"""The process that speaks HTTP: the trace of a request goes along with it to the scheduler's process.

SGLang hands its sampling parameters on whole, and reads `custom_params` of them only for a custom logits
processor; the scheduler's side takes our word out again before anybody reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fulgurite.agent.shield import Shield
from fulgurite.agent.surroundings import from_headers

KEY: Final = "fulgurite"
_shield = Shield()


def asking(original: Callable[..., Any], manager: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``TokenizerManager.generate_request(obj, request)``, which gives an asynchronous generator."""
    with _shield.at("asking"):
        asked = args[0] if args else kwargs.get("obj")
        request = args[1] if len(args) > 1 else kwargs.get("request")
        header = request.headers.get("traceparent", "") if request is not None else ""
        found = from_headers("", header)
        if found.trace_id:
            _note(asked, {"trace_id": found.trace_id, "span_id": found.span_id})
    return original(manager, *args, **kwargs)


def _note(asked: Any, told: dict[str, str]) -> None:
    params = getattr(asked, "sampling_params", None)
    if params is None and hasattr(asked, "sampling_params"):
        params = asked.sampling_params = {}
    for one in params if isinstance(params, list) else [params]:
        if isinstance(one, dict):
            one["custom_params"] = {**(one.get("custom_params") or {}), KEY: told}


def told_of(sampling_params: Any) -> dict[str, str]:
    """What `asking` noted, taken out of the sampling parameters; empty where it noted nothing."""
    custom = getattr(sampling_params, "custom_params", None)
    if not isinstance(custom, dict) or KEY not in custom:
        return {}
    told: dict[str, str] = custom[KEY]
    left = {name: value for name, value in custom.items() if name != KEY}
    sampling_params.custom_params = left or None
    return told
