"""Tokens as a page is told of them: columns as they were captured, and the arcs of the drawn chains.

Where more was captured than `room` bytes hold, the facts of every token still go, whole columns only of some
(of those whose chain was drawn first), and the light of all is folded into one: per node its largest display
value.

Pure. Shape letters: n tokens, d of them with their columns, a arcs, L layers, H heads, E plates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fulgurite.viewer.bolts import Arcs, frame_seed
from fulgurite.viewer.message import pack
from fulgurite.wire.channels import BY_NAME

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.viewer.scene import ReplicaScene
    from fulgurite.wire.frame import FrameBlock

    Array = NDArray[Any]

FACTS: dict[str, str] = {
    "request_index": "u2", "sequence": "u2", "position": "i4", "token_id": "i4", "phase": "u1", "level": "u1",
    "batch_size": "u2", "logprob": "f4", "logprob_sampled": "f4", "entropy": "f4", "margin": "f4",
    "rank": "i4", "residue": "f4", "logit_centered": "f4", "embedding_contribution": "f4",
    "other_contribution": "f4",
}  # fmt: skip
"""Scalars of a token that always travel, with their number types; the clocks are told apart from these."""
WIDE = ("step", "started_ns", "ended_ns", "kv_bytes", "parent_row")
NO_ROW = 0xFFFF
UNKNOWN = 255  # in folded light: no value for this node
FULL = 254  # in folded light: display value 1

Told = Sequence[tuple[int, Arcs]]
"""Chains that were drawn: the seed that names their frame, and their arcs."""


def tokens(
    scene: ReplicaScene,
    block: FrameBlock,
    at_s: NDArray[np.float64],
    told: Told,
    *,
    unit: float,
    room: int,
    header: Mapping[str, Any],
) -> bytes:
    """The message of a block whose tokens are played at `at_s` (n,), never decreasing.

    Parameters
    ----------
    unit : step of the ends of arcs, as `portrait.unit` says it.
    room : most bytes of columns.
    header : what else is said: ``key``, ``serial``.
    """
    chains = _by_row(block, told)
    whole = {name: _narrow(name, column) for name, column in block.columns.items() if _is_column(name)}
    rows = _rows(len(block), whole, list(chains), room)
    arrays: dict[str, Array] = {"at": np.asarray(at_s, np.float64), **_facts(scene, block)}
    if rows is not None:
        place = np.full(len(block), NO_ROW, np.uint16)
        place[rows] = np.arange(len(rows))
        arrays["row"] = place
        whole = {name: column[rows] for name, column in whole.items()}
        arrays |= _folded(scene, block, float(at_s[-1]))
    arrays |= {f"c:{name}": column for name, column in whole.items()}
    arrays |= _arcs(chains, unit)
    first = {
        "kind": "tokens",
        "requests": [[ref.request_id, ref.trace_id, ref.span_id] for ref in block.requests],
        "texts": block.texts,
        "per_cell": scene.carpet.tokens_per_cell,
    }
    return pack({**first, **header}, arrays)


def _is_column(name: str) -> bool:
    return name not in FACTS and name not in WIDE and name in BY_NAME


def _narrow(name: str, column: Array) -> Array:
    """A column in the number type that it has on the wire; whole numbers in the least that holds them."""
    if column.dtype.kind == "f":
        return column.astype(BY_NAME[name].exact)
    if column.size and column.dtype.kind in "iu":
        low, high = int(column.min()), int(column.max())
        for dtype in ("i1", "i2", "i4"):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return column.astype(dtype)
    return column


def _rows(n: int, whole: Mapping[str, Array], drawn: Sequence[int], room: int) -> list[int] | None:
    """Which tokens travel with their columns; None: all of them."""
    size = sum(column.nbytes for column in whole.values())
    if size <= room and n < NO_ROW:
        return None
    most = max(1, int(room // max(1.0, size / n)))
    rest = [row for row in range(n - 1, -1, -1) if row not in set(drawn)]
    return sorted([*drawn, *rest][:most])


def _facts(scene: ReplicaScene, block: FrameBlock) -> dict[str, Array]:
    columns = block.columns
    facts: dict[str, Array] = {
        name: np.asarray(columns[name]).astype(dtype) for name, dtype in FACTS.items() if name in columns
    }
    if "started_ns" in columns and "ended_ns" in columns:
        facts["step_s"] = ((columns["ended_ns"] - columns["started_ns"]) / 1e9).astype(np.float32)
    if "ended_ns" in columns:
        facts["ended_s"] = columns["ended_ns"].astype(np.float64) / 1e9
    for name in ("step", "kv_bytes"):
        if name in columns:
            facts[name] = columns[name].astype(np.float64)
    colors = dict(scene.requests)
    of = [colors.get(ref.request_id, 0) for ref in block.requests]
    facts["color"] = np.array([of[int(index)] for index in columns["request_index"]], np.uint8)
    return facts


def _by_row(block: FrameBlock, told: Told) -> dict[int, Arcs]:
    """The drawn chains by the row of their token."""
    waiting = dict(told)
    found: dict[int, Arcs] = {}
    columns = block.columns
    for row in range(len(block)) if waiting else ():
        name = block.requests[int(columns["request_index"][row])].request_id
        arcs = waiting.pop(
            frame_seed(name, int(columns["sequence"][row]), int(columns["position"][row])), None
        )
        if arcs is not None:
            found[row] = arcs
    return found


def _arcs(chains: Mapping[int, Arcs], unit: float) -> dict[str, Array]:
    """All arcs one after the other, in the order of their tokens' rows."""
    if not chains:
        return {}
    every = list(chains.values())

    def joined(part: str) -> Array:
        return np.concatenate([getattr(arcs, part) for arcs in every])

    return {
        "a:row": np.repeat(np.array(list(chains), np.uint16), [len(arcs) for arcs in every]),
        "a:start": np.rint(joined("start") / unit).astype(np.int16),
        "a:end": np.rint(joined("end") / unit).astype(np.int16),
        "a:display": joined("display").astype(np.float16),
        "a:width": joined("width").astype(np.float16),
        "a:push": joined("push").astype(np.float16),
        "a:delay": joined("delay").astype(np.float32),
        "a:kind": joined("kind").astype(np.uint8),
        "a:node": joined("node").astype(np.uint16),
    }


def _folded(scene: ReplicaScene, block: FrameBlock, at_s: float) -> dict[str, Array]:
    """The light of all tokens of a block in one: displays rise with values, so the largest value's is it."""
    folded: dict[str, Array] = {"fold:at": np.array([at_s])}
    for channel, kind in (("head_write", "head"), ("ffn_write", "ffn")):
        display = scene.display(kind)
        if display is not None and channel in block.columns:
            largest = np.fmax.reduce(np.asarray(block.columns[channel], np.float32), axis=0)
            folded[f"fold:{kind}"] = _levels(display(largest))
    if scene.topology.experts and "expert_ids" in block.columns and "expert_weights" in block.columns:
        display = scene.display("expert")
        if display is not None:
            folded["fold:expert"] = _levels(display(_experts(scene, block)))
    return folded


def _experts(scene: ReplicaScene, block: FrameBlock) -> Array:
    """The largest gate weight of each expert, shape (L, E)."""
    ids = block.columns["expert_ids"].astype(np.int64)
    largest = np.zeros(scene.plates.display.shape, np.float32)
    chosen = (ids >= 0) & (ids < largest.shape[-1])
    _, layer, _ = np.nonzero(chosen)
    np.maximum.at(largest, (layer, ids[chosen]), np.clip(block.columns["expert_weights"], 0.0, 1.0)[chosen])
    return largest


def _levels(display: Array) -> Array:
    known = np.isfinite(display)
    return np.where(known, np.rint(np.where(known, display, 0.0) * FULL), UNKNOWN).astype(np.uint8)
