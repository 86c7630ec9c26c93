"""A website in this process, fed by the test: what the page shows can be compared with what was put in."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from tests.scenes.streams import SCALE, block

from fulgurite.viewer.events import Frames, ReplicaSeen, ReplicaStatus, StatusSeen
from fulgurite.viewer.hall import QUEUED_BYTES
from fulgurite.viewer.inbox import Inbox
from fulgurite.viewer.story import Story
from fulgurite.viewer.website import Website
from fulgurite.wire.frame import FrameBatch, FrameBlock
from fulgurite.wire.topology import Topology


@dataclass
class Site:
    """A served story."""

    url: str
    inbox: Inbox
    story: Story
    website: Website
    sent: int = 0

    def announce(self, topology: Topology, key: str = "test/model/one") -> None:
        """A replica shows itself."""
        self.inbox.put(ReplicaSeen(key=key, topology=topology, level="deep", tokens="text", scale=SCALE))
        status = ReplicaStatus(key=key, state="live", tokens_per_s=10.0, kv_tokens=40, running_requests=1)
        self.inbox.put(StatusSeen(status=status))

    def send(self, frames: FrameBlock, key: str = "test/model/one", ended_s: float | None = None) -> float:
        """Frames come in now; when they ended."""
        ended_s = time.time() if ended_s is None else ended_s
        batch = FrameBatch(epoch_ms=1, first_sequence=self.sent + 1, blocks=(ended(frames, ended_s),))
        self.sent += len(frames)
        self.inbox.put(Frames(key=key, batch=batch, live=True, received_ns=time.time_ns(), nbytes=1000))
        return ended_s

    def tokens(
        self,
        topology: Topology,
        count: int,
        *,
        gap_s: float = 0.08,
        first: int = 40,
        key: str = "test/model/one",
    ) -> None:
        """So many tokens of one request, one after the other."""
        for position in range(first, first + count):
            self.send(block(topology, position=position, deep=True), key)
            time.sleep(gap_s)


def ended(frames: FrameBlock, ended_s: float) -> FrameBlock:
    """The same frames, ended at that time after 10 ms."""
    n, at_ns = len(frames), int(ended_s * 1e9)
    clocks = {"ended_ns": np.full(n, at_ns, np.int64), "started_ns": np.full(n, at_ns - 10**7, np.int64)}
    return replace(frames, columns={**frames.columns, **clocks})


@contextmanager
def served(*, token: str = "", queued_bytes: int = QUEUED_BYTES, bytes_per_s: float = 1e9) -> Iterator[Site]:
    """A website on a free port of this machine, while the context lasts."""
    inbox, bound, ready = Inbox(), [0], threading.Event()
    story = Story(name=f"{time.time_ns():x}", bytes_per_s=bytes_per_s)
    website = Website(story, inbox, token=token, queued_bytes=queued_bytes)

    def run() -> None:
        website.serve(
            "127.0.0.1",
            0,
            on_ready=lambda port: (bound.__setitem__(0, port), ready.set()),
            stop_on_signals=False,
        )

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(20.0), "the website was not served within 20 s"
    try:
        yield Site(f"http://127.0.0.1:{bound[0]}/", inbox, story, website)
    finally:
        website.stop()
        thread.join(10.0)
