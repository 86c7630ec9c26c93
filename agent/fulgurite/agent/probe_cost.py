"""What one of our hooks costs on this machine: measured before the first pass, on a module that does
nothing."""

from __future__ import annotations

import time

import torch
from torch import nn

from fulgurite.agent.probes import Current, Pass, Probes
from fulgurite.agent.shield import Shield


def probe_cost_ns() -> int:
    """Nanoseconds that a hook adds to the call of a module."""
    module, current = nn.Identity(), Current()
    tensor = torch.zeros(1, 1, 1)
    bare = _time_calls(module, tensor)
    probes = Probes(current, Shield(strict=False))
    probes.watch_input(module, 0)
    probes.trust()
    current.passing = Pass(1, 1, 1)
    with_probe = _time_calls(module, tensor)
    probes.remove()
    return max(0, with_probe - bare)


def _time_calls(module: nn.Module, tensor: torch.Tensor, calls: int = 50, rounds: int = 3) -> int:
    best = 1 << 60
    for _ in range(rounds):
        started = time.perf_counter_ns()
        for _ in range(calls):
            module(tensor)
        best = min(best, time.perf_counter_ns() - started)
    return best // calls
