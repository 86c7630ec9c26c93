"""The reference: every channel of a model, recomputed independently of the code that captures it.

`Oracle` runs a whole sequence through a float64 copy of the model, attention spelled out, and takes it apart.
`BfloatOracle` watches a model of any precision while it generates, and recomputes the channels in float64
from what its modules received and gave in that very run: rounding in bfloat16 is part of the run, not an
error of the capture.

A frame is the token at position p of a sequence, produced by the forward pass of position p − 1.
Shape letters: N frames, L layers, H heads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tests.reference import arithmetic
from tests.reference.arithmetic import Channels, Parts, Rows
from tests.reference.recipes import Recipe, recipe_of
from tests.reference.recorder import Array, Pass, Recorder
from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Reference:
    """The channels of one sequence.

    Attributes
    ----------
    tokens : (N + 1,), the whole sequence.
    channels : by name, each (N, *channel shape); frame i is the token at position i + 1.
    parts, rows : what they were computed from.
    recipe : of the float64 copy.
    """

    tokens: NDArray[np.int64]
    channels: Channels
    parts: Parts
    rows: Rows
    recipe: Recipe

    def at(self, position: int) -> dict[str, Any]:
        """The channels of the frame whose token stands at `position`.

        Raises
        ------
        IndexError
            Where no forward pass produced that token: position 0, or beyond the sequence.
        """
        if not 1 <= position < len(self.tokens):
            raise IndexError(f"no frame at position {position}: there are 1 to {len(self.tokens) - 1}")
        return {name: channel[position - 1] for name, channel in self.channels.items()}

    def stream_errors(self) -> Array:
        """Largest |embedding + everything added − residual stream| per layer, (L,).

        NaN where the stream itself is normalised, so that nothing sums up.
        """
        if self.recipe.post_norm:
            return np.full(len(self.recipe.layers), np.nan)
        total = self.recipe.embedding(torch.from_numpy(self.tokens[:-1])).detach().numpy()
        errors = []
        for index in range(len(self.parts.heads)):
            total = (
                total + self.parts.heads[index].sum(axis=1) + self.parts.rest[index] + self.parts.ffn[index]
            )
            errors.append(np.abs(total - self.parts.after_ffn[index]).max())
        return np.array(errors)

    def projection_errors(self) -> Array:
        """Largest |sum of heads and bias − what the projection gave| per layer, (L,)."""
        given = np.stack([values["projected"] for values in self.rows.layers])
        errors: Array = np.abs(self.parts.projected - given).max(axis=(1, 2))
        return errors

    def mixer_errors(self) -> Array:
        """Largest |heads + rest − change of the stream by attention| per layer; NaN for parallel ones."""
        errors = np.full(len(self.parts.heads), np.nan)
        for index, (layer, values) in enumerate(zip(self.recipe.layers, self.rows.layers, strict=True)):
            if layer.middle is not None:
                change = values["middle"] - values["entered"]
                added = self.parts.heads[index].sum(axis=1) + self.parts.rest[index]
                errors[index] = np.abs(added - change).max()
        return errors

    def sum_errors(self) -> Array:
        """|all contributions − (logit_y − mean logit)| per frame, (N,), in logits, without rounding."""
        c = self.channels
        total = np.nansum(c["head_contribution"], axis=(1, 2)) + c["ffn_contribution"].sum(axis=1)
        total = total + c["embedding_contribution"] + c["other_contribution"]
        errors: Array = np.abs(total - c["logit_centered"])
        return errors


class Oracle:
    """A model's channels in float64.

    Parameters
    ----------
    model : a float32 or float64 model. It is not touched: a fresh one is built from its configuration and
        weights.
    attn_implementation : under which the copy runs; ``eager`` gives the attention weights for every family.
    """

    def __init__(self, model: Any, *, attn_implementation: str = "eager") -> None:
        self.model = exact_copy(model, attn_implementation=attn_implementation)
        self.recipe = recipe_of(self.model)

    def __call__(self, tokens: Sequence[int] | Tensor) -> Reference:
        """The channels of one sequence, without padding: prompt and generated tokens.

        Parameters
        ----------
        tokens : (N + 1,)
        """
        ids = torch.as_tensor(tokens, dtype=torch.long).reshape(-1)
        with Recorder(self.model, self.recipe) as recorder, exact():
            self.model(ids[None, :-1], use_cache=False)
        rows = rows_of(recorder.passes[0], row=0, positions=slice(None))
        emitted = ids[1:].numpy()
        parts = arithmetic.parts_of(self.recipe, rows)
        channels = channels_of(self.recipe, rows, parts, emitted)
        channels["kv_tokens"] = cached_positions(self.recipe, np.arange(1, len(ids)))
        return Reference(ids.numpy(), channels, parts, rows, self.recipe)


class BfloatOracle:
    """A model's channels from what its modules received and gave while it ran, in any precision.

    Use it around a call: ``with BfloatOracle(model) as oracle: model.generate(…)``.

    Parameters
    ----------
    model : the model that runs. Its outputs are not changed; it has hooks until the oracle is left.
    """

    def __init__(self, model: Any) -> None:
        self.recipe = recipe_of(model)
        self._recorder = Recorder(model, self.recipe)

    def __enter__(self) -> Self:
        self._recorder.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._recorder.__exit__(kind, error, trace)

    @property
    def passes(self) -> list[Pass]:
        """The forward passes, in order."""
        return self._recorder.passes

    def row(
        self, step: int, row: int, *, token_id: int, position: int, padding: int = 0, offset: int = -1
    ) -> dict[str, Any]:
        """The channels of one frame.

        Parameters
        ----------
        step : forward pass.
        row : row of that pass.
        token_id : the token that was emitted.
        position : its position, padding not counted: so many keys belong to the sequence.
        padding : padding to the left of the sequence, in positions.
        offset : which of the pass's positions predicted it, counted from the end: −1 is the last.
        """
        current = self.passes[step]
        rows = rows_of(current, row=row, positions=slice(offset, offset + 1 or None))
        rows = _without_padding(rows, position=position, padding=padding)
        emitted = np.array([token_id])
        channels = channels_of(self.recipe, rows, arithmetic.parts_of(self.recipe, rows), emitted)
        channels["kv_tokens"] = cached_positions(self.recipe, np.array([position]))
        return {name: channel[0] for name, channel in channels.items()}

    def sequence(
        self, tokens: Sequence[int] | Tensor, *, prompt: int, row: int = 0, padding: int = 0
    ) -> list[dict[str, Any]]:
        """One row of a plain `generate` (one token per pass, rows stay where they are).

        Parameters
        ----------
        tokens : the row as `generate` returned it, with its padding on the left.
        prompt : tokens of the prompt, padding not counted.
        """
        ids = torch.as_tensor(tokens).reshape(-1).tolist()[padding:]
        frames = enumerate(ids[prompt:])
        return [
            self.row(step, row, token_id=token, position=prompt + step, padding=padding)
            for step, token in frames
        ]


def channels_of(recipe: Recipe, rows: Rows, parts: Parts, tokens: NDArray[np.int64]) -> Channels:
    """Every channel that does not need the cache."""
    return {
        **arithmetic.activity(recipe, rows, parts),
        **arithmetic.contribution(recipe, rows, parts, tokens),
        **arithmetic.uncertainty(recipe, rows, parts, tokens),
        **arithmetic.routing(recipe, rows),
        **arithmetic.neurons(recipe, rows),
    }


def cached_positions(recipe: Recipe, seen: NDArray[np.int64]) -> NDArray[np.int64]:
    """`kv_tokens` (N, L) after `seen` (N,) positions went through: a window keeps one less than its size.

    A layer without attention keeps no positions: −1.
    """
    columns = []
    for layer in recipe.layers:
        kept = seen if layer.window is None else np.minimum(seen, layer.window - 1)
        columns.append(np.full_like(seen, -1) if layer.attention is None else kept)
    return np.stack(columns, axis=1)


def rows_of(current: Pass, *, row: int, positions: slice) -> Rows:
    """Some positions of one row of a pass."""
    assert current.head_logits is not None
    assert current.logits is not None
    layers = [
        {
            name: np.moveaxis(array[row], 0, 1)[positions] if name == "weights" else array[row][positions]
            for name, array in record.values.items()
        }
        for record in current.layers
    ]
    return Rows(layers, current.head_logits[row][positions], current.logits[row][positions])


def _without_padding(rows: Rows, *, position: int, padding: int) -> Rows:
    """The same rows with attention over the sequence's own keys; what a window dropped has no weight."""

    def own(weights: Array) -> Array:
        keys = weights.shape[-1]
        if keys >= padding + position:
            return weights[..., padding : padding + position]
        held = weights[..., -min(keys, position) :]
        gone = position - held.shape[-1]
        return np.concatenate([np.zeros((*held.shape[:-1], gone)), held], axis=-1)

    layers = [
        {name: own(array) if name == "weights" else array for name, array in values.items()}
        for values in rows.layers
    ]
    return Rows(layers, rows.head_logits, rows.logits)


def exact_copy(model: Any, *, attn_implementation: str = "eager") -> Any:
    """A float64 model with the same weights, built anew: hooks and patches on `model` do not come along."""
    config = copy.deepcopy(model.config)
    fresh = type(model)._from_config(config, attn_implementation=attn_implementation, dtype=torch.float32)
    fresh.load_state_dict(model.state_dict())
    if fresh._can_set_experts_implementation():
        fresh.set_experts_implementation("eager")
    return fresh.double().eval()


@contextmanager
def exact() -> Iterator[None]:
    """Everything that a modeling file computes "in float32" is computed in float64 inside; no gradients."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _NoFloat32(), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(default)


class _NoFloat32(TorchFunctionMode):
    """Reads float64 wherever code names float32."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        named = {name: _widened(value) for name, value in (kwargs or {}).items()}
        return func(*(_widened(value) for value in args), **named)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
