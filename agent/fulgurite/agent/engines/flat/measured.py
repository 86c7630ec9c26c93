"""From what a trial pass showed to what measures the steps that follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from fulgurite.agent import reduce
from fulgurite.agent.anatomy import Anatomy
from fulgurite.agent.awaited import Exchange
from fulgurite.agent.config import Settings
from fulgurite.agent.deep import Reasons
from fulgurite.agent.engines.flat.attended import Attended
from fulgurite.agent.engines.flat.depth import depth
from fulgurite.agent.engines.flat.desk import Desk
from fulgurite.agent.engines.flat.heads import Heads
from fulgurite.agent.engines.flat.measure import Measure, Router
from fulgurite.agent.engines.flat.neurons import Neurons
from fulgurite.agent.engines.flat.seen import Trial
from fulgurite.agent.unmeasured import unmeasured

_MOST_BYTES: Final = 64 << 20  # of what the layers leave in one step
_FEWEST_ROWS: Final = 16


def measured(
    anatomy: Anatomy,
    trial: Trial,
    desk: Desk,
    settings: Settings,
    *,
    routing: Callable[[], Router | None] = lambda: None,
    part: tuple[int, int] | None = None,
    exchange: Exchange | None = None,
    attended: Attended | None = None,
) -> tuple[Anatomy, Measure]:
    """The model's parts, with the reasons for what is not told of them, and what measures them.

    Parameters
    ----------
    routing : makes what tells how tokens are sent to experts, when it is known how many rows the desk keeps.
    part, exchange : the rows of the unembedding that are here, and what gives those that other processes
        hold; None where all are here, or nobody can be asked.
    attended : for level `deep`, the layers that are looked at; None where none can be.
    """
    deep = settings.level == "deep"
    heads = Heads(anatomy.layers, trial)
    topology = anatomy.topology
    layout = reduce.plan(
        anatomy.layers,
        trial.wiring,
        heads=topology.heads,
        width=topology.hidden_size,
        deep=deep,
        blind=heads.blind,
    )
    attended = attended if deep else None
    desk.most = _fitting(desk, layout, 0 if attended is None else attended.width)
    readout, attribution, neurons = None, None, None
    missing: dict[str, str] = {}
    undeep: Reasons = {}
    if deep:
        readout, attribution, missing = depth(anatomy, trial, layout, heads, part)
        neurons = Neurons(anatomy.layers, trial, desk, every=settings.deep_ratio >= 1.0)
        undeep = neurons.reasons | (attended.reasons if attended is not None else {})
    reasons = unmeasured(anatomy.layers, trial.wiring, heads.blind, undeep, is_deep=deep)
    measure = Measure(
        layout,
        heads.stacked(layout),
        desk,
        attribution=attribution,
        readout=readout,
        neurons=neurons,
        attended=attended,
        routing=routing(),
        paired=trial.paired,
        exchange=exchange,
    )
    return anatomy.without({**reasons, **missing}), measure


def _fitting(desk: Desk, layout: reduce.Plan, queries: int) -> int:
    """Rows that the desk has room for, each of so many numbers of queries beside what the layers leave."""
    item = torch.empty((), dtype=desk.dtype).element_size()
    width = queries + len(layout.places) * layout.width
    width += sum(len(group.slots) * group.heads * group.head_dim for group in layout.groups)
    return min(desk.most, max(_FEWEST_ROWS, _MOST_BYTES // max(1, width * item)))
