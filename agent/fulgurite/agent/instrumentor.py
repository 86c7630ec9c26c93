"""The OpenTelemetry way in: what ``opentelemetry-instrument CMD`` finds under the name ``fulgurite``.

The only module that imports opentelemetry-instrumentation, and nobody but its tools imports this one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import (  # type: ignore[import-not-found,unused-ignore]
    BaseInstrumentor,
)


class FulguriteInstrumentor(BaseInstrumentor):  # type: ignore[misc,unused-ignore]
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
