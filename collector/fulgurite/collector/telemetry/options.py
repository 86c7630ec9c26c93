"""The command line of the telemetry process, shared with the collector that starts one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Final

from fulgurite.collector.config import Listen
from fulgurite.collector.telemetry.config import TelemetrySettings
from fulgurite.telemetry.otlp import SIGNALS
from fulgurite.telemetry.sampling import Sampling

VARIABLES: Final = {
    "otlp_export": "FULGURITE_OTLP_EXPORT",
    "otlp_signals": "FULGURITE_OTLP_SIGNALS",
    "otlp_arrays": "FULGURITE_OTLP_ARRAYS",
    "otlp_token_spans": "FULGURITE_OTLP_TOKEN_SPANS",
    "otlp_slow_s": "FULGURITE_OTLP_SLOW_S",
    "otlp_asked": "FULGURITE_OTLP_ASKED",
    "prometheus": "FULGURITE_PROMETHEUS",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what both command lines have. Every default is None: not given."""
    add = parser.add_argument
    add(
        "--otlp-export",
        metavar="ENDPOINT",
        help="send request spans, metrics and logs to this OTLP receiver: http://HOST:4317 (gRPC) or "
        "http://HOST:4318 (HTTP); default: what OTEL_EXPORTER_OTLP_* say, else nothing is sent",
    )
    add(
        "--otlp-signals",
        metavar="LIST",
        help="what is sent, of traces,metrics,logs (default: all of them)",
    )
    add(
        "--otlp-arrays",
        metavar="RATIO",
        help="share of requests whose spans carry per-token arrays (default: 0.0625); slow, failed, "
        "diverging and asked ones do in any case",
    )
    add(
        "--otlp-token-spans",
        metavar="RATIO",
        help="share of requests with a span per token, for debugging (default: 0)",
    )
    add("--otlp-slow-s", metavar="SECONDS", help="a request that takes longer is slow (default: by quantile)")
    add("--otlp-asked", metavar="IDS", help="trace or request ids, by commas, that carry arrays in any case")
    add("--prometheus", metavar="HOST:PORT", help="serve /metrics here (default: not at all)")


def settings_of(given: Mapping[str, Any], env: Mapping[str, str]) -> TelemetrySettings:
    """Argument over variable over default.

    Raises
    ------
    ValueError
        For a value that means nothing.
    """
    texts = {name: given.get(name) or env.get(variable) or None for name, variable in VARIABLES.items()}
    slow = texts["otlp_slow_s"]
    sampling = Sampling(
        ratio=_number("--otlp-arrays", texts["otlp_arrays"], 1 / 16),
        token_ratio=_number("--otlp-token-spans", texts["otlp_token_spans"], 0.0),
        slow_s=_number("--otlp-slow-s", slow, 0.0) if slow else None,
        asked=frozenset(filter(None, (texts["otlp_asked"] or "").split(","))),
    )
    return TelemetrySettings(
        otlp_export=texts["otlp_export"],
        prometheus=Listen.parse(texts["prometheus"]) if texts["prometheus"] else None,
        sampling=sampling,
        signals=_signals(texts["otlp_signals"]),
    )


def _number(option: str, text: str | None, default: float) -> float:
    try:
        return float(text) if text else default
    except ValueError:
        raise ValueError(f"{option} is a number, not {text!r}") from None


def _signals(text: str | None) -> tuple[str, ...]:
    named = tuple(filter(None, (text or ",".join(SIGNALS)).split(",")))
    unknown = [name for name in named if name not in SIGNALS]
    if unknown:
        raise ValueError(f"no such signal: {unknown[0]!r}; choose of {', '.join(SIGNALS)}")
    return named


def words(given: Mapping[str, Any]) -> list[str]:
    """The arguments that were given, as a command line again."""
    return [
        word
        for name in VARIABLES
        if given.get(name)
        for word in (f"--{name.replace('_', '-')}", str(given[name]))
    ]
