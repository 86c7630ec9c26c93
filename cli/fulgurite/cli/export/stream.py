"""What a collector tells a viewer, as blocks of frames with where they come from."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fulgurite.wire.codec import Codec, CodecError, codec_for
from fulgurite.wire.frame import FrameBatch

if TYPE_CHECKING:
    from fulgurite.cli.client import Collector


@dataclass(frozen=True, slots=True)
class Part:
    """A batch of one replica."""

    replica: str
    model: str
    batch: FrameBatch


@dataclass(frozen=True, slots=True)
class Missing:
    """Frames that this reader did not get, in words."""

    text: str


def parts(
    collector: Collector, selectors: Sequence[str], *, history_s: float, follow_s: float
) -> Iterator[Part | Missing]:
    """Everything of the last `history_s` seconds, and of the next `follow_s`."""
    waiting = {status.key for status in collector.replicas(selectors).replicas}
    if not waiting and not follow_s:
        return
    codecs: dict[str, Codec] = {}
    models: dict[str, str] = {}
    limit_s = time.monotonic() + follow_s
    over = threading.Timer(follow_s, collector.close) if follow_s else None
    if over is not None:
        over.daemon = True
        over.start()  # a stream that is silent is left in time as well
    try:
        for message in collector.watch(selectors, history_s=history_s):
            kind = message.WhichOneof("message")
            if kind == "replica":
                models[message.replica.key] = message.replica.topology.model_name
                try:
                    codecs[message.replica.key] = codec_for(message.replica.schema)
                except CodecError as error:
                    yield Missing(f"{message.replica.key} cannot be read: {error}")
            elif kind == "batch" and message.batch.key in codecs:
                key = message.batch.key
                try:
                    yield Part(key, models[key], codecs[key].decode(message.batch.batch))
                except CodecError as error:
                    yield Missing(f"a batch of {key} cannot be read: {error}")
            elif kind == "gap":
                gap = message.gap
                yield Missing(f"{gap.frames} frames of {gap.key} are missing ({gap.reason})")
            elif kind == "caught_up":
                waiting.discard(message.caught_up.key)
            if not waiting and time.monotonic() >= limit_s:
                return
    except Exception:
        if time.monotonic() < limit_s or not follow_s:
            raise
    finally:
        if over is not None:
            over.cancel()
