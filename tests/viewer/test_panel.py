"""The table of commands: no two want the same keys, and each does what it says."""

from __future__ import annotations

import pytest

from fulgurite.viewer.panel import Command, by_shortcut, commands, shown

CAMERAS = tuple((f"camera {index}", "A view.") for index in range(1, 7))


class Recorder:
    """A front-end that only writes down what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> object:
        return lambda *given: self.asked.append((name, *given))


def test_no_two_commands_want_the_same_keys() -> None:
    table = commands(CAMERAS)
    assert len(by_shortcut(table)) == sum(len(command.shortcut) for command in table)


def test_a_clash_names_both_commands() -> None:
    one = Command("one", "g", "One", "It does.", ("x",), lambda stage: None)
    two = Command("two", "g", "Two", "It does.", ("y", "x"), lambda stage: None)
    with pytest.raises(ValueError, match="x is wanted by both one and two"):
        by_shortcut((one, two))


def test_names_are_unique_and_every_command_explains_itself() -> None:
    table = commands(CAMERAS)
    assert len({command.name for command in table}) == len(table)
    for command in table:
        assert command.label
        assert command.shortcut
        assert command.tooltip.endswith("."), command.name


@pytest.mark.parametrize(
    ("keys", "asked"),
    [
        ("Space", ("toggle_pause",)),
        ("l", ("go_live",)),
        ("Shift+ArrowLeft", ("seek_by", -10.0)),
        ("Control+ArrowRight", ("step", 1)),
        ("3", ("show_camera", 2)),
        ("r", ("show_camera", 0)),
        ("Shift+Tab", ("next_replica", -1)),
        ("c", ("toggle_contribution",)),
        ("?", ("toggle_help",)),
        ("Escape", ("clear",)),
    ],
)
def test_keys_do_what_the_table_says(keys: str, asked: tuple[object, ...]) -> None:
    stage = Recorder()
    by_shortcut(commands(CAMERAS))[keys].do(stage)  # type: ignore[arg-type]
    assert stage.asked == [asked]


def test_every_command_asks_the_front_end_for_exactly_one_thing() -> None:
    for command in commands(CAMERAS):
        stage = Recorder()
        command.do(stage)  # type: ignore[arg-type]
        assert len(stage.asked) == 1, command.name


def test_more_cameras_than_keys_are_left_out() -> None:
    many = tuple((str(index), "A view.") for index in range(20))
    assert sum(command.name.startswith("camera_") for command in commands(many)) == 6


@pytest.mark.parametrize(
    ("keys", "text"),
    [("Shift+ArrowLeft", "Shift + ←"), ("l", "L"), ("?", "?"), ("Escape", "Esc"), ("[", "[")],
)
def test_shortcuts_are_written_as_people_read_them(keys: str, text: str) -> None:
    assert shown(keys) == text
