"""A page that stalls loses what waits for it, is told so, and harms nobody."""

from __future__ import annotations

import asyncio

from fulgurite.viewer.hall import NEWEST_S, Guest, Hall
from fulgurite.viewer.message import pack, unpack
from fulgurite.viewer.story import Message


def _tokens(number: int, size: int = 100, last_s: float = 100.0) -> Message:
    return Message(
        pack({"kind": "tokens", "number": number, "fill": "x" * size}), "tokens", tokens=1, last_s=last_s
    )


def _state(number: int) -> Message:
    return Message(pack({"kind": "state", "number": number}), "state", of="state")


def _kinds(guest: Guest, count: int) -> list[tuple[str, int]]:
    async def take() -> list[tuple[str, int]]:
        found = [unpack(await guest.take())[0] for _ in range(count)]
        return [(header["kind"], header.get("number", header.get("tokens"))) for header in found]

    return asyncio.run(asyncio.wait_for(take(), 5.0))


def test_everybody_gets_the_same_bytes() -> None:
    hall = Hall()
    guests = [Guest([], [], 100.0) for _ in range(3)]
    for guest in guests:
        hall.enter(guest)
    message = _tokens(1)
    hall.tell([message])
    assert all(asyncio.run(guest.take()) is message.data for guest in guests)


def test_who_does_not_read_is_told_how_much_is_missing_and_goes_on_with_the_newest() -> None:
    stalled, reader = Guest([], [], 100.0, budget_bytes=2000), Guest([], [], 100.0, budget_bytes=2000)
    for number in range(40):
        for guest in (stalled, reader):
            guest.put(_tokens(number))
            guest.put(_state(number))
        assert _kinds(reader, 2) == [("tokens", number), ("state", number)]
        assert stalled.queued_bytes <= 2000
    assert reader.missed == 0
    assert stalled.missed > 20
    found = _kinds(stalled, 3)
    gaps = [count for kind, count in found if kind == "gap"]
    assert gaps
    assert ("state", 0) not in found


def test_after_a_gap_every_token_is_either_told_or_counted() -> None:
    guest = Guest([], [], 100.0, budget_bytes=1500)
    for number in range(100):
        guest.put(_tokens(number))
    waiting = 0
    while guest.queued_bytes:
        waiting += sum(kind == "tokens" for kind, _ in _kinds(guest, 1))
    assert waiting + guest.missed == 100


def test_the_newest_past_comes_first_the_rest_from_behind_and_never_before_the_present() -> None:
    past = [_tokens(number, last_s=100.0 - NEWEST_S * (4 - number)) for number in range(5)]
    guest = Guest([pack({"kind": "hello", "number": 0})], past, 100.0)
    assert _kinds(guest, 3) == [("hello", 0), ("tokens", 3), ("tokens", 4)]
    guest.put(_tokens(9))
    assert _kinds(guest, 4) == [("tokens", 9), ("tokens", 2), ("tokens", 1), ("tokens", 0)]


def test_who_waits_is_woken() -> None:
    async def wait() -> bytes:
        guest = Guest([], [], 100.0)
        taking = asyncio.ensure_future(guest.take())
        await asyncio.sleep(0)
        assert not taking.done()
        guest.put(_tokens(1))
        return await asyncio.wait_for(taking, 5.0)

    assert unpack(asyncio.run(wait()))[0]["number"] == 1
