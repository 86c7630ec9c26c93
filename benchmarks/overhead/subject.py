"""The model that is measured: a Llama with random weights, written once, loaded by every process alike.

Random weights do not change what a step costs. Imports nothing of Fulgurite: the peers' environment has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCABULARY = 32_000


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a Llama with grouped-query attention."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    kv_heads: int = 4
    ffn: int = 2048
    vocabulary: int = VOCABULARY
    context: int = 2048


def build(shape: Shape, folder: Path) -> int:
    """Write the model and a tokenizer that it never needs into `folder`; its number of parameters."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    _tokenizer(transformers).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _tokenizer(transformers: Any) -> Any:
    """Peers want one; what is measured works on ids."""
    from tokenizers import Tokenizer, models

    words = models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def load(folder: Path, dtype: str, *, attention: str = "sdpa") -> Any:
    """The model, ready to generate."""
    import torch
    import transformers

    library: Any = transformers
    library.utils.logging.disable_progress_bar()
    loaded = library.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    return loaded.eval()


def prompt(rows: int, length: int) -> dict[str, Any]:
    """Drawn ids, shape (rows, length), and the mask that keeps them all."""
    import torch

    ids = torch.randint(3, 1000, (rows, length), generator=torch.Generator().manual_seed(rows))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def greedy(tokens: int) -> dict[str, Any]:
    """Options of `generate` for exactly `tokens` greedy tokens a row."""
    return {"do_sample": False, "min_new_tokens": tokens, "max_new_tokens": tokens, "pad_token_id": 0}
