"""What the benchmarks of serving engines have in common: the model, the servers of the tests, a viewer."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TOKENS = 48
AS_PEOPLE_RUN_IT = {"VLLM_CPU_OMP_THREADS_BIND": "auto"}  # vLLM's own choice; the tests choose another
SHAPES: dict[str, dict[str, Any]] = {
    "443 M": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 32_000, "initializer_range": 0.05,
    },
}  # fmt: skip
"""By parameters. A vocabulary as models of that size have it: the unembedding is a tenth of a step."""


def of_the_tests(name: str) -> Any:
    """A module of those that test serving engines."""
    folder = str(ROOT / "tests" / "engines")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def quantile(values: list[float], share: float) -> float:
    """In milliseconds."""
    ordered = sorted(values)
    return round(1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)


def observing(port: int) -> dict[str, str]:
    """What observes a server at `heads`."""
    return {
        "FULGURITE_LEVEL": "heads", "FULGURITE_TOKENS": "off", "FULGURITE_BUDGET": "none",
        "FULGURITE_ENDPOINT": f"127.0.0.1:{port}",
    }  # fmt: skip


@contextmanager
def viewing(folder: Path, port: int) -> Iterator[Any]:
    """A process that watches and decodes: in the one that asks it would slow down what is timed there."""
    serving = of_the_tests("serving")
    command = (sys.executable, "-m", "benchmarks.engines.viewer", str(port))
    process = serving.Process(folder / "viewer.log", *command, env=serving.surroundings(PYTHONPATH=str(ROOT)))
    try:
        yield process
    finally:
        process.stop()


def cpu_s(process: Any) -> float:
    """What it and all that it started have used."""
    return sum(sum(one.cpu_times()[:2]) for one in process.family())
