"""Everything on one machine: a store, a collector, an agent, and a proxy on either hop between them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tests.chaos.certificates import Certificates, certificates
from tests.chaos.disk import Disk, disk_at
from tests.chaos.plan import Fault, Fsync, Plan, Server
from tests.chaos.processes import (
    Actor,
    Host,
    answers_ping,
    free_port,
    listens,
    python,
    server_binary,
)
from tests.chaos.proxy import CALM, Proxy

from fulgurite.wire.replica import ReplicaKey

FAKETIME: Final = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"


class Clock:
    """The wall clock of a process, which a file moves. Needs libfaketime."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.move(0.0)

    def move(self, seconds: float) -> None:
        """From the next second on it is so far off."""
        temporary = self._file.with_suffix(".new")
        temporary.write_text(f"{seconds:+.3f}\n")
        temporary.replace(self._file)

    @property
    def environment(self) -> dict[str, str]:
        """For the process."""
        return {
            "LD_PRELOAD": FAKETIME,
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "0",
        }


class Rig:
    """Everything that a plan needs, for the length of a `with`.

    Parameters
    ----------
    folder : Path
        For files and logs. Empty.
    is_impatient : bool
        The agent's patience is as short as the run is; else it is what it is in service.
    mounts : bool
        Disks may be small file systems of their own. A long run needs more room than those have.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        *,
        is_impatient: bool = True,
        mounts: bool = True,
        flush_s: float = 90.0,
    ) -> None:
        self.plan, self.folder = plan, folder
        self._is_impatient, self._flush_s, self._mounts = is_impatient, flush_s, mounts
        self._stack = ExitStack()
        self._made: Certificates | None = None
        self._ports = {"redis": free_port(), "collector": free_port()}

    def __enter__(self) -> Rig:
        with ExitStack() as stack:
            if self.plan.is_link_encrypted or self.plan.is_store_encrypted:
                self._made = certificates(self.folder / "tls")
            self.disk: Disk = stack.enter_context(disk_at(self.folder, "of-the-store", mounts=self._mounts))
            self.host_disk: Disk = stack.enter_context(
                disk_at(self.folder, "of-the-host", mounts=self._mounts)
            )
            self.redis = self._redis(self.plan.server, self.plan.fsync)
            stack.callback(self.redis.kill)
            self.redis.start()
            self.store_proxy = stack.enter_context(Proxy(self._ports["redis"], seed=self.plan.seed))
            self.collector = self._collector(self.plan.fsync)
            stack.callback(self.collector.kill)
            self.collector.start()
            self.link_proxy = stack.enter_context(Proxy(self._ports["collector"], seed=self.plan.seed + 1))
            self.host = self._host()
            stack.callback(self.host.kill)
            self.host.start(wait=False)
            if self.host.line() != "ready\n":
                raise RuntimeError(f"the host does not start:\n{self.host.last_words}")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def keys(self) -> list[ReplicaKey]:
        """The replicas of the host."""
        return [ReplicaKey("", "chaos", f"{self.plan.seed}-{index}") for index in range(self.plan.replicas)]

    @property
    def url(self) -> str:
        """Of the store, past the proxy."""
        return self._url(self._ports["redis"])

    # --- the parts

    @property
    def _of_link(self) -> Certificates | None:
        return self._made if self.plan.is_link_encrypted else None

    @property
    def _of_store(self) -> Certificates | None:
        return self._made if self.plan.is_store_encrypted else None

    def _url(self, port: int) -> str:
        if self._of_store is None:
            return f"redis://127.0.0.1:{port}"
        return f"rediss://127.0.0.1:{port}?ssl_ca_certs={self._of_store.authority}"

    def _redis(self, server: Server, fsync: Fsync) -> Actor:
        binary = server_binary(server)
        if binary is None:
            raise RuntimeError(f"no {server} on this machine")
        port = self._ports["redis"]
        options: dict[str, object] = {
            "port": port, "bind": "127.0.0.1", "dir": self.disk.folder, "save": "", "appendonly": "yes",
            "appendfsync": fsync, "maxmemory-policy": "noeviction",
        }  # fmt: skip
        is_ready: Callable[[], bool] = lambda: answers_ping(port)  # noqa: E731
        if self._of_store is not None:
            made = self._of_store
            options |= {
                "port": 0, "tls-port": port, "tls-cert-file": made.certificate, "tls-key-file": made.key,
                "tls-ca-cert-file": made.authority, "tls-auth-clients": "no",
            }  # fmt: skip
            is_ready = lambda: _answers_ping_encrypted(port, made)  # noqa: E731
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return Actor([binary, *words], log=self.folder / "redis.log", is_ready=is_ready)

    def _collector(self, fsync: Fsync) -> Actor:
        port = self._ports["collector"]
        command = python("-m", "fulgurite.collector", "--listen", f"127.0.0.1:{port}")
        command += ["--redis", self._url(self.store_proxy.port), "--durability", fsync, "--history", "all"]
        if self._of_link is not None:
            command += ["--tls-cert", str(self._of_link.certificate), "--tls-key", str(self._of_link.key)]
        jumps = self.plan.has("collector", "jump")
        self.collector_clock = Clock(self.folder / "collector.clock") if jumps else None
        environment = self.collector_clock.environment if self.collector_clock else {}
        return Actor(
            command,
            log=self.folder / "collector.log",
            is_ready=lambda: listens(port),
            environment=environment,
        )

    def _host(self) -> Host:
        plan = self.plan
        orders = {
            "endpoint": f"127.0.0.1:{self.link_proxy.port}",
            "ca": str(self._of_link.authority) if self._of_link else "",
            "run": str(plan.seed),
            "replicas": plan.replicas,
            "rows": plan.rows,
            "frames_per_s": plan.frames_per_s,
            "budget_bytes": plan.budget_bytes,
            "encoding": plan.encoding,
            "is_impatient": self._is_impatient,
            "flush_s": self._flush_s,
            "waits": True,
            "spool": str(self.host_disk.folder / "spool") if plan.spool_bytes else "",
            "spool_bytes": plan.spool_bytes,
        }
        return Host(
            python("-m", "tests.chaos.host", json.dumps(orders)),
            log=self.folder / "host.log",
            is_ready=lambda: True,
            environment={"OMP_NUM_THREADS": "1"},
        )

    # --- what goes wrong, and right again

    def begin(self, fault: Fault) -> None:
        """It goes wrong."""
        if fault.where in ("link", "store"):
            self._worsen(self.link_proxy if fault.where == "link" else self.store_proxy, fault)
        elif fault.kind == "full" and fault.where == "host":
            self.host_disk.fill(self.host.pid)
        elif fault.kind == "full":
            self.disk.fill(self.redis.pid)
        elif fault.kind == "jump":
            self._move(fault.where, fault.amount)
        else:
            actor = self.collector if fault.where == "collector" else self.redis
            signals = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}
            actor.signal(signals[fault.kind])

    def _worsen(self, proxy: Proxy, fault: Fault) -> None:
        if fault.kind == "reset":
            proxy.reset()
        elif fault.kind == "half_close":
            proxy.half_close()
        elif fault.kind == "delay":
            proxy.weather = replace(proxy.weather, delay_s=fault.amount)
        elif fault.kind == "throttle":
            proxy.weather = replace(proxy.weather, bytes_per_s=fault.amount)
        elif fault.kind == "corrupt":
            proxy.weather = replace(proxy.weather, corrupt=fault.amount)
        else:
            proxy.weather = replace(proxy.weather, is_black_hole=True)

    def _move(self, of: str, seconds: float) -> None:
        if of == "host":
            self.host.tell(f"jump {seconds}")
        elif self.collector_clock is not None:
            self.collector_clock.move(seconds)

    def end(self, fault: Fault) -> None:
        """It is mended. A clock stays where it jumped to, until calm."""
        if fault.where in ("link", "store"):
            proxy = self.link_proxy if fault.where == "link" else self.store_proxy
            proxy.weather = CALM
        elif fault.kind == "full" and fault.where == "host":
            self.host_disk.free(self.host.pid)
        elif fault.kind == "full":
            self.disk.free(self.redis.pid)
            self.redis.start(wait=False)  # one that promised `always` ends rather than break its word
        elif fault.kind == "stop":
            (self.collector if fault.where == "collector" else self.redis).signal(signal.SIGCONT)
        elif fault.kind in ("kill", "term"):
            (self.collector if fault.where == "collector" else self.redis).come_back()

    def calm(self) -> None:
        """Everything is well again."""
        self.link_proxy.weather = self.store_proxy.weather = CALM
        for actor in (self.redis, self.collector):
            actor.signal(signal.SIGCONT)
        self.disk.free(self.redis.pid)
        self.host_disk.free(self.host.pid)
        self._move("collector", 0.0)
        self.redis.start()
        self.collector.start()

    # --- the host

    def ask(self, word: str) -> Any:
        """Give the host an order, and return what it says."""
        self.host.tell(word)
        line = self.host.line()
        if not line:
            raise RuntimeError(f"the host ended:\n{self.host.last_words}")
        return json.loads(line)


def _answers_ping_encrypted(port: int, made: Certificates) -> bool:
    import socket

    context = ssl.create_default_context(cafile=str(made.authority))
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=1.0) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as client,
    ):
        client.sendall(b"PING\r\n")
        return client.recv(64).startswith(b"+PONG")
    return False


def clock_can_jump() -> bool:
    """Whether this machine has what moves a clock."""
    return os.path.exists(FAKETIME)
