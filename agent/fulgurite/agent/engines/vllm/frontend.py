"""The front end: what the HTTP request says of itself travels with it to the worker.

The worker knows a request by an internal id alone. So its public id, the sequences that it asks for and the
trace that it belongs to are put into ``SamplingParams.extra_args`` under one key, which vLLM carries along
and does not read. Nothing of the prompt is touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from fulgurite.agent.engines.vllm.around import around
from fulgurite.agent.shield import Shield

KEY = "fulgurite"
_parent: ContextVar[str] = ContextVar("fulgurite_traceparent", default="")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_COMPLETION = re.compile(r"(cmpl-.+)-(\d+)")
_shield = Shield()


def watch() -> None:
    """Wrap the reading of trace headers and the naming of requests."""
    from vllm.v1.engine.input_processor import InputProcessor

    around(InputProcessor, "assign_request_id", _named)
    try:
        from vllm.entrypoints.serve.engine.serving import BaseServing
    except ImportError:  # without the server there are no headers
        return
    around(BaseServing, "_get_trace_headers", _heard)


def _heard(original: Callable[..., Any]) -> Callable[..., Any]:
    async def get_trace_headers(self: Any, headers: Mapping[str, str]) -> Any:
        with _shield.at("headers"):
            _parent.set(headers.get("traceparent", ""))
        return await original(self, headers)

    return get_trace_headers


def _named(original: Callable[..., Any]) -> Callable[..., Any]:
    def assign_request_id(request: Any) -> Any:
        found = original(request)
        with _shield.at("request"):
            params = request.params
            if hasattr(params, "extra_args"):
                told = told_of(request.external_req_id, request.request_id, params.n, _parent.get())
                params.extra_args = {**(params.extra_args or {}), KEY: told}
        return found

    return assign_request_id


def told_of(public: str, internal: str, n: int, traceparent: str) -> dict[str, Any]:
    """What travels: the id in the HTTP response, the first of its sequences, and the trace.

    One completion request may hold several prompts; vLLM numbers them behind the id, and the choices of the
    response count on over them.

    Examples
    --------
    >>> told_of("cmpl-7-1", "cmpl-7-1-0abc", 2, "")["id"], told_of("cmpl-7-1", "i", 2, "")["first"]
    ('cmpl-7', 2)
    """
    match = _COMPLETION.fullmatch(public)
    name, prompt = (match[1], int(match[2])) if match else (public, 0)
    traced = _TRACEPARENT.fullmatch(traceparent.strip().lower())
    return {
        "id": name,
        "first": prompt * n,
        "internal": internal,
        "trace_id": traced[1] if traced else "",
        "span_id": traced[2] if traced else "",
    }
