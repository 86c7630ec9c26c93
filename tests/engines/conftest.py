"""One server for as many tests as it will do for: each takes most of a minute to start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    import tiny_model

    return tiny_model.make(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For what the processes of a module write."""
    return tmp_path_factory.mktemp("stage")


@pytest.fixture(scope="module")
def eager(model: Path, folder: Path) -> Iterator[object]:
    """A server in bfloat16, eager, with a small key-value cache, observed at ``heads``.

    It sends spans of its own to the collector.
    """
    import serving

    small = ("--num-gpu-blocks-override", "24", "--block-size", "32", "--max-num-batched-tokens", "64",
             "--enable-prefix-caching", "--trust-request-chat-template",
             "--otlp-traces-endpoint", "http://{collector}")  # fmt: skip
    with serving.stage(folder, model, "--enforce-eager", "--dtype", "bfloat16", *small, by_run=True) as found:
        yield found
