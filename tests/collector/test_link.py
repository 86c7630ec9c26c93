"""What is said to an agent, and when: pure, with a clock of the test's own."""

from __future__ import annotations

import pytest
from tests.collector.stage import SCHEMA, batch_of

from fulgurite.collector.config import Settings
from fulgurite.collector.link import FIRST_PING_EVERY_S, FIRST_PINGS, PING_EVERY_S, Link, Taken
from fulgurite.collector.refusal import Refused
from fulgurite.collector.store import EntryId, Registration
from fulgurite.v1 import agent_pb2
from fulgurite.wire.codec import agent_message_bytes, codec_for
from fulgurite.wire.frame import RequestEvent

EPOCH = 1_700_000_000_000
SETTINGS = Settings(ack_batches=3, ack_delay_s=0.05, credit=7)


def link(resume_after: int = 0) -> Link:
    """A link that has said its first pings."""
    made = Link(codec_for(SCHEMA), Registration(EPOCH, resume_after), settings=SETTINGS, now_s=96.0)
    for i in range(FIRST_PINGS):
        ping = made.say(96.0 + i * FIRST_PING_EVERY_S)
        assert ping is not None
        assert ping.HasField("ping")
    assert made.say(97.0) is None
    return made


def answer(of: Link, ping: agent_pb2.CollectorMessage | None, *, after_s: float, ahead_ns: int) -> None:
    """The pong of an agent whose clock is ahead, half of the way there."""
    assert ping is not None
    sent_s = ping.ping.ping_ns / 1e9
    wall_ns = 1_000_000_000 * 10**9 + int((sent_s + after_s) * 1e9)
    answered_ns = wall_ns - int(after_s * 1e9 / 2) + ahead_ns
    pong = agent_pb2.Pong(ping_ns=ping.ping.ping_ns, wall_ns=answered_ns)
    of.pong(pong, now_s=sent_s + after_s, wall_ns=wall_ns)


def taken(of: Link, first: int, frames: int = 4, epoch_ms: int = EPOCH) -> Taken:
    message = of.read(agent_message_bytes(batch_of(epoch_ms, first, frames)), 5)
    assert isinstance(message, Taken)
    return message


def test_the_welcome_says_where_to_go_on() -> None:
    welcome = link(resume_after=12).welcome("me").welcome
    assert (welcome.epoch_ms, welcome.resume_after, welcome.credit) == (EPOCH, 12, 7)
    assert (welcome.protocol, welcome.collector_id) == (1, "me")


def test_the_credit_is_for_no_more_than_there_is_room_for() -> None:
    nbytes = len(batch_of(EPOCH, 1, 4))
    registration = Registration(EPOCH, 0)
    one = Link(codec_for(SCHEMA), registration, settings=SETTINGS, now_s=96.0, room_bytes=3 * nbytes)
    assert one.credit == 7  # nothing is known yet
    taken(one, 1)
    assert one.credit == 3
    large = taken(one, 5, frames=400)
    assert len(large.entry.batch) > 3 * nbytes
    assert one.credit == 1  # never none: an agent without credit would wait for ever
    for first in range(405, 405 + 4 * 400, 4):
        taken(one, first)
    assert one.credit > 1  # what was large once is forgotten


def test_with_little_credit_an_acknowledgement_does_not_wait_for_company() -> None:
    nbytes = len(batch_of(EPOCH, 1, 4))
    registration = Registration(EPOCH, 0)
    one = Link(codec_for(SCHEMA), registration, settings=SETTINGS, now_s=200.0, room_bytes=2 * nbytes)
    one.keep([taken(one, 1).entry], 98.0)
    ack = one.say(98.0)
    assert ack is not None
    assert (ack.ack.sequence, ack.ack.credit) == (4, 2)


def test_who_asks_is_answered_at_once() -> None:
    one = link()
    assert not one.hurry()
    assert one.say(98.0) is None
    one.keep([taken(one, 1).entry], 98.0)
    assert one.hurry()
    ack = one.say(98.0)
    assert ack is not None
    assert ack.ack.sequence == 4
    one.keep([taken(one, 5).entry], 98.0)
    assert one.say(98.0) is None  # the next waits again


def test_much_is_acknowledged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = link()
    entry = taken(one, 1).entry
    monkeypatch.setattr("fulgurite.collector.link.ACK_BYTES", 2 * len(entry.batch))
    one.keep([entry], 98.0)
    assert one.say(98.0) is None
    one.keep([taken(one, 5).entry], 98.0)
    ack = one.say(98.0)
    assert ack is not None
    assert ack.ack.sequence == 8


def test_an_acknowledgement_waits_for_company_but_not_long() -> None:
    one = link()
    one.keep([taken(one, 1).entry], 98.0)
    assert one.silent_until_s == pytest.approx(98.05)
    assert one.say(98.04) is None
    one.keep([taken(one, 5).entry], 98.04)
    ack = one.say(98.05)
    assert ack is not None
    assert (ack.ack.epoch_ms, ack.ack.sequence, ack.ack.credit) == (EPOCH, 8, 7)
    assert one.say(98.06) is None


def test_enough_batches_are_acknowledged_at_once() -> None:
    one = link()
    one.keep([taken(one, first).entry for first in (1, 5, 9)], 98.0)
    ack = one.say(98.0)
    assert ack is not None
    assert ack.ack.sequence == 12


def test_nothing_is_acknowledged_that_is_not_stored() -> None:
    one = link()
    taken(one, 1)
    assert one.say(101.7) is None
    assert one.say(101.7, at_last=True) is None


def test_pings_go_on_whatever_else_is_said() -> None:
    one = link()
    due_s = 96.75 + PING_EVERY_S
    assert one.silent_until_s == due_s
    ping = one.say(due_s)
    assert ping is not None
    assert ping.HasField("ping")
    assert one.silent_until_s == due_s + PING_EVERY_S


def test_the_quickest_ping_says_how_far_the_clocks_are_apart_and_the_agent_is_told() -> None:
    one = Link(codec_for(SCHEMA), Registration(EPOCH, 0), settings=SETTINGS, now_s=96.0)
    first = one.say(96.0)
    assert first is not None
    assert not first.ping.HasField("clock_offset_ns")
    answer(one, first, after_s=0.100, ahead_ns=30_000_000)
    second = one.say(96.25)
    answer(one, second, after_s=0.002, ahead_ns=7_000_000)
    third = one.say(96.5)
    answer(one, third, after_s=0.500, ahead_ns=90_000_000)
    last = one.say(96.75)
    assert last is not None
    assert last.ping.clock_offset_ns == pytest.approx(7_000_000, abs=1000)
    assert last.ping.round_trip_ns == pytest.approx(2_000_000, abs=1000)


def test_the_answer_to_a_ping_that_nobody_sent_says_nothing() -> None:
    one = link()
    one.pong(agent_pb2.Pong(ping_ns=5, wall_ns=6), now_s=98.0, wall_ns=7)
    assert one.clock.best is None


def test_what_is_wanted_is_in_the_welcome_and_said_again_only_when_it_changes() -> None:
    one = link()
    one.want(agent_pb2.Control(level="pulse", demand=agent_pb2.Demand(watched=False, one_in=16)))
    welcome = one.welcome("me").welcome
    assert (welcome.demand.one_in, welcome.control.level) == (16, "pulse")
    assert one.say(97.1) is None
    wanted = agent_pb2.Control(pause=True, demand=agent_pb2.Demand(watched=True))
    one.want(wanted)
    said = one.say(97.1)
    assert said is not None
    assert said.control == wanted
    assert one.say(97.1) is None


def test_at_last_what_is_owed_is_said() -> None:
    one = link()
    one.keep([taken(one, 1).entry], 98.0)
    ack = one.say(98.0, at_last=True)
    assert ack is not None
    assert ack.ack.sequence == 4


def test_a_batch_that_came_before_is_read_again_and_acknowledged() -> None:
    one = link(resume_after=8)
    one.keep([taken(one, 5).entry], 98.0)
    ack = one.say(99.0)
    assert ack is not None
    assert ack.ack.sequence == 8


def test_frames_that_the_agent_dropped_leave_a_hole_and_no_complaint() -> None:
    one = link()
    assert taken(one, 1).entry.id == EntryId(EPOCH, 4)
    assert taken(one, 100).entry.id == EntryId(EPOCH, 103)


def test_events_alone_stand_behind_the_last_frame_before_them() -> None:
    one = link()
    events = (RequestEvent(request_id="r", kind="finished", time_ns=1),)
    message = one.read(agent_message_bytes(batch_of(EPOCH, 9, 0, events=events)), 5)
    assert isinstance(message, Taken)
    assert (message.entry.id, message.entry.count) == (EntryId(EPOCH, 8), 0)


def test_a_batch_of_nothing_and_a_message_of_tomorrow_say_nothing() -> None:
    one = link()
    assert one.read(agent_message_bytes(batch_of(EPOCH, 1, 0)), 5) is None
    assert one.read(b"\x9a\x06\x01x", 5) is None  # field 99


def test_stats_goodbye_and_pong_are_read() -> None:
    one = link()
    for message in (
        agent_pb2.AgentStats(captured=3),
        agent_pb2.Goodbye(reason="x"),
        agent_pb2.Pong(ping_ns=4),
    ):
        name = {agent_pb2.AgentStats: "stats", agent_pb2.Goodbye: "goodbye", agent_pb2.Pong: "pong"}[
            type(message)
        ]
        data = agent_pb2.AgentMessage(**{name: message}).SerializeToString()
        assert one.read(data, 5) == message


def test_a_batch_that_no_viewer_could_receive_is_refused() -> None:
    with pytest.raises(Refused, match=r"^a batch of 16777220 bytes; at most 16711680$"):
        link().read(agent_message_bytes(b"\x52\xfc\xff\xff\x07" + bytes((16 << 20) - 1)), 5)
