"""One timed generation: how long it took, step by step, and what CPU it used."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Sample:
    """What one generation cost.

    Attributes ---------- seconds : wall time. thread_cpu_s : CPU time of the thread that generates: the
        model (with one torch thread) and what the host waits for.
    process_cpu_s : CPU time of all threads of the process, senders and exporters among them.
    step_ns : wall time between one token and the next.
    decode_s, decode_thread_cpu_s, decode_process_cpu_s : the same from the first token to the last, without
        the prompt; the thread is the one that generates.
    """

    seconds: float
    thread_cpu_s: float
    process_cpu_s: float
    step_ns: list[int] = field(default_factory=list)
    decode_s: float = 0.0
    decode_thread_cpu_s: float = 0.0
    decode_process_cpu_s: float = 0.0


class StepClock:
    """A stopping criterion of transformers that stops nothing and notes when each token was there."""

    def __init__(self) -> None:
        self._at_ns: list[int] = []
        self._cpu_ns: list[tuple[int, int]] = []

    def __call__(self, input_ids: Any, _scores: Any, **_: Any) -> Any:
        """No row ends here: shape (rows,), all False."""
        import torch

        self._at_ns.append(time.perf_counter_ns())
        self._cpu_ns.append((time.thread_time_ns(), time.process_time_ns()))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    @property
    def step_ns(self) -> list[int]:
        """Differences of consecutive tokens; the first, which the prompt's pass gave, has none."""
        return [after - before for before, after in zip(self._at_ns, self._at_ns[1:], strict=False)]

    def decode_s(self) -> dict[str, float]:
        """From the first token to the last, by the names of `Sample`."""
        (thread, process), (last_thread, last_process) = self._cpu_ns[0], self._cpu_ns[-1]
        return {
            "decode_s": (self._at_ns[-1] - self._at_ns[0]) / 1e9,
            "decode_thread_cpu_s": (last_thread - thread) / 1e9,
            "decode_process_cpu_s": (last_process - process) / 1e9,
        }


def timed(generate: Callable[[StepClock], object]) -> Sample:
    """Run `generate`, which is to call the clock after every token."""
    clock = StepClock()
    wall, thread, process = time.perf_counter(), time.thread_time(), time.process_time()
    generate(clock)
    return Sample(
        seconds=time.perf_counter() - wall,
        thread_cpu_s=time.thread_time() - thread,
        process_cpu_s=time.process_time() - process,
        step_ns=clock.step_ns,
        **clock.decode_s(),
    )
