"""What `deep` costs as it comes by default: within its budget of 2 % of step time.

A Llama of 125 M parameters (random weights, one torch thread) generates, observed at `deep` with nothing else
chosen: 1 step in 16 is asked for, and comes less often where the budget does not bear it. `own_share` is the
CPU time of the generating thread in the agent's own code, as a share of a step without us, over all steps of
`seconds` that follow on a while in which the rate settles; a step without us is measured before and after.
`deep_share` is the share of those steps that were at `deep`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.collector_process import collector_process
from benchmarks.overhead.sections import sections
from benchmarks.overhead.subject import Shape, build, greedy, load, prompt
from fulgurite.agent import instrument
from fulgurite.agent.capture import Capture
from fulgurite.agent.probes import Pass

DTYPES, BATCHES = ("float32", "bfloat16"), (1, 32)
PROMPT, TOKENS = 16, 33
SETTLES = 0.5  # of the time that is measured


def run(*, seconds: float, model: str | None) -> list[dict[str, Any]]:
    """A row for each type and batch; `model` would be another one, and there is none."""
    if model is not None:
        raise ValueError("budget: measured on its own model of 125 M parameters: leave --model out")
    torch.set_num_threads(1)
    rows = []
    with TemporaryDirectory() as folder, collector_process("--history", "all") as endpoint:
        build(Shape(), Path(folder))
        for dtype in DTYPES:
            subject = load(Path(folder), dtype)
            for batch in BATCHES:
                rows.append(_row(subject, endpoint, dtype, batch, seconds))
                print(rows[-1], flush=True)
    return rows


def _row(model: Any, endpoint: str, dtype: str, batch: int, seconds: float) -> dict[str, Any]:
    inputs = prompt(batch, PROMPT)

    def generate() -> None:
        with torch.inference_mode():
            model.generate(**inputs, **greedy(TOKENS))

    def step_us() -> float:
        generate()
        since = time.thread_time_ns()
        generate()
        return (time.thread_time_ns() - since) / TOKENS / 1e3

    before_us = step_us()
    with sections() as spent, instrument(model, level="deep", endpoint=endpoint) as agent:
        _for(SETTLES * seconds, generate)

        def read() -> None:
            generate()
            spent.read()

        with _levels() as levels:
            before, since = spent.read(), agent.stats().steps
            _for(seconds, read)
            own_ns = spent.between(before, spent.read())
        told = agent.stats()
    steps = told.steps - since
    own_us, off_us = own_ns / steps / 1e3, fmean((before_us, step_us()))
    return {
        "dtype": dtype,
        "batch": batch,
        "seconds": seconds,
        "steps": steps,
        "level": told.level,
        "deep_share": f"{levels['deep'] / steps:.2%}",
        "own_us": round(own_us, 1),
        "own_share": f"{own_us / off_us:.2%}",
    }


def _for(seconds: float, act: Any) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        act()


@contextmanager
def _levels() -> Iterator[Counter[str]]:
    """How many steps are accounted for at each level, while it is entered."""
    found: Counter[str] = Counter()
    plain = Capture._account

    def account(capture: Capture, passing: Pass) -> None:
        found[passing.level] += 1
        plain(capture, passing)

    with patch.object(Capture, "_account", account):
        yield found
