"""Settings of the collector, checked."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

Durability = Literal["none", "everysec", "always", "waitaof"]
DURABILITIES: Final[tuple[Durability, ...]] = get_args(Durability)

MIN_RETENTION_BYTES: Final = 1 << 20
MOST_WORKERS: Final = 64


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the collector listens.

    Attributes
    ----------
    host : name or address; IPv6 without brackets.
    port : 0 for one that is free.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Listen:
        """Read ``HOST:PORT``; an IPv6 address stands in brackets.

        Raises
        ------
        ValueError
            Where it is something else.
        """
        match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]\s/]+)):(\d{1,5})", text)
        if not match or int(match[3]) > 65535:
            raise ValueError(
                f"not an address to listen on: {text!r}; write HOST:PORT, such as 127.0.0.1:4747"
            )
        return cls(match[1] or match[2], int(match[3]))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class History:
    """Of which requests whole frames are kept while nobody watches. The rest is folded into sketches.

    Attributes
    ----------
    one_in : one request in so many; 1: all of them, 0: none.
    level : the most that is captured of them; empty: what the agent's attachment gives.
    """

    one_in: int = 16
    level: str = "heads"

    @classmethod
    def parse(cls, text: str) -> History:
        """Read ``all``, ``none``, or ``LEVEL/N``.

        Raises
        ------
        ValueError
            Where it is something else.
        """
        if text == "all":
            return cls(1, "")
        if text == "none":
            return cls(0, "heads")
        level, slash, number = text.partition("/")
        if not slash or level not in ("pulse", "heads", "deep") or not number.isdigit() or not int(number):
            raise ValueError(
                f"not a history: {text!r}; write all, none, or LEVEL/N for one request in N, such as heads/16"
            )
        return cls(int(number), level)

    def __str__(self) -> str:
        if self.one_in == 1 and not self.level:
            return "all"
        return f"{self.level}/{self.one_in}" if self.one_in else "none"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the certificates of the port are, in PEM.

    Attributes
    ----------
    certificate, key : Path
        The chain that the collector shows, its own first, and the private key of it.
    client_ca : Path or None
        What signs clients; with it, a client without a certificate is not let in.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a collector is told.

    Attributes
    ----------
    redis_url : str or None
        Of a Redis-compatible server; None for the embedded one; ``memory://`` for this process alone.
    insecure : bool
        Listen beyond this machine although nobody has to show credentials.
    retention_s, retention_bytes : float, int
        How much of the past of each replica is kept: what is older, or more, goes.
    durability : str
        What an acknowledgement promises. ``none``: the store has it. ``everysec``: it is on disk within a
        second. ``always``: it is on disk. ``waitaof``: the same, asked of the server for each append, so that
        it may write to disk once a second otherwise.
    credit : int
        Batches that an agent may have under way.
    held_bytes : int
        Batches of one agent that wait for the store.
    ack_batches, ack_delay_s : int, float
        An acknowledgement is sent after so many batches, or so long after the first that is not acknowledged;
        at once where an agent asks, by its account.
    max_replicas, max_viewers : int
        More of them are refused.
    viewer_bytes : int
        What may wait for a slow viewer before it skips to live.
    receive_limit_bytes : int
        The largest message that is accepted.
    otlp_http : Listen or None
        Where OTLP over HTTP is taken; over gRPC it is on the port of `listen`.
    otlp_bytes : int
        How much of others' spans is kept per minute; beyond it clients are told to wait.
    telemetry : tuple of str
        Command line of the telemetry process beside this collector; empty: none is started.
    workers : int
        Processes that serve on the same port.
    tls : TlsFiles or None
        None: plain text.
    credentials : Path or None
        The file that says who may come in; None: nobody is asked, but for a certificate where `tls` says so.
    history : History
        Of which requests whole frames are kept while nobody watches.

    Raises
    ------
    ValueError
        Where a value makes no sense, or the address is public and `insecure` is not set.
    """

    listen: Listen = Listen("127.0.0.1", 4747)
    redis_url: str | None = None
    insecure: bool = False
    retention_s: float = 300.0
    retention_bytes: int = 64 << 20
    durability: Durability = "everysec"
    credit: int = 64
    held_bytes: int = 4 << 20
    ack_batches: int = 32
    ack_delay_s: float = 0.25
    retry_after_s: float = 1.0
    drain_s: float = 5.0
    max_replicas: int = 1024
    max_viewers: int = 256
    viewer_bytes: int = 8 << 20
    receive_limit_bytes: int = 16 << 20
    otlp_http: Listen | None = None
    otlp_bytes: int = 64 << 20
    telemetry: tuple[str, ...] = ()
    workers: int = 1
    tls: TlsFiles | None = None
    credentials: Path | None = None
    history: History = History()

    def __post_init__(self) -> None:
        if not 1 <= self.retention_s <= 30 * 86400:
            raise ValueError(f"the retention must be 1 s to 30 days, not {self.retention_s:g} s")
        if self.retention_bytes < MIN_RETENTION_BYTES:
            raise ValueError(
                f"the retention must be at least {MIN_RETENTION_BYTES} bytes, not {self.retention_bytes}"
            )
        if self.durability not in DURABILITIES:
            raise ValueError(
                f"no such durability: {self.durability!r}; choose one of {', '.join(DURABILITIES)}"
            )
        if not 1 <= self.workers <= MOST_WORKERS:
            raise ValueError(f"the collector has 1 to {MOST_WORKERS} workers, not {self.workers}")
        if self.workers > 1 and self.redis_url == "memory://":
            raise ValueError(
                "several workers need a store that all of them reach, which memory:// is not: leave --redis "
                "out for the embedded server, or name one"
            )
        if self.telemetry and self.redis_url == "memory://":
            raise ValueError(
                "--otlp-export and --prometheus read the store from a process of their own, which memory:// "
                "does not allow: leave --redis out for the embedded server, or name one"
            )
        if not (self.listen.is_loopback or self.insecure or self.asks_for_credentials):
            raise ValueError(
                f"{self.listen} can be reached from other machines, and nobody would have to show credentials"
                ": give --credentials FILE or --tls-client-ca FILE, listen on 127.0.0.1, or say --insecure "
                "if the network is trusted"
            )
        if self.otlp_http is not None and not (self.otlp_http.is_loopback or self.insecure):
            raise ValueError(
                f"{self.otlp_http} can be reached from other machines, and OTLP over HTTP is not encrypted "
                "here: listen on 127.0.0.1, take OTLP over gRPC on --listen, or say --insecure if the "
                "network is trusted"
            )

    @property
    def asks_for_credentials(self) -> bool:
        """Whether a peer has to show who it is."""
        return self.credentials is not None or (self.tls is not None and self.tls.client_ca is not None)


def without_password(url: str) -> str:
    """`url` as it may be shown."""
    return re.sub(r"(://[^:@/]*):[^@]*@", r"\1:***@", url)
