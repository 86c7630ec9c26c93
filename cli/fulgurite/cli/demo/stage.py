"""How far a run has come, by what was seen of it so far (pure): it says what is new, and what is due next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at the run.

    Attributes
    ----------
    tokens : tokens stored by replica; None while the collector does not answer.
    page : whether the page is served; always False where there is none.
    """

    tokens: Mapping[str, int] | None = None
    page: bool = False


@dataclass(slots=True)
class Stage:
    """What is up by now.

    Parameters
    ----------
    replicas : names of all that belong to the run.
    has_page : whether a page belongs to it.
    """

    replicas: tuple[str, ...]
    has_page: bool
    collector_up: bool = False
    page_up: bool = False
    tokens: dict[str, int] = field(default_factory=dict)

    def see(self, seen: Seen) -> list[str]:
        """Take in one look; returns what came up since: ``collector``, ``page`` or a replica's name."""
        news = []
        if seen.tokens is not None and not self.collector_up:
            self.collector_up = True
            news.append("collector")
        for name in self.replicas:
            total = (seen.tokens or {}).get(name, 0)
            if total and name not in self.tokens:
                news.append(name)
            if total:
                self.tokens[name] = total
        if seen.page and not self.page_up:
            self.page_up = True
            news.append("page")
        return news

    @property
    def missing(self) -> tuple[str, ...]:
        """What is not up yet."""
        parts = [] if self.collector_up else ["collector"]
        parts += [name for name in self.replicas if name not in self.tokens]
        parts += [] if self.page_up or not self.has_page else ["page"]
        return tuple(parts)

    @property
    def is_up(self) -> bool:
        """Whether everything is up: every replica's first token is stored."""
        return not self.missing
