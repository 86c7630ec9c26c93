"""What the demo asks the bundled model to continue: stories that have begun, lists to close, sums."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from fulgurite.cli.demo.model.brackets import draw_list, open_brackets
from fulgurite.cli.demo.model.scenes import STORIES
from fulgurite.cli.demo.model.sums import draw_sums

_SENTENCE_END = re.compile(r"(?<=[.!?]) ")
_ITEM = re.compile(r"(?<=[(\[{ ])\w+")


def prompts(seed: int) -> Iterator[str]:
    """Prompts without end, the same for the same seed; half of their names were never seen in training.

    Parameters
    ----------
    seed : int
        Decides everything.

    Yields
    ------
    str
        A prompt without a space at its end.
    """
    draw = random.Random(seed)
    kinds: tuple[Callable[[random.Random], str], ...] = (_story, _story, _story, _list, _sum)
    while True:
        yield draw.choice(kinds)(draw)


def _story(draw: random.Random) -> str:
    sentences = _SENTENCE_END.split(STORIES.write(draw, held_out=draw.random() < 0.5))
    return " ".join(sentences[: draw.choice((1, 2, 2))])


def _list(draw: random.Random) -> str:
    """A list cut where it is deepest; one of brackets alone is no question, and another is drawn."""
    while True:
        text = draw_list(draw, held_out=draw.random() < 0.5)
        cuts = [found.end() for found in _ITEM.finditer(text) if open_brackets(text[: found.end()])]
        if cuts:
            return text[: max(cuts, key=lambda cut: len(open_brackets(text[:cut]) or ""))]


def _sum(draw: random.Random) -> str:
    text = draw_sums(draw)
    return text[: text.rindex("=") + 1]
