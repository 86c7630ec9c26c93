"""Waits for modules to be imported, and attaches behind them.

Standard library alone, and cheap: most processes that inherit PYTHONPATH never load a model.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

MODULES = ("transformers.modeling_utils", "starlette.applications")


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that matter as everybody does, and has `attach` called behind their code."""

    def __init__(self) -> None:
        self._looking = False

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        """The module's own spec, with a loader that runs `attach` when the module is there."""
        if name not in MODULES or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


class _Loader:
    """A loader with something behind it; for all else it is the one that it stands for."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then attach."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        attach(module.__name__)


def attach(name: str) -> None:
    """Attach to what the module `name` brings; a failure is one line, and the process goes on."""
    try:
        from fulgurite.agent import auto

        auto.attach(name)
    except Exception as error:
        mend = f"install fulgurite for {sys.executable}" if isinstance(error, ImportError) else str(error)
        sys.stderr.write(f"fulgurite: models of this process are not observed: {mend}\n")


def watch() -> None:
    """Attach to what is there already, and wait for the rest."""
    for name in MODULES:
        if name in sys.modules:
            attach(name)
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())


def leave() -> None:
    """Wait no longer."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Finder)]
