"""The signed push of each node on the emitted token: what of it may be drawn, in which hue, and how it sums.

A contribution is in logits: positive pushes towards the emitted token, negative against it. All of a token's
contributions are its centred logit; what is left over is its residue, and a token whose residue is over the
bound is unverified: it is drawn as not captured.

Pure. Shape letters: n frames, L layers, H heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fulgurite.wire.frame import FrameBlock

    Floats = NDArray[np.float32]

LINEAR_LOGITS = 0.1  # the hue is nearly linear up to here, logarithmic above
LARGEST_LOGITS = 20.0  # full hue
RESIDUE_BOUND, RESIDUE_BOUND_ROUNDED = 1e-3, 2e-2  # float32; number formats that round more
LEAST_LOGIT = 0.05  # below, shares of it say nothing

NOT_CAPTURED, NO_PUSH = -2.0, -3.0
"""In a texel in place of a hue: this node's push was not captured; this light has none (routing)."""


def hue(logits: ArrayLike) -> Floats:
    """From signed logits to -1 … 1: odd, rising, the same for every node kind; NaN stays NaN."""
    values = np.asarray(logits, np.float64)
    reach = math.log1p(LARGEST_LOGITS / LINEAR_LOGITS)
    share = np.minimum(1.0, np.log1p(np.abs(values) / LINEAR_LOGITS) / reach)
    return (np.sign(values) * share).astype(np.float32)


def texel(hues: ArrayLike) -> Floats:
    """Hues as they go into a texture: NaN becomes `NOT_CAPTURED`."""
    values = np.asarray(hues, np.float32)
    return np.where(np.isnan(values), np.float32(NOT_CAPTURED), values)


def residue_bound(dtype: str) -> float:
    """The largest residue of a verified token, in standard deviations of the logits, by the `dtype`."""
    return RESIDUE_BOUND if dtype.removeprefix("torch.") in ("float32", "float64") else RESIDUE_BOUND_ROUNDED


def verified(block: FrameBlock, dtype: str) -> NDArray[np.bool_]:
    """Which frames have a residue within the bound, shape (n,). One that was not measured is not."""
    residue = block.columns.get("residue")
    if residue is None:
        return np.zeros(len(block), np.bool_)
    return np.asarray(np.abs(np.asarray(residue, np.float64)) <= residue_bound(dtype), np.bool_)


def pushes(block: FrameBlock, channel: str, shape: tuple[int, ...], dtype: str) -> NDArray[np.float64]:
    """A contribution channel in logits, shape (n, *shape); NaN where it was not captured or is unverified."""
    missing = np.full((len(block), *shape), np.nan)
    if channel not in block.columns:
        return missing
    known = verified(block, dtype).reshape(-1, *(1,) * len(shape))
    return np.where(known, np.asarray(block.columns[channel], np.float64), missing)


@dataclass(frozen=True, slots=True)
class Shares:
    """How one token's centred logit is made up, in logits.

    Attributes
    ----------
    parts : (name, logits) of heads, FFN, embedding and other.
    logit : logit of the token minus the mean logit, measured.
    residue : what the parts leave over, in standard deviations of the logits; None: not measured.
    bound : the largest residue of a verified token.
    token, position : which token.
    """

    parts: tuple[tuple[str, float], ...]
    logit: float
    residue: float | None
    bound: float
    token: str | None
    position: int

    @property
    def is_verified(self) -> bool:
        """Whether the parts make up the logit."""
        return self.residue is not None and abs(self.residue) <= self.bound

    @property
    def left_over(self) -> float:
        """The measured logit minus all parts, in logits."""
        return self.logit - sum(value for _, value in self.parts)

    def percent(self, logits: float) -> float | None:
        """A part as a share of the logit in percent; None where the logit is too small to divide by."""
        return 100.0 * logits / self.logit if abs(self.logit) >= LEAST_LOGIT else None


def shares_of(block: FrameBlock, row: int, dtype: str) -> Shares | None:
    """The shares of one frame; None where its contributions were not captured."""
    columns = block.columns
    needed = ("head_contribution", "ffn_contribution", "embedding_contribution", "other_contribution")
    if "logit_centered" not in columns or any(name not in columns for name in needed):
        return None
    sums = [float(np.nansum(np.asarray(columns[name][row], np.float64))) for name in needed]
    logit = float(columns["logit_centered"][row])
    if not math.isfinite(logit) or not all(np.isfinite(columns[name][row]).any() for name in needed):
        return None
    residue = float(columns["residue"][row]) if "residue" in columns else math.nan
    return Shares(
        parts=tuple(zip(("heads", "FFN", "embedding", "other"), sums, strict=True)),
        logit=logit,
        residue=residue if math.isfinite(residue) else None,
        bound=residue_bound(dtype),
        token=block.texts[row] if block.texts is not None else None,
        position=int(columns["position"][row]),
    )
