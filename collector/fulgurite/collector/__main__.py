"""The collector's program: the one place that puts its parts together."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

from fulgurite.collector.config import Settings, settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run a collector until a signal ends it. Returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="fulgurite collector: %(message)s", stream=sys.stderr)
    try:
        chosen = settings(argv)
    except ValueError as error:
        return _complain(str(error), 2)
    try:
        from fulgurite.collector.embedded import EmbeddedUnavailable
        from fulgurite.collector.server import CannotStart
    except ImportError as error:
        return _complain(f"{error.name} is missing: pip install 'fulgurite[collector]'", 1)
    try:
        return asyncio.run(_run(chosen))
    except CannotStart as error:
        return _complain(str(error), error.status)
    except EmbeddedUnavailable as error:
        return _complain(str(error), 1)
    except ImportError as error:
        return _complain(f"{error.name} is missing: pip install 'fulgurite[collector]'", 1)


async def _run(chosen: Settings) -> int:
    from fulgurite.collector.server import Collector

    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    collector = Collector(chosen)
    try:
        await collector.start()
        print(
            f"fulgurite collector listening on {collector.address}, storing in {collector.store_name}",
            flush=True,
        )
        await over.wait()
    finally:
        await collector.stop()
    return 0


def _complain(text: str, status: int) -> int:
    print(f"fulgurite collector: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
