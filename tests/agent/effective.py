"""Captures of a model whose weights are not plain, beside the float64 oracle of a plain model with the
weights that it really applies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.reference import gate  # noqa: E402
from tests.reference.families import build  # noqa: E402
from tests.reference.recipes import recipe_of  # noqa: E402

from fulgurite.agent import InMemoryExporter, instrument  # noqa: E402
from fulgurite.agent.attachment import Agent  # noqa: E402

BOUND = 1e-3
Generate = Callable[[], Any]


def plain(name: str, weights: Mapping[str, Any]) -> Any:
    """The family's model of seed 0 with these weights in place of its own."""
    model = build(name, dtype=torch.float32, attn_implementation="eager", seed=0)
    own = model.state_dict()
    assert set(weights) <= set(own)
    model.load_state_dict({**own, **{key: value.detach().float() for key, value in weights.items()}})
    return model


def generate(model: Any) -> Any:
    """Four tokens for the padded prompts of the gate."""
    ids, mask = gate.prompts()
    settings = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": gate.NEW_TOKENS}
    return model.generate(input_ids=ids, attention_mask=mask, **settings)


def watched(model: Any, level: str = "deep") -> tuple[Agent, InMemoryExporter]:
    exporter: Any = InMemoryExporter()
    return instrument(model, level=level, exporter=exporter), exporter


def run_of(exporter: InMemoryExporter, frames: list[Any], reference: Any, out: Any, alone: Any) -> gate.Run:
    """These frames of one `generate` beside the oracle of `reference`."""
    _, mask = gate.prompts()
    wanted = gate._wanted(reference, None, out, mask)
    return gate.Run(
        frames=frames,
        wanted=[wanted(frame) for frame in frames],
        topology=exporter.topology,
        recipe=recipe_of(reference),
        same_tokens=torch.equal(out, alone),
    )


def assert_exact(run: gate.Run, *, but: frozenset[str] = frozenset(), bound: float = BOUND) -> None:
    """Every channel agrees, those of the weights are there, and contributions make up the logit."""
    assert len(run.frames) == 8
    assert run.same_tokens
    found = gate.agreements(run)
    for channel in {"head_write", "head_contribution", "ffn_contribution", "neuron_values", "residue"} - but:
        assert run.captured(channel) is not None, (channel, run.unavailable)
    off = {channel: a.relative for channel, a in found.items() if channel not in but and a.relative > bound}
    assert off == {}
    if "residue" not in but:
        assert gate.residues(run).max() <= bound
    assert np.isfinite(run.captured("head_write")).all() or "head_write" in but
