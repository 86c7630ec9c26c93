"""Peers that capture, for every token, what our level `heads` reads: the projections' inputs.

They run in environments of their own, which have no Fulgurite. Each gets a copy of the model to itself,
since it changes what it wraps; `off` beside it is the same model on the same versions, untouched.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.overhead.subject import greedy, load
from benchmarks.overhead.variant import Generate, Variant
from benchmarks.sample import StepClock

PACKAGES = {"nnsight": "nnsight", "TransformerLens": "transformer_lens"}


@contextmanager
def _off(model: Any) -> Iterator[Generate]:
    def generate(inputs: dict[str, Any], tokens: int, clock: StepClock) -> object:
        return model.generate(**inputs, **greedy(tokens), stopping_criteria=[clock])

    yield generate


@contextmanager
def _nnsight(wrapped: Any) -> Iterator[Generate]:
    import nnsight

    def generate(inputs: dict[str, Any], tokens: int, clock: StepClock) -> object:
        with wrapped.generate(inputs, **greedy(tokens), stopping_criteria=[clock]) as tracer:
            kept: Any = nnsight.save([])
            for _ in tracer.iter[0:tokens]:
                for layer in wrapped.model.layers:
                    kept.append(layer.self_attn.o_proj.input[:, -1])
        if len(kept) != tokens * len(wrapped.model.layers):
            raise RuntimeError(f"nnsight kept {len(kept)} tensors of {tokens} tokens")
        return kept

    yield generate


@contextmanager
def _transformer_lens(bridge: Any, layers: int) -> Iterator[Generate]:
    def generate(inputs: dict[str, Any], tokens: int, clock: StepClock) -> object:
        kept: list[Any] = []

        def keep(value: Any, hook: Any) -> None:  # noqa: ARG001 - the library calls it by these names
            kept.append(value[:, -1].clone())

        hooks = [(f"blocks.{layer}.attn.hook_z", keep) for layer in range(layers)]
        with bridge.hooks(fwd_hooks=hooks):
            bridge.generate(
                inputs["input_ids"],
                max_new_tokens=tokens,
                stop_at_eos=False,
                do_sample=False,
                verbose=False,
                return_type="tokens",
                prepend_bos=False,
                stopping_criteria=_criteria(clock),
            )
        if len(kept) != tokens * layers:
            raise RuntimeError(f"TransformerLens kept {len(kept)} tensors of {tokens} tokens")
        return kept

    yield generate


def _criteria(clock: StepClock) -> Any:
    from transformers import StoppingCriteriaList

    return StoppingCriteriaList([clock])


def _with_nnsight(folder: Path, dtype: str) -> Variant:
    import transformers
    from nnsight import TransformersModel

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    wrapped = TransformersModel(load(folder, dtype), tokenizer=tokenizer, task="text-generation")
    return partial(_nnsight, wrapped)


def _with_transformer_lens(folder: Path, dtype: str) -> Variant:
    import torch
    import transformers
    from transformer_lens import TransformerBridge

    model = load(folder, dtype)
    bridge = TransformerBridge.boot_transformers(
        str(folder),
        hf_model=model,
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        dtype=getattr(torch, dtype),
        device="cpu",
    )
    return partial(_transformer_lens, bridge, model.config.num_hidden_layers)


def variants(folder: Path, dtype: str, peer: str) -> dict[str, Variant]:
    """`peer` (a name in `PACKAGES`), and the same model without it, twice."""
    warnings.filterwarnings("ignore")  # the peers' notices; what fails, fails
    make = {"nnsight": _with_nnsight, "TransformerLens": _with_transformer_lens}[peer]
    plain = load(folder, dtype)
    return {"off": partial(_off, plain), "off again": partial(_off, plain), peer: make(folder, dtype)}
