"""The log-probability under what was sampled from, and the step that `generate` may take back."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

from tests.agent.reference import BY_NAME, prompts  # noqa: E402

from fulgurite.agent import InMemoryExporter, instrument  # noqa: E402

NEW = 6


@pytest.mark.parametrize("level", ["pulse", "heads", "deep"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.6, "top_k": 7, "top_p": 0.9},
        {"do_sample": True, "top_k": 0, "repetition_penalty": 1.7},
        {"do_sample": False, "repetition_penalty": 1.7},
    ],
)
def test_it_is_that_of_the_distribution_behind_all_processors(
    options: dict[str, Any], rows: int, level: str
) -> None:
    model = BY_NAME["llama"].build()
    exporter: Any = InMemoryExporter()
    torch.manual_seed(3)
    with instrument(model, exporter=exporter, level=level):
        output = model.generate(
            prompts(rows, 5), max_new_tokens=NEW, return_dict_in_generate=True, output_scores=True, **options
        )
    assert len(exporter.frames) == rows * NEW
    for frame in exporter.frames:
        scores = output.scores[frame.position - 5][frame.sequence]
        wanted = scores.double().log_softmax(-1)[frame.token_id]
        assert frame.logprob_sampled == pytest.approx(float(wanted), abs=1e-5)
    assert any(abs(frame.logprob_sampled - frame.logprob) > 1e-3 for frame in exporter.frames)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "top_k": 0},
        {"num_beams": 2, "repetition_penalty": 1.7},
        {"prompt_lookup_num_tokens": 2, "repetition_penalty": 1.7},
    ],
)
def test_it_is_absent_where_nothing_processes_or_where_it_is_not_known(options: dict[str, Any]) -> None:
    model = BY_NAME["llama"].build()
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter):
        model.generate(prompts(1, 5), max_new_tokens=NEW, **options)
    assert exporter.frames
    assert {frame.logprob_sampled for frame in exporter.frames} == {None}


def test_what_is_sampled_is_the_same_and_nothing_stays_in_the_model() -> None:
    model = BY_NAME["llama"].build()

    def sample(one: Any) -> Any:
        torch.manual_seed(5)
        return one.generate(prompts(2, 5), max_new_tokens=NEW, do_sample=True, temperature=0.7)

    wanted = sample(model)
    agent = instrument(model, exporter=InMemoryExporter())
    assert torch.equal(sample(model), wanted)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(sample(twin), wanted)
        assert twin._get_logits_processor.__self__ is twin
    agent.close()
    assert "_get_logits_processor" not in model.__dict__
    assert torch.equal(sample(model), wanted)


class Stop(transformers.StoppingCriteria):
    """Stops when the text is so long, without an end token that would tell."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


class Slot:
    """What stands for an event of a device where there is none."""

    def __init__(self, **_: Any) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


def test_a_step_that_is_taken_back_makes_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.generation import utils

    model = BY_NAME["llama"].build()
    ids = prompts(2, 5)
    wanted = model.generate(ids, do_sample=False, stopping_criteria=[Stop(9)], max_new_tokens=20)
    assert wanted.shape[1] == 9
    monkeypatch.setattr(utils.DeferredStopCheck, "is_supported", staticmethod(lambda *_, **__: True))
    monkeypatch.setattr(utils.torch, "Event", Slot)
    passes = []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter) as agent:
        output = model.generate(ids, do_sample=False, stopping_criteria=[Stop(9)], max_new_tokens=20)
        short = model.generate(ids, do_sample=False, max_new_tokens=3)
        assert agent.stats().errors == {}
    handle.remove()
    assert len(passes) == 5 + 3, "one pass more than tokens: the path that takes a step back was taken"
    assert torch.equal(output, wanted)
    assert short.shape[1] == 8
    places = [(f.sequence, f.position) for f in exporter.frames]
    assert places == [(row, 5 + i) for i in range(4) for row in range(2)] + [
        (row, 5 + i) for i in range(3) for row in range(2)
    ]
    assert all(f.token_id == int(output[f.sequence][f.position]) for f in exporter.frames[:8])
    assert np.isfinite([f.logprob for f in exporter.frames]).all()
