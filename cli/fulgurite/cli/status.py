"""What a collector says of a replica, as a plain record: for the table and for `--json`."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fulgurite.cli.table import table
from fulgurite.cli.units import UNKNOWN, ago, bytes_text, milliseconds, number
from fulgurite.wire.channels import CHANNELS, LEVELS

if TYPE_CHECKING:
    from fulgurite.v1.viewer_pb2 import Quantiles, ReplicaStatus

HEAD = (
    "REPLICA",
    "MODEL",
    "LAYERS×HEADS",
    "STATE",
    "TOKENS/S",
    "INTER-TOKEN P50",
    "P99 MS",
    "KV TOKENS",
    "KV SIZE",
    "LEVEL",
    "DROPPED",
    "LAST SEEN",
)
ENGINE, ENGINE_VERSION = "fulgurite.engine.name", "fulgurite.engine.version"
RIGHT = frozenset({4, 5, 6, 7, 8, 10, 11})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRow:
    """One replica. None where nothing was measured.

    Attributes
    ----------
    dropped : frames by reason; None before the agent has said anything of itself.
    last_seen_s : seconds since the collector last heard from it.
    """

    replica: str
    model: str
    layers: int
    heads: int
    state: str
    tokens_per_s: float | None
    tokens_total: int
    inter_token_p50_s: float | None
    inter_token_p99_s: float | None
    first_token_p50_s: float | None
    first_token_p99_s: float | None
    running_sequences: int
    kv_tokens: int
    kv_bytes: int
    level: str
    captured: int | None
    acknowledged: int | None
    pending: int | None
    dropped: dict[str, int] | None
    overhead_ratio: float | None
    last_seen_s: float | None
    window_s: float


def row(status: ReplicaStatus, *, now_ns: int) -> ReplicaRow:
    """Read one status message; `now_ns` is UNIX time."""
    agent = status.agent if status.HasField("agent") else None
    ratio = agent.overhead_ratio if agent is not None else None
    return ReplicaRow(
        replica=status.key,
        model=status.model_name,
        layers=status.layers,
        heads=status.heads,
        state=status.state,
        tokens_per_s=_known(status.tokens_per_s),
        tokens_total=status.tokens_total,
        inter_token_p50_s=_quantile(status.inter_token, "p50_s"),
        inter_token_p99_s=_quantile(status.inter_token, "p99_s"),
        first_token_p50_s=_quantile(status.first_token, "p50_s"),
        first_token_p99_s=_quantile(status.first_token, "p99_s"),
        running_sequences=status.running_sequences,
        kv_tokens=status.kv_tokens,
        kv_bytes=status.kv_bytes,
        level=status.level,
        captured=None if agent is None else agent.captured,
        acknowledged=None if agent is None else agent.acknowledged,
        pending=None if agent is None else agent.pending,
        dropped=None if agent is None else dict(agent.dropped),
        overhead_ratio=None if ratio is None else _known(ratio),
        last_seen_s=max(0.0, (now_ns - status.last_seen_ns) / 1e9) if status.last_seen_ns else None,
        window_s=status.window_s,
    )


def serving(status: ReplicaStatus, topology: Any, *, now_ns: int) -> str:
    """Engine, version, since when, what it costs and what is not captured, each where it is known.

    Parameters
    ----------
    topology : of the replica, or None.
    """
    told = dict(status.resource.attributes)
    parts = []
    if engine := told.get(ENGINE):
        parts.append(f"{engine} {told.get(ENGINE_VERSION, '')}".strip())
    if status.started_ns:
        parts.append(f"observed for {ago(max(0.0, (now_ns - status.started_ns) / 1e9))}")
    ratio = _known(status.agent.overhead_ratio) if status.HasField("agent") else None
    if ratio is not None:
        parts.append(f"costs {100 * ratio:.1f} % of step time")
    if topology is not None:
        absent = sorted(channel for channel, _ in topology.unavailable)
        nowhere = () if topology.experts else ("expert_ids", "expert_weights")
        parts.append(f"captured: {', '.join(_captured(status.level, {*absent, *nowhere})) or 'times alone'}")
        parts.append(f"not captured: {', '.join(absent)}" if absent else "and that is all of its level")
    return "".join(f"; {part}" for part in parts)


def _captured(level: str, absent: Container[str]) -> list[str]:
    """The quantities that a level brings, without who and when."""
    highest = next((i for i, known in enumerate(LEVELS) if known == level), 0)
    return [
        channel.name
        for channel in CHANNELS
        if channel.family not in ("identity", "time")
        and LEVELS.index(channel.level) <= highest
        and channel.name not in absent
    ]


def _shape(replica: ReplicaRow) -> str:
    if (replica.layers, replica.heads) == (1, 0):  # what stands for a model that can only be asked
        return "black box"
    return f"{replica.layers}×{replica.heads}" if replica.layers else UNKNOWN


def _known(value: float) -> float | None:
    return None if value != value else value


def _quantile(quantiles: Quantiles, name: str) -> float | None:
    return _known(getattr(quantiles, name)) if quantiles.count else None


def record(replica: ReplicaRow) -> dict[str, Any]:
    """The row as JSON knows it."""
    return asdict(replica)


def rows_table(replicas: list[ReplicaRow]) -> str:
    """The rows under their heads."""
    return table(HEAD, [_cells(replica) for replica in replicas], right=RIGHT)


def _cells(replica: ReplicaRow) -> tuple[str, ...]:
    return (
        replica.replica,
        replica.model or UNKNOWN,
        _shape(replica),
        replica.state,
        number(replica.tokens_per_s),
        milliseconds(replica.inter_token_p50_s),
        milliseconds(replica.inter_token_p99_s),
        str(replica.kv_tokens),
        bytes_text(replica.kv_bytes),
        replica.level or UNKNOWN,
        UNKNOWN if replica.dropped is None else str(sum(replica.dropped.values())),
        ago(replica.last_seen_s),
    )
