"""The program: reads a store, sends by OTLP, is scraped."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

log = logging.getLogger("fulgurite.telemetry")

NICENESS: Final = 10
"""Where a machine is short of cores, agents, collectors and viewers come before pipelines that can wait."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None, env: Mapping[str, str] = os.environ) -> int:
    """Run until a signal ends it. Returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="fulgurite telemetry: %(message)s", stream=sys.stderr)
    try:
        from fulgurite.collector.telemetry import options
        from fulgurite.collector.telemetry.service import CannotServe

        parser = _Parser(
            prog="fulgurite telemetry",
            description="Read what collectors store; send it by OTLP and show it to Prometheus.",
            allow_abbrev=False,
        )
        parser.add_argument(
            "--redis", metavar="URL", help="the Redis-compatible server that the collectors store in"
        )
        options.add_arguments(parser)
        given = vars(parser.parse_args(arguments))
        url = given["redis"] or env.get("FULGURITE_REDIS")
        if not url:
            return _complain("which store? name it with --redis URL, or set FULGURITE_REDIS", 2)
        settings = options.settings_of(given, env)
        if not settings.has_work(env):
            advice = "name --otlp-export ENDPOINT, or --prometheus HOST:PORT, or both"
            return _complain(f"nothing to do: {advice}", 2)
    except ValueError as error:
        return _complain(str(error), 2)
    except ImportError as error:
        return _complain(_missing(error), 1)
    from fulgurite.collector.store import StoreError

    try:
        return asyncio.run(_run(url, settings))
    except CannotServe as error:
        return _complain(str(error), 2)
    except ValueError as error:
        return _complain(str(error), 2)
    except StoreError as error:
        return _complain(str(error), 1)
    except ImportError as error:
        return _complain(_missing(error), 1)


async def _run(url: str, settings: object) -> int:
    from fulgurite.collector.store import Retention
    from fulgurite.collector.stores.redis import RedisStore
    from fulgurite.collector.telemetry.config import TelemetrySettings
    from fulgurite.collector.telemetry.service import Telemetry

    assert isinstance(settings, TelemetrySettings)
    os.nice(NICENESS)
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    store = RedisStore(url, retention=Retention(), durability="none")
    telemetry = Telemetry(store, settings)
    try:
        await store.open()
        async with telemetry:
            shown = f", metrics at http://{telemetry.prometheus}/metrics" if telemetry.prometheus else ""
            print(f"fulgurite telemetry reading {store.name}{shown}", flush=True)
            await over.wait()
    finally:
        await store.close()
    return 0


def _missing(error: ImportError) -> str:
    return f"the package {error.name} is not installed: pip install 'fulgurite[collector]'"


def _complain(text: str, status: int) -> int:
    print(f"fulgurite telemetry: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
