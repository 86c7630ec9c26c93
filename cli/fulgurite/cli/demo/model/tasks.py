"""Questions that only what stands in the prompt can answer, on names and strings that training never has."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from fulgurite.cli.demo.model.brackets import is_closed, open_brackets
from fulgurite.cli.demo.model.corpus import documents
from fulgurite.cli.demo.model.sums import draw_sum

_LAST_NAMED = re.compile(r", and ([A-Z]\w+) (?:carried|came last|counted|was afraid of nothing|waited by)")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt, the text that must follow, and how it is judged.

    Attributes
    ----------
    prompt : str
        What is continued.
    answer : str
        The one right continuation; with `whole`, one of many.
    whole : bool
        Judge the finished document by its brackets; without it, compare with `answer`.
    """

    prompt: str
    answer: str
    whole: bool = False

    def solved_by(self, continuation: str) -> bool:
        """Whether this continuation, up to and without the end token, is right."""
        if self.whole:
            return continuation.endswith(".") and is_closed(self.prompt + continuation)
        rest = continuation.removeprefix(self.answer)
        return continuation.startswith(self.answer) and not rest[:1].isalnum()


def third_names(seed: int) -> Iterator[Task]:
    """`Mira went first, Tol went second, and` -> the name that was introduced but not used yet."""
    for story in documents(seed, held_out=True, kind="story"):
        found = _LAST_NAMED.search(story)
        if found and found[1] in story[: found.start()]:
            yield Task(story[: found.start(1) - 1], f" {found[1]}")


def known_names(seed: int) -> Iterator[Task]:
    """A story cut where a name that was just spoken must be said again: `And Mira?` -> the name."""
    for story in documents(seed, held_out=True, kind="story"):
        found = re.search(r"\b(?:And ([A-Z]\w+)\?|name of ([A-Z]\w+) three times:)", story)
        if found:
            name = found[1] or found[2]
            yield Task(story[: found.end()], f" {name}")


def echoes(seed: int) -> Iterator[Task]:
    """`Echo: qz vux |` -> the same again."""
    for text in documents(seed, held_out=True, kind="echo"):
        call = text.removeprefix("Echo: ").rstrip(".").split(" | ")[0]
        yield Task(f"Echo: {call} |", f" {call}")


def patterns(seed: int) -> Iterator[Task]:
    """A pattern that has begun again by one word -> the rest of it, and the first word of the third round."""
    for text in documents(seed, held_out=True, kind="pattern"):
        words = text.split()[1:]
        period = words.index(words[0], 1)
        shown = " ".join(words[: period + 1])
        yield Task(f"Pattern: {shown}", "".join(f" {word}" for word in [*words[1:period], words[0]]))


def lists(seed: int) -> Iterator[Task]:
    """A list cut behind an item with two or more brackets open -> any rest that closes them rightly."""
    draw = random.Random(seed)
    for text in documents(seed, held_out=True, kind="list"):
        cuts = [cut for cut in _item_ends(text) if len(open_brackets(text[:cut]) or "") >= 2]
        if cuts:
            cut = draw.choice(cuts)
            yield Task(text[:cut], text[cut:], whole=True)


def sums(seed: int) -> Iterator[Task]:
    """`Sums: 17 + 25 =` -> ` 42.`"""
    draw = random.Random(seed)
    while True:
        asked, answer = draw_sum(draw, held_out=True).split(" =")
        yield Task(f"Sums: {asked} =", answer)


def story_openings(seed: int) -> Iterator[str]:
    """The first two sentences of stories about names that were never seen."""
    for story in documents(seed, held_out=True, kind="story"):
        yield " ".join(re.split(r"(?<=[.!?]) ", story)[:2])


def some(tasks: Callable[[int], Iterator[Task]], seed: int, count: int) -> list[Task]:
    """The first `count` tasks of a kind."""
    return list(islice(tasks(seed), count))


def _item_ends(text: str) -> list[int]:
    return [found.end() for found in _WORD.finditer(text) if found.start() > len("List:")]
