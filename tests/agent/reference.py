"""Small random models of many families, and a float64 reference that knows nothing of the agent."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB = 96
HIDDEN, LAYERS, HEADS, FFN = 64, 3, 8, 112


@dataclass(frozen=True)
class Family:
    """A model type, and where its parts are: written down by hand, so that nothing rests on the agent's
    anatomy."""

    name: str
    config: str
    options: dict[str, Any]
    layers: str = "model.layers"
    projection: str = "self_attn.o_proj"
    attention_norm: str = ""
    ffn: str = "mlp"
    ffn_norm: str = ""
    parallel: bool = False
    multiplier: float = 1.0
    heads: int = HEADS
    final_norm: str = "model.norm"
    centred: bool = False
    logit_scale: float = 1.0

    def build(self, seed: int = 0, dtype: Any = torch.float32) -> Any:
        torch.manual_seed(seed)
        config = getattr(transformers, self.config)(**self.options)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for (
                parameter
            ) in model.parameters():  # gains and biases of their own, or a test could not see them
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(dtype))
        model.generation_config.pad_token_id = 0
        return model.eval()


def llama(**changes: Any) -> dict[str, Any]:
    base = {
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": 2, "vocab_size": VOCAB, "bos_token_id": 1,
        "eos_token_id": None, "pad_token_id": 0, "max_position_embeddings": 128,
    }  # fmt: skip
    return {**base, **changes}


def gpt2(**changes: Any) -> dict[str, Any]:
    base = {
        "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCAB, "n_positions": 128,
        "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    return {**base, **changes}


def plain(**changes: Any) -> dict[str, Any]:
    """Llama's options without grouped queries."""
    options = llama(**changes)
    options.pop("num_key_value_heads")
    return options


_SANDWICH: dict[str, Any] = {
    "attention_norm": "post_attention_layernorm",
    "ffn_norm": "post_feedforward_layernorm",
}
_LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16}

FAMILIES = (
    Family("llama", "LlamaConfig", llama()),
    Family("llama_biased", "LlamaConfig", llama(attention_bias=True, mlp_bias=True, num_key_value_heads=8)),
    Family(
        "gpt2", "GPT2Config", gpt2(), "transformer.h", "attn.c_proj", final_norm="transformer.ln_f",
        centred=True,
    ),
    Family("mistral", "MistralConfig", llama(sliding_window=6)),
    Family("qwen2", "Qwen2Config", llama()),
    Family("qwen3", "Qwen3Config", llama(head_dim=16)),
    Family("gemma2", "Gemma2Config", llama(head_dim=12, sliding_window=6), **_SANDWICH),
    Family("gemma3", "Gemma3TextConfig", llama(head_dim=12, sliding_window=6), **_SANDWICH),
    Family("phi3", "Phi3Config", llama()),
    Family(
        "phi", "PhiConfig", llama(), projection="self_attn.dense", parallel=True, centred=True,
        final_norm="model.final_layernorm",
    ),
    Family(
        "gpt_neox", "GPTNeoXConfig", plain(), "gpt_neox.layers", "attention.dense", parallel=True,
        centred=True, final_norm="gpt_neox.final_layer_norm",
    ),
    Family(
        "gpt_neox_sequential", "GPTNeoXConfig", plain(use_parallel_residual=False), "gpt_neox.layers",
        "attention.dense", centred=True, final_norm="gpt_neox.final_layer_norm",
    ),
    Family(
        "falcon", "FalconConfig", plain(bias=True), "transformer.h", "self_attention.dense", parallel=True,
        centred=True, final_norm="transformer.ln_f",
    ),
    Family(
        "falcon_new", "FalconConfig", plain(new_decoder_architecture=True, num_kv_heads=2), "transformer.h",
        "self_attention.dense", parallel=True, centred=True, final_norm="transformer.ln_f",
    ),
    Family(
        "opt", "OPTConfig", plain(ffn_dim=FFN, word_embed_proj_dim=HIDDEN), "model.decoder.layers",
        "self_attn.out_proj", ffn="fc2", centred=True, final_norm="model.decoder.final_layer_norm",
    ),
    Family(
        "bloom", "BloomConfig", {**gpt2(), "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS},
        "transformer.h", "self_attention.dense", ffn="mlp.dense_4h_to_h", centred=True,
        final_norm="transformer.ln_f",
    ),
    Family("starcoder2", "Starcoder2Config", llama(), centred=True),
    Family(
        "olmo2", "Olmo2Config", llama(), attention_norm="post_attention_layernorm",
        ffn_norm="post_feedforward_layernorm",
    ),
    Family("cohere", "CohereConfig", llama(), parallel=True, centred=True, logit_scale=0.0625),
    Family(
        "granite", "GraniteConfig", llama(residual_multiplier=0.22, logits_scaling=4.0), multiplier=0.22,
        logit_scale=0.25,
    ),
    Family("mixtral", "MixtralConfig", llama(num_local_experts=4, num_experts_per_tok=2)),
    Family(
        "qwen3_moe", "Qwen3MoeConfig",
        llama(head_dim=16, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=48),
    ),
    Family(
        "deepseek_v3", "DeepseekV3Config",
        llama(
            num_key_value_heads=8, q_lora_rank=32, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
            v_head_dim=12, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, n_group=2,
            topk_group=1, first_k_dense_replace=1,
        ),
    ),
    Family(
        "gpt_oss", "GptOssConfig",
        llama(head_dim=12, num_local_experts=4, num_experts_per_tok=2, sliding_window=6),
    ),
    Family(
        "qwen3_next", "Qwen3NextConfig",
        llama(
            head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, num_hidden_layers=4,
            shared_expert_intermediate_size=32, linear_value_head_dim=16, **_LINEAR,
        ),
    ),
)  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}


class Reference:
    """Head and FFN writes of whole texts, in float64 with eager attention, each head through its own
    columns."""

    def __init__(self, family: Family, model: Any) -> None:
        self.family = family
        self.model = copy.deepcopy(model).double().eval()
        self.model.set_attn_implementation("eager")
        if hasattr(self.model, "set_experts_implementation"):
            self.model.set_experts_implementation("eager")

    def of(self, ids: list[int]) -> list[dict[str, np.ndarray[Any, Any]]]:
        """The channels of every position of one unpadded text."""
        family, handles = self.family, []
        seen: dict[Any, Any] = {}
        layers = list(self.model.get_submodule(family.layers))
        for i, layer in enumerate(layers):
            for name in ("", family.projection, family.attention_norm, family.ffn, family.ffn_norm):
                module = _submodule(layer, name)
                if module is not None:
                    handles.append(module.register_forward_hook(_keep(seen, (i, name)), with_kwargs=True))
        with torch.no_grad():
            output = self.model(torch.tensor([ids]), use_cache=False)
            values = [self._layer(layer, seen, i) for i, layer in enumerate(layers)]
        for handle in handles:
            handle.remove()
        logits = output.logits[0].double()
        return [self._frame(values, logits, position) for position in range(len(ids))]

    def _layer(self, layer: Any, seen: Any, i: int) -> dict[str, Any]:
        family = self.family
        into, out = seen[i, ""]
        ffn = seen[i, family.ffn_norm or family.ffn][1] * family.multiplier
        projection = _submodule(layer, family.projection)
        if projection is None:  # a layer without heads: what its mixer adds is what is left
            mid = out - ffn
            return {"heads": None, "mid": mid, "out": out, "ffn": ffn, "before": mid, "into": into}
        z = seen[i, family.projection][0]
        weight = projection.weight.T if hasattr(projection, "nf") else projection.weight
        slices = z.reshape(*z.shape[:-1], family.heads, -1)
        columns = weight.reshape(weight.shape[0], family.heads, -1)
        heads = torch.einsum("bthd,ohd->btho", slices, columns)
        added = seen[i, family.projection][1]
        if family.attention_norm:
            norm = _submodule(layer, family.attention_norm)
            eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
            scale = (added.pow(2).mean(-1) + eps).sqrt()
            gain = norm.weight + (1.0 if "gemma" in family.name else 0.0)
            heads = heads * gain / scale[..., None, None]
            added = seen[i, family.attention_norm][1]
        heads, added = heads * family.multiplier, added * family.multiplier
        bias = getattr(projection, "bias", None)
        if bias is None:
            torch.testing.assert_close(heads.sum(-2), added, rtol=1e-5, atol=1e-6)
        elif not family.attention_norm:
            torch.testing.assert_close(heads.sum(-2) + bias * family.multiplier, added, rtol=1e-5, atol=1e-6)
        mid = out if family.parallel else into + added
        before = into if family.parallel else mid
        torch.testing.assert_close(into + added + ffn, out, rtol=1e-5, atol=1e-6)
        return {"heads": heads, "mid": mid, "out": out, "ffn": ffn, "before": before, "into": into}

    def _frame(self, values: list[dict[str, Any]], logits: Any, t: int) -> dict[str, Any]:
        norm = torch.linalg.vector_norm
        nothing = torch.full((self.family.heads,), float("nan"), dtype=torch.float64)
        head = [
            nothing if v["heads"] is None else norm(v["heads"][0, t], dim=-1) / norm(v["mid"][0, t])
            for v in values
        ]
        chances = torch.log_softmax(logits[t], -1)
        return {
            "head_write": torch.stack(head).numpy(),
            "ffn_write": np.array([float(norm(v["ffn"][0, t]) / norm(v["out"][0, t])) for v in values]),
            "ffn_cosine": np.array(
                [float(torch.cosine_similarity(v["ffn"][0, t], v["before"][0, t], dim=-1)) for v in values]
            ),
            "residual_norm": np.array(
                [[float(norm(v["mid"][0, t])), float(norm(v["out"][0, t]))] for v in values]
            ),
            "logprobs": chances.numpy(),
            "contributions": lambda token: self._contributions(values, t, token),
            "entropy": float(-(chances.exp() * chances).sum()),
        }

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _contributions(self, values: list[dict[str, Any]], t: int, token: int) -> dict[str, Any]:
        """Each node's share of the token's centred logit, the final norm's scale frozen at this position."""
        norm = self.model.get_submodule(self.family.final_norm)
        unembedding = self.model.get_output_embeddings()
        end = values[-1]["out"][0, t]
        bias = getattr(norm, "bias", None)
        slope = (norm(end[None])[0] - (0.0 if bias is None else bias)) / self._centred(end)
        aim = (unembedding.weight[token] - unembedding.weight.mean(0)) * self.family.logit_scale

        def share(x: Any) -> Any:
            return (self._centred(x) * slope) @ aim

        nothing = torch.full((self.family.heads,), float("nan"), dtype=torch.float64)
        logits = unembedding(norm(end[None]))[0] * self.family.logit_scale
        return {
            "head_contribution": torch.stack(
                [nothing if v["heads"] is None else share(v["heads"][0, t]) for v in values]
            ).numpy(),
            "ffn_contribution": torch.stack([share(v["ffn"][0, t]) for v in values]).numpy(),
            "embedding_contribution": float(share(values[0]["into"][0, t])),
            "logit_centered": float(logits[token] - logits.mean()),
            "spread": float(logits.std()),
        }

    def _centred(self, x: Any) -> Any:
        return x - x.mean(-1, keepdim=True) if self.family.centred else x


def _submodule(layer: Any, name: str) -> Any:
    try:
        return layer.get_submodule(name)
    except AttributeError:
        return None


def _keep(seen: Any, key: Any) -> Any:
    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        into = args[0] if args else kwargs["hidden_states"]
        out = output[0] if isinstance(output, tuple) else output
        shape = (1, -1) if into.dim() == 2 else into.shape[:2]
        seen[key] = (into.reshape(*shape, into.shape[-1]).clone(), out.reshape(*shape, out.shape[-1]).clone())

    return hook


def assert_close(found: Any, wanted: Any, tolerance: float = 1e-3) -> None:
    """Relative to the largest magnitude in each layer."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    rows = wanted.reshape(len(wanted), -1)
    size = np.nan_to_num(np.abs(rows)).max(-1)
    error = np.nan_to_num(np.abs(found - wanted)).reshape(len(wanted), -1).max(-1)
    assert (error <= tolerance * np.maximum(size, 1e-12)).all(), (error / np.maximum(size, 1e-12)).max()


def assert_frame(frame: Any, wanted: dict[str, Any], tolerance: float = 1e-3) -> None:
    """Every channel of level `heads` of one frame against the reference at the position that produced it."""
    for name in ("head_write", "ffn_write", "residual_norm"):
        assert_close(getattr(frame, name), wanted[name], tolerance)
    np.testing.assert_allclose(frame.ffn_cosine, wanted["ffn_cosine"], atol=2 * tolerance)
    order = np.sort(wanted["logprobs"])[::-1]
    assert frame.logprob == pytest.approx(wanted["logprobs"][frame.token_id], abs=tolerance * 5)
    assert frame.entropy == pytest.approx(wanted["entropy"], abs=tolerance * 5)
    assert frame.margin == pytest.approx(order[0] - order[1], abs=tolerance * 5)
    np.testing.assert_allclose(frame.top_logprobs, order[: len(frame.top_logprobs)], atol=tolerance * 5)
    assert abs(frame.rank - int((wanted["logprobs"] > wanted["logprobs"][frame.token_id]).sum())) <= 1


def assert_contributions(frame: Any, wanted: dict[str, Any], tolerance: float = 1e-3) -> None:
    """Every share against the reference, and all together against the logit."""
    size = max(np.nanmax(np.abs(wanted["head_contribution"])), wanted["spread"])
    for name in ("head_contribution", "ffn_contribution", "embedding_contribution", "logit_centered"):
        np.testing.assert_allclose(getattr(frame, name), wanted[name], atol=tolerance * size, err_msg=name)
    shares = np.nansum(frame.head_contribution) + np.nansum(frame.ffn_contribution)
    total = shares + frame.embedding_contribution + frame.other_contribution
    assert abs(frame.residue) <= tolerance
    assert abs(total - wanted["logit_centered"]) <= tolerance * size


def trace_of(model: Any) -> dict[str, Any]:
    """Everything that instrumenting could leave behind: attributes, hooks, weights."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found[f"{name}.{key}"] = dict(value) if isinstance(value, dict) else value
    found["state"] = {k: (v.data_ptr(), v._version) for k, v in model.state_dict().items()}
    return found


def prompts(rows: int, width: int, seed: int = 1) -> Any:
    """Different prompts of one length."""
    return torch.randint(3, VOCAB, (rows, width), generator=torch.Generator().manual_seed(seed))
