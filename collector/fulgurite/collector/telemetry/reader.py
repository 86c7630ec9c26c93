"""Follows every replica of a store, each at its own pace, and hands on what it reads.

A replica that is new is read from its beginning; one that was there before, from now on, since what it did
before was folded by whoever ran then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from fulgurite.collector.fleet import Row
from fulgurite.collector.store import Position, Store, StoreError
from fulgurite.collector.telemetry.folder import Gathered, ReplicaFolder
from fulgurite.telemetry.sampling import Divergence, Sampling
from fulgurite.v1 import viewer_pb2
from fulgurite.wire.codec import CodecError
from fulgurite.wire.replica import ReplicaKey

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.5
PAGE: Final = 64
WAIT_S: Final = 1.0
RETRY_S: Final = 1.0
MOST_REPLICAS: Final = 1024

Take = Callable[[Gathered], None]


class Reader:
    """Reads a store until it is cancelled.

    Attributes
    ----------
    folders : dict of ReplicaKey to ReplicaFolder
        The replicas that are followed.
    lag_s : float
        Age of the newest batch when it was read.
    """

    def __init__(self, store: Store, *, sampling: Sampling, take: Take) -> None:
        self.folders: dict[ReplicaKey, ReplicaFolder] = {}
        self.lag_s = 0.0
        self.undecodable = 0
        self._store, self._sampling, self._take = store, sampling, take
        self._divergence = Divergence()
        self._tasks: dict[ReplicaKey, asyncio.Task[None]] = {}
        self._announced: dict[ReplicaKey, bytes] = {}
        self._has_looked = False
        self._is_away = False

    async def run(self) -> None:
        """Do so."""
        try:
            while True:
                try:
                    await self._look()
                    self._came_back()
                except StoreError as error:
                    self._went_away(error)
                    await asyncio.sleep(RETRY_S)
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _look(self) -> None:
        rows = {row.key: Row.of(row) for row in await self._store.replicas()}
        for key, row in rows.items():
            if row.announcement and self._announced.get(key) != row.announcement:
                self._meet(key, row.announcement)
            folder = self.folders.get(key)
            if folder is not None:
                folder.hear(row.status())
                self._take(folder.tick(time.time_ns()))
        for key in [key for key in self.folders if key not in rows]:
            self._tasks.pop(key).cancel()
            self.undecodable += self.folders.pop(key).undecodable
            self._announced.pop(key, None)
            self._divergence.forget(key.text)
        self._has_looked = True

    def _meet(self, key: ReplicaKey, blob: bytes) -> None:
        self._announced[key] = blob
        try:
            announcement = viewer_pb2.ReplicaAnnouncement.FromString(blob)
            folder = self.folders.get(key)
            if folder is not None:
                folder.meet(announcement)
                return
            if len(self.folders) >= MOST_REPLICAS:
                log.warning("%s is not followed: there are %d replicas already", key, MOST_REPLICAS)
                return
            folder = ReplicaFolder(
                announcement, sampling=self._sampling, divergence=self._divergence, now_ns=time.time_ns()
            )
        except (CodecError, DecodeError) as error:
            log.warning("%s cannot be read: %s", key, error)
            return
        self.folders[key] = folder
        is_new = self._has_looked
        self._tasks[key] = asyncio.create_task(
            self._follow(key, folder, is_new=is_new), name=f"reader of {key}"
        )

    async def _follow(self, key: ReplicaKey, folder: ReplicaFolder, *, is_new: bool) -> None:
        position = Position() if is_new else None
        while True:
            try:
                if position is None:
                    position = await self._store.newest(key)
                page = await self._store.read(key, position, limit=PAGE, wait_s=WAIT_S)
                for entry in page.entries:
                    if not folder.knows(entry.schema_hash):
                        await self._learn(key, folder, entry.schema_hash)
                    self._take(folder.fold(entry.schema_hash, entry.batch))
                    position = position.past(entry)
                    await asyncio.sleep(0)
                if page.entries:
                    self.lag_s = max(0.0, (time.time_ns() - page.entries[-1].ingested_ns) / 1e9)
            except StoreError as error:
                self._went_away(error)
                await asyncio.sleep(RETRY_S)
            except Exception:  # one replica that cannot be folded must not end the others
                log.exception("reading the stream of %s failed; it is tried again", key)
                await asyncio.sleep(RETRY_S)

    async def _learn(self, key: ReplicaKey, folder: ReplicaFolder, schema_hash: bytes) -> None:
        blob = await self._store.announcement(key, schema_hash)
        if blob:
            try:
                folder.learn(viewer_pb2.ReplicaAnnouncement.FromString(blob))
            except (CodecError, DecodeError) as error:
                log.warning("a schema of %s cannot be read: %s", key, error)

    def _went_away(self, error: StoreError) -> None:
        if not self._is_away:
            self._is_away = True
            log.warning("the store is away: %s", error)

    def _came_back(self) -> None:
        if self._is_away:
            self._is_away = False
            log.info("the store is back")
