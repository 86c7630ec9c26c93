"""The file that says who may come in: hashed tokens and names in certificates, with what they may do.

::

    [[credential]]
    name = "chat servers"
    token_sha256 = "9f86d0…"           # of the token; `fulgurite token` makes both
    scopes = ["ingest"]
    replicas = ["prod/chat/*"]         # what it may write

    [[credential]]
    name = "wall display"
    certificate = "display.example"    # a name in the client's certificate
    scopes = ["view"]

A token is 256 bits from the system's source of randomness, so that a plain hash of it cannot be searched;
nothing that people choose is taken for one. The file is read again when it changes. Where the new one
cannot be read the old one stays in force, and the log says so.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fulgurite.collector.caller import SCOPES, Caller, ReplicaPattern

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
MAX_FILE_BYTES: Final = 4 << 20
FIELDS: Final = frozenset(
    {
        "name",
        "token_sha256",
        "certificate",
        "scopes",
        "replicas",
        "calls",
        "calls_per_s",
        "bytes_per_s",
        "names",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one credential may take up, in one process.

    Attributes
    ----------
    calls : int
        At the same time; an agent's stream, and a viewer's, is one.
    calls_per_s : float
        New ones, after a burst of four seconds' worth.
    bytes_per_s : float
        That it may send; beyond it, it is read more slowly.
    names : int
        Different replicas within the retention.
    """

    calls: int = 512
    calls_per_s: float = 50.0
    bytes_per_s: float = float(256 << 20)
    names: int = 1024


@dataclass(frozen=True, slots=True)
class Credential:
    """One entry of the file."""

    caller: Caller
    limits: Limits
    token_sha256: bytes | None
    certificate: str | None


class Credentials:
    """What a file says, at one time."""

    def __init__(self, entries: Iterable[Credential]) -> None:
        self._entries = tuple(entries)
        self._by_token = {e.token_sha256: e for e in self._entries if e.token_sha256 is not None}
        self._by_certificate = {e.certificate: e for e in self._entries if e.certificate is not None}

    @property
    def has_tokens(self) -> bool:
        """Whether any of them is shown as a token, which a network without encryption would give away."""
        return bool(self._by_token)

    def __contains__(self, entry: object) -> bool:
        return entry in self._entries

    def of_token(self, token: str) -> Credential | None:
        """Whose token it is. Only its hash is compared, so that time tells nothing of the token."""
        return self._by_token.get(hashed(token))

    def of_certificate(self, names: Iterable[str]) -> Credential | None:
        """Whose certificate has one of these names."""
        return next((self._by_certificate[name] for name in names if name in self._by_certificate), None)


def hashed(token: str) -> bytes:
    """The SHA-256 of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def parse(text: str) -> Credentials:
    """What a file says.

    Raises
    ------
    ValueError
        Where it breaks the format; the message is one line and has no secret in it.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not TOML: {error}") from None
    tables = document.get("credential")
    if set(document) != {"credential"} or not isinstance(tables, list) or not tables:
        raise ValueError("it has [[credential]] tables, at least one, and nothing else")
    entries = [_entry(table, number) for number, table in enumerate(tables, 1)]
    for what in ("caller", "token_sha256", "certificate"):
        values = [entry.caller.name if what == "caller" else getattr(entry, what) for entry in entries]
        known = [value for value in values if value is not None]
        if len(known) != len(set(known)):
            raise ValueError(f"two credentials have the same {'name' if what == 'caller' else what}")
    return Credentials(entries)


def _entry(table: Mapping[str, Any], number: int) -> Credential:
    name = table.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"credential {number} has no name")
    try:
        return _checked(name, table)
    except ValueError as error:
        raise ValueError(f"credential {name!r}: {error}") from None


def _checked(name: str, table: Mapping[str, Any]) -> Credential:
    unknown = sorted(set(table) - FIELDS)
    if unknown:
        raise ValueError(f"there is no setting {unknown[0]!r}; it has {', '.join(sorted(FIELDS))}")
    scopes = _texts(table, "scopes")
    if not scopes or not set(scopes) <= set(SCOPES):
        raise ValueError(f"scopes is a list of {', '.join(SCOPES)}")
    patterns = tuple(ReplicaPattern.parse(text) for text in _texts(table, "replicas"))
    if "ingest" in scopes and not patterns:
        raise ValueError("it may ingest, so it names the replicas that it may write, such as ['prod/chat/*']")
    if ("token_sha256" in table) == ("certificate" in table):
        raise ValueError("it has either token_sha256 or certificate")
    caller = Caller(name, frozenset(scope for scope in SCOPES if scope in scopes), patterns)
    certificate = table.get("certificate")
    if certificate is not None and (not isinstance(certificate, str) or not certificate):
        raise ValueError("certificate is a name in the client's certificate")
    return Credential(caller, _limits(table), _digest(table), certificate)


def _texts(table: Mapping[str, Any], field: str) -> list[str]:
    value = table.get(field, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{field} is a list of texts")
    return value


def _digest(table: Mapping[str, Any]) -> bytes | None:
    value = table.get("token_sha256")
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        # What stands there may be the token itself: it is not repeated.
        raise ValueError(
            "token_sha256 is the SHA-256 of a token, 64 hexadecimal digits: see `fulgurite token`"
        )
    return bytes.fromhex(value)


def _limits(table: Mapping[str, Any]) -> Limits:
    given = {name: table[name] for name in ("calls", "calls_per_s", "bytes_per_s", "names") if name in table}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"{name} is a number above 0")
    return Limits(**given)


class CredentialsFile:
    """The credentials in force: those of the file as it was when it last could be read.

    Parameters
    ----------
    path : Path
        Read at once.

    Raises
    ------
    ValueError
        Where it cannot be read, or breaks the format.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _stamp(path)
        self._in_force = _read(path)
        self._looked_s = time.monotonic()

    def in_force(self) -> Credentials:
        """As of now, or of up to a second ago."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now_s
            self.look()
        return self._in_force

    def look(self) -> None:
        """Read the file again where it changed."""
        stamp = _stamp(self._path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._in_force = _read(self._path)
        except ValueError as error:
            log.error("%s; the credentials that were in force stay so", error)
        else:
            log.info("read the credentials in %s again", self._path)


def _read(path: Path) -> Credentials:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"the credentials in {path}: larger than {MAX_FILE_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read the credentials in {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"the credentials in {path}: not UTF-8") from None
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"the credentials in {path}: {error}") from None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What differs when a file was written, or replaced by another."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
