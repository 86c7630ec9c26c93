"""The collector's program: the one place that puts its parts together."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from fulgurite.collector.config import Settings
from fulgurite.collector.options import UsageError, parse
from fulgurite.collector.store import Retention, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from fulgurite.collector.store import Store

log = logging.getLogger("fulgurite.collector")

IN_PROCESS = "memory://"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a collector until a signal ends it. Returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="fulgurite collector: %(message)s", stream=sys.stderr)
    try:
        settings = parse(arguments, os.environ)
    except UsageError as error:
        return _complain(str(error), 2)
    try:
        from fulgurite.collector.security import Unsafe
        from fulgurite.collector.server import CannotListen
        from fulgurite.collector.workers import WorkerFailed
    except ImportError as error:
        return _complain(_missing(error), 1)
    try:
        return asyncio.run(_run(settings))
    except (CannotListen, Unsafe) as error:
        return _complain(str(error), 2)
    except WorkerFailed as error:
        return _complain(str(error), 1)
    except StoreUnavailable as error:
        advice = "start it, or leave --redis out for the embedded one"
        return _complain(f"{error}; {advice}" if settings.redis_url else str(error), 1)
    except StoreError as error:
        return _complain(str(error), 1)
    except ImportError as error:
        return _complain(_missing(error), 1)


async def _run(settings: Settings) -> int:
    from fulgurite.collector.security import Security
    from fulgurite.collector.server import Collector, check_is_free
    from fulgurite.collector.workers import Workers

    served: Collector | Workers
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    async with AsyncExitStack() as stack:
        store = _Opening(settings)
        Security(settings)  # what is wrong with it is said before anything is started
        await check_is_free(settings.listen)  # before a server is started for nothing
        opened = await store.open(stack)
        if settings.workers > 1:
            alike = replace(settings, redis_url=store.url)
            served = await stack.enter_async_context(Workers(alike, store_label=store.label))
            also = f", {settings.workers} processes"
        else:
            served = await stack.enter_async_context(Collector(opened, settings))
            also = ""
        if settings.telemetry:
            from fulgurite.collector.telemetry.companion import Companion

            await stack.enter_async_context(Companion(store.url, settings.telemetry))
        also += f", OTLP over HTTP on {served.otlp_http}" if served.otlp_http else ""
        where = f"listening on {served.address}, storing in {opened.name}{also}"
        print(f"fulgurite collector {where}", flush=True)
        await over.wait()
    return 0


class _Opening:
    """The store that was asked for. What it needs is imported at once: what is missing is said first."""

    def __init__(self, settings: Settings) -> None:
        self.url = self.label = ""
        self._settings = settings
        self._retention = Retention(age_s=settings.retention_s, nbytes=settings.retention_bytes)
        self._is_in_process = settings.redis_url == IN_PROCESS
        if self._is_in_process:
            return
        from fulgurite.collector.embedded import EmbeddedServer
        from fulgurite.collector.stores import redis

        self._module = redis
        self._embedded = EmbeddedServer(settings.durability) if settings.redis_url is None else None

    async def open(self, stack: AsyncExitStack) -> Store:
        store = await self._made(stack)
        stack.push_async_callback(store.close)
        await store.open()
        return store

    async def _made(self, stack: AsyncExitStack) -> Store:
        if self._is_in_process:
            from fulgurite.collector.stores.memory import MemoryStore

            return MemoryStore(self._retention)
        self.url = self._settings.redis_url or ""
        if self._embedded is not None:
            self.url = (await stack.enter_async_context(self._embedded)).url
            self.label = "the embedded server"
        return self._module.RedisStore(
            self.url, retention=self._retention, durability=self._settings.durability, label=self.label
        )


def _missing(error: ImportError) -> str:
    return f"the package {error.name} is not installed: pip install 'fulgurite[collector]'"


def _complain(text: str, status: int) -> int:
    print(f"fulgurite collector: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
