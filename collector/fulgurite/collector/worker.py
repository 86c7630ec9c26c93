"""One of several collector processes: reads its job from its input, serves until that ends, or SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from fulgurite.collector.security import Unsafe
from fulgurite.collector.server import CannotListen, Collector
from fulgurite.collector.store import Retention, StoreError
from fulgurite.collector.stores.redis import RedisStore
from fulgurite.collector.workers import FAILED, READY, Job


def main() -> int:
    """Serve. Returns the exit status."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # of a terminal it reaches the parent, which ends us in order
    logging.basicConfig(level=logging.INFO, format="fulgurite collector: %(message)s", stream=sys.stderr)
    job = Job.read(sys.stdin.buffer.readline())
    try:
        asyncio.run(_serve(job))
    except (CannotListen, StoreError, Unsafe) as error:
        _tell(f"{FAILED}{error}")
        return 1
    return 0


async def _serve(job: Job) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    loop.add_reader(sys.stdin, over.set)  # nothing more is written to it, so that what comes is its end
    settings = job.settings
    store = RedisStore(
        settings.redis_url or "",
        retention=Retention(age_s=settings.retention_s, nbytes=settings.retention_bytes),
        durability=settings.durability,
        label=job.store_label,
    )
    try:
        await store.open()
        async with Collector(store, settings, worker=job.number):
            _tell(READY)
            await over.wait()
            loop.remove_reader(sys.stdin)
    finally:
        await store.close()


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
