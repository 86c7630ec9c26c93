"""A tiny decoder with the bundled tokenizer, that vLLM's kernels can run: random weights, the same each time.

Heads are 32 wide, since vLLM's attention on the CPU knows no narrower ones that the bundled model has.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

VOCABULARY, CONTEXT = 1024, 512
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.05,
}


def tokenizer_folder() -> Path:
    """Where the bundled tokenizer is."""
    from fulgurite.cli.demo.model.loading import bundled_path

    return bundled_path()


def make(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    """Write a model of `kind` to `folder`, with its tokenizer; in float32. A larger vocabulary than the
    tokenizer's is filled up with names, so that whatever is sampled has a text."""
    import torch
    import transformers

    configuration, model = {
        "llama": ("LlamaConfig", "LlamaForCausalLM"),
        "mixtral": ("MixtralConfig", "MixtralForCausalLM"),
    }[kind]
    torch.manual_seed(7)
    config = getattr(transformers, configuration)(**{**_SHAPE, "tie_word_embeddings": False, **changes})
    made = getattr(transformers, model)(config)
    made.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_folder() / name, folder / name)
    told = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    told["model"]["vocab"] |= {f"Ġword{number}": number for number in range(VOCABULARY, config.vocab_size)}
    (folder / "tokenizer.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


def adapter(folder: Path, base: Path) -> Path:
    """Write a LoRA adapter of `base` to `folder` that changes what it says."""
    import torch
    from safetensors.torch import save_file

    rank, layers, width, ffn = (
        4,
        _SHAPE["num_hidden_layers"],
        _SHAPE["hidden_size"],
        _SHAPE["intermediate_size"],
    )
    made = torch.Generator().manual_seed(3)
    tensors = {}
    for layer in range(layers):
        for part, into, out in (
            ("self_attn.o_proj", width, width),
            ("self_attn.q_proj", width, width),
            ("mlp.down_proj", ffn, width),
        ):
            name = f"base_model.model.model.layers.{layer}.{part}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, into, generator=made) * 0.2
            tensors[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=made) * 0.2
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["o_proj", "q_proj", "down_proj"],
        "base_model_name_or_path": str(base),
        "task_type": "CAUSAL_LM",
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder
