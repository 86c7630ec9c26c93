"""What one run does, drawn from its seed alone: the same seed is the same run."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Literal, get_args

Where = Literal["link", "store", "collector", "host", "redis", "disk"]
Kind = Literal[
    "delay", "throttle", "reset", "half_close", "corrupt", "black_hole",
    "kill", "stop", "term", "full", "jump",
]  # fmt: skip
Server = Literal["redis", "valkey"]
Fsync = Literal["everysec", "always"]
SERVERS: Final[tuple[Server, ...]] = get_args(Server)
FSYNCS: Final[tuple[Fsync, ...]] = get_args(Fsync)

NETWORK: Final[tuple[Kind, ...]] = ("delay", "throttle", "reset", "half_close", "corrupt", "black_hole")
FAULTS: Final[tuple[tuple[Where, Kind], ...]] = (
    *(("link", kind) for kind in NETWORK),
    *(("store", kind) for kind in NETWORK),
    ("collector", "kill"),
    ("collector", "stop"),
    ("collector", "term"),
    ("redis", "kill"),
    ("redis", "stop"),
    ("disk", "full"),
    ("collector", "jump"),
    ("host", "jump"),
)
"""Every fault, where it happens and which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    Attributes
    ----------
    at_s, for_s : float
        From the first frame on, and how long; a kill is followed by a new start after `for_s`.
    amount : float
        How much: seconds of a delay or a jump, bytes per second, the share of chunks.
    """

    where: Where
    kind: Kind
    at_s: float
    for_s: float
    amount: float = 0.0

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.where} {self.kind.replace('_', ' ')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run.

    Attributes
    ----------
    frames_per_s, rows : int
        Of one replica, and frames in one of its blocks.
    budget_bytes, spool_bytes : int
        Of the agent's buffers: a small one overflows in an outage, to disk where it has a spool there.
    ends_in_the_storm : bool
        The agent leaves while the last fault is still on, without waiting for calm.
    is_link_encrypted, is_store_encrypted : bool
        TLS on that hop. What flips bits needs it: bytes in the clear carry no check of ours.
    """

    seed: int
    server: Server
    fsync: Fsync
    replicas: int
    frames_per_s: int
    rows: int
    budget_bytes: int
    encoding: str
    seconds: float
    ends_in_the_storm: bool
    spool_bytes: int
    faults: tuple[Fault, ...]

    @property
    def is_link_encrypted(self) -> bool:
        return self.has("link", "corrupt")

    @property
    def is_store_encrypted(self) -> bool:
        return self.has("store", "corrupt")

    def has(self, where: Where, kind: Kind) -> bool:
        """Whether this is among the faults."""
        return any((fault.where, fault.kind) == (where, kind) for fault in self.faults)

    @property
    def names(self) -> str:
        """The faults, in order."""
        return ", ".join(f"{fault.name} at {fault.at_s:.1f} s" for fault in self.faults)


def plan_of(seed: int, *, seconds: float = 3.0) -> Plan:
    """The run of a seed. It is the same on every machine, also on one that cannot make all of its faults."""
    rng = random.Random(seed)
    # The first fault goes round, so that so many seeds as there are faults show every one.
    first = FAULTS[seed % len(FAULTS)]
    on_disk = random.Random(f"spool {seed}")  # of its own: what is drawn here changes nothing else
    spool_bytes = on_disk.choice((0, 0, 1 << 20, 64 << 20))
    faults_of_spool = [_fault(on_disk, "host", "full", seconds)] if spool_bytes and seed % 3 == 0 else []
    chosen = [first, *(rng.choice(FAULTS) for _ in range(rng.randrange(3)))]
    server = rng.choice(SERVERS)
    return Plan(
        seed=seed,
        # The embedded server's build speaks no TLS.
        server="redis" if ("store", "corrupt") in chosen else server,
        fsync=rng.choice(FSYNCS),
        replicas=rng.randint(1, 2),
        frames_per_s=rng.choice((200, 1000, 2000)),
        rows=rng.choice((1, 4, 16)),
        budget_bytes=rng.choice((256 << 10, 2 << 20, 16 << 20)),
        encoding=rng.choice(("exact", "compact")),
        seconds=seconds,
        ends_in_the_storm=rng.random() < 0.15,
        spool_bytes=spool_bytes,
        faults=tuple(
            sorted(
                [*(_fault(rng, *one, seconds) for one in chosen), *faults_of_spool],
                key=lambda fault: fault.at_s,
            )
        ),
    )


def _fault(rng: random.Random, where: Where, kind: Kind, seconds: float) -> Fault:
    amounts: dict[Kind, float] = {
        "delay": rng.uniform(0.005, 0.2),
        "throttle": rng.uniform(8e3, 400e3),
        "corrupt": rng.uniform(0.05, 0.5),
        "jump": rng.choice((-3600.0, -5.0, 5.0, 3600.0)),
    }
    return Fault(
        where=where,
        kind=kind,
        at_s=rng.uniform(0.2, seconds * 0.8),
        for_s=rng.uniform(0.1, 1.5),
        amount=amounts.get(kind, 0.0),
    )
