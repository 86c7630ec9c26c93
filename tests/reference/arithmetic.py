"""The channels, from their formulas, in float64, every head an explicit vector of the residual stream.

Nothing here is fast and nothing is shared with the code that it checks: where capture uses a Gram matrix,
this multiplies the head out; where capture folds a norm into a vector, this normalises.

Shape letters: N positions, L layers, H heads, d hidden size, d_v values per head, V vocabulary, S keys, K = 8
candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.reference.recipes import Layer, Norm, Recipe
from tests.reference.recorder import Array
from torch import Tensor, nn

TOP_K = 8
TOP_NEURONS = 8

Channels = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Rows:
    """Some positions of one sequence in one pass: what `Recorder` kept, without the batch dimension.

    Attributes
    ----------
    layers : per layer, the names of `LayerRecord`, each (N, ·); ``weights`` is (N, H, S).
    head_logits, logits : (N, V).
    """

    layers: list[dict[str, Array]]
    head_logits: Array
    logits: Array


@dataclass(frozen=True)
class Parts:
    """Everything that was added to the residual stream at some positions, as vectors.

    Attributes
    ----------
    embedding : (N, d), what entered layer 0.
    heads : (L, N, H, d), zero for layers without attention.
    projected : (L, N, d), the projection's result before any norm, as the sum of its parts.
    rest : (L, N, d), what the mixer adds beside the heads: the projection's bias, or all of a mixer without
        heads.
    ffn : (L, N, d).
    rounding : (L, N, d), what the stream changed by beyond the parts above; zero in exact arithmetic.
    after_mixer, before_ffn, after_ffn : (L, N, d), the residual stream.
    """

    embedding: Array
    heads: Array
    projected: Array
    rest: Array
    ffn: Array
    rounding: Array
    after_mixer: Array
    before_ffn: Array
    after_ffn: Array


def numbers(tensor: Tensor) -> Array:
    """A weight as float64."""
    return tensor.detach().double().cpu().numpy()


def output_matrix(module: nn.Module) -> Array:
    """The matrix M (outputs, inputs) of a projection x ↦ M x + b; Conv1D keeps it transposed."""
    weight: Any = module.weight
    return numbers(weight.T if type(module).__name__ == "Conv1D" else weight)


def normalise(norm: Norm, x: Array, *, scale_of: Array | None = None) -> Array:
    """The norm without its bias, on x (…, d): scaled as x itself is, or frozen at the scale of `scale_of`."""
    frozen = x if scale_of is None else scale_of
    return centre(norm, x) * numbers(norm.gain) / scale(norm, frozen)


def scale(norm: Norm, x: Array) -> Array:
    """What the norm divides x (…, d) by: (…, 1)."""
    root: Array = np.sqrt(np.mean(centre(norm, x) ** 2, axis=-1, keepdims=True) + norm.epsilon)
    return root


def centre(norm: Norm, x: Array) -> Array:
    """x without its mean for LayerNorm, x itself for RMSNorm."""
    return x - x.mean(axis=-1, keepdims=True) if norm.kind == "layer" else x


def parts_of(recipe: Recipe, rows: Rows) -> Parts:
    """Take apart what every layer added."""
    per_layer = [
        _layer_parts(layer, values, recipe) for layer, values in zip(recipe.layers, rows.layers, strict=True)
    ]
    stacked = {name: np.stack([parts[name] for parts in per_layer]) for name in per_layer[0]}
    return Parts(embedding=rows.layers[0]["entered"], **stacked)


def _layer_parts(layer: Layer, values: dict[str, Array], recipe: Recipe) -> dict[str, Array]:
    heads, bias = _projected(layer, values["heads_in"], _most_heads(recipe))
    projected = heads.sum(axis=1) + bias
    if layer.attention is None:  # the mixer has a projection, but no heads: all of it is the rest
        heads, bias = np.zeros_like(heads), projected
    if layer.attention_norm is not None:  # the scale is frozen at the sum's, so that the parts still add up
        heads = normalise(layer.attention_norm, heads, scale_of=projected[:, None])
        bias = normalise(layer.attention_norm, bias, scale_of=projected)
    ffn = values["ffn"] if layer.ffn_norm is None else normalise(layer.ffn_norm, values["ffn"])
    heads, bias, ffn = heads * layer.multiplier, bias * layer.multiplier, ffn * layer.multiplier
    stream = _stream(values)
    added = heads.sum(axis=1) + bias + ffn
    jump = stream["before_ffn"] - stream["after_mixer"]  # not 0 only where the stream itself is normalised
    rounding = stream["after_ffn"] - values["entered"] - jump - added
    return {"heads": heads, "projected": projected, "rest": bias, "ffn": ffn, "rounding": rounding, **stream}


def _projected(layer: Layer, z: Array, most_heads: int) -> tuple[Array, Array]:
    """Each head's vector (N, H, d) before any norm, and the bias (N, d)."""
    matrix = output_matrix(layer.projection)
    count = layer.heads or 1
    d_v = matrix.shape[1] // count
    heads = np.zeros((z.shape[0], most_heads, matrix.shape[0]))
    for h in range(count):
        columns = slice(h * d_v, (h + 1) * d_v)
        heads[:, h] = z[:, columns] @ matrix[:, columns].T
    bias: Any = layer.projection.bias
    vector = np.zeros(matrix.shape[0]) if bias is None else numbers(bias)
    return heads, np.broadcast_to(vector, (z.shape[0], len(vector)))


def _stream(values: dict[str, Array]) -> dict[str, Array]:
    """The residual stream right after the mixer's addition, right before the FFN's, right after the FFN's."""
    if "middle" not in values:  # both are added at once
        return {"after_mixer": values["left"], "before_ffn": values["left"], "after_ffn": values["left"]}
    return {
        "after_mixer": values["middle"],
        "before_ffn": values.get("middle_left", values["middle"]),
        "after_ffn": values.get("end", values["left"]),
    }


def _most_heads(recipe: Recipe) -> int:
    return max(1, *(layer.heads for layer in recipe.layers))


def activity(recipe: Recipe, rows: Rows, parts: Parts) -> Channels:
    """`head_write`, `ffn_write`, `ffn_cosine`, `residual_norm`."""
    after_mixer, after_ffn = _norm(parts.after_mixer), _norm(parts.after_ffn)
    head_write = _norm(parts.heads) / after_mixer[..., None]
    for index, layer in enumerate(recipe.layers):
        head_write[index, :, layer.heads :] = np.nan
    before = np.stack(
        [_before_ffn(layer, values) for layer, values in zip(recipe.layers, rows.layers, strict=True)]
    )
    cosine = np.sum(parts.ffn * before, axis=-1) / (_norm(parts.ffn) * _norm(before))
    return {
        "head_write": _frames_first(head_write),
        "ffn_write": _frames_first(_norm(parts.ffn) / after_ffn),
        "ffn_cosine": _frames_first(cosine),
        "residual_norm": _frames_first(np.stack([after_mixer, after_ffn], axis=-1)),
    }


def _before_ffn(layer: Layer, values: dict[str, Array]) -> Array:
    """The stream that the FFN's result is added to: the layer's input where both are added at once."""
    return values["entered"] if layer.middle is None else _stream(values)["before_ffn"]


def contribution(recipe: Recipe, rows: Rows, parts: Parts, tokens: NDArray[np.int64]) -> Channels:
    """`head_`, `ffn_`, `embedding_` and `other_contribution`, `residue`, `logit_centered`.

    Also `mixer_contribution` and `rest_contribution` (N, L) of the mixer as a whole and of what it adds
    beside the heads, `rounding_contribution`, what the rounding of the stream contributes (0 in exact
    arithmetic), and `logit_spread`, the standard deviation that `residue` is divided by. `residue` is what is
    left after the rounding; nothing of this exists where the stream itself is normalised.
    """
    logits = rows.head_logits * recipe.logit_scale
    index = np.arange(len(tokens))
    centered = logits[index, tokens] - logits.mean(axis=-1)
    spread = logits.std(axis=-1)
    result: Channels = {"logit_centered": centered, "logit_spread": spread}
    norm = recipe.final_norm
    if recipe.post_norm or norm is None:
        return result
    unembedding = numbers(recipe.unembedding)
    direction = unembedding[tokens] - unembedding.mean(axis=0)  # (N, d)
    sigma = scale(norm, parts.after_ffn[-1])  # (N, 1)
    pull = recipe.logit_scale * numbers(norm.gain) * direction / sigma

    def share(x: Array) -> Array:
        """⟨c(x), pull⟩ for x (…, N, d)."""
        product: Array = np.sum(centre(norm, x) * pull, axis=-1)
        return product

    heads = share(np.moveaxis(parts.heads, 2, 1))  # (L, H, N)
    ffn, embedding = share(parts.ffn), share(parts.embedding)
    other = share(parts.rest).sum(axis=0) + recipe.logit_scale * _constants(recipe, direction, tokens)
    rounding = share(parts.rounding).sum(axis=0)
    total = heads.sum(axis=(0, 1)) + ffn.sum(axis=0) + embedding + other + rounding
    for i, layer in enumerate(recipe.layers):
        heads[i, layer.heads :] = np.nan
    return result | {
        "head_contribution": np.moveaxis(heads, 2, 0),
        "ffn_contribution": _frames_first(ffn),
        "embedding_contribution": embedding,
        "other_contribution": other,
        "rounding_contribution": rounding,
        "mixer_contribution": _frames_first(share(np.stack(list(map(_mixed, recipe.layers, rows.layers))))),
        "rest_contribution": _frames_first(share(parts.rest)),
        "residue": (centered - total) / spread,
    }


def _mixed(layer: Layer, values: dict[str, Array]) -> Array:
    """What the mixer as a whole adds (N, d), from what its modules gave: no head is looked at."""
    return values.get("attention_normed", values["projected"]) * layer.multiplier


def _constants(recipe: Recipe, direction: Array, tokens: NDArray[np.int64]) -> Array:
    """What the final norm's bias and the unembedding's bias contribute."""
    constants = np.zeros(len(tokens))
    if recipe.final_norm is not None and recipe.final_norm.bias is not None:
        constants = constants + direction @ numbers(recipe.final_norm.bias)
    if recipe.unembedding_bias is not None:
        bias = numbers(recipe.unembedding_bias)
        constants = constants + bias[tokens] - bias.mean()
    return constants


def uncertainty(recipe: Recipe, rows: Rows, parts: Parts, tokens: NDArray[np.int64]) -> Channels:
    """`logprob`, `entropy`, `margin`, `rank`, `top_ids`, `top_logprobs`, `lens_rank`, `lens_prob`.

    Also `logits` (N, V), `lens_logits` (N, L, K) and, over the whole vocabulary, `lens_logits_vocabulary`
    (N, L, V), `lens_rank_vocabulary` and `lens_prob_vocabulary`.
    """
    logs = log_softmax(rows.logits)
    index = np.arange(len(tokens))
    order = np.argsort(-rows.logits, axis=-1, kind="stable")[:, :TOP_K]
    top = np.take_along_axis(logs, order, axis=-1)
    lens = np.stack([lens_logits(recipe, values["left"]) for values in rows.layers], axis=1)  # (N, L, V)
    chosen = np.take_along_axis(lens, order[:, None], axis=-1)  # (N, L, K)
    over_all = np.take_along_axis(np.exp(log_softmax(lens)), order[:, None], axis=-1)
    return {
        "logits": rows.logits,
        "logprob": logs[index, tokens],
        "entropy": -np.sum(np.exp(logs) * logs, axis=-1),
        "margin": top[:, 0] - top[:, 1],
        "rank": np.sum(rows.logits > rows.logits[index, tokens][:, None], axis=-1),
        "top_ids": order,
        "top_logprobs": top,
        "lens_rank": np.sum(chosen[..., None, :] > chosen[..., :, None], axis=-1),
        "lens_prob": np.exp(log_softmax(chosen)),
        "lens_logits": chosen,
        "lens_logits_vocabulary": lens,
        "lens_rank_vocabulary": np.sum(lens[:, :, None, :] > chosen[..., None], axis=-1),
        "lens_prob_vocabulary": over_all,
    }


def lens_logits(recipe: Recipe, stream: Array) -> Array:
    """The logits (N, V) that the model would give if its last layer had left `stream` (N, d)."""
    norm = recipe.final_norm
    if norm is not None:
        stream = normalise(norm, stream) + (0.0 if norm.bias is None else numbers(norm.bias))
    logits: Array = stream @ numbers(recipe.unembedding).T
    if recipe.unembedding_bias is not None:
        logits = logits + numbers(recipe.unembedding_bias)
    logits = logits * recipe.logit_scale
    return logits if recipe.soft_cap is None else recipe.soft_cap * np.tanh(logits / recipe.soft_cap)


def log_softmax(logits: Array) -> Array:
    """Along the last dimension, in nats."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return result


def routing(recipe: Recipe, rows: Rows) -> Channels:
    """`attention_entropy`, `sink_mass`, `learned_sink_mass`, `attended_positions`, `_weights`; experts.

    Also `attention_weights` (N, L, H, S). With a learned sink the row sums to less than 1;
    `attention_entropy` is over the keys as they are, `attention_entropy_with_sink` has the sink as one more
    outcome, `attention_entropy_of_keys` is that of the row divided by its sum. The three are equal where
    there is no learned sink.
    """
    result = _experts(recipe, rows)
    if any(
        layer.attention is not None and "weights" not in v
        for layer, v in zip(recipe.layers, rows.layers, strict=True)
    ):
        return result
    weights = _weights(recipe, rows)
    mass = weights.sum(axis=-1)
    learned = np.full_like(mass, np.nan)
    for index, layer in enumerate(recipe.layers):
        if layer.learned_sink:
            learned[:, index] = np.clip(1.0 - mass[:, index], 0.0, 1.0)
    entropy = -np.sum(_x_log_x(weights), axis=-1)
    order = np.argsort(-weights, axis=-1, kind="stable")[..., :TOP_K]
    positions, top = _padded(order, -1), _padded(np.take_along_axis(weights, order, axis=-1), np.nan)
    positions[np.isnan(top) | (top == 0.0)] = -1
    return result | {
        "attention_weights": weights,
        "attention_entropy": entropy,
        "attention_entropy_with_sink": entropy - np.nan_to_num(_x_log_x(learned)),
        "attention_entropy_of_keys": -np.sum(_x_log_x(weights / mass[..., None]), axis=-1),
        "sink_mass": weights[..., 0],
        "learned_sink_mass": learned,
        "attended_positions": positions,
        "attended_weights": top,
    }


def _weights(recipe: Recipe, rows: Rows) -> Array:
    """Attention weights (N, L, H, S), NaN where there is no head."""
    shapes = [values["weights"].shape for values in rows.layers if "weights" in values]
    n, heads, keys = len(rows.logits), _most_heads(recipe), max(shape[-1] for shape in shapes)
    weights = np.full((n, len(rows.layers), heads, keys), np.nan)
    for index, values in enumerate(rows.layers):
        if "weights" in values:
            row = values["weights"]
            weights[:, index, : row.shape[1]] = 0.0
            weights[:, index, : row.shape[1], keys - row.shape[2] :] = (
                row  # a window's keys are the last ones
            )
    return weights


def _experts(recipe: Recipe, rows: Rows) -> Channels:
    """`expert_ids` (−1 where a layer has none) and `expert_weights` (NaN), in the router's order."""
    widths = [values["expert_ids"].shape[-1] for values in rows.layers if "expert_ids" in values]
    if not widths:
        return {}
    shape = (len(rows.logits), len(rows.layers), max(widths))
    ids, gates = np.full(shape, -1, dtype=np.int64), np.full(shape, np.nan)
    for index, values in enumerate(rows.layers):
        if "expert_ids" in values:
            ids[:, index, : values["expert_ids"].shape[-1]] = values["expert_ids"]
            gates[:, index, : values["expert_weights"].shape[-1]] = values["expert_weights"]
    return {"expert_ids": ids, "expert_weights": gates}


def neurons(recipe: Recipe, rows: Rows) -> Channels:
    """`neuron_ids` and `neuron_values`, the largest |a_i|·‖w_i‖ of dense FFNs; −1 and NaN for experts.

    `neuron_sizes` (N, L, f) are those of all neurons. `neuron_values_added` and `neuron_ids_added` are the
    same with what stands between the down projection and the residual stream (a norm's gain and frozen
    scale, a multiplier) applied to w_i.
    """
    shape = (len(rows.logits), len(recipe.layers), TOP_NEURONS)
    result: Channels = {}
    for suffix in ("", "_added"):
        ids, values = np.full(shape, -1, dtype=np.int64), np.full(shape, np.nan)
        for index, layer in enumerate(recipe.layers):
            if layer.down is not None:
                size = neuron_sizes(layer, rows.layers[index], added=bool(suffix))
                ids[:, index] = np.argsort(-size, axis=-1, kind="stable")[:, :TOP_NEURONS]
                values[:, index] = np.take_along_axis(size, ids[:, index], axis=-1)
        result |= {f"neuron_ids{suffix}": ids, f"neuron_values{suffix}": values}
    dense = [i for i, layer in enumerate(recipe.layers) if layer.down is not None]
    if dense:
        sizes = {i: neuron_sizes(recipe.layers[i], rows.layers[i], added=False) for i in dense}
        widest = max(size.shape[-1] for size in sizes.values())
        result["neuron_sizes"] = np.full((*shape[:2], widest), np.nan)
        for i, size in sizes.items():
            result["neuron_sizes"][:, i, : size.shape[-1]] = size
    return result


def neuron_sizes(layer: Layer, values: dict[str, Array], *, added: bool) -> Array:
    """|a_i|·‖w_i‖ of every neuron, (N, f); `added`: of w_i as it reaches the residual stream."""
    assert layer.down is not None
    columns = output_matrix(layer.down).T  # (f, d)
    if not added:
        return np.abs(values["neurons"]) * _norm(columns)
    if layer.ffn_norm is not None:
        columns = normalise(layer.ffn_norm, columns[None], scale_of=values["ffn"][:, None])
    sizes: Array = np.abs(values["neurons"]) * _norm(columns * layer.multiplier)
    return sizes


def _x_log_x(x: Array) -> Array:
    return x * np.log(np.where(x > 0, x, 1.0))


def _norm(x: Array) -> Array:
    size: Array = np.sqrt(np.sum(x * x, axis=-1))
    return size


def _frames_first(x: Array) -> Array:
    return np.moveaxis(x, 1, 0)


def _padded(x: NDArray[Any], fill: float) -> NDArray[Any]:
    """The last dimension brought to TOP_K."""
    missing = TOP_K - x.shape[-1]
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)], constant_values=fill)
