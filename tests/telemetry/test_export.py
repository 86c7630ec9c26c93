"""From an agent's link to an OTLP receiver and to a real Prometheus, over real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from tests.system.conftest import Stage
from tests.telemetry.fleet import Replica, collector, fetch, port, steady, store
from tests.telemetry.made import SPAN, TRACE
from tests.telemetry.receiver import attributes_of, grpc_receiver, http_receiver

from fulgurite.telemetry.metrics import SERIES_BUDGET
from fulgurite.telemetry.names import BY_NAME, METRICS, OWN_METRICS

pytestmark = pytest.mark.system
ROOT = Path(__file__).parents[2]


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.clear()


@pytest.mark.parametrize("receiver", [grpc_receiver, http_receiver], ids=["grpc", "http"])
def test_spans_metrics_and_logs_reach_a_receiver(stage: Stage, tmp_path: Path, receiver: Any) -> None:
    with receiver() as (endpoint, kept):
        url = store(stage, tmp_path)
        protocol = "grpc" if receiver is grpc_receiver else "http/protobuf"
        telemetry = stage.python(
            "-m",
            "fulgurite.cli",
            *("telemetry", "--redis", url, "--otlp-export", endpoint, "--otlp-arrays", "1"),
            environment={"OTEL_EXPORTER_OTLP_PROTOCOL": protocol},
        )
        telemetry.says("reading")
        replicas = [Replica(collector(stage, url), "one")]
        with steady(replicas):
            kept.until(lambda: len(kept.spans) >= 25 and kept.metrics and kept.records)
        _, span = kept.spans[0]
        found = attributes_of(span.attributes)
        assert span.name == "text_completion tiny"
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
        assert len(found["fulgurite.token.logprob"]) == found["gen_ai.usage.output_tokens"] == 8
        failed = [s for _, s in kept.spans if s.status.code == 2]
        assert {attributes_of(s.attributes)["error.type"] for s in failed} == {"OutOfMemoryError"}
        assert {record.event_name for record in kept.records} >= {"fulgurite.request.started"}
        for resource, metric in kept.metrics:
            known = BY_NAME.get(metric.name) or {m.name: m for m in OWN_METRICS}[metric.name]
            assert (metric.unit, metric.description) == (known.unit, known.description)
            data = {"counter": "sum", "gauge": "gauge"}.get(known.kind, "histogram")
            assert metric.WhichOneof("data") == data, metric.name
            if data == "histogram":
                assert {tuple(p.explicit_bounds) for p in metric.histogram.data_points} == {known.buckets}
            if data == "sum":
                assert metric.sum.is_monotonic
                assert metric.sum.aggregation_temporality == 2
            if known in METRICS:
                assert resource["service.instance.id"] == "one"
        telemetry.process.terminate()
        assert telemetry.wait() == 0, telemetry.err


def test_the_collector_brings_its_own_telemetry_along_and_takes_it_with_it(
    stage: Stage, tmp_path: Path
) -> None:
    url, at = store(stage, tmp_path), f"127.0.0.1:{port()}"
    address = f"127.0.0.1:{port()}"
    process = stage.fulgurite("collector", "--redis", url, "--listen", address, "--prometheus", at)
    process.says("listening on")
    replicas = [Replica(address, "one")]
    with steady(replicas):
        process.until(lambda: "fulgurite_tokens_total" in _try(f"http://{at}/metrics"))
    process.process.terminate()
    assert process.wait() == 0
    stage._started[0].process.terminate()
    stage.nobody_is_left()


def _try(url: str) -> str:
    try:
        return fetch(url)
    except OSError:
        return ""


def test_a_receiver_that_is_away_does_not_touch_what_is_stored(stage: Stage, tmp_path: Path) -> None:
    url, at = store(stage, tmp_path), f"127.0.0.1:{port()}"
    nobody = f"http://127.0.0.1:{port()}"
    stage.fulgurite("telemetry", "--redis", url, "--otlp-export", nobody, "--prometheus", at).says(
        "metrics at"
    )
    replica = Replica(collector(stage, url), "one")
    with steady([replica], every_s=0.02):
        deadline = time.monotonic() + 30
        while replica.exporter.stats().acknowledged < 400:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    account = replica.exporter.stats()
    assert account.captured == account.acknowledged
    assert "fulgurite_telemetry_pending{" in fetch(f"http://{at}/metrics").replace(" ", "")


def test_one_trace_from_the_http_client_down_to_the_tokens(stage: Stage, tmp_path: Path) -> None:
    """The client's span comes by OTLP, ours from frames; both are one tree."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    url = store(stage, tmp_path)
    address = collector(stage, url)
    provider = TracerProvider()
    provider.add_span_processor(
        SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"http://{address}", insecure=True))
    )
    replica = Replica(address, "one")
    with provider.get_tracer("client").start_as_current_span("POST /v1/completions") as span:
        context = span.get_span_context()
        replica.ask("asked", trace=f"{context.trace_id:032x}", span=f"{context.span_id:016x}")
    replica.ask("other")
    assert replica.exporter.flush(10.0)
    provider.shutdown()
    trace_id = f"{context.trace_id:032x}"
    told = stage.fulgurite("trace", "--collector", address, trace_id, "--json")
    assert told.wait() == 0, told.err
    spans = {span["name"]: span for span in json.loads("\n".join(told.out))["spans"]}
    assert set(spans) == {"POST /v1/completions", "text_completion tiny"}
    ours = spans["text_completion tiny"]
    assert ours["parent_id"] == spans["POST /v1/completions"]["span_id"]
    assert len(ours["token_seconds"]) == 8
    text = stage.fulgurite("trace", "--collector", address, f"00-{trace_id}-{'b' * 16}-01")
    assert text.wait() == 0
    assert "8 tokens; the slowest" in "\n".join(text.out)
    unknown = stage.fulgurite("trace", "--collector", address, "e" * 32)
    assert unknown.wait() == 1
    assert "knows nothing of trace" in unknown.err[-1]
    assert stage.fulgurite("trace", "--collector", address, "xyz").wait() == 2


# --- Prometheus itself

PROMETHEUS = shutil.which("prometheus")
needs_prometheus = pytest.mark.skipif(PROMETHEUS is None, reason="needs the Debian package prometheus")


@needs_prometheus
def test_prometheus_scrapes_eight_replicas_within_the_budget_and_every_panel_has_data(
    stage: Stage, tmp_path: Path
) -> None:
    assert PROMETHEUS is not None
    url, at, own = store(stage, tmp_path), f"127.0.0.1:{port()}", f"127.0.0.1:{port()}"
    address = collector(stage, url)
    stage.fulgurite("telemetry", "--redis", url, "--prometheus", at).says("metrics at")
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: [{ROOT / 'deploy/prometheus/rules.yml'}]\n"
        f"scrape_configs: [{{job_name: fulgurite, static_configs: [{{targets: ['{at}']}}]}}]\n"
    )
    replicas = [Replica(address, str(n)) for n in range(8)]
    with steady(replicas):
        server = stage.start(
            PROMETHEUS,
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address={own}",
            "--enable-feature=exemplar-storage",
        )
        server.until(lambda: _series(own, "count(fulgurite_tokens_total)") == [8.0])
        text = fetch(f"http://{at}/metrics")
        for n in range(8):
            series = [line for line in text.splitlines() if f'service_instance_id="{n}"' in line]
            assert 100 < len(series) <= SERIES_BUDGET
        time.sleep(6.0)  # a few scrapes, for the rates
        silent = {
            f"{path.stem}: {title}: {query}"
            for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
            for title, query in _queries(json.loads(path.read_text()))
            if not _series(own, query)
        }
        assert not silent
        exemplars = json.loads(
            fetch(
                f"http://{own}/api/v1/query_exemplars?query=gen_ai_server_request_duration_seconds_bucket"
                f"&start={time.time() - 60}&end={time.time()}"
            )
        )["data"]
        assert {e["labels"]["trace_id"] for series in exemplars for e in series["exemplars"]} == {TRACE}
        rules = json.loads(fetch(f"http://{own}/api/v1/rules"))["data"]["groups"]
        assert [rule["name"] for group in rules for rule in group["rules"] if rule["health"] != "ok"] == []


def _series(address: str, query: str) -> list[float]:
    """The values that a query gives now."""
    try:
        answer = json.loads(fetch(f"http://{address}/api/v1/query?query={urllib.parse.quote(query)}"))
    except OSError:
        return []
    return [float(row["value"][1]) for row in answer["data"]["result"]]


VARIABLES = {
    "$service": "served",
    "$instance": "1",
    "$__rate_interval": "5s",
    "$__range": "10s",
    "$quantile": "0.99",
}


def _queries(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every query of a dashboard, as Grafana would send it."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            yield panel["title"], query


@needs_prometheus
@pytest.mark.parametrize("what", ["rules", "tests"])
def test_promtool_accepts_the_rules(what: str) -> None:
    promtool = shutil.which("promtool")
    assert promtool is not None
    folder = ROOT / "deploy/prometheus"
    command = (
        [promtool, "check", "rules", str(folder / "rules.yml")]
        if what == "rules"
        else [promtool, "test", "rules", str(folder / "rules_test.yml")]
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_promtool_accepts_the_metrics(stage: Stage, tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    assert promtool is not None
    url, at = store(stage, tmp_path), f"127.0.0.1:{port()}"
    address = collector(stage, url)
    process = stage.fulgurite("telemetry", "--redis", url, "--prometheus", at)
    process.says("metrics at")
    with steady([Replica(address, "one")]):
        process.until(lambda: "fulgurite_requests_total" in fetch(f"http://{at}/metrics"))
        done = subprocess.run(
            [promtool, "check", "metrics"],
            input=fetch(f"http://{at}/metrics"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
