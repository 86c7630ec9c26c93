"""No source of chance feeds a picture: shown on the source itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fulgurite.viewer.scene
from fulgurite.viewer.shaders import source

VIEWER = Path(fulgurite.viewer.scene.__file__).parent
MODULES = sorted(VIEWER.rglob("*.py"))
CHANCE = {"random", "secrets", "uuid", "numpy.random"}
NAMES_OF_PAGES = {"browser": {"secrets"}, "notebook": {"secrets"}}  # which page it is, and who may open it
PURE = (
    "scene",
    "layout",
    "bolts",
    "colors",
    "contribution",
    "inspection",
    "glow",
    "carpet",
    "camera",
    "hud",
    "writing",
    "lettering",
)
CLOCKS = {"time", "datetime", "threading", "socket", "os"}


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def _attributes(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_the_modules_are_found() -> None:
    assert {"scene.py", "bolts.py", "drawing.py", "browser.py"} <= {path.name for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_module_of_the_viewer_draws_lots(path: Path) -> None:
    found = {name for name in _imports(path) if name in CHANCE or name.split(".")[0] in CHANCE}
    assert found <= NAMES_OF_PAGES.get(path.stem, set())
    assert not _attributes(path) & {"random", "default_rng", "urandom", "shuffle", "randint", "uniform"}


@pytest.mark.parametrize("name", PURE)
def test_what_decides_the_picture_knows_no_clock(name: str) -> None:
    assert not {module.split(".")[0] for module in _imports(VIEWER / f"{name}.py")} & CLOCKS


def test_pythons_own_hash_which_changes_from_run_to_run_shapes_no_bolt() -> None:
    for name in PURE:
        tree = ast.parse((VIEWER / f"{name}.py").read_text(encoding="utf-8"))
        calls = {
            n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        assert "hash" not in calls


def test_the_seed_of_a_bolt_moves_its_path_and_nothing_else() -> None:
    """The seed (`shape.x`) makes `still` and `alive`, which only `off` reads: how far a path swings."""
    main = source("bolts").split("//# vertex main")[1]
    assert len(re.findall(r"shape\.x", main)) == 1
    assert re.search(r"float still = shape\.x \* 97\.0, alive = still [^;]*;", main)
    uses = re.findall(r"(\w+)\([^()]*\bstill\b[^()]*\)", main)
    assert uses
    assert set(uses) == {"off"}
    assert "jags(" not in main


@pytest.mark.parametrize("name", ["heads", "halos", "plates", "walls", "carpet", "spine", "lines", "labels"])
def test_no_other_shader_uses_noise(name: str) -> None:
    assert not re.search(r"hash|noise|rand", source(name))
