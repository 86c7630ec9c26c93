"""Whatever way `generate` decodes, each frame is that of a clean forward pass of the final text.

The prompts of a batch differ from one another, so that two rows that change places are noticed. What the
model gives is the same to the bit with and without the agent.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

from tests.agent.reference import (  # noqa: E402
    BY_NAME,
    LAYERS,
    Reference,
    assert_contributions,
    assert_frame,
    prompts,
)

from fulgurite.agent import InMemoryExporter, instrument  # noqa: E402

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}


def left_padded(rows: int = 3, width: int = 9) -> tuple[Any, Any]:
    """Different prompts of different length: four paddings, one, none."""
    ids, mask = prompts(rows, width, seed=5), torch.ones(rows, width, dtype=torch.long)
    for row, padding in zip(range(rows), (4, 1), strict=False):
        ids[row, :padding], mask[row, :padding] = 0, 0
    return ids, mask


def alike(model: Any, ids: Any, mask: Any, *, seed: int | None = None, **options: Any) -> tuple[Any, Any]:
    """What `generate` returns under the agent, after it was found equal to what it returns alone."""
    options = {"return_dict_in_generate": True, "output_logits": True, **options}
    found = []
    exporter: Any = InMemoryExporter()
    for observed in (False, True):
        if seed is not None:
            torch.manual_seed(seed)
        if not observed:
            found.append(model.generate(ids, attention_mask=mask, **options))
            continue
        with instrument(model, exporter=exporter) as agent:
            found.append(model.generate(ids, attention_mask=mask, **options))
            stats = agent.stats()
        assert stats.errors == {}
    alone, with_agent = found
    assert torch.equal(alone.sequences, with_agent.sequences)
    assert len(alone.logits) == len(with_agent.logits)
    assert all(torch.equal(a, b) for a, b in zip(alone.logits, with_agent.logits, strict=True))
    return with_agent, exporter


def text_of(row: Any, mask: Any) -> list[int]:
    width = len(mask)
    return [*row[:width][mask.bool()].tolist(), *row[width:].tolist()]


def check(
    name: str, model: Any, sequences: Any, mask: Any, frames: list[Any], tolerance: float = 1e-3
) -> None:
    """Every frame stands where its token stands, with the values of a clean pass; each position once."""
    reference = Reference(BY_NAME[name], model)
    texts = [text_of(row, one) for row, one in zip(sequences, mask, strict=True)]
    wanted = [reference.of(text) for text in texts]
    for frame in frames:
        assert texts[frame.sequence][frame.position] == frame.token_id
        if frame.level != "pulse":
            assert_frame(frame, wanted[frame.sequence][frame.position - 1], tolerance)
    places = [(frame.sequence, frame.position) for frame in frames]
    assert len(set(places)) == len(places)


def line_of(frames: list[Any], end: int, position: int) -> Iterator[Any]:
    """The frames of a beam, read backwards from the one that ended it."""
    by_place = {(frame.sequence, frame.position): frame for frame in frames}
    row = end
    while (row, position) in by_place:
        frame = by_place[row, position]
        yield frame
        row, position = frame.parent_row, position - 1


def check_beams(
    name: str, model: Any, output: Any, mask: Any, exporter: Any, *, returned: int, stop: int | None = None
) -> int:
    """Every returned line is spelled out by its frames; how often these lines changed rows."""
    reference, switches = Reference(BY_NAME[name], model), 0
    finished = exporter.events[-1]
    assert finished.kind == "finished"
    assert len(finished.winning_rows) == len(output.sequences)
    for i, (row, end) in enumerate(zip(output.sequences, finished.winning_rows, strict=True)):
        prompt_mask = mask[i // returned]
        text, prompt = text_of(row, prompt_mask), int(prompt_mask.sum())
        if stop is not None and stop in text[prompt:]:
            text = text[: text.index(stop, prompt) + 1]
        line = list(line_of(exporter.frames, end, len(text) - 1))[::-1]
        assert [frame.token_id for frame in line] == text[prompt:]
        assert [frame.position for frame in line] == list(range(prompt, len(text)))
        assert [frame.phase for frame in line] == ["prefill"] + ["decode"] * (len(line) - 1)
        assert line[0].parent_row == -1
        wanted = reference.of(text)
        for frame in line:
            assert_frame(frame, wanted[frame.position - 1])
            assert frame.kv_tokens.tolist() == [frame.position] * LAYERS
        rows = [frame.parent_row for frame in line[1:]]
        switches += sum(a != b for a, b in itertools.pairwise(rows))
    return switches


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_returned_beam_is_told_by_its_frames_though_it_changes_rows(name: str) -> None:
    model = BY_NAME[name].build()
    ids, mask = left_padded(rows=2)
    output, exporter = alike(model, ids, mask, num_beams=4, num_return_sequences=2, **GREEDY)
    assert len(exporter.frames) == 2 * 4 * 6
    assert {frame.batch_size for frame in exporter.frames} == {8}
    switches = check_beams(name, model, output, mask, exporter, returned=2)
    assert switches > 0, "no returned beam changed its row: the lineage was not put to the test"
    assert exporter.events[-1].reason == "length"
    assert "reorder_cache" not in vars(output.cache)


def test_without_the_reordering_the_lines_would_be_wrong() -> None:
    """The test above can fail: with every beam taken for its own parent the tokens do not spell the text."""
    model = BY_NAME["llama"].build()
    ids, mask = left_padded(rows=2)
    output, exporter = alike(model, ids, mask, num_beams=4, num_return_sequences=2, **GREEDY)
    by_place = {(frame.sequence, frame.position): frame for frame in exporter.frames}
    wrong = 0
    for i, (row, end) in enumerate(zip(output.sequences, exporter.events[-1].winning_rows, strict=True)):
        text = text_of(row, mask[i // 2])
        wrong += [by_place[end, p].token_id for p in range(len(text) - 6, len(text))] != text[-6:]
    assert wrong > 0


@pytest.mark.parametrize("early", [True, False, "never"])
def test_beams_that_end_before_the_others_are_told_to_their_end(early: Any) -> None:
    model = BY_NAME["llama"].build()
    ids, mask = left_padded(rows=2)
    free = model.generate(ids, attention_mask=mask, num_beams=4, num_return_sequences=4, **GREEDY)
    stop = int(free[1, ids.shape[1] + 2])
    options = {**GREEDY, "max_new_tokens": 8, "early_stopping": early, "eos_token_id": stop}
    output, exporter = alike(model, ids, mask, num_beams=4, num_return_sequences=3, **options)
    check_beams("llama", model, output, mask, exporter, returned=3, stop=stop)
    ended = [f for f in exporter.frames if f.token_id == stop and f.sequence >= 8]
    assert ended, "no beam ended before the others"


def test_beam_sampling_and_a_criterion_of_the_hosts_own() -> None:
    class Third(transformers.StoppingCriteria):  # type: ignore[misc]
        """Ends every line whose last token can be divided by three."""

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return (input_ids[:, -1] % 3 == 0) & (input_ids.shape[1] > 11)

    model = BY_NAME["llama"].build()
    ids, mask = left_padded(rows=2)
    output, exporter = alike(
        model, ids, mask, seed=3, num_beams=3, do_sample=True, temperature=2.0, max_new_tokens=6
    )
    check_beams("llama", model, output, mask, exporter, returned=1)
    output, exporter = alike(
        model, ids, mask, num_beams=3, do_sample=False, max_new_tokens=6, stopping_criteria=[Third()]
    )
    assert -1 not in exporter.events[-1].winning_rows


def test_beam_search_without_a_cache() -> None:
    model = BY_NAME["llama"].build()
    ids, mask = left_padded(rows=2)
    output, exporter = alike(model, ids, mask, num_beams=3, use_cache=False, **GREEDY)
    finished = exporter.events[-1]
    reference = Reference(BY_NAME["llama"], model)
    for row, one, end in zip(output.sequences, mask, finished.winning_rows, strict=True):
        text = text_of(row, one)
        line = list(line_of(exporter.frames, end, len(text) - 1))[::-1]
        assert [frame.token_id for frame in line] == text[-6:]
        wanted = reference.of(text)
        for frame in line:
            assert frame.kv_tokens is None
            assert_frame(frame, wanted[frame.position - 1])


def helper_of(model: Any, noise: float = 0.003) -> Any:
    """A model that often, but not always, guesses what `model` says."""
    found = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    found.generation_config.num_assistant_tokens = 4
    found.generation_config.num_assistant_tokens_schedule = "constant"
    found.generation_config.assistant_confidence_threshold = 0.0
    return found


def check_drafts(exporter: Any, tokens: int) -> None:
    finished, passes = exporter.events[-1], {frame.step for frame in exporter.frames}
    assert len(exporter.frames) == tokens
    assert finished.accepted_tokens == tokens - len(passes)
    assert finished.drafted_tokens > finished.accepted_tokens > 0


@pytest.mark.parametrize(("name", "noise"), [("llama", 0.003), ("gpt2", 0.03), ("mixtral", 0.01)])
def test_assisted_decoding_gives_frames_of_accepted_tokens_alone(name: str, noise: float) -> None:
    model = BY_NAME[name].build()
    ids, mask = prompts(1, 7), torch.ones(1, 7, dtype=torch.long)
    output, exporter = alike(
        model, ids, mask, assistant_model=helper_of(model, noise), do_sample=False, max_new_tokens=16
    )
    check_drafts(exporter, 16)
    check(name, model, output.sequences, mask, exporter.frames)
    assert [frame.position for frame in exporter.frames] == list(range(7, 23))
    assert [frame.kv_tokens.tolist() for frame in exporter.frames] == [[p] * LAYERS for p in range(7, 23)]


def test_assisted_sampling() -> None:
    model = BY_NAME["llama"].build()
    ids, mask = prompts(1, 7), torch.ones(1, 7, dtype=torch.long)
    output, exporter = alike(
        model,
        ids,
        mask,
        seed=2,
        assistant_model=helper_of(model, 0.02),
        do_sample=True,
        max_new_tokens=16,
        top_k=0,
    )
    check_drafts(exporter, 16)
    check("llama", model, output.sequences, mask, exporter.frames)


def test_prompt_lookup_commits_several_tokens_of_one_pass() -> None:
    model = BY_NAME["llama"].build()
    said = model.generate(prompts(1, 5), do_sample=False, max_new_tokens=12)
    ids = torch.cat([said, said[:, :6]], -1)  # what follows was said before, so that guesses are right
    mask = torch.ones_like(ids)
    output, exporter = alike(
        model, ids, mask, prompt_lookup_num_tokens=4, max_matching_ngram_size=2, do_sample=False,
        max_new_tokens=14,
    )  # fmt: skip
    finished = exporter.events[-1]
    assert finished.drafted_tokens > 0
    assert finished.accepted_tokens == 14 - len({frame.step for frame in exporter.frames})
    check("llama", model, output.sequences, mask, exporter.frames)
    assert len(exporter.frames) == 14


def test_a_models_own_early_exit_as_its_assistant_makes_no_frames_of_drafts() -> None:
    model = BY_NAME["llama"].build()
    ids, mask = prompts(1, 7), torch.ones(1, 7, dtype=torch.long)
    output, exporter = alike(model, ids, mask, assistant_early_exit=2, do_sample=False, max_new_tokens=10)
    assert len(exporter.frames) == 10
    assert [event.kind for event in exporter.events] == ["started", "finished"]
    check("llama", model, output.sequences, mask, exporter.frames)


def test_an_assistant_that_is_observed_too_is_a_replica_of_its_own() -> None:
    model = BY_NAME["llama"].build()
    helper, drafts = helper_of(model), InMemoryExporter()
    ids, mask = prompts(1, 7), torch.ones(1, 7, dtype=torch.long)
    with instrument(helper, exporter=drafts):
        output, exporter = alike(model, ids, mask, assistant_model=helper, do_sample=False, max_new_tokens=8)
    check("llama", model, output.sequences, mask, exporter.frames)
    assert len(exporter.frames) == 8
    assert len(drafts.frames) > 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("size", [2, 4, 9])
def test_a_prompt_that_is_fed_in_chunks_is_one_prompt(name: str, size: int) -> None:
    model = BY_NAME[name].build()
    ids, mask = left_padded()
    output, exporter = alike(model, ids, mask, prefill_chunk_size=size, **GREEDY)
    assert len(exporter.frames) == 18
    assert [frame.phase for frame in exporter.frames[:4]] == ["prefill"] * 3 + ["decode"]
    check(name, model, output.sequences, mask, exporter.frames)


@pytest.mark.parametrize("cache", ["dynamic", "static", "offloaded", "offloaded_static"])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_every_cache_gives_the_same_frames(name: str, cache: str) -> None:
    if cache.startswith("offloaded") and not torch.cuda.is_available():
        pytest.skip("an offloaded cache needs a device to be brought back to")
    model = BY_NAME[name].build()
    ids, mask = left_padded()
    output, exporter = alike(model, ids, mask, cache_implementation=cache, **GREEDY)
    check(name, model, output.sequences, mask, exporter.frames)
    lengths = [int(frame.kv_tokens[0]) for frame in exporter.frames if frame.sequence == 2]
    assert lengths == ([9, 10, 11, 12, 13, 14] if name == "llama" else lengths)
    assert exporter.frames[0].kv_bytes > 0


def test_a_quantised_cache_has_tokens_but_no_bytes_that_we_could_tell() -> None:
    model = BY_NAME["llama"].build()
    ids, mask = left_padded()
    options = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    output, exporter = alike(model, ids, mask, **options, **GREEDY)
    check("llama", model, output.sequences, mask, exporter.frames, tolerance=0.2)  # the keys are rounded
    for frame in exporter.frames:
        assert frame.kv_tokens.tolist() == [frame.position] * LAYERS
        assert frame.kv_bytes is None


def test_no_cache_at_all() -> None:
    model = BY_NAME["llama"].build()
    ids, mask = left_padded()
    output, exporter = alike(model, ids, mask, use_cache=False, **GREEDY)
    assert len(exporter.frames) == 18
    assert {frame.kv_tokens is None for frame in exporter.frames} == {True}
    check("llama", model, output.sequences, mask, exporter.frames)


def test_a_conversation_goes_on_with_the_cache_of_its_last_turn() -> None:
    model = BY_NAME["llama"].build()
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter):
        first = model.generate(prompts(1, 5), return_dict_in_generate=True, **GREEDY)
        ids = torch.cat([first.sequences, prompts(1, 4, seed=9)], -1)
        second = model.generate(ids, cache=first.cache, **GREEDY)
    assert len({frame.request_id for frame in exporter.frames}) == 2
    turn = exporter.frames[6:]
    assert [frame.position for frame in turn] == list(range(15, 21))
    check("llama", model, second, torch.ones_like(ids), turn)


def test_embeddings_in_place_of_ids() -> None:
    model = BY_NAME["llama"].build()
    ids, mask = left_padded()
    exporter: Any = InMemoryExporter()
    with instrument(model, exporter=exporter):
        said = model.generate(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask, **GREEDY)
    check("llama", model, torch.cat([ids, said], -1), mask, exporter.frames)
    assert exporter.events[0].prompt_tokens_per_row == (5, 8, 9)


def test_what_a_pause_hides_is_counted_when_something_is_seen_again() -> None:
    model = BY_NAME["llama"].build()
    ids, mask = left_padded()
    exporter: Any = InMemoryExporter()

    class Pauses(transformers.LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            if input_ids.shape[1] == 11:
                agent.pause()
            if input_ids.shape[1] == 13:
                agent.resume()
            return scores

    with instrument(model, exporter=exporter) as agent:
        output = model.generate(
            ids, attention_mask=mask, logits_processor=[Pauses()], do_sample=False, max_new_tokens=8
        )
    check("llama", model, output, mask, exporter.frames)
    seen = [frame.position for frame in exporter.frames if frame.sequence == 2]
    assert seen[0] == 9
    assert seen[-1] == 16
    assert 12 not in seen
    assert [f.level for f in exporter.frames if f.sequence == 2].count("pulse") <= 1


def test_threads_that_generate_at_once_are_told_apart_and_each_is_right() -> None:
    model = BY_NAME["llama"].build()
    exporter: Any = InMemoryExporter()
    texts = [prompts(1, 4 + i, seed=i) for i in range(6)]
    alone = [model.generate(ids, do_sample=False, max_new_tokens=12) for ids in texts]
    found: dict[int, Any] = {}
    start = threading.Barrier(6)

    def work(i: int) -> None:
        start.wait()
        options = {"num_beams": 2} if i == 5 else {}
        found[i] = model.generate(texts[i], do_sample=False, max_new_tokens=12, **options)

    with instrument(model, exporter=exporter) as agent:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert agent.stats().errors == {}
    reference = Reference(BY_NAME["llama"], model)
    by_request: dict[str, list[Any]] = {}
    for frame in exporter.frames:
        by_request.setdefault(frame.request_id, []).append(frame)
    told = {tuple(f.token_id for f in frames): frames for frames in by_request.values()}
    measured = 0
    for i in range(5):
        assert torch.equal(found[i], alone[i])
        text = alone[i][0].tolist()
        wanted = reference.of(text)
        frames = told[tuple(text[-12:])]
        assert [frame.position for frame in frames] == list(range(4 + i, 16 + i))
        for frame in frames:
            if frame.level == "heads":  # the passes that met the first one may have been too early
                measured += 1
                assert_frame(frame, wanted[frame.position - 1])
    assert measured >= 5 * 12 - 10


def test_a_plain_loop_may_feed_its_prompt_in_pieces_and_take_another_turn() -> None:
    model = BY_NAME["llama"].build()
    first, more = prompts(2, 8), prompts(2, 3, seed=4)
    exporter: Any = InMemoryExporter()
    text = first
    with instrument(model, exporter=exporter), torch.no_grad():
        step = model(first[:, :5], use_cache=True)
        step = model(first[:, 5:], cache=step.cache)
        for _ in range(2):
            token = step.logits[:, -1].argmax(-1, keepdim=True)
            text = torch.cat([text, token], -1)
            step = model(token, cache=step.cache)
        step = model(more, cache=step.cache)  # the host goes on as it likes: the last logits came to nothing
        text = torch.cat([text, more], -1)
        for _ in range(3):
            token = step.logits[:, -1].argmax(-1, keepdim=True)
            text = torch.cat([text, token], -1)
            step = model(token, cache=step.cache)
    requests = [frame.request_id for frame in exporter.frames]
    assert len(set(requests)) == 2
    turns = [[f for f in exporter.frames if f.request_id == name] for name in dict.fromkeys(requests)]
    for row in range(2):
        assert [f.position for f in turns[0] if f.sequence == row] == [8, 9]
        assert [f.position for f in turns[1] if f.sequence == row] == [13, 14, 15]
    check("llama", model, text, torch.ones_like(text), exporter.frames)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_contributions_follow_beams_and_accepted_drafts(name: str) -> None:
    model = BY_NAME[name].build()
    reference = Reference(BY_NAME[name], model)
    ids, mask = left_padded(rows=2)
    beams: Any = InMemoryExporter()
    with instrument(model, level="deep", exporter=beams) as agent:
        output = model.generate(ids, attention_mask=mask, num_beams=3, **GREEDY)
        assert agent.stats().errors == {}
    for row, one, end in zip(output, mask, beams.events[-1].winning_rows, strict=True):
        text = text_of(row, one)
        wanted = reference.of(text)
        for frame in line_of(beams.frames, end, len(text) - 1):
            assert frame.level == "deep"
            assert_contributions(frame, wanted[frame.position - 1]["contributions"](frame.token_id))
    drafts: Any = InMemoryExporter()
    ids = prompts(1, 7)
    with instrument(model, level="deep", exporter=drafts) as agent:
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), assistant_model=helper_of(model), do_sample=False,
            max_new_tokens=12,
        )  # fmt: skip
        assert agent.stats().errors == {}
    wanted = reference.of(output[0].tolist())
    assert len(drafts.frames) == 12
    for frame in drafts.frames:
        assert_contributions(frame, wanted[frame.position - 1]["contributions"](frame.token_id))
