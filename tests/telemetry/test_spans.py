"""The request span: named by the conventions, joined to its trace, and read back without loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.telemetry.made import SPAN, START_NS, TRACE, batch, block, ended, started
from tests.telemetry.receiver import attributes_of

from fulgurite.telemetry.encode import resource_for, spans_request
from fulgurite.telemetry.names import SPAN_ATTRIBUTES
from fulgurite.telemetry.requests import RequestRecord, Requests
from fulgurite.telemetry.spans import columns_of, spans_of

RESOURCE = {"service.name": "served", "service.instance.id": "i"}


def record_of(*blocks: Any, **end: Any) -> RequestRecord:
    requests = Requests("d/served/i")
    found = requests.fold(batch(*blocks, events=(started(sequences=len(blocks)), ended(**end))))
    (record,) = found or requests.give_up(START_NS + 10**12)
    return record


def sent(record: RequestRecord, **how: Any) -> list[Any]:
    """The spans as a receiver reads them."""
    spans = spans_of(record, resource_for(RESOURCE), model="tiny", provider="transformers", **how)
    request = ExportTraceServiceRequest.FromString(spans_request(spans))
    (resource,) = request.resource_spans
    assert attributes_of(resource.resource.attributes) == RESOURCE
    (scope,) = resource.scope_spans
    return list(scope.spans)


TYPES = {"string": str, "int": int, "double": float}


def test_every_attribute_is_in_the_table_and_has_its_type() -> None:
    (span,) = sent(record_of(block(4), block(3, sequence=1)), because="slow")
    found = attributes_of(span.attributes)
    assert found
    for name, value in found.items():
        kind = SPAN_ATTRIBUTES[name]
        if kind.endswith("[]"):
            assert value
            assert all(isinstance(item, TYPES[kind[:-2]]) for item in value), name
        else:
            assert isinstance(value, TYPES[kind]), name


def test_the_span_says_what_the_conventions_want() -> None:
    (span,) = sent(record_of(block(4)))
    found = attributes_of(span.attributes)
    assert span.name == "text_completion tiny"
    assert span.kind == 1, "INTERNAL: the model is in this process"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
    assert found["gen_ai.response.finish_reasons"] == ["stop"]
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (5, 4)
    assert span.start_time_unix_nano == START_NS
    assert span.end_time_unix_nano == START_NS + 100_000_000
    assert not any(name.startswith("fulgurite.token.") for name in found), "arrays only where sampled"


def test_a_failed_request_is_an_error_with_its_type() -> None:
    (span,) = sent(record_of(block(2), kind="aborted", reason="OutOfMemoryError"))
    assert span.status.code == 2
    found = attributes_of(span.attributes)
    assert found["error.type"] == "OutOfMemoryError"
    assert "gen_ai.response.finish_reasons" not in found


def test_arrays_come_back_as_they_went() -> None:
    record = record_of(block(40), block(7, sequence=1, logprob=np.full(7, np.nan, np.float32)))
    (span,) = sent(record, because="ratio")
    back = columns_of(attributes_of(span.attributes))
    assert set(back) == set(record.columns)
    for name, column in record.columns.items():
        np.testing.assert_array_equal(back[name], column, err_msg=name)


def test_a_span_per_token_is_a_child_with_an_id_of_its_own() -> None:
    root, *tokens = sent(record_of(block(4), block(3, sequence=1)), with_tokens=True)
    assert len(tokens) == 7
    assert {span.parent_span_id for span in tokens} == {root.span_id}
    assert {span.trace_id for span in tokens} == {root.trace_id}
    assert len({span.span_id for span in [root, *tokens]}) == 8
    assert attributes_of(tokens[0].attributes)["fulgurite.token.position"] == 5


def test_a_request_without_a_trace_gets_one_of_its_own() -> None:
    bare = block(1)
    bare = type(bare)((type(bare.requests[0])("r"),), bare.columns)
    (span,) = sent(record_of(bare))
    assert span.parent_span_id == b""
    assert len(span.trace_id) == 16
    assert any(span.trace_id)


@pytest.mark.parametrize("tokens", [0, 1])
def test_short_requests_have_spans_too(tokens: int) -> None:
    blocks = (block(1),) * tokens
    (span,) = sent(record_of(*blocks), because="asked")
    assert attributes_of(span.attributes)["gen_ai.usage.output_tokens"] == tokens
