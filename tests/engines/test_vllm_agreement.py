"""The same weights and prompts: what vLLM's frames say is what those of plain `generate` say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving
from checks import error, look_error, neurons_error, plain

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines has it")

TOKENS = 24
PROMPTS = (
    "Once upon a time",
    "The cat sat on the",
    "def add(a, b):",
    "A",
    "One two three four five six seven",
)
BOUNDS = {"bfloat16": 2e-2, "float32": 1e-3}
# One activation each, and no norm over many: vLLM rounds it once, transformers after each of two factors.
NEURON_BOUNDS = {"bfloat16": 5e-2, "float32": 1e-3}
LOOK_BOUNDS = {"bfloat16": 5e-2, "float32": 2e-3}  # frames hold entropies in two bytes
SETTINGS = {
    "eager-bfloat16": ("bfloat16", ("--enforce-eager",)),
    "compiled-bfloat16": ("bfloat16", ()),
    "eager-float32": ("float32", ("--enforce-eager",)),
}


@pytest.fixture(scope="module", params=SETTINGS)
def served(request: pytest.FixtureRequest, model: Path, tmp_path_factory: Any) -> Iterator[tuple[str, Any]]:
    dtype, arguments = SETTINGS[request.param]
    folder = tmp_path_factory.mktemp("agreement")
    with serving.stage(folder, model, "--dtype", dtype, *arguments, FULGURITE_LEVEL="deep",
                       FULGURITE_DEEP_RATIO="1") as found:  # fmt: skip
        yield dtype, found


def test_frames_agree_with_plain_generate(served: tuple[str, Any], model: Path) -> None:
    dtype, stage = served
    compared = 0
    errors: dict[str, float] = {}
    for prompt in PROMPTS:
        answer = stage.server.complete(prompt, max_tokens=TOKENS, ignore_eos=True)
        choice = answer["choices"][0]
        frames = stage.watcher.of(answer["id"], TOKENS)
        assert [f.token_id for f in frames] == choice["token_ids"]
        wanted = plain(model, dtype, choice["prompt_token_ids"], TOKENS)
        for frame, other in zip(frames, wanted, strict=False):
            assert frame.position == other.position
            assert frame.phase == other.phase
            assert list(frame.kv_tokens) == list(other.kv_tokens)
            for name in ("head_write", "ffn_write", "residual_norm", "head_contribution", "ffn_contribution"):
                if "contribution" in name and frame.token_id != other.token_id:
                    continue
                if name == "residual_norm":
                    off = error(getattr(frame, name).reshape(1, -1), getattr(other, name).reshape(1, -1))
                elif getattr(frame, name).ndim == 1:
                    off = float(np.max(np.abs(getattr(frame, name) - getattr(other, name))
                                       / np.max(np.abs(getattr(other, name)))))  # fmt: skip
                else:
                    off = error(getattr(frame, name), getattr(other, name))
                errors[name] = max(errors.get(name, 0.0), off)
            errors["neurons"] = max(errors.get("neurons", 0.0), neurons_error(frame, other))
            errors["looks"] = max(errors.get("looks", 0.0), look_error(frame, other))
            errors["residue"] = max(errors.get("residue", 0.0), abs(frame.residue))
            errors["logprob"] = max(errors.get("logprob", 0.0), abs(frame.logprob - other.logprob))
            errors["entropy"] = max(errors.get("entropy", 0.0), abs(frame.entropy - other.entropy))
            compared += 1
            if frame.token_id != other.token_id:  # from here on the engines' own outputs differ
                break
    assert compared >= 2 * TOKENS
    for name in ("head_write", "ffn_write", "residual_norm"):
        assert errors[name] <= BOUNDS[dtype], (name, errors)
    assert errors["looks"] <= LOOK_BOUNDS[dtype], errors
    assert errors["neurons"] <= NEURON_BOUNDS[dtype], errors
