"""A telemetry process beside a collector: started with it, started again when it ends, gone with it."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from fulgurite.collector import tether

log = logging.getLogger(__name__)

FIRST_RESTART_S: Final = 1.0
LAST_RESTART_S: Final = 30.0
STOP_TIMEOUT_S: Final = 6.0


class Companion:
    """Runs ``fulgurite telemetry`` for the length of an `async with`. Whatever becomes of it, nothing raises.

    Parameters
    ----------
    url : str
        Of the store.
    words : sequence of str
        ``telemetry``, and what of the collector's command line is its.
    """

    def __init__(self, url: str, words: Sequence[str]) -> None:
        module = [sys.executable, "-m", "fulgurite.collector.telemetry", *words[1:]]
        self._command = [sys.executable, "-ISE", tether.__file__, str(os.getpid()), *module]
        self._environment = {**os.environ, "FULGURITE_REDIS": url}  # a password belongs on no command line
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Companion:
        self._keeper = asyncio.create_task(self._keep(), name="telemetry")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _keep(self) -> None:
        wait_s = FIRST_RESTART_S
        while True:
            began_s = asyncio.get_running_loop().time()
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=subprocess.DEVNULL,
                    env=self._environment,
                    start_new_session=True,  # Ctrl-C in a terminal is for the collector, which ends it
                )
                status = await self._process.wait()
            except OSError as error:
                log.error("the telemetry process cannot be started: %s", error)
            else:
                log.error("the telemetry process ended (status %s); it is started again", status)
            if asyncio.get_running_loop().time() - began_s > LAST_RESTART_S:
                wait_s = FIRST_RESTART_S
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LAST_RESTART_S)
