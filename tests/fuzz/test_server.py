"""What a hostile peer may try at a real collector: it is refused in a sentence, and others notice nothing."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psutil
import pytest
from tests.chaos.processes import ROOT, free_port, listens
from tests.fuzz import seeds
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import check_is_clear

from fulgurite.v1 import agent_pb2, frame_pb2, viewer_pb2
from fulgurite.wire.codec import MAX_SEQUENCE, content_hash, schema_for

pytest.importorskip("grpc_health", reason="the collector needs the extra: collector")

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

CONNECT = "/fulgurite.v1.AgentService/Connect"
WATCH = "/fulgurite.v1.ViewerService/Watch"
NAMES = 1100
MORE = 200
LIMIT_S = 60.0
GROWTH_MIB = 64


class Victim:
    """A collector in a process of its own."""

    def __init__(self) -> None:
        self.address = f"127.0.0.1:{(port := free_port())}"
        command = [
            sys.executable,
            "-m",
            "fulgurite.collector",
            "--listen",
            self.address,
            "--redis",
            "memory://",
        ]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        while not listens(port):
            assert self._process.poll() is None, self.last_words
        self.channel = grpc.insecure_channel(self.address, [("grpc.max_receive_message_length", -1)])

    @property
    def last_words(self) -> str:
        """What it says; waits for its end."""
        return self._process.communicate()[1]

    @property
    def resident_mib(self) -> float:
        """Memory that it holds."""
        return float(psutil.Process(self._process.pid).memory_info().rss / 2**20)

    def connect(self, *messages: bytes) -> list[Any]:
        """What it answers to an agent that says this and no more."""
        call = self.channel.stream_stream(
            CONNECT, request_serializer=None, response_deserializer=agent_pb2.CollectorMessage.FromString
        )
        return list(call(iter(messages), timeout=LIMIT_S))

    def refusal(self, *messages: bytes) -> str:
        """Why it turns such an agent away."""
        try:
            answers = self.connect(*messages)
        except grpc.RpcError as error:
            details = str(error.details())  # type: ignore[attr-defined]
            check_is_clear(details)
            return details
        refused = [answer.refusal.reason for answer in answers if answer.HasField("refusal")]
        assert len(refused) == 1, answers
        check_is_clear(refused[0])
        return str(refused[0])

    def serves(self) -> None:
        """Assert that a good agent is welcome and its frames are acknowledged, and that it has not ended."""
        hello = agent_pb2.AgentMessage.FromString(seeds.hellos()[0])
        hello.hello.resource.service_instance_id = f"good-{random.random()}"
        answers = self.channel.stream_stream(
            CONNECT, request_serializer=None, response_deserializer=agent_pb2.CollectorMessage.FromString
        )(iter([hello.SerializeToString()]), timeout=LIMIT_S)
        assert next(iter(answers)).HasField("welcome")
        assert self._process.poll() is None

    def end(self) -> str:
        """End it; returns what it said."""
        self.channel.close()
        self._process.terminate()
        return self.last_words


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    victim = Victim()
    yield victim
    assert "Traceback" not in victim.end()


def hello(**changes: Any) -> bytes:
    """A good one, with something else in it."""
    message = agent_pb2.AgentMessage.FromString(seeds.hellos()[0])
    for path, value in changes.items():
        part, _, field = path.partition("__")
        setattr(getattr(message.hello, part) if field else message.hello, field or part, value)
    return message.SerializeToString()


@pytest.mark.parametrize("field", ["heads", "layers", "kv_heads", "experts"])
def test_a_topology_of_a_billion_is_refused(victim: Victim, field: str) -> None:
    assert "1000000000" in victim.refusal(hello(**{f"topology__{field}": 10**9}))
    victim.serves()


def test_a_schema_of_a_billion_items_is_refused(victim: Victim) -> None:
    message = agent_pb2.AgentMessage.FromString(hello())
    column = next(one for one in message.hello.schema.columns if one.name == "head_write")
    column.shape[:] = [10**9, 10**9]
    assert "head_write" in victim.refusal(message.SerializeToString())
    victim.serves()


def lies() -> dict[str, frame_pb2.Batch]:
    """Batches that say more than they hold, or hold more than they say."""
    found: dict[str, frame_pb2.Batch] = {}

    def lie(name: str) -> frame_pb2.Batch:
        found[name] = frame_pb2.Batch.FromString(seeds.batches(seeds.DENSE, "exact")[0])
        return found[name]

    lie("frames").count = 2**31
    lie("more frames").count = 65_536
    lie("frames of a block").blocks[0].count = 2**31
    both = lie("both")
    both.count = both.blocks[0].count = 60_000
    lie("a column of nothing").blocks[0].column_data[-1] = b""
    lie("a long column").blocks[0].column_data[-1] = bytes(1 << 20)
    lie("columns twice").blocks[0].column_index.extend([0] * 200)
    lie("a column that is not").blocks[0].column_index[0] = 2**31
    lie("the end of time").first_sequence = MAX_SEQUENCE
    lie("the beginning").first_sequence = 0
    lie("blocks").blocks.extend([found["frames"].blocks[0]] * 1000)
    lie("another schema").schema_hash = content_hash(schema_for(seeds.EXPERTS))
    return found


@pytest.mark.parametrize("name", sorted(lies()))
def test_a_batch_that_lies_about_its_sizes_is_refused(victim: Victim, name: str) -> None:
    batch = lies()[name]
    before = victim.resident_mib
    call = victim.channel.stream_stream(
        CONNECT, request_serializer=None, response_deserializer=agent_pb2.CollectorMessage.FromString
    )
    welcomed = threading.Event()

    def says() -> Iterator[bytes]:
        yield hello(resource__service_instance_id=f"liar-{name}")
        assert welcomed.wait(LIMIT_S)
        yield agent_pb2.AgentMessage(batch=batch).SerializeToString()

    refused = ""
    for answer in call(says(), timeout=LIMIT_S):
        assert not answer.HasField("ack")
        if answer.HasField("welcome"):
            batch.epoch_ms = answer.welcome.epoch_ms
            welcomed.set()
        refused = refused or answer.refusal.reason
    check_is_clear(refused)
    assert victim.resident_mib - before < GROWTH_MIB
    victim.serves()


def test_a_message_larger_than_any_is_a_status(victim: Victim) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        victim.connect(bytes(64 << 20))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    victim.serves()


def test_names_without_end_are_refused_at_a_limit_and_cost_no_more_memory() -> None:
    victim = Victim()

    def refused(number: int) -> list[str]:
        answers = victim.connect(hello(resource__service_instance_id=f"name-{number}"))
        return [answer.refusal.reason for answer in answers if answer.HasField("refusal")]

    try:
        with ThreadPoolExecutor(16) as pool:
            first = [text for texts in pool.map(refused, range(NAMES)) for text in texts]
            before = victim.resident_mib
            then = [text for texts in pool.map(refused, range(NAMES, NAMES + MORE)) for text in texts]
            growth = victim.resident_mib - before
    finally:
        said = victim.end()
    assert "Traceback" not in said
    assert 0 < len(first) < NAMES
    assert len(then) == MORE
    for text in {*first, *then}:
        check_is_clear(text)
    assert growth < GROWTH_MIB / 4


def test_hostile_variants_of_all_that_is_said_end_no_collector(victim: Victim) -> None:
    rng = random.Random(5)
    before = victim.resident_mib
    first = seeds.hellos()
    for number in range(300):
        opening = hello(resource__service_instance_id=f"hostile-{number % 7}")
        if number % 3 == 0:
            opening = mutated(rng.choice(first), agent_pb2.AgentMessage, rng)
        words = [mutated(rng.choice(seeds.agent_words()), agent_pb2.AgentMessage, rng) for _ in range(3)]
        try:
            victim.connect(opening, *words)
        except grpc.RpcError as error:
            check_is_clear(str(error.details()))  # type: ignore[attr-defined]
    assert victim.resident_mib - before < GROWTH_MIB


def test_hostile_requests_of_viewers_are_an_invalid_argument(victim: Victim) -> None:
    rng = random.Random(6)
    watch = victim.channel.unary_stream(WATCH, request_serializer=None, response_deserializer=None)
    codes = set()
    for _ in range(100):
        call = watch(mutated(rng.choice(seeds.watch_requests()), viewer_pb2.WatchRequest, rng), timeout=0.3)
        try:
            for _ in call:
                break
            call.cancel()
        except grpc.RpcError as error:
            codes.add(error.code())  # type: ignore[attr-defined]
            check_is_clear(str(error.details()))  # type: ignore[attr-defined]
    allowed = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert grpc.StatusCode.INVALID_ARGUMENT in codes
    assert codes <= allowed
    victim.serves()
