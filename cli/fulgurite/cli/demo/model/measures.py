"""How well a completer does what the bundled model is for, as shares of tasks on unseen names and strings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fulgurite.cli.demo.model import tasks
from fulgurite.cli.demo.model.completers import Completer
from fulgurite.cli.demo.model.grammar import Keeps
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
BRACKETS: dict[str, Callable[[int], Iterator[Task]]] = {"brackets: the list is closed, sampled": tasks.lists}
GREEDY_BRACKETS: dict[str, Callable[[int], Iterator[Task]]] = {
    "brackets: the list is closed, most probable tokens (no bound)": tasks.lists
}
SUMS: dict[str, Callable[[int], Iterator[Task]]] = {"sums (no bound)": tasks.sums}
GRAMMAR: dict[Keeps, str] = {
    "nothing": "grammar: every sentence of the story can be read, in its order",
    "names": "grammar, and every name is kept",
    "everything": "grammar, and every name, place, thing and pronoun is kept (no bound)",
}
LONGEST_ANSWER, LONGEST_STORY = 120, 220


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

    def shares(
        self, kinds: dict[str, Callable[[int], Iterator[Task]]], *, count: int, sampled: bool = False
    ) -> list[Share]:
        """`count` tasks of each of these kinds.

        Parameters
        ----------
        kinds : dict of str to callable
            Names and where their tasks come from.
        count : int
            Tasks of each.
        sampled : bool
            Sample, as the demo does; without it the most probable token is taken each time. Where what comes
            next is free (the items of a list of random strings) the most probable token is no typical one.
        """
        return [
            self._share(name, tasks.some(kind, self._seed, count), sampled=sampled)
            for name, kind in kinds.items()
        ]

    def grammar(self, *, count: int) -> list[Share]:
        """Stories continued by sampling and read from their first word to their last, by each of GRAMMAR."""
        openings = list(islice(tasks.story_openings(self._seed), count))
        told = self._continue(openings, new_tokens=LONGEST_STORY, seed=self._seed)
        stories = [opening + rest for opening, rest in zip(openings, told, strict=True)]
        return [
            Share(name, sum(STORIES.read(story, keeps=keeps).complete for story in stories), count)
            for keeps, name in GRAMMAR.items()
        ]

    def _share(self, name: str, asked: list[Task], *, sampled: bool) -> Share:
        seed = self._seed if sampled else None
        answers = self._continue([task.prompt for task in asked], new_tokens=LONGEST_ANSWER, seed=seed)
        solved = [task.solved_by(answer) for task, answer in zip(asked, answers, strict=True)]
        return Share(name, sum(solved), len(asked))

    def _continue(self, prompts: list[str], *, new_tokens: int, seed: int | None = None) -> list[str]:
        ids = self._tokenizer(prompts)["input_ids"]
        answers = self._completer.complete(ids, new_tokens=new_tokens, seed=seed)
        return [self._tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
