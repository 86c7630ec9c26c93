"""What the tests import is what was installed: sources that an editable installation links to, or a wheel."""

from __future__ import annotations

import json
import sys
import sysconfig
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PORTIONS = ("agent", "cli", "collector", "v1", "viewer", "wire")
WHEEL_ENVIRONMENT = ".venv-wheel"


def is_editable() -> bool:
    """Whether the installed distribution says that it is a link to sources."""
    record = json.loads(distribution("fulgurite").read_text("direct_url.json") or "{}")
    return bool(record.get("dir_info", {}).get("editable", False))


def test_the_environment_of_the_wheel_holds_a_wheel() -> None:
    if Path(sys.prefix).name != WHEEL_ENVIRONMENT:
        pytest.skip(f"this is not {WHEEL_ENVIRONMENT}: `make test-wheel` runs this test there")
    assert not is_editable()


@pytest.mark.parametrize("portion", PORTIONS)
def test_a_portion_is_imported_from_where_the_distribution_was_installed(portion: str) -> None:
    module = import_module(f"fulgurite.{portion}")
    home = REPOSITORY if is_editable() else Path(sysconfig.get_path("purelib"))
    found = [Path(path).resolve() for path in module.__path__]
    assert len(found) == 1
    assert found[0].is_relative_to(home.resolve())
    assert is_editable() or not found[0].is_relative_to(REPOSITORY / "agent")


def test_the_namespace_has_no_second_source() -> None:
    namespace = import_module("fulgurite")
    homes = {
        Path(path).resolve().is_relative_to(Path(sysconfig.get_path("purelib")).resolve())
        for path in namespace.__path__
    }
    assert homes == {not is_editable()}
