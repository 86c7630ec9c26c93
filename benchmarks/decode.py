"""What the agent costs a decode: tokens/s of the bundled model, off, `pulse` and `heads`, beside what transformers offers.

The peer is `output_attentions=True, output_hidden_states=True` on eager attention: the way to see heads without us. Every
variant generates the same tokens in every round; frames go to a real collector process with its embedded server. `off again` is
the A/A control. The model is small (about 3 M parameters), which is the hardest case: fixed costs weigh most there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.collector_process import collector_process
from benchmarks.interleave import Ratio, interleave, ratios
from fulgurite.agent import instrument
from fulgurite.cli.demo.model import bundled_path, load

TOKENS = 96
PROMPT = "Once upon a time a storm came over the tower."


def _generate(model: Any, tokenizer: Any, batch: int, **options: Any) -> float:
    """Seconds of one greedy generation of `TOKENS` tokens for each of `batch` rows."""
    inputs = tokenizer([PROMPT] * batch, return_tensors="pt", padding=True)
    started = time.perf_counter()
    with torch.inference_mode():
        model.generate(**inputs, do_sample=False, min_new_tokens=TOKENS, max_new_tokens=TOKENS, **options)
    return time.perf_counter() - started


def _variants(endpoint: str, batch: int) -> dict[str, Callable[[], float]]:
    from transformers import AutoModelForCausalLM

    model, tokenizer = load()
    eager = AutoModelForCausalLM.from_pretrained(
        bundled_path(), attn_implementation="eager", dtype=torch.float32
    ).eval()

    def off() -> float:
        return _generate(model, tokenizer, batch)

    def at(level: str) -> Callable[[], float]:
        def measured() -> float:
            # A warm-up inside, since attaching is not what is measured.
            with instrument(model, level=level, endpoint=endpoint, budget=0):
                _generate(model, tokenizer, batch)
                return _generate(model, tokenizer, batch)

        return measured

    def peer() -> float:
        options = {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True}
        return _generate(eager, tokenizer, batch, **options)

    return {
        "off": off,
        "off again": off,
        "pulse": at("pulse"),
        "heads": at("heads"),
        "transformers outputs (eager)": peer,
    }


def _table(values: dict[str, list[float]], paired: dict[str, Ratio], batch: int) -> list[dict[str, Any]]:
    rate = {name: batch * TOKENS / sorted(times)[len(times) // 2] for name, times in values.items()}
    return [
        {
            "variant": name,
            "batch": batch,
            "tokens_per_s": round(rate[name], 1),
            "time_ratio": round(ratio.median, 4),
            "low": round(ratio.low, 4),
            "high": round(ratio.high, 4),
        }
        for name, ratio in paired.items()
    ]


def run(*, rounds: int, batches: tuple[int, ...] = (1, 8)) -> list[dict[str, Any]]:
    """One table row per variant and batch size: tokens/s, and time as a ratio to off with its 95 % interval."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with collector_process() as endpoint:
        for batch in batches:
            variants = _variants(endpoint, batch)
            for measure in variants.values():
                measure()
            values = interleave(variants, rounds=rounds)
            rows += _table(values, ratios(values, base="off"), batch)
    return rows
