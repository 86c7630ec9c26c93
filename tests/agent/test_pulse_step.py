"""Rows at level `pulse`, of which nothing is worked out on the host's thread, tell what any do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

from tests.agent.reference import BY_NAME, prompts  # noqa: E402
from tests.agent.unread import Unread  # noqa: E402

from fulgurite.agent import InMemoryExporter, instrument  # noqa: E402
from fulgurite.agent.measure import MOST_LEFT  # noqa: E402

NEW, WIDTH = 12, 5
TOLD = ("position", "token_id", "phase", "step", "sequence", "batch_size", "kv_bytes")


def observed(level: str, exporter: Any = None, *, rows: int = 1, **options: Any) -> Any:
    model = BY_NAME["llama"].build()
    exporter = exporter or InMemoryExporter()
    torch.manual_seed(3)
    with instrument(model, exporter=exporter, level=level):
        model.generate(prompts(rows, WIDTH), **{"max_new_tokens": NEW, "do_sample": False, **options})
    return exporter


def same(found: Any, wanted: Any) -> None:
    assert len(found.frames) == len(wanted.frames)
    for one, other in zip(found.frames, wanted.frames, strict=True):
        for name in TOLD:
            assert getattr(one, name) == getattr(other, name), name
        assert list(one.kv_tokens) == list(other.kv_tokens)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert (one.logprob_sampled is None) == (other.logprob_sampled is None)
        if one.logprob_sampled is not None:
            assert one.logprob_sampled == pytest.approx(other.logprob_sampled, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.6, "top_k": 7}], ids=str)
def test_it_tells_what_heads_tells_of_a_token(options: dict[str, Any], rows: int) -> None:
    found = observed("pulse", rows=rows, **options)
    same(found, observed("heads", rows=rows, **options))
    told = [frame.position for frame in found.frames if frame.sequence == rows - 1]
    assert told == list(range(WIDTH, WIDTH + NEW))
    assert {frame.level for frame in found.frames} == {"pulse"}


def test_what_is_read_late_is_the_same() -> None:
    unread = Unread()
    observed("pulse", unread)
    assert len(unread.given) == NEW > MOST_LEFT  # no more wait than may: the others were reduced at once
    unread.read()
    same(unread, observed("pulse"))


def test_rows_that_end_before_the_others_have_no_frames_of_padding() -> None:
    whole = observed("pulse", rows=3)
    first = next(f.token_id for f in whole.frames if f.sequence == 1 and f.position == WIDTH + 2)
    options = {"rows": 3, "eos_token_id": int(first), "pad_token_id": 0}
    cut, wanted = observed("pulse", **options), observed("heads", **options)
    same(cut, wanted)
    assert len(cut.frames) < len(whole.frames)
    assert cut.events[-1].reason == wanted.events[-1].reason


def test_why_it_ended_is_told() -> None:
    whole = observed("pulse")
    assert whole.events[-1].kind == "finished"
    assert whole.events[-1].reason == "length"
    third = whole.frames[2].token_id
    cut = observed("pulse", eos_token_id=int(third))
    until = next(i for i, frame in enumerate(whole.frames) if frame.token_id == third)
    assert [frame.token_id for frame in cut.frames] == [f.token_id for f in whole.frames[: until + 1]]
    assert cut.events[-1].reason == "stop"


def test_the_level_may_change_between_its_tokens() -> None:
    model = BY_NAME["llama"].build()
    exporter: Any = InMemoryExporter()

    class Changes(transformers.StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, _: Any, **__: Any) -> Any:
            if input_ids.shape[1] % 3 == 0:
                agent.set_level("heads" if agent.level == "pulse" else "pulse")
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    with instrument(model, exporter=exporter, level="heads") as agent:
        ids = model.generate(
            prompts(1, WIDTH), max_new_tokens=NEW, do_sample=False, stopping_criteria=[Changes()]
        )
    assert [frame.token_id for frame in exporter.frames] == ids[0, WIDTH:].tolist()
    assert [frame.position for frame in exporter.frames] == list(range(WIDTH, WIDTH + NEW))
    assert {frame.level for frame in exporter.frames} == {"pulse", "heads"}
    wanted = observed("heads")
    assert np.allclose([f.logprob for f in exporter.frames], [f.logprob for f in wanted.frames], atol=1e-5)
