"""What an administrator sees: this process, and every replica with its link and ledger, of all collectors."""

from __future__ import annotations

import asyncio
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.collector.stage import Agent, Viewer, asynchronous, until

from fulgurite.cli.__main__ import main
from fulgurite.collector.config import Listen, Settings
from fulgurite.collector.credentials import parse
from fulgurite.collector.server import Collector
from fulgurite.collector.stores.memory import MemoryStore
from fulgurite.v1 import agent_pb2, viewer_pb2, viewer_pb2_grpc

LOOPBACK = Listen("127.0.0.1", 0)


async def described(viewer: Viewer, *selectors: str) -> viewer_pb2.DescribeResponse:
    stub: Any = viewer_pb2_grpc.AdminServiceStub(viewer._channel)
    told: viewer_pb2.DescribeResponse = await stub.Describe(viewer_pb2.DescribeRequest(selectors=selectors))
    return told


@asynchronous
async def test_a_process_tells_of_itself_and_of_the_replicas_of_all_collectors() -> None:
    store = MemoryStore()
    async with (
        Collector(store, Settings(listen=LOOPBACK)) as one,
        Collector(store, Settings(listen=LOOPBACK)) as other,
    ):
        agent = await Agent(one.address).hello("a")
        await agent.send(1, 4)
        await agent.say(
            stats=agent_pb2.AgentStats(captured=9, acknowledged=4, pending=2, dropped={"full": 3})
        )
        await agent.acknowledged(4)
        viewer, far = Viewer(one.address), Viewer(other.address)
        await viewer.caught_up()

        told = await described(viewer)
        assert told.pid == os.getpid()
        assert told.store == "memory"
        assert (told.workers, told.store_away, told.encrypts) == (1, False, False)
        assert told.resident_bytes > 1 << 20
        calls = {(one.credential, one.service): one.calls for one in told.calls}
        assert calls["anybody", "fulgurite.v1.AgentService"] == 1
        assert calls["anybody", "fulgurite.v1.ViewerService"] == 1

        def is_told(response: viewer_pb2.DescribeResponse) -> bool:
            (status,) = response.replicas
            return (status.agent.captured, status.agent.dropped["full"], status.link.stored_sequence) == (
                9,
                3,
                4,
            )

        async def far_knows() -> bool:
            return is_told(await described(far))

        await until(far_knows)  # by way of the store
        from_far = await described(far)
        assert from_far.collector_id != told.collector_id
        assert from_far.replicas[0].link.collector_id == told.collector_id
        assert not (await described(far, "nobody")).replicas
        await agent.hang_up()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    said = capsys.readouterr()
    return status, said.out, said.err


@asynchronous
async def test_the_command_prints_it_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    async with Collector(MemoryStore(), Settings(listen=LOOPBACK)) as collector:
        agent = await Agent(collector.address).hello("a")
        await agent.send(1, 4)
        await agent.acknowledged(4)
        where = ("--collector", str(collector.address))
        status, out, _ = await asyncio.to_thread(run, capsys, "status", *where)
        assert status == 0
        assert f"process {os.getpid()}" in out
        assert "port       plain text, no credentials asked for" in out
        assert "1 of 'anybody' to fulgurite.v1.AgentService" in out
        assert out.splitlines()[-1].startswith("/served/a ")
        status, out, _ = await asyncio.to_thread(run, capsys, "status", "--json", *where)
        document = json.loads(out)
        assert document["process"]["store"] == "memory"
        assert document["replicas"][0]["replica"] == "/served/a"
        await agent.hang_up()


def test_a_token_is_printed_once_and_only_its_hash_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "credentials.toml"
    tokens = []
    for name, more in (('a "quoted" name', ("--replica", "prod/chat/*")), ("b", ("--replica", "*"))):
        status, out, err = run(
            capsys, "token", "--name", name, "--scope", "ingest", "--scope", "view", *more, "--add", str(path)
        )
        assert (status, err) == (0, "")
        tokens.append(out.strip())
    known = parse(path.read_text())
    assert [known.of_token(token).caller.name for token in tokens] == ['a "quoted" name', "b"]  # type: ignore[union-attr]
    assert not [token for token in tokens if token in path.read_text()]
    assert len(set(tokens)) == 2
    status, out, err = run(capsys, "token", "--name", "c", "--scope", "admin")
    assert tomllib.loads(err)["credential"][0]["scopes"] == ["admin"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--scope", "ingest"], "a token that may ingest names what it may write"),
        (
            ["--scope", "ingest", "--replica", "chat"],
            "--replica is NAMESPACE/SERVICE/INSTANCE or '*', not 'chat'",
        ),
        (["--scope", "view", "--add", "/no/such/folder/x"], "cannot write /no/such/folder/x: No such file"),
    ],
)
def test_a_token_that_makes_no_sense_is_not_made(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "token", "--name", "x", *arguments)
    assert status in (1, 2)
    assert out == ""
    assert err.startswith(f"fulgurite token: {reason}")
