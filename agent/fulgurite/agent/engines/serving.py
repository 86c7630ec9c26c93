"""`transformers serve`: which HTTP request a call of `generate` belongs to.

Its handlers give each request an id and pass it to a generation manager, which hands the work to a thread.
So the managers' calls are wrapped, on their classes, to note the id, and the thread is handed the
surroundings of who submits to it.
"""

from __future__ import annotations

import contextvars
import functools
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from fulgurite.agent.surroundings import asked, named

MODULE = "transformers.cli.serving.utils"
_MANAGERS = ("GenerateManager", "CBGenerateManager")


def join(module: ModuleType) -> Callable[[], None]:
    """Wrap what the server's module brings, and say how to undo it."""
    undo: list[Callable[[], None]] = []

    def put(owner: Any, name: str, around: Callable[[Any], Any]) -> None:
        plain = vars(owner).get(name)
        if callable(plain):
            setattr(owner, name, functools.wraps(plain)(around(plain)))
            undo.append(lambda: setattr(owner, name, plain))

    for name in _MANAGERS:
        manager = getattr(module, name, None)
        if manager is not None:
            put(manager, "generate_streaming", _noted)
            put(manager, "generate_non_streaming", _noted_later)
    thread = getattr(module, "InferenceThread", None)
    if thread is not None:
        for name in ("submit", "async_submit"):
            put(thread, name, _carried)

    def take_off() -> None:
        while undo:
            undo.pop()()

    return take_off


def _noted(plain: Callable[..., Any]) -> Callable[..., Any]:
    def call(manager: Any, *args: Any, **kwargs: Any) -> Any:
        with asked(named(_request_id(args, kwargs))):
            return plain(manager, *args, **kwargs)

    return call


def _noted_later(plain: Callable[..., Any]) -> Callable[..., Any]:
    async def call(manager: Any, *args: Any, **kwargs: Any) -> Any:
        with asked(named(_request_id(args, kwargs))):
            return await plain(manager, *args, **kwargs)

    return call


def _request_id(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    place = 4  # behind the model, the processor, the inputs and the generation config
    found = kwargs.get("request_id", args[place] if len(args) > place else "")
    return found if isinstance(found, str) else ""


def _carried(plain: Callable[..., Any]) -> Callable[..., Any]:
    def submit(thread: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return plain(thread, contextvars.copy_context().run, function, *args, **kwargs)

    return submit


class _Waiting(importlib.abc.MetaPathFinder):
    """Joins the server's module when it is imported."""

    def __init__(self) -> None:
        self.undo: Callable[[], None] | None = None
        self._looking = False

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> Any:
        """The module's own spec, joined behind its code."""
        if name != MODULE or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None:
            plain = spec.loader.exec_module

            def run(module: ModuleType) -> None:
                plain(module)
                self.undo = join(module)

            spec.loader.exec_module = run  # type: ignore[method-assign]
        return spec


def join_when_there() -> Callable[[], None]:
    """Join the server's module, now or when it is imported, and say how to undo it."""
    known = sys.modules.get(MODULE)
    if known is not None:
        return join(known)
    waiting = _Waiting()
    sys.meta_path.insert(0, waiting)

    def take_off() -> None:
        if waiting in sys.meta_path:
            sys.meta_path.remove(waiting)
        if waiting.undo is not None:
            waiting.undo()

    return take_off
