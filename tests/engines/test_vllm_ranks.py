"""A model that vLLM splits over two processes: one replica, whose frames tell of the heads of both."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving
from checks import check, error, look_error, neurons_error, plain

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines has it")

TOKENS = 16
PROMPTS = ("Once upon a time", "def add(a, b):", "One two three four five six seven")
LAYERS, HEADS, KV_HEADS, HEAD_DIM, BLOCK = 6, 6, 2, 32, 32
ARGUMENTS = ("--tensor-parallel-size", "2", "--dtype", "float32", "--enforce-eager", "--block-size",
             str(BLOCK))  # fmt: skip
BLOCK_BYTES = BLOCK * LAYERS * 2 * KV_HEADS * HEAD_DIM * 4  # keys and values of all heads, float32


@pytest.fixture(scope="module")
def split(model: Path, folder: Path) -> Iterator[Any]:
    """A server of two ranks, observed; skipped where vLLM has none even without us."""
    deep = {"FULGURITE_LEVEL": "deep", "FULGURITE_DEEP_RATIO": "0.5"}  # so both are told in turn
    with serving.stage_or_skip(folder, model, *ARGUMENTS, **deep) as found:
        yield found


@pytest.fixture(scope="module")
def answers(split: Any) -> list[dict[str, Any]]:
    """The prompts in turn, then all at once and several times."""

    def ask(prompt: str) -> dict[str, Any]:
        found: dict[str, Any] = split.server.complete(prompt, max_tokens=TOKENS, ignore_eos=True)
        return found

    with ThreadPoolExecutor(12) as pool:
        return [*map(ask, PROMPTS), *pool.map(ask, PROMPTS * 4)]


def test_every_token_is_told_once(split: Any, answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        check(split, answer)
        assert [e.kind for e in split.watcher.ends(answer["id"])] == ["started", "finished"]


def test_every_head_of_both_ranks_is_there(split: Any, answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        for frame in split.watcher.of(answer["id"], TOKENS):
            assert frame.level in ("heads", "deep")
            assert frame.head_write.shape == (LAYERS, HEADS)
            assert (frame.head_write > 0).all()
            # the token that follows has no place in the cache yet, but its block may be taken
            blocks = {-(-frame.position // BLOCK), -(-(frame.position + 1) // BLOCK)}
            assert frame.kv_bytes in {count * BLOCK_BYTES for count in blocks}


def test_frames_agree_with_those_of_one_process(
    split: Any, answers: list[dict[str, Any]], model: Path
) -> None:
    for answer in answers[: len(PROMPTS)]:
        choice = answer["choices"][0]
        frames = split.watcher.of(answer["id"], TOKENS)
        wanted = plain(model, "float32", choice["prompt_token_ids"], TOKENS)
        assert [f.token_id for f in frames] == [f.token_id for f in wanted]
        for name in ("head_write", "ffn_write", "residual_norm"):
            ours, theirs = ([np.ravel(getattr(f, name)) for f in side] for side in (frames, wanted))
            assert error(ours, theirs) <= 1e-3, name
        assert np.allclose([f.logprob for f in frames], [f.logprob for f in wanted], atol=1e-3)


def test_what_rests_on_the_unembedding_of_both_is_that_of_one_process(
    split: Any, answers: list[dict[str, Any]], model: Path
) -> None:
    deep, looked = 0, np.zeros(LAYERS, np.int64)
    for answer in answers[: len(PROMPTS)]:
        choice = answer["choices"][0]
        wanted = plain(model, "float32", choice["prompt_token_ids"], TOKENS)
        for frame, other in zip(split.watcher.of(answer["id"], TOKENS), wanted, strict=True):
            if frame.level != "deep":
                assert frame.head_contribution is None
                continue
            deep += 1
            assert frame.head_contribution.shape == (LAYERS, HEADS)
            for name in ("head_contribution", "ffn_contribution"):
                ours, theirs = (np.ravel(getattr(one, name))[None] for one in (frame, other))
                assert error(ours, theirs) <= 1e-3, name
            assert abs(frame.residue) < 1e-3
            assert np.allclose(frame.lens_prob, other.lens_prob, atol=2e-3)
            assert np.array_equal(frame.lens_rank[-1], other.lens_rank[-1])
            assert neurons_error(frame, other) <= 1e-3
            assert look_error(frame, other) <= 2e-3
            looked += np.asarray(frame.measured_layers, np.int64)
    assert deep >= TOKENS
    assert looked.sum() == deep, "one layer a step"
    assert np.count_nonzero(looked) > 2
    (topology,) = split.watcher.topologies.values()
    missing = dict(topology.unavailable)
    assert not {"head_contribution", "lens_prob", "neuron_ids"} & set(missing), missing


def test_both_are_one_replica(split: Any, answers: list[dict[str, Any]]) -> None:
    assert len(answers) == 5 * len(PROMPTS)
    (topology,) = split.watcher.topologies.values()
    assert topology.heads == HEADS
    assert "head_write" not in dict(topology.unavailable)

    def settled() -> Any:
        found = split.account()  # of the one replica there is
        return found if not found.running_requests and not found.pending else None

    account = split.watcher.until(settled)
    assert account.captured == account.acknowledged >= 5 * len(PROMPTS) * TOKENS
    assert not account.dropped
    assert account.kv_capacity_bytes == account.engine.kv_blocks * BLOCK_BYTES
    for line in ("heads are missing", "head_write is not measured"):
        assert line not in split.server.process.said
