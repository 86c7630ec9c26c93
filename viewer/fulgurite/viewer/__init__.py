"""The window onto running models: pages, films, a native window, and `show` for a notebook.

Nothing is imported before it is used.

Examples
--------
>>> from fulgurite import viewer  # doctest: +SKIP
>>> viewer.show("127.0.0.1:4747")  # the last line of a cell  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulgurite.viewer.notebook import Cell, show

__all__ = ["Cell", "show"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from fulgurite.viewer import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
