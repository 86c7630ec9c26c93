"""The short way to a server: commands as bytes, replies as they come, on connections that stay.

`redis.asyncio.Redis` does for each command what most commands do not need: it takes a connection out of a
pool, makes a task to send with a deadline, and reports durations. Where a token is stored by itself that is
more work than the command. Connecting (TLS, passwords, sentinels) is left to the connections of redis-py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import ExecAbortError, ResponseError

MOST_IDLE: Final = 32
_MULTI: Final = b"*1\r\n$5\r\nMULTI\r\n"
_EXEC: Final = b"*1\r\n$4\r\nEXEC\r\n"

Word = str | bytes | int
Command = Sequence[Word]


class Lane:
    """Commands to one server. As many at a time as are asked for, each on a connection of its own.

    Parameters
    ----------
    client : redis.asyncio.Redis
        Whose connections are used; its own time limit for an answer is None.
    timeout_s : float
        For all answers to what is asked at once.
    """

    def __init__(self, client: Any, *, timeout_s: float) -> None:
        self._pool = client.connection_pool
        self._timeout_s = timeout_s
        self._idle: list[Any] = []

    async def ask(self, *commands: Command) -> list[Any]:
        """What the server answers to each; what it refuses is in its place, as the error.

        Raises
        ------
        RedisError, OSError
            Where there was no answer.
        """
        return await self._exchange(b"".join(map(packed, commands)), len(commands))

    async def transact(self, *commands: Command) -> list[Any]:
        """The same in a transaction: all of them are done, or none.

        Raises
        ------
        ResponseError
            Where none is done.
        """
        data = b"".join((_MULTI, *map(packed, commands), _EXEC))
        *queued, done = await self._exchange(data, len(commands) + 2)
        if isinstance(done, ResponseError):
            refused = (reply for reply in queued if isinstance(reply, ResponseError))
            raise next(refused, done) if isinstance(done, ExecAbortError) else done
        replies: list[Any] = done
        return replies

    async def close(self) -> None:
        """Hang up."""
        while self._idle:
            await self._idle.pop().disconnect()

    async def _exchange(self, data: bytes, replies: int) -> list[Any]:
        async with asyncio.timeout(self._timeout_s):
            if self._idle:
                try:
                    return await self._said(self._idle.pop(), data, replies)
                except (NoConnection, OSError):  # it died since it was last used, and so did the others
                    await self.close()
            connection = self._pool.make_connection()
            await connection.connect()
            return await self._said(connection, data, replies)

    async def _said(self, connection: Any, data: bytes, replies: int) -> list[Any]:
        try:
            await connection.send_packed_command(data, check_health=False)
            said = [await _reply(connection) for _ in range(replies)]
        except BaseException:  # what is still to come would be taken for the next answer
            await connection.disconnect(nowait=True)
            raise
        if len(self._idle) < MOST_IDLE:
            self._idle.append(connection)
        else:
            await connection.disconnect(nowait=True)
        return said


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def packed(command: Command) -> bytes:
    """A command as the protocol has it."""
    parts = [b"*%d\r\n" % len(command)]
    for word in command:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts += (b"$%d\r\n" % len(data), data, b"\r\n")
    return b"".join(parts)


def unrefused(replies: list[Any]) -> list[Any]:
    """The replies, where none is a refusal.

    Raises
    ------
    ResponseError
        The first of them.
    """
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies
