"""What a serving engine says of its queue and its key-value cache: plain numbers. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """As of one step of the scheduler.

    Attributes
    ----------
    name, version : of the engine.
    running, waiting : requests of the engine.
    kv_blocks, kv_blocks_used : of the key-value cache; 0 where there is none.
    kv_bytes : of all its blocks, 0 where that is not known.
    evicted : blocks whose cached prefix was given up since the start.
    preemptions : since the start.
    prefix_asked, prefix_found : prompt tokens that were looked for in the prefix cache, and found, since the
        start.
    queued, queue_ns : requests that were scheduled for the first time, and how long they waited in all.
    """

    name: str = ""
    version: str = ""
    running: int = 0
    waiting: int = 0
    kv_blocks: int = 0
    kv_blocks_used: int = 0
    kv_bytes: int = 0
    evicted: int = 0
    preemptions: int = 0
    prefix_asked: int = 0
    prefix_found: int = 0
    queued: int = 0
    queue_ns: int = 0
