"""What is said of the node under the pointer: its measured values, of which token, and what is missing.

A card speaks of the newest token of its replica; values that only a deep frame carries are those of the
newest deep frame, and the card names its token where it is another. Pure; plain JSON values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fulgurite.viewer.contribution import residue_bound, verified
from fulgurite.viewer.writing import formula, printed, rate_text
from fulgurite.wire.channels import BY_NAME, LEVELS

if TYPE_CHECKING:
    from fulgurite.viewer.camera import Pick
    from fulgurite.viewer.scene import ReplicaScene
    from fulgurite.wire.frame import FrameBlock

POSITIONS_SHOWN, NEURONS_SHOWN = 5, 5
NOT_CAPTURED = "not captured"


@dataclass(frozen=True, slots=True)
class _Token:
    """One frame of a block."""

    block: FrameBlock
    row: int
    at_s: float

    def value(self, channel: str, *at: int) -> float | None:
        """A value of this frame; None where it was not captured."""
        column = self.block.columns.get(channel)
        if column is None:
            return None
        found = float(column[(self.row, *at)])
        return found if math.isfinite(found) else None

    def gate(self, layer: int, expert: int) -> float | None:
        """The gate weight of an expert: 0 where the router did not choose it; None: not captured."""
        columns = self.block.columns
        if "expert_ids" not in columns or "expert_weights" not in columns:
            return None
        here = columns["expert_ids"][self.row, layer] == expert
        return float(columns["expert_weights"][self.row, layer][here].sum())

    @property
    def request_id(self) -> str:
        return self.block.requests[int(self.block.columns["request_index"][self.row])].request_id

    @property
    def sequence(self) -> int:
        return int(self.block.columns["sequence"][self.row])

    @property
    def name(self) -> str:
        """Its text where that is switched on, and its position."""
        position = f"position {int(self.block.columns['position'][self.row])}"
        texts = self.block.texts
        return position if texts is None else f"“{printed(texts[self.row])}”, {position}"

    @property
    def level(self) -> str:
        column = self.block.columns.get("level")
        return "" if column is None else LEVELS[int(column[self.row])]


def card(scene: ReplicaScene, pick: Pick, now_s: float) -> dict[str, Any]:
    """The card of a node: ``title``, ``rows`` of (label, value, what it is), ``list_title``, ``list``."""
    newest = None if scene.latest is None else _Token(*scene.latest)
    deep = None if scene.latest_deep is None else _Token(*scene.latest_deep)
    is_head = pick.kind == "head"
    title = f"layer {pick.layer} · {_name(scene, pick)}"
    if newest is None:
        return {"title": title, "rows": [["", "no frame yet", ""]], "list_title": "", "list": []}
    if pick.kind == "cell":
        rows = [*_cell(scene, pick, now_s), *_when(scene, newest, deep, now_s)]
        return {"title": title, "rows": rows, "list_title": "", "list": []}
    rows = [*_activity(scene, pick, newest), *_contribution(scene, pick, deep)]
    if is_head:
        rows += _attention(pick, deep)
        list_title, entries = _positions(scene, pick, deep)
    else:
        list_title, entries = _neurons(scene, pick, newest, deep)
    rows += _when(scene, newest, deep, now_s)
    return {"title": title, "rows": rows, "list_title": list_title, "list": entries}


def deep_of(scene: ReplicaScene) -> tuple[FrameBlock, int] | None:
    """The newest frame of level `deep`, as its block and row; None: there is none."""
    return None if scene.latest_deep is None else scene.latest_deep[:2]


def positions_of(scene: ReplicaScene, pick: Pick) -> list[tuple[float, int, str]] | None:
    """Where a head looked for the newest deep token: (weight, position, token); None: not captured."""
    deep = None if scene.latest_deep is None else _Token(*scene.latest_deep)
    if deep is None or "attended_positions" not in deep.block.columns or not _is_measured(deep, pick.layer):
        return None
    return [(w, p, _token_at(scene, deep, p)) for p, w in _looked_at(deep, pick)]


def _looked_at(deep: _Token, pick: Pick) -> list[tuple[int, float]]:
    positions = deep.block.columns["attended_positions"][deep.row, pick.layer, pick.head]
    weights = np.asarray(deep.block.columns["attended_weights"][deep.row, pick.layer, pick.head], float)
    known = [(int(p), float(w)) for p, w in zip(positions, weights, strict=True) if p >= 0 and w > 0]
    return known[:POSITIONS_SHOWN]


def _name(scene: ReplicaScene, pick: Pick) -> str:
    if pick.kind == "cell":
        per = scene.carpet.tokens_per_cell
        first = pick.head * per
        return f"cache position {first}" if per == 1 else f"cache positions {first}–{first + per - 1}"
    if pick.kind == "head":
        return f"head {pick.head}"
    return f"expert {pick.head}" if pick.head >= 0 else _block(scene)


def _cell(scene: ReplicaScene, pick: Pick, now_s: float) -> list[list[str]]:
    """A cell of the cache: by how many sequences it is filled, when it was written to and looked at."""
    carpet = scene.carpet
    filled = float(carpet.fill()[pick.layer, pick.head])
    rows = [
        ["filled by", f"{100 * filled:.0f} %", "share of the sequences under way that have cached so far"]
    ]
    for label, stamps, what in (
        ("written", carpet.written_s, "when a token's key and value last came here"),
        ("looked at", carpet.read_s, "when a drawn head last attended here (routing, not importance)"),
    ):
        ago_s = now_s - float(stamps[pick.layer, pick.head])
        rows.append([label, f"{max(0.0, ago_s):.1f} s ago" if math.isfinite(ago_s) else "not yet", what])
    return rows


def _block(scene: ReplicaScene) -> str:
    return "experts" if scene.topology.experts else "FFN"


def _activity(scene: ReplicaScene, pick: Pick, newest: _Token) -> list[list[str]]:
    if pick.kind == "head":
        return [_write(scene, "head_write", "head", newest.value("head_write", pick.layer, pick.head))]
    rows = [_write(scene, "ffn_write", "ffn", newest.value("ffn_write", pick.layer))]
    if pick.head >= 0 and scene.topology.experts:
        rows.insert(0, _row("gate weight", newest.gate(pick.layer, pick.head), "expert_weights"))
    rows.append(_row("cosine to the stream", newest.value("ffn_cosine", pick.layer), "ffn_cosine"))
    return rows


def _write(scene: ReplicaScene, channel: str, kind: str, value: float | None) -> list[str]:
    """The write norm, and where it lies on the scale that its light is drawn with."""
    row, display = _row("write norm", value, channel), scene.display(kind)
    if value is not None and display is not None:
        share = 100 * float(display(value))
        way = ", logarithmic" if display.is_log else ""
        row[2] += f" · light {share:.0f} % between {display.low:.2g} and {display.high:.2g}{way}"
    return row


def _contribution(scene: ReplicaScene, pick: Pick, deep: _Token | None) -> list[list[str]]:
    head = pick.kind == "head"
    channel = "head_contribution" if head else "ffn_contribution"
    value = None if deep is None else deep.value(channel, pick.layer, *((pick.head,) if head else ()))
    row = _row("contribution", value, channel, sign=True)
    if deep is not None and value is not None and not verified(deep.block, scene.topology.dtype)[deep.row]:
        row[2] = f"unverified: the residue is over {residue_bound(scene.topology.dtype):g} σ, or unknown"
    return [row]


def _attention(pick: Pick, deep: _Token | None) -> list[list[str]]:
    at = (pick.layer, pick.head)
    seen = deep is not None and _is_measured(deep, pick.layer)
    return [
        _row(
            "attention entropy",
            deep.value("attention_entropy", *at) if deep and seen else None,
            "attention_entropy",
        ),
        _row("sink mass", deep.value("sink_mass", *at) if deep and seen else None, "sink_mass"),
    ]


def _is_measured(deep: _Token, layer: int) -> bool:
    """Whether attention was captured in this layer: where layers take turns, only one is."""
    measured = deep.block.columns.get("measured_layers")
    return measured is None or bool(measured[deep.row, layer])


def _positions(scene: ReplicaScene, pick: Pick, deep: _Token | None) -> tuple[str, list[list[str]]]:
    """The positions that a head attended to most: weight, position, token."""
    if deep is None or "attended_positions" not in deep.block.columns:
        return "attended positions: not captured", []
    if not _is_measured(deep, pick.layer):
        return "attended positions: this layer was not looked at for this token", []
    entries = [
        [f"{100 * weight:.0f} %", f"{position}", _token_at(scene, deep, position)]
        for position, weight in _looked_at(deep, pick)
    ]
    return "attends most to position (routing, not importance)", entries


def _token_at(scene: ReplicaScene, deep: _Token, position: int) -> str:
    text = scene.text_at(deep.request_id, deep.sequence, position)
    if text is not None:
        return f"“{printed(text)}”"
    prompt = scene.prompt_tokens(deep.request_id, deep.sequence)
    return "of the prompt" if prompt is not None and position < prompt else ""


def _neurons(
    scene: ReplicaScene, pick: Pick, newest: _Token, deep: _Token | None
) -> tuple[str, list[list[str]]]:
    """Experts with their gate weights; else the neurons that wrote most."""
    if scene.topology.experts:
        return _experts(pick, newest)
    if deep is None or "neuron_ids" not in deep.block.columns:
        return "largest neurons: not captured", []
    ids = deep.block.columns["neuron_ids"][deep.row, pick.layer]
    values = deep.block.columns["neuron_values"][deep.row, pick.layer]
    entries = [
        [f"{float(value):.3g}", f"neuron {int(index)}", ""]
        for index, value in zip(ids, values, strict=True)
        if index >= 0 and math.isfinite(float(value))
    ]
    return f"largest neurons, {formula('neuron_values')} [residual units]", entries[:NEURONS_SHOWN]


def _experts(pick: Pick, newest: _Token) -> tuple[str, list[list[str]]]:
    columns = newest.block.columns
    if "expert_ids" not in columns or "expert_weights" not in columns:
        return "experts: not captured", []
    ids, weights = (columns[name][newest.row, pick.layer] for name in ("expert_ids", "expert_weights"))
    chosen = [(int(i), float(w)) for i, w in zip(ids, weights, strict=True) if i >= 0]
    return "experts and their gate weights", [[f"{w:.3f}", f"expert {i}", ""] for i, w in chosen]


def _when(scene: ReplicaScene, newest: _Token, deep: _Token | None, now_s: float) -> list[list[str]]:
    rows = [["token", newest.name, f"request {newest.request_id}, sequence {newest.sequence}"]]
    if deep is not None and (deep.block is not newest.block or deep.row != newest.row):
        rows.append(["deep values of", deep.name, f"{max(0.0, now_s - deep.at_s):.1f} s before the playhead"])
    step = newest.block.columns.get("step")
    of_step = "" if step is None else f"step {int(step[newest.row])}, "
    rows.append(["when", f"{max(0.0, now_s - newest.at_s):.1f} s ago", f"{of_step}before the playhead"])
    sampled = scene.contributions if scene.contributions.tokens else scene.reads
    rows.append(["level", newest.level, f"deep: {rate_text(sampled)}" if sampled.of else ""])
    return rows


def _row(label: str, value: float | None, channel: str, *, sign: bool = False) -> list[str]:
    """A value with its unit and formula, or that it was not captured."""
    what = BY_NAME[channel]
    if value is None:
        return [label, NOT_CAPTURED, formula(channel)]
    text = (f"{value:+.3g}" if sign else f"{value:.3g}").replace("-", "−")
    return [label, text + ("" if what.unit == "1" else f" {what.unit}"), formula(channel)]
