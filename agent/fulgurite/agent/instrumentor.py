"""The OpenTelemetry way in: what ``opentelemetry-instrument CMD`` finds under the name ``fulgurite``.

Made when it is asked for: opentelemetry-instrumentation is there where its tools are, and only there.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Collection
from typing import Any


@functools.cache
def _made() -> type[Any]:
    module = importlib.import_module("opentelemetry.instrumentation.instrumentor")
    BaseInstrumentor: Any = module.BaseInstrumentor

    class FulguriteInstrumentor(BaseInstrumentor):  # type: ignore[misc]
        """Observes the models of transformers that are loaded from now on.

        Settings are the ``FULGURITE_*`` and ``OTEL_*`` variables.

        Examples
        --------
        >>> FulguriteInstrumentor().instrument()  # doctest: +SKIP
        """

        def instrumentation_dependencies(self) -> Collection[str]:
            """What has to be installed for it to do something."""
            return ("transformers >= 5",)

        def _instrument(self, **_: Any) -> None:
            from fulgurite.agent.autostart import fulgurite_autostart

            fulgurite_autostart.watch()

        def _uninstrument(self, **_: Any) -> None:
            from fulgurite.agent import auto
            from fulgurite.agent.autostart import fulgurite_autostart

            fulgurite_autostart.leave()
            auto.detach()

    return FulguriteInstrumentor


def __getattr__(name: str) -> Any:
    if name == "FulguriteInstrumentor":
        return _made()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
