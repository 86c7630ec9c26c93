"""What a generated load did, and what was acknowledged of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(slots=True)
class Account:
    """Of one replica, or of many together.

    Attributes
    ----------
    offered, sent, acknowledged, dropped : int
        Tokens that were due; written to the stream; stored, as the collector said; given up because too much
        waited.
    lateness_s : list of float
        By how much each message was sent after it was due.
    ack_s : list of float
        From sending a message to its acknowledgement.
    reconnects : int
    """

    offered: int = 0
    sent: int = 0
    acknowledged: int = 0
    dropped: int = 0
    reconnects: int = 0
    lateness_s: list[float] = field(default_factory=list)
    ack_s: list[float] = field(default_factory=list)

    def add(self, other: Account) -> None:
        """Take another's figures in."""
        for name in ("offered", "sent", "acknowledged", "dropped", "reconnects"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.lateness_s += other.lateness_s
        self.ack_s += other.ack_s

    def figures(self) -> dict[str, Any]:
        """For people and for JSON."""
        return {
            "offered": self.offered,
            "sent": self.sent,
            "acknowledged": self.acknowledged,
            "dropped": self.dropped,
            "reconnects": self.reconnects,
            "late_p50_ms": quantile_ms(self.lateness_s, 50),
            "late_p99_ms": quantile_ms(self.lateness_s, 99),
            "ack_p50_ms": quantile_ms(self.ack_s, 50),
            "ack_p99_ms": quantile_ms(self.ack_s, 99),
        }


def quantile_ms(values_s: list[float], percent: float) -> float | None:
    """A quantile in ms; None where nothing was measured."""
    return round(float(np.percentile(values_s, percent)) * 1e3, 3) if values_s else None
