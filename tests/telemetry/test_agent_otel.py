"""The agent in an OpenTelemetry set-up that exists: the host's own provider, reader and exporters."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from tests.telemetry.made import SPAN, TOPOLOGY, TRACE, block, ended, started
from tests.telemetry.receiver import attributes_of, grpc_receiver

from fulgurite.agent.exporter import InMemoryExporter
from fulgurite.agent.otel import CollectorSpanExporter, RequestMetricReader, RequestTelemetry, Several
from fulgurite.telemetry.sampling import Sampling

RESOURCE = {"service.name": "served", "service.instance.id": "i"}


class Spans(SpanExporter):
    """Keeps what a provider exports."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS


class Metrics(MetricExporter):
    """Keeps what a reader exports last."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def export(self, metrics_data: MetricsData, timeout_millis: float = 0, **_: Any) -> MetricExportResult:
        self.names = {
            metric.name
            for resource in metrics_data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 0) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 0, **_: Any) -> None:
        pass


def attached(telemetry: Any) -> Any:
    telemetry.attach(TOPOLOGY, level="heads", ceiling="heads", tokens="text", resource=RESOURCE)
    return telemetry


def ask(telemetry: Any, name: str = "r", *, kind: str = "finished") -> None:
    telemetry.event(started(name))
    telemetry.export(block(4, request=name))
    telemetry.event(ended(name, kind=kind, reason="stop" if kind == "finished" else "OutOfMemoryError"))


def test_the_hosts_provider_gets_a_span_per_request_under_the_hosts_trace() -> None:
    kept = Spans()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    telemetry = attached(RequestTelemetry(tracer_provider=provider, sampling=Sampling(ratio=1.0), env={}))
    ask(telemetry)
    ask(telemetry, "broken", kind="aborted")
    assert telemetry.flush(10.0)
    telemetry.close()
    one, broken = kept.spans
    assert one.name == "text_completion tiny"
    assert (f"{one.context.trace_id:032x}", f"{one.parent.span_id:016x}") == (TRACE, SPAN)  # type: ignore[union-attr]
    assert one.attributes["gen_ai.usage.output_tokens"] == 4  # type: ignore[index]
    assert len(one.attributes["fulgurite.token.logprob"]) == 4  # type: ignore[index, arg-type]
    assert not broken.status.is_ok
    account = telemetry.stats()
    assert (account.captured, account.acknowledged, account.pending) == (8, 8, 0)


def test_no_id_and_no_text_is_ever_in_a_span() -> None:
    kept = Spans()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    telemetry = attached(RequestTelemetry(tracer_provider=provider, sampling=Sampling(ratio=1.0), env={}))
    made = block(4, token_id=np.arange(4, dtype=np.int32) + 7_654_321)
    telemetry.event(started())
    telemetry.export(type(made)(made.requests, made.columns, ("a", "b", "c", "secret")))
    telemetry.event(ended())
    assert telemetry.flush(10.0)
    told = kept.spans[0].to_json()
    assert "secret" not in told
    assert "7654321" not in told


def test_the_reader_exports_our_figures_with_those_of_the_host() -> None:
    telemetry, kept = attached(RequestTelemetry(env={})), Metrics()
    reader = RequestMetricReader(kept, telemetry, export_interval_millis=float("inf"))
    provider = MeterProvider(metric_readers=[reader])
    ask(telemetry)
    assert telemetry.flush(10.0)
    reader.collect()
    ours = set(kept.names)
    assert {"gen_ai.server.time_to_first_token", "fulgurite.tokens"} <= ours, "also without instruments"
    provider.get_meter("host").create_counter("host.requests").add(1)
    reader.collect()
    assert kept.names == ours | {"host.requests"}
    provider.shutdown()
    telemetry.close()


def test_spans_and_metrics_go_by_otlp_without_a_collector() -> None:
    with grpc_receiver() as (endpoint, kept):
        telemetry = attached(RequestTelemetry(env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}))
        ask(telemetry)
        assert telemetry.flush(10.0)
        telemetry.close()
        assert [span.name for _, span in kept.spans] == ["text_completion tiny"]
        assert "fulgurite.tokens" in {metric.name for _, metric in kept.metrics}


def test_a_real_model_is_told_by_otlp_where_the_variables_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra: model")
    transformers = pytest.importorskip("transformers", reason="needs the extra: model")
    from fulgurite.agent import instrument

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with grpc_receiver() as (endpoint, kept):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("FULGURITE_OTLP", "only")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "a-service")
        agent = instrument(model, level="heads", budget="none")
        ids = torch.randint(3, 64, (2, 5))
        with torch.inference_mode():
            model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
        agent.close()
        ((resource, span),) = kept.spans
        found = attributes_of(span.attributes)
        assert resource["service.name"] == "a-service"
        assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (10, 12)
        assert found["gen_ai.response.finish_reasons"] == ["length"]
        names = {metric.name for _, metric in kept.metrics}
        assert {"fulgurite.layer.head_write", "gen_ai.server.request.duration"} <= names


def test_several_exporters_get_the_same_and_name_one_instance() -> None:
    kept, telemetry = InMemoryExporter(), RequestTelemetry(env={})
    several = Several(kept, telemetry)
    several.attach(TOPOLOGY, level="heads", ceiling="heads", tokens="off", resource={"service.name": "s"})
    ask(several)
    assert several.flush(5.0)
    assert len(kept.frames) == telemetry.stats().acknowledged == 4
    (snapshot,) = telemetry.snapshots()
    assert snapshot.resource["service.instance.id"] == kept.resource["service.instance.id"]
    several.close()
    with pytest.raises(ValueError, match="at least one"):
        Several()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_child_of_a_fork_begins_anew() -> None:
    telemetry = attached(RequestTelemetry(env={}))
    ask(telemetry)
    assert telemetry.flush(5.0)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        ask(telemetry, "in the child")
        done = telemetry.flush(5.0)
        os.write(write, f"{done} {telemetry.stats().captured}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 100) == b"True 4"
    assert telemetry.stats().captured == 4
    telemetry.close()


def test_a_full_queue_lets_the_oldest_go_and_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulgurite.agent.otel.MOST_FRAMES", 10)
    telemetry = attached(RequestTelemetry(env={}))
    monkeypatch.setattr(telemetry, "_start", lambda: None)  # nobody folds
    for at in range(15):
        telemetry.export(block(2, request=str(at)))
    account = telemetry.stats()
    assert account.dropped == {"outbox_full": 10}
    assert account.captured == account.pending + 10
    telemetry.close()
    assert telemetry.stats().pending == 0


def test_the_hosts_own_spans_reach_a_collector_and_are_accounted_for() -> None:
    with grpc_receiver() as (endpoint, kept):
        exporter = CollectorSpanExporter(endpoint.removeprefix("http://"))
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        for n in range(3):
            with provider.get_tracer("host").start_as_current_span(f"work {n}"):
                time.sleep(0.001)
        assert exporter.force_flush()
        assert exporter.account().acknowledged == 3
        provider.shutdown()
        assert [span.name for _, span in kept.spans] == ["work 0", "work 1", "work 2"]


def test_a_word_that_means_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from fulgurite.agent import config

    with pytest.raises(ValueError, match="FULGURITE_OTLP"):
        config.otlp({"FULGURITE_OTLP": "maybe"})
