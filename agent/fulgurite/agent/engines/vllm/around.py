"""Wrapping a method of somebody else's class or object, once, and so that a failure of ours stays ours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_MARK = "__fulgurite__"


def around(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> bool:
    """Put what `make` gives for the method `name` of `owner` in its place; False where that is done already.

    Raises
    ------
    AttributeError
        Where there is no such method.
    """
    held = vars(owner).get(name) if hasattr(owner, "__dict__") else None
    original = getattr(owner, name)
    if getattr(original, _MARK, False):
        return False
    made = functools.wraps(original)(make(original))
    setattr(made, _MARK, True)
    setattr(owner, name, staticmethod(made) if isinstance(held, staticmethod) else made)
    return True
