"""A process that holds one copy of the model and measures what it is told to, one line of JSON at a time.

`python -m benchmarks.overhead.worker FOLDER DTYPE ENDPOINT|- PEER|-`. It is idle while another one measures,
so that variants of different environments can take turns in one run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, TextIO

from benchmarks.overhead.subject import prompt
from benchmarks.overhead.variant import Variant
from benchmarks.sample import StepClock, timed

WARM_TOKENS = 3
COUNTED_TOKENS = 4


def measure(variant: Variant, *, rows: int, length: int, tokens: int) -> dict[str, Any]:
    """One sample, after a short warm-up: attaching is not what is measured."""
    import torch

    inputs = prompt(rows, length)
    with torch.inference_mode(), variant() as generate:
        timed(lambda clock: generate(inputs, WARM_TOKENS, clock))
        return asdict(timed(lambda clock: generate(inputs, tokens, clock)))


def count(variant: Variant, *, rows: int, length: int, tokens: int = COUNTED_TOKENS) -> dict[str, Any]:
    """Calls of torch operators on the host's thread, per token step."""
    import torch
    from torch.utils import _python_dispatch

    mode: Any = _python_dispatch.TorchDispatchMode

    class Counter(mode):  # type: ignore[misc]
        calls = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += 1
            return func(*args, **(kwargs or {}))

    inputs = prompt(rows, length)
    with torch.no_grad(), variant() as generate:
        generate(inputs, WARM_TOKENS, StepClock())
        with Counter() as counter:
            clock = _Noting(lambda: counter.calls)
            generate(inputs, tokens, clock)
    return {"operator_calls_per_step": round(fmean(after - before for before, after in clock.pairs), 1)}


def own(variant: Variant, *, rows: int, length: int, tokens: int) -> dict[str, Any]:
    """Microseconds per token step in the agent's own sections on the host's thread: the mean, and the median
    step."""
    import torch

    from benchmarks.overhead.sections import sections

    inputs = prompt(rows, length)
    with torch.inference_mode(), sections() as spent, variant() as generate:
        generate(inputs, WARM_TOKENS, StepClock())
        clock = _Noting(spent.read)
        generate(inputs, tokens, clock)
    steps_us = [spent.between(*pair) / 1e3 for pair in clock.pairs]
    return {"own_us": round(fmean(steps_us), 1), "own_us_median": round(median(steps_us), 1)}


def instructions(variant: Variant, *, rows: int, length: int, tokens: int) -> dict[str, Any]:
    """Have valgrind, which runs this process, count from the first token to the last."""
    import torch

    from benchmarks.overhead.instructions import Callgrind

    callgrind, inputs = Callgrind(), prompt(rows, length)
    with torch.inference_mode(), variant() as generate:
        generate(inputs, WARM_TOKENS, StepClock())
        generate(inputs, tokens, _Counted(callgrind, tokens))
    return {}


class _Counted(StepClock):
    """Begins to count at the first token and ends at the last."""

    def __init__(self, callgrind: Any, tokens: int) -> None:
        super().__init__()
        self._callgrind, self._tokens, self._left = callgrind, tokens, tokens

    def __call__(self, input_ids: Any, _scores: Any, **options: Any) -> Any:
        if self._left == 1:
            self._callgrind.end()
        done = super().__call__(input_ids, _scores, **options)
        self._left -= 1
        if self._left == self._tokens - 1:
            self._callgrind.begin()
        return done


class _Noting(StepClock):
    """Also reads something at each token."""

    def __init__(self, read: Callable[[], Any]) -> None:
        super().__init__()
        self._read = read
        self._found: list[Any] = []

    def __call__(self, input_ids: Any, _scores: Any, **options: Any) -> Any:
        self._found.append(self._read())
        return super().__call__(input_ids, _scores, **options)

    @property
    def pairs(self) -> list[tuple[Any, Any]]:
        """What was read at one token and at the next: what the prompt took is not among them."""
        return list(pairwise(self._found))


ACTS: dict[str, Callable[..., dict[str, Any]]] = {
    "measure": measure, "count": count, "own": own, "instructions": instructions,
}  # fmt: skip


def _variants(folder: Path, dtype: str, endpoint: str, peer: str) -> dict[str, Variant]:
    if peer == "-":
        from benchmarks.overhead import ours

        return ours.variants(folder, dtype, endpoint)
    from benchmarks.overhead import peers

    return peers.variants(folder, dtype, peer)


def main(arguments: list[str], answers: TextIO) -> None:
    """Load, say which variants there are, then answer until stdin ends."""
    import torch

    torch.set_num_threads(1)
    folder, dtype, endpoint, peer = arguments
    variants = _variants(Path(folder), dtype, endpoint, peer)
    print(json.dumps(list(variants)), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        act = ACTS[asked.pop("act")]
        answer = act(variants[asked.pop("variant")], **asked)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    # Answers have a stream to themselves: libraries print what they like on stdout.
    kept, sys.stdout = sys.stdout, sys.stderr
    main(sys.argv[1:], kept)
