"""The host's lulls: told before the unembedding, worked in by the sender, and never waited for too long."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from fulgurite.agent.late import LateBlock
from fulgurite.agent.lulls import LATE_S, MOST_S, SEEN, SLACK, SLACK_S, TOGETHER_S, Lulls
from fulgurite.agent.outbox import NEVER, Outbox
from fulgurite.wire.ledger import Ledger

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

from tests.agent.reference import BY_NAME, prompts  # noqa: E402
from tests.agent.test_exporter import TOPOLOGY, Collector, block_of, until  # noqa: E402
from tests.agent.test_outbox import block_of as small  # noqa: E402

from fulgurite.agent import InMemoryExporter, instrument  # noqa: E402
from fulgurite.agent.engines.vllm.worker import Watched  # noqa: E402
from fulgurite.agent.exporter import GrpcExporter  # noqa: E402
from fulgurite.agent.lull_probe import LullProbe  # noqa: E402


def of_us(model: Any) -> int:
    """How many hooks of the lulls are in a model."""
    return sum(isinstance(hook, LullProbe) for m in model.modules() for hook in m._forward_pre_hooks.values())


# --- how long to wait


def test_a_lull_is_waited_for_somewhat_longer_than_it_took_of_late() -> None:
    lulls = Lulls()
    assert lulls.longest_s == MOST_S
    for at_s in range(SEEN):
        lulls.see(at_s + 0.02, (at_s, at_s - 1))
    assert lulls.longest_s == pytest.approx(SLACK * 0.02 + SLACK_S)


def test_a_lull_that_came_too_late_tells_how_long_it_takes_too() -> None:
    lulls = Lulls()
    for at_s in range(SEEN):
        lulls.see(at_s - 1 + 0.03, (at_s, at_s - 1))  # the one after what was sent before
    assert lulls.longest_s == pytest.approx(SLACK * 0.03 + SLACK_S)


def test_a_lull_before_all_tells_nothing_and_one_beyond_the_bound_is_not_waited_for() -> None:
    lulls = Lulls()
    for _ in range(SEEN):
        lulls.see(float("-inf"), (2.0, 1.0))
    assert lulls.longest_s == MOST_S
    for at_s in range(SEEN):
        lulls.see(at_s + 0.9 * MOST_S, (at_s, at_s - 1))
    assert lulls.longest_s == MOST_S
    for at_s in range(SEEN):
        assert lulls.longest_s == MOST_S
        lulls.see(at_s + 2 * MOST_S, (at_s, at_s - 1))
    assert lulls.longest_s == 0.0


def test_in_a_steady_pace_it_is_known_when_to_look() -> None:
    lulls = Lulls()
    for at_s in (1.0, 1.02, 1.02, 1.04, 1.0605):
        assert lulls.next_s is None
        lulls.heard(at_s)
    lulls.heard(1.08)
    assert lulls.next_s == pytest.approx(1.08 + 0.0195 + LATE_S)
    for at_s in (1.1, 1.12, 1.14, 1.16):
        lulls.heard(at_s)
    assert lulls.next_s == pytest.approx(1.18)
    lulls.heard(2.0)
    assert lulls.next_s is None


@pytest.mark.parametrize(("gap_s", "steps"), [(0.03, 3), (0.06, 1), (0.2, 0)])
def test_what_waits_may_wait_for_more_to_go_with_it_but_not_for_long(gap_s: float, steps: int) -> None:
    lulls = Lulls()
    assert lulls.joins_by_s(0.0) is None
    for number in range(8):
        lulls.heard(number * gap_s)
    last_s, came_s, found = 7 * gap_s, 7 * gap_s, 0
    while (by_s := lulls.joins_by_s(came_s)) is not None:
        assert last_s < by_s <= came_s + TOGETHER_S
        found, last_s = found + 1, last_s + gap_s
        lulls.heard(last_s)
    assert found == steps


# --- who sleeps


def waits(outbox: Outbox, age_s: float) -> threading.Event:
    """Somebody waits for a lull; set once it woke."""
    woke = threading.Event()

    def wait() -> None:
        outbox.wait(20.0, frames=NEVER, lull_at_age_s=age_s)
        woke.set()

    threading.Thread(target=wait, daemon=True).start()
    until(lambda: outbox._wake_at_age_s == age_s)
    return woke


def test_a_lull_wakes_who_waits_for_it_where_something_is_there_for_long_enough() -> None:
    outbox = Outbox(Ledger())
    woke = waits(outbox, 0.05)
    outbox.lull()  # nothing is there
    outbox.put(small(1))
    outbox.lull()  # not for long
    assert not woke.wait(0.06)
    outbox.lull()
    assert woke.wait(20.0)


def test_a_lull_wakes_nobody_who_does_not_wait_for_one() -> None:
    outbox = Outbox(Ledger())
    outbox.put(small(1))  # wakes whoever sleeps next
    outbox.wait(20.0, frames=NEVER)
    outbox.lull()
    began_s = time.monotonic()
    outbox.wait(0.05, frames=NEVER)
    assert time.monotonic() - began_s >= 0.04
    assert outbox.lull_s < began_s


# --- what is sent


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    server.start()
    yield server
    server.stop()


class Host:
    """A host's thread that hands over a step, does this and that, and has a lull until the step was read."""

    def __init__(self, exporter: GrpcExporter) -> None:
        self.exporter = exporter
        self.in_a_lull = False
        self.read: list[bool] = []
        self.early: list[bool] = []
        self._done = threading.Event()

    def step(self, number: int, *, lull: bool = True) -> None:
        block = block_of(1, number)

        def make() -> Any:
            self.read.append(self.in_a_lull)
            self._done.set()
            return block.columns

        self._done.clear()
        self.exporter.export(LateBlock(block.requests, make, rows=1, nbytes=1000))
        time.sleep(0.015)
        self.early.append(self._done.is_set())
        self.in_a_lull = lull
        if lull:
            self.exporter.lull()
        assert self._done.wait(20.0), "the step was never read"
        self.in_a_lull = False


def test_what_waits_is_read_in_the_hosts_lulls_and_all_of_it_arrives(collector: Collector) -> None:
    exporter = GrpcExporter(collector.endpoint)
    exporter.attach(TOPOLOGY, level="heads", ceiling="deep", tokens="off", resource={})
    host = Host(exporter)
    for number in range(8):  # until the stream stands, and the waits are known
        host.step(number)
    host.read.clear()
    for number in range(8, 40):
        host.step(number)
    assert sum(host.read) > 16  # all 32, but where this machine was away for long
    host.step(40, lull=False)  # the last one: no lull comes any more
    assert exporter.flush(20.0)
    assert sum(batch.count for batch in collector.batches) == 41
    exporter.close()


def test_steps_of_a_steady_pace_are_made_ready_one_by_one_and_go_together(collector: Collector) -> None:
    exporter = GrpcExporter(collector.endpoint)
    exporter.attach(TOPOLOGY, level="heads", ceiling="deep", tokens="off", resource={})
    made: list[int] = []

    def make(block: Any) -> Any:
        made.append(len(exporter._outbox))
        return block.columns

    number, deadline_s = 0, time.monotonic() + 20.0
    while time.monotonic() < deadline_s and number < 80:
        block = block_of(1, number)
        exporter.export(LateBlock(block.requests, partial(make, block), rows=1, nbytes=1000))
        time.sleep(0.01)
        exporter.lull()
        time.sleep(0.015)
        number += 1
        if any(batch.count > 1 for batch in collector.batches[4:]):
            break
    assert any(batch.count > 1 for batch in collector.batches[4:])
    assert max(made) > 0, "some were made while they waited"
    until(lambda: sum(batch.count for batch in collector.batches) == number, "all of them")
    assert len(made) == number
    exporter.close()


def test_what_cannot_be_made_ready_is_counted_once_and_loses_nothing_else() -> None:
    def fail() -> Any:
        raise ValueError("no columns")

    outbox = Outbox(Ledger())
    good = small(1)
    for make in (fail, lambda: good.columns):
        outbox.put(LateBlock(good.requests, make, rows=1, nbytes=1000))
    outbox.make_ready()
    assert outbox.frames == 2
    first, second = outbox.take(), outbox.take()
    assert first is not None
    assert second is not None
    assert second.payload.columns is good.columns  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no columns"):
        _ = first.payload.columns  # type: ignore[union-attr]


def test_without_lulls_nothing_waits_for_one(collector: Collector) -> None:
    exporter = GrpcExporter(collector.endpoint)
    exporter.attach(TOPOLOGY, level="heads", ceiling="deep", tokens="off", resource={})
    host = Host(exporter)
    for number in range(20):
        host.step(number, lull=False)
    assert sum(host.early) > 5  # all but the first few, where this machine was not away
    exporter.close()


# --- who tells


class Told(InMemoryExporter):
    """Counts the lulls that it is told of."""

    lulls = 0

    def lull(self) -> None:
        """See `GrpcExporter.lull`."""
        self.lulls += 1


@pytest.fixture
def model() -> Any:
    return BY_NAME["llama"].build()


@pytest.mark.parametrize("level", ["pulse", "heads", "deep"])
def test_each_pass_tells_of_one_lull_and_nothing_is_left_behind(model: Any, level: str) -> None:
    wanted = model.generate(prompts(2, 5), max_new_tokens=6, do_sample=False)
    exporter = Told()
    with instrument(model, exporter=exporter, level=level):
        found = model.generate(prompts(2, 5), max_new_tokens=6, do_sample=False)
        assert (exporter.lulls, of_us(model)) == (6, 1)
        assert of_us(copy.deepcopy(model)) == of_us(pickle.loads(pickle.dumps(model))) == 0
    assert torch.equal(found, wanted)
    assert of_us(model) == 0


def test_no_hook_is_there_for_an_exporter_that_has_no_use_for_it_and_none_at_off(model: Any) -> None:
    with instrument(model, exporter=InMemoryExporter()):
        assert of_us(model) == 0
    with instrument(model, exporter=Told(), level="off"):
        model.generate(prompts(1, 5), max_new_tokens=2, do_sample=False)
        assert of_us(model) == 0


def test_an_exporter_that_fails_at_a_lull_is_kept_from_the_host(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULGURITE_STRICT", "0")

    class Moody(Told):
        def lull(self) -> None:
            raise OSError("not now")

    exporter = Moody()
    with instrument(model, exporter=exporter) as agent:
        model.generate(prompts(1, 5), max_new_tokens=4, do_sample=False)
        assert agent.stats().errors == {"lull:OSError": 4}
    assert len(exporter.frames) == 4


def test_a_compiled_graph_takes_no_notice(model: Any) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    exporter = Told()
    wanted = model.generate(prompts(1, 5), max_new_tokens=6, do_sample=False)
    with instrument(model, exporter=exporter):
        model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)
        found = model.generate(prompts(1, 5), max_new_tokens=6, do_sample=False)
    assert torch.equal(found, wanted)
    assert exporter.lulls == 0
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()


def test_vllm_tells_before_its_logits_are_computed() -> None:
    order: list[str] = []

    def plain(*_: Any) -> None:
        """A method of a runner that is not asked for here."""

    class Exporter(Told):
        def lull(self) -> None:
            order.append("lull")

    def compute_logits(hidden: int) -> int:
        order.append("logits")
        return hidden + 1

    methods = dict.fromkeys(("execute_model", "_prepare_inputs", "sample_tokens", "_bookkeeping_sync"), plain)
    runner = SimpleNamespace(model=SimpleNamespace(compute_logits=compute_logits), **methods)
    Watched(runner, SimpleNamespace(exporter=Exporter()), {}).install()
    assert runner.model.compute_logits(1) == 2
    assert order == ["lull", "logits"]
