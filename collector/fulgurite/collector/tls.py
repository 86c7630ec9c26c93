"""Certificates of the collector's port, read again when they are renewed: no connection is broken for it."""

from __future__ import annotations

import logging
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

import grpc

from fulgurite.collector.config import TlsFiles

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Loaded:
    certificate: bytes
    key: bytes
    client_ca: bytes | None


class Tls:
    """The credentials of a server, from files.

    Raises
    ------
    ValueError
        Where a file cannot be read, or the key is not that of the certificate.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = Lock()
        self._stamp = self._stamped()
        self._loaded = _load(files)
        self._looked_s = time.monotonic()

    def credentials(self) -> Any:
        """What a server is given. It asks again with every new connection."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(),
            self._fetch,
            require_client_authentication=self._files.client_ca is not None,
        )

    def _fetch(self) -> Any:
        """On a thread of grpc: the configuration where it changed, None where it did not."""
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._looked_s < LOOK_EVERY_S:
                return None
            self._looked_s = now_s
            return self._configuration() if self._look() else None

    def _look(self) -> bool:
        stamp = self._stamped()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self._loaded = _load(self._files)
        except ValueError as error:
            log.error("%s; the certificates that were in force stay so", error)
            return False
        log.info("read the certificate in %s again", self._files.certificate)
        return True

    def _configuration(self) -> Any:
        loaded = self._loaded
        return grpc.ssl_server_certificate_configuration(
            [(loaded.key, loaded.certificate)], root_certificates=loaded.client_ca
        )

    def _stamped(self) -> tuple[Any, ...]:
        return tuple(_stamp(path) for path in _paths(self._files))


def _paths(files: TlsFiles) -> list[Path]:
    return [path for path in (files.certificate, files.key, files.client_ca) if path is not None]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _load(files: TlsFiles) -> _Loaded:
    """The files, which belong together: grpc would say so only to whoever connects, and not why."""
    certificate, key = _read(files.certificate, "certificate"), _read(files.key, "key")
    client_ca = _read(files.client_ca, "client CA") if files.client_ca is not None else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ValueError(
            f"{files.certificate} and {files.key} are not a certificate in PEM and its private key: "
            f"{_said(error)}"
        ) from None
    if client_ca is not None:
        try:
            context.load_verify_locations(cadata=client_ca.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise ValueError(f"{files.client_ca} has no CA certificate in PEM: {_said(error)}") from None
    return _Loaded(certificate, key, client_ca)


def _no_password() -> str:
    raise ValueError("the key has a password; give it without one, in a file that only the collector reads")


def _said(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the {what} in {path}: {error.strerror}") from None
