"""What a collector's port asks of those who come: certificates, credentials, and what may not be left out."""

from __future__ import annotations

from typing import Any, Final

from fulgurite.collector.config import Settings
from fulgurite.collector.credentials import CredentialsFile
from fulgurite.collector.gate import Gate
from fulgurite.collector.tls import Tls

FORGOTTEN_AFTER_S: Final = 60.0
"""Longer than the retention by this much the store forgets a replica."""


class Unsafe(Exception):
    """The certificates or credentials cannot be used. The message says why, and what to do."""


class Security:
    """The gate and the certificates of a port.

    Raises
    ------
    Unsafe
        Where a file cannot be used, or tokens would cross a network in the clear.
    """

    def __init__(self, settings: Settings) -> None:
        try:
            self._tls = Tls(settings.tls) if settings.tls is not None else None
            file = CredentialsFile(settings.credentials) if settings.credentials is not None else None
        except ValueError as error:
            raise Unsafe(str(error)) from None
        in_the_clear = self._tls is None and not (settings.listen.is_loopback or settings.insecure)
        if file is not None and in_the_clear and file.in_force().has_tokens:
            raise Unsafe(
                f"whoever listens in on the way to {settings.listen} would read the tokens: give --tls-cert "
                "and --tls-key, or say --insecure if something in front of the collector encrypts"
            )
        self.gate = Gate(file, age_s=settings.retention_s + FORGOTTEN_AFTER_S)

    def port_credentials(self) -> Any:
        """What the port is opened with; None for plain text."""
        return self._tls.credentials() if self._tls is not None else None
