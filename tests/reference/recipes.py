"""Where each family keeps what the reference needs: written down by hand from the family's modeling file.

A recipe is a list of facts about one model class, with no search and no guess in it. It says which module
projects the heads into the residual stream, what stands between that projection and the addition, where the
FFN is, how the embedding is made, what the final norm and the unembedding are. Whoever adds a family reads
its modeling file and writes one function here.

Shape letters: d hidden size, V vocabulary, f FFN width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A normalisation as numbers: kind, gain (d,), bias (d,) or None, epsilon."""

    module: nn.Module
    kind: Literal["rms", "layer"]
    gain: Tensor
    bias: Tensor | None
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One decoder layer.

    Attributes
    ----------
    block : its input and its (first) output are the residual stream.
    attention : the module that returns (result, attention weights); None for a layer without attention.
    projection : what it writes into the residual stream with; the input is the heads, side by side.
    heads : attention heads; 0 for a layer without attention.
    ffn : the module whose (first) output is the FFN's result, before `ffn_norm` and `multiplier`.
    attention_norm, ffn_norm : norms between the result and the addition.
    multiplier : factor on both results before the addition.
    middle : the module whose input is the residual stream between the two additions; None where both are
        added at once.
    down : the projection whose input are the FFN's neurons; None for a mixture of experts.
    end : the module whose input is the residual stream right after the last addition; None: the block's
        output is.
    experts : the module that is called with (hidden states, expert ids, gate weights); None for a dense FFN.
    window : the most positions that a query sees, itself included; None for all.
    learned_sink : whether a learned logit takes part of the attention.
    """

    block: nn.Module
    attention: nn.Module | None
    projection: nn.Module
    heads: int
    ffn: nn.Module
    attention_norm: Norm | None = None
    ffn_norm: Norm | None = None
    multiplier: float = 1.0
    middle: nn.Module | None
    down: nn.Module | None
    end: nn.Module | None = None
    experts: nn.Module | None = None
    window: int | None = None
    learned_sink: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One model.

    Attributes
    ----------
    embedding : token ids (T,) to what enters layer 0 (T, d), from the weights alone.
    final_norm : None where the family has none.
    head : the module whose output are the logits before `logit_scale` and `soft_cap`.
    unembedding : (V, d), applied to the final norm's output.
    post_norm : the residual stream itself is normalised after each addition, so that nothing adds up over
        layers.
    """

    layers: tuple[Layer, ...]
    embedding: Callable[[Tensor], Tensor]
    final_norm: Norm | None
    head: nn.Module
    unembedding: Tensor
    unembedding_bias: Tensor | None = None
    logit_scale: float = 1.0
    soft_cap: float | None = None
    post_norm: bool = False


Part = TypeVar("Part", Layer, Recipe)


def recipe_of(model: Any) -> Recipe:
    """The facts about this model.

    Raises
    ------
    NotImplementedError
        For a family that nobody has written down.
    """
    family = model.config.model_type
    write = _BY_MODEL_TYPE.get(family)
    if write is None:
        raise NotImplementedError(
            f"no recipe for {family!r}: read its modeling file and add one to {__name__}"
        )
    return write(model)


def _rms(module: Any) -> Norm:
    """An RMS norm that multiplies by its weight."""
    epsilon = getattr(module, "variance_epsilon", None) or module.eps
    return Norm(module=module, kind="rms", gain=module.weight, bias=None, epsilon=epsilon)


def _rms_plus_one(module: Any) -> Norm:
    """An RMS norm that multiplies by one plus its weight (Gemma, Qwen3-Next)."""
    return Norm(module=module, kind="rms", gain=1.0 + module.weight.double(), bias=None, epsilon=module.eps)


def _layer_norm(module: Any) -> Norm:
    """PyTorch's LayerNorm, its bias included where it has one."""
    return Norm(module=module, kind="layer", gain=module.weight, bias=module.bias, epsilon=module.eps)


def _cohere_norm(module: Any) -> Norm:
    """Cohere's own LayerNorm: no bias."""
    return Norm(module=module, kind="layer", gain=module.weight, bias=None, epsilon=module.variance_epsilon)


def _lookup(table: nn.Module, factor: float | Tensor = 1.0) -> Callable[[Tensor], Tensor]:
    """Token embedding times a factor."""
    weight: Any = table.weight
    return lambda ids: weight[ids] * factor


def _windows(config: Any, count: int) -> list[int | None]:
    """The window of each layer, from `layer_types` where the configuration has them."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * count
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _llama(model: Any) -> Recipe:
    """Llama and all that copy its block: norm, attention, add, norm, gated FFN, add."""
    core, config = model.model, model.config
    windows = _windows(config, len(core.layers))
    layers = tuple(
        Layer(
            block=block,
            attention=block.self_attn,
            projection=block.self_attn.o_proj,
            heads=config.num_attention_heads,
            ffn=block.mlp,
            middle=block.post_attention_layernorm,
            down=getattr(block.mlp, "down_proj", None),
            experts=getattr(block.mlp, "experts", None),
            window=window,
        )
        for block, window in zip(core.layers, windows, strict=True)
    )
    return Recipe(
        layers=layers,
        embedding=_lookup(core.embed_tokens),
        final_norm=_rms(core.norm),
        head=model.lm_head,
        unembedding=model.lm_head.weight,
    )


def _gemma(model: Any) -> Recipe:
    """Gemma: Llama's block, norms of one plus weight, the embedding times a factor in the weights' type."""
    base, core = _llama(model), model.model
    return _with(
        base,
        embedding=_lookup(core.embed_tokens, core.embed_tokens.embed_scale),
        final_norm=_rms_plus_one(core.norm),
    )


def _gemma_sandwich(model: Any) -> Recipe:
    """Gemma 2 and 3: a norm before and after attention and FFN; soft-caps where configured."""
    base = _gemma(model)
    layers = tuple(
        _with(
            layer,
            attention_norm=_rms_plus_one(block.post_attention_layernorm),
            ffn_norm=_rms_plus_one(block.post_feedforward_layernorm),
            middle=block.pre_feedforward_layernorm,
        )
        for layer, block in zip(base.layers, model.model.layers, strict=True)
    )
    return _with(base, layers=layers, soft_cap=model.config.final_logit_softcapping)


def _olmo2(model: Any) -> Recipe:
    """OLMo 2: norms only behind attention and FFN. The residual stream goes straight into the FFN."""
    base = _llama(model)
    layers = tuple(
        _with(
            layer,
            attention_norm=_rms(block.post_attention_layernorm),
            ffn_norm=_rms(block.post_feedforward_layernorm),
            middle=block.mlp,
        )
        for layer, block in zip(base.layers, model.model.layers, strict=True)
    )
    return _with(base, layers=layers)


def _granite(model: Any) -> Recipe:
    """Granite: multipliers on the embedding and on both results, logits divided by a factor."""
    base, config = _llama(model), model.config
    layers = tuple(_with(layer, multiplier=config.residual_multiplier) for layer in base.layers)
    return _with(
        base,
        layers=layers,
        embedding=_lookup(model.model.embed_tokens, config.embedding_multiplier),
        logit_scale=1.0 / config.logits_scaling,
    )


def _cohere(model: Any) -> Recipe:
    """Cohere: one norm, attention and FFN side by side, logits times a factor."""
    base = _llama_without_middle(model)
    return _with(base, final_norm=_cohere_norm(model.model.norm), logit_scale=model.config.logit_scale)


def _llama_without_middle(model: Any) -> Recipe:
    """Cohere's block has Llama's names, and no second norm."""
    core, config = model.model, model.config
    layers = tuple(
        Layer(
            block=block,
            attention=block.self_attn,
            projection=block.self_attn.o_proj,
            heads=config.num_attention_heads,
            ffn=block.mlp,
            middle=None,
            down=block.mlp.down_proj,
        )
        for block in core.layers
    )
    return Recipe(
        layers=layers,
        embedding=_lookup(core.embed_tokens),
        final_norm=None,
        head=model.lm_head,
        unembedding=model.lm_head.weight,
    )


def _starcoder2(model: Any) -> Recipe:
    """StarCoder 2: Llama's block with LayerNorm and an FFN without a gate."""
    base = _llama(model)
    layers = tuple(
        _with(layer, down=block.mlp.c_proj)
        for layer, block in zip(base.layers, model.model.layers, strict=True)
    )
    return _with(base, layers=layers, final_norm=_layer_norm(model.model.norm))


def _gpt_oss(model: Any) -> Recipe:
    """GPT-OSS: experts everywhere, a learned sink logit per head, every second layer with a window."""
    base = _llama(model)
    layers = tuple(_with(layer, learned_sink=True) for layer in base.layers)
    return _with(base, layers=layers)


def _qwen3_next(model: Any) -> Recipe:
    """Qwen3-Next: gated delta nets, full attention now and then, experts with a gated shared one."""
    base, core = (
        _llama_hybrid(model, mixer="linear_attn", middle="post_attention_layernorm", ffn="mlp"),
        model.model,
    )
    return _with(base, final_norm=_rms_plus_one(core.norm))


def _bamba(model: Any) -> Recipe:
    """Bamba and Jamba: state-space layers with an attention layer now and then."""
    base = _llama_hybrid(model, mixer="mamba", middle="pre_ff_layernorm", ffn="feed_forward")
    return _with(base, final_norm=_rms(model.model.final_layernorm))


def _llama_hybrid(model: Any, *, mixer: str, middle: str, ffn: str) -> Recipe:
    """Llama's block, in which some layers have a mixer without attention heads."""
    core, config = model.model, model.config

    def layer(block: Any) -> Layer:
        attention = getattr(block, "self_attn", None)
        feed_forward = getattr(block, ffn)
        return Layer(
            block=block,
            attention=attention,
            projection=getattr(block, mixer).out_proj if attention is None else attention.o_proj,
            heads=0 if attention is None else config.num_attention_heads,
            ffn=feed_forward,
            middle=getattr(block, middle),
            down=getattr(feed_forward, "down_proj", None),
            experts=getattr(feed_forward, "experts", None),
        )

    return Recipe(
        layers=tuple(layer(block) for block in core.layers),
        embedding=_lookup(core.embed_tokens),
        final_norm=None,
        head=model.lm_head,
        unembedding=model.lm_head.weight,
    )


def _phi(model: Any) -> Recipe:
    """Phi: one norm, attention and FFN side by side, biases everywhere, one on the unembedding too."""
    core, config = model.model, model.config
    layers = tuple(
        Layer(
            block=block,
            attention=block.self_attn,
            projection=block.self_attn.dense,
            heads=config.num_attention_heads,
            ffn=block.mlp,
            middle=None,
            down=block.mlp.fc2,
        )
        for block in core.layers
    )
    return Recipe(
        layers=layers,
        embedding=_lookup(core.embed_tokens),
        final_norm=_layer_norm(core.final_layernorm),
        head=model.lm_head,
        unembedding=model.lm_head.weight,
        unembedding_bias=model.lm_head.bias,
    )


def _gpt2(model: Any) -> Recipe:
    """GPT-2: learned positions, Conv1D projections (input first), GELU FFN."""
    core, config = model.transformer, model.config
    layers = tuple(
        Layer(
            block=block,
            attention=block.attn,
            projection=block.attn.c_proj,
            heads=config.n_head,
            ffn=block.mlp,
            middle=block.ln_2,
            down=block.mlp.c_proj,
        )
        for block in core.h
    )

    def embedding(ids: Tensor) -> Tensor:
        vectors: Tensor = core.wte.weight[ids] + core.wpe.weight[: len(ids)]
        return vectors

    return Recipe(
        layers=layers,
        embedding=embedding,
        final_norm=_layer_norm(core.ln_f),
        head=model.lm_head,
        unembedding=model.lm_head.weight,
    )


def _gpt_neox(model: Any) -> Recipe:
    """GPT-NeoX: attention and FFN side by side, each behind its own norm, or one after the other."""
    core, config = model.gpt_neox, model.config
    parallel = config.use_parallel_residual
    layers = tuple(
        Layer(
            block=block,
            attention=block.attention,
            projection=block.attention.dense,
            heads=config.num_attention_heads,
            ffn=block.mlp,
            middle=None if parallel else block.post_attention_layernorm,
            down=block.mlp.dense_4h_to_h,
        )
        for block in core.layers
    )
    return Recipe(
        layers=layers,
        embedding=_lookup(core.embed_in),
        final_norm=_layer_norm(core.final_layer_norm),
        head=model.lm_head,
        unembedding=model.lm_head.weight,
    )


def _falcon(model: Any) -> Recipe:
    """Falcon: three layouts. The parallel ones add the attention's result into the FFN's tensor, in place."""
    core, config = model.transformer, model.config
    parallel = config.new_decoder_architecture or config.parallel_attn
    layers = tuple(
        Layer(
            block=block,
            attention=block.self_attention,
            projection=block.self_attention.dense,
            heads=config.num_attention_heads,
            ffn=block.mlp,
            middle=None if parallel else block.post_attention_layernorm,
            down=block.mlp.dense_4h_to_h,
        )
        for block in core.h
    )
    return Recipe(
        layers=layers,
        embedding=_lookup(core.word_embeddings),
        final_norm=_layer_norm(core.ln_f),
        head=model.lm_head,
        unembedding=model.lm_head.weight,
    )


def _bloom(model: Any) -> Recipe:
    """BLOOM: a norm on the embedding; attention and FFN modules add the residual stream inside."""
    core, config = model.transformer, model.config
    layers = tuple(
        Layer(
            block=block,
            attention=block.self_attention,
            projection=block.self_attention.dense,
            heads=config.n_head,
            ffn=block.mlp.dense_4h_to_h,
            middle=block.post_attention_layernorm,
            down=block.mlp.dense_4h_to_h,
        )
        for block in core.h
    )
    norm = core.word_embeddings_layernorm

    def embedding(ids: Tensor) -> Tensor:
        vectors = core.word_embeddings.weight[ids]
        centered = vectors - vectors.mean(-1, keepdim=True)
        scale = torch.sqrt(centered.square().mean(-1, keepdim=True) + norm.eps)
        normed: Tensor = centered / scale * norm.weight + norm.bias
        return normed

    return Recipe(
        layers=layers,
        embedding=embedding,
        final_norm=_layer_norm(core.ln_f),
        head=model.lm_head,
        unembedding=model.lm_head.weight,
    )


def _opt(model: Any) -> Recipe:
    """OPT: learned positions with an offset of 2, FFN on the layer itself; OPT-350m adds, then norms."""
    core, config = model.model.decoder, model.config
    post_norm = not config.do_layer_norm_before
    layers = tuple(
        Layer(
            block=block,
            attention=block.self_attn,
            projection=block.self_attn.out_proj,
            heads=config.num_attention_heads,
            ffn=block.fc2,
            middle=block.self_attn_layer_norm if post_norm else block.final_layer_norm,
            down=block.fc2,
            end=block.final_layer_norm if post_norm else None,
        )
        for block in core.layers
    )

    def embedding(ids: Tensor) -> Tensor:
        vectors: Tensor = core.embed_tokens.weight[ids]
        if core.project_in is not None:
            vectors = vectors @ core.project_in.weight.T
        positions: Tensor = core.embed_positions.weight[2 : 2 + len(ids)]
        return vectors + positions

    unembedding: Tensor = model.lm_head.weight
    if core.project_out is not None:
        unembedding = unembedding @ core.project_out.weight
    return Recipe(
        layers=layers,
        embedding=embedding,
        final_norm=None if core.final_layer_norm is None else _layer_norm(core.final_layer_norm),
        head=model.lm_head,
        unembedding=unembedding,
        post_norm=post_norm,
    )


def _gptj(model: Any) -> Recipe:
    """GPT-J: one norm, attention and FFN side by side, bias on the unembedding."""
    core, config = model.transformer, model.config
    layers = tuple(
        Layer(
            block=block,
            attention=block.attn,
            projection=block.attn.out_proj,
            heads=config.n_head,
            ffn=block.mlp,
            middle=None,
            down=block.mlp.fc_out,
        )
        for block in core.h
    )
    return Recipe(
        layers=layers,
        embedding=_lookup(core.wte),
        final_norm=_layer_norm(core.ln_f),
        head=model.lm_head,
        unembedding=model.lm_head.weight,
        unembedding_bias=model.lm_head.bias,
    )


def _mpt(model: Any) -> Recipe:
    """MPT: no biases at all; the FFN module adds the residual stream itself, inside."""
    core, config = model.transformer, model.config
    layers = tuple(
        Layer(
            block=block,
            attention=block.attn,
            projection=block.attn.out_proj,
            heads=config.n_heads,
            ffn=block.ffn.down_proj,
            middle=block.norm_2,
            down=block.ffn.down_proj,
        )
        for block in core.blocks
    )
    return Recipe(
        layers=layers,
        embedding=_lookup(core.wte),
        final_norm=_layer_norm(core.norm_f),
        head=model.lm_head,
        unembedding=model.lm_head.weight,
    )


def _with(original: Part, **changes: Any) -> Part:
    """A copy of a layer or a recipe with some facts replaced."""
    return replace(original, **changes)


_BY_MODEL_TYPE: dict[str, Callable[[Any], Recipe]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "phi3": _llama,
    "mixtral": _llama,
    "qwen3_moe": _llama,
    "deepseek_v3": _llama,
    "gemma": _gemma,
    "gemma2": _gemma_sandwich,
    "gemma3_text": _gemma_sandwich,
    "olmo2": _olmo2,
    "granite": _granite,
    "cohere": _cohere,
    "starcoder2": _starcoder2,
    "gpt_oss": _gpt_oss,
    "qwen3_next": _qwen3_next,
    "bamba": _bamba,
    "jamba": _bamba,
    "phi": _phi,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "falcon": _falcon,
    "bloom": _bloom,
    "opt": _opt,
    "gptj": _gptj,
    "mpt": _mpt,
}
