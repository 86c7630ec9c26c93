"""Agents are told what is wanted of them: whole frames while somebody watches, a level, a pause."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest
from tests.collector.stage import Agent, Viewer, asynchronous, collecting, hello_of, listed

from fulgurite.collector.config import History, Settings
from fulgurite.collector.demand import Demands
from fulgurite.collector.stores.memory import MemoryStore
from fulgurite.v1 import agent_pb2, viewer_pb2, viewer_pb2_grpc
from fulgurite.wire.replica import ReplicaKey

KEY = ReplicaKey("", "served", "a")


async def told(agent: Agent) -> agent_pb2.Control:
    """The next control that the agent is told."""
    return (await agent.hear("control")).control


async def welcomed(address: object, **fields: Any) -> tuple[Agent, agent_pb2.Welcome]:
    """An agent, and its welcome."""
    agent = Agent(address)
    await agent.say(hello=hello_of(**fields))
    return agent, (await agent.hear("welcome")).welcome


async def ask(address: object, *selectors: str, **request: Any) -> viewer_pb2.SetControlResponse:
    """Ask something of replicas."""
    async with grpc.aio.insecure_channel(str(address)) as channel:
        stub: Any = viewer_pb2_grpc.AdminServiceStub(channel)
        response: viewer_pb2.SetControlResponse = await stub.SetControl(
            viewer_pb2.SetControlRequest(selectors=selectors, **request)
        )
        return response


@asynchronous
async def test_while_nobody_watches_one_request_in_sixteen_is_wanted() -> None:
    async with collecting() as collector:
        agent, welcome = await welcomed(collector.address)
        assert (welcome.demand.watched, welcome.demand.one_in, welcome.demand.history_level) == (
            False,
            16,
            "heads",
        )
        await agent.hang_up()


@asynchronous
async def test_a_history_of_all_and_of_none_is_said_to_the_agent() -> None:
    for text, one_in, level in (("all", 1, ""), ("none", 0, "heads"), ("deep/3", 3, "deep")):
        async with collecting(history=History.parse(text)) as collector:
            agent, welcome = await welcomed(collector.address)
            assert (welcome.demand.one_in, welcome.demand.history_level) == (one_in, level)
            await agent.hang_up()


@asynchronous
async def test_whole_frames_are_wanted_from_a_viewers_arrival_until_the_last_one_left() -> None:
    async with collecting() as collector:
        agent, _ = await welcomed(collector.address)
        first, second = Viewer(collector.address), Viewer(collector.address, "served")
        await first.caught_up()
        await second.caught_up()
        assert (await told(agent)).demand.watched
        await first.close()
        await second.close()
        assert not (await told(agent)).demand.watched
        await agent.hang_up()


@asynchronous
async def test_a_viewer_at_another_collector_is_heard_of_through_the_store() -> None:
    store = MemoryStore()
    async with collecting(store) as here, collecting(store) as there:
        agent, welcome = await welcomed(here.address)
        assert not welcome.demand.watched
        viewer = Viewer(there.address)
        await viewer.caught_up()
        assert (await told(agent)).demand.watched
        await viewer.close()
        assert not (await told(agent)).demand.watched
        await agent.hang_up()


@asynchronous
async def test_an_agent_that_comes_while_somebody_watches_is_told_at_once() -> None:
    async with collecting() as collector:
        agent, _ = await welcomed(collector.address)
        viewer = Viewer(collector.address)
        await viewer.caught_up()
        assert (await told(agent)).demand.watched
        await agent.hang_up()
        again, welcome = await welcomed(collector.address)
        assert welcome.demand.watched
        await again.hang_up()
        await viewer.close()


@asynchronous
async def test_a_passive_viewer_asks_nobody_for_anything() -> None:
    async with collecting() as collector:
        agent, _ = await welcomed(collector.address)
        viewer = Viewer(collector.address, passive=True)
        await viewer.caught_up()
        await ask(collector.address, "served", pause=True)  # the next word, so that nothing came before it
        said = await told(agent)
        assert (said.pause, said.demand.watched) == (True, False)
        await viewer.close()
        await agent.hang_up()


@asynchronous
async def test_only_the_replicas_that_are_selected_are_watched() -> None:
    async with collecting() as collector:
        seen, _ = await welcomed(collector.address)
        unseen, _ = await welcomed(collector.address, instance="b")
        viewer = Viewer(collector.address, "served/a")
        await viewer.caught_up()
        assert (await told(seen)).demand.watched
        await ask(collector.address, "*", level="pulse")
        said = await told(unseen)
        assert (said.level, said.demand.watched) == ("pulse", False)
        for agent in (seen, unseen):
            await agent.hang_up()
        await viewer.close()


@asynchronous
async def test_what_an_administrator_asks_for_is_told_at_any_collector_and_kept() -> None:
    store = MemoryStore()
    async with collecting(store) as here, collecting(store) as there:
        agent, _ = await welcomed(here.address, level_ceiling="deep")
        (state,) = (await ask(there.address, "served", level="pulse", deep_ratio=0.25)).replicas
        assert (state.key, state.refusal, state.level_ceiling) == ("/served/a", "", "deep")
        said = await told(agent)
        assert (said.level, said.deep_ratio, said.own_level, said.pause) == ("pulse", 0.25, False, False)
        await ask(there.address, "served", pause=True)
        said = await told(agent)
        assert (said.level, said.deep_ratio, said.pause) == ("pulse", 0.25, True)
        await agent.hang_up()
        again, welcome = await welcomed(there.address, level_ceiling="deep")
        assert (welcome.control.level, welcome.control.pause) == ("pulse", True)
        await ask(here.address, "served", level="", deep_ratio=-1.0, pause=False)
        said = await told(again)
        assert (said.level, said.own_level, said.pause, said.HasField("deep_ratio")) == (
            "",
            True,
            False,
            False,
        )
        await ask(here.address, "served", kill=True)
        assert (await told(again)).kill
        await again.hang_up()


@asynchronous
async def test_a_level_above_the_ceiling_is_refused_and_says_what_to_do() -> None:
    async with collecting() as collector:
        agent, _ = await welcomed(collector.address, level_ceiling="heads")
        (state,) = (await ask(collector.address, "served", level="deep")).replicas
        assert "above heads" in state.refusal
        assert "FULGURITE_LEVEL=deep" in state.refusal
        (state,) = (await ask(collector.address, "served", level="pulse")).replicas
        assert not state.refusal
        assert (await told(agent)).level == "pulse"  # nothing was told before
        await agent.hang_up()


@pytest.mark.parametrize(
    ("selectors", "request_of", "message"),
    [
        ((), {"pause": True}, "name 1 to 64 replicas"),
        (("",), {"pause": True}, "name 1 to 64 replicas"),
        (("a",), {"level": "loud"}, "no such level: 'loud'"),
        (("a",), {"deep_ratio": 1.5}, "between 0 and 1"),
        (("a",), {"deep_ratio": float("nan")}, "between 0 and 1"),
        (("a" * 2000,), {"pause": True}, "more than 1024 characters"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(
    selectors: tuple[str, ...], request_of: dict[str, Any], message: str
) -> None:
    @asynchronous
    async def run() -> None:
        async with collecting() as collector:
            with pytest.raises(grpc.aio.AioRpcError, match=message) as caught:
                await ask(collector.address, *selectors, **request_of)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    run()


@asynchronous
async def test_the_clocks_are_compared_and_the_link_is_shown() -> None:
    async with collecting() as collector:
        agent, welcome = await welcomed(collector.address)
        agent.epoch_ms = welcome.epoch_ms
        ping = (await agent.hear("ping")).ping
        ahead_ns = 5_000_000_000
        await agent.say(pong=agent_pb2.Pong(ping_ns=ping.ping_ns, wall_ns=time.time_ns() + ahead_ns))
        await agent.send(1)
        await agent.acknowledged(4)
        ping = (await agent.hear("ping")).ping
        assert ping.clock_offset_ns == pytest.approx(ahead_ns, abs=ping.round_trip_ns + 1_000_000)
        (status,) = await listed(collector.address)
        assert status.link.clock_offset_ns == ping.clock_offset_ns
        assert (status.link.stored_sequence, status.link.epoch_ms) == (4, welcome.epoch_ms)
        assert status.link.history_one_in == 16
        assert status.link.lag_s > 0
        await agent.hang_up()


@asynchronous
async def test_a_store_that_is_away_changes_nothing_of_what_was_wanted() -> None:
    store = MemoryStore()
    demands = Demands(store, history=History())
    heard: list[bool] = []
    await demands.look_up(KEY)
    demands.admit(KEY, "stream", lambda: heard.append(demands.of(KEY).demand.watched))
    await store.register(KEY, asked_epoch_ms=0, now_ms=1)
    await store.mark_watched([KEY], 60.0)
    await demands.look(0.0)
    assert heard == [True]
    await demands.look(1.0)
    assert heard == [True]  # said once
    demands.leave(KEY, "another stream")
    assert demands.of(KEY).demand.watched
    demands.leave(KEY, "stream")
    assert not demands.of(KEY).demand.watched


def test_a_history_is_read_and_written() -> None:
    assert Settings().history == History(16, "heads")
    for text in ("all", "none", "heads/16", "deep/1"):
        assert str(History.parse(text)) == text
    for text in ("", "heads", "heads/0", "loud/3", "heads/x"):
        with pytest.raises(ValueError, match="write all, none, or LEVEL/N"):
            History.parse(text)
