"""The settings of an attachment: argument over ``FULGURITE_*`` variable over default."""

from __future__ import annotations

import os
import platform
import socket
import urllib.parse
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from fulgurite.wire.access import Access
from fulgurite.wire.channels import LEVELS, Level

Tokens = Literal["off", "ids", "text"]
TOKENS: tuple[Tokens, ...] = ("off", "ids", "text")
_ASKS = ("FULGURITE_ENDPOINT", "FULGURITE_LEVEL", "FULGURITE_RUN")  # any of them
ENGINE, ENGINE_VERSION = "fulgurite.engine.name", "fulgurite.engine.version"  # resource attributes
DEFAULT_ENDPOINT = "127.0.0.1:4747"
DEFAULT_BUDGET = 0.02
DEFAULT_DEEP_RATIO = 1 / 16
DEFAULT_SPOOL_BYTES = 256 << 20
LEAST_SPOOL_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `instrument` was asked for, validated.

    Attributes
    ----------
    endpoint : ``HOST:PORT`` of the collector.
    level : the level and the ceiling of the attachment.
    tokens : what of a token may leave the process.
    deep_ratio : share of steps captured at ``deep``.
    budget : allowed share of step time; None: not limited.
    spool : folder for frames that wait for a collector and memory has no room for, or None.
    spool_bytes : how much may wait there.
    disabled : nothing is to be attached.
    access : what is shown to the collector: the token and the certificates.
    """

    endpoint: str
    level: Level
    tokens: Tokens
    deep_ratio: float
    budget: float | None
    spool: Path | None
    spool_bytes: int
    disabled: bool
    access: Access


def settings(
    *,
    endpoint: str | None = None,
    level: str | None = None,
    tokens: str | None = None,
    deep_ratio: float | None = None,
    budget: float | str | None = None,
    spool: str | os.PathLike[str] | None = None,
    in_process: bool = False,
    env: Mapping[str, str] = os.environ,
) -> Settings:
    """Put the settings together.

    Parameters
    ----------
    in_process : whether frames stay in the process, where the ratio is 1 and no budget holds unless asked
        for.

    Raises
    ------
    ValueError
        For a value that means nothing, with the value and what would be right.
    """
    ratio = _ratio(
        _chosen(deep_ratio, env, "FULGURITE_DEEP_RATIO"), 1.0 if in_process else DEFAULT_DEEP_RATIO
    )
    folder = _chosen(spool, env, "FULGURITE_SPOOL_DIR") or env.get("FULGURITE_SPOOL") or None
    return Settings(
        endpoint=_endpoint(str(_chosen(endpoint, env, "FULGURITE_ENDPOINT") or DEFAULT_ENDPOINT)),
        level=cast("Level", _word("level", _chosen(level, env, "FULGURITE_LEVEL") or "heads", LEVELS)),
        tokens=cast("Tokens", _word("tokens", _chosen(tokens, env, "FULGURITE_TOKENS") or "off", TOKENS)),
        deep_ratio=ratio,
        budget=_budget(_chosen(budget, env, "FULGURITE_BUDGET"), unlimited=in_process or ratio == 1.0),
        spool=_folder(folder),
        spool_bytes=_size("FULGURITE_SPOOL_BYTES", env.get("FULGURITE_SPOOL_BYTES") or DEFAULT_SPOOL_BYTES),
        disabled=is_disabled(env),
        access=_access(env, str(_chosen(endpoint, env, "FULGURITE_ENDPOINT") or DEFAULT_ENDPOINT)),
    )


def is_wanted(env: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment configures Fulgurite: a collector, a level, or ``fulgurite run``."""
    return any(env.get(name) for name in _ASKS) and not is_disabled(env)


def is_disabled(env: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment switches the agent off."""
    ours = _truth("FULGURITE_DISABLED", env.get("FULGURITE_DISABLED", ""))
    return ours or env.get("OTEL_SDK_DISABLED", "").lower() == "true"


def resource(env: Mapping[str, str] = os.environ, *, model_name: str = "") -> dict[str, str]:
    """OpenTelemetry resource attributes of this process.

    `service.instance.id` is fresh at every call, unless the environment names one: call it once per process,
    and again after a fork.
    """
    attributes = {
        "service.namespace": "default",
        "service.name": model_name or "model",
        "service.instance.id": uuid.uuid4().hex[:12],
        "host.name": socket.gethostname(),
        "process.pid": str(os.getpid()),
        "process.runtime.version": platform.python_version(),
        "telemetry.sdk.language": "python",
    }
    attributes.update(_resource_attributes(env.get("OTEL_RESOURCE_ATTRIBUTES", "")))
    if env.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = env["OTEL_SERVICE_NAME"]
    return attributes


def _resource_attributes(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(",") if "=" in part)
    return {key.strip(): urllib.parse.unquote(value.strip()) for key, _, value in pairs if key.strip()}


def _chosen(argument: object, env: Mapping[str, str], name: str) -> object:
    return argument if argument is not None else (env.get(name) or None)


def _word(setting: str, value: object, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{setting} must be one of {', '.join(allowed)}, not {value!r}")
    return str(value)


def _truth(name: str, value: str) -> bool:
    if value.lower() in ("", "0", "false", "no", "off"):
        return False
    if value.lower() in ("1", "true", "yes", "on"):
        return True
    raise ValueError(f"{name} must be true or false, not {value!r}")


def _endpoint(value: str) -> str:
    address = value.removeprefix("https://").removeprefix("http://").rstrip("/")
    if address.startswith("unix:"):
        return address
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"endpoint must be HOST:PORT, for example {DEFAULT_ENDPOINT}, not {value!r}")
    return address


def _access(env: Mapping[str, str], endpoint: str) -> Access:
    access = Access.from_environment(env, address=endpoint)
    access.check(_endpoint(endpoint))
    return access


def _number(setting: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{setting} must be a number, not {value!r}") from None


def _ratio(value: object, default: float) -> float:
    if value is None:
        return default
    ratio = _number("deep_ratio", value)
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"deep_ratio must be between 0 and 1, not {value!r}")
    return ratio


def _budget(value: object, *, unlimited: bool) -> float | None:
    if value is None:
        return None if unlimited else DEFAULT_BUDGET
    if isinstance(value, str) and value.lower() in ("none", "off"):
        return None
    share = _number("budget", value)
    if not 0.0 <= share <= 1.0:
        raise ValueError(
            f"budget must be a share of step time between 0 and 1, for example 0.02, or 'none', not {value!r}"
        )
    return share or None


def otlp(env: Mapping[str, str] = os.environ) -> str:
    """Whether the agent itself sends request spans and metrics by OTLP: ``off``, ``on`` or ``only``.

    Raises
    ------
    ValueError
        For another word in ``FULGURITE_OTLP``.
    """
    return str(_word("FULGURITE_OTLP", env.get("FULGURITE_OTLP") or "off", ("off", "on", "only")))


def _size(setting: str, value: object) -> int:
    try:
        nbytes = int(str(value))
    except ValueError:
        raise ValueError(f"{setting} must be a number of bytes, not {value!r}") from None
    if nbytes < LEAST_SPOOL_BYTES:
        raise ValueError(f"{setting} must be at least {LEAST_SPOOL_BYTES} bytes, not {value!r}")
    return nbytes


def _folder(value: object) -> Path | None:
    if value is None:
        return None
    path = Path(str(value)).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError(f"spool must be a folder, but {path} is a file")
    return path


def switched_off(given: Settings) -> Settings:
    """The same settings at level ``off``."""
    return replace(given, level="off")
