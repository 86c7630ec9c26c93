"""Speculative decoding with adapters, experts, and the level `pulse`: each in a server of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving
import tiny_model
from checks import check

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines has it")

COMMON = ("--enforce-eager", "--dtype", "float32")


def answers(stage: Any, prompts: list[str], **settings: Any) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda prompt: stage.server.complete(prompt, **settings), prompts))


@pytest.fixture(scope="module")
def drafting(model: Path, tmp_path_factory: Any) -> Iterator[Any]:
    """A server that guesses tokens by n-grams and knows an adapter."""
    folder = tmp_path_factory.mktemp("drafting")
    adapter = tiny_model.adapter(folder / "adapter", model)
    lora = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"tuned={adapter}")
    guess = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
    with serving.stage(folder, model, *COMMON, *lora, "--speculative-config", json.dumps(guess),
                       FULGURITE_LEVEL="deep", FULGURITE_DEEP_RATIO="1") as found:  # fmt: skip
        yield found


def test_drafts_that_are_taken_are_told_and_no_others(drafting: Any) -> None:
    # a regular expression makes it repeat itself, so that drafts come true
    repeating = {"structured_outputs": {"regex": "(ab ){30}"}, "max_tokens": 50}
    prompts = ["Once upon", "ab ab ab ab", "the the the"]
    plain = answers(drafting, prompts, max_tokens=33, ignore_eos=True)
    again = answers(drafting, ["ab ab ab", "say ab"], **repeating)
    for answer in (*plain, *again):
        check(drafting, answer)
        steps = [f.step for f in drafting.watcher.by_request()[answer["id"]]]
        assert steps == sorted(steps)
    metrics = drafting.server.metrics()
    assert metrics["vllm:spec_decode_num_accepted_tokens_total"] > 0, "no draft came true"
    drafted = metrics["vllm:spec_decode_num_draft_tokens_total"]
    assert drafted > metrics["vllm:spec_decode_num_accepted_tokens_total"], "no draft was rejected"
    steps = [f.step for f in drafting.watcher.by_request()[again[0]["id"]]]
    assert len(set(steps)) < len(steps), "several tokens of one step are of that step"


def test_requests_with_an_adapter_are_told(drafting: Any) -> None:
    base = drafting.server.complete("Once upon a time", max_tokens=12, ignore_eos=True)
    tuned = drafting.server.complete("Once upon a time", max_tokens=12, ignore_eos=True, model="tuned")
    assert base["choices"][0]["token_ids"] != tuned["choices"][0]["token_ids"]
    check(drafting, base)
    check(drafting, tuned)
    frames = drafting.watcher.by_request()
    assert all(np.isfinite(f.head_write).all() for f in frames[base["id"]])
    assert all((f.neuron_ids >= 0).all() and np.isfinite(f.neuron_values).all() for f in frames[base["id"]])
    assert all(f.measured_layers.all() and np.isfinite(f.sink_mass).all() for f in frames[tuned["id"]])
    # the adapter changes both projections, so that what is known of the base's weights does not hold for it
    assert all(f.head_write is None or np.isnan(f.head_write).all() for f in frames[tuned["id"]])
    assert all(f.neuron_values is None or np.isnan(f.neuron_values).all() for f in frames[tuned["id"]])
    assert all(f.neuron_ids is None or (f.neuron_ids == -1).all() for f in frames[tuned["id"]])
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
