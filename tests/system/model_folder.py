"""A tiny model on disk with a tokenizer whose texts tell the ids: ``t7 t31`` is 7, 31."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = 96
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"


def save(folder: Path, *, seed: int = 0, layers: int = 2) -> Path:
    """Write model and tokenizer to `folder`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config: Any = LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
        model.lm_head.weight[:2] = 0.0  # servers leave special tokens out of their texts: none is generated
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    known = {"<pad>": 0, "<unk>": 1, **{f"t{i}": i for i in range(2, WORDS)}}
    words = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def ids_of(text: str) -> list[int]:
    """The ids that a text tells."""
    return [int(word[1:]) for word in text.split()]


def text_of(ids: list[int]) -> str:
    """The text that tells `ids`."""
    return " ".join(f"t{i}" for i in ids)
