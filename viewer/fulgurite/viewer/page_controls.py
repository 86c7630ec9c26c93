"""What a person can ask of the page beyond `panel`: commands that concern one person's own view.

They are done in the page itself, so they are data alone: no front-end here carries them out.
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
    Offer("next_slow", "Time", "Next slow token",
          "To the next token whose step took far longer than most.", ("w",)),
    Offer("next_surprising", "Time", "Next surprising token",
          "To the next token that the model itself thought improbable.", ("p",)),
    Offer("next_uncertain", "Time", "Next uncertain token",
          "To the next token at which the model's entropy was high.", ("e",)),
    Offer("loop", "Time", "Loop the request",
          "Play the chosen token's request again and again; again: go on.", ("o",)),
    Offer("follow", "Camera", "Follow", "Let the camera travel with the lightning.", ("f",)),
    Offer("turn_left", "Camera", "Turn left", "Turn the model to the left.", ("Control+Shift+ArrowLeft",)),
    Offer("turn_right", "Camera", "Turn right", "Turn the model to the right.", ("Control+Shift+ArrowRight",)),
    Offer("turn_up", "Camera", "Tilt up", "Look from further above.", ("Control+Shift+ArrowUp",)),
    Offer("turn_down", "Camera", "Tilt down", "Look from further below.", ("Control+Shift+ArrowDown",)),
    Offer("nearer", "Camera", "Nearer", "Come nearer.", ("+", "=")),
    Offer("farther", "Camera", "Farther", "Go further away.", ("-",)),
    Offer("most_active", "Selection", "Most active head", "Choose the most active head of the token.", ("m",)),
    Offer("least_probable", "Selection", "Least probable token",
          "Choose the least probable token that is kept.", ("q",)),
    Offer("layer_up", "Selection", "Next layer", "The same node one layer on.", ("ArrowUp",)),
    Offer("layer_down", "Selection", "Layer before", "The same node one layer back.", ("ArrowDown",)),
    Offer("head_next", "Selection", "Next head", "The next head of the layer.", ("k",)),
    Offer("head_previous", "Selection", "Head before", "The head before.", ("j",)),
    Offer("search", "Selection", "Search", "Find a layer, head, token, request or trace.", ("/", "Control+f")),
    Offer("isolate", "Selection", "Isolate", "Only the chosen request's light; again: all.", ("i",)),
    Offer("layer_only", "Selection", "Only this layer", "Light of the chosen layer alone.", ("x",)),
    Offer("panels", "View", "Panels", "Show or hide the panels beside the picture.", ("g",)),
    Offer("palette", "View", "Palette", "The next palette: two are safe for colour-blind eyes.", ("v",)),
    Offer("theme", "View", "Light theme", "Dark, or light for print.", ("d",)),
    Offer("motion", "View", "Less motion", "No flicker, no travelling: bolts stand still.", ("n",)),
    Offer("link", "View", "Copy link", "A link that restores this view.", ("y",)),
)  # fmt: skip


def offers(cameras: tuple[tuple[str, str], ...]) -> list[Offer]:
    """Every command of the page: those that all front-ends share come first, and have first choice of keys."""
    shared = [Offer(c.name, c.group, c.label, c.tooltip, c.shortcut) for c in panel.commands(cameras)]
    names = {offer.name for offer in shared}
    taken = {keys for offer in shared for keys in offer.shortcut}
    own = [
        replace(offer, shortcut=tuple(keys for keys in offer.shortcut if keys not in taken))
        for offer in PAGE_ONLY
        if offer.name not in names
    ]
    return shared + own
