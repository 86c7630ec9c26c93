"""A collector that may be exposed: certificates of a real CA, tokens, scopes, permissions, limits."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.collector.stage import TOPOLOGY, asynchronous, batch_of, block_of, hello_of, until

from fulgurite.agent.exporter import GrpcExporter
from fulgurite.cli.address import Address
from fulgurite.cli.client import Collector as Client
from fulgurite.cli.errors import CommandError
from fulgurite.collector.config import Listen, Settings, TlsFiles
from fulgurite.collector.security import Security, Unsafe
from fulgurite.collector.server import Collector
from fulgurite.collector.stores.memory import MemoryStore
from fulgurite.v1 import agent_pb2, viewer_pb2, viewer_pb2_grpc
from fulgurite.viewer.feed import probe
from fulgurite.wire.access import Access, AccessError
from fulgurite.wire.replica import ReplicaKey

LOOPBACK = Listen("127.0.0.1", 0)
WRITES, READS, RULES = "fg_writes", "fg_reads", "fg_rules"
OWN_POOL = [("grpc.use_local_subchannel_pool", 1)]
STATUS = grpc.StatusCode


def entry(name: str, token: str, scopes: str, more: str = "") -> str:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return f'[[credential]]\nname = "{name}"\ntoken_sha256 = "{digest}"\nscopes = ["{scopes}"]\n{more}\n'


WRITER = entry("writer", WRITES, "ingest", 'replicas = ["*/served/a*"]\nnames = 2')
EVERYBODY = WRITER + entry("reader", READS, "view") + entry("ruler", RULES, "admin")


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    path = tmp_path / "credentials.toml"
    path.write_text(EVERYBODY)
    return path


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def written(ca: trustme.CA, folder: Path, *names: str, serves: bool = True) -> TlsFiles:
    """A certificate of this CA, as files."""
    issued = ca.issue_cert(*names)
    folder.mkdir(exist_ok=True)
    for name, blobs in (("cert", issued.cert_chain_pems), ("key", [issued.private_key_pem])):
        (folder / name).write_bytes(b"".join(blob.bytes() for blob in blobs))
    ca.cert_pem.write_to_path(folder / "ca")
    return TlsFiles(folder / "cert", folder / "key", None if serves else folder / "ca")


@asynccontextmanager
async def collector(**settings: Any) -> AsyncIterator[tuple[str, MemoryStore]]:
    store = MemoryStore()
    async with Collector(store, Settings(listen=LOOPBACK, **settings)) as served:
        yield str(served.address), store


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


class Guest:
    """Calls by hand, with whatever token."""

    def __init__(self, address: str, token: str | None) -> None:
        self.channel = grpc.aio.insecure_channel(address, OWN_POOL)
        self.metadata = bearer(token) if token is not None else None

    def connect(self) -> Any:
        call: Any = self.channel.stream_stream("/fulgurite.v1.AgentService/Connect")
        return call(metadata=self.metadata)

    async def greet(self, instance: str, service: str = "served") -> agent_pb2.CollectorMessage:
        """The answer to a hello; the stream stays open."""
        self.call = self.connect()
        await self.call.write(
            agent_pb2.AgentMessage(hello=hello_of(instance, service=service)).SerializeToString()
        )
        return agent_pb2.CollectorMessage.FromString(await self.call.read())

    async def list(self) -> STATUS:
        stub: Any = viewer_pb2_grpc.ViewerServiceStub(self.channel)
        return await code_of(stub.ListReplicas(viewer_pb2.ListReplicasRequest(), metadata=self.metadata))

    async def control(self) -> STATUS:
        stub: Any = viewer_pb2_grpc.AdminServiceStub(self.channel)
        request = viewer_pb2.SetControlRequest(selectors=["*"])
        return await code_of(stub.SetControl(request, metadata=self.metadata))


async def code_of(call: Any) -> STATUS:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        code: STATUS = error.code()
        return code
    return STATUS.OK


async def end_of(call: Any) -> grpc.aio.AioRpcError:
    """How a stream ended, behind everything that came on it."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("it ended well")


# --- tokens and scopes


@asynchronous
async def test_without_a_known_token_nothing_is_served_but_health(credentials: Path) -> None:
    async with collector(credentials=credentials) as (address, _):
        for token in (None, "", "fg_wrong", hashlib.sha256(READS.encode()).hexdigest()):
            guest = Guest(address, token)
            assert await guest.list() is STATUS.UNAUTHENTICATED
            assert await guest.control() is STATUS.UNAUTHENTICATED
            assert await code_of(guest.connect().read()) is STATUS.UNAUTHENTICATED
            stub: Any = health_pb2_grpc.HealthStub(guest.channel)
            health = await stub.Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.SERVING


@asynchronous
async def test_a_token_opens_what_its_scopes_name_and_nothing_else(credentials: Path) -> None:
    async with collector(credentials=credentials) as (address, _):
        reader, writer, ruler = (Guest(address, token) for token in (READS, WRITES, RULES))
        denied = STATUS.PERMISSION_DENIED
        assert [await reader.list(), await reader.control()] == [STATUS.OK, denied]
        assert await code_of(reader.connect().read()) is denied
        assert (await writer.greet("a1")).HasField("welcome")
        assert [await writer.list(), await writer.control()] == [denied, denied]
        assert [await ruler.list(), await ruler.control()] == [denied, STATUS.OK]
        assert await code_of(ruler.connect().read()) is denied


@asynchronous
async def test_an_agent_writes_only_the_replicas_that_its_credential_names(credentials: Path) -> None:
    async with collector(credentials=credentials) as (address, store):
        assert (await Guest(address, WRITES).greet("a1")).HasField("welcome")
        forged = await Guest(address, WRITES).greet("b1")
        assert forged.refusal.final
        assert forged.refusal.reason == (
            "the credential 'writer' may not write /served/b1: its `replicas` do not name it"
        )
        assert (await Guest(address, WRITES).greet("a1", service="other")).HasField("refusal")
        assert [row.key for row in await store.replicas()] == [ReplicaKey("", "served", "a1")]


@asynchronous
async def test_the_replica_names_of_a_credential_are_limited(credentials: Path) -> None:
    async with collector(credentials=credentials) as (address, store):
        for instance in ("a1", "a2", "a1"):
            assert (await Guest(address, WRITES).greet(instance)).HasField("welcome")
        third = (await Guest(address, WRITES).greet("a3")).refusal
        assert third.reason.startswith("the credential 'writer' has brought as many replicas")
        assert not third.final
        assert len(await store.replicas()) == 2


@asynchronous
async def test_the_open_calls_of_a_credential_are_limited(tmp_path: Path) -> None:
    path = tmp_path / "few.toml"
    path.write_text(entry("writer", WRITES, "ingest", 'replicas = ["*"]\ncalls = 2'))
    async with collector(credentials=path) as (address, _):
        first, second = Guest(address, WRITES), Guest(address, WRITES)
        assert (await first.greet("a1")).HasField("welcome")
        assert (await second.greet("a2")).HasField("welcome")
        assert await code_of(Guest(address, WRITES).connect().read()) is STATUS.RESOURCE_EXHAUSTED
        first.call.cancel()
        await until(lambda: _is_welcome(Guest(address, WRITES), "a3"))


async def _is_welcome(guest: Guest, instance: str) -> bool:
    try:
        return (await guest.greet(instance)).HasField("welcome")
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return False


@asynchronous
async def test_an_agent_whose_credential_is_withdrawn_is_not_heard_any_more(credentials: Path) -> None:
    stats = agent_pb2.AgentMessage(stats=agent_pb2.AgentStats()).SerializeToString()
    async with collector(credentials=credentials) as (address, _):
        writer = Guest(address, WRITES)
        assert (await writer.greet("a1")).HasField("welcome")
        credentials.write_text(EVERYBODY.replace(WRITER, ""))
        speaking = asyncio.create_task(_speak_on(writer.call, stats))
        while await writer.call.read() is not grpc.aio.EOF:
            pass
        await asyncio.gather(speaking, return_exceptions=True)
        assert await code_of(Guest(address, WRITES).connect().read()) is STATUS.UNAUTHENTICATED


async def _speak_on(call: Any, message: bytes) -> None:
    while not call.done():
        await call.write(message)
        await asyncio.sleep(0.02)  # it is a stream that goes on, not something to wait for


@asynchronous
async def test_a_credential_that_is_withdrawn_ends_what_was_opened_with_it(credentials: Path) -> None:
    async with collector(credentials=credentials) as (address, _):
        writer, reader = Guest(address, WRITES), Guest(address, READS)
        assert (await writer.greet("a1")).HasField("welcome")
        stub: Any = viewer_pb2_grpc.ViewerServiceStub(reader.channel)
        watching = stub.Watch(viewer_pb2.WatchRequest(), metadata=reader.metadata)
        await watching.read()
        replacement = credentials.with_suffix(".new")
        replacement.write_text(WRITER)
        os.replace(replacement, credentials)
        ended = await end_of(watching)
        assert ended.code() is STATUS.UNAUTHENTICATED
        assert ended.details() == "the credential was withdrawn"
        assert await reader.list() is STATUS.UNAUTHENTICATED
        batch = agent_pb2.AgentMessage(batch=_batch(1)).SerializeToString()
        assert (await Guest(address, WRITES).greet("a2")).HasField("welcome")
        await writer.call.write(batch)  # the other credential is still in the file: its stream goes on
        assert not writer.call.done()


def _batch(epoch_ms: int) -> Any:
    from fulgurite.v1 import frame_pb2

    return frame_pb2.Batch.FromString(batch_of(epoch_ms, 1))


@asynchronous
async def test_calls_that_come_too_fast_are_refused_and_the_log_is_not_filled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "slow.toml"
    path.write_text(entry("reader", READS, "view", "calls_per_s = 0.001"))
    with caplog.at_level(logging.WARNING):
        async with collector(credentials=path) as (address, _):
            guest = Guest(address, READS)
            began_s = time.monotonic()
            codes = [await guest.list() for _ in range(60)]
            took_s = time.monotonic() - began_s
    assert codes == [STATUS.OK] * 4 + [STATUS.RESOURCE_EXHAUSTED] * 56
    assert len([line for line in caplog.messages if line.startswith("denied")]) <= 11 + took_s


@asynchronous
async def test_no_token_is_ever_written_to_the_log(
    credentials: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with collector(credentials=credentials) as (address, _):
            for token in ("fg_wrong", READS):
                await Guest(address, token).control()
            await Guest(address, WRITES).greet("b1")
    assert "denied fulgurite.v1.AdminService" in caplog.text
    assert not [token for token in ("fg_wrong", READS, WRITES) if token in caplog.text]
    assert READS not in repr(Access(token=READS))


@asynchronous
async def test_spans_over_http_need_a_token_as_well(credentials: Path) -> None:
    pytest.importorskip("aiohttp", reason="OTLP over HTTP needs the extra: collector")
    settings = Settings(listen=LOOPBACK, otlp_http=LOOPBACK, credentials=credentials)
    async with Collector(MemoryStore(), settings) as served:
        assert served.otlp_http is not None
        port = served.otlp_http.port
        shown = [None, "Bearer fg_wrong", f"Bearer {READS}", f"Bearer {WRITES}"]
        codes = [await asyncio.to_thread(posted, port, authorization) for authorization in shown]
        assert codes == [401, 401, 403, 200]


def posted(port: int, authorization: str | None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"Content-Type": "application/x-protobuf"}
    if authorization is not None:
        headers["Authorization"] = authorization
    connection.request("POST", "/v1/traces", b"", headers)
    status = connection.getresponse().status
    connection.close()
    return status


# --- certificates


def access(folder: Path, token: str = "", **more: Any) -> Access:
    return Access(ca=folder / "ca", token=token, **more)


def listed(address: str, given: Access) -> STATUS:
    """One call over a channel of its own."""
    with given.channel(address.replace("127.0.0.1", "localhost"), OWN_POOL) as channel:
        stub = viewer_pb2_grpc.ViewerServiceStub(channel)
        try:
            stub.ListReplicas(viewer_pb2.ListReplicasRequest(), timeout=20)
        except grpc.RpcError as error:
            code: STATUS = error.code()  # type: ignore[attr-defined]
            return code
        return STATUS.OK


@asynchronous
async def test_over_tls_with_a_token_the_clients_come_in(
    credentials: Path, ca: trustme.CA, tmp_path: Path
) -> None:
    files = written(ca, tmp_path / "server", "localhost")
    async with collector(credentials=credentials, tls=files) as (address, _):
        given = access(tmp_path / "server", READS)
        assert await asyncio.to_thread(listed, address, given) is STATUS.OK
        stranger = tmp_path / "stranger"
        written(trustme.CA(), stranger, "localhost")
        assert await asyncio.to_thread(listed, address, access(stranger, READS)) is STATUS.UNAVAILABLE
        assert await asyncio.to_thread(listed, address, Access(token=READS)) is STATUS.UNAVAILABLE


@asynchronous
async def test_a_renewed_certificate_is_used_without_a_restart(ca: trustme.CA, tmp_path: Path) -> None:
    folder = tmp_path / "server"
    async with collector(tls=written(ca, folder, "localhost")) as (address, _):
        assert await asyncio.to_thread(listed, address, access(folder)) is STATUS.OK
        newer = trustme.CA()
        other = tmp_path / "newer"
        written(newer, other, "localhost")
        with access(folder).channel(address.replace("127.0.0.1", "localhost"), OWN_POOL) as before:
            stub = viewer_pb2_grpc.ViewerServiceStub(before)
            await asyncio.to_thread(stub.ListReplicas, viewer_pb2.ListReplicasRequest(), timeout=20)
            for name in ("cert", "key"):
                os.replace(other / name, folder / name)
            await until(lambda: _is_ok(address, access(other)))
            assert await asyncio.to_thread(listed, address, access(folder)) is STATUS.UNAVAILABLE
            # What was connected stays so.
            await asyncio.to_thread(stub.ListReplicas, viewer_pb2.ListReplicasRequest(), timeout=20)


async def _is_ok(address: str, given: Access) -> bool:
    return await asyncio.to_thread(listed, address, given) is STATUS.OK


@asynchronous
async def test_with_a_client_ca_a_certificate_is_asked_for_and_names_its_credential(
    ca: trustme.CA, tmp_path: Path
) -> None:
    files = written(ca, tmp_path / "server", "localhost", serves=False)
    written(ca, tmp_path / "wall", "wall.example")
    written(ca, tmp_path / "else", "else.example")
    path = tmp_path / "credentials.toml"
    path.write_text('[[credential]]\nname = "wall"\ncertificate = "wall.example"\nscopes = ["view"]\n')

    def shown(who: str) -> Access:
        return access(tmp_path / "server", certificate=tmp_path / who / "cert", key=tmp_path / who / "key")

    async with collector(tls=files, credentials=path) as (address, _):
        assert await asyncio.to_thread(listed, address, shown("wall")) is STATUS.OK
        assert await asyncio.to_thread(listed, address, shown("else")) is STATUS.UNAUTHENTICATED
        assert await asyncio.to_thread(listed, address, access(tmp_path / "server")) is STATUS.UNAVAILABLE


@asynchronous
async def test_the_agent_the_viewer_and_the_command_line_show_what_the_environment_holds(
    credentials: Path, ca: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "server"
    async with collector(credentials=credentials, tls=written(ca, folder, "localhost")) as (address, _):
        named = address.replace("127.0.0.1", "localhost")
        exporter = GrpcExporter(named, access=access(folder, WRITES))
        resource = {"service.name": "served", "service.instance.id": "a1"}
        exporter.attach(TOPOLOGY, level="heads", ceiling="heads", tokens="off", resource=resource)
        exporter.export(block_of(4))
        assert await asyncio.to_thread(exporter.flush, 20)
        assert exporter.stats().acknowledged + exporter.stats().folded == 4
        await asyncio.to_thread(exporter.close)

        refused = await asyncio.to_thread(probe, named)
        assert refused.answer != "ready"
        monkeypatch.setenv("FULGURITE_CA", str(folder / "ca"))
        refused = await asyncio.to_thread(probe, named)
        assert refused.answer == "refused"
        assert "set FULGURITE_TOKEN" in refused.reason
        with pytest.raises(CommandError, match="does not let this client in"):
            await asyncio.to_thread(_replicas, named)
        monkeypatch.setenv("FULGURITE_TOKEN", READS)
        assert (await asyncio.to_thread(probe, named)).answer == "ready"
        assert await asyncio.to_thread(_replicas, named) == ["/served/a1"]
        monkeypatch.delenv("FULGURITE_TOKEN")
        (tmp_path / "token").write_text(READS + "\n")
        monkeypatch.setenv("FULGURITE_TOKEN_FILE", str(tmp_path / "token"))
        assert await asyncio.to_thread(_replicas, named) == ["/served/a1"]


def _replicas(address: str) -> list[str]:
    with Client(Address.parse(address)) as client:
        return [status.key for status in client.replicas().replicas]


# --- what may not be left out


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "nobody would have to show credentials: give --credentials FILE or --tls-client-ca FILE"),
        ({"tls": TlsFiles(Path("c"), Path("k"))}, "nobody would have to show credentials"),
    ],
)
def test_a_public_address_is_not_listened_on_without_credentials(
    settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        Settings(listen=Listen("0.0.0.0", 4747), **settings)
    assert Settings(listen=Listen("0.0.0.0", 4747), insecure=True, **settings)


def test_tokens_do_not_cross_a_network_in_the_clear(credentials: Path) -> None:
    public = Listen("0.0.0.0", 4747)
    with pytest.raises(Unsafe, match="would read the tokens: give --tls-cert and --tls-key"):
        Security(Settings(listen=public, credentials=credentials))
    Security(Settings(listen=public, credentials=credentials, insecure=True))
    with pytest.raises(AccessError, match="would read the token: set FULGURITE_CA"):
        Access(token=READS).channel("collector.example:4747")
    Access(token=READS, insecure=True).channel("collector.example:4747").close()
    Access(token=READS).channel("127.0.0.1:4747").close()


def test_files_that_cannot_be_used_are_named(ca: trustme.CA, tmp_path: Path, credentials: Path) -> None:
    one, two = written(ca, tmp_path / "one", "localhost"), written(ca, tmp_path / "two", "localhost")
    for settings, reason in (
        ({"tls": TlsFiles(one.certificate, two.key)}, "are not a certificate in PEM and its private key"),
        (
            {"tls": TlsFiles(one.certificate, tmp_path / "none")},
            "cannot read the key in .*none: No such file",
        ),
        ({"tls": TlsFiles(one.certificate, one.key, one.key)}, "has no CA certificate in PEM"),
        ({"credentials": tmp_path / "none"}, "cannot read the credentials in .*none: No such file"),
        ({"credentials": one.key}, "the credentials in .*key: not TOML"),
    ):
        with pytest.raises(Unsafe, match=reason):
            Security(Settings(listen=LOOPBACK, **settings))


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"FULGURITE_CERT": "c"}, "needs its key, and a key its certificate: set FULGURITE_KEY"),
        ({"FULGURITE_TLS": "perhaps"}, "FULGURITE_TLS must be true or false, not 'perhaps'"),
        ({"FULGURITE_CA": "/none"}, "cannot read the CA certificate in /none"),
        ({"FULGURITE_TOKEN": "fg_a b"}, "the token has characters that no token has"),
    ],
)
def test_what_a_client_is_given_wrongly_is_said_without_the_secret(
    variables: dict[str, str], reason: str
) -> None:
    with pytest.raises(AccessError, match=reason) as error:
        Access.from_environment(variables).check("127.0.0.1:4747")
    assert "fg_a" not in str(error.value)
