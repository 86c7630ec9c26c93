"""What several of these tests ask of frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fulgurite.wire.frame import Frame


def plain(model: Path, dtype: str, prompt: list[int], tokens: int) -> list[Frame]:
    """The frames of `generate`."""
    import torch
    import transformers

    from fulgurite.agent import InMemoryExporter, instrument

    made = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    exporter = InMemoryExporter()
    with instrument(made, level="deep", exporter=exporter):
        made.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False)
    return exporter.frames


def error(found: Any, wanted: Any) -> float:
    """Largest difference, relative to the largest value in (frame, layer)."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert np.array_equal(np.isnan(found), np.isnan(wanted))
    size = np.nanmax(np.abs(wanted), axis=-1, keepdims=True)
    return float(np.nanmax(np.abs(found - wanted) / size))


def neurons_error(found: Frame, wanted: Frame) -> float:
    """Largest difference of the neurons that two frames tell, relative to the largest in a layer; of one that
    only `found` tells, to the smallest that `wanted` does: of two that are alike either may be told."""
    assert found.neuron_ids is not None
    assert wanted.neuron_ids is not None
    worst = error(found.neuron_values, wanted.neuron_values)
    for layer, ids in enumerate(found.neuron_ids.tolist()):
        known = dict(
            zip(wanted.neuron_ids[layer].tolist(), wanted.neuron_values[layer].tolist(), strict=True)
        )
        most, least = max(known.values()), min(known.values())
        for neuron, value in zip(ids, found.neuron_values[layer].tolist(), strict=True):
            worst = max(worst, abs(value - known.get(neuron, least)) / most)
    return worst


def look_error(found: Frame, wanted: Frame) -> float:
    """Largest difference of where heads look in the layers that `found` tells: masses are shares of 1, and
    entropies are of nats; a key that only one of two names counts by the difference of weights."""
    layers = np.flatnonzero(found.measured_layers)
    assert layers.size
    worst = 0.0
    for name in ("attention_entropy", "sink_mass", "attended_weights", "kv_heat"):
        ours, theirs = (np.asarray(getattr(one, name), np.float64)[layers] for one in (found, wanted))
        assert np.array_equal(np.isnan(ours), np.isnan(theirs)), name
        worst = max(worst, float(np.nanmax(np.abs(ours - theirs))))
    for layer in layers.tolist():
        for ours, weights, theirs, others in zip(
            found.attended_positions[layer], found.attended_weights[layer],
            wanted.attended_positions[layer], wanted.attended_weights[layer], strict=True,
        ):  # fmt: skip
            known = dict(zip(theirs.tolist(), others.tolist(), strict=True))
            least = min(known.values())
            told = zip(ours.tolist(), weights.tolist(), strict=True)
            worst = max(worst, *(abs(weight - known.get(key, least)) for key, weight in told if key >= 0))
    return worst


def tokens_of(frames: list[Frame], sequence: int) -> list[int]:
    return [f.token_id for f in frames if f.sequence == sequence]


def check(stage: Any, answer: dict[str, Any], choices: int = 1) -> None:
    """The frames of one answer are its tokens, one after the other."""
    wanted = {c["index"]: c["token_ids"] for c in answer["choices"]}
    assert len(wanted) == choices
    frames = stage.watcher.of(answer["id"], sum(map(len, wanted.values())))
    assert {i: tokens_of(frames, i) for i in wanted} == wanted
    assert len(frames) == sum(map(len, wanted.values()))
    for index, tokens in wanted.items():
        positions = [f.position for f in frames if f.sequence == index]
        assert positions == list(range(positions[0], positions[0] + len(tokens)))
        prompt = next(c["prompt_token_ids"] for c in answer["choices"] if c["index"] == index)
        assert prompt is None or positions[0] == len(prompt)
