"""The collector's command line: argument over variable over default. Imports nothing that an extra brings."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from fulgurite.collector.config import DURABILITIES, History, Listen, Settings
from fulgurite.collector.telemetry import options as telemetry

DEFAULTS: Final = Settings()
TRUE: Final = ("1", "true", "yes", "on")
FALSE: Final = ("", "0", "false", "no", "off")


class UsageError(Exception):
    """The command line, or a variable, means nothing here. The message is one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def parse(arguments: Sequence[str] | None, environment: Mapping[str, str]) -> Settings:
    """The settings that a command line and variables ask for.

    Raises
    ------
    UsageError
        Where they make no sense.
    SystemExit
        After ``--help``.
    """
    given = vars(_parser().parse_args(arguments))
    own = {name: text for name, text in given.items() if name not in telemetry.VARIABLES}
    chosen = {name: (f"--{name.replace('_', '-')}", text) for name, text in own.items() if text is not None}
    for name, variable in VARIABLES.items():
        if name not in chosen and environment.get(variable):
            chosen[name] = (variable, environment[variable])
    try:
        values: dict[str, Any] = {
            _FIELDS.get(name, name): _READERS[name](*source) for name, source in chosen.items()
        }
        return Settings(**values, telemetry=_telemetry(given, environment))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _telemetry(given: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[str, ...]:
    """The command line of the telemetry process; empty where nothing is to be sent or shown."""
    settings = telemetry.settings_of(given, environment)
    return ("telemetry", *telemetry.words(given)) if settings.has_work(environment) else ()


def _listen(_: str, text: str) -> Listen:
    return Listen.parse(text)


def _history(_: str, text: str) -> History:
    return History.parse(text)


def _text(_: str, text: str) -> str:
    return text


def _number(source: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{source} is a number of seconds, not {text!r}") from None


def _count(source: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{source} is a number of bytes, not {text!r}") from None


def _whole(source: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{source} is a whole number, not {text!r}") from None


def _flag(source: str, text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise ValueError(f"{source} is true or false, not {text!r}")


VARIABLES: Final = {
    "listen": "FULGURITE_COLLECTOR_LISTEN",
    "redis": "FULGURITE_REDIS",
    "durability": "FULGURITE_DURABILITY",
    "retention_s": "FULGURITE_RETENTION_S",
    "retention_bytes": "FULGURITE_RETENTION_BYTES",
    "insecure": "FULGURITE_INSECURE",
    "otlp_http": "FULGURITE_OTLP_HTTP",
    "workers": "FULGURITE_WORKERS",
    "history": "FULGURITE_HISTORY",
}
_FIELDS: Final = {"redis": "redis_url"}
_READERS: Final = {
    "listen": _listen,
    "redis": _text,
    "durability": _text,
    "retention_s": _number,
    "retention_bytes": _count,
    "insecure": _flag,
    "otlp_http": _listen,
    "workers": _whole,
    "history": _history,
}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fulgurite collector",
        description="Take in what agents capture, store it, and hand it to viewers.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--listen",
        metavar="HOST:PORT",
        help=_help("where agents and viewers connect", "listen", DEFAULTS.listen),
    )
    add(
        "--redis",
        metavar="URL",
        help=_help(
            "a Redis-compatible server: redis://, rediss:// or unix://; memory:// is this process alone",
            "redis",
            "an embedded server",
        ),
    )
    add(
        "--durability",
        metavar="|".join(DURABILITIES),
        help=_help(
            "what an acknowledgement promises: stored, on disk in a second, on disk",
            "durability",
            DEFAULTS.durability,
        ),
    )
    add(
        "--retention-s",
        metavar="SECONDS",
        help=_help(
            "how much of the past of each replica is kept", "retention_s", f"{DEFAULTS.retention_s:g}"
        ),
    )
    add(
        "--retention-bytes",
        metavar="BYTES",
        help=_help("and how many bytes of it at most", "retention_bytes", DEFAULTS.retention_bytes),
    )
    add(
        "--insecure",
        action="store_const",
        const="true",
        help=_help("listen beyond this machine although nobody shows credentials", "insecure", "off"),
    )
    add(
        "--otlp-http",
        metavar="HOST:PORT",
        help=_help("take OTLP over HTTP here; over gRPC it is taken on --listen", "otlp_http", "off"),
    )
    add(
        "--workers",
        metavar="N",
        help=_help("processes that serve on the same port, sharing the store", "workers", DEFAULTS.workers),
    )
    add(
        "--history",
        metavar="all|none|LEVEL/N",
        help=_help(
            "of which requests whole frames are kept while nobody watches", "history", DEFAULTS.history
        ),
    )
    telemetry.add_arguments(parser)
    return parser


def _help(what: str, name: str, default: object) -> str:
    return f"{what} (variable {VARIABLES[name]}; default: {default})"
