"""What a streamed answer tells, by the types of openai-python; over real servers it is `tests/system`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fulgurite.agent import InMemoryExporter, config
from fulgurite.agent.blackbox.answer import Wish
from fulgurite.agent.blackbox.box import Box, topology_of
from fulgurite.agent.blackbox.pieces import Alternative, Piece, Usage, ends, pieces, usage
from fulgurite.agent.shield import Shield

pytest.importorskip("openai")
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk


def chat(choices: list[dict[str, Any]], **more: Any) -> ChatCompletionChunk:
    told = {"id": "chat-1", "created": 1, "model": "m", "object": "chat.completion.chunk", **more}
    return ChatCompletionChunk.model_validate({**told, "choices": choices})


def text(choices: list[dict[str, Any]], **more: Any) -> Completion:
    told = {"id": "cmpl-1", "created": 1, "model": "m", "object": "text_completion", **more}
    return Completion.model_construct(**told, choices=[_constructed(choice) for choice in choices])


def _constructed(choice: dict[str, Any]) -> Any:
    from openai.types import CompletionChoice
    from openai.types.completion_choice import Logprobs

    logprobs = choice.pop("logprobs", None)
    made = None if logprobs is None else Logprobs.model_construct(**logprobs)
    return CompletionChoice.model_construct(**choice, logprobs=made)


def entry(token: str, logprob: float, **others: float) -> dict[str, Any]:
    top = [{"token": word, "logprob": value, "bytes": None} for word, value in others.items()]
    return {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": top}


def test_a_chunk_without_log_probabilities_is_one_piece() -> None:
    chunk = chat([{"index": 1, "delta": {"content": "ab cd"}}])
    (piece,) = pieces(chunk)
    assert (piece.sequence, piece.text, piece.token_id, piece.alternatives) == (1, "ab cd", -1, ())
    assert math.isnan(piece.logprob)


@pytest.mark.parametrize("delta", [{"role": "assistant"}, {"content": ""}, {}])
def test_a_chunk_that_says_nothing_is_no_piece(delta: dict[str, Any]) -> None:
    assert pieces(chat([{"index": 0, "delta": delta}])) == []
    assert pieces(chat([])) == []


def test_every_entry_of_the_log_probabilities_is_a_token_with_its_alternatives_in_order() -> None:
    told = {"content": [entry("a", -0.5, b=-2.0, a=-0.5), entry("token_id:7", -1.0, c=-1.0)]}
    found = pieces(chat([{"index": 0, "delta": {"content": "a c"}, "logprobs": told}]))
    assert found[0] == Piece(0, "a", -1, -0.5, (Alternative(-1, -0.5), Alternative(-1, -2.0)))
    assert found[1] == Piece(0, "", 7, -1.0, (Alternative(-1, -1.0),))


def test_completions_tell_columns_and_their_first_token_may_have_none() -> None:
    told = {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -0.25],
        "top_logprobs": [None, {"b": -0.25, "z": -9.0}],
    }
    first, second = pieces(text([{"index": 0, "text": "ab", "logprobs": told}]))
    assert math.isnan(first.logprob)
    assert first.alternatives == ()
    assert second == Piece(0, "b", -1, -0.25, (Alternative(-1, -0.25), Alternative(-1, -9.0)))


def test_alternatives_that_may_be_several_of_one_text_are_not_told() -> None:
    tops = [{"a": -0.5, "\ufffd": -2.0, "b": -3.0}, {"token_id:3": -0.5, "token_id:4": -2.0}]
    told = {"tokens": ["b", "token_id:4"], "token_logprobs": [-3.0, -2.0], "top_logprobs": tops}
    first, second = pieces(text([{"index": 0, "text": "b\ufffd", "logprobs": told}]))
    assert first == Piece(0, "b", -1, -3.0, ())
    assert second == Piece(0, "", 4, -2.0, (Alternative(3, -0.5), Alternative(4, -2.0)))
    first_alone = {name: column[:1] for name, column in told.items()}
    (frame,) = heard(text([{"index": 0, "text": "b", "logprobs": first_alone}])).frames
    assert frame.logprob == -3.0
    assert frame.top_logprobs is frame.margin is frame.rank is None


def test_ids_count_the_tokens_where_a_server_tells_them() -> None:
    found = pieces(chat([{"index": 0, "delta": {"content": "abc"}, "token_ids": [4, 5]}]))
    assert [(piece.text, piece.token_id) for piece in found] == [("abc", 4), ("", 5)]


def test_what_a_tool_is_called_with_and_what_is_thought_are_tokens_too() -> None:
    call = {"index": 0, "function": {"name": "look", "arguments": '{"x'}}
    assert pieces(chat([{"index": 0, "delta": {"tool_calls": [call]}}]))[0].text == 'look{"x'
    assert pieces(chat([{"index": 0, "delta": {"reasoning_content": "hm"}}]))[0].text == "hm"


def test_ends_and_usage_are_read() -> None:
    counted = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert ends(chat([{"index": 2, "delta": {}, "finish_reason": "stop"}])) == {2: "stop"}
    assert usage(chat([], usage=counted)) == Usage(5, 2)
    assert usage(chat([])) is None


def heard(*chunks: Any, choices: int = 1, alternatives: int = 2) -> InMemoryExporter:
    exporter = InMemoryExporter()
    box = Box(config.settings(tokens="text", env={}), exporter, Shield(), address="http://127.0.0.1/v1")
    asked = box.ask("m", Wish(choices, alternatives))
    assert asked is not None
    for chunk in chunks:
        asked.heard(chunk)
    asked.over()
    return exporter


def test_margin_and_rank_are_told_where_they_follow_from_what_was_told() -> None:
    told = {"content": [entry("x", -5.0, a=-0.5, b=-2.0), entry("b", -2.0, a=-0.5, b=-2.0)]}
    first, second = heard(chat([{"index": 0, "delta": {"content": "x"}, "logprobs": told}])).frames
    assert first.margin == pytest.approx(1.5)
    assert (first.rank, second.rank) == (-1, 1)  # of x nobody says how many are more probable
    assert first.top_logprobs is not None
    assert np.isnan(first.top_logprobs[2:]).all()
    assert first.entropy is None


def test_a_token_that_a_server_adds_to_the_alternatives_is_none_of_them() -> None:
    told = {"content": [entry("x", -5.0, a=-0.5, b=-2.0, x=-5.0)]}
    (frame,) = heard(chat([{"index": 0, "delta": {"content": "x"}, "logprobs": told}])).frames
    assert frame.rank == -1
    assert frame.top_logprobs is not None
    assert frame.top_logprobs[:2].tolist() == [-0.5, -2.0]
    assert np.isnan(frame.top_logprobs[2:]).all()


def test_a_channel_that_one_token_of_a_chunk_lacks_is_absent() -> None:
    told = {"tokens": ["a", "b"], "token_logprobs": [None, -0.25], "top_logprobs": [None, {"b": -0.25}]}
    first, second = heard(text([{"index": 0, "text": "ab", "logprobs": told}])).frames
    assert first.logprob is None
    assert second.logprob is None
    assert first.top_logprobs is None


def test_an_answer_is_whole_when_every_choice_has_ended() -> None:
    chunks = [chat([{"index": i, "delta": {"content": "a"}, "finish_reason": "stop"}]) for i in range(2)]
    exporter = heard(*chunks, choices=2)
    assert [(event.kind, event.reason) for event in exporter.events] == [
        ("started", ""),
        ("finished", "stop"),
    ]
    assert [(frame.sequence, frame.position) for frame in exporter.frames] == [(0, 0), (1, 0)]


def test_more_models_than_a_client_may_have_are_left_out() -> None:
    box = Box(config.settings(env={}), InMemoryExporter(), Shield(), address="")
    assert [box.ask(f"m{i}", Wish()) is not None for i in range(18)] == [True] * 16 + [False] * 2


def test_the_shape_claims_nothing() -> None:
    shape = topology_of("m")
    assert shape.is_black_box
    absent = dict(shape.unavailable)
    assert {"head_write", "ffn_write", "kv_tokens", "kv_bytes", "lens_rank", "entropy"} <= absent.keys()
    assert not {"logprob", "top_logprobs", "margin", "rank", "started_ns"} & absent.keys()
