"""Many replicas in one process, and the report of what became of their tokens."""

from __future__ import annotations

import asyncio
import resource
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from benchmarks.load.account import Account
from benchmarks.load.pacing import Pace
from benchmarks.load.recorded import record
from benchmarks.load.replica import Replica
from benchmarks.load.shape import SHAPES, Shape
from benchmarks.load.template import Template, templates
from fulgurite.wire.codec import Codec, schema_for
from fulgurite.wire.frame import FrameBlock
from fulgurite.wire.topology import Topology

BATCH_BYTES: Final = 1 << 20
FLUSH_S: Final = 0.004
MOST_TOKENS: Final = 256
VARIANTS: Final = 4
RECORDED: Final = "recorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A load.

    Attributes
    ----------
    shape : str
        Of `SHAPES`, or `RECORDED` for frames of the bundled model.
    tokens_per_s : float or None
        Of each replica; None: as the shape says.
    batch_tokens : int or None
        In a message; None: what comes in 4 ms, at most 256, as an agent cuts them.
    """

    address: str
    shape: str = "W1"
    replicas: int = 1
    seconds: float = 10.0
    tokens_per_s: float | None = None
    batch_tokens: int | None = None
    encoding: str = "exact"
    service: str = "load"
    token: str | None = None


def run(plan: Plan) -> dict[str, Any]:
    """Generate the load; its figures, with what the generator itself used."""
    before, began_s = _cpu_s(), time.monotonic()
    account = asyncio.run(generate(plan))
    return {
        **account.figures(),
        "seconds": round(time.monotonic() - began_s, 2),
        "generator_cpu_s": round(_cpu_s() - before, 2),
    }


async def generate(plan: Plan) -> Account:
    """Run all replicas; their accounts together."""
    topology, blocks, per_s = _material(plan)
    tokens = plan.batch_tokens or max(1, min(MOST_TOKENS, round(per_s * FLUSH_S)))
    codec = Codec(schema_for(topology, plan.encoding))
    # One set for all: a template is written to and copied in one go, and all replicas are in one thread.
    made = templates(codec, blocks, tokens=tokens, max_bytes=BATCH_BYTES)
    replicas = [_replica(plan, index, topology, codec, made, per_s) for index in range(plan.replicas)]
    start_s = time.monotonic() + 0.2 + 0.02 * plan.replicas  # after the making, which takes seconds
    whole = Account()
    for account in await asyncio.gather(*(replica.run(start_s, plan.seconds) for replica in replicas)):
        whole.add(account)
    return whole


def _material(plan: Plan) -> tuple[Topology, Sequence[FrameBlock], float]:
    if plan.shape == RECORDED:
        topology, blocks = record()
        return topology, blocks, plan.tokens_per_s or 2000.0
    shape = _of_rows(SHAPES[plan.shape], plan)
    tokens = VARIANTS * (plan.batch_tokens or MOST_TOKENS)
    return (
        shape.topology,
        shape.blocks(min(tokens, _affordable(shape))),
        plan.tokens_per_s or shape.tokens_per_s,
    )


def _of_rows(shape: Shape, plan: Plan) -> Shape:
    """The shape with no more rows than a message has tokens: a step is never cut."""
    per_s = plan.tokens_per_s or shape.tokens_per_s
    tokens = plan.batch_tokens or max(1, min(MOST_TOKENS, round(per_s * FLUSH_S)))
    return replace(shape, rows=min(shape.rows, tokens))


def _affordable(shape: Shape) -> int:
    return max(shape.rows, (VARIANTS * BATCH_BYTES) // (2 * shape.samples))


def _replica(
    plan: Plan, index: int, topology: Topology, codec: Codec, made: tuple[Template, ...], per_s: float
) -> Replica:
    resource_: Mapping[str, str] = {
        "service.namespace": "load",
        "service.name": plan.service,
        "service.instance.id": f"{index:04d}-{uuid.uuid4().hex[:8]}",
    }
    offset_s = index / max(1, plan.replicas) * made[0].count / per_s
    metadata = (("authorization", f"Bearer {plan.token}"),) if plan.token else ()
    return Replica(
        plan.address, dict(resource_), topology=topology, codec=codec, templates=made,
        pace=Pace(per_s, offset_s), metadata=metadata,
    )  # fmt: skip


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
