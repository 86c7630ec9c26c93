"""The load generator: what it sends is what an agent would send, when it is due, each frame once."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from benchmarks.load.generator import Plan, generate
from benchmarks.load.pacing import Pace
from benchmarks.load.shape import SHAPES
from benchmarks.load.template import Template, templates

from fulgurite.collector.config import Listen, Settings
from fulgurite.collector.link import PING_EVERY_S
from fulgurite.collector.server import Collector
from fulgurite.collector.store import Position
from fulgurite.collector.stores.memory import MemoryStore
from fulgurite.wire.codec import Codec, batch_bytes, decode_batch, schema_for

LOOPBACK = Listen("127.0.0.1", 0)


def test_the_time_of_a_message_does_not_depend_on_the_ones_before() -> None:
    pace = Pace(per_s=2000.0, offset_s=0.5)
    assert [pace.due_s(tokens) for tokens in (0, 8, 2000)] == [0.5, 0.504, 1.5]


def test_a_template_is_the_batch_that_the_codec_would_write_with_later_clocks() -> None:
    shape = SHAPES["W1"]
    codec = Codec(schema_for(shape.topology))
    blocks = shape.blocks(32)
    template = Template(codec, blocks)
    ended_ns = int(blocks[-1].columns["ended_ns"].max()) + 5_000_000_000
    data = template.message(epoch_ms=77, first_sequence=11, ended_ns=ended_ns, turn=3)
    inner = batch_bytes(data)
    assert inner is not None
    batch = codec.decode(inner)
    assert (batch.epoch_ms, batch.first_sequence, len(batch)) == (77, 11, 32)
    columns = batch.blocks[0].columns
    assert columns["ended_ns"].max() == ended_ns
    assert (columns["ended_ns"] - columns["started_ns"] == 1_000_000).all()
    assert columns["position"].tolist() == [32 + 12 + step for step in range(4) for _ in range(8)]
    told = np.concatenate([block.columns["head_write"] for block in blocks])
    np.testing.assert_allclose(columns["head_write"], told, rtol=1e-3)


@pytest.mark.parametrize("name", [*SHAPES])
def test_templates_stay_within_a_message_and_lose_no_frame(name: str) -> None:
    shape = SHAPES[name]
    codec = Codec(schema_for(shape.topology, "compact"))
    blocks = shape.blocks(48)
    made = templates(codec, blocks, tokens=16, max_bytes=1 << 20)
    assert sum(template.count for template in made) == 48
    assert all(template.count <= 16 and template.nbytes <= 1 << 20 for template in made)


async def _loaded(settings: Settings, **plan: Any) -> tuple[Any, MemoryStore]:
    store = MemoryStore()
    async with Collector(store, settings) as collector:
        return await generate(Plan(address=str(collector.address), **plan)), store


async def _stored(store: MemoryStore) -> dict[str, list[int]]:
    """The sequences that every replica has in the store, as the frames in the bytes say."""
    found: dict[str, list[int]] = {}
    for row in await store.replicas():
        sequences = found.setdefault(row.key.text, [])
        position = Position()
        while (page := await store.read(row.key, position, limit=1000)).entries:
            position = page.position
            for entry in page.entries:
                batch = decode_batch(entry.batch, schema_for(SHAPES["W1"].topology))
                assert len(batch) == entry.count
                sequences += range(batch.first_sequence, batch.last_sequence + 1)
    return found


def test_everything_that_was_due_is_stored_once_and_in_order() -> None:
    async def go() -> None:
        account, store = await _loaded(Settings(listen=LOOPBACK), replicas=3, seconds=0.5)
        assert account.offered == account.sent == account.acknowledged >= 3 * 0.4 * 2000
        assert account.dropped == 0
        found = await _stored(store)
        assert len(found) == 3
        for sequences in found.values():
            assert sequences == list(range(1, len(sequences) + 1))
        assert sum(map(len, found.values())) == account.acknowledged

    asyncio.run(go())


def test_a_stream_lasts_while_pings_are_answered_between_batches() -> None:
    async def go() -> None:
        settings = Settings(listen=LOOPBACK)
        account, _ = await _loaded(
            settings, replicas=1, seconds=PING_EVERY_S + 1.0, batch_tokens=2, tokens_per_s=100.0
        )
        assert account.acknowledged == account.offered
        assert account.reconnects == 0

    asyncio.run(go())


def test_a_load_beyond_the_credit_is_late_and_says_so() -> None:
    async def go() -> None:
        # One batch under way, acknowledged 50 ms later: at most 20 messages a second of the 250 that are due.
        settings = Settings(listen=LOOPBACK, credit=1)
        account, _ = await _loaded(settings, replicas=1, seconds=0.3)
        assert account.dropped == 0
        assert max(account.lateness_s) > 0.5

    asyncio.run(go())
