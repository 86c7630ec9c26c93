"""Streams completions from a server with OpenAI's API, so many at once, and times every token. One thread."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Load:
    """What one round measured, seconds.

    Attributes
    ----------
    wall_s : of the whole round.
    first_s : of each request, until its first token.
    between_s : between the tokens of each request.
    """

    requests: int = 0
    wall_s: float = 0.0
    first_s: list[float] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)


async def _one(session: Any, url: str, number: int, tokens: int, load: Load) -> None:
    body = {
        "model": "m",
        "prompt": f"{number} once upon a time there was a little house by the river",
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    asked = last = time.perf_counter()
    is_first = True
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            assert "choices" in json.loads(line[6:])
            now = time.perf_counter()
            if is_first:
                load.first_s.append(now - asked)
            else:
                load.between_s.append(now - last)
            is_first, last = False, now
    load.requests += 1


async def _round(url: str, requests: int, at_once: int, tokens: int, seed: int) -> Load:
    import aiohttp

    load, gate = Load(), asyncio.Semaphore(at_once)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(number: int) -> None:
            async with gate:
                await _one(session, url, number, tokens, load)

        started = time.perf_counter()
        await asyncio.gather(*(one(seed + i) for i in range(requests)))
        load.wall_s = time.perf_counter() - started
    return load


def run(url: str, *, requests: int, at_once: int, tokens: int, seed: int) -> Load:
    """One round."""
    return asyncio.run(_round(url, requests, at_once, tokens, seed))
