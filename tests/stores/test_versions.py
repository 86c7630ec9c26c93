"""The contract of the store on further servers: Redis 6.2, a cluster of six nodes, sentinels."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from tests.contracts.test_store_contract import Opened, StoreContract
from tests.stores import machines

from fulgurite.collector.store import Retention, Store

pytest.importorskip("redis", reason="the collector needs the extra: collector")

pytestmark = [pytest.mark.system]


def opened_at(url: str) -> Opened:
    """Opens a store there."""
    from fulgurite.collector.stores.redis import RedisStore

    @asynccontextmanager
    async def open_store(retention: Retention = Retention()) -> AsyncIterator[Store]:  # noqa: B008
        store = RedisStore(url, retention=retention)
        await store.open()
        try:
            yield store
        finally:
            await store.close()

    return open_store


def binary(name: str) -> str:
    found = machines.BINARIES[name]()
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return found


class TestRedis62(StoreContract):
    """The oldest server that is served."""

    @pytest.fixture(scope="class")
    @classmethod
    def url(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        with machines.server(binary("redis-6.2"), tmp_path_factory.mktemp("redis62")) as server:
            yield f"redis://127.0.0.1:{server.port}"

    @pytest.fixture
    def opened(self, url: str) -> Opened:
        return opened_at(url)


class TestCluster(StoreContract):
    """Six nodes; each test's replica lies on one of them."""

    @pytest.fixture(scope="class")
    @classmethod
    def url(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        if not machines.has_cli():
            pytest.skip("no redis-cli on this machine")
        with machines.sharded(binary("redis"), tmp_path_factory.mktemp("cluster")) as cluster:
            yield cluster.url

    @pytest.fixture
    def opened(self, url: str) -> Opened:
        return opened_at(url)


class TestSentinels(StoreContract):
    """A primary that sentinels name; what is stored is with a replica too."""

    @pytest.fixture(scope="class")
    @classmethod
    def url(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        if not machines.has_cli():
            pytest.skip("no redis-cli on this machine")
        with machines.replicated(binary("redis"), tmp_path_factory.mktemp("sentinels")) as them:
            yield f"{them.url}?wait_replicas=1"

    @pytest.fixture
    def opened(self, url: str) -> Opened:
        return opened_at(url)
