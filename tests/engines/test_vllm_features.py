"""Adapters, experts, and the level `pulse`: each in a server of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import serving
import tiny_model
from checks import check

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines has it")

COMMON = ("--enforce-eager", "--dtype", "float32")


def test_requests_with_an_adapter_are_told(model: Path, tmp_path: Path) -> None:
    adapter = tiny_model.adapter(tmp_path / "adapter", model)
    lora = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"tuned={adapter}")
    with serving.stage(tmp_path, model, *COMMON, *lora) as stage:
        base = stage.server.complete("Once upon a time", max_tokens=12, ignore_eos=True)
        tuned = stage.server.complete("Once upon a time", max_tokens=12, ignore_eos=True, model="tuned")
        assert base["choices"][0]["token_ids"] != tuned["choices"][0]["token_ids"]
        check(stage, base)
        check(stage, tuned)
        frames = stage.watcher.by_request()
        assert all(np.isfinite(f.head_write).all() for f in frames[base["id"]])
        # the adapter changes the output projection, so that the base's Gram matrices do not hold for it
        assert all(f.head_write is None or np.isnan(f.head_write).all() for f in frames[tuned["id"]])
        assert all(np.isfinite(f.ffn_write).all() for f in frames[tuned["id"]])


def test_experts_of_a_mixture_are_told(tmp_path: Path) -> None:
    mixture = tiny_model.make(tmp_path / "mixture", "mixtral", num_local_experts=4, num_experts_per_tok=2,
                              intermediate_size=256, num_hidden_layers=3)  # fmt: skip
    with serving.stage(tmp_path, mixture, *COMMON) as stage:
        answer = stage.server.complete("Once upon a time", max_tokens=8, ignore_eos=True)
        check(stage, answer)
        for frame in stage.watcher.by_request()[answer["id"]]:
            assert frame.expert_ids.shape == (3, 2)
            assert ((frame.expert_ids >= 0) & (frame.expert_ids < 4)).all()
            assert (frame.expert_ids[:, 0] != frame.expert_ids[:, 1]).all()
            assert np.allclose(frame.expert_weights.sum(-1), 1, atol=2e-3)
            assert (frame.ffn_write > 0).all()


def test_pulses_alone(model: Path, tmp_path: Path) -> None:
    with serving.stage(tmp_path, model, *COMMON, FULGURITE_LEVEL="pulse", FULGURITE_TOKENS="off") as stage:
        answer = stage.server.complete("Once upon a time", max_tokens=8, ignore_eos=True)
        frames = stage.watcher.of(answer["id"], 8)
        assert len(frames) == 8
        assert {f.level for f in frames} == {"pulse"}
        assert {f.head_write is None for f in frames} == {True}
        assert {f.token_id for f in frames} == {-1}
        assert all(f.logprob < 0 for f in frames)
