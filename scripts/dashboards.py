"""Writes the Grafana dashboards of `deploy/grafana/dashboards` from the queries below.

``python scripts/dashboards.py``. A dashboard is data: panels with queries over the metrics of
`fulgurite.telemetry.names`. Every panel links to the viewer at the moment that is looked at.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parents[1] / "deploy/grafana/dashboards"
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
OF: Final = 'service_name=~"$service"'
ONE: Final = 'service_name=~"$service",service_instance_id=~"$instance"'
WIDTH, HEIGHT, COLUMNS = 12, 8, 2


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: its title, unit, queries with their legends, and what it says."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    about: str
    kind: str = "timeseries"


def _quantile(metric: str, quantile: str, by: str, of: str) -> str:
    return (
        f"histogram_quantile({quantile}, sum by (le, {by}) (rate({metric}_bucket{{{of}}}[$__rate_interval])))"
    )


def _by_instance(metric: str, of: str = OF) -> str:
    return f"sum by (service_instance_id) (rate({metric}{{{of}}}[$__rate_interval]))"


def _mean(metric: str, by: str, of: str) -> str:
    rate = "sum by ({by}) (rate({metric}_{part}{{{of}}}[$__rate_interval]))"
    total, count = (rate.format(by=by, metric=metric, part=part, of=of) for part in ("sum", "count"))
    return f"{total} / {count}"


INSTANCE: Final = "{{service_instance_id}}"
FIRST: Final = "gen_ai_server_time_to_first_token_seconds"
PACE: Final = "gen_ai_server_time_per_output_token_seconds"
DURATION: Final = "gen_ai_server_request_duration_seconds"

BESIDE_THE_FLEET: Final = (
    f"({_mean('fulgurite_layer_head_write', 'service_instance_id', OF)}) "
    f"/ scalar({_mean('fulgurite_layer_head_write', 'service_name', OF)}) - 1"
)
LOST: Final = (
    f"sum by (service_instance_id) (fulgurite_frames_captured_total{{{OF}}}) "
    f"- sum by (service_instance_id) (fulgurite_frames_acknowledged_total{{{OF}}}) "
    f"- sum by (service_instance_id) (fulgurite_frames_pending{{{OF}}})"
)
PENDING: Final = f"sum by (service_instance_id) (fulgurite_frames_pending{{{OF}}})"

FLEET: Final = (
    Panel("Tokens per second", "short", ((_by_instance("fulgurite_tokens_total"), INSTANCE),),
          "Generated tokens, by replica."),
    Panel("Time to first token, p99", "s", ((_quantile(FIRST, "0.99", "service_instance_id", OF), INSTANCE),),
          "From the start of a request until its first token was committed."),
    Panel("Time per output token, p50 and p99", "s",
          ((_quantile(PACE, "0.5", "service_name", OF), "p50"),
           (_quantile(PACE, "0.99", "service_name", OF), "p99")),
          "Mean time per token behind the first one, of each request that finished."),
    Panel("Requests by outcome", "reqps",
          ((f"sum by (outcome) (rate(fulgurite_requests_total{{{OF}}}[$__rate_interval]))", "{{outcome}}"),),
          "Requests that ended: finished, aborted, preempted, given up."),
    Panel("Running and waiting", "short",
          ((f"sum(fulgurite_requests_running{{{OF}}})", "running"),
           (f"sum(fulgurite_sequences_running{{{OF}}})", "sequences")),
          "Requests and sequences under way."),
    Panel("KV cache", "bytes", ((f"sum by (service_instance_id) (fulgurite_kv_bytes{{{OF}}})", INSTANCE),),
          "Bytes of the key-value caches under way, by replica."),
    Panel("Activity of the heads beside the fleet", "percentunit",
          ((BESIDE_THE_FLEET, INSTANCE),),
          "Mean of ||o_h|| / ||r+|| of a replica, relative to that of its service. The same model under the "
          "same load stays near 0; one that drifts away computes something else."),
    Panel("Surprisal", "short",
          ((_mean("fulgurite_token_surprisal_nats", "service_instance_id", OF), INSTANCE),),
          "Mean of -log p of the emitted tokens, in nats."),
)  # fmt: skip

REPLICA: Final = (
    Panel("Tokens per second", "short", ((_by_instance("fulgurite_tokens_total", ONE), INSTANCE),),
          "Generated tokens."),
    Panel("Between two tokens", "s",
          ((_quantile("fulgurite_inter_token_duration_seconds", "0.5", "service_name", ONE), "p50"),
           (_quantile("fulgurite_inter_token_duration_seconds", "0.99", "service_name", ONE), "p99")),
          "Between two tokens of one sequence."),
    Panel("Request duration", "s", ((_quantile(DURATION, "0.99", "service_name", ONE), "p99"),),
          "From the start of a request until it ended. Exemplars lead to traces."),
    Panel("KV cache", "short", ((f"sum(fulgurite_kv_tokens{{{ONE}}})", "cached positions"),),
          "Cached positions of the sequences under way."),
    Panel("Heads, by layer", "short",
          ((_mean("fulgurite_layer_head_write", "layer", ONE), "layer {{layer}}"),),
          "Mean of ||o_h|| / ||r+|| over the heads of a layer: what attention writes into the stream."),
    Panel("FFN, by layer", "short", ((_mean("fulgurite_layer_ffn_write", "layer", ONE), "layer {{layer}}"),),
          "Mean of ||m|| / ||r+||: how much the FFN of a layer writes into the residual stream."),
    Panel("Entropy and surprisal", "short",
          ((_mean("fulgurite_token_entropy_nats", "service_name", ONE), "entropy"),
           (_mean("fulgurite_token_surprisal_nats", "service_name", ONE), "surprisal")),
          "Of the next-token distribution, and of the token that came, in nats."),
    Panel("Load of the experts", "short",
          ((f"topk(16, sum by (expert) (rate(fulgurite_expert_tokens_total{{{ONE}}}[$__rate_interval])))",
            "expert {{expert}}"),),
          "Choices of an expert per second, all layers together; absent for a dense model."),
    Panel("Imbalance of the experts", "short", ((f"max by (layer) (fulgurite_expert_imbalance{{{ONE}}})",
                                                 "layer {{layer}}"),),
          "Most chosen expert of a layer over the mean of its experts."),
    Panel("Overhead of the agent", "percentunit", ((f"max(fulgurite_agent_overhead{{{ONE}}})", "overhead"),),
          "The agent's own share of step time, as it measures it."),
)  # fmt: skip

PIPELINE: Final = (
    Panel("Frames captured and stored", "short",
          ((f"sum(rate(fulgurite_frames_captured_total{{{OF}}}[$__rate_interval]))", "captured"),
           (f"sum(rate(fulgurite_frames_acknowledged_total{{{OF}}}[$__rate_interval]))", "stored")),
          "Both lines are one where nothing is lost."),
    Panel("Frames lost since the start", "short",
          ((LOST, INSTANCE),),
          "captured - acknowledged - pending: the ledger's remainder is what was dropped."),
    Panel("Frames on their way", "short", ((PENDING, INSTANCE),),
          "Captured, and neither stored nor lost."),
    Panel("Lag of this process", "s", (("max(fulgurite_telemetry_lag_seconds)", "lag"),),
          "Age of the newest batch when it was folded."),
    Panel("Batches that could not be read", "short",
          (("sum(fulgurite_telemetry_undecodable_total)", "batches"),), "Since the start."),
    Panel("Series that budgets left out", "short",
          ((f"sum by (service_instance_id) (fulgurite_series_dropped{{{OF}}})", INSTANCE),),
          "A replica shows at most 2,000 series; the least important metrics go first."),
)  # fmt: skip


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    place = {
        "x": WIDTH * (number % COLUMNS),
        "y": HEIGHT * (number // COLUMNS),
        "w": WIDTH,
        "h": HEIGHT,
    }
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "links": [
            {
                "title": "Show this moment in the viewer",
                "url": "${viewer}/?replica=${__field.labels.service_instance_id}&time=${__value.time}",
                "targetBlank": True,
            }
        ],
    }
    return {
        "id": number + 1,
        "title": panel.title,
        "description": panel.about,
        "type": panel.kind,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {
                "refId": chr(ord("A") + n),
                "expr": query,
                "legendFormat": legend,
                "exemplar": "_bucket" in query,
                "datasource": SOURCE,
            }
            for n, (query, legend) in enumerate(panel.queries)
        ],
    }


def _variable(name: str, label: str, query: str, *, multi: bool) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": multi,
        "includeAll": multi,
        "allValue": ".*" if multi else None,
        "sort": 1,
    }


def dashboard(name: str, title: str, panels: tuple[Panel, ...], *, one: bool) -> dict[str, Any]:
    """One dashboard, as Grafana imports it."""
    variables = [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        _variable("service", "Service", "label_values(fulgurite_tokens_total, service_name)", multi=True),
        {
            "name": "viewer",
            "label": "Viewer",
            "type": "textbox",
            "query": "http://localhost:8747",
            "current": {"text": "http://localhost:8747", "value": "http://localhost:8747"},
        },
    ]
    if one:
        query = f"label_values(fulgurite_tokens_total{{{OF}}}, service_instance_id)"
        variables.insert(2, _variable("instance", "Replica", query, multi=False))
    return {
        "uid": f"fulgurite-{name}",
        "title": title,
        "tags": ["fulgurite"],
        "schemaVersion": 39,
        "editable": True,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": variables},
        "links": [
            {"title": "Viewer", "type": "link", "url": "${viewer}", "targetBlank": True, "icon": "bolt"},
            {
                "title": "Fulgurite",
                "type": "dashboards",
                "tags": ["fulgurite"],
                "includeVars": True,
                "keepTime": True,
            },
        ],
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


DASHBOARDS: Final = {
    "fleet": dashboard("fleet", "Fulgurite: fleet", FLEET, one=False),
    "replica": dashboard("replica", "Fulgurite: one replica", REPLICA, one=True),
    "pipeline": dashboard("pipeline", "Fulgurite: health of the pipeline", PIPELINE, one=False),
}


def main() -> int:
    """Write them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, document in DASHBOARDS.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
