"""One family through capture and through the reference: every channel beside what it ought to be.

Capture and reference see the same run of `generate`, a padded batch with prefill and decode. For float32 the
reference is a float64 copy of the whole model, for bfloat16 float64 arithmetic on what the modules of that
very run received and gave.

Shape letters: F frames, L layers, H heads, K candidates, N neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tests.reference.arithmetic import log_softmax
from tests.reference.errors import COMPARED, Agreement, agreement, channel_agreement
from tests.reference.families import VOCABULARY, build
from tests.reference.oracle import BfloatOracle, Oracle
from tests.reference.recipes import Recipe, recipe_of

from fulgurite.agent import InMemoryExporter, instrument
from fulgurite.wire.frame import Frame
from fulgurite.wire.topology import Topology

Array = NDArray[np.float64]

PROMPTS = (12, 7)  # real tokens; the second is padded on the left. The window of the tiny models is 8
NEW_TOKENS = 4
BUCKETS, RECENT = 24, 8


@dataclass(frozen=True)
class Run:
    """What was captured and what ought to have been, frame by frame.

    Attributes
    ----------
    wanted : the reference's channels of each frame.
    same_tokens : the observed run gave the tokens of the unobserved one.
    """

    frames: list[Frame]
    wanted: list[dict[str, Any]]
    topology: Topology
    recipe: Recipe
    same_tokens: bool

    @property
    def unavailable(self) -> dict[str, str]:
        """Channels that capture says it cannot give, and why."""
        return dict(self.topology.unavailable)

    def captured(self, channel: str) -> Any:
        """(F, *channel shape), None where no frame has it."""
        values = [getattr(frame, channel) for frame in self.frames]
        return None if all(value is None for value in values) else np.stack(values)

    def reference(self, channel: str) -> Any:
        """(F, *channel shape)."""
        return np.stack([wanted[channel] for wanted in self.wanted])


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of the padded prompts."""
    generator = torch.Generator().manual_seed(11)
    ids = torch.zeros(len(PROMPTS), max(PROMPTS), dtype=torch.long)
    for row, length in enumerate(PROMPTS):
        ids[row, -length:] = torch.randint(2, VOCABULARY, (length,), generator=generator)
    return ids, (ids > 0).long()


def run(
    name: str, *, dtype: torch.dtype = torch.float32, attn_implementation: str = "eager", seed: int = 0
) -> Run:
    """Take a family through both."""
    model: Any = build(name, dtype=dtype, attn_implementation=attn_implementation, seed=seed)
    ids, mask = prompts()
    return compare(model, ids, mask, new_tokens=NEW_TOKENS)


def compare(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    new_tokens: int,
    watch: bool | None = None,
    **options: Any,
) -> Run:
    """Take one batch through both.

    Parameters
    ----------
    watch : refer to what the modules of this very run gave, in place of a float64 copy of the model; by
        default only where the model is not of float32.
    options : those of `generate`.
    """
    if watch is None:
        watch = next(model.parameters()).dtype != torch.float32
    settings = {"do_sample": False, "pad_token_id": 0, **options, "max_new_tokens": new_tokens}
    seed = 3

    def generate() -> torch.Tensor:
        torch.manual_seed(seed)
        found: torch.Tensor = model.generate(ids, attention_mask=mask, **settings)
        return found

    exporter: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=exporter):
        out = generate()
    with BfloatOracle(model) as watched:
        again = generate()
    copies = len(out) // len(ids)
    wanted = _wanted(model, watched if watch else None, out, mask.repeat_interleave(copies, 0))
    frames = list(exporter.frames)
    return Run(
        frames=frames,
        wanted=[wanted(frame) for frame in frames],
        topology=exporter.topology,
        recipe=recipe_of(model),
        same_tokens=torch.equal(out, again),
    )


def _wanted(
    model: Any, watched: BfloatOracle | None, out: torch.Tensor, mask: torch.Tensor
) -> Callable[[Frame], dict[str, Any]]:
    """The reference's channels of a frame."""
    paddings = (mask == 0).sum(-1).tolist()
    if watched is None:
        exact = Oracle(model)
        whole = [exact(row[padding:]) for row, padding in zip(out, paddings, strict=True)]
        return lambda frame: _own_keys(whole[frame.sequence].at(frame.position), frame.position)
    width = mask.shape[1]

    def of(frame: Frame) -> dict[str, Any]:
        padding = paddings[frame.sequence]
        step = frame.position - (width - padding)
        return watched.row(
            step, frame.sequence, token_id=frame.token_id, position=frame.position, padding=padding
        )

    return of


def _own_keys(channels: dict[str, Any], position: int) -> dict[str, Any]:
    """The same with attention over the keys that were there."""
    if "attention_weights" in channels:
        channels["attention_weights"] = channels["attention_weights"][..., :position]
    return channels


def agreements(run: Run) -> dict[str, Agreement]:
    """How well every captured channel agrees, by channel; ids by the reference's values for them."""
    found: dict[str, Agreement] = {}
    for channel in COMPARED:
        captured = run.captured(channel)
        if captured is not None and channel not in _BY_ID:
            found[channel] = channel_agreement(channel, captured, run.reference(channel))
    for channel, compare_ids in _BY_ID.items():
        if run.captured(channel) is not None:
            found[channel] = compare_ids(run)
    if run.captured("kv_heat") is not None:
        found["kv_heat"] = agreement(run.captured("kv_heat"), heats(run), grouped=2, magnitude=1.0)
    return found


def _other(run: Run) -> Agreement:
    """The rest that has a formula, rounding included (of the residual additions, and of what reads the
    stream), in the logits' own spread: it is as good as 0 where there are no biases, so that its order means
    nothing."""
    spread = run.reference("logit_spread")
    rounding = run.reference("rounding_contribution") + run.reference("residue") * spread
    wanted = run.reference("other_contribution") + rounding
    found = agreement(run.captured("other_contribution") / spread, wanted / spread, grouped=0, magnitude=1.0)
    return replace(found, correlation=float("nan"))


def _attended(run: Run) -> Agreement:
    """Reported weights against the reference's largest, and against its weights at the reported positions."""
    positions, weights = run.captured("attended_positions"), run.captured("attended_weights")
    largest, there = np.full(weights.shape, np.nan), np.full(weights.shape, np.nan)
    for i, wanted in enumerate(run.wanted):
        rows = wanted["attention_weights"]
        order = np.sort(rows, axis=-1)[..., ::-1][..., : weights.shape[-1]]
        largest[i, ..., : order.shape[-1]] = order
        picked = np.take_along_axis(rows, np.maximum(positions[i], 0), axis=-1)
        there[i] = np.where(positions[i] >= 0, picked, np.nan)
    largest = np.where(np.isnan(weights), np.where(largest > 1e-6, largest, np.nan), largest)
    return _worse(agreement(weights, largest, grouped=2), agreement(weights, there, grouped=2))


def _likeliest(run: Run) -> Agreement:
    """Reported log-probabilities against the reference's largest."""
    return agreement(run.captured("top_logprobs"), run.reference("top_logprobs"), grouped=1)


def _lens(run: Run) -> Agreement:
    """Probabilities against the softmax of the reference's logits for the candidates that were reported."""
    candidates = run.captured("top_ids")  # (F, K)
    logits = run.reference("lens_logits_vocabulary")  # (F, L, V)
    chosen = np.take_along_axis(logits, candidates[:, None], axis=-1)
    return agreement(run.captured("lens_prob"), np.exp(log_softmax(chosen)), grouped=2)


def lens_rank_errors(run: Run, *, slack: float) -> int:
    """How many ranks are not among those that the reference allows when logits within `slack` may swap."""
    candidates, ranks = run.captured("top_ids"), run.captured("lens_rank")
    logits = np.take_along_axis(run.reference("lens_logits_vocabulary"), candidates[:, None], axis=-1)
    above = logits[..., None, :] - logits[..., :, None]  # other minus own
    least, most = (above > slack).sum(-1), (above > -slack).sum(-1) - 1
    return int(((ranks < least) | (ranks > most)).sum())


def _neurons(run: Run) -> Agreement:
    """Sizes against the reference's largest, and against its sizes of the reported neurons."""
    ids, values = run.captured("neuron_ids"), run.captured("neuron_values")
    sizes = run.reference("neuron_sizes")  # (F, L, f)
    there = np.take_along_axis(sizes, np.maximum(ids, 0), axis=-1)
    there[ids < 0] = np.nan
    return _worse(
        agreement(values, run.reference("neuron_values"), grouped=2), agreement(values, there, grouped=2)
    )


def _worse(first: Agreement, second: Agreement) -> Agreement:
    return first if first.relative >= second.relative else second


_BY_ID: Mapping[str, Callable[[Run], Agreement]] = {
    "other_contribution": _other,
    "attended_weights": _attended,
    "top_logprobs": _likeliest,
    "lens_prob": _lens,
    "neuron_values": _neurons,
}


CHANNELS = frozenset({*COMPARED, "kv_heat"})
"""Channels that `agreements` compares."""


def heats(run: Run) -> Array:
    """`kv_heat` (F, L, B), key by key, from the reference's weights."""
    windows = [layer.window for layer in run.recipe.layers]
    found = np.full((len(run.frames), len(windows), BUCKETS), np.nan)
    for i, (frame, wanted) in enumerate(zip(run.frames, run.wanted, strict=True)):
        for index, window in enumerate(windows):
            weights = wanted["attention_weights"][index]
            weights = weights[~np.isnan(weights).any(axis=-1)]
            if len(weights):
                found[i, index] = _heat(weights.mean(axis=0), frame.position - 1, window)
    return found


def _heat(mass: Array, query: int, window: int | None) -> Array:
    heat = np.full(BUCKETS, np.nan)
    for key in range(query + 1):
        distance = query - key
        if window is not None and distance >= window:
            continue
        if key == 0:
            bucket = 0
        elif distance < RECENT:
            bucket = BUCKETS - 1 - distance
        else:
            bucket = max(1, 18 - int(np.floor(np.log2(distance))))
        heat[bucket] = np.nan_to_num(heat[bucket]) + mass[key]
    return heat


def residues(run: Run) -> Array:
    """|residue| of every frame."""
    return np.abs(np.asarray([frame.residue for frame in run.frames], dtype=np.float64))
