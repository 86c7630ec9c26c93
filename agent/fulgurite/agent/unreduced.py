"""The rows that a step was measured from, held, and how numpy reduces them: not on the host's thread.

Takes the place of `reduce` where the rows are in host memory and not too many. The host's thread then pays
for keeping hold of them; whoever reads the block pays for the arithmetic, about as much as the host's thread
would. Computes nothing with torch, so that no thread of its pools is asked for, and none is started.

Shape letters: n rows, S vectors, L layers, H heads, D width of a head, d residual width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from fulgurite.agent.reduce import Plan, numbers
from fulgurite.agent.scratch import WIDEST, scratch, widened
from fulgurite.wire.channels import TOP_K

Array = np.ndarray[Any, Any]
Rows = Array | torch.Tensor
"""Rows in host memory, in the end (n, width)."""
Part = Array | list[torch.Tensor] | list[Array]
"""Rows of several slots: together, or one by one as the model left them."""
Slots = slice | list[int]
Summed = tuple[Slots, Slots, Slots]
"""Slots, and the two others that they are the sums of."""
_BLOCK = 64
_AT_ONCE = 1 << 18  # numbers: fewer take more calls, more do not stay in a cache
_FEW = 8  # so many times fewer are gathered one by one
_LEAST = -1e4  # log-probability below which a token adds nothing to the entropy: keeps 0 * inf out


class Left(Protocol):
    """What is left of level `deep` (`late_deep`)."""

    def told(self, inputs: Sequence[Array | list[Array]], /) -> dict[str, Array]:
        """The results. `inputs` are what each group's projections were handed."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Unreduced:
    """What is left to reduce of one step.

    Attributes
    ----------
    logits : ndarray, shape (n, V), of the model's own type (`reduce.numbers`); or their tensor.
    tokens : ndarray of int32, shape (n,), the emitted ones.
    full : all of uncertainty, not the log-probability alone.
    nbytes : what the step holds of its own, at most about.
    kept : (S, n, d), one per slot of the plan, then per group (L, n, H * D); as one part (S + L, n, d) where
        the plan is joint; none where layers are not measured. Each of them one array, or one tensor per slot.
    grams : per group, float32 (L, H, D, D); of the model, not of the step.
    scores : as `logits`, what was sampled from; None where nothing processed the logits.
    top_ids : ndarray of int, shape (n, K), the most probable tokens, where they are known already.
    summed : slots of the first part, which is one array, that nothing was left in.
    layout : of what is kept, where it is another than that of the step.
    deep : what of level `deep` is left.
    """

    logits: Rows
    tokens: Array
    full: bool
    nbytes: int
    kept: tuple[Part, ...] = ()
    grams: tuple[Array, ...] = ()
    scores: Rows | None = None
    top_ids: Array | None = None
    summed: Summed | None = None
    layout: Plan | None = None
    deep: Left | None = None

    def reduced(self, layout: Plan | None) -> dict[str, Array]:
        """What `reduce` gives for these rows."""
        # Of scores that leave no token nothing can be told: NaN. A score that is too large for its power is
        # told in the other way (`_sampled`).
        with np.errstate(all="ignore"):
            if self.summed is not None:
                _add(self.kept[0], self.summed)  # type: ignore[arg-type]
            scores = None if self.scores is None else _rows(self.scores)
            found = uncertainty(
                _rows(self.logits), self.tokens, full=self.full, top_ids=self.top_ids, scores=scores
            )
        if self.kept and layout is not None:
            count = len(layout.places)
            first, *others = map(_slots, self.kept)
            found.update(stream(first[:count], layout))
            inputs = [first[count:]] if layout.is_joint else others
            for i, (rows, grams) in enumerate(zip(inputs, self.grams, strict=True)):
                found[f"heads{i}"] = head_squares(rows, grams)
            if self.deep is not None:
                found.update(self.deep.told(inputs))  # type: ignore[arg-type]  # by now these are arrays
        return found


def _add(kept: Array, summed: Summed) -> None:
    """Fill in what is a sum, rounded as the model's number format rounds it."""
    after, first, second = summed
    if kept.dtype != np.int16:
        kept[after] = kept[first] + kept[second]
        return
    found = widened(kept[first], "first")
    found += widened(kept[second], "second")
    bits = found.view(np.uint32)
    upper = scratch("upper", found.shape, np.uint32)
    np.right_shift(bits, 16, out=upper)
    np.bitwise_and(upper, 1, out=upper)
    upper += 0x7FFF  # halves go to the even one
    is_number = not np.isnan(found).any()  # else what is added could make an infinity of it
    bits += upper if is_number else np.where(np.isnan(found), 0, upper)
    kept[after] = np.right_shift(bits, 16, out=upper).astype(np.uint16).view(np.int16)


def _rows(rows: Rows) -> Array:
    """As (n, width), of the type that they have."""
    found = rows if isinstance(rows, np.ndarray) else numbers(rows)
    return found.reshape(-1, found.shape[-1])


def _slots(part: Part) -> Part:
    """Slots of (n, width) each, of one type."""
    if isinstance(part, np.ndarray):
        return part
    slots = [_rows(slot) for slot in part]
    if any(found.dtype != slots[0].dtype for found in slots):  # under autocast parts differ
        return [widened(found, "slot").copy() for found in slots]
    return slots


def _together(slots: Part, rows: slice = slice(None)) -> Array:
    """`rows` of these slots as float32 (slots, rows, width), in memory that the next call overwrites."""
    if isinstance(slots, np.ndarray):
        return widened(slots[:, rows], "wide")
    several = [slot[rows] for slot in slots]
    shape = len(several), *several[0].shape
    stacked = np.stack(several, out=scratch("stacked", shape, several[0].dtype))
    return widened(stacked, "wide")


def uncertainty(
    logits: Array,
    tokens: Array,
    *,
    full: bool,
    top_ids: Array | None = None,
    scores: Array | None = None,
) -> dict[str, Array]:
    """As `reduce.uncertainty`, of rows in host memory, and `logprob_sampled` where there are scores.

    So many rows at a time as stay in the processor's cache.
    """
    count, width = logits.shape
    step = max(1, _AT_ONCE // width)
    parts = [
        _told(
            logits[rows],
            tokens[rows],
            full=full,
            top_ids=None if top_ids is None else top_ids[rows],
            scores=None if scores is None else scores[rows],
        )
        for rows in (slice(start, start + step) for start in range(0, max(1, count), step))
    ]
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _told(
    logits: Array, tokens: Array, *, full: bool, top_ids: Array | None, scores: Array | None
) -> dict[str, Array]:
    """`uncertainty` of a few rows."""
    logits = widened(logits, "logits")
    rows = np.arange(len(tokens))
    maxima = _maxima(logits) if full and top_ids is None else logits
    most = maxima.max(-1)
    shifted = np.subtract(logits, most[:, None], out=scratch("shifted", logits.shape))
    powers = np.exp(shifted, out=scratch("powers", logits.shape))
    total = powers.sum(-1)
    logarithm = np.log(total)
    chosen = shifted[rows, tokens] - logarithm
    found = {"logprob": chosen}
    if full:
        ids = _top_ids(logits, maxima) if top_ids is None else top_ids
        top = shifted[rows[:, None], ids] - logarithm[:, None]
        if (chosen >= top[:, -1]).all():  # none of the others comes before it
            rank = np.count_nonzero(top > chosen[:, None], -1)
        else:
            rank = np.count_nonzero(_compared(np.greater, logits, logits[rows, tokens][:, None]), -1)
        weighted = np.einsum("nv,nv->n", powers, shifted)
        if not np.isfinite(weighted).all():  # where a token cannot come, 0 * -inf is nothing
            weighted = np.einsum("nv,nv->n", powers, np.maximum(shifted, _LEAST, out=shifted))
        found |= {"top_ids": ids, "top_logprobs": top, "rank": rank, "plogp": weighted / total - logarithm}
    if scores is not None:
        found["logprob_sampled"] = _sampled(widened(scores, "scores"), tokens, (logits, most, powers, total))
    return found


def _sampled(scores: Array, tokens: Array, told: tuple[Array, Array, Array, Array]) -> Array:
    """The tokens' log-probability by the scores; `told` are the logits, the largest of each row, the powers
    without it, and their sums. What most people choose changes few scores, or leaves few tokens: then only
    those are looked at."""
    logits, most, powers, total = told
    rows = np.arange(len(tokens))
    if (found := _where(_compared(np.not_equal, scores, logits))) is not None:
        row, place = found
        gone = np.bincount(row, powers[row, place], len(rows))
        come = np.bincount(row, np.exp(scores[row, place] - most[row]), len(rows))
        left = total - gone + come
        if ((left > total / _FEW) & (left < total * _FEW)).all():  # else little is left of the digits
            return _known(scores[rows, tokens] - most - np.log(left))
    most = scores.max(-1)
    if (found := _where(_compared(np.greater, scores, -np.inf))) is not None:
        row, place = found
        left = np.bincount(row, np.exp(scores[row, place] - most[row]), len(rows))
    else:
        left = np.exp(np.subtract(scores, most[:, None], out=powers), out=powers).sum(-1)
    return _known(scores[rows, tokens] - most - np.log(left))


def _known(found: Array) -> Array:
    return found.astype(np.float32, copy=False)


def _compared(how: np.ufunc, ours: Array, others: Array | float) -> Array:
    """Which of `ours` are so, in memory that the next call overwrites."""
    found: Array = how(ours, others, out=scratch("compared", ours.shape, np.bool_))
    return found


def _where(these: Array) -> tuple[Array, Array] | None:
    """Rows and places, where they are few."""
    if np.count_nonzero(these) * _FEW >= these.size:
        return None
    row, place = np.divmod(np.flatnonzero(these), these.shape[1])  # of one axis numpy finds them faster
    return row, place


def _maxima(logits: Array) -> Array:
    """Of each block of a row, (n, blocks), the last of them what is left over. Tokens of a block lie a 64th
    of the vocabulary apart, so that all are taken in one go over memory."""
    rows, width = logits.shape
    if width < TOP_K * _BLOCK:
        return logits
    whole = width - width % _BLOCK
    best: Array = logits[:, :whole].reshape(rows, _BLOCK, -1).max(1)
    if whole < width:
        best = np.concatenate([best, logits[:, whole:].max(-1, keepdims=True)], -1)
    return best


def _top_ids(logits: Array, maxima: Array) -> Array:
    """Ids of the most probable tokens, (n, K): none is less than the K-th largest of the blocks' maxima."""
    rows, width = logits.shape
    if width < TOP_K * _BLOCK:
        return largest_places(logits, min(TOP_K, width))
    least = np.partition(maxima, -TOP_K)[:, -TOP_K]
    ids = np.empty((rows, TOP_K), np.int64)
    for i, row in enumerate(logits):
        among = np.flatnonzero(_compared(np.greater_equal, row, least[i]))
        if not TOP_K <= len(among) <= TOP_K * _BLOCK:  # with NaN nothing compares; of equals all do
            ids[i] = largest_places(row[None], TOP_K)[0]
        else:
            ids[i] = among[np.argsort(-row[among], kind="stable")[:TOP_K]]
    return ids


def largest_places(values: Array, count: int) -> Array:
    """Places of the `count` largest of each row, the largest first."""
    places = np.argpartition(values, -count)[:, -count:]
    order = np.argsort(-np.take_along_axis(values, places, -1), kind="stable")
    return np.take_along_axis(places, order, -1)


def stream(slots: Part, layout: Plan) -> dict[str, Array]:
    """As `reduce.stream`, of some rows at a time."""
    rows, width = slots[0].shape
    step = max(1, _AT_ONCE // max(1, len(slots) * width))
    parts = [
        _streamed(_together(slots, slice(start, start + step)), layout)
        for start in range(0, max(1, rows), step)
    ]
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts], -1) for name in parts[0]}


def _streamed(stacked: Array, layout: Plan) -> dict[str, Array]:
    found = {"norms": np.sqrt(np.einsum("snd,snd->sn", stacked, stacked))}
    if layout.met.size:
        writes, before = (stacked[slots] for slots in layout.met_slots)
        found["products"] = np.einsum("snd,snd->sn", writes, before)
    if layout.is_centred:
        found["means"] = stacked.mean(-1)
    return found


def head_squares(slots: Part, grams: Array) -> Array:
    """As `reduce.squares`, shape (L, H, n), of some layers at a time."""
    count, heads, width, _ = grams.shape
    rows = slots[0].shape[0]
    found = np.zeros((count, heads, rows), np.float32)
    step = max(1, _AT_ONCE // max(1, rows * heads * width))
    for layers in (slice(start, start + step) for start in range(0, count, step)):
        together = _together(slots[layers])
        slices = together.reshape(-1, rows, heads, width).transpose(0, 2, 1, 3)  # (L, H, n, D)
        for within, over in _tiles(width):
            narrow = grams[layers, :, within, over]
            into = scratch("products", (*slices.shape[:3], narrow.shape[-1]))
            products = np.matmul(slices[..., within], narrow, out=into)
            found[layers] += np.einsum("lhnd,lhnd->lhn", products, slices[..., over])
    return found


def _tiles(width: int) -> Iterator[tuple[slice, slice]]:
    """The squares that a matrix of `width` falls into: no library starts threads for one of them."""
    starts = range(0, width, WIDEST)
    return ((slice(a, a + WIDEST), slice(b, b + WIDEST)) for a in starts for b in starts)
