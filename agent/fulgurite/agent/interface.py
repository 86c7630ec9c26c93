"""Stands in front of transformers' attention functions under their own names, and shows observers each call.

A function's name decides which mask a model builds for it, so the names stay. The function itself runs first
and unchanged; what it gives is handed on as it is. Nothing is wrapped until a module is observed, and
everything is as before when none is any more. The table of functions belongs to the whole process, so there
is one `Interception` in it, however many models are observed.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.compiler import is_compiling

from fulgurite.agent.shelf_looks import leave_look

_NAMES = ("module", "query", "key", "value", "attention_mask")

# the call's arguments by name (query (b, H, t, D), key and value (b, Hkv, s, D), …), and what it gave
Observer = Callable[[Mapping[str, Any], Any], None]


class Interception:
    """Which modules are observed, by whom."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._observers: weakref.WeakKeyDictionary[nn.Module, tuple[weakref.WeakMethod[Observer], ...]] = (
            weakref.WeakKeyDictionary()
        )

    def add(self, module: nn.Module, observer: Observer) -> None:
        """Call `observer`, a method whose object somebody else holds, after each attention call of
        `module`."""
        with self._lock:
            self._observers[module] = (*self._observers.get(module, ()), weakref.WeakMethod(observer))
            self._wrap()

    def discard(self, module: nn.Module, observer: Observer) -> None:
        """No longer call `observer`; the last one takes the wrappers with it."""
        with self._lock:
            left = tuple(o for o in self._observers.get(module, ()) if o() not in (None, observer))
            if left:
                self._observers[module] = left
            else:
                self._observers.pop(module, None)
            if not self._observers:
                self._unwrap()

    def observers(self, module: nn.Module | None) -> list[Observer]:
        """Who observes `module`."""
        if module is None:
            return []
        return [found for o in self._observers.get(module, ()) if (found := o()) is not None]

    def _wrap(self) -> None:
        table = _table()
        for name in list(table) if table is not None else ():
            if name != "eager" and "paged" not in name and not isinstance(table[name], _Wrapper):
                was_local = name in table._local_mapping
                table[name] = _Wrapper(self, table[name], was_local=was_local)

    def _unwrap(self) -> None:
        """Take our wrappers off; where somebody stands in front of one, it stays and lets everything
        through."""
        table = _table()
        for name in list(table) if table is not None else ():
            while isinstance(wrapper := table._local_mapping.get(name), _Wrapper):
                if wrapper.was_local:
                    table[name] = wrapper.original
                else:
                    del table[name]


class _Wrapper:
    """One attention function with observers behind it."""

    def __init__(self, interception: Interception, original: Any, *, was_local: bool) -> None:
        self.interception = interception
        self.original = original
        self.was_local = was_local
        functools.update_wrapper(self, original, updated=())

    def __call__(self, *args: Any, **options: Any) -> Any:
        output = self.original(*args, **options)
        if is_compiling():
            leave_look(args, options, output)
            return output
        observers = self.interception.observers(args[0] if args else options.get("module"))
        if observers and len(args) <= len(_NAMES):
            call = {**dict(zip(_NAMES, args, strict=False)), **options}
            for observer in observers:
                observer(call, output)
        return output


def _table() -> Any:
    """The table of attention functions, None where this version of transformers has none that can be
    overridden."""
    try:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as TABLE
    except ImportError:
        return None
    return TABLE if hasattr(TABLE, "_local_mapping") else None


INTERCEPTION = Interception()
