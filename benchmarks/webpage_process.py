"""The page's server with a synthetic stream, in a process of its own: what `webpage` measures.

`python -m benchmarks.webpage_process MODEL TOKENS_PER_S` prints the page's address and serves until it is
ended.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace

import numpy as np

from benchmarks.viewer.load import MODELS, SCALE, Stream
from fulgurite.viewer.events import Frames, ReplicaSeen
from fulgurite.viewer.inbox import Inbox
from fulgurite.viewer.story import Story
from fulgurite.viewer.website import Website
from fulgurite.wire.frame import FrameBatch, FrameBlock

KEY = "benchmark/model/one"
TICK_S = 0.004


def _now(block: FrameBlock, at_s: float) -> FrameBlock:
    ended = np.full(len(block), int(at_s * 1e9), np.int64)
    return replace(block, columns={**block.columns, "ended_ns": ended, "started_ns": ended - 10**7})


def _feed(inbox: Inbox, name: str, tokens_per_s: int) -> None:
    """Put the stream in as it becomes due, for ever."""
    model = next(model for model in MODELS if model.name == name)
    inbox.put(ReplicaSeen(key=KEY, topology=model.topology, level="heads", tokens="off", scale=SCALE))
    stream, began_s, sent = Stream(model, tokens_per_s), time.time(), 0
    while True:
        for step in stream.until(began_s, time.time()):
            batch = FrameBatch(epoch_ms=1, first_sequence=sent + 1, blocks=(_now(step.block, step.at_s),))
            sent += len(step.block)
            inbox.put(Frames(key=KEY, batch=batch, live=True, received_ns=time.time_ns(), nbytes=1000))
        time.sleep(TICK_S)


def main() -> None:
    """Serve until a signal comes."""
    inbox = Inbox()
    threading.Thread(target=_feed, args=(inbox, sys.argv[1], int(sys.argv[2])), daemon=True).start()
    website = Website(Story(name="benchmark"), inbox)
    website.serve("127.0.0.1", 0, on_ready=lambda port: print(f"http://127.0.0.1:{port}/", flush=True))


if __name__ == "__main__":
    main()
