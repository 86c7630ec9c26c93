"""The shape of the model: a small Llama with grouped-query attention."""

from __future__ import annotations

from typing import Any

from fulgurite.cli.demo.model.tokens import CONTEXT, END, PAD, START

LAYERS, WIDTH, HEADS, KV_HEADS, FFN = 8, 192, 8, 4, 512
TEMPERATURE, TOP_P = 0.8, 0.95


def new_model(tokenizer: Any, *, seed: int) -> Any:
    """An untrained `LlamaForCausalLM` for `tokenizer`, with the settings it is to generate with."""
    import torch

    torch.manual_seed(seed)
    special = _special(tokenizer)
    library = _transformers()
    config = library.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **special,
    )
    model = library.LlamaForCausalLM(config)
    model.generation_config = library.GenerationConfig(
        do_sample=True, temperature=TEMPERATURE, top_p=TOP_P, max_new_tokens=192, **special
    )
    return model


def _transformers() -> Any:
    import transformers

    return transformers


def _special(tokenizer: Any) -> dict[str, int]:
    names = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
    return {setting: tokenizer.convert_tokens_to_ids(token) for setting, token in names.items()}
