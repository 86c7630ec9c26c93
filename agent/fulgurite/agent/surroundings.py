"""What surrounds a request: the trace and the id under which somebody asked for it.

From OpenTelemetry's current span, else from the HTTP request that is being served in this context, where
`fulgurite.agent.auto` notes its headers. A server's request may call `generate` more than once: each call is
a request of its own, the first one with the server's id.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from fulgurite.agent.identity import new_ref
from fulgurite.wire.frame import RequestRef

_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_NOTHING = ("0" * 32, "0" * 16)
MOST = 128  # characters of an id that somebody else made up


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of a server.

    Attributes
    ----------
    request_id : its own, empty where it has none.
    trace_id, span_id : of the caller, hexadecimal, empty where it told none.
    """

    request_id: str = ""
    trace_id: str = ""
    span_id: str = ""
    calls: Iterator[int] = field(default_factory=lambda: itertools.count(1))


_asked: ContextVar[Asked | None] = ContextVar("fulgurite_asked", default=None)


@contextmanager
def asked(found: Asked) -> Iterator[None]:
    """In this context, `found` is being served."""
    token = _asked.set(found)
    try:
        yield
    finally:
        try:
            _asked.reset(token)
        except ValueError:  # a generator that ends in another context than it began in
            pass


def named(request_id: str) -> Asked:
    """What is served now, under the id that the server itself gave it."""
    known = _asked.get()
    return Asked(request_id) if known is None else replace(known, request_id=request_id[:MOST])


def from_headers(request_id: str, traceparent: str) -> Asked:
    """A request by its headers, each of them empty where it was not sent."""
    found = _TRACEPARENT.match(traceparent)
    trace_id, span_id = found.groups() if found else ("", "")
    if _NOTHING[0] == trace_id or _NOTHING[1] == span_id:
        trace_id = span_id = ""
    return Asked(request_id[:MOST], trace_id, span_id)


def current_ref() -> RequestRef:
    """A new request in these surroundings."""
    from opentelemetry import trace

    known = _asked.get()
    context = trace.get_current_span().get_span_context()
    trace_id, span_id = ("", "") if known is None else (known.trace_id, known.span_id)
    if context.is_valid:
        trace_id, span_id = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
    return new_ref(trace_id, span_id, "" if known is None else _own_id(known))


def _own_id(known: Asked) -> str:
    if not known.request_id:
        return ""
    call = next(known.calls)
    return known.request_id if call == 1 else f"{known.request_id}#{call}"
