"""The wheel: what people install, and not the sources that happen to lie around."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PORTIONS = ("agent", "cli", "collector", "v1", "viewer", "wire")

pytestmark = pytest.mark.skipif(
    not (REPOSITORY / "pyproject.toml").exists(), reason="there is no source tree here to build from"
)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed by itself into a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*pip, "--target", str(target), str(wheel)], capture_output=True, text=True, timeout=240, check=False
    )
    if "No module named pip" in done.stderr:
        pytest.skip("pip is not installed in this environment")
    assert done.returncode == 0, done.stderr
    return target


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the installed wheel before everything else, far from the sources."""
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        capture_output=True,
        text=True,
        cwd=installed,
        env={**os.environ, "PYTHONPATH": str(installed)},
        timeout=120,
        check=False,
    )


def sources(*suffixes: str) -> set[str]:
    """What the source tree holds under those suffixes, by its path in the wheel."""
    return {
        str(path.relative_to(REPOSITORY / part))
        for part in ("proto", "agent", "collector", "viewer", "cli")
        for suffix in suffixes
        for path in (REPOSITORY / part / "fulgurite").rglob(f"*{suffix}")
    }


def test_the_wheel_holds_every_file_of_the_sources(wheel: Path) -> None:
    wanted = sources(
        ".py", ".pyi", "py.typed", ".glsl", ".vert", ".frag", ".safetensors", ".json", ".js", ".css"
    )
    assert wanted
    assert wanted <= names(wheel)


def test_the_wheel_holds_the_model_and_the_shaders(wheel: Path) -> None:
    held = names(wheel)
    assert any(name.endswith(".safetensors") and "/demo/model/" in name for name in held)
    assert any(name.startswith("fulgurite/viewer/") and name.endswith(".glsl") for name in held)


def test_the_bundled_model_is_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        weights = [item for item in archive.infolist() if item.filename.endswith(".safetensors")]
    assert 0 < sum(item.file_size for item in weights) <= 8_000_000


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    top = {name.split("/")[0] for name in names(wheel)}
    assert len(top) == 2
    assert "fulgurite" in top
    assert not [name for name in names(wheel) if "__pycache__" in name or name == "fulgurite/__init__.py"]


@pytest.mark.parametrize("portion", PORTIONS)
def test_every_portion_is_imported_from_the_wheel(portion: str, installed: Path) -> None:
    program = f"import fulgurite.{portion} as part; print(part.__file__ or list(part.__path__)[0])"
    done = run(installed, "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))


def test_the_command_of_the_wheel_runs(installed: Path, wheel: Path) -> None:
    script = installed / "bin" / "fulgurite"
    done = run(installed, str(script), "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"fulgurite {wheel.name.split('-')[1]}"
