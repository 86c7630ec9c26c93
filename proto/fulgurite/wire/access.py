"""How a client shows who it is: a token, certificates, and the channel that carries them.

====================== ===============================================================================
``FULGURITE_TOKEN``    the token; or ``FULGURITE_TOKEN_FILE``, a file that holds it
``FULGURITE_CA``       file in PEM: what the collector's certificate must be signed by
``FULGURITE_CERT``     file in PEM: the certificate that this client shows, with ``FULGURITE_KEY``
``FULGURITE_TLS``      ``true``: encrypt, and trust what the system trusts
``FULGURITE_INSECURE`` ``true``: send the token although the way to the collector is not encrypted
====================== ===============================================================================

An address that begins with ``https://`` means the same as ``FULGURITE_TLS``. Files are read whenever a
channel is opened, so that what was renewed is used without a restart.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import grpc

TRUE: Final = ("1", "true", "yes", "on")
FALSE: Final = ("", "0", "false", "no", "off")
LOOPBACK: Final = ("127.", "localhost", "[::1]", "unix:")
METADATA_KEY: Final = "authorization"


class AccessError(ValueError):
    """What was given cannot be used. The message says what to do, and holds no secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a client shows, and what it asks of the collector.

    Attributes
    ----------
    token : str
        Empty: none. Never shown.
    token_file, ca, certificate, key : Path or None
    tls : bool
        Encrypt, even where no file is given.
    insecure : bool
        A token may go over a network that is not encrypted.
    """

    token: str = field(default="", repr=False)
    token_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    tls: bool = False
    insecure: bool = False

    @classmethod
    def from_environment(
        cls, env: Mapping[str, str] = os.environ, *, address: str = "", **arguments: str | None
    ) -> Access:
        """Argument over variable over default.

        Parameters
        ----------
        address : where it is for; ``https://`` in front of it means TLS.
        **arguments : `token_file`, `ca`, `certificate` or `key`, as text; None where not given.

        Raises
        ------
        AccessError
            Where a key comes without its certificate, or the other way round, or a word means nothing.
        """
        chosen = {
            name: arguments.get(name) or env.get(variable) or ""
            for name, variable in (
                ("token_file", "FULGURITE_TOKEN_FILE"),
                ("ca", "FULGURITE_CA"),
                ("certificate", "FULGURITE_CERT"),
                ("key", "FULGURITE_KEY"),
            )
        }
        if bool(chosen["certificate"]) != bool(chosen["key"]):
            missing = "FULGURITE_KEY" if chosen["certificate"] else "FULGURITE_CERT"
            raise AccessError(
                f"a client's certificate needs its key, and a key its certificate: set {missing}"
            )
        paths = {name: Path(text).expanduser() if text else None for name, text in chosen.items()}
        return cls(
            token=env.get("FULGURITE_TOKEN", "").strip(),
            tls=address.startswith("https://") or _truth(env, "FULGURITE_TLS"),
            insecure=_truth(env, "FULGURITE_INSECURE"),
            **paths,
        )

    @property
    def encrypts(self) -> bool:
        """Whether channels are encrypted."""
        return self.tls or self.ca is not None or self.certificate is not None

    def check(self, address: str) -> None:
        """Look at everything once, so that what is wrong is said early.

        Raises
        ------
        AccessError
            Where a file cannot be read, or the token would be readable on its way.
        """
        self._bearer(address)
        self._credentials()

    def channel(self, address: str, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
        """A channel to `address` (``HOST:PORT``) whose every call shows the token.

        Raises
        ------
        AccessError
            As `check`.
        """
        import grpc  # whoever only reads settings does not pay for it

        bearer, credentials = self._bearer(address), self._credentials()
        if credentials is None:
            channel = grpc.insecure_channel(address, options)
        else:
            channel = grpc.secure_channel(address, credentials, options)
        if not bearer:
            return channel
        from fulgurite.wire.bearer import Bearer

        return grpc.intercept_channel(channel, Bearer(bearer))

    def _bearer(self, address: str) -> str:
        token = self.token or (_read(self.token_file, "token").decode().strip() if self.token_file else "")
        if not token:
            return ""
        if not token.isascii() or not token.isprintable() or " " in token:
            raise AccessError("the token has characters that no token has: look at what it was copied from")
        if not (self.encrypts or self.insecure or address.startswith(LOOPBACK)):
            raise AccessError(
                f"whoever listens in on the way to {address} would read the token: set FULGURITE_CA to what "
                "signed the collector's certificate, or FULGURITE_INSECURE=true if the network is trusted"
            )
        return f"Bearer {token}"

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if not self.encrypts:
            return None
        import grpc

        ca = _read(self.ca, "CA certificate") if self.ca is not None else None
        key = _read(self.key, "key") if self.key is not None else None
        chain = _read(self.certificate, "certificate") if self.certificate is not None else None
        return grpc.ssl_channel_credentials(ca, key, chain)


def _truth(env: Mapping[str, str], name: str) -> bool:
    value = env.get(name, "").lower()
    if value not in (*TRUE, *FALSE):
        raise AccessError(f"{name} must be true or false, not {env[name]!r}")
    return value in TRUE


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AccessError(f"cannot read the {what} in {path}: {error.strerror}") from None
