"""For all tests."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

with suppress(ImportError):  # the environment of the serving engines has no hypothesis
    settings = import_module("hypothesis").settings
    # How long an example takes says something of the machine; in CI hypothesis says so by itself.
    settings.register_profile("no deadline", parent=settings.default, deadline=None)
    settings.load_profile("no deadline")
