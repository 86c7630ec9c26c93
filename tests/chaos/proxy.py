"""A TCP proxy that can be a bad network: it delays, throttles, corrupts, swallows, resets and half-closes.

It runs on a loop in a thread of its own, so that a test may change the weather while bytes are under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final

CHUNK_BYTES: Final = 16 << 10
LOOK_EVERY_S: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What happens to bytes on their way, in both directions.

    Attributes
    ----------
    delay_s : float
        Added to each chunk.
    bytes_per_s : float
        The most that passes in one direction of one connection; 0: no limit.
    corrupt : float
        The share of chunks in which one bit is flipped.
    is_black_hole : bool
        Connections are accepted and held; nothing passes.
    """

    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    corrupt: float = 0.0
    is_black_hole: bool = False


CALM: Final = Weather()


class Proxy:
    """Listens on a free loopback port and passes on to `target_port`, for the length of a `with`.

    Attributes
    ----------
    weather : Weather
        May be replaced at any time, from any thread.
    port : int
        Where it listens, once entered.
    """

    def __init__(self, target_port: int, *, seed: int = 0) -> None:
        self.weather = CALM
        self.port = 0
        self._target_port = target_port
        self._random = random.Random(seed)
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        server = asyncio.start_server(self._connected, "127.0.0.1", 0, limit=CHUNK_BYTES)
        self._server = asyncio.run_coroutine_threadsafe(server, self._loop).result(10.0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()

    def reset(self) -> None:
        """Every connection ends as if one of its ends had died: with a RST."""
        self._from_any_thread(_abort_both)

    def half_close(self) -> None:
        """Every server is told that its client will say no more; what it says still passes."""
        self._from_any_thread(lambda _, server: _say_the_end(server))

    def _from_any_thread(self, act: Callable[[asyncio.StreamWriter, asyncio.StreamWriter], object]) -> None:
        def all_of_them() -> None:
            for client, server in tuple(self._pairs):
                act(client, server)

        self._loop.call_soon_threadsafe(all_of_them)

    async def _end(self) -> None:
        self._server.close()
        for client, server in tuple(self._pairs):
            _abort(client)
            _abort(server)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind = await asyncio.open_connection("127.0.0.1", self._target_port, limit=CHUNK_BYTES)
        except OSError:  # nobody is there: the client learns it as it would without us
            _abort(writer)
            return
        pair = (writer, behind[1])
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pass(reader, behind[1]), self._pass(behind[0], writer))
        except asyncio.CancelledError:  # the proxy ends; Python 3.11's streams would report it
            pass
        finally:
            self._pairs.discard(pair)
            for end in pair:
                end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction, to its end. An end of one is passed on; a failure ends both."""
        try:
            while data := await reader.read(CHUNK_BYTES):
                writer.write(await self._through_the_weather(data))
                await writer.drain()
            _say_the_end(writer)
        except RuntimeError:  # half-closed meanwhile: what its client still says reaches nobody
            return
        except OSError:
            _abort(writer)

    async def _through_the_weather(self, data: bytes) -> bytes:
        while self.weather.is_black_hole:
            await asyncio.sleep(LOOK_EVERY_S)
        weather = self.weather
        if weather.delay_s:
            await asyncio.sleep(weather.delay_s)
        if weather.bytes_per_s:
            await asyncio.sleep(len(data) / weather.bytes_per_s)
        if self._random.random() < weather.corrupt:
            return flipped(data, self._random)
        return data


def flipped(data: bytes, rng: random.Random) -> bytes:
    """`data` with one bit turned over."""
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _say_the_end(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        if not writer.is_closing():
            writer.write_eof()


def _abort_both(client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
    _abort(client)
    _abort(server)


def _abort(writer: asyncio.StreamWriter) -> None:
    raw: socket.socket | None = writer.get_extra_info("socket")
    if raw is not None and not writer.is_closing():
        with contextlib.suppress(OSError):  # linger for no time: a RST in place of a FIN
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
