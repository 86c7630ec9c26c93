"""Where the address of a store leads: one server, the primary that sentinels name, or a cluster.

====================================== =================================================================
redis://HOST:PORT, rediss://, unix://  one server; rediss is TLS
redis+sentinel://HOST:PORT,…/NAME      the primary of NAME, as sentinels say; `rediss+sentinel` is TLS
redis+cluster://HOST:PORT,…            every primary of the cluster that these nodes know of; `rediss+cluster`
====================================== =================================================================

All take ``USER:PASSWORD@`` and what redis-py takes behind the question mark. Sentinels are asked without a
user, or with `sentinel_username` and `sentinel_password`, by TLS where the servers are.

A replica's keys lie in one slot, so a shard is chosen for a whole conversation, and each shard is spoken to
as a server of its own. Who is the primary of a slot is learnt from ``CLUSTER SLOTS``, and anew after a
failure. ``wait_replicas=N`` behind the question mark lets an entry count as stored only when N replicas have
it as well, so that a failover loses nothing that was acknowledged.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, urlencode

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

from fulgurite.collector.config import without_password
from fulgurite.collector.store import StoreUnfit
from fulgurite.collector.stores.lane import Lane

CONNECT_TIMEOUT_S: Final = 2.0
ANSWER_TIMEOUT_S: Final = 5.0
LEARN_EVERY_S: Final = 0.1
SLOTS: Final = 16384
FORMS: Final = (
    "write redis://HOST:PORT, rediss://…, unix:///PATH, redis+cluster://HOST:PORT,HOST:PORT or "
    "redis+sentinel://HOST:PORT,HOST:PORT/NAME"
)
_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")

Client = Any
"""A `redis.asyncio.Redis`."""


class Servers(Protocol):
    """Who is to be asked about a key."""

    is_cluster: bool

    async def of(self, key: str) -> Client:
        """For commands on `key`, and on all with the same hash tag."""

    async def lane_of(self, key: str) -> Lane:
        """The same for commands that are asked many times a second."""

    async def blocking_of(self, key: str) -> Client:
        """The same for commands that wait, on connections of their own."""

    async def each(self) -> list[Client]:
        """Every server that holds a part of the keys."""

    def failed(self) -> None:
        """Something went wrong: whoever was right may be so no longer."""

    async def close(self) -> None:
        """Let go of all connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address, taken apart.

    Attributes
    ----------
    kind : ``server``, ``sentinel`` or ``cluster``.
    urls : of each node, as redis-py takes it.
    name : of the primary, for sentinels.
    sentinel : how sentinels are asked, as keyword arguments.
    wait_replicas : replicas that must have an entry before it counts as stored.
    """

    kind: str
    urls: tuple[str, ...]
    name: str = ""
    sentinel: dict[str, str]
    wait_replicas: int = 0

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read `url`.

        Raises
        ------
        StoreUnfit
            Where it is no address.
        """
        match = re.fullmatch(
            r"(rediss?)\+(cluster|sentinel)://(?:([^/?#]*)@)?([^/?#]+)([^?#]*)(?:\?(.*))?", url
        )
        plain, _, query = url.partition("?")
        options = dict(parse_qsl(match[6] or "" if match else query, keep_blank_values=True))
        wait = _count(options.pop("wait_replicas", "0"), url)
        sentinel = {name[9:]: options.pop(name) for name in _SENTINEL_OPTIONS if name in options}
        behind = f"?{urlencode(options)}" if options else ""
        if match is None:
            if not plain.startswith(("redis://", "rediss://", "unix://")):
                raise _no_address(url)
            return cls(kind="server", urls=(plain + behind,), sentinel={}, wait_replicas=wait)
        scheme, kind, user, hosts, path = match[1], match[2], match[3], match[4], match[5].strip("/")
        name, _, database = path.partition("/") if kind == "sentinel" else ("", "", "")
        if (kind == "sentinel" and not name) or (kind == "cluster" and path not in ("", "0")):
            raise _no_address(url)
        before = f"{scheme}://{user}@" if user else f"{scheme}://"
        after = f"/{database}{behind}" if database else behind
        urls = tuple(f"{before}{host}{after}" for host in hosts.split(",") if host)
        return cls(kind=kind, urls=urls, name=name, sentinel=sentinel, wait_replicas=wait)


def _count(text: str, url: str) -> int:
    if not text.isdigit() or int(text) > 16:
        raise StoreUnfit(f"wait_replicas is a number of replicas, not {text!r}, in {without_password(url)!r}")
    return int(text)


def _no_address(url: str, error: object = "") -> StoreUnfit:
    why = f" ({error})" if error else ""
    return StoreUnfit(
        f"not the address of a Redis-compatible server: {without_password(url)!r}{why}; {FORMS}"
    )


def servers_at(address: Address) -> Servers:
    """Who is there. Nothing is connected yet.

    Raises
    ------
    StoreUnfit
        For an address that redis-py cannot make sense of.
    """
    if address.kind == "cluster":
        return Cluster(address.urls)
    if address.kind == "sentinel":
        return Sentinels(address)
    return OneServer(address.urls[0])


def client_at(url: str, *, answers_soon: bool = True) -> Client:
    """A client of one server.

    Raises
    ------
    StoreUnfit
        For an address that redis-py cannot make sense of.
    """
    try:
        return _raw(aioredis.Redis.from_url(url, **_patience(answers_soon)))
    except (ValueError, TypeError) as error:
        raise _no_address(url, error) from error


def lane_to(blocking: Client) -> Lane:
    """The short way to the server of a client that waits for its answers without a limit."""
    return Lane(blocking, timeout_s=ANSWER_TIMEOUT_S)


def _patience(answers_soon: bool) -> dict[str, Any]:
    return {
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": ANSWER_TIMEOUT_S if answers_soon else None,
        "retry": Retry(NoBackoff(), 1),  # a pooled connection may have died since it was last used
    }


def _raw(client: Client) -> Client:
    # redis-py's own reader of the answer fails where a command is not known, which is what is asked here.
    client.set_response_callback("COMMAND", _untouched)
    return client


def _untouched(reply: Any, **_: Any) -> Any:
    return reply


class OneServer:
    """See `Servers`. Blocking reads delay nobody, and time out by themselves."""

    is_cluster = False

    def __init__(self, url: str) -> None:
        self._client = client_at(url)
        self._blocking = client_at(url, answers_soon=False)
        self._lane = lane_to(self._blocking)

    async def of(self, key: str) -> Client:  # noqa: ARG002 - it holds every key
        """See `Servers.of`."""
        return self._client

    async def lane_of(self, key: str) -> Lane:  # noqa: ARG002 - it holds every key
        """See `Servers.lane_of`."""
        return self._lane

    async def blocking_of(self, key: str) -> Client:  # noqa: ARG002 - it holds every key
        """See `Servers.blocking_of`."""
        return self._blocking

    async def each(self) -> list[Client]:
        """See `Servers.each`."""
        return [self._client]

    def failed(self) -> None:
        """There is nobody else to ask."""

    async def close(self) -> None:
        """See `Servers.close`."""
        await self._lane.close()
        await self._client.aclose()
        await self._blocking.aclose()


class Sentinels(OneServer):
    """See `Servers`. Each new connection goes to whoever sentinels name then."""

    def __init__(self, address: Address) -> None:
        try:
            nodes = [aioredis.connection.parse_url(url) for url in address.urls]
        except (ValueError, TypeError) as error:
            raise _no_address(",".join(address.urls), error) from error
        shared: dict[str, Any] = {
            name: value
            for name, value in nodes[0].items()
            if name not in ("host", "port", "connection_class")
        }
        encrypted = "connection_class" in nodes[0]
        of_sentinels = {name: value for name, value in shared.items() if name.startswith("ssl_")}
        untyped: Any = Sentinel
        self._sentinel = untyped(
            [(node.get("host", "localhost"), node.get("port", 26379)) for node in nodes],
            sentinel_kwargs={
                **of_sentinels,
                **address.sentinel,
                "ssl": encrypted,
                "socket_connect_timeout": CONNECT_TIMEOUT_S,
                "socket_timeout": CONNECT_TIMEOUT_S,
            },
        )
        self._client, self._blocking = (
            _raw(self._sentinel.master_for(address.name, ssl=encrypted, **shared, **_patience(soon)))
            for soon in (True, False)
        )
        self._lane = lane_to(self._blocking)

    async def close(self) -> None:
        """See `Servers.close`."""
        await super().close()
        for sentinel in self._sentinel.sentinels:
            await sentinel.aclose()


class Cluster:
    """See `Servers`.

    Parameters
    ----------
    urls : iterable of str
        Of some nodes; the others are learnt from them.
    """

    is_cluster = True

    def __init__(self, urls: Iterable[str]) -> None:
        self._asked = [_Node(url) for url in urls]
        self._nodes: dict[str, _Node] = {node.url: node for node in self._asked}
        self._ranges: list[tuple[int, int, str]] = []
        self._stale = True
        self._learnt_s = float("-inf")
        self._learning = asyncio.Lock()

    async def of(self, key: str) -> Client:
        """See `Servers.of`."""
        return (await self._node(key)).client

    async def lane_of(self, key: str) -> Lane:
        """See `Servers.lane_of`."""
        return (await self._node(key)).lane

    async def blocking_of(self, key: str) -> Client:
        """See `Servers.blocking_of`."""
        return (await self._node(key)).blocking

    async def each(self) -> list[Client]:
        """See `Servers.each`."""
        await self._learn()
        return [self._nodes[url].client for url in dict.fromkeys(url for _, _, url in self._ranges)]

    def failed(self) -> None:
        """Learn the slots again before the next command."""
        self._stale = True

    async def close(self) -> None:
        """See `Servers.close`."""
        for node in self._nodes.values():
            await node.close()

    async def _node(self, key: str) -> _Node:
        await self._learn()
        slot = key_slot(key.encode())
        for first, last, url in self._ranges:
            if first <= slot <= last:
                return self._nodes[url]
        self._stale = True
        raise RedisError(f"no node of the cluster serves slot {slot} now")

    async def _learn(self) -> None:
        """Ask who serves what, where that may have changed; not more often than makes sense."""
        if not self._stale:
            return
        async with self._learning:
            if not self._stale or time.monotonic() < self._learnt_s + LEARN_EVERY_S:
                return
            self._learnt_s = time.monotonic()
            rows, asked = await self._slots()
            self._ranges = [
                (int(row[0]), int(row[1]), self._known(asked, row[2])) for row in rows if len(row) > 2
            ]
            self._stale = False

    async def _slots(self) -> tuple[Any, _Node]:
        """From the first node that answers."""
        failure: Exception = RedisError("no node of the cluster answers")
        serving = {url for _, _, url in self._ranges}
        nodes = sorted(self._nodes.values(), key=lambda node: node.url not in serving)
        for node in nodes:
            try:
                rows = await node.client.execute_command("CLUSTER", "SLOTS")
            except (RedisError, OSError, asyncio.TimeoutError) as error:  # noqa: UP041 - differs before 3.11.3
                failure = error
            else:
                return rows, node
        raise failure

    def _known(self, asked: _Node, named: Any) -> str:
        """The node of that name. One that does not say where it is is where the asked one is."""
        host = named[0].decode() if isinstance(named[0], bytes) else named[0]
        url = asked.beside(host if host and host != "?" else None, int(named[1]))
        self._nodes.setdefault(url, _Node(url))
        return url


class _Node:
    """A server of a cluster, connected to when it is needed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = client_at(url)
        self.blocking = client_at(url, answers_soon=False)
        self.lane = lane_to(self.blocking)

    def beside(self, host: str | None, port: int) -> str:
        """The address of another node, reached in the same way as this one."""
        match = re.fullmatch(
            r"(rediss?://(?:[^/?#]*@)?)(\[[^\]]*\]|[^:/?#]*)(?::\d+)?([^?#]*)(\?.*)?", self.url
        )
        assert match is not None
        at = match[2] if host is None else f"[{host}]" if ":" in host else host
        return f"{match[1]}{at}:{port}{match[4] or ''}"

    async def close(self) -> None:
        await self.lane.close()
        await self.client.aclose()
        await self.blocking.aclose()
