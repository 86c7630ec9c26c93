"""What is in a store after everything: read there, past every collector."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import grpc

from fulgurite.collector.store import Position
from fulgurite.collector.stores.redis import RedisStore
from fulgurite.v1 import viewer_pb2, viewer_pb2_grpc

DEADLINE_S: Final = 30.0


class Aftermath:
    """Looks at a collector from outside, and at its store from inside."""

    def __init__(self, address: str, url: str) -> None:
        self._address, self._url = address, url

    def await_frames(self) -> None:
        """Return when a viewer of the collector gets frames that came after now."""
        now_ns = time.time_ns()
        with grpc.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub: Any = viewer_pb2_grpc.ViewerServiceStub(channel)
            for response in stub.Watch(viewer_pb2.WatchRequest(), timeout=DEADLINE_S):
                if response.HasField("batch") and response.batch.ingested_ns > now_ns:
                    return

    def stored(self) -> list[tuple[str, int, int]]:
        """Replica, epoch and sequence of every frame in the store, as often as it is there."""
        return asyncio.run(self._stored())

    async def _stored(self) -> list[tuple[str, int, int]]:
        store = RedisStore(self._url)
        await store.open()
        found: list[tuple[str, int, int]] = []
        for row in await store.replicas():
            position = Position()
            while (page := await store.read(row.key, position, limit=1000)).entries:
                position = page.position
                for entry in page.entries:
                    sequences = range(entry.first_sequence, entry.id.sequence + 1) if entry.count else ()
                    found += [(row.key.text, entry.id.epoch_ms, sequence) for sequence in sequences]
        await store.close()
        return found
