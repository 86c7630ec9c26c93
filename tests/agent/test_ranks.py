"""Two processes that share a model by tensor parallelism see together what one process sees alone."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.reference import gate  # noqa: E402
from tests.reference.families import build  # noqa: E402

from fulgurite.agent import InMemoryExporter, instrument  # noqa: E402
from fulgurite.agent.contribution import CHANNELS as CONTRIBUTIONS  # noqa: E402
from fulgurite.agent.ranks import merge, merge_topologies  # noqa: E402
from fulgurite.wire.frame import Frame  # noqa: E402

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)
ROOT = Path(__file__).resolve().parents[2]
RANKS = 2
Ranks = dict[tuple[str, str, str], list[dict[str, Any]]]
CLOSE = 1e-4
EXACT = (
    "position",
    "token_id",
    "sequence",
    "step",
    "rank",
    "top_ids",
    "kv_tokens",
    "neuron_ids",
    "expert_ids",
)
OF_THE_UNEMBEDDING = {
    "head_contribution", "ffn_contribution", "embedding_contribution", "other_contribution", "residue",
    "logit_centered", "lens_rank", "lens_prob",
}  # fmt: skip
TIMES = {"started_ns", "ended_ns", "attended_positions"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What each rank left, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, family in (("model", "llama"), ("routed", "mixtral")):
        model: Any = build(family, dtype=torch.float32, attn_implementation="eager", seed=0)
        model.save_pretrained(folder / name)
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(RANKS),
        "OMP_NUM_THREADS": "1",
        "FULGURITE_STRICT": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.agent.split_model", str(folder)]
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        said = [rank.communicate(timeout=250)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [0] * RANKS, "\n".join(said)
    left = [pickle.loads((folder / f"rank{rank}.pickle").read_bytes()) for rank in range(RANKS)]
    return {case: [one[case] for one in left] for case in left[0]}


def in_one_process(level: str, family: str = "llama") -> tuple[list[Frame], Any]:
    model: Any = build(family, dtype=torch.float32, attn_implementation="eager", seed=0)
    ids, mask = gate.prompts()
    exporter: Any = InMemoryExporter()
    settings = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": gate.NEW_TOKENS}
    with instrument(model, level=level, exporter=exporter):
        out = model.generate(ids, attention_mask=mask, **settings)
    return list(exporter.frames), out.tolist()


def merged(ranks: list[dict[str, Any]]) -> list[Frame]:
    blocks = zip(*(rank["blocks"] for rank in ranks), strict=True)
    return [frame for together in blocks for frame in merge(together).frames()]


def assert_same(found: list[Frame], wanted: list[Frame], channels: set[str]) -> None:
    assert len(found) == len(wanted) == 8
    for channel in channels:
        for one, other in zip(found, wanted, strict=True):
            got, ought = getattr(one, channel), getattr(other, channel)
            assert (got is None) == (ought is None), channel
            if got is None or channel in TIMES:
                continue
            if channel in EXACT:
                np.testing.assert_array_equal(got, ought, err_msg=channel)
                continue
            size = {"residue": 1.0, "other_contribution": 1.0}.get(
                channel, float(np.nanmax(np.abs(np.asarray(ought, np.float64)), initial=0.0))
            )
            np.testing.assert_allclose(got, ought, rtol=0, atol=CLOSE * max(size, 1e-12), err_msg=channel)


def channels_of(frames: list[Frame]) -> set[str]:
    names = {name for name in type(frames[0]).__slots__ if isinstance(getattr(frames[0], name), (int, float))}
    names |= {n for n in type(frames[0]).__slots__ if isinstance(getattr(frames[0], n), np.ndarray)}
    return names - TIMES


@pytest.mark.parametrize(("way", "level"), [("auto", "heads"), ("auto", "deep"), ("whole ends", "deep")])
def test_two_ranks_together_give_the_frames_of_one_process(ranks: Ranks, way: str, level: str) -> None:
    both = ranks[way, level, "all"]
    wanted, out = in_one_process(level)
    for rank in both:
        assert rank["alone"] == rank["observed"] == out
        assert rank["errors"] == {}
    found = merged(both)
    topology = merge_topologies([rank["topology"] for rank in both])
    refused = OF_THE_UNEMBEDDING if way == "auto" and level == "deep" else set()
    assert set(dict(topology.unavailable)) == refused
    assert all("split over several processes" in why for _, why in topology.unavailable)
    names = channels_of(wanted)
    assert {"head_write", "ffn_write", "residual_norm", "kv_bytes"} <= names
    assert level == "heads" or {"head_contribution", "residue", "kv_heat", "neuron_values"} <= names
    assert_same(found, wanted, names - refused)
    for name in refused:
        assert all(getattr(frame, name) is None for frame in found)


def test_a_rank_tells_its_own_heads_and_that_the_others_are_elsewhere(ranks: Ranks) -> None:
    both = ranks["auto", "heads", "all"]
    for rank, (own, other) in zip(
        both, ((slice(0, 2), slice(2, 4)), (slice(2, 4), slice(0, 2))), strict=True
    ):
        heads = np.concatenate([block.columns["head_write"] for block in rank["blocks"]])
        assert np.isfinite(heads[:, :, own]).all()
        assert np.isnan(heads[:, :, other]).all()
        assert f"heads {own.start} to {own.stop - 1} of 4" in dict(rank["topology"].unavailable)["head_write"]


def test_an_agent_on_one_rank_alone_stops_nobody(ranks: Ranks) -> None:
    first, second = ranks["auto", "deep", "first"]
    assert first["alone"] == first["observed"] == second["alone"] == second["observed"]
    assert sum(len(block) for block in first["blocks"]) == 8
    assert "blocks" not in second


def test_a_projection_that_is_split_in_another_way_has_no_heads_and_says_so(ranks: Ranks) -> None:
    for rank in ranks["sharded", "deep", "all"]:
        assert rank["alone"] == rank["observed"]
        assert (
            "split over several processes, and not by heads"
            in dict(rank["topology"].unavailable)["head_write"]
        )
        for block in rank["blocks"]:
            assert "head_write" not in block.columns
            assert "head_contribution" not in block.columns
            assert np.isfinite(block.columns["ffn_write"]).all()


@pytest.mark.parametrize(("way", "level"), [("auto", "heads"), ("whole ends", "deep"), ("auto", "deep")])
def test_ranks_join_through_the_first_one_by_themselves(ranks: Ranks, way: str, level: str) -> None:
    first, second = ranks[way, level, "joined"]
    wanted, out = in_one_process(level)
    assert first["observed"] == second["observed"] == [out, out]
    assert second["blocks"] == []
    assert first["settled"]
    assert second["settled"]
    frames = [frame for block in first["blocks"] for frame in block.frames()]
    assert_same(frames[:8], wanted, channels_of(wanted) - {"step"})
    assert_same(frames[8:], wanted, channels_of(wanted) - {"step"})
    assert dict(first["topology"].unavailable) == {}
    assert first["stats"].errors == second["stats"].errors == {}
    assert [event.kind for event in first["events"]] == ["started", "finished"] * 2
    for stats in (first["stats"], second["stats"]):
        assert (stats.captured, stats.acknowledged, stats.pending) == (16, 16, 0)


def test_experts_of_a_split_model_are_those_of_one_process(ranks: Ranks) -> None:
    first, second = ranks["routed", "deep", "joined"]
    wanted, out = in_one_process("deep", "mixtral")
    assert first["observed"] == second["observed"] == [out, out]
    frames = [frame for block in first["blocks"] for frame in block.frames()]
    names = channels_of(wanted) - {"step"}
    assert {"expert_ids", "expert_weights", "head_contribution", "lens_prob"} <= names
    assert_same(frames[:8], wanted, names)
    assert_same(frames[8:], wanted, names)
    assert set(dict(first["topology"].unavailable)) == {"neuron_ids", "neuron_values"}
    assert first["stats"].errors == second["stats"].errors == {}


def test_contributions_that_a_projection_forbids_are_told_to_be_missing_and_the_lens_is_there(
    ranks: Ranks,
) -> None:
    first, second = ranks["hooked", "deep", "joined"]
    wanted, out = in_one_process("deep")
    assert first["observed"] == second["observed"] == [out, out]
    frames = [frame for block in first["blocks"] for frame in block.frames()]
    assert_same(frames[:8], wanted, channels_of(wanted) - {"step", *CONTRIBUTIONS})
    assert all(getattr(frame, name) is None for frame in frames for name in CONTRIBUTIONS)
    reasons = dict(first["topology"].unavailable)
    assert set(reasons) == set(CONTRIBUTIONS)
    assert all("the output projection in layer 1 are offloaded" in why for why in reasons.values())


def assert_left(first: dict[str, Any]) -> None:
    """That the other rank left was noted; on a machine that is slow to tell of it, that it is late before."""
    errors = dict(first["stats"].errors)
    assert errors.pop("ranks:late", 1) == 1
    assert errors == {"ranks:lost": 1}


def test_heads_of_a_rank_that_left_are_missing_and_that_is_said(ranks: Ranks) -> None:
    first, second = ranks["auto", "heads", "leaving"]
    assert first["observed"] == second["observed"] == [first["alone"]] * 2
    frames = [frame for block in first["blocks"] for frame in block.frames()]
    assert len(frames) == 16
    for number, frame in enumerate(frames):
        assert np.isfinite(frame.head_write[:, :2]).all()
        assert np.isfinite(frame.head_write[:, 2:]).all() == (number < 8)
        assert (frame.kv_bytes is None) == (number >= 8)
        assert np.isfinite(frame.ffn_write).all()
    assert_left(first)


def test_contributions_end_with_the_rows_of_a_rank_that_left(ranks: Ranks) -> None:
    first, second = ranks["auto", "deep", "leaving"]
    assert first["observed"] == second["observed"] == [first["alone"]] * 2
    frames = [frame for block in first["blocks"] for frame in block.frames()]
    wanted, _ = in_one_process("deep")
    assert_same(frames[:8], wanted, OF_THE_UNEMBEDDING)
    for frame in frames[8:]:
        assert all(getattr(frame, name) is None for name in OF_THE_UNEMBEDDING)
        assert np.isfinite(frame.head_write[:, :2]).all()
    assert_left(first)


def test_a_rank_without_an_agent_holds_the_first_one_up_once_and_the_host_never(ranks: Ranks) -> None:
    first, second = ranks["auto", "heads", "alone"]
    assert first["observed"] == second["observed"] == [first["alone"]] * 2
    frames = [frame for block in first["blocks"] for frame in block.frames()]
    assert len(frames) == 16
    assert all(np.isnan(frame.head_write[:, 2:]).all() for frame in frames)
    assert first["stats"].errors == {"ranks:late": 1}


def test_blocks_of_other_tokens_are_not_merged() -> None:
    model: Any = build("llama", dtype=torch.float32, attn_implementation="eager", seed=0)
    exporter: Any = InMemoryExporter()
    with instrument(model, level="heads", exporter=exporter):
        model.generate(torch.arange(2, 9)[None], do_sample=False, pad_token_id=0, max_new_tokens=2)
    first, second = exporter.blocks
    with pytest.raises(ValueError, match="not of the same tokens: their position differ"):
        merge([first, second])
    with pytest.raises(ValueError, match="at least one rank"):
        merge([])
