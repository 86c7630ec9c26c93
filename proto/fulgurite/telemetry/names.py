"""Names, units, kinds and buckets: the one table that spans, metrics and dashboards are checked against.

The GenAI conventions are kept in a repository of their own, unreleased and in development; the constants of
the Python package are deprecated. So this table is ours, and says which state it follows. Everything that the
conventions do not name is under ``fulgurite.``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from fulgurite.wire.sketch import FIRST_TOKEN_BOUNDS_S, INTER_TOKEN_BOUNDS_S

CONVENTIONS: Final = "OpenTelemetry GenAI semantic conventions, in development, as of 2026-11"
SCOPE: Final = "fulgurite"
OPERATION: Final = "text_completion"
"""A model that completes token sequences in this process knows of no chat."""

Kind = Literal["counter", "gauge", "histogram", "moments"]
AttributeType = Literal["string", "int", "double", "string[]", "int[]", "double[]"]

REQUEST_BUCKETS: Final = (
    .01, .02, .04, .08, .16, .32, .64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip
OUTPUT_TOKEN_BUCKETS: Final = INTER_TOKEN_BOUNDS_S
FIRST_TOKEN_BUCKETS: Final = FIRST_TOKEN_BOUNDS_S
NATS_BUCKETS: Final = tuple(float(f"{10 ** (n / 4):.4g}") for n in range(-8, 7))
"""Every second bound of `fulgurite.wire.sketch.BUCKET_BOUNDS`, so that sketches are counted exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric.

    Attributes
    ----------
    kind : ``counter`` (cumulative, monotonic), ``gauge``, ``histogram`` (explicit buckets), or ``moments`` (a
        histogram without buckets: count and sum, whose quotient is a mean over any window).
    unit : UCUM, as OpenTelemetry writes it.
    labels : attributes of a point beside those of the replica.
    priority : what goes first when a replica would have too many series: the largest number.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    priority: int = 0


METRICS: Final = (
    Metric(name="gen_ai.server.request.duration", kind="histogram", unit="s", buckets=REQUEST_BUCKETS,
           description="From the start of a request until it ended."),
    Metric(name="gen_ai.server.time_per_output_token", kind="histogram", unit="s",
           buckets=OUTPUT_TOKEN_BUCKETS,
           description="Mean time per token behind the first one, of each request that finished."),
    Metric(name="gen_ai.server.time_to_first_token", kind="histogram", unit="s",
           buckets=FIRST_TOKEN_BUCKETS,
           description="From the start of a request until its first token was committed."),
    Metric(name="fulgurite.inter_token.duration", kind="histogram", unit="s", buckets=OUTPUT_TOKEN_BUCKETS,
           description="Between two tokens of one sequence.", priority=1),
    Metric(name="fulgurite.tokens", kind="counter", unit="{token}",
           description="Tokens that were generated."),
    Metric(name="fulgurite.prompt_tokens", kind="counter", unit="{token}",
           description="Prompt tokens of the requests that started, padding not counted."),
    Metric(name="fulgurite.requests", kind="counter", unit="{request}", labels=("fulgurite.outcome",),
           description="Requests that ended, by outcome: finished, aborted, preempted."),
    Metric(name="fulgurite.requests.running", kind="gauge", unit="{request}",
           description="Requests under way."),
    Metric(name="fulgurite.requests.waiting", kind="gauge", unit="{request}",
           description="Requests that wait for a place, as the engine says."),
    Metric(name="fulgurite.sequences.running", kind="gauge", unit="{sequence}",
           description="Sequences under way."),
    Metric(name="fulgurite.kv.tokens", kind="gauge", unit="{token}",
           description="Cached positions of the sequences under way."),
    Metric(name="fulgurite.kv.bytes", kind="gauge", unit="By",
           description="Bytes of the key-value caches under way."),
    Metric(name="fulgurite.kv.capacity", kind="gauge", unit="By",
           description="Bytes that the key-value cache may take; absent where it is not known."),
    Metric(name="fulgurite.token.surprisal", kind="histogram", unit="{nat}", buckets=NATS_BUCKETS,
           description="-log p of the emitted token.", priority=1),
    Metric(name="fulgurite.token.entropy", kind="histogram", unit="{nat}", buckets=NATS_BUCKETS,
           description="Entropy of the next-token distribution.", priority=1),
    Metric(name="fulgurite.expert.tokens", kind="counter", unit="{token}", labels=("fulgurite.expert",),
           description="Choices of an expert, all layers together.", priority=3),
    Metric(name="fulgurite.expert.imbalance", kind="gauge", unit="1", labels=("fulgurite.layer",),
           description="Most chosen expert of a layer over the mean of its experts, since the start.",
           priority=2),
    Metric(name="fulgurite.layer.head_write", kind="moments", unit="1", labels=("fulgurite.layer",),
           description="||o_h|| / ||r+||, mean over the heads of a layer, per token.", priority=4),
    Metric(name="fulgurite.layer.ffn_write", kind="moments", unit="1", labels=("fulgurite.layer",),
           description="||m|| / ||r+|| of a layer, per token.", priority=4),
    Metric(name="fulgurite.frames.captured", kind="counter", unit="{frame}",
           description="Frames that the agent captured."),
    Metric(name="fulgurite.frames.acknowledged", kind="counter", unit="{frame}",
           description="Frames that a collector stored."),
    Metric(name="fulgurite.frames.pending", kind="gauge", unit="{frame}",
           description="Frames on their way."),
    Metric(name="fulgurite.frames.dropped", kind="counter", unit="{frame}", labels=("fulgurite.reason",),
           description="Frames that were lost, by reason."),
    Metric(name="fulgurite.agent.overhead", kind="gauge", unit="1",
           description="The agent's own share of step time, as it measures it."),
    Metric(name="fulgurite.agent.errors", kind="counter", unit="{error}", labels=("error.type",),
           description="Failures that the agent swallowed."),
    Metric(name="fulgurite.series.dropped", kind="gauge", unit="{series}",
           description="Series of this replica that its budget left out."),
)  # fmt: skip
BY_NAME: Final = {metric.name: metric for metric in METRICS}

OWN_METRICS: Final = (
    Metric(name="fulgurite.telemetry.items", kind="counter", unit="{item}",
           labels=("fulgurite.signal", "fulgurite.outcome"),
           description="Spans, metric points and logs that were handed to the OTLP exporter, by outcome."),
    Metric(name="fulgurite.telemetry.pending", kind="gauge", unit="{item}", labels=("fulgurite.signal",),
           description="Items that wait for the OTLP receiver."),
    Metric(name="fulgurite.telemetry.lag", kind="gauge", unit="s",
           description="Age of the newest batch that was folded when it was read."),
    Metric(name="fulgurite.telemetry.undecodable", kind="counter", unit="{batch}",
           description="Batches that could not be read."),
)  # fmt: skip
"""Of the process that folds and exports, not of a replica."""

REPLICA_LABELS: Final = (
    "service.namespace", "service.name", "service.instance.id", "service.version", "gen_ai.request.model",
)  # fmt: skip

SPAN_ATTRIBUTES: Final[dict[str, AttributeType]] = {
    "gen_ai.operation.name": "string",
    "gen_ai.provider.name": "string",
    "gen_ai.request.model": "string",
    "gen_ai.response.model": "string",
    "gen_ai.response.id": "string",
    "gen_ai.response.finish_reasons": "string[]",
    "gen_ai.usage.input_tokens": "int",
    "gen_ai.usage.output_tokens": "int",
    "error.type": "string",
    "gen_ai.latency.per_token_generation_time": "double[]",
    "gen_ai.iteration.per_token_batch_size": "int[]",
    "fulgurite.replica": "string",
    "fulgurite.sequences": "int",
    "fulgurite.time_to_first_token": "double",
    "fulgurite.sampled.because": "string",
    "fulgurite.frames.missing": "int",
    "fulgurite.drafted_tokens": "int",
    "fulgurite.accepted_tokens": "int",
    "fulgurite.token.sequence": "int[]",
    "fulgurite.token.position": "int[]",
    "fulgurite.token.started_ns": "int[]",
    "fulgurite.token.ended_ns": "int[]",
    "fulgurite.token.logprob": "double[]",
    "fulgurite.token.entropy": "double[]",
    "fulgurite.token.kv_tokens": "int[]",
    "fulgurite.token.head_write.max": "double[]",
    "fulgurite.token.head_write.layer": "int[]",
    "fulgurite.token.head_write.head": "int[]",
    "fulgurite.token.ffn_write.mean": "double[]",
}
"""Every attribute that a request span of ours may carry."""


def prometheus_name(metric: Metric) -> str:
    """The name in the text format, without the ending that the kind adds: dots are underscores, the unit
    stands last.

    Examples
    --------
    >>> prometheus_name(BY_NAME["gen_ai.server.time_to_first_token"])
    'gen_ai_server_time_to_first_token_seconds'
    """
    unit = {"s": "_seconds", "By": "_bytes", "{nat}": "_nats"}.get(metric.unit, "")
    name = metric.name.replace(".", "_")
    return name if name.endswith(unit) else name + unit


def prometheus_label(attribute: str) -> str:
    """An attribute as a label of the text format: ``fulgurite.layer`` is ``layer``."""
    return attribute.removeprefix("fulgurite.").replace(".", "_")
