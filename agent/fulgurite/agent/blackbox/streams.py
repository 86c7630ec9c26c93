"""Listening to a stream of openai-python without a change of what its user meets.

The user keeps the very object that the client made. Between it and its source of chunks stands one of ours,
which hands every chunk and every exception on as it is. The stream's `close` is noticed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from fulgurite.agent.blackbox.box import CLOSED, Asked

_SOURCE = "_iterator"  # of openai.Stream and openai.AsyncStream


def listen(stream: Any, asked: Asked) -> bool:
    """Have `asked` hear what `stream` brings; False where it is no stream that we know."""
    source = getattr(stream, _SOURCE, None)
    if source is None:
        return False
    if hasattr(source, "__anext__"):
        setattr(stream, _SOURCE, AsyncSource(source, asked))
        for name in ("close", "aclose"):
            _note_async_close(stream, name, asked)
    elif hasattr(source, "__next__"):
        setattr(stream, _SOURCE, Source(source, asked))
        _note_close(stream, asked)
    else:
        return False
    return True


class Source:
    """The chunks of `source`, heard."""

    def __init__(self, source: Iterator[Any], asked: Asked) -> None:
        self._source = source
        self._asked = asked

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            chunk = next(self._source)
        except StopIteration:
            self._asked.over()
            raise
        except BaseException as error:
            self._asked.over(type(error).__name__)
            raise
        self._asked.heard(chunk)
        return chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


class AsyncSource:
    """The chunks of an asynchronous `source`, heard."""

    def __init__(self, source: AsyncIterator[Any], asked: Asked) -> None:
        self._source = source
        self._asked = asked

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            chunk = await anext(self._source)
        except StopAsyncIteration:
            self._asked.over()
            raise
        except BaseException as error:
            self._asked.over(type(error).__name__)
            raise
        self._asked.heard(chunk)
        return chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def _note_close(stream: Any, asked: Asked) -> None:
    plain: Callable[..., Any] = stream.close

    def close(*args: Any, **kwargs: Any) -> Any:
        asked.over(CLOSED)
        return plain(*args, **kwargs)

    stream.close = close


def _note_async_close(stream: Any, name: str, asked: Asked) -> None:
    plain: Callable[..., Any] | None = getattr(stream, name, None)
    if plain is None:
        return

    async def close(*args: Any, **kwargs: Any) -> Any:
        asked.over(CLOSED)
        return await plain(*args, **kwargs)

    setattr(stream, name, close)
