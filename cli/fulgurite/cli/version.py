"""The version of this program."""

from __future__ import annotations


def version() -> str:
    """Version of the installed distribution; ``unknown`` for sources that were never installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as of

    try:
        return of("fulgurite")
    except PackageNotFoundError:
        return "unknown (not installed)"
