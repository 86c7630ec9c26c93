"""The collector's command line: argument over variable over default. Imports nothing that an extra brings."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from fulgurite.collector.config import DURABILITIES, History, Listen, Settings, TlsFiles
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
        tls = _tls(*(values.pop(name, None) for name in ("tls_cert", "tls_key", "tls_client_ca")))
        return Settings(**values, tls=tls, telemetry=_telemetry(given, environment))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _telemetry(given: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[str, ...]:
    """The command line of the telemetry process; empty where nothing is to be sent or shown."""
    settings = telemetry.settings_of(given, environment)
    return ("telemetry", *telemetry.words(given)) if settings.has_work(environment) else ()


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        missing = "--tls-cert" if certificate is None else "--tls-key"
        raise ValueError(f"TLS needs --tls-cert and --tls-key, and {missing} is missing")
    return TlsFiles(certificate, key, client_ca)


def _listen(_: str, text: str) -> Listen:
    return Listen.parse(text)


def _history(_: str, text: str) -> History:
    return History.parse(text)


def _text(_: str, text: str) -> str:
    return text


def _path(_: str, text: str) -> Path:
    return Path(text).expanduser()


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
    "otlp_bytes": "FULGURITE_OTLP_BYTES",
    "workers": "FULGURITE_WORKERS",
    "tls_cert": "FULGURITE_COLLECTOR_TLS_CERT",
    "tls_key": "FULGURITE_COLLECTOR_TLS_KEY",
    "tls_client_ca": "FULGURITE_COLLECTOR_TLS_CLIENT_CA",
    "credentials": "FULGURITE_CREDENTIALS",
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
    "otlp_bytes": _count,
    "workers": _whole,
    "tls_cert": _path,
    "tls_key": _path,
    "tls_client_ca": _path,
    "credentials": _path,
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
            "a Redis-compatible server: redis://, rediss://, unix://, redis+cluster:// or redis+sentinel:// "
            "(see docs/redis.md); memory:// is this process alone",
            "redis",
            "an embedded server",
        ),
    )
    add(
        "--durability",
        metavar="|".join(DURABILITIES),
        help=_help(
            "what an acknowledgement promises: stored, on disk in a second, on disk, on disk as WAITAOF says",
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
    add(
        "--tls-cert",
        metavar="FILE",
        help=_help("certificate chain in PEM; read again when it is renewed", "tls_cert", "plain text"),
    )
    add("--tls-key", metavar="FILE", help=_help("its private key", "tls_key", "none"))
    add(
        "--tls-client-ca",
        metavar="FILE",
        help=_help("clients must show a certificate that this CA signed", "tls_client_ca", "none"),
    )
    add(
        "--credentials",
        metavar="FILE",
        help=_help("who may come in, and for what (see docs/security.md)", "credentials", "nobody is asked"),
    )
    add(
        "--otlp-bytes",
        metavar="BYTES",
        help=_help("of others' spans that are kept per minute at most", "otlp_bytes", DEFAULTS.otlp_bytes),
    )
    telemetry.add_arguments(parser)
    return parser


def _help(what: str, name: str, default: object) -> str:
    return f"{what} (variable {VARIABLES[name]}; default: {default})"
