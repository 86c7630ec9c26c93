"""An exporter in memory that reads what it was given when it is asked to, as a sending thread does."""

from __future__ import annotations

from fulgurite.agent.exporter import InMemoryExporter
from fulgurite.wire.frame import FrameBlock


class Unread(InMemoryExporter):
    """One that keeps blocks as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[FrameBlock] = []

    def export(self, block: FrameBlock) -> None:
        """See `Exporter.export`."""
        self.given.append(block)

    def read(self) -> None:
        """Take in what was given."""
        for block in self.given:
            super().export(block)
