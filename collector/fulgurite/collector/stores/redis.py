"""The store in a Redis-compatible server: Streams with explicit ids. The only file that imports redis.

Keys of a replica, which one hash tag keeps in one slot, ``fulgurite:{namespace/service/instance}:…``:

======= ======= ======================================================================================
frames  stream  batches, id `<epoch ms>-<sequence of the last frame>`: b bytes, n frames, s schema, t time
events  stream  batches without frames, id given by the server: the same, and f: the id they stand behind
marks   stream  one entry per beat in which something came: p newest id of frames, b bytes since the last
state   hash    announcement, status, bytes (held by the marks)
schemas hash    schema hash -> announcement with that schema
epoch   string  the last epoch that was given
alive   string  expires `ALIVE_S` after the last beat
======= ======= ======================================================================================

``fulgurite:replicas`` is the set of all replicas. Times of the past are those of the server, whose clock all
collectors share. Works from Redis 6.2 and on every Valkey, speaking RESP2 or RESP3; what the server can do is
asked by COMMAND INFO.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
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
)
from fulgurite.wire.replica import ReplicaKey

REGISTRY: Final = "fulgurite:replicas"
FORGET_S: Final = 60.0
CONNECT_TIMEOUT_S: Final = 2.0
ANSWER_TIMEOUT_S: Final = 5.0
AOF_TIMEOUT_MS: Final = 2000
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
            raise StoreUnavailable(f"{self.where} refuses: {_said(error)[:200]}") from error
        except (RedisError, OSError, asyncio.TimeoutError) as error:  # noqa: UP041 - it differs before 3.11.3
            raise StoreUnavailable(f"{self.where} does not answer: {_said(error)}") from error

    return call


def _said(error: BaseException) -> str:
    return (str(error) or type(error).__name__).rstrip(".")


class RedisStore:
    """See `Store`.

    Parameters
    ----------
    url : str
        ``redis://``, ``rediss://`` or ``unix://``, with what redis-py takes behind the question mark.
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
        self._client = _client(url, ANSWER_TIMEOUT_S)
        # Blocking reads have connections of their own and delay nobody; they time out by themselves.
        self._blocking = _client(url, None)
        self._register = self._client.register_script(_REGISTER)
        self.warnings: list[str] = []

    # --- life

    @property
    def name(self) -> str:
        """See `Store.name`."""
        return self._name

    @_guarded
    async def open(self) -> None:
        """See `Store.open`."""
        info = await self._client.info("server")
        kind = "valkey" if "valkey_version" in info else "redis"
        version = info.get(f"{kind}_version", "of unknown version")
        self._name = f"{kind} {version}" + (" (embedded)" if self._is_embedded else "")
        commands = await self._commands("xautoclaim", "waitaof")
        if "xautoclaim" not in commands:  # it came with XTRIM MINID
            raise StoreUnfit(f"{self.where} is too old ({self._name}): the collector needs {OLDEST_SERVER}")
        await self._see_to_durability(has_waitaof="waitaof" in commands)

    async def _commands(self, *names: str) -> set[str]:
        try:
            reply = await self._client.execute_command("COMMAND", "INFO", *names)
        except NoPermissionError:
            return set(names) - {"waitaof"}
        return {_text(one[0]).lower() for one in reply if one}

    async def _see_to_durability(self, *, has_waitaof: bool) -> None:
        if self._durability == "memory":
            return
        try:
            config = await self._client.config_get("appendonly")
            config |= await self._client.config_get("appendfsync")
        except ResponseError:
            config = {}
        persists = config.get("appendonly")
        if self._durability == "everysec":
            if persists == "no":
                self.warnings.append(
                    f"{self.where} keeps nothing on disk (appendonly no): what it holds is lost with it"
                )
            return
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
        await self._client.aclose()
        await self._blocking.aclose()

    # --- writing

    @_guarded
    async def register(self, key: ReplicaKey, *, asked_epoch_ms: int, now_ms: int) -> Registration:
        """See `Store.register`."""
        keys = [_key(key, "epoch"), _key(key, "frames")]
        epoch, sequence = await self._register(keys=keys, args=[asked_epoch_ms, now_ms, self._expiry_s])
        return Registration(int(epoch), int(sequence))

    @_guarded
    async def announce(self, key: ReplicaKey, schema_hash: bytes, announcement: bytes) -> None:
        """See `Store.announce`."""
        pipe = self._client.pipeline(transaction=True)
        pipe.hset(_key(key, "schemas"), schema_hash, announcement)
        pipe.hset(_key(key, "state"), "announcement", announcement)
        pipe.expire(_key(key, "schemas"), self._expiry_s)
        pipe.expire(_key(key, "state"), self._expiry_s)
        await pipe.execute()
        await self._client.sadd(REGISTRY, key.text)

    @_guarded
    async def announcement(self, key: ReplicaKey, schema_hash: bytes) -> bytes | None:
        """See `Store.announcement`."""
        value: bytes | None = await self._client.hget(_key(key, "schemas"), schema_hash)
        return value

    @_guarded
    async def append(self, key: ReplicaKey, entries: Sequence[Entry]) -> list[Outcome]:
        """See `Store.append`."""
        # A transaction: a server that is full may refuse one command and take the next, a hole for ever.
        pipe = self._client.pipeline(transaction=True)
        for entry in entries:
            pipe.execute_command("XADD", *_written(key, entry))
        replies = await pipe.execute(raise_on_error=False)
        outcomes = []
        for entry, reply in zip(entries, replies, strict=True):
            if isinstance(reply, Exception):
                outcomes.append(await self._rejected(key, entry, reply))
            else:
                self._unmarked[key] = self._unmarked.get(key, 0) + len(entry.batch)
                outcomes.append(Outcome.APPENDED)
        if self._waits_for_disk:
            await self._wait_for_disk()
        return outcomes

    async def _rejected(self, key: ReplicaKey, entry: Entry, error: Exception) -> Outcome:
        if "equal or smaller" not in str(error):
            raise error
        newest = (await self._last_ids(key)).frames
        if newest.epoch_ms != entry.id.epoch_ms:
            raise StaleEpoch(f"{entry.id.text} comes after {newest.text}, which is of a later epoch")
        return Outcome.DUPLICATE

    async def _wait_for_disk(self) -> None:
        # Any connection of ours will do: the log is one file, written in order, and ours is in it already.
        local, _ = await self._client.execute_command("WAITAOF", 1, 0, AOF_TIMEOUT_MS)
        if int(local) < 1:
            raise StoreUnavailable(f"{self.where} did not write to disk within {AOF_TIMEOUT_MS / 1e3:g} s")

    @_guarded
    async def beat(self, key: ReplicaKey, status: bytes) -> None:
        """See `Store.beat`."""
        newest = (await self._last_ids(key)).frames
        nbytes = self._unmarked.pop(key, 0)
        pipe = self._client.pipeline(transaction=True)
        pipe.hset(_key(key, "state"), "status", status)
        pipe.set(_key(key, "alive"), 1, px=int(ALIVE_S * 1000))
        if newest != self._marked.get(key) or nbytes:
            pipe.execute_command("XADD", _key(key, "marks"), "*", "p", newest.text, "b", nbytes)
            pipe.hincrby(_key(key, "state"), "bytes", nbytes)
        for name in ("frames", "events", "marks", "state", "schemas", "epoch"):
            pipe.expire(_key(key, name), self._expiry_s)
        try:
            await pipe.execute()
        except BaseException:
            self._unmarked[key] = self._unmarked.get(key, 0) + nbytes
            raise
        self._marked[key] = newest
        await self._client.sadd(REGISTRY, key.text)

    @_guarded
    async def trim(self, key: ReplicaKey) -> None:
        """See `Store.trim`."""
        marks = _key(key, "marks")
        too_old_ms = await self._server_ms() - int(self._retention.age_s * 1000)
        held = int(await self._client.hget(_key(key, "state"), "bytes") or 0)
        cut: tuple[Any, EntryId] | None = None
        cut_bytes = 0
        start = "-"
        while rows := await self._client.execute_command("XRANGE", marks, start, "+", "COUNT", 128):
            for mark, fields in rows:
                mark_id = EntryId.parse(_text(mark))
                row = _fields(fields)
                if mark_id.epoch_ms > too_old_ms and held - cut_bytes <= self._retention.nbytes:
                    break
                cut, cut_bytes = (mark_id, EntryId.parse(_text(row[b"p"]))), cut_bytes + int(row[b"b"])
            else:
                start = f"({_text(rows[-1][0])}"
                continue
            break
        pipe = self._client.pipeline(transaction=False)
        if cut:
            pipe.execute_command("XTRIM", marks, "MINID", cut[0].next.text)
            pipe.execute_command("XTRIM", _key(key, "frames"), "MINID", cut[1].next.text)
            pipe.hincrby(_key(key, "state"), "bytes", -cut_bytes)
        pipe.execute_command("XTRIM", _key(key, "events"), "MINID", f"{max(too_old_ms, 0)}-0")
        await pipe.execute()

    # --- reading

    @_guarded
    async def read(self, key: ReplicaKey, after: Position, *, limit: int, wait_s: float = 0.0) -> Page:
        """See `Store.read`."""
        keys = (_key(key, "frames"), _key(key, "events"))
        options = ["COUNT", limit] + (["BLOCK", max(1, int(wait_s * 1000))] if wait_s > 0 else [])
        command = ("XREAD", *options, "STREAMS", *keys, after.frames.text, after.events.text)
        if wait_s > 0:
            read = self._blocking.execute_command(*command)
            reply = await asyncio.wait_for(read, wait_s + ANSWER_TIMEOUT_S)
        else:
            reply = await self._client.execute_command(*command)
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
        then_ms = max(0, await self._server_ms() - int(seconds * 1000))
        marks = await self._client.execute_command(
            "XREVRANGE", _key(key, "marks"), f"{then_ms}", "-", "COUNT", 1
        )
        if not marks:
            return Position()
        mark_id, fields = marks[0]
        return Position(
            EntryId.parse(_text(_fields(fields)[b"p"])), EntryId(EntryId.parse(_text(mark_id)).epoch_ms)
        )

    @_guarded
    async def oldest(self, key: ReplicaKey) -> EntryId | None:
        """See `Store.oldest`."""
        rows = await self._client.execute_command("XRANGE", _key(key, "frames"), "-", "+", "COUNT", 1)
        return EntryId.parse(_text(rows[0][0])) if rows else None

    @_guarded
    async def replicas(self) -> list[ReplicaRow]:
        """See `Store.replicas`."""
        keys = _keys(await self._client.smembers(REGISTRY))
        pipe = self._client.pipeline(transaction=False)
        for key in keys:
            pipe.hmget(_key(key, "state"), "announcement", "status")
            pipe.exists(_key(key, "alive"))
        replies = await pipe.execute() if keys else []
        rows = []
        for key, (announcement, status), alive in zip(keys, replies[::2], replies[1::2], strict=True):
            if announcement is None:
                await self._client.srem(REGISTRY, key.text)
            else:
                rows.append(ReplicaRow(key, announcement, status or b"", bool(alive)))
        return rows

    async def _last_ids(self, key: ReplicaKey) -> Position:
        """The newest ids that were ever given, whether or not their entries are still there."""
        pipe = self._client.pipeline(transaction=False)
        pipe.execute_command("XINFO STREAM", _key(key, "frames"))
        pipe.execute_command("XINFO STREAM", _key(key, "events"))
        replies = await pipe.execute(raise_on_error=False)
        return Position(*(_last_id(reply) for reply in replies))

    async def _server_ms(self) -> int:
        seconds, micros = await self._client.time()
        return int(seconds) * 1000 + int(micros) // 1000


def _client(url: str, answer_timeout_s: float | None) -> Any:
    try:
        client = aioredis.Redis.from_url(
            url,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=answer_timeout_s,
            retry=Retry(NoBackoff(), 1),  # a pooled connection may have died since it was last used
        )
    except ValueError as error:
        raise StoreUnfit(
            f"not the address of a Redis-compatible server: {without_password(url)!r} ({error}); "
            "write redis://HOST:PORT, rediss://… or unix:///PATH"
        ) from error
    # redis-py's own reader of the answer fails where a command is not known, which is what is asked here.
    untouched: Any = lambda reply, **_: reply  # noqa: E731
    client.set_response_callback("COMMAND", untouched)
    return client


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
