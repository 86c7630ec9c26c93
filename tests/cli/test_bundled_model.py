"""The bundled model: what it is made of, what it can do, and that what says so can say no."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fulgurite.cli.demo.model import ModelUnavailable, bundled_path, load
from fulgurite.cli.demo.model.brackets import closing, is_closed, open_brackets
from fulgurite.cli.demo.model.corpus import MIX, documents
from fulgurite.cli.demo.model.names import begins_name, draw_name, is_held_out, is_name
from fulgurite.cli.demo.model.packing import windows
from fulgurite.cli.demo.model.prompts import prompts
from fulgurite.cli.demo.model.scenes import STORIES, WORDS
from fulgurite.cli.demo.model.strings import is_held_out as string_is_held_out

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from fulgurite.cli.demo.model.batches import encoded, training_documents  # noqa: E402
from fulgurite.cli.demo.model.completers import ModelCompleter  # noqa: E402
from fulgurite.cli.demo.model.measures import BOUND, BRACKETS, INDUCTION, Examiner  # noqa: E402
from fulgurite.cli.demo.model.ngram import NGram  # noqa: E402

SEED = 2024
LARGEST_BYTES = 8_000_000
STORIES_SHOWN = 40


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any]:
    """The bundled model and its tokenizer."""
    return load()


@pytest.fixture(scope="module")
def examiner(bundled: tuple[Any, Any]) -> Examiner:
    """Who asks the bundled model."""
    return Examiner(ModelCompleter(*bundled), bundled[1], seed=SEED)


@pytest.fixture(scope="module")
def grams(bundled: tuple[Any, Any]) -> NGram:
    """A five-gram of the text that the model was trained on."""
    tokenizer = bundled[1]
    texts = encoded(islice(training_documents(1), 2000), tokenizer)
    return NGram(texts, vocabulary=len(tokenizer), end=tokenizer.eos_token_id)


# What it is made of.


def test_the_folder_of_the_model_is_at_most_eight_megabytes() -> None:
    assert 0 < sum(path.stat().st_size for path in bundled_path().iterdir()) <= LARGEST_BYTES


def test_the_model_is_a_small_llama_with_grouped_query_attention(bundled: tuple[Any, Any]) -> None:
    config = bundled[0].config
    assert config.model_type == "llama"
    assert config.num_attention_heads > config.num_key_value_heads > 1
    assert 3e6 <= sum(one.numel() for one in bundled[0].parameters()) <= 6e6


def test_weights_lie_in_float16_and_load_as_float32(bundled: tuple[Any, Any]) -> None:
    assert json.loads((bundled_path() / "config.json").read_text())["dtype"] == "float16"
    assert {one.dtype for one in bundled[0].parameters()} == {torch.float32}


def test_the_tokenizer_gives_every_text_back_and_frames_it(bundled: tuple[Any, Any]) -> None:
    tokenizer = bundled[1]
    for text in ("Mira climbed.", "Sums: 17 + 25 = 42.", "Zürich → 東京 ([{", *islice(documents(SEED), 50)):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_prompts_of_different_lengths_are_padded_on_the_left(bundled: tuple[Any, Any]) -> None:
    batch = bundled[1](["Sums: 1 + 1 =", "List: (rope, [lamp"], padding=True)["attention_mask"]
    assert batch[0][-1] == batch[1][-1] == 1
    assert 0 in (batch[0][0], batch[1][0])


def test_generation_ends_by_itself_before_the_context_does(bundled: tuple[Any, Any]) -> None:
    model, tokenizer = bundled
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    answers = ModelCompleter(model, tokenizer).complete(
        tokenizer(list(islice(prompts(SEED), 16)))["input_ids"], new_tokens=250, seed=SEED
    )
    assert sum(answer[-1] == tokenizer.eos_token_id for answer in answers) >= 15


def test_neither_torch_nor_transformers_is_imported_before_a_model_is_loaded() -> None:
    code = "import sys, fulgurite.cli.demo.model.prompts; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# What it can do, on names and strings that it has never read.


def test_induction_copies_unseen_names_and_strings_at_the_bound(examiner: Examiner) -> None:
    shares = examiner.shares(INDUCTION, count=24)
    assert [share for share in shares if share.value < BOUND] == []


def test_brackets_of_unseen_lists_are_closed_at_the_bound(examiner: Examiner) -> None:
    shares = examiner.shares(BRACKETS, count=40, sampled=True)
    assert [share for share in shares if share.value < BOUND] == []


def test_sampled_stories_are_grammatical_at_the_bound_and_keeping_more_is_harder(examiner: Examiner) -> None:
    sentences, names, everything = (share.value for share in examiner.grammar(count=STORIES_SHOWN))
    assert names >= BOUND
    assert sentences >= names >= everything


def test_a_five_gram_of_the_same_text_can_do_none_of_it(bundled: tuple[Any, Any], grams: NGram) -> None:
    asked = Examiner(grams, bundled[1], seed=SEED)
    shares = [*asked.shares(INDUCTION, count=10), *asked.shares(BRACKETS, count=10, sampled=True)]
    assert [share for share in [*shares, *asked.grammar(count=5)] if share.value > 0.5] == []


def test_the_five_gram_gives_a_distribution_over_all_tokens(grams: NGram, bundled: tuple[Any, Any]) -> None:
    chances = grams.probabilities(bundled[1]("In the village of")["input_ids"])
    assert chances.sum() == pytest.approx(1.0)
    assert chances.min() > 0


# What judges it can say no.


def test_the_grammar_reads_every_story_that_it_writes_and_every_beginning_of_it() -> None:
    for held_out in (False, True):
        for story in islice(documents(SEED, kind="story", held_out=held_out), STORIES_SHOWN):
            assert STORIES.read(story).complete
            assert all(STORIES.read(story[:cut]).open for cut in range(0, len(story), 17))
            assert not STORIES.read(story[: len(story) // 2]).complete


def _another_name(story: str, draw: random.Random) -> str:
    names = [found for found in re.finditer(r"[A-Z]\w+", story) if is_name(found[0])]
    at = draw.choice([found for found in names if len(re.findall(found[0], story)) > 1])
    return f"{story[: at.start()]}Bolavo{story[at.end() :]}"


def _words_swapped(story: str, draw: random.Random) -> str:
    words = story.split(" ")
    at = draw.choice([at for at in range(len(words) - 1) if words[at].islower() and words[at + 1].islower()])
    words[at : at + 2] = reversed(words[at : at + 2])
    return " ".join(words)


def _word_dropped(story: str, draw: random.Random) -> str:
    words = story.split(" ")
    words.pop(
        draw.choice([at for at, word in enumerate(words) if word in ("the", "of", "and", "was", "there")])
    )
    return " ".join(words)


def _letter_changed(story: str, draw: random.Random) -> str:
    at = draw.choice([found.start() for found in re.finditer(r"[a-z]{4}", story)])
    return f"{story[:at]}q{story[at + 1 :]}"


def _sentence_doubled(story: str, draw: random.Random) -> str:
    sentences = re.split(r"(?<=\.) ", story)
    return " ".join([sentences[0], *sentences])


def _cut(story: str, draw: random.Random) -> str:
    return story[:-1]


def _gone_on(story: str, draw: random.Random) -> str:
    return f"{story} And then"


@pytest.mark.parametrize(
    "corrupt",
    [_another_name, _words_swapped, _word_dropped, _letter_changed, _sentence_doubled, _cut, _gone_on],
)
def test_the_grammar_rejects_a_corrupted_story(corrupt: Callable[[str, random.Random], str]) -> None:
    draw = random.Random(SEED)
    for story in islice(documents(SEED, kind="story"), STORIES_SHOWN):
        assert not STORIES.read(corrupt(story, draw)).complete


def test_a_reading_that_keeps_only_names_takes_another_place_and_no_other_name() -> None:
    read = 0
    for story in islice(documents(SEED, kind="story"), STORIES_SHOWN):
        places = [place for place in STORIES.values["place"] if story.count(f" {place}") > 1]
        if not places:
            continue
        moved = story.replace(f" {places[0]}", " mill" if places[0] != "mill" else " tower", 1)
        read += not STORIES.read(moved).complete and STORIES.read(moved, keeps="names").complete
        renamed = _another_name(story, random.Random(SEED))
        assert not STORIES.read(renamed, keeps="names").complete
        assert STORIES.read(renamed, keeps="nothing").complete
    assert read >= 5


def test_the_grammar_rejects_a_pronoun_that_changes() -> None:
    rejected = 0
    for story in islice(documents(SEED, kind="story"), 200):
        if len(re.findall(r"\b(?:She|she)\b", story)) > 1:
            rejected += not STORIES.read(re.sub(r"\b(S|s)he\b", _he, story, count=1)).complete
    assert rejected >= 10


def _he(found: re.Match[str]) -> str:
    return "He" if found[1] == "S" else "he"


def test_the_grammar_says_where_it_could_not_go_on() -> None:
    story = next(documents(SEED, kind="story"))
    reading = STORIES.read(story.replace(". ", ". Zzz ", 1))
    assert not reading.open
    assert reading.reached == story.index(". ") + 2


def test_brackets_are_closed_by_their_own_kind_innermost_first() -> None:
    assert is_closed("List: (a, [b, {c}]).")
    assert not is_closed("List: (a, [b)].")
    assert not is_closed("List: (a, [b]")
    assert not is_closed("List: a).")
    assert closing(open_brackets("List: (a, [b, {c") or "") == "}])"


def test_a_beginning_of_a_name_is_known_from_what_is_none() -> None:
    assert all(begins_name("Mirador"[:cut]) is True for cut in range(5))
    assert [begins_name(text) for text in ("Xq", "mi", "Mirx", "Miramiram")] == [False] * 4


# The text that it learned from.


@pytest.mark.parametrize("kind", [None, *MIX])
def test_the_corpus_is_the_same_for_the_same_seed(kind: str | None) -> None:
    once, again, other = (list(islice(documents(seed, kind=kind), 20)) for seed in (5, 5, 6))
    assert once == again
    assert once != other


def test_the_corpus_does_not_depend_on_the_hash_seed_of_the_process() -> None:
    code = "from fulgurite.cli.demo.model.corpus import documents; print(next(documents(5)))"
    told = {
        subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": value})
        for value in ("1", "2")
    }
    assert len(told) == 1


def test_held_out_names_never_occur_in_training_names() -> None:
    draw = random.Random(SEED)
    held_out = {draw_name(draw, held_out=True) for _ in range(500)}
    assert all(is_held_out(name) for name in held_out)
    training = list(islice(documents(SEED), 1500))
    seen = {word for text in training for word in re.findall(r"[A-Z][a-z]+", text) if is_name(word)}
    assert len(seen) > 1000
    assert not seen & held_out
    assert not any(is_held_out(name) for name in seen)


def test_held_out_strings_never_occur_among_those_for_training() -> None:
    for text in islice(documents(SEED, kind="echo"), 300):
        strings = set(re.findall(r"\b[a-z]+\b", text)) - set(WORDS)  # what stories are made of is not divided
        assert not any(string_is_held_out(string) for string in strings)


def test_a_window_holds_whole_documents_and_then_padding() -> None:
    draw = random.Random(SEED)
    source = [[1, *([7] * draw.randint(1, 30)), 2] for _ in range(300)]
    packed = list(islice(windows(source, length=64, pad=0), 20))
    for window in packed:
        tokens = np.trim_zeros(window, "b").tolist()
        assert tokens[0] == 1
        assert tokens[-1] == 2
        assert tokens.count(1) == tokens.count(2)
        assert 0 not in tokens


# What the demo asks of it, and what a person does wrong.


def test_prompts_are_endless_seeded_and_of_every_kind() -> None:
    some = list(islice(prompts(SEED), 200))
    assert some == list(islice(prompts(SEED), 200))
    assert some != list(islice(prompts(SEED + 1), 200))
    kinds = {text.split(":")[0] if text.startswith(("List:", "Sums:")) else "story" for text in some}
    assert kinds == {"List", "Sums", "story"}
    assert all(text == text.strip() for text in some)
    assert all(STORIES.read(text).open for text in some if not text.startswith(("List:", "Sums:")))
    assert all(open_brackets(text) for text in some if text.startswith("List:"))


def test_a_folder_without_a_model_is_refused_in_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"there is no config\.json; name a folder") as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_that_does_not_exist_is_refused_without_looking_elsewhere() -> None:
    with pytest.raises(ModelUnavailable, match=r"'\./no-such-folder'"):
        load("./no-such-folder")


def test_a_broken_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ModelUnavailable, match="cannot load the model") as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)
