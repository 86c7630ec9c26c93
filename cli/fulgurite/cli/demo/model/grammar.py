"""A grammar with memory: the same rules write a text and read one.

A rule is a list of alternatives, each a string in which `<rule>` stands for another rule and `$slot` for
something that keeps its value in the whole text: `$hero` is one name from beginning to end. So a text is only
read as valid where its slots agree with themselves. `@she`, `@She`, `@her`, `@him` are the pronouns of the
hero. There is no left recursion.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fulgurite.cli.demo.model.names import begins_name, draw_name, is_name

Binding = tuple[tuple[str, str], ...]
State = tuple[int, Binding]
Keeps = Literal["everything", "names", "nothing"]

PRONOUNS = {
    "@she": ("she", "he"),
    "@She": ("She", "He"),
    "@her": ("her", "his"),
    "@him": ("her", "him"),
}
_PART = re.compile(r"<(\w+)>|\$(\w+)|(@\w+)")


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of an alternative: `kind` is `text`, `rule`, `slot` or `pronoun`."""

    kind: str
    value: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of reading a text.

    Attributes
    ----------
    complete : bool
        The text is one that the grammar can write.
    open : bool
        The text is the beginning of one that the grammar can write.
    reached : int
        Where reading got stuck, in characters.
    """

    complete: bool
    open: bool
    reached: int


class Grammar:
    """Rules, and the closed lists from which slots other than names take their values.

    Parameters
    ----------
    rules : mapping of str to sequence of str
        The alternatives of each rule; the rule `story` is where a text begins.
    values : mapping of str to sequence of str
        The values of each closed slot. A slot that is not named here is a name built from syllables.
    """

    def __init__(self, rules: Mapping[str, Sequence[str]], values: Mapping[str, Sequence[str]]) -> None:
        self.values = {slot: tuple(sorted(listed)) for slot, listed in values.items()}
        self.rules = {name: tuple(_parts(text) for text in texts) for name, texts in rules.items()}

    def write(self, draw: random.Random, *, rule: str = "story", held_out: bool = False) -> str:
        """A text by `rule`, its names from the training side or the held-out side."""
        return _Writer(self, draw, held_out).write(rule)

    def read(self, text: str, *, rule: str = "story", keeps: Keeps = "everything") -> Reading:
        """Whether `text` is one that `rule` can write, or the beginning of one.

        Parameters
        ----------
        text : str
            What is read.
        rule : str
            What it is read as.
        keeps : ``everything``, ``names`` or ``nothing``
            Which slots must keep their value from beginning to end: all of them and the pronouns; the names;
            or none, so that only the sentences and their order are judged.
        """
        return _Reader(self, text, keeps).read(rule)


class _Writer:
    """Expands rules at random; knows what the slots were given."""

    def __init__(self, grammar: Grammar, draw: random.Random, held_out: bool) -> None:
        self._grammar = grammar
        self._draw = draw
        self._held_out = held_out
        self._bound: dict[str, str] = {}

    def write(self, rule: str) -> str:
        alternative = self._draw.choice(self._grammar.rules[rule])
        return "".join(self._part(part) for part in alternative)

    def _part(self, part: Part) -> str:
        if part.kind == "text":
            return part.value
        if part.kind == "rule":
            return self.write(part.value)
        if part.kind == "pronoun":
            return PRONOUNS[part.value][int(self._bind("gender", lambda: self._draw.choice("01")))]
        return self._bind(part.value, lambda: self._value(part.value))

    def _bind(self, slot: str, value: Callable[[], str]) -> str:
        if slot not in self._bound:
            self._bound[slot] = value()
        return self._bound[slot]

    def _value(self, slot: str) -> str:
        if slot in self._grammar.values:
            return self._draw.choice(self._grammar.values[slot])
        while True:
            name = draw_name(self._draw, held_out=self._held_out)
            if name not in self._bound.values():
                return name


class _Reader:
    """Follows every alternative that fits; a state is a position and what the slots hold by then."""

    def __init__(self, grammar: Grammar, text: str, keeps: Keeps) -> None:
        self._grammar = grammar
        self._text = text
        self._keeps = keeps
        self._known: dict[tuple[str, int, Binding], frozenset[State]] = {}
        self._reached = 0
        self._open = False

    def read(self, rule: str) -> Reading:
        ends = self._rule(rule, (0, ()))
        complete = any(at == len(self._text) for at, _ in ends)
        return Reading(complete, complete or self._open, self._reached)

    def _rule(self, rule: str, state: State) -> frozenset[State]:
        key = (rule, *state)
        if key not in self._known:
            ends = (self._alternative(parts, state) for parts in self._grammar.rules[rule])
            self._known[key] = frozenset().union(*ends)
        return self._known[key]

    def _alternative(self, parts: tuple[Part, ...], state: State) -> frozenset[State]:
        states = frozenset((state,))
        for part in parts:
            states = frozenset(end for one in states for end in self._part(part, one))
        return states

    def _part(self, part: Part, state: State) -> frozenset[State]:
        if part.kind == "rule":
            return self._rule(part.value, state)
        if part.kind == "text":
            return frozenset(self._word(part.value, state))
        if part.kind == "pronoun":
            return frozenset(self._pronoun(part.value, state))
        return frozenset(self._slot(part.value, state))

    def _word(self, word: str, state: State) -> Iterator[State]:
        at, bound = state
        if self._text.startswith(word, at):
            self._reached = max(self._reached, at + len(word))
            yield at + len(word), bound
        elif word.startswith(self._text[at:]):
            self._open = True
            self._reached = len(self._text)

    def _pronoun(self, sign: str, state: State) -> Iterator[State]:
        known = dict(state[1]).get("gender")
        for gender in "01" if known is None else known:
            for at, bound in self._word(PRONOUNS[sign][int(gender)], state):
                yield at, self._with(bound, "gender", gender)

    def _slot(self, slot: str, state: State) -> Iterator[State]:
        known = dict(state[1]).get(slot)
        for value in self._candidates(slot, state) if known is None else (known,):
            for at, bound in self._word(value, state):
                yield at, self._with(bound, slot, value)

    def _candidates(self, slot: str, state: State) -> Iterator[str]:
        at, bound = state
        if slot in self._grammar.values:
            yield from self._grammar.values[slot]
            return
        letters = re.compile(r"[A-Za-z]*").match(self._text, at)
        name = letters.group() if letters else ""
        if at + len(name) == len(self._text) and begins_name(name):
            self._open = True
            self._reached = len(self._text)
        if is_name(name) and name not in dict(bound).values():
            yield name

    def _with(self, bound: Binding, slot: str, value: str) -> Binding:
        is_name = slot != "gender" and slot not in self._grammar.values
        if self._keeps == "nothing" or (self._keeps == "names" and not is_name):
            return bound
        return tuple(sorted({**dict(bound), slot: value}.items()))


def _parts(text: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    at = 0
    for found in _PART.finditer(text):
        if found.start() > at:
            parts.append(Part("text", text[at : found.start()]))
        rule, slot, sign = found.groups()
        parts.append(Part("rule", rule) if rule else Part("slot", slot) if slot else Part("pronoun", sign))
        at = found.end()
    if at < len(text):
        parts.append(Part("text", text[at:]))
    return tuple(parts)
