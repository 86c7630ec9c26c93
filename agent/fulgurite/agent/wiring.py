"""How a layer adds its parts to the residual stream, found from the values of one forward pass.

A layer is taken to compute ``r_mid = r_in + a * X`` and ``r_out = r_mid + b * Y`` (sequential), or ``r_out =
r_in + a * X + b * Y`` (parallel), or the same with a normalisation after each addition (post-norm of the
first transformers). X is what the token mixer's projection gives, or that behind a norm of its own; Y what
the feed-forward part gives, likewise; a and b are multipliers that the model declares. Each equation is
checked on the values; one that does not hold makes the channels that rest on it unavailable for the layer.
Nothing is guessed.

Shape letters: n rows (last positions of the first forward pass), d residual width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import nn

from fulgurite.agent.anatomy import LayerParts
from fulgurite.agent.norms import NormSpec, fit_norm

Array = np.ndarray[Any, Any]
Side = Literal["in", "out"]

_CLOSE = 1e-4  # relative error at which an equation holds in float32


@dataclass(frozen=True, slots=True)
class Tap:
    """A place where a tensor of residual width can be seen: what goes into, or comes out of, a part of a
    layer."""

    part: str  # block, mixer, projection, ffn, ffn_linear, norm0, norm1, …
    side: Side


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One addition to the residual stream: what is added is ``factor * tap``.

    Attributes
    ----------
    norm : the formula of the norm that stands between the part and the addition, or None.
    before_norm : where that norm's input is seen.
    """

    tap: Tap
    factor: float
    norm: NormSpec | None = None
    before_norm: Tap | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LayerWiring:
    """How one layer's parts are added.

    Attributes
    ----------
    order : ``sequential``, ``parallel``, ``post_norm``, ``mixer_only`` or ``unknown``.
    mixer, ffn : the additions, None where there is none or it was not confirmed.
    after_mixer : the residual stream right after the mixer's addition.
    before_ffn, after_ffn : the residual stream around the feed-forward part's addition.
    reasons : channels that this layer does not give, and why.
    """

    order: str
    mixer: Branch | None = None
    ffn: Branch | None = None
    after_mixer: Tap | None = None
    before_ffn: Tap | None = None
    after_ffn: Tap | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def taps(self) -> Iterator[Tap]:
        """Every tap that is needed at level `heads`."""
        found = [self.after_mixer, self.before_ffn, self.after_ffn]
        found += [self.ffn.tap if self.ffn else None, self.mixer.before_norm if self.mixer else None]
        return (tap for tap in found if tap is not None)


def part_of(layer: LayerParts, name: str) -> nn.Module | None:
    """The module that a tap's part names."""
    if name.startswith("norm"):
        return layer.norms[int(name.removeprefix("norm"))]
    found: nn.Module | None = getattr(layer, name)
    return found


def candidate_taps(layer: LayerParts) -> list[Tap]:
    """Every place that `wire` wants to see in the first forward pass."""
    names = ["block", "mixer", "projection", "ffn", "ffn_linear"]
    names += [f"norm{i}" for i in range(len(layer.norms))]
    sides: dict[str, tuple[Side, ...]] = {"mixer": ("out",), "projection": ("out",), "ffn_linear": ("out",)}
    return [
        Tap(name, side)
        for name in names
        if part_of(layer, name) is not None
        for side in sides.get(name, ("in", "out"))
    ]


def wire(
    layer: LayerParts,
    seen: Mapping[Tap, Array],
    *,
    epsilon: float,
    constants: tuple[float, ...],
) -> LayerWiring:
    """Find out how `layer` adds its parts.

    Parameters
    ----------
    seen : mapping of Tap to ndarray of float64, shape (n, d)
        What was there in one forward pass.
    epsilon : spacing of the model's number format at 1.
    constants : multipliers that the model declares.
    """
    solver = _Solver(layer, seen, epsilon, constants)
    return solver.solve()


class _Solver:
    def __init__(
        self, layer: LayerParts, seen: Mapping[Tap, Array], epsilon: float, constants: tuple[float, ...]
    ) -> None:
        self.layer = layer
        self.seen = seen
        self.epsilon = epsilon
        self.constants = (1.0, *constants)

    def solve(self) -> LayerWiring:
        start, end = Tap("block", "in"), Tap("block", "out")
        if start not in self.seen or end not in self.seen:
            reason = "the layer's input and output could not be seen"
            return LayerWiring("unknown", reasons=_all(reason))
        for attempt in (self._sequential, self._parallel, self._post_norm, self._mixer_only):
            found = attempt(start, end)
            if found is not None:
                return found
        reason = "how this layer adds its parts to the residual stream was not confirmed by its values"
        return LayerWiring("unknown", after_ffn=end, reasons=_all(reason))

    def _sequential(self, start: Tap, end: Tap) -> LayerWiring | None:
        for mid in self._inputs(start):
            mixer = self._added("mixer", start, mid)
            ffn = self._added("ffn", mid, end) if mixer is not None else None
            if mixer is not None and ffn is not None:
                return LayerWiring("sequential", mixer, ffn, mid, mid, end)
        return None

    def _parallel(self, start: Tap, end: Tap) -> LayerWiring | None:
        change = self.seen[end] - self.seen[start]
        for first in self._branches("mixer"):
            for second in self._branches("ffn"):
                factors = self._factors(change, (first, second), self._noise(start, end))
                if factors is not None:
                    mixer, ffn = (
                        Branch(b.tap, f, b.norm, b.before_norm)
                        for b, f in zip((first, second), factors, strict=True)
                    )
                    return LayerWiring("parallel", mixer, ffn, end, start, end)
        return None

    def _post_norm(self, start: Tap, end: Tap) -> LayerWiring | None:
        """A norm right after each addition: the stream continues as that norm's output."""
        for last in self._norm_taps():
            if not self._equal(Tap(last, "out"), end):
                continue
            for first in self._norm_taps():
                mixer = self._added("mixer", start, Tap(first, "in")) if first != last else None
                ffn = self._added("ffn", Tap(first, "out"), Tap(last, "in")) if mixer is not None else None
                if mixer is not None and ffn is not None:
                    around = (Tap(first, "in"), Tap(first, "out"), Tap(last, "in"))
                    reasons = {
                        "head_contribution": "a norm after each addition leaves no sum over the layers"
                    }
                    return LayerWiring("post_norm", mixer, ffn, *around, reasons)
        return None

    def _mixer_only(self, start: Tap, end: Tap) -> LayerWiring | None:
        if self.layer.ffn is None:
            mixer = self._added("mixer", start, end)
            return LayerWiring("mixer_only", mixer, None, end, None, end) if mixer else None
        if self.layer.mixer is None:
            ffn = self._added("ffn", start, end)
            return LayerWiring("ffn_only", None, ffn, start, start, end) if ffn else None
        return None

    def _norm_taps(self) -> list[str]:
        return [f"norm{i}" for i in range(len(self.layer.norms)) if Tap(f"norm{i}", "in") in self.seen]

    def _inputs(self, start: Tap) -> list[Tap]:
        """Where the stream between mixer and feed-forward part may be seen: inputs that are not the layer's
        own."""
        names = [*self._norm_taps(), "ffn"]
        taps = [Tap(name, "in") for name in names if Tap(name, "in") in self.seen]
        wide = [tap for tap in taps if self.seen[tap].shape == self.seen[start].shape]
        return [tap for tap in wide if not self._equal(tap, start)]

    def _branches(self, kind: str) -> list[Branch]:
        """What may be added for the mixer or the feed-forward part, norms of its own first."""
        names = ("projection", "mixer") if kind == "mixer" else ("ffn", "ffn_linear")
        bare = [Tap(name, "out") for name in names if Tap(name, "out") in self.seen]
        return [*self._behind_norms(bare), *(Branch(tap, 1.0) for tap in bare)]

    def _behind_norms(self, bare: list[Tap]) -> Iterator[Branch]:
        for name in self._norm_taps():
            into, out = Tap(name, "in"), Tap(name, "out")
            module = part_of(self.layer, name)
            if out in self.seen and module is not None and any(self._equal(into, tap) for tap in bare):
                tolerance = max(_CLOSE, 4 * self.epsilon)
                norm = fit_norm(module, self.seen[into], self.seen[out], tolerance)
                if norm is not None:
                    yield Branch(out, 1.0, norm, into)

    def _added(self, kind: str, before: Tap, after: Tap) -> Branch | None:
        change = self.seen[after] - self.seen[before]
        for branch in self._branches(kind):
            factors = self._factors(change, (branch,), self._noise(before, after))
            if factors is not None:
                return Branch(branch.tap, factors[0], branch.norm, branch.before_norm)
        return None

    def _noise(self, *taps: Tap) -> float:
        """What rounding alone may put between two sides of an addition."""
        return 2 * self.epsilon * sum(float(np.linalg.norm(self.seen[tap])) for tap in taps)

    def _equal(self, first: Tap, second: Tap) -> bool:
        a, b = self.seen[first], self.seen[second]
        return a.shape == b.shape and bool(np.array_equal(a, b))

    def _factors(self, change: Array, branches: tuple[Branch, ...], noise: float) -> tuple[float, ...] | None:
        """Declared multipliers with which the branches make up `change`, or None."""
        vectors = [self.seen[branch.tap].reshape(-1) for branch in branches]
        if any(v.shape != change.reshape(-1).shape or not np.any(v) for v in vectors):
            return None
        basis = np.stack(vectors, -1)
        solution, *_ = np.linalg.lstsq(basis, change.reshape(-1), rcond=None)
        snapped = tuple(self._declared(float(f)) for f in solution)
        if 0.0 in snapped:
            return None
        error = float(np.linalg.norm(basis @ np.array(snapped) - change.reshape(-1)))
        scale = min(float(np.linalg.norm(v * f)) for v, f in zip(vectors, snapped, strict=True))
        return snapped if error <= max(_CLOSE, 4 * self.epsilon) * scale + noise else None

    def _declared(self, value: float) -> float:
        """The declared multiplier that `value` is, but for rounding; 0 where it is none of them."""
        nearest = min(self.constants, key=lambda constant: abs(constant - value))
        return nearest if abs(nearest - value) <= 0.05 * abs(nearest) else 0.0


def _all(reason: str) -> dict[str, str]:
    return dict.fromkeys(
        ("head_write", "ffn_write", "ffn_cosine", "residual_norm", "head_contribution"), reason
    )
