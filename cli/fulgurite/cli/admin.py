"""What a collector says of itself to an administrator, as plain records: for people and for `--json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fulgurite.cli.table import table
from fulgurite.cli.units import UNKNOWN, ago, bytes_text, milliseconds

if TYPE_CHECKING:
    from fulgurite.v1.viewer_pb2 import DescribeResponse, ReplicaStatus

HEAD = (
    "REPLICA",
    "STATE",
    "COLLECTOR",
    "LEVEL",
    "FRAMES",
    "CAPTURED",
    "ACKNOWLEDGED",
    "PENDING",
    "DROPPED",
    "FOLDED",
    "LAG MS",
    "HELD",
    "ROUND TRIP MS",
    "CLOCK MS",
)
RIGHT = frozenset(range(5, len(HEAD)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Calls that are open, of one credential to one service."""

    credential: str
    service: str
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One collector process."""

    collector_id: str
    version: str
    pid: int
    worker: int
    workers: int
    up_s: float
    resident_bytes: int
    cpu_s: float
    store: str
    store_away: bool
    asks_for_credentials: bool
    encrypts: bool
    calls: tuple[Calls, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRow:
    """One replica with its link and its ledger. None where nothing is known.

    Attributes
    ----------
    frames : what of its tokens comes as whole frames: ``all``, ``1 in N`` requests, or ``none``.
    lag_s : from the newest frame's end to its being stored.
    held_bytes : came, and wait for the store.
    """

    replica: str
    state: str
    collector_id: str
    level: str
    frames: str
    captured: int
    acknowledged: int
    pending: int
    dropped: dict[str, int]
    folded: int
    lag_s: float | None
    held_bytes: int | None
    round_trip_s: float | None
    clock_offset_s: float | None


def process(told: DescribeResponse, *, now_ns: int) -> Process:
    """Read what a process says of itself; `now_ns` is UNIX time."""
    calls = tuple(
        Calls(credential=one.credential, service=one.service, calls=one.calls) for one in told.calls
    )
    return Process(
        collector_id=told.collector_id,
        version=told.version,
        pid=told.pid,
        worker=told.worker,
        workers=told.workers,
        up_s=max(0.0, (now_ns - told.started_ns) / 1e9),
        resident_bytes=told.resident_bytes,
        cpu_s=told.cpu_s,
        store=told.store,
        store_away=told.store_away,
        asks_for_credentials=told.asks_for_credentials,
        encrypts=told.encrypts,
        calls=calls,
    )


def link_row(status: ReplicaStatus) -> LinkRow:
    """Read one replica."""
    agent, link = status.agent, status.link
    is_here = status.HasField("link") and status.state in ("live", "idle")
    return LinkRow(
        replica=status.key,
        state=status.state,
        collector_id=link.collector_id if is_here else "",
        level=status.level,
        frames=_frames(status) if is_here else "",
        captured=agent.captured,
        acknowledged=agent.acknowledged,
        pending=agent.pending,
        dropped=dict(agent.dropped),
        folded=agent.folded,
        lag_s=link.lag_s if is_here else None,
        held_bytes=link.held_bytes if is_here else None,
        round_trip_s=link.round_trip_ns / 1e9 if is_here and link.round_trip_ns else None,
        clock_offset_s=link.clock_offset_ns / 1e9 if is_here and link.HasField("clock_offset_ns") else None,
    )


def _frames(status: ReplicaStatus) -> str:
    if status.link.watched or status.link.history_one_in == 1:
        return "all"
    return f"1 in {status.link.history_one_in}" if status.link.history_one_in else "none"


def record(told: Process, rows: list[LinkRow]) -> dict[str, Any]:
    """Both as JSON knows them."""
    return {"process": asdict(told), "replicas": [asdict(row) for row in rows]}


def text(told: Process, rows: list[LinkRow], *, address: str) -> str:
    """Both for people."""
    among = f", worker {told.worker} of {told.workers}" if told.workers > 1 else ""
    guarded = "credentials asked for" if told.asks_for_credentials else "no credentials asked for"
    lines = [
        f"collector  {told.collector_id} at {address}, version {told.version}, process {told.pid}{among}",
        f"           up {ago(told.up_s)}, {bytes_text(told.resident_bytes)} resident, {told.cpu_s:.1f} s CPU",
        f"store      {told.store}{' (AWAY)' if told.store_away else ''}",
        f"port       {'TLS' if told.encrypts else 'plain text'}, {guarded}",
    ]
    lines += [f"calls      {one.calls} of {one.credential!r} to {one.service}" for one in told.calls]
    if rows:
        lines += ["", table(HEAD, [_cells(row) for row in rows], right=RIGHT)]
    return "\n".join(lines)


def _cells(row: LinkRow) -> tuple[str, ...]:
    dropped = sum(row.dropped.values())
    why = f" ({max(row.dropped, key=lambda reason: row.dropped[reason])})" if dropped else ""
    return (
        row.replica,
        row.state,
        row.collector_id or UNKNOWN,
        row.level or UNKNOWN,
        row.frames or UNKNOWN,
        str(row.captured),
        str(row.acknowledged),
        str(row.pending),
        f"{dropped}{why}",
        str(row.folded),
        milliseconds(row.lag_s),
        bytes_text(row.held_bytes),
        milliseconds(row.round_trip_s),
        UNKNOWN if row.clock_offset_s is None else f"{row.clock_offset_s * 1e3:.1f}",
    )
