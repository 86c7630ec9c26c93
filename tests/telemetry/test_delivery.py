"""The way out: exact accounts against real receivers that refuse, throttle, take a part, or are not there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.telemetry.receiver import Answer, Kept, grpc_receiver, http_receiver
from tests.telemetry.test_spans import record_of

from fulgurite.telemetry.delivery import Delivery
from fulgurite.telemetry.encode import resource_for, spans_request
from fulgurite.telemetry.otlp import Target, sender_for, target_for
from fulgurite.telemetry.spans import spans_of

RECEIVERS = {"grpc": grpc_receiver, "http/protobuf": http_receiver}


def spans(count: int) -> list[Any]:
    one = spans_of(record_of(), resource_for({"service.name": "s"}), model="m", provider="p")
    return one * count


@contextmanager
def way_out(endpoint: str, protocol: str = "grpc", **how: Any) -> Iterator[Delivery]:
    target = target_for("traces", endpoint=endpoint, env={"OTEL_EXPORTER_OTLP_PROTOCOL": protocol})
    assert target is not None
    delivery = Delivery(
        "traces", sender_for("traces", target), spans_request, **{"first_retry_s": 0.05, **how}
    )
    try:
        yield delivery
    finally:
        delivery.close(0.1)
        account = delivery.account()
        assert account.pending == 0
        assert account.captured == account.acknowledged + sum(account.dropped.values())


@pytest.fixture(params=["grpc", "http/protobuf"])
def receiver(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, Kept]]:
    with RECEIVERS[request.param]() as (endpoint, kept):
        yield request.param, endpoint, kept


def test_everything_arrives_once(receiver: tuple[str, str, Kept]) -> None:
    protocol, endpoint, kept = receiver
    with way_out(endpoint, protocol) as delivery:
        for _ in range(4):
            delivery.put(spans(300))
        assert delivery.flush(10.0)
        assert delivery.account().acknowledged == 1200
    assert len(kept.spans) == 1200


def test_an_outage_is_retried_and_nothing_is_lost_or_doubled(receiver: tuple[str, str, Kept]) -> None:
    protocol, endpoint, kept = receiver
    kept.answers[:] = [Answer("UNAVAILABLE"), Answer("UNAVAILABLE")]
    with way_out(endpoint, protocol) as delivery:
        delivery.put(spans(10))
        assert delivery.flush(10.0)
        assert delivery.account().acknowledged == 10
    assert kept.calls == 3
    assert len(kept.spans) == 10


def test_what_cannot_be_taken_is_not_sent_again(receiver: tuple[str, str, Kept]) -> None:
    protocol, endpoint, kept = receiver
    kept.answers[:] = [Answer("INVALID_ARGUMENT")]
    with way_out(endpoint, protocol) as delivery:
        delivery.put(spans(10))
        assert delivery.flush(10.0)
        assert delivery.account().dropped == {"refused": 10}
    assert kept.calls == 1


def test_a_partial_success_is_counted_and_never_retried(receiver: tuple[str, str, Kept]) -> None:
    protocol, endpoint, kept = receiver
    kept.answers[:] = [Answer(rejected=3)]
    with way_out(endpoint, protocol) as delivery:
        delivery.put(spans(10))
        assert delivery.flush(10.0)
        account = delivery.account()
        assert (account.acknowledged, account.dropped) == (7, {"rejected": 3})
    assert kept.calls == 1


def test_exhausted_is_retried_only_with_a_time_to_wait() -> None:
    with grpc_receiver() as (endpoint, kept), way_out(endpoint) as delivery:
        kept.answers[:] = [Answer("RESOURCE_EXHAUSTED", retry_after_s=0.01)]
        delivery.put(spans(2))
        assert delivery.flush(10.0)
        assert (kept.calls, delivery.account().acknowledged) == (2, 2)
        kept.answers[:] = [Answer("RESOURCE_EXHAUSTED")]
        delivery.put(spans(2))
        assert delivery.flush(10.0)
        assert (kept.calls, delivery.account().dropped) == (3, {"refused": 2})


def test_a_full_queue_lets_the_oldest_go() -> None:
    with grpc_receiver() as (endpoint, kept), way_out(endpoint, most_items=100) as delivery:
        kept.answers[:] = [Answer("UNAVAILABLE")] * 3
        for _ in range(10):
            delivery.put(spans(50))
        assert delivery.flush(10.0)
        account = delivery.account()
        assert account.dropped["queue_full"] >= 300
        assert account.acknowledged == len(kept.spans) == 500 - account.dropped["queue_full"]


def test_nobody_there_blocks_nobody() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, and nobody listens
        with way_out(f"http://127.0.0.1:{held.getsockname()[1]}") as delivery:
            delivery.put(spans(10))
            assert not delivery.flush(0.3)
            assert delivery.account().pending == 10
        assert delivery.account().dropped == {"closed": 10}


def test_it_gives_up_in_the_end() -> None:
    with grpc_receiver() as (endpoint, kept), way_out(endpoint, give_up_s=0.2) as delivery:
        kept.answers[:] = [Answer("UNAVAILABLE")] * 100
        delivery.put(spans(10))
        assert delivery.flush(10.0)
        assert delivery.account().dropped == {"gave_up": 10}


def test_headers_and_compression_are_those_of_the_variables() -> None:
    env = {
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret,x=y%20z",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }
    with http_receiver() as (endpoint, kept):
        target = target_for("traces", endpoint=endpoint, env=env)
        assert target is not None
        delivery = Delivery("traces", sender_for("traces", target), spans_request)
        delivery.put(spans(1))
        assert delivery.flush(10.0)
        delivery.close()
        headers = kept.headers[0]
        assert (headers["Api-Key"], headers["X"], headers["Content-Encoding"]) == ("secret", "y z", "gzip")
        assert len(kept.spans) == 1


@pytest.mark.parametrize(
    ("env", "place", "protocol", "secure"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, "c:4317", "grpc", False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c"}, "c:4317", "grpc", True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces", "http/protobuf", False),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:9/base/",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            },
            "http://c:9/base/v1/traces",
            "http/protobuf",
            False,
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:1/own",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317",
            },
            "http://t:1/own",
            "http/protobuf",
            False,
        ),
    ],
)
def test_the_variables_mean_what_opentelemetry_says(
    env: dict[str, str], place: str, protocol: str, secure: bool
) -> None:
    target = target_for("traces", env=env)
    assert isinstance(target, Target)
    assert (target.endpoint, target.protocol, target.secure) == (place, protocol, secure)


def test_nothing_is_sent_where_nothing_is_named_or_the_sdk_is_disabled() -> None:
    assert target_for("traces", env={}) is None
    assert target_for("traces", endpoint="http://c", env={"OTEL_SDK_DISABLED": "true"}) is None


@pytest.mark.parametrize("endpoint", ["ftp://c", "http://", "http://c:99999"])
def test_an_endpoint_that_means_nothing_is_refused_in_one_line(endpoint: str) -> None:
    with pytest.raises(ValueError, match="write http://HOST:PORT"):
        target_for("traces", endpoint=endpoint, env={})


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_receiver_that_hangs_keeps_nobody_from_leaving(protocol: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hung:  # takes connections, answers nothing
        with way_out(f"http://127.0.0.1:{hung.getsockname()[1]}", protocol) as delivery:
            for _ in range(200):
                delivery.put(spans(10))
            assert not delivery.flush(0.2)
        assert delivery.account().dropped == {"closed": 2000}
