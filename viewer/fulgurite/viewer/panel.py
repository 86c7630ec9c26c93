"""The controls as data: one table of commands, drawn by every front-end as buttons, keys and help.

A front-end is a `Stage`: it can do what the table asks for. It looks a key up here and never tests for one
itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fulgurite.viewer.session import Session

CAMERAS = 6


class Stage(Protocol):
    """What a front-end must be able to do."""

    def ask(self, action: Callable[[Session], None]) -> None:
        """Have this done to the session, and its result drawn."""

    def toggle_pause(self) -> None:
        """Stand still, or go on from there."""

    def go_live(self) -> None:
        """Back to the present."""

    def seek_by(self, seconds: float) -> None:
        """Move through the past."""

    def seek_to_start(self) -> None:
        """To the oldest token that is kept."""

    def seek_to_end(self) -> None:
        """To the newest token that is kept."""

    def step(self, tokens: int) -> None:
        """To the next or previous token."""

    def faster(self, factor: float) -> None:
        """Multiply the speed at which the past is played."""

    def show_camera(self, index: int) -> None:
        """One of the camera presets, from 0."""

    def next_replica(self, by: int) -> None:
        """Show the next replica alone."""

    def show_all_replicas(self) -> None:
        """Every replica, side by side."""

    def toggle_hud(self) -> None:
        """Titles, figures and legends in the picture."""

    def toggle_tokens(self) -> None:
        """The token strip."""

    def toggle_contribution(self) -> None:
        """Hue: the signed push on the emitted token, or the request."""

    def toggle_help(self) -> None:
        """The page that says what one is looking at."""

    def save_picture(self) -> None:
        """Save what is on screen."""

    def toggle_fullscreen(self) -> None:
        """The whole screen."""

    def clear(self) -> None:
        """Close what is open."""


@dataclass(frozen=True, slots=True)
class Command:
    """One thing that a person can ask for.

    Attributes
    ----------
    name : a word that front-ends and links refer to.
    group : heading in the help.
    label : on a button or a menu.
    tooltip : one sentence.
    shortcut : keys as the browser names them (``Space``, ``Shift+ArrowLeft``, ``1``), first the one that is
        shown.
    do : what it does to the front-end.
    """

    name: str
    group: str
    label: str
    tooltip: str
    shortcut: tuple[str, ...]
    do: Callable[[Stage], None]


def _camera(index: int, label: str, tooltip: str) -> Command:
    return Command(
        f"camera_{index + 1}",
        "Camera",
        label,
        tooltip,
        (str(index + 1),),
        lambda stage: stage.show_camera(index),
    )


def _asked(
    name: str, group: str, label: str, tooltip: str, keys: tuple[str, ...], action: Callable[[Session], None]
) -> Command:
    """A command that any front-end carries out alike, on the session."""
    return Command(name, group, label, tooltip, keys, lambda stage: stage.ask(action))


def commands(cameras: tuple[tuple[str, str], ...] = ()) -> tuple[Command, ...]:
    """Every command. `cameras` are the presets of the scene: (label, tooltip), at most `CAMERAS`."""
    presets = tuple(_camera(index, *named) for index, named in enumerate(cameras[:CAMERAS]))
    return _TIME + presets + _REST + _SELECTION


_TIME = (
    Command("pause", "Time", "Pause", "Stand still exactly here; again: go on from here.", ("Space",),
            lambda stage: stage.toggle_pause()),
    Command("live", "Time", "Live", "Back to the present, and follow it.", ("l", "Alt+ArrowRight"),
            lambda stage: stage.go_live()),
    Command("back", "Time", "1 s back", "One second into the past.", ("ArrowLeft",),
            lambda stage: stage.seek_by(-1.0)),
    Command("forward", "Time", "1 s forward", "One second towards the present.", ("ArrowRight",),
            lambda stage: stage.seek_by(1.0)),
    Command("back_10", "Time", "10 s back", "Ten seconds into the past.", ("Shift+ArrowLeft",),
            lambda stage: stage.seek_by(-10.0)),
    Command("forward_10", "Time", "10 s forward", "Ten seconds towards the present.", ("Shift+ArrowRight",),
            lambda stage: stage.seek_by(10.0)),
    Command("step_back", "Time", "Token back", "To the token before.", ("Control+ArrowLeft", ","),
            lambda stage: stage.step(-1)),
    Command("step", "Time", "Next token", "To the next token.", ("Control+ArrowRight", "."),
            lambda stage: stage.step(1)),
    Command("start", "Time", "Oldest", "To the oldest token that is kept.", ("Home", "Alt+ArrowLeft"),
            lambda stage: stage.seek_to_start()),
    Command("end", "Time", "Newest", "To the newest token that is kept, without following.", ("End",),
            lambda stage: stage.seek_to_end()),
    Command("slower", "Time", "Slower", "Play the past at half the speed.", ("[",),
            lambda stage: stage.faster(0.5)),
    Command("faster", "Time", "Faster", "Play the past at twice the speed.", ("]",),
            lambda stage: stage.faster(2.0)),
)  # fmt: skip

_REST = (
    Command("reset", "Camera", "Reset", "The first camera again.", ("r",),
            lambda stage: stage.show_camera(0)),
    Command("next_replica", "Replicas", "Next replica", "Show the next replica alone.", ("Tab",),
            lambda stage: stage.next_replica(1)),
    Command("previous_replica", "Replicas", "Previous replica", "Show the one before alone.", ("Shift+Tab",),
            lambda stage: stage.next_replica(-1)),
    Command("all_replicas", "Replicas", "All replicas", "Every replica, side by side.", ("a",),
            lambda stage: stage.show_all_replicas()),
    Command("hud", "View", "Figures", "Show or hide titles, figures and legends in the picture.", ("h",),
            lambda stage: stage.toggle_hud()),
    Command("tokens", "View", "Tokens", "Show or hide the token strip.", ("t",),
            lambda stage: stage.toggle_tokens()),
    Command("contribution", "View", "Contribution",
            "Colour every light by its signed push on the emitted token; again: bolts by request.", ("c",),
            lambda stage: stage.toggle_contribution()),
    Command("picture", "View", "Save picture", "Save what is on screen as a PNG file.", ("s",),
            lambda stage: stage.save_picture()),
    Command("fullscreen", "View", "Full screen", "Use the whole screen; again: leave it.", ("F11", "z"),
            lambda stage: stage.toggle_fullscreen()),
    Command("help", "View", "What am I looking at?", "What the lights mean, and every key.", ("?",),
            lambda stage: stage.toggle_help()),
    Command("clear", "View", "Close", "Close what is open.", ("Escape",),
            lambda stage: stage.clear()),
)  # fmt: skip

_SELECTION = (
    _asked("next_slow", "Time", "Next slow token", "To the next token whose step took far longer than most.",
           ("w",), lambda session: session.next_token("slow")),
    _asked("next_surprising", "Time", "Next surprising token",
           "To the next token that the model itself thought improbable.", ("p",),
           lambda session: session.next_token("surprising")),
    _asked("next_uncertain", "Time", "Next uncertain token",
           "To the next token at which the model's entropy was high.", ("e",),
           lambda session: session.next_token("uncertain")),
    _asked("loop", "Time", "Loop the request",
           "Play the chosen token's request again and again; again: go on.", ("o",),
           lambda session: session.toggle_loop()),
    _asked("turn_left", "Camera", "Turn left", "Turn the model to the left.", ("Control+Shift+ArrowLeft",),
           lambda session: session.orbit(-40.0, 0.0)),
    _asked("turn_right", "Camera", "Turn right", "Turn the model to the right.",
           ("Control+Shift+ArrowRight",), lambda session: session.orbit(40.0, 0.0)),
    _asked("turn_up", "Camera", "Tilt up", "Look from further above.", ("Control+Shift+ArrowUp",),
           lambda session: session.orbit(0.0, -25.0)),
    _asked("turn_down", "Camera", "Tilt down", "Look from further below.", ("Control+Shift+ArrowDown",),
           lambda session: session.orbit(0.0, 25.0)),
    _asked("nearer", "Camera", "Nearer", "Come nearer.", ("+", "="), lambda session: session.zoom(1.2)),
    _asked("farther", "Camera", "Farther", "Go further away.", ("-",), lambda session: session.zoom(1 / 1.2)),
    _asked("follow", "Camera", "Follow", "Let the camera travel with the lightning.", ("f",),
           lambda session: session.toggle_follow()),
    _asked("most_active", "Selection", "Most active head", "The last token's most active head: stand there.",
           ("m",), lambda session: session.choose_most_active()),
    _asked("least_probable", "Selection", "Least probable token",
           "Choose the least probable token that is kept.", ("q",),
           lambda session: session.choose_least_probable()),
    _asked("layer_up", "Selection", "Next layer", "The same node one layer on.", ("ArrowUp",),
           lambda session: session.move_choice(1, 0)),
    _asked("layer_down", "Selection", "Layer before", "The same node one layer back.", ("ArrowDown",),
           lambda session: session.move_choice(-1, 0)),
    _asked("head_next", "Selection", "Next head", "The next head of the layer.", ("k",),
           lambda session: session.move_choice(0, 1)),
    _asked("head_previous", "Selection", "Head before", "The head before.", ("j",),
           lambda session: session.move_choice(0, -1)),
    _asked("isolate", "Selection", "Isolate", "Only the chosen request's light; again: all.", ("i",),
           lambda session: session.toggle_isolate()),
    _asked("layer_only", "Selection", "Only this layer", "Light of the chosen layer alone.", ("x",),
           lambda session: session.toggle_layer()),
    _asked("hide_layer", "Selection", "Hide this layer", "All light but the chosen layer's.", ("Shift+X",),
           lambda session: session.toggle_layer(is_hidden=True)),
    _asked("panels", "View", "Panels", "Show or hide the panels beside the picture.", ("g",),
           lambda session: session.toggle_panels()),
    _asked("palette", "View", "Palette", "The next palette: two are safe for colour-blind eyes.", ("v",),
           lambda session: session.next_palette()),
    _asked("theme", "View", "Light theme", "Dark, or light for print.", ("d",),
           lambda session: session.toggle_theme()),
    _asked("motion", "View", "Less motion", "No flicker, no travelling: bolts stand still.", ("n",),
           lambda session: session.toggle_motion()),
)  # fmt: skip

KEYS_SHOWN = {
    "Space": "Space", "ArrowLeft": "←", "ArrowRight": "→", "ArrowUp": "↑", "ArrowDown": "↓",
    "Escape": "Esc", "Control": "Ctrl", "Shift": "Shift", "Alt": "Alt", "Tab": "Tab",
    "Home": "Home", "End": "End",
}  # fmt: skip


def shown(shortcut: str) -> str:
    """A shortcut as people read it: ``Shift+ArrowLeft`` is ``Shift + ←``."""
    parts = shortcut.split("+") if len(shortcut) > 1 else [shortcut]
    return " + ".join(KEYS_SHOWN.get(part, part.upper() if len(part) == 1 else part) for part in parts)


def by_shortcut(table: tuple[Command, ...]) -> dict[str, Command]:
    """The command of each shortcut.

    Raises
    ------
    ValueError
        Where two commands want the same keys.
    """
    found: dict[str, Command] = {}
    for command in table:
        for keys in command.shortcut:
            if keys in found:
                raise ValueError(f"{keys} is wanted by both {found[keys].name} and {command.name}")
            found[keys] = command
    return found
