"""A request that ended as OpenTelemetry spans, and the other way round.

The request span carries the GenAI attributes under the trace that it ran under; where it is sampled, arrays
with one value per token; where that is asked for, a child span per token. Never a span per layer or head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fulgurite.telemetry.names import OPERATION, SCOPE
from fulgurite.telemetry.requests import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

ARRAYS: Final[dict[str, tuple[str, type]]] = {
    "sequence": ("fulgurite.token.sequence", int),
    "position": ("fulgurite.token.position", int),
    "started_ns": ("fulgurite.token.started_ns", int),
    "ended_ns": ("fulgurite.token.ended_ns", int),
    "batch_size": ("gen_ai.iteration.per_token_batch_size", int),
    "logprob": ("fulgurite.token.logprob", float),
    "entropy": ("fulgurite.token.entropy", float),
    "kv_tokens": ("fulgurite.token.kv_tokens", int),
    "head_write_max": ("fulgurite.token.head_write.max", float),
    "head_write_layer": ("fulgurite.token.head_write.layer", int),
    "head_write_head": ("fulgurite.token.head_write.head", int),
    "ffn_write_mean": ("fulgurite.token.ffn_write.mean", float),
}
"""Column of a record: the attribute that carries it, without loss."""
_OUTCOMES: Final = {"finished": "", "aborted": "aborted", "given_up": "no_end_was_heard"}
_SAMPLED: Final = 1


def request_attributes(record: RequestRecord, model: str, provider: str) -> dict[str, Any]:
    """The attributes of the request span, without arrays."""
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": OPERATION,
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": record.request_id,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "fulgurite.replica": record.replica,
        "fulgurite.sequences": record.sequences,
    }
    if record.outcome == "finished" and record.reason:
        attributes["gen_ai.response.finish_reasons"] = (record.reason,)
    if record.first_token_s is not None:
        attributes["fulgurite.time_to_first_token"] = record.first_token_s
    if record.drafted_tokens:
        attributes["fulgurite.drafted_tokens"] = record.drafted_tokens
        attributes["fulgurite.accepted_tokens"] = record.accepted_tokens
    missing = record.output_tokens - len(record.columns.get("position", ()))
    if missing > 0:
        attributes["fulgurite.frames.missing"] = missing
    if record.outcome != "finished":
        attributes["error.type"] = record.reason or _OUTCOMES[record.outcome]
    return attributes


def token_arrays(record: RequestRecord) -> dict[str, tuple[int | float, ...]]:
    """The attributes with one value per token, in order of sequence and position."""
    if not record.columns:
        return {}
    arrays = {
        attribute: tuple(map(kind, record.columns[column].tolist()))
        for column, (attribute, kind) in ARRAYS.items()
        if column in record.columns
    }
    seconds = generation_times(record).tolist()
    return {"gen_ai.latency.per_token_generation_time": tuple(seconds), **arrays}


def generation_times(record: RequestRecord) -> np.ndarray[Any, Any]:
    """Seconds that each token took: since the one before it in its sequence; the first, since the request
    started."""
    ended_ns, sequence = record.columns["ended_ns"], record.columns["sequence"]
    before_ns = np.concatenate([[record.started_ns], ended_ns[:-1]])
    is_first = np.concatenate([[True], sequence[1:] != sequence[:-1]])
    took_ns: np.ndarray[Any, Any] = ended_ns - np.where(is_first, record.started_ns, before_ns)
    seconds: np.ndarray[Any, Any] = np.maximum(0, took_ns) / 1e9
    return seconds


def columns_of(attributes: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The columns of a record from the arrays of its span: what `token_arrays` wrote, without loss."""
    return {
        column: np.asarray(attributes[attribute], np.int64 if kind is int else np.float64)
        for column, (attribute, kind) in ARRAYS.items()
        if attribute in attributes
    }


def spans_of(
    record: RequestRecord,
    resource: Resource,
    *,
    model: str,
    provider: str,
    because: str = "",
    with_tokens: bool = False,
) -> list[ReadableSpan]:
    """The spans of a request.

    Parameters
    ----------
    because : why it carries the arrays (``ratio``, ``slow``, ``failed``, ``diverging``, ``asked``); empty: it
        carries none.
    with_tokens : whether every token gets a child span.
    """
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

    scope = InstrumentationScope(SCOPE)

    def context(span_id: str, *, is_remote: bool = False) -> SpanContext:
        return SpanContext(int(record.own_trace_id, 16), int(span_id, 16), is_remote, TraceFlags(_SAMPLED))

    attributes = request_attributes(record, model, provider)
    if because:
        attributes |= {"fulgurite.sampled.because": because, **token_arrays(record)}
    failed = record.outcome != "finished"
    root = ReadableSpan(
        name=f"{OPERATION} {model}",
        context=context(record.own_span_id),
        parent=context(record.span_id, is_remote=True) if record.span_id else None,
        resource=resource,
        attributes=attributes,
        kind=SpanKind.INTERNAL,
        instrumentation_scope=scope,
        status=Status(StatusCode.ERROR, record.reason or record.outcome) if failed else Status(),
        start_time=record.started_ns,
        end_time=max(record.started_ns, record.ended_ns),
    )
    spans = [root]
    if with_tokens and record.columns:
        for row in range(len(record.columns["position"])):
            values = _token_values(record, row)
            spans.append(
                ReadableSpan(
                    name="fulgurite.token",
                    context=context(_token_span_id(record, row)),
                    parent=root.context,
                    resource=resource,
                    attributes=values,
                    kind=SpanKind.INTERNAL,
                    instrumentation_scope=scope,
                    start_time=int(record.columns["started_ns"][row]),
                    end_time=int(record.columns["ended_ns"][row]),
                )
            )
    return spans


def _token_values(record: RequestRecord, row: int) -> dict[str, Any]:
    values = {
        attribute: kind(record.columns[column][row])
        for column, (attribute, kind) in ARRAYS.items()
        if column in record.columns and not column.endswith("_ns")
    }
    return {name: value for name, value in values.items() if value == value}  # a NaN says nothing


def _token_span_id(record: RequestRecord, row: int) -> str:
    place = (int(record.columns["sequence"][row]) << 32) + int(record.columns["position"][row]) + 1
    return f"{int(record.own_span_id, 16) ^ (place * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF:016x}"
