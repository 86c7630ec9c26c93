"""One server for as many tests as it will do for: each takes most of a minute to start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))
HAS_VLLM = find_spec("vllm") is not None

collect_ignore_glob = [] if HAS_VLLM else ["test_vllm_*.py"]


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
    """A server in bfloat16, eager, with a small key-value cache, observed at ``heads``."""
    import serving

    small = ("--num-gpu-blocks-override", "40", "--block-size", "16")
    with serving.stage(folder, model, "--enforce-eager", "--dtype", "bfloat16", *small) as found:
        yield found
