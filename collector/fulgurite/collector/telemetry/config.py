"""Settings of the telemetry process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fulgurite.collector.config import Listen
from fulgurite.telemetry.otlp import SIGNALS, target_for
from fulgurite.telemetry.sampling import Sampling

METRICS_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """What the process is told.

    Attributes
    ----------
    otlp_export : str or None
        Endpoint of an OTLP receiver; None: what ``OTEL_EXPORTER_OTLP_*`` say.
    prometheus : Listen or None
        Where ``/metrics`` is served.
    signals : what is sent by OTLP.
    first_retry_s : how long the first wait for a receiver is.
    """

    otlp_export: str | None = None
    prometheus: Listen | None = None
    sampling: Sampling = field(default_factory=Sampling)
    signals: tuple[str, ...] = SIGNALS
    metrics_every_s: float = METRICS_EVERY_S
    first_retry_s: float = 5.0

    def has_work(self, env: Mapping[str, str]) -> bool:
        """Whether anything is to be sent or shown.

        Raises
        ------
        ValueError
            Where an endpoint means nothing.
        """
        targets = [target_for(s, endpoint=self.otlp_export, env=env) for s in SIGNALS if s in self.signals]
        return self.prometheus is not None or any(targets)
