"""Tiny random models, one of each decoder family that capture must be exact on.

Every configuration keeps what its family is known for and avoids coincidences that hide mistakes: heads ×
head size differs from the width where the family allows it, there are fewer key-value heads than heads,
biases are on where they exist, windows are shorter than the test sequences. Weights are drawn so that
attention is far from uniform and so that no norm gain is 1 and no bias 0.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

VOCABULARY = 101
HIDDEN = 48
WINDOW = 8
POSITIONS = 256

_COMMON: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.02,
}
_GROUPED: Mapping[str, Any] = {**_COMMON, "num_key_value_heads": 2, "head_dim": 16}
_GEMMA_WINDOWS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


@dataclass(frozen=True)
class Family:
    """One family: the class of `transformers` and the settings of its tiny configuration.

    Attributes
    ----------
    architecture : prefix of the class names, as in ``LlamaConfig`` and ``LlamaForCausalLM``.
    settings : arguments of the configuration.
    sdpa : whether the family runs under PyTorch's fused attention, with the same result.
    model_class, config_class : full names, where they do not follow from `architecture`.
    embedding_spread : standard deviation of the token embeddings.
    """

    architecture: str
    settings: Mapping[str, Any]
    sdpa: bool = True
    model_class: str = ""
    config_class: str = ""
    embedding_spread: float = 0.3

    @property
    def implementations(self) -> tuple[str, ...]:
        """The attention implementations that the family runs under."""
        return ("eager", "sdpa") if self.sdpa else ("eager",)


FAMILIES: dict[str, Family] = {
    "llama": Family("Llama", {**_GROUPED, "attention_bias": True, "mlp_bias": True}),
    "llama3": Family(
        "Llama",
        {
            **_GROUPED,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "mistral": Family("Mistral", {**_GROUPED, "sliding_window": WINDOW}),
    "qwen2": Family(
        "Qwen2",
        {
            **_COMMON,
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
        },
    ),
    "qwen3": Family("Qwen3", {**_GROUPED, "attention_bias": True}),
    "gemma": Family("Gemma", {**_GROUPED, "num_key_value_heads": 1, "head_dim": 20}, embedding_spread=0.15),
    "gemma2": Family(
        "Gemma2",
        {
            **_GROUPED,
            "num_hidden_layers": 4,
            "query_pre_attn_scalar": 10,
            "sliding_window": WINDOW,
            "layer_types": _GEMMA_WINDOWS,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
        sdpa=False,
    ),
    "gemma3": Family(
        "Gemma3",
        {
            **_GROUPED,
            "num_hidden_layers": 4,
            "query_pre_attn_scalar": 10,
            "sliding_window": WINDOW,
            "layer_types": _GEMMA_WINDOWS,
        },
        config_class="Gemma3TextConfig",
        embedding_spread=0.15,
    ),
    "phi3": Family("Phi3", {**_COMMON, "num_key_value_heads": 2, "sliding_window": WINDOW}),
    "phi": Family("Phi", {**_COMMON, "num_key_value_heads": 2, "qk_layernorm": True}),
    "gpt2": Family(
        "GPT2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": HIDDEN,
            "n_layer": 3,
            "n_head": 4,
            "n_inner": 80,
            "n_positions": POSITIONS,
            "scale_attn_by_inverse_layer_idx": True,
        },
        model_class="GPT2LMHeadModel",
    ),
    "gpt_neox": Family("GPTNeoX", {**_COMMON, "use_parallel_residual": True}),
    "gpt_neox_sequential": Family("GPTNeoX", {**_COMMON, "use_parallel_residual": False}),
    "falcon": Family(
        "Falcon",
        {
            **{k: v for k, v in _COMMON.items() if k != "intermediate_size"},
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "ffn_hidden_size": 80,
        },
    ),
    "falcon_multi_query": Family(
        "Falcon",
        {
            **{k: v for k, v in _COMMON.items() if k != "intermediate_size"},
            "multi_query": True,
            "parallel_attn": True,
            "bias": True,
            "ffn_hidden_size": 80,
        },
    ),
    "falcon_alibi": Family(
        "Falcon",
        {
            **{k: v for k, v in _COMMON.items() if k != "intermediate_size"},
            "multi_query": False,
            "parallel_attn": False,
            "alibi": True,
            "bias": True,
            "ffn_hidden_size": 80,
        },
        sdpa=False,  # it runs, but eager attention adds the linear bias twice: the two are different models
    ),
    "opt": Family(
        "OPT",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "ffn_dim": 80,
            "max_position_embeddings": POSITIONS,
            "word_embed_proj_dim": HIDDEN,
        },
    ),
    "opt_post_norm": Family(
        "OPT",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "ffn_dim": 80,
            "max_position_embeddings": POSITIONS,
            "word_embed_proj_dim": 40,
            "do_layer_norm_before": False,
        },
    ),
    "bloom": Family(
        "Bloom",
        {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": 3, "n_head": 6},
        sdpa=False,
    ),
    "starcoder2": Family("Starcoder2", {**_COMMON, "num_key_value_heads": 2, "sliding_window": WINDOW}),
    "olmo2": Family("Olmo2", {**_COMMON, "num_key_value_heads": 2, "attention_bias": True}),
    "cohere": Family(
        "Cohere",
        {
            **_COMMON,
            "num_key_value_heads": 2,
            "logit_scale": 0.25,
            "use_qk_norm": True,
            "attention_bias": True,
        },
    ),
    "granite": Family(
        "Granite",
        {
            **_COMMON,
            "num_key_value_heads": 2,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.5,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "mixtral": Family(
        "Mixtral",
        {**_GROUPED, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    ),
    "qwen3_moe": Family(
        "Qwen3Moe",
        {
            **_GROUPED,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "norm_topk_prob": False,
            "mlp_only_layers": [1],
        },
    ),
    "deepseek_v3": Family(
        "DeepseekV3",
        {
            **_COMMON,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 24,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "num_experts_per_tok": 3,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 20,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 12,
            "v_head_dim": 10,
            "attention_bias": True,
        },
    ),
    "gpt_oss": Family(
        "GptOss",
        {
            **_GROUPED,
            "num_hidden_layers": 4,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "layer_types": _GEMMA_WINDOWS,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        sdpa=False,
    ),
    "gptj": Family(
        "GPTJ",
        {
            "vocab_size": VOCABULARY,
            "n_embd": HIDDEN,
            "n_layer": 3,
            "n_head": 4,
            "n_inner": 80,
            "rotary_dim": 8,
            "n_positions": POSITIONS,
        },
    ),
    "mpt": Family(
        "Mpt",
        {"vocab_size": VOCABULARY, "d_model": HIDDEN, "n_layers": 3, "n_heads": 4, "max_seq_len": POSITIONS},
        sdpa=False,
    ),
    "qwen3_next": Family(
        "Qwen3Next",
        {
            **_GROUPED,
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
            "linear_conv_kernel_dim": 3,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 12,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 24,
            "num_experts": 6,
            "num_experts_per_tok": 2,
        },
    ),
    "bamba": Family(
        "Bamba",
        {
            **_COMMON,
            "num_key_value_heads": 2,
            "attn_layer_indices": [1],
            "attention_bias": True,
            "mlp_bias": True,
            "mamba_n_heads": 6,
            "mamba_d_head": "auto",
            "mamba_d_state": 8,
            "mamba_chunk_size": 16,
        },
    ),
    "jamba": Family(
        "Jamba",
        {
            **_COMMON,
            "num_key_value_heads": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
            "mamba_d_state": 8,
        },
    ),
}


def build(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    attn_implementation: str = "eager",
    eos_token_id: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A tiny random model of family `name`, in evaluation mode, on the CPU.

    Parameters
    ----------
    name : a key of `FAMILIES`.
    dtype : type of the weights; the same seed gives the same float32 weights, rounded.
    seed : of the weights. The global generator is left as it was.
    attn_implementation : ``eager`` or ``sdpa``; what the family runs under is in `Family.implementations`.
    eos_token_id : None: generation never stops by itself.
    settings : of the configuration, in place of those of the table.

    Raises
    ------
    ValueError
        For an unknown family, or an attention implementation that it does not run under.
    """
    family = FAMILIES.get(name)
    if family is None:
        raise ValueError(f"no family {name!r}; there are {', '.join(FAMILIES)}")
    if attn_implementation not in family.implementations:
        raise ValueError(f"{name} runs under {family.implementations}, not {attn_implementation!r}")
    config = configuration(name, eos_token_id=eos_token_id, settings=settings)
    model = from_configuration(name, config, attn_implementation=attn_implementation)
    _randomise(model, seed, FAMILIES[name].embedding_spread)
    return model.to(dtype).eval()


def configuration(
    name: str, *, eos_token_id: int | None = None, settings: Mapping[str, Any] | None = None
) -> Any:
    """The configuration of family `name`: token 0 pads, token 1 begins, `eos_token_id` ends.

    `settings` go before those of the table.
    """
    family = FAMILIES[name]
    config_class = getattr(transformers, family.config_class or f"{family.architecture}Config")
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": eos_token_id}
    return config_class(**copy.deepcopy({**family.settings, **tokens, **(settings or {})}))


def from_configuration(name: str, config: Any, *, attn_implementation: str) -> nn.Module:
    """A float32 model of family `name` as it starts; the global random state is left as it was."""
    family = FAMILIES[name]
    model_class = getattr(transformers, family.model_class or f"{family.architecture}ForCausalLM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # some layers start from random numbers that are kept
        model = model_class._from_config(config, attn_implementation=attn_implementation, dtype=torch.float32)
    assert isinstance(model, nn.Module)
    return model


@torch.no_grad()
def _randomise(model: nn.Module, seed: int, embedding_spread: float) -> None:
    """Draw every weight: spread matrices, jittered norm gains, non-zero biases, sharp attention."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(_drawn(name, parameter, noise, embedding_spread))
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))


def _drawn(name: str, parameter: torch.Tensor, noise: torch.Tensor, embedding_spread: float) -> torch.Tensor:
    """The value of one parameter, from unit normal `noise`."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "A_log" and parameter.dim() == 1:  # slow decay, or the state is nothing but rounding
        return 0.3 * noise - 1.0
    if leaf in {"A_log", "dt_bias", "D"}:  # what a state-space layer starts from is what keeps it stable
        return parameter + 0.1 * noise
    if leaf == "sinks":
        return noise
    if leaf.endswith("bias"):
        return 0.3 * noise
    if any(part in name for part in ("q_norm", "q_layernorm")):  # or attention would be nearly uniform
        return parameter + 0.9 + 0.3 * noise
    if parameter.dim() == 1 or "norm" in name:  # around 1, or around 0 where the model adds the 1 itself
        return parameter + 0.3 * noise
    if any(part in name for part in ("embed", "wte", "wpe", "lm_head")):
        return embedding_spread * noise
    gain = (
        2.0
        if any(part in name for part in ("q_proj", "k_proj", "q_b_proj", "query", "Wqkv", "c_attn"))
        else 1.0
    )
    return gain * noise / math.sqrt(_fan_in(name, parameter))


def _fan_in(name: str, parameter: torch.Tensor) -> int:
    """How many inputs one output sums over: GPT-2's and GPT-OSS's matrices have them in front."""
    if parameter.dim() == 3:
        return parameter.shape[-1] if parameter.shape[1] != parameter.shape[2] else parameter.shape[1]
    transposed = any(part in name for part in ("c_attn", "c_proj", "c_fc")) and "transformer.h" in name
    return int(parameter.shape[0 if transposed else -1])
