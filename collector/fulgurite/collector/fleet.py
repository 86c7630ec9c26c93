"""What the store knows of all replicas: asked a few times a second at most, however many want to know."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from fulgurite.collector.store import ReplicaRow, Store
from fulgurite.v1 import viewer_pb2
from fulgurite.wire.replica import ReplicaKey

FRESH_S: Final = 0.25
_OF_NOW: Final = (
    "tokens_per_s",
    "inter_token",
    "first_token",
    "kv_tokens",
    "kv_bytes",
    "running_sequences",
    "head_activity",
    "ffn_activity",
    "window_s",
    "link",
    "first_token_counts",
    "inter_token_counts",
)
"""What says how a replica does now, and nothing once nobody hears it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One replica as any collector may know it.

    Attributes
    ----------
    announcement : bytes
        A serialised ReplicaAnnouncement.
    figures : ReplicaStatus or None
        As of its last beat. Not to be changed.
    """

    key: ReplicaKey
    announcement: bytes
    figures: viewer_pb2.ReplicaStatus | None
    alive: bool

    @classmethod
    def of(cls, row: ReplicaRow) -> Row:
        """What a row of the store says."""
        try:
            figures = viewer_pb2.ReplicaStatus.FromString(row.status) if row.status else None
        except DecodeError:
            figures = None
        return cls(row.key, row.announcement, figures, row.alive)

    def status(self) -> viewer_pb2.ReplicaStatus:
        """Its figures; those of a replica that nobody hears say nothing of now."""
        status = viewer_pb2.ReplicaStatus(key=self.key.text, state="lost")
        if self.figures is not None:
            status.CopyFrom(self.figures)
        if not self.alive and status.state != "ended":
            status.state = "lost"
        if status.state in ("lost", "ended"):
            for name in _OF_NOW:
                status.ClearField(name)
        return status


class Fleet:
    """Every replica that the store knows."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: dict[ReplicaKey, Row] = {}
        self._asked_s = float("-inf")
        self._asking = asyncio.Lock()
        self._listeners: set[Callable[[], None]] = set()

    def expire(self) -> None:
        """Something is known to have changed: ask again."""
        self._asked_s = float("-inf")
        for tell in list(self._listeners):
            tell()

    def listen(self, tell: Callable[[], None]) -> None:
        """Call `tell` when something is known to have changed, here: of other collectors nothing is heard."""
        self._listeners.add(tell)

    def ignore(self, tell: Callable[[], None]) -> None:
        """Do so no more."""
        self._listeners.discard(tell)

    async def rows(self) -> dict[ReplicaKey, Row]:
        """All of them by key, not older than `FRESH_S`. Not to be changed.

        Raises
        ------
        StoreError
            As the store does.
        """
        async with self._asking:
            if time.monotonic() - self._asked_s > FRESH_S:
                asked_s = time.monotonic()
                self._rows = {row.key: Row.of(row) for row in await self._store.replicas()}
                self._asked_s = asked_s
            return self._rows


def is_selected(key: ReplicaKey, selectors: tuple[str, ...]) -> bool:
    """Whether one of `selectors` means this replica; none means every one."""
    return not selectors or any(key.matches(selector) for selector in selectors)
