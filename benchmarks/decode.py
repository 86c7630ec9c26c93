"""What the agent costs a decode of the bundled model, beside what transformers itself offers.

The peer is `output_attentions=True, output_hidden_states=True` on eager attention: the way to see heads
without us. Every variant generates the same tokens in every round; frames go to a real collector process
with its embedded server, on the same machine. `off again` is the A/A control. `thread_cpu` is the CPU time
of the generating thread, which a busy machine disturbs least; `process_cpu` that of all threads, the
sending one among them. The model is small, which is the hardest case: fixed costs weigh most there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.collector_process import collector_process
from benchmarks.interleave import Ratio, interleave, ratio
from benchmarks.sample import Sample, StepClock, timed
from fulgurite.agent import instrument
from fulgurite.cli.demo.model import bundled_path, load

WARM_TOKENS = 8
PROMPT = "Once upon a time a storm came over the tower."

Row = dict[str, Any]


def _generate(model: Any, inputs: Any, tokens: int, **options: Any) -> Sample:
    """One greedy generation of `tokens` tokens for each row."""

    def generate(clock: StepClock) -> object:
        with torch.inference_mode():
            return model.generate(
                **inputs,
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                stopping_criteria=[clock],
                **options,
            )

    return timed(generate)


def _variants(
    model_path: str | None, endpoint: str, batch: int, tokens: int
) -> dict[str, Callable[[], Sample]]:
    from transformers import AutoModelForCausalLM

    model, tokenizer = load(model_path)
    library: Any = AutoModelForCausalLM
    eager = library.from_pretrained(
        model_path or bundled_path(), attn_implementation="eager", dtype=torch.float32
    ).eval()
    encoded = tokenizer([PROMPT] * batch, return_tensors="pt", padding=True)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def measured(model: Any = model, **options: Any) -> Sample:
        # Every variant gets the same warm-up: attaching and connecting are not what is measured.
        _generate(model, inputs, WARM_TOKENS, **options)
        return _generate(model, inputs, tokens, **options)

    def at(level: str) -> Callable[[], Sample]:
        def attached() -> Sample:
            with instrument(model, level=level, endpoint=endpoint, budget="none") as agent:
                sample = measured()
                _check(agent, level, captured=batch * (WARM_TOKENS + tokens))
            return sample

        return attached

    def peer() -> Sample:
        return measured(
            eager, output_attentions=True, output_hidden_states=True, return_dict_in_generate=True
        )

    return {
        "off": measured,
        "off again": measured,
        "pulse": at("pulse"),
        "heads": at("heads"),
        "transformers outputs (eager)": peer,
    }


def _check(agent: Any, level: str, *, captured: int) -> None:
    """A figure of an agent that did less than it was asked for would be a lie."""
    stats = agent.stats()
    if stats.level != level or stats.captured != captured or stats.errors:
        raise RuntimeError(f"the agent did not capture everything at {level}: {stats}")


def run(
    *, rounds: int, model: str | None = None, batches: tuple[int, ...] = (1, 8), tokens: int = 96
) -> list[Row]:
    """One row per variant and batch size: tokens/s, and time as a ratio to off with its 95 % interval."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    with collector_process("--history", "all") as endpoint:
        for batch in batches:
            variants = _variants(model, endpoint, batch, tokens)
            for measure in variants.values():
                measure()
            rows += _rows(interleave(variants, rounds=rounds), batch, tokens)
    return rows


def _rows(taken: dict[str, list[Sample]], batch: int, tokens: int) -> list[Row]:
    return [{"batch": batch, "variant": name, **_row(name, taken, batch * tokens)} for name in taken]


def _row(name: str, taken: dict[str, list[Sample]], tokens: int) -> Row:
    def compared(field: str, other: str = name) -> Ratio:
        return ratio(*([getattr(one, field) for one in taken[which]] for which in (other, "off")))

    wall, thread, process = (compared(field) for field in ("seconds", "thread_cpu_s", "process_cpu_s"))
    own, is_base = taken[name], name == "off"
    return {
        "tokens_per_s": round(tokens / float(np.median([one.seconds for one in own])), 1),
        "time": str(wall),
        "verdict": "base" if is_base else wall.verdict(compared("seconds", "off again")),
        "p99_ms": round(float(np.percentile([ns for one in own for ns in one.step_ns], 99)) / 1e6, 2),
        "thread_cpu": str(thread),
        "thread_cpu_verdict": "base"
        if name == "off"
        else thread.verdict(compared("thread_cpu_s", "off again")),
        "process_cpu": str(process),
        "rounds": len(own),
    }
