"""What the modules of a model received and gave in each forward pass, as float64 numbers.

Everything is copied the moment it is seen: some blocks add into the FFN's tensor in place right after the FFN
returns it. Nothing of the model is changed, and every hook is gone when the recorder is left.

Shape letters: B rows, T positions of this pass, K positions with logits (the last K of T), S keys, H heads, d
hidden size, V vocabulary, f FFN width, E experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tests.reference.recipes import Layer, Recipe
from torch import Tensor, nn

Array = NDArray[np.float64]


@dataclass
class LayerRecord:
    """One layer in one pass, by name.

    Names: ``entered`` (B, T, d), ``heads_in`` (B, T, H·d_v), ``projected`` (B, T, d), ``attention_normed``,
    ``middle``, ``middle_left``, ``ffn``, ``ffn_normed``, ``end``, ``left`` (B, T, d), ``neurons`` (B, T, f),
    ``expert_ids`` and ``expert_weights`` (B, T, E), ``weights`` (B, H, T, S). A name is absent where the
    layer has no such thing.
    """

    values: dict[str, Array] = field(default_factory=dict)


@dataclass
class Pass:
    """One forward pass.

    Attributes
    ----------
    shape : (B, T).
    head_logits : (B, K, V), as the unembedding gave them.
    logits : (B, K, V), as the model returned them.
    stream : (B, T, d), what entered the final norm.
    """

    shape: tuple[int, int]
    layers: list[LayerRecord]
    head_logits: Array | None = None
    logits: Array | None = None
    stream: Array | None = None


class Recorder:
    """Records every forward pass of a model between `__enter__` and `__exit__`.

    Parameters
    ----------
    model : a causal language model.
    recipe : where its parts are.

    Attributes
    ----------
    passes : list of Pass, in order.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.passes: list[Pass] = []
        self._model = model
        self._recipe = recipe
        self._handles: list[Any] = []
        self._fused: FusedAttention | None = None

    def __enter__(self) -> Self:
        for index, layer in enumerate(self._recipe.layers):
            self._watch_layer(index, layer)
        if self._recipe.final_norm is not None:
            self._on_input(self._recipe.final_norm.module, self._keep_stream)
        self._on_output(self._recipe.head, self._keep_head_logits)
        self._handles.append(self._model.register_forward_hook(self._keep_logits))
        self._fused = FusedAttention(self._recipe, self._keep_weights)
        self._fused.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._fused is not None:
            self._fused.remove()

    def _watch_layer(self, index: int, layer: Layer) -> None:
        self._handles.append(
            layer.block.register_forward_pre_hook(self._block_entered(index), with_kwargs=True)
        )
        self._on_output(layer.block, self._keep(index, "left"))
        self._on_input(layer.projection, self._keep(index, "heads_in"))
        self._on_output(layer.projection, self._keep(index, "projected"))
        self._on_output(layer.ffn, self._keep(index, "ffn"))
        if layer.attention is not None:
            self._handles.append(layer.attention.register_forward_hook(self._eager_weights(index)))
        if layer.attention_norm is not None:
            self._on_output(layer.attention_norm.module, self._keep(index, "attention_normed"))
        if layer.ffn_norm is not None:
            self._on_output(layer.ffn_norm.module, self._keep(index, "ffn_normed"))
        if layer.middle is not None:
            self._on_input(layer.middle, self._keep(index, "middle"))
        if layer.end is not None and layer.middle is not None:
            self._on_output(layer.middle, self._keep(index, "middle_left"))
            self._on_input(layer.end, self._keep(index, "end"))
        if layer.down is not None:
            self._on_input(layer.down, self._keep(index, "neurons"))
        if layer.experts is not None:
            self._handles.append(layer.experts.register_forward_pre_hook(self._routing(index)))

    def _block_entered(self, index: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            if index == 0:
                records = [LayerRecord() for _ in self._recipe.layers]
                self.passes.append(Pass((hidden.shape[0], hidden.shape[1]), records))
            self._store(index, "entered", hidden)

        return hook

    def _keep(self, index: int, name: str) -> Callable[[Tensor], None]:
        return lambda tensor: self._store(index, name, tensor)

    def _store(self, index: int, name: str, tensor: Tensor) -> None:
        """Keep a copy as (B, T, ·): experts and OPT's FFN see rows × positions as one dimension."""
        current = self.passes[-1]
        current.layers[index].values[name] = _copy(tensor).reshape(*current.shape, tensor.shape[-1])

    def _routing(self, index: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            self._store(index, "expert_ids", args[1])
            self._store(index, "expert_weights", args[2])

        return hook

    def _eager_weights(self, index: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, tuple) and isinstance(output[1], Tensor):
                self._keep_weights(index, _copy(output[1]))

        return hook

    def _keep_weights(self, index: int, weights: Array) -> None:
        self.passes[-1].layers[index].values["weights"] = weights

    def _keep_stream(self, tensor: Tensor) -> None:
        self.passes[-1].stream = _copy(tensor)

    def _keep_head_logits(self, tensor: Tensor) -> None:
        self.passes[-1].head_logits = _copy(tensor)

    def _keep_logits(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        self.passes[-1].logits = _copy(output.logits)

    def _on_input(self, module: nn.Module, keep: Callable[[Tensor], None]) -> None:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            keep(args[0] if args else next(iter(kwargs.values())))

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _on_output(self, module: nn.Module, keep: Callable[[Tensor], None]) -> None:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            keep(output[0] if isinstance(output, tuple) else output)

        self._handles.append(module.register_forward_hook(hook))


class FusedAttention:
    """Attention weights under fused kernels, which give none: float64, from the queries and keys they got.

    The wrapper stands in front of transformers' own function under the same name, and calls it unchanged.
    """

    NAME = "sdpa"

    def __init__(self, recipe: Recipe, keep: Callable[[int, Array], None]) -> None:
        self._index = {
            layer.attention: i for i, layer in enumerate(recipe.layers) if layer.attention is not None
        }
        self._keep = keep
        self._original: Any = None
        self._was_own = False

    def install(self) -> None:
        """Stand in front of the function that is registered now."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self._was_own = self.NAME in ALL_ATTENTION_FUNCTIONS._local_mapping
        self._original = ALL_ATTENTION_FUNCTIONS[self.NAME]
        ALL_ATTENTION_FUNCTIONS[self.NAME] = self._wrapper

    def remove(self) -> None:
        """Put the function back that was registered before."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        if self._was_own:
            ALL_ATTENTION_FUNCTIONS[self.NAME] = self._original
        else:
            ALL_ATTENTION_FUNCTIONS._local_mapping.pop(self.NAME)

    def _wrapper(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> Any:
        if module in self._index:
            scaling = kwargs.get("scaling")
            scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
            self._keep(self._index[module], softmax_rows(query, key, mask, scale))
        return self._original(module, query, key, value, mask, **kwargs)


def softmax_rows(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Array:
    """Attention weights (B, H, T, S) in float64.

    Without a mask PyTorch lets query i see the keys up to i (a cache of fixed size has nothing behind them
    yet), and a single query all keys.
    """
    groups = query.shape[1] // key.shape[1]
    scores = query.double() @ key.double().repeat_interleave(groups, dim=1).transpose(-1, -2) * scale
    if mask is None:
        t, s = scores.shape[-2:]
        mask = torch.ones(t, s, dtype=torch.bool, device=scores.device).tril(0 if t > 1 else s - 1)
    if mask.dtype == torch.bool:
        return _copy(scores.masked_fill(~mask, float("-inf")).softmax(-1))
    return _copy((scores + mask.double()).softmax(-1))


def _copy(tensor: Tensor) -> Array:
    """A float64 copy that nobody else writes into."""
    return tensor.detach().to(torch.float64, copy=True).cpu().numpy()
