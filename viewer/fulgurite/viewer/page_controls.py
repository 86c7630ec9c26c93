"""The commands of the page as data: those of `panel`, which every front-end has, and two of its own.

What they do is done in the page, for one person: the functions of `panel` stay here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fulgurite.viewer import panel


@dataclass(frozen=True, slots=True)
class Offer:
    """A command as a page is told of it: see `panel.Command`."""

    name: str
    group: str
    label: str
    tooltip: str
    shortcut: tuple[str, ...]


PAGE_ONLY = (
    Offer(
        "search", "Selection", "Search", "Find a layer, head, token, request or trace.", ("/", "Control+f")
    ),
    Offer("link", "View", "Copy link", "A link that restores this view.", ("y",)),
)


def offers(cameras: tuple[tuple[str, str], ...]) -> list[Offer]:
    """Every command of the page: what all front-ends share comes first, and has first choice of keys."""
    shared = [Offer(c.name, c.group, c.label, c.tooltip, c.shortcut) for c in panel.commands(cameras)]
    names = {offer.name for offer in shared}
    taken = {keys for offer in shared for keys in offer.shortcut}
    own = [
        replace(offer, shortcut=tuple(keys for keys in offer.shortcut if keys not in taken))
        for offer in PAGE_ONLY
        if offer.name not in names
    ]
    return shared + own
