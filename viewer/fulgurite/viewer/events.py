"""What a feed tells: replicas, frames, gaps, statuses, and whether it is connected. Immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fulgurite.wire.frame import FrameBatch, Scale
from fulgurite.wire.topology import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSeen:
    """A replica announced itself, or changed.

    Attributes
    ----------
    key : ``namespace/service/instance``.
    level : what it captures: ``off``, ``pulse``, ``heads`` or ``deep``; empty where unknown.
    tokens : what of a token leaves the process: ``off``, ``ids`` or ``text``.
    scale : the display scale of its node kinds, or None before one was measured.
    """

    key: str
    topology: Topology
    level: str = ""
    tokens: str = "off"
    scale: Scale | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Measured tokens of one replica.

    Attributes
    ----------
    live : False for the past that a collector sends before it has caught up.
    received_ns : UNIX time at which this process had them decoded.
    nbytes : their size as received, in bytes.
    """

    key: str
    batch: FrameBatch
    live: bool
    received_ns: int
    nbytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GapSeen:
    """Frames that exist somewhere and are not here. `frames` is 0 where their number is not known."""

    key: str
    epoch_ms: int
    first_sequence: int
    last_sequence: int
    frames: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """What a replica did in its last seconds, as its collector folded it. None: not known.

    Attributes
    ----------
    state : ``live``, ``idle``, ``lost`` or ``ended``.
    inter_token_p50_s, inter_token_p99_s, first_token_p50_s : seconds.
    window_s : how many of the last seconds these are about.
    dropped : frames that never reached the collector, by reason.
    overhead_ratio : the agent's measured share of the model's step time.
    """

    key: str
    state: str
    model_name: str = ""
    tokens_per_s: float | None = None
    inter_token_p50_s: float | None = None
    inter_token_p99_s: float | None = None
    first_token_p50_s: float | None = None
    window_s: float | None = None
    kv_tokens: int | None = None
    kv_bytes: int | None = None
    kv_capacity_bytes: int | None = None
    running_requests: int | None = None
    waiting_requests: int | None = None
    overhead_ratio: float | None = None
    captured: int | None = None
    acknowledged: int | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    level: str = ""
    tokens_total: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSeen:
    """A replica's newest status."""

    status: ReplicaStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class CaughtUp:
    """The past of `key` is complete; what follows is live."""

    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedUp:
    """The collector answers."""

    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedDown:
    """The collector does not answer, or is none: why, in words that say what to do."""

    address: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedTrouble:
    """Something on the feed could not be read; the rest goes on."""

    key: str
    reason: str


Event = ReplicaSeen | Frames | GapSeen | StatusSeen | CaughtUp | FeedUp | FeedDown | FeedTrouble
