"""Models that accelerate keeps in host memory or on disk between passes, in whole or layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

from tests.agent.effective import assert_exact, generate, plain, run_of, watched  # noqa: E402
from tests.reference.families import build  # noqa: E402

OF_THE_UNEMBEDDING = frozenset(
    {
        "head_contribution", "ffn_contribution", "embedding_contribution", "other_contribution", "residue",
        "logit_centered", "lens_rank", "lens_prob",
    }
)  # fmt: skip
PARTS = ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.layers.2")


def fresh(name: str = "llama") -> Any:
    return build(name, dtype=torch.float32, attn_implementation="eager", seed=0)


def in_memory(tmp_path: Path, name: str) -> Any:
    return accelerate.cpu_offload(fresh(name), execution_device="cpu")


def on_disk(tmp_path: Path, name: str) -> Any:
    return accelerate.disk_offload(fresh(name), str(tmp_path / "offloaded"), execution_device="cpu")


def some_layers_on_disk(tmp_path: Path, name: str) -> Any:
    fresh(name).save_pretrained(tmp_path / "saved")
    where = dict.fromkeys((*PARTS, "model.norm", "lm_head"), "cpu") | {"model.layers.1": "disk"}
    return transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved",
        device_map=where,
        offload_folder=str(tmp_path / "offloaded"),
        dtype=torch.float32,
        attn_implementation="eager",
    ).eval()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("llama", in_memory), ("gemma3", in_memory), ("gpt2", in_memory), ("llama", on_disk),
        ("gemma3", on_disk), ("llama", some_layers_on_disk),
    ],
)  # fmt: skip
def test_weights_that_are_elsewhere_between_passes_are_exact_or_refused(
    tmp_path: Path, name: str, place: Any
) -> None:
    model = place(tmp_path, name)
    assert any(p.device.type == "meta" for p in model.parameters())
    agent, exporter = watched(model)
    with agent:
        out = generate(model)
        agent.flush()
    reference = plain(name, {})
    refused = OF_THE_UNEMBEDDING if place is on_disk else frozenset()
    frames = list(exporter.frames)
    assert_exact(run_of(exporter, frames, reference, out, generate(reference)), but=refused)
    assert set(dict(exporter.topology.unavailable)) == set(refused)
    if refused:
        assert all("read from disk" in why for _, why in exporter.topology.unavailable)
        assert all(frame.head_contribution is None for frame in frames)
    assert torch.equal(generate(model), out)
