"""An exporter in memory that has a remote side, as far as anybody can see."""

from __future__ import annotations

from fulgurite.agent.exporter import InMemoryExporter


class Asked(InMemoryExporter):
    """One whose remote side asks for something."""

    level_asked: str | None = None
    ratio_asked: float | None = None

    def wanted_level(self) -> str | None:
        """See `Exporter.wanted_level`."""
        return self.level_asked

    def wanted_deep_ratio(self) -> float | None:
        """As of an exporter that has a remote side."""
        return self.ratio_asked
