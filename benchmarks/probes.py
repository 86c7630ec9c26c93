"""What 48 probes cost a step that keep what they see and do nothing else: as hooks of torch, and standing in
the place of `forward`.

A Llama of random weights, 12 layers of width 256, float32, one row, one torch thread: small, so that a step
is short and the difference is seen, and large enough that no cache holds a layer's code when the next one is
over. All of it in one process, a block of 16 steps each in turn (two more before are not counted), in a
random order each round; `none again` is the A/A control. `ms_added` is the median of the paired differences
to `none` of the same round, with its 95 % bootstrap interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.interleave import interleave, ratio
from benchmarks.overhead.subject import Shape, build, load
from fulgurite.agent import forwards
from fulgurite.agent.probes import Current, InputProbe, OutputProbe, Pass
from fulgurite.agent.shield import Shield

SHAPE = Shape(layers=12, width=256, heads=4, kv_heads=2, ffn=704, vocabulary=8000)
MODEL = f"Llama, random weights, {SHAPE}"
BEFORE, COUNTED, PROMPT = 2, 16, 64
ROUNDS_EACH = 4  # of those that other benchmarks take

Row = dict[str, Any]
Put = Callable[[Any, Any, bool], Any]


def _hooked(module: Any, probe: Any, is_input: bool) -> Any:
    return module.register_forward_pre_hook(probe) if is_input else module.register_forward_hook(probe)


def _in_place(module: Any, probe: Any, is_input: bool) -> Any:
    return (partial(forwards.before, with_kwargs=False) if is_input else forwards.after)(module, probe)


@contextmanager
def _probed(model: Any, current: Current, put: Put | None) -> Iterator[None]:
    with ExitStack() as stack:
        shield = Shield(strict=True)
        for index, layer in enumerate(model.model.layers if put is not None else ()):
            parts = (
                (layer.self_attn.o_proj, True),
                (layer.mlp.down_proj, True),
                (layer.self_attn, False),
                (layer, False),
            )
            for place, (module, is_input) in enumerate(parts):
                probe = (InputProbe if is_input else OutputProbe)(current, shield, 4 * index + place, 0)
                probe.copies = False
                stack.callback(put(module, probe, is_input).remove)  # type: ignore[misc]
        yield


def _block(model: Any, cache: Any, current: Current, put: Put | None) -> float:
    """Milliseconds of a step, the mean of a block."""
    length, spent = cache.get_seq_length(), []
    if length > PROMPT:
        cache.crop(PROMPT - length)
    token = torch.zeros(1, 1, dtype=torch.long)
    with _probed(model, current, put):
        for step in range(BEFORE + COUNTED):
            current.passing = Pass(1, 1, 4 * SHAPE.layers)
            started = time.perf_counter_ns()
            logits = model(token, past_key_values=cache).logits
            if step >= BEFORE:
                spent.append((time.perf_counter_ns() - started) / 1e6)
            token = logits[:, -1:].argmax(-1)
    seen = current.passing.kept if current.passing is not None else []
    if (put is None) == all(kept is not None for kept in seen):
        raise RuntimeError("the probes did not keep what was to be measured")
    return fmean(spent)


def run(rounds: int, model: str | None = None) -> list[Row]:
    """A row for each way."""
    from transformers import DynamicCache

    if model is not None:
        raise ValueError("probes: the model is its own: leave --model out")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory() as folder, torch.inference_mode():
            build(SHAPE, Path(folder))
            subject, cache, current = load(Path(folder), "float32"), DynamicCache(), Current()
            subject(torch.arange(PROMPT)[None], past_key_values=cache)
            ways: dict[str, Put | None] = {
                "none": None,
                "none again": None,
                "hooks of torch": _hooked,
                "in the place of forward": _in_place,
            }
            taken = interleave(
                {name: partial(_block, subject, cache, current, put) for name, put in ways.items()},
                rounds=ROUNDS_EACH * rounds,
            )
    finally:
        torch.set_num_threads(threads)
    return [_row(name, taken) for name in taken]


def _row(name: str, taken: dict[str, list[float]]) -> Row:
    base, own = taken["none"], taken[name]
    added = np.array(own) - np.array(base)
    draws = np.median(np.random.default_rng(0).choice(added, size=(2000, len(added))), axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    compared = ratio(own, base)
    return {
        "way": name,
        "step_ms": round(float(np.median(own)), 2),
        "ms_added": f"{np.median(added):.3f} [{low:.3f}, {high:.3f}]",
        "time": str(compared),
        "verdict": "base" if name == "none" else compared.verdict(ratio(taken["none again"], base)),
        "rounds": len(own),
    }
