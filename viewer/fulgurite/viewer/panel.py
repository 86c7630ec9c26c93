"""The controls as data: one table of commands, drawn by every front-end as buttons, keys and help.

A front-end is a `Stage`: it can do what the table asks for. It looks a key up here and never tests for one
itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

CAMERAS = 6


class Stage(Protocol):
    """What a front-end must be able to do."""

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


def commands(cameras: tuple[tuple[str, str], ...] = ()) -> tuple[Command, ...]:
    """Every command. `cameras` are the presets of the scene: (label, tooltip), at most `CAMERAS`."""
    presets = tuple(_camera(index, *named) for index, named in enumerate(cameras[:CAMERAS]))
    return _TIME + presets + _REST


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

KEYS_SHOWN = {
    "Space": "Space", "ArrowLeft": "←", "ArrowRight": "→", "Escape": "Esc", "Control": "Ctrl",
    "Shift": "Shift", "Alt": "Alt", "Tab": "Tab", "Home": "Home", "End": "End",
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
