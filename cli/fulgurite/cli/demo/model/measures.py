"""How well a completer does what the bundled model is for, as shares of tasks on unseen names and strings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fulgurite.cli.demo.model import tasks
from fulgurite.cli.demo.model.completers import Completer
from fulgurite.cli.demo.model.scenes import STORIES
from fulgurite.cli.demo.model.tasks import Task

BOUND = 0.9
"""What induction, brackets and grammar are to reach."""
INDUCTION: dict[str, Callable[[int], Iterator[Task]]] = {
    "induction: the third name of three": tasks.third_names,
    "induction: a name said again": tasks.known_names,
    "induction: echo of a random string": tasks.echoes,
    "induction: repeated pattern": tasks.patterns,
}
BRACKETS: dict[str, Callable[[int], Iterator[Task]]] = {"brackets: the list is closed": tasks.lists}
SUMS: dict[str, Callable[[int], Iterator[Task]]] = {"sums (no bound)": tasks.sums}
GRAMMAR = "grammar: the story is read to its end"
LONGEST_ANSWER, LONGEST_STORY = 80, 220


@dataclass(frozen=True, slots=True)
class Share:
    """How many of the tasks of one kind were solved."""

    name: str
    solved: int
    asked: int

    @property
    def value(self) -> float:
        """Solved of asked, 0 to 1."""
        return self.solved / self.asked


class Examiner:
    """Asks a completer, through a tokenizer.

    Parameters
    ----------
    completer : Completer
        Who is asked.
    tokenizer
        Between text and tokens.
    seed : int
        Which tasks.
    """

    def __init__(self, completer: Completer, tokenizer: Any, *, seed: int) -> None:
        self._completer = completer
        self._tokenizer = tokenizer
        self._seed = seed

    def shares(self, kinds: dict[str, Callable[[int], Iterator[Task]]], *, count: int) -> list[Share]:
        """`count` tasks of each of these kinds, the most probable token taken each time."""
        return [self._share(name, tasks.some(kind, self._seed, count)) for name, kind in kinds.items()]

    def grammar(self, *, count: int) -> Share:
        """Stories continued by sampling, read by the grammar from their first word to their last."""
        openings = list(islice(tasks.story_openings(self._seed), count))
        told = self._continue(openings, new_tokens=LONGEST_STORY, seed=self._seed)
        read = [STORIES.read(opening + rest).complete for opening, rest in zip(openings, told, strict=True)]
        return Share(GRAMMAR, sum(read), count)

    def _share(self, name: str, asked: list[Task]) -> Share:
        answers = self._continue([task.prompt for task in asked], new_tokens=LONGEST_ANSWER)
        solved = [task.solved_by(answer) for task, answer in zip(asked, answers, strict=True)]
        return Share(name, sum(solved), len(asked))

    def _continue(self, prompts: list[str], *, new_tokens: int, seed: int | None = None) -> list[str]:
        ids = self._tokenizer(prompts)["input_ids"]
        answers = self._completer.complete(ids, new_tokens=new_tokens, seed=seed)
        return [self._tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
