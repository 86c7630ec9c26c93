"""How far captured values are from the reference, as the agreement gate counts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
FINEST = 1e-6  # of the largest magnitude in a group: what float32 arithmetic can tell apart


@dataclass(frozen=True)
class Agreement:
    """How well one channel agrees.

    Attributes
    ----------
    relative : largest |measured − reference| over the largest |reference| in the same frame and layer.
    correlation : smallest Spearman correlation over the groups that have at least three different reference
        values; NaN where none has.
    compared : number of values compared.
    """

    relative: float
    correlation: float
    compared: int


@dataclass(frozen=True)
class Comparison:
    """How a channel's (frames, *shape) array falls into groups, and its own scale where it has one."""

    grouped: int
    magnitude: float | None = None


COMPARED: Mapping[str, Comparison] = {
    # heads of one layer stand beside each other
    "head_write": Comparison(2),
    "head_contribution": Comparison(2),
    "attention_entropy": Comparison(2),
    "attended_weights": Comparison(2),
    "residual_norm": Comparison(2),
    "neuron_values": Comparison(2),
    "expert_weights": Comparison(2),
    "lens_prob": Comparison(2),
    # one value per layer: a group of one, except where its sign changes
    "ffn_write": Comparison(2),
    "ffn_contribution": Comparison(1),
    # what has a scale of its own, and may be as good as 0
    "ffn_cosine": Comparison(2, magnitude=1.0),
    "sink_mass": Comparison(2, magnitude=1.0),
    "learned_sink_mass": Comparison(2, magnitude=1.0),
    # one value per frame that may be as good as 0: the frames of a sequence stand beside each other
    "embedding_contribution": Comparison(0),
    "other_contribution": Comparison(0),
    "logit_centered": Comparison(0),
    "logprob": Comparison(0),
    "entropy": Comparison(0),
    "margin": Comparison(0),
    "top_logprobs": Comparison(1),
}


def relative_errors(
    measured: ArrayLike, reference: ArrayLike, *, grouped: int, magnitude: float | None = None
) -> Array:
    """|measured − reference| over the largest magnitude of the reference in the same group.

    Parameters
    ----------
    measured, reference : the same shape; NaN in both means undefined.
    grouped : leading dimensions that tell groups apart: 2 for (frame, layer, …), 1 for (frame, …), 0 for one
        group.
    magnitude : what to divide by instead, for a channel with a scale of its own: 1 for a cosine.

    Returns
    -------
    ndarray of float64, the same shape; NaN where undefined, infinite where the reference is 0 throughout a
    group and the measured value is not.

    Raises
    ------
    ValueError
        Where the shapes differ, or where one of the two is undefined and the other is not.
    """
    got, want = _same(measured, reference)
    gap = np.abs(got - want)
    if magnitude is not None:
        return gap / magnitude
    flat = want.reshape(*want.shape[:grouped], -1)
    largest = np.max(np.nan_to_num(np.abs(flat), nan=0.0), axis=-1, initial=0.0)
    largest = largest.reshape(*largest.shape, *(1,) * (want.ndim - grouped))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap == 0.0, 0.0, gap / largest)


def relative_error(
    measured: ArrayLike, reference: ArrayLike, *, grouped: int, magnitude: float | None = None
) -> float:
    """The largest of `relative_errors`; 0 where nothing is defined."""
    errors = relative_errors(measured, reference, grouped=grouped, magnitude=magnitude)
    defined = errors[~np.isnan(errors)]
    return float(defined.max(initial=0.0))


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation of two flat arrays; NaN where one of them is constant."""
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt(np.sum(x * x) * np.sum(y * y)))
    return float(np.sum(x * y)) / size if size > 0.0 else float("nan")


def ranks(values: ArrayLike) -> Array:
    """Ranks from 0, ties sharing their mean rank."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    _, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    shared: Array = (ends - (counts + 1) / 2.0)[inverse]
    return shared


def channel_agreement(name: str, measured: ArrayLike, reference: ArrayLike) -> Agreement:
    """Both measures for a channel of `COMPARED`; both arrays are (frames, *channel shape)."""
    comparison = COMPARED[name]
    return agreement(measured, reference, grouped=comparison.grouped, magnitude=comparison.magnitude)


def agreement(
    measured: ArrayLike, reference: ArrayLike, *, grouped: int, magnitude: float | None = None
) -> Agreement:
    """Both measures of the agreement gate; parameters as for `relative_errors`."""
    got, want = _same(measured, reference)
    width = int(np.prod(want.shape[grouped:], dtype=np.int64))
    pairs = zip(got.reshape(-1, width), want.reshape(-1, width), strict=True)
    found = [_correlation(a, b) for a, b in pairs]
    known = [value for value in found if not np.isnan(value)]
    return Agreement(
        relative=relative_error(got, want, grouped=grouped, magnitude=magnitude),
        correlation=min(known, default=float("nan")),
        compared=int(np.sum(~np.isnan(want))),
    )


def _correlation(got: Array, want: Array) -> float:
    """Spearman's correlation of one group; NaN where too few different values make a rank.

    A value closer to the reference than float32 can tell counts as equal to it: the reference has ties.
    """
    defined = ~np.isnan(want)
    if len(np.unique(want[defined])) < 3:
        return float("nan")
    finest = FINEST * float(np.max(np.abs(want[defined])))
    snapped = np.where(np.abs(got - want) <= finest, want, got)
    return spearman(snapped[defined], want[defined])


def _same(measured: ArrayLike, reference: ArrayLike) -> tuple[Array, Array]:
    got, want = np.asarray(measured, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if got.shape != want.shape:
        raise ValueError(
            f"measured has shape {got.shape}, the reference {want.shape}: compare the same frames"
        )
    undefined: NDArray[Any] = np.isnan(got) != np.isnan(want)
    if undefined.any():
        first = tuple(int(i[0]) for i in np.nonzero(undefined))
        which = "measured" if np.isnan(got[first]) else "reference"
        raise ValueError(
            f"only the {which} value is undefined at {first} ({int(undefined.sum())} such entries)"
        )
    return got, want
