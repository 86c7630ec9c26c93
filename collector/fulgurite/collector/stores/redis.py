"""The store in a Redis-compatible server, or in a cluster of them: Streams with explicit ids.

Keys of a replica, which one hash tag keeps in one slot, ``fulgurite:{namespace/service/instance}:…``:

======= ======= ======================================================================================
frames  stream  batches, id `<epoch ms>-<sequence of the last frame>`: b bytes, n frames, s schema, t time
events  stream  batches without frames, id given by the server: the same, and f: the id they stand behind
marks   stream  one entry per beat in which something came: p newest id of frames, b bytes since the last
state   hash    announcement, status, bytes (held by the marks), control (what is asked of it)
watched string  expires when nobody has watched for some seconds
w1 …    stream  windows of 1 s, 10 s (w10) and 60 s (w60): b bytes
schemas hash    schema hash -> announcement with that schema
epoch   string  the last epoch that was given
alive   string  expires `ALIVE_S` after the last beat
======= ======= ======================================================================================

``fulgurite:replicas`` is the set of all replicas, ``fulgurite:spans:<minute>`` what others sent by OTLP.
Times of the past are those of the server, whose clock all collectors share. Works from Redis 6.2 and on
every Valkey, speaking RESP2 or RESP3; what the server can do is asked by COMMAND INFO.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from fulgurite.collector.config import Durability, without_password
from fulgurite.collector.store import (
    ALIVE_S,
    WINDOWS_KEPT,
    Entry,
    EntryId,
    Outcome,
    Page,
    Position,
    Registration,
    ReplicaRow,
    Retention,
    StaleEpoch,
    StoreUnavailable,
    StoreUnfit,
    Wish,
    windows_kept,
)
from fulgurite.collector.stores.lane import Command, Lane, unrefused
from fulgurite.collector.stores.servers import ANSWER_TIMEOUT_S, Address, servers_at
from fulgurite.wire.replica import ReplicaKey

REGISTRY: Final = "fulgurite:replicas"
_WINDOWS: Final = tuple(f"w{width_s}" for width_s in WINDOWS_KEPT)
FORGET_S: Final = 60.0
MARKS_AT_ONCE: Final = 128
SPANS: Final = "fulgurite:spans"
SPANS_EVERY_S: Final = 60
SPANS_AT_ONCE: Final = 1000
SAFE_TIMEOUT_MS: Final = 2000
OLDEST_SERVER: Final = "Redis 6.2 or newer, or Valkey"

_REGISTER: Final = """
local function split(id)
  local dash = string.find(id, '-', 1, true)
  return string.sub(id, 1, dash - 1), string.sub(id, dash + 1)
end
local last = redis.call('GET', KEYS[1]) or '0'
local top_epoch, top_sequence = '0', '0'
local info = redis.pcall('XINFO', 'STREAM', KEYS[2])
if not info.err then
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then top_epoch, top_sequence = split(info[i + 1]) end
  end
end
if tonumber(top_epoch) > tonumber(last) then last = top_epoch end
local epoch = ARGV[1]
if epoch == '0' or tonumber(epoch) < tonumber(last) then
  epoch = ARGV[2]
  if tonumber(epoch) <= tonumber(last) then epoch = string.format('%.0f', tonumber(last) + 1) end
end
redis.call('SET', KEYS[1], epoch, 'EX', ARGV[3])
if epoch ~= top_epoch then top_sequence = '0' end
return {epoch, top_sequence}
"""

P = ParamSpec("P")
T = TypeVar("T")


def _guarded(
    method: Callable[Concatenate[RedisStore, P], Awaitable[T]],
) -> Callable[Concatenate[RedisStore, P], Coroutine[Any, Any, T]]:
    """What redis-py raises, in the words of the port."""

    @wraps(method)
    async def call(self: RedisStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await method(self, *args, **kwargs)
        except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
            raise StoreUnfit(f"{self.where} does not let the collector in: {error}") from error
        except (
            ResponseError
        ) as error:  # full, read-only, loading, in the wrong role: whatever it is, nothing is lost
            self._servers.failed()
            raise StoreUnavailable(f"{self.where} refuses: {_said(error)[:200]}") from error
        except (RedisError, OSError, asyncio.TimeoutError) as error:  # noqa: UP041 - it differs before 3.11.3
            self._servers.failed()
            raise StoreUnavailable(f"{self.where} does not answer: {_said(error)}") from error

    return call


def _said(error: BaseException) -> str:
    return (str(error) or type(error).__name__).rstrip(".")


class RedisStore:
    """See `Store`.

    Parameters
    ----------
    url : str
        As in `fulgurite.collector.stores.servers`.
    label : str
        What to call the server in messages; by default the URL without its password.
    """

    def __init__(
        self,
        url: str,
        *,
        retention: Retention = Retention(),  # noqa: B008 - frozen
        durability: Durability = "everysec",
        label: str = "",
    ) -> None:
        self.where = label or f"the Redis-compatible server at {without_password(url)}"
        self._is_embedded = bool(label)
        self._retention = retention
        self._durability = durability
        self._expiry_s = int(retention.age_s + FORGET_S)
        self._name = ""
        self._waits_for_disk = False
        self._unmarked: dict[ReplicaKey, int] = {}
        self._marked: dict[ReplicaKey, EntryId] = {}
        address = Address.parse(url)
        self._wait_replicas = address.wait_replicas
        self._servers = servers_at(address)
        self.warnings: list[str] = []

    # --- life

    @property
    def name(self) -> str:
        """See `Store.name`."""
        return self._name

    @_guarded
    async def open(self) -> None:
        """See `Store.open`."""
        servers = await self._servers.each()
        for client in servers:
            has_waitaof = await self._see_to_fitness(client)
            await self._see_to_durability(client, has_waitaof=has_waitaof)
        if self._servers.is_cluster:
            self._name += f" (cluster of {len(servers)})"

    async def _see_to_fitness(self, client: Any) -> bool:
        """Raises where the server is too old; returns whether it knows WAITAOF."""
        info = await client.info("server")
        kind = "valkey" if "valkey_version" in info else "redis"
        version = info.get(f"{kind}_version", "of unknown version")
        self._name = f"{kind} {version}" + (" (embedded)" if self._is_embedded else "")
        commands = await _commands(client, "xautoclaim", "waitaof")
        if "xautoclaim" not in commands:  # it came with XTRIM MINID
            raise StoreUnfit(f"{self.where} is too old ({self._name}): the collector needs {OLDEST_SERVER}")
        return "waitaof" in commands

    async def _see_to_durability(self, client: Any, *, has_waitaof: bool) -> None:
        if self._durability == "none":
            return
        try:
            config = await client.config_get("appendonly")
            config |= await client.config_get("appendfsync")
        except ResponseError:
            config = {}
        persists = config.get("appendonly")
        if self._durability == "everysec":
            if persists == "no" and not self.warnings:
                self.warnings.append(
                    f"{self.where} keeps nothing on disk (appendonly no): what it holds is lost with it"
                )
            return
        if self._durability == "waitaof" and (persists == "no" or not has_waitaof):
            raise StoreUnfit(
                f"{self.where} cannot be asked whether an entry is on disk: "
                + ("set `appendonly yes` there" if has_waitaof else "it has no WAITAOF (Redis 7.2, Valkey)")
                + ", or choose --durability everysec"
            )
        if persists == "yes" and config.get("appendfsync") == "always":
            return
        if persists == "no" or not has_waitaof:
            raise StoreUnfit(
                f"{self.where} cannot promise that what is acknowledged is on disk: set `appendonly yes` and "
                "`appendfsync always` there, or choose --durability everysec"
            )
        self._waits_for_disk = True

    async def close(self) -> None:
        """See `Store.close`."""
        await self._servers.close()

    async def _of(self, key: ReplicaKey) -> Any:
        """The server that holds all keys of a replica."""
        return await self._servers.of(_key(key, "frames"))

    async def _lane(self, key: ReplicaKey) -> Lane:
        """The short way to it."""
        return await self._servers.lane_of(_key(key, "frames"))

    async def _enlist(self, key: ReplicaKey) -> None:
        await (await self._servers.of(REGISTRY)).sadd(REGISTRY, key.text)

    # --- writing

    @_guarded
    async def register(self, key: ReplicaKey, *, asked_epoch_ms: int, now_ms: int) -> Registration:
        """See `Store.register`."""
        keys = [_key(key, "epoch"), _key(key, "frames")]
        # The script itself and not its hash: it runs once a connection, and a shard may not have it yet.
        client = await self._of(key)
        epoch, sequence = await client.eval(_REGISTER, 2, *keys, asked_epoch_ms, now_ms, self._expiry_s)
        return Registration(int(epoch), int(sequence))

    @_guarded
    async def announce(self, key: ReplicaKey, schema_hash: bytes, announcement: bytes) -> None:
        """See `Store.announce`."""
        pipe = (await self._of(key)).pipeline(transaction=True)
        pipe.hset(_key(key, "schemas"), schema_hash, announcement)
        pipe.hset(_key(key, "state"), "announcement", announcement)
        pipe.expire(_key(key, "schemas"), self._expiry_s)
        pipe.expire(_key(key, "state"), self._expiry_s)
        await pipe.execute()
        await self._enlist(key)

    @_guarded
    async def announcement(self, key: ReplicaKey, schema_hash: bytes) -> bytes | None:
        """See `Store.announcement`."""
        value: bytes | None = await (await self._of(key)).hget(_key(key, "schemas"), schema_hash)
        return value

    @_guarded
    async def append(self, key: ReplicaKey, entries: Sequence[Entry]) -> list[Outcome]:
        """See `Store.append`."""
        lane = await self._lane(key)
        commands = [("XADD", *_written(key, entry)) for entry in entries]
        # A transaction: a server that is full may refuse one command and take the next, a hole for ever.
        ask = lane.ask if len(commands) == 1 else lane.transact
        replies = await ask(*commands)
        outcomes = []
        for entry, reply in zip(entries, replies, strict=True):
            if isinstance(reply, Exception):
                outcomes.append(await self._rejected(key, entry, reply))
            else:
                self._unmarked[key] = self._unmarked.get(key, 0) + len(entry.batch)
                outcomes.append(Outcome.APPENDED)
        if self._waits_for_disk or self._wait_replicas:
            await self._wait_until_safe(await self._of(key), key)
        return outcomes

    async def _rejected(self, key: ReplicaKey, entry: Entry, error: Exception) -> Outcome:
        if "equal or smaller" not in str(error):
            raise error
        newest = (await self._last_ids(key)).frames
        if newest.epoch_ms != entry.id.epoch_ms:
            raise StaleEpoch(f"{entry.id.text} comes after {newest.text}, which is of a later epoch")
        return Outcome.DUPLICATE

    async def _wait_until_safe(self, client: Any, key: ReplicaKey) -> None:
        """Until what was appended is on disk, and with so many replicas, as was asked for.

        Both commands speak of what their own connection wrote before, which may be another than the one that
        appended: so they stand behind a write.
        """
        pipe = client.pipeline(transaction=False)
        pipe.expire(_key(key, "frames"), self._expiry_s)
        if self._waits_for_disk:
            pipe.execute_command("WAITAOF", 1, self._wait_replicas, SAFE_TIMEOUT_MS)
        else:
            pipe.execute_command("WAIT", self._wait_replicas, SAFE_TIMEOUT_MS)
        _, reply = await pipe.execute()
        local, replicas = reply if self._waits_for_disk else (1, reply)
        if int(local) < 1:
            raise StoreUnavailable(f"{self.where} did not write to disk within {SAFE_TIMEOUT_MS / 1e3:g} s")
        if int(replicas) < self._wait_replicas:
            raise StoreUnavailable(
                f"{self.where} has {replicas} replicas that took an entry within "
                f"{SAFE_TIMEOUT_MS / 1e3:g} s, and {self._wait_replicas} are asked for"
            )

    @_guarded
    async def beat(self, key: ReplicaKey, status: bytes) -> None:
        """See `Store.beat`."""
        lane = await self._lane(key)
        newest = _last_id(*await lane.ask(("XINFO", "STREAM", _key(key, "frames"))))
        nbytes = self._unmarked.pop(key, 0)
        state = _key(key, "state")
        commands: list[Command] = [
            ("HSET", state, "status", status),
            ("SET", _key(key, "alive"), 1, "PX", int(ALIVE_S * 1000)),
        ]
        if newest != self._marked.get(key) or nbytes:
            commands.append(("XADD", _key(key, "marks"), "*", "p", newest.text, "b", nbytes))
            commands.append(("HINCRBY", state, "bytes", nbytes))
        for name in ("frames", "events", "marks", "state", "schemas", "epoch", *_WINDOWS):
            commands.append(("EXPIRE", _key(key, name), self._expiry_s))
        enlists = ("SADD", REGISTRY, key.text)
        if not self._servers.is_cluster:  # where the list is in another slot
            commands.append(enlists)
        try:
            unrefused(await lane.transact(*commands))
        except BaseException:
            self._unmarked[key] = self._unmarked.get(key, 0) + nbytes
            raise
        self._marked[key] = newest
        if self._servers.is_cluster:
            unrefused(await (await self._servers.lane_of(REGISTRY)).ask(enlists))

    @_guarded
    async def trim(self, key: ReplicaKey) -> None:
        """See `Store.trim`."""
        lane, marks = await self._lane(key), _key(key, "marks")
        first = ("XRANGE", marks, "-", "+", "COUNT", MARKS_AT_ONCE)
        told = await lane.ask(("TIME",), ("HGET", _key(key, "state"), "bytes"), first)
        (seconds, micros), held_text, rows = unrefused(told)
        too_old_ms = int(seconds) * 1000 + int(micros) // 1000 - int(self._retention.age_s * 1000)
        held = int(held_text or 0)
        cut: tuple[Any, EntryId] | None = None
        cut_bytes = 0
        while rows:
            for mark, fields in rows:
                mark_id = EntryId.parse(_text(mark))
                row = _fields(fields)
                if mark_id.epoch_ms > too_old_ms and held - cut_bytes <= self._retention.nbytes:
                    break
                cut, cut_bytes = (mark_id, EntryId.parse(_text(row[b"p"]))), cut_bytes + int(row[b"b"])
            else:
                after = ("XRANGE", marks, f"({_text(rows[-1][0])}", "+", "COUNT", MARKS_AT_ONCE)
                (rows,) = unrefused(await lane.ask(after))
                continue
            break
        commands: list[Command] = []
        if cut:
            commands.append(("XTRIM", marks, "MINID", cut[0].next.text))
            commands.append(("XTRIM", _key(key, "frames"), "MINID", cut[1].next.text))
            commands.append(("HINCRBY", _key(key, "state"), "bytes", -cut_bytes))
        oldest_ms = max(too_old_ms, cut[0].epoch_ms if cut else 0, 0)  # sketches may be large as well
        commands.append(("XTRIM", _key(key, "events"), "MINID", f"{oldest_ms}-0"))
        unrefused(await lane.ask(*commands))

    # --- reading

    @_guarded
    async def read(self, key: ReplicaKey, after: Position, *, limit: int, wait_s: float = 0.0) -> Page:
        """See `Store.read`."""
        keys = (_key(key, "frames"), _key(key, "events"))
        options = ["COUNT", limit] + (["BLOCK", max(1, int(wait_s * 1000))] if wait_s > 0 else [])
        command = ("XREAD", *options, "STREAMS", *keys, after.frames.text, after.events.text)
        if wait_s > 0:
            task = asyncio.current_task()
            before = 0 if task is None else task.cancelling()
            client = await self._servers.blocking_of(keys[0])
            # No `wait_for`: it loses a cancellation that meets an answer, and a reader would go on for ever.
            async with asyncio.timeout(wait_s + ANSWER_TIMEOUT_S):
                reply = await client.execute_command(*command)
            if task is not None and task.cancelling() > before:  # redis-py uses it where it asks sentinels
                raise asyncio.CancelledError
        else:
            reply = await (await self._of(key)).execute_command(*command)
        streams = _streams(reply)
        frames = [_frames_entry(*row) for row in streams.get(keys[0], ())]
        events = [_events_entry(*row) for row in streams.get(keys[1], ())]
        entries = _merged(frames, events, limit)
        position = after
        for entry in entries:
            position = position.past(entry)
        return Page(tuple(entries), position)

    @_guarded
    async def newest(self, key: ReplicaKey) -> Position:
        """See `Store.newest`."""
        return await self._last_ids(key)

    @_guarded
    async def back(self, key: ReplicaKey, seconds: float) -> Position:
        """See `Store.back`."""
        client = await self._of(key)
        then_ms = max(0, await _server_ms(client) - int(seconds * 1000))
        marks = await client.execute_command("XREVRANGE", _key(key, "marks"), f"{then_ms}", "-", "COUNT", 1)
        if not marks:
            return Position()
        mark_id, fields = marks[0]
        return Position(
            EntryId.parse(_text(_fields(fields)[b"p"])), EntryId(EntryId.parse(_text(mark_id)).epoch_ms)
        )

    @_guarded
    async def oldest(self, key: ReplicaKey) -> EntryId | None:
        """See `Store.oldest`."""
        client = await self._of(key)
        rows = await client.execute_command("XRANGE", _key(key, "frames"), "-", "+", "COUNT", 1)
        return EntryId.parse(_text(rows[0][0])) if rows else None

    @_guarded
    async def mark_watched(self, keys: Sequence[ReplicaKey], seconds: float) -> None:
        """See `Store.mark_watched`."""
        for lane, of_it in (await self._by_server(keys)).items():
            lasts_ms = int(seconds * 1000)
            unrefused(await lane.ask(*(("SET", _key(key, "watched"), 1, "PX", lasts_ms) for key in of_it)))

    @_guarded
    async def ask(self, key: ReplicaKey, control: bytes) -> None:
        """See `Store.ask`."""
        pipe = (await self._of(key)).pipeline(transaction=True)
        pipe.hset(_key(key, "state"), "control", control)
        pipe.expire(_key(key, "state"), self._expiry_s)
        await pipe.execute()

    @_guarded
    async def wishes(self, keys: Sequence[ReplicaKey]) -> dict[ReplicaKey, Wish]:
        """See `Store.wishes`."""
        found: dict[ReplicaKey, Wish] = {}
        for lane, of_it in (await self._by_server(keys)).items():
            watched = [("EXISTS", _key(key, "watched")) for key in of_it]
            asked = [("HGET", _key(key, "state"), "control") for key in of_it]
            replies = unrefused(await lane.ask(*watched, *asked))
            rows = zip(of_it, replies[: len(of_it)], replies[len(of_it) :], strict=True)
            found |= {key: Wish(bool(is_watched), control or b"") for key, is_watched, control in rows}
        return found

    @_guarded
    async def keep_windows(self, key: ReplicaKey, windows: Sequence[tuple[int, bytes]]) -> None:
        """See `Store.keep_windows`."""
        commands = []
        for width_s, window in windows:
            most = windows_kept(width_s, len(window), self._retention)
            commands.append(("XADD", _key(key, f"w{width_s}"), "MAXLEN", most, "*", "b", window))
        unrefused(await (await self._lane(key)).ask(*commands))

    @_guarded
    async def windows(self, key: ReplicaKey, width_s: int, *, seconds: float) -> list[bytes]:
        """See `Store.windows`."""
        client = await self._of(key)
        start = str(max(0, await _server_ms(client) - int(seconds * 1000))) if seconds else "-"
        rows = await client.execute_command("XRANGE", _key(key, f"w{width_s}"), start, "+")
        return [bytes(_fields(fields)[b"b"]) for _, fields in rows]

    async def _by_server(self, keys: Sequence[ReplicaKey]) -> dict[Lane, list[ReplicaKey]]:
        """The replicas of each server that holds some."""
        shards: dict[Lane, list[ReplicaKey]] = {}
        for key in keys:
            shards.setdefault(await self._lane(key), []).append(key)
        return shards

    @_guarded
    async def keep_spans(self, parts: Sequence[tuple[bytes, bytes]]) -> None:
        """See `Store.keep_spans`."""
        # One command for all of a request: a sorted set per minute, whose members begin with the trace id, so
        # that a trace is a range of it, and the same member twice is one.
        key = f"{SPANS}:{int(time.time() // SPANS_EVERY_S)}"
        pipe = (await self._servers.of(key)).pipeline(transaction=False)
        for at in range(0, len(parts), SPANS_AT_ONCE):
            page = parts[at : at + SPANS_AT_ONCE]
            words = [word for trace_id, part in page for word in (0, trace_id + part)]
            pipe.execute_command("ZADD", key, *words)
        pipe.expire(key, int(self._retention.age_s + SPANS_EVERY_S))
        await pipe.execute()

    @_guarded
    async def spans(self, trace_id: bytes) -> list[bytes]:
        """See `Store.spans`."""
        now = int(time.time() // SPANS_EVERY_S)
        minutes = range(now - int(self._retention.age_s // SPANS_EVERY_S) - 1, now + 2)
        behind = int.from_bytes(trace_id, "big") + 1
        end = b"+" if behind >> 8 * len(trace_id) else b"(" + behind.to_bytes(len(trace_id), "big")
        names = [f"{SPANS}:{minute}" for minute in minutes]
        found = await asyncio.gather(*(self._in_range(name, b"[" + trace_id, end) for name in names))
        return [member[len(trace_id) :] for members in found for member in members]

    async def _in_range(self, name: str, start: bytes, end: bytes) -> list[bytes]:
        found: list[bytes] = await (await self._servers.of(name)).zrangebylex(name, start, end)
        return found

    @_guarded
    async def replicas(self) -> list[ReplicaRow]:
        """See `Store.replicas`."""
        registry = await self._servers.lane_of(REGISTRY)
        (members,) = unrefused(await registry.ask(("SMEMBERS", REGISTRY)))
        shards = await self._by_server(_keys(members))
        if len(shards) == 1:
            found = [await _rows(lane, of_it) for lane, of_it in shards.items()]
        else:
            found = await asyncio.gather(*(_rows(lane, of_it) for lane, of_it in shards.items()))
        rows = [row for of_it in found for row in of_it]
        forgotten = [row.key.text for row in rows if row.announcement is None]
        if forgotten:
            await _strike(await self._servers.of(REGISTRY), forgotten)
        return sorted((row for row in rows if row.announcement is not None), key=lambda row: row.key)

    async def _last_ids(self, key: ReplicaKey) -> Position:
        """The newest ids that were ever given, whether or not their entries are still there."""
        pipe = (await self._of(key)).pipeline(transaction=False)
        pipe.execute_command("XINFO STREAM", _key(key, "frames"))
        pipe.execute_command("XINFO STREAM", _key(key, "events"))
        replies = await pipe.execute(raise_on_error=False)
        return Position(*(_last_id(reply) for reply in replies))


async def _commands(client: Any, *names: str) -> set[str]:
    """Which of these commands a server has."""
    try:
        reply = await client.execute_command("COMMAND", "INFO", *names)
    except NoPermissionError:
        return set(names) - {"waitaof"}
    return {_text(one[0]).lower() for one in reply if one}


async def _server_ms(client: Any) -> int:
    seconds, micros = await client.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def _rows(lane: Lane, keys: Sequence[ReplicaKey]) -> list[ReplicaRow]:
    """What a server knows of these replicas; without an announcement where it has forgotten one."""
    states = [("HMGET", _key(key, "state"), "announcement", "status") for key in keys]
    beats = [("EXISTS", _key(key, "alive")) for key in keys]
    replies = unrefused(await lane.ask(*states, *beats))
    return [
        ReplicaRow(key, announcement, status or b"", bool(alive))
        for key, (announcement, status), alive in zip(
            keys, replies[: len(keys)], replies[len(keys) :], strict=True
        )
    ]


async def _strike(registry: Any, names: Sequence[str]) -> None:
    """Take the forgotten off the list; who may only read leaves that to others."""
    try:
        await registry.srem(REGISTRY, *names)
    except NoPermissionError:
        pass


def _keys(members: Iterable[bytes | str]) -> list[ReplicaKey]:
    """The replicas in the registry; what is none of ours there must not hide them."""
    keys = []
    for member in members:
        try:
            keys.append(ReplicaKey.parse(_text(member)))
        except ValueError:
            continue
    return sorted(keys)


def _key(key: ReplicaKey, name: str) -> str:
    return f"fulgurite:{{{key.text}}}:{name}"


def _written(key: ReplicaKey, entry: Entry) -> tuple[Any, ...]:
    row = ("n", entry.count, "s", entry.schema_hash, "t", entry.ingested_ns, "b", entry.batch)
    if entry.count:
        return (_key(key, "frames"), entry.id.text, *row)
    return (_key(key, "events"), "*", *row, "f", entry.id.text)


def _frames_entry(entry_id: bytes | str, fields: dict[bytes, bytes]) -> Entry:
    at = EntryId.parse(_text(entry_id))
    return _entry(at, at, fields)


def _events_entry(entry_id: bytes | str, fields: dict[bytes, bytes]) -> Entry:
    return _entry(EntryId.parse(_text(fields[b"f"])), EntryId.parse(_text(entry_id)), fields)


def _entry(entry_id: EntryId, at: EntryId, fields: dict[bytes, bytes]) -> Entry:
    return Entry(
        id=entry_id,
        at=at,
        count=int(fields[b"n"]),
        schema_hash=bytes(fields[b"s"]),
        ingested_ns=int(fields[b"t"]),
        batch=bytes(fields[b"b"]),
    )


def _merged(frames: list[Entry], events: list[Entry], limit: int) -> list[Entry]:
    """Both by time, each in its own order; nothing behind the end of one that the limit cut off."""
    merged: list[Entry] = []
    at_f = at_e = 0
    while at_f < len(frames) or at_e < len(events):
        frames_cut = at_f == len(frames) and len(frames) >= limit
        events_cut = at_e == len(events) and len(events) >= limit
        if frames_cut or events_cut:
            break
        takes_frame = at_e == len(events) or (
            at_f < len(frames) and frames[at_f].ingested_ns <= events[at_e].ingested_ns
        )
        merged.append(frames[at_f] if takes_frame else events[at_e])
        at_f, at_e = at_f + takes_frame, at_e + (not takes_frame)
    return merged


def _streams(reply: Any) -> dict[str, list[tuple[Any, dict[bytes, bytes]]]]:
    """Rows by stream, from what RESP2 (lists) or RESP3 (a map) made of an XREAD."""
    if not reply:
        return {}
    pairs: Iterable[tuple[Any, Any]] = reply.items() if isinstance(reply, dict) else reply
    streams = {}
    for name, rows in pairs:
        # redis-py wraps the rows once more under RESP3.
        unwrapped = rows[0] if len(rows) == 1 and isinstance(rows[0], list) else rows
        streams[_text(name)] = [(row[0], _fields(row[1])) for row in unwrapped if row[1] is not None]
    return streams


def _fields(fields: Any) -> dict[bytes, bytes]:
    if isinstance(fields, dict):
        return fields
    return dict(zip(fields[::2], fields[1::2], strict=True))


def _last_id(reply: Any) -> EntryId:
    if isinstance(reply, ResponseError) and "no such key" in str(reply):
        return EntryId()
    if isinstance(reply, Exception):
        raise reply
    pairs = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    values = {_text(name): value for name, value in pairs.items()}
    return EntryId.parse(_text(values["last-generated-id"]))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
