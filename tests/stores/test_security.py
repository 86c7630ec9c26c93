"""TLS to the store, and users there that may do what is documented and no more."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.chaos.certificates import Certificates, certificates
from tests.chaos.processes import listens
from tests.stores import machines
from tests.stores.writing import EPOCH, HASH, entry, opened, read_all

from fulgurite.collector.store import StoreUnavailable, StoreUnfit
from fulgurite.wire.replica import ReplicaKey

pytest.importorskip("redis", reason="the collector needs the extra: collector")

pytestmark = [pytest.mark.system]

PAGE = Path(__file__).parents[2] / "docs" / "redis.md"
KEY = ReplicaKey("", "chaos", "replica")


def documented_users() -> list[str]:
    """The rules for users, as the documentation has them."""
    lines = PAGE.read_text().splitlines()
    return [line.strip() for line in lines if line.startswith("user ")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    return certificates(tmp_path_factory.mktemp("tls"))


@dataclass(frozen=True, slots=True)
class Guarded:
    """A server that knows the documented users and nobody else. `made` is None where it is in the clear."""

    port: int
    made: Certificates | None

    def url(self, user: str, password: str, *, authority: Path | None = None) -> str:
        """For a store."""
        there = f"{user}:{password}@127.0.0.1:{self.port}"
        if self.made is None:
            return f"redis://{there}"
        return f"rediss://{there}?ssl_ca_certs={authority or self.made.authority}"


@pytest.fixture(scope="module", params=sorted(machines.BINARIES))
def server(
    request: pytest.FixtureRequest, made: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    """Debian's Redis speaks TLS alone here; the builds in the packages cannot."""
    binary = machines.BINARIES[request.param]()
    if binary is None:
        pytest.skip(f"no {request.param} on this machine")
    folder = tmp_path_factory.mktemp("server")
    users = folder / "users.acl"
    users.write_text("\n".join(["user default off", *documented_users()]) + "\n")
    if request.param != "redis":
        with machines.server(binary, folder, is_ready=listens, aclfile=users) as started:
            yield Guarded(started.port, None)
        return
    options: dict[str, object] = {
        "tls_port": machines.free_ports(1)[0], "tls_cert_file": made.certificate, "tls_key_file": made.key,
        "tls_ca_cert_file": made.authority, "tls_auth_clients": "no", "aclfile": users,
    }  # fmt: skip
    with machines.server(binary, folder, is_ready=listens, **options) as started:
        yield Guarded(started.port, made)


def test_the_user_for_ingest_may_do_all_that_the_store_does(server: Guarded) -> None:
    async def run() -> None:
        async with opened(server.url("fulgurite-ingest", "change-me"), durability="everysec") as store:
            given = await store.register(KEY, asked_epoch_ms=0, now_ms=EPOCH)
            assert given.epoch_ms >= EPOCH
            await store.announce(KEY, HASH, b"announced")
            await store.append(KEY, [entry(1), entry(2)])
            await store.beat(KEY, b"status")
            await store.trim(KEY)
            await store.keep_spans([(b"t" * 16, b"span")])
            assert await store.spans(b"t" * 16) == [b"span"]
            assert await read_all(store, KEY) == [1, 2]
            assert [row.key for row in await store.replicas()] == [KEY]

    asyncio.run(run())


def test_the_user_for_viewing_reads_all_and_writes_nothing(server: Guarded) -> None:
    async def run() -> None:
        async with opened(server.url("fulgurite-ingest", "change-me")) as writer:
            await writer.announce(KEY, HASH, b"announced")
            await writer.append(KEY, [entry(3)])
        async with opened(server.url("fulgurite-view", "change-me-too")) as store:
            assert (await read_all(store, KEY))[-1] == 3
            newest = await store.newest(KEY)
            assert (await store.read(KEY, newest, limit=8, wait_s=0.05)).entries == ()
            assert await store.announcement(KEY, HASH) == b"announced"
            await store.back(KEY, 10.0)
            assert await store.oldest(KEY) is not None
            assert [row.key for row in await store.replicas()] == [KEY]
            await store.spans(b"t" * 16)
            for forbidden in (
                store.append(KEY, [entry(4)]),
                store.announce(KEY, HASH, b"forged"),
                store.register(KEY, asked_epoch_ms=0, now_ms=EPOCH),
                store.beat(KEY, b"forged"),
                store.keep_spans([(b"t" * 16, b"forged")]),
            ):
                with pytest.raises(StoreUnfit, match="does not let the collector in"):
                    await forbidden
            assert (await read_all(store, KEY))[-1] == 3

    asyncio.run(run())


@pytest.mark.parametrize("user", ["fulgurite-ingest", "fulgurite-view"])
def test_neither_user_reaches_other_keys_or_the_server_itself(server: Guarded, user: str) -> None:
    import redis
    from redis.exceptions import NoPermissionError

    password = {"fulgurite-ingest": "change-me", "fulgurite-view": "change-me-too"}[user]
    with redis.Redis.from_url(server.url(user, password)) as client:
        for words in (["GET", "another"], ["KEYS", "*"], ["FLUSHALL"], ["CONFIG", "SET", "save", ""]):
            with pytest.raises(NoPermissionError):
                client.execute_command(*words)


def test_a_wrong_password_is_one_clear_line(server: Guarded) -> None:
    async def run() -> None:
        with pytest.raises(StoreUnfit, match="does not let the collector in") as caught:
            async with opened(server.url("fulgurite-view", "wrong")):
                pass
        assert "wrong" not in str(caught.value).split("let the collector in")[0]

    asyncio.run(run())


def test_a_certificate_of_a_strange_authority_is_refused(server: Guarded, tmp_path: Path) -> None:
    async def run() -> None:
        if server.made is None:
            pytest.skip("this build speaks no TLS")
        strange = certificates(tmp_path)
        with pytest.raises(StoreUnavailable, match="does not answer"):
            async with opened(server.url("fulgurite-view", "change-me-too", authority=strange.authority)):
                pass

    asyncio.run(run())
