"""The daemon thread that does what the link decides: take from the outbox, encode, fold, send, listen.

Everything that can be slow or fail happens here and not on the host's thread. Nothing here holds a lock that
the host takes. The thread sleeps on the outbox; a new token, a word from the collector and the closing all
wake it. While the collector is away, or slow, what would overflow in memory goes to the spool, where there is
one, and from there to the collector before anything newer.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from math import inf
from random import random
from threading import Thread
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError

from fulgurite.agent.affinity import stand_aside
from fulgurite.agent.folding import GATHER_S as FOLD_S
from fulgurite.agent.folding import Folding
from fulgurite.agent.gauge import ScaleGauge
from fulgurite.agent.link import (
    Action,
    Answer,
    Draw,
    Hang,
    Link,
    LinkLimits,
    Open,
    Parcel,
    Report,
    Send,
    Stop,
    is_ack,
)
from fulgurite.agent.lulls import LAST_S, SLACK_S, Lulls
from fulgurite.agent.outage import Outage
from fulgurite.agent.outbox import NEVER, Drawn, Outbox
from fulgurite.agent.privacy import redact_block, redact_event
from fulgurite.agent.rhythm import Rhythm
from fulgurite.agent.shield import Shield
from fulgurite.agent.spool import Spool
from fulgurite.agent.stream import End, Stream
from fulgurite.v1 import agent_pb2
from fulgurite.wire.access import Access
from fulgurite.wire.codec import Codec, CodecError, agent_message_bytes
from fulgurite.wire.frame import Array, FrameBatch, FrameBlock, RequestEvent, Scale
from fulgurite.wire.ledger import Ledger
from fulgurite.wire.sketch import Sketch

logger = logging.getLogger("fulgurite.agent")

BATCH_FRAMES: Final = 256
BATCH_BYTES: Final = 1 << 20  # as captured; encoded it is about half
GATHER_S: Final = 0.004
FLOWS_S: Final = 2 * GATHER_S
"""Frames that come so soon after a batch flow: the sender looks for more by itself, for as long."""
EVENTS_ALONE_S: Final = 1.0
EVENTS_ASIDE: Final = 512
UNCERTAIN: Final = "unacknowledged"
"""Sent, and nobody said whether it is stored: it counts as dropped, and may be there."""
_LONGEST_SLEEP_S: Final = 1.0
_ACKS_WAIT_S: Final = 0.3
"""At most so long is an acknowledgement left unread: it frees memory and settles the account, no more."""
_FAREWELL_S: Final = 0.5


class Pump:
    """Sends what is in an outbox, from a thread of its own.

    Parameters
    ----------
    outbox, ledger : Outbox, Ledger
        Shared with the host's side.
    codec : Codec
        Of the attached model.
    tokens : str
        ``off``, ``ids`` or ``text``: what of a token may leave the process.
    hello, account : callable
        The first message of a stream, and the agent's own account.
    experts : int
        Of the attached model.
    spool : Spool, optional
        Where frames wait that memory has no room for.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        outbox: Outbox,
        ledger: Ledger,
        codec: Codec,
        tokens: str,
        hello: Callable[[Link], agent_pb2.Hello],
        account: Callable[[], agent_pb2.AgentStats],
        shield: Shield,
        access: Access | None = None,
        limits: LinkLimits | None = None,
        experts: int = 0,
        spool: Spool | None = None,
    ) -> None:
        self.link = Link(ledger, jitter=random, limits=limits)
        self._endpoint, self._access = endpoint, access
        self._outbox, self._ledger, self._codec, self._tokens = outbox, ledger, codec, tokens
        self._hello, self._account, self._shield = hello, account, shield
        self._outage = Outage(endpoint)
        self.spool = spool
        self.folding = Folding(experts)
        self._gauge = ScaleGauge()
        self._scale_due = False
        self._stream: Stream | None = None
        self._ahead: deque[Drawn] = deque()  # taken from the outbox, not yet in a batch
        self._came_s = inf  # what waits in the outbox, its oldest
        self._ripe_s: float | None = None  # when it is to go, full batch or not
        self._lulls = Lulls()
        self._passed_s = float("-inf")  # the lull that was left unused, for more to come together
        self._packed_s = float("-inf")
        self._flows = False
        self._rhythm = Rhythm()
        self._lone_event_s: float | None = None
        self._close_by_s: float | None = None
        self._hurry = False
        self._has_asked = False  # for an acknowledgement of all that was sent
        self._is_held_up = False  # nothing can be done before the collector says something
        self._is_called = False
        self._thread = Thread(target=self._run, name="fulgurite-link", daemon=True)

    # --- from the host's threads

    def start(self) -> None:
        """Start the thread. It connects when there is something to send."""
        self._thread.start()

    def call(self) -> None:
        """Connect, though there is nothing to send."""
        self._is_called = True
        self._outbox.wake()

    @property
    def stopped_for(self) -> str:
        """Why nothing will ever be sent again; empty while it may."""
        return self.link.stopped_for

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is settled."""
        deadline = time.monotonic() + timeout_s
        self._hurry = True
        self._outbox.wake()
        try:
            while self._busy() and self._thread.is_alive() and time.monotonic() < deadline:
                time.sleep(0.002)
        finally:
            self._hurry = False
        return not self._busy()

    def close(self, timeout_s: float) -> None:
        """Send what can be sent in time, drop and count the rest, end the thread.

        A thread that got no time to end by itself is left to itself; what it has counts as unacknowledged.
        """
        self._close_by_s = time.monotonic() + timeout_s
        self._outbox.wake()
        self._thread.join(timeout_s + _FAREWELL_S)
        self.drain(self.stopped_for or "closed")
        self._ledger.seal(UNCERTAIN)

    def leave(self, timeout_s: float) -> None:
        """As `close`, but without waiting: the thread ends by itself."""
        self._close_by_s = time.monotonic() + timeout_s
        self._outbox.wake()

    def drain(self, reason: str, *, most: int | None = None) -> None:
        """Empty the outbox, or take `most` items out of it; they count as dropped. Any thread may call it."""
        taken = 0
        while taken != most and (drawn := self._outbox.take()) is not None:
            self._ledger.drop(drawn.frames, reason)
            taken += 1

    def _busy(self) -> bool:
        if self._ledger.account().pending > 0 or len(self._outbox) > 0 or self._ahead:
            return True
        return not self.folding.is_idle or self.link.unacknowledged > 0

    # --- the thread

    def _run(self) -> None:
        try:
            stand_aside()
            self._outbox_has_something()
            while not self._leave(time.monotonic()):
                with self._shield.at("link"):
                    self._step(time.monotonic())
        finally:
            self._end()

    def _outbox_has_something(self) -> None:
        """No connection before the first block: a process that only forks workers never starts grpc."""
        while not len(self._outbox) and not self._is_called and self._close_by_s is None:
            self._outbox.wait(_LONGEST_SLEEP_S * 60)

    def _step(self, now_s: float) -> None:
        self._receive(now_s)
        self._fold()
        self._relieve(now_s)
        action = self.link.due(now_s)
        self._do(action, now_s)
        if isinstance(action, Draw) and self.link.has_unsent:  # what was drawn goes in the same turn
            self._do(self.link.due(now_s), now_s)

    def _do(self, action: Action, now_s: float) -> None:
        if isinstance(action, Draw):
            self._draw(action.until_s, now_s)
        elif isinstance(action, Send):
            self._has_asked = False
            self._send(action.data)
        elif isinstance(action, Open):
            self._open(now_s)
        elif isinstance(action, Report):
            self._send(agent_pb2.AgentMessage(stats=self._account()).SerializeToString())
        elif isinstance(action, Answer):
            pong = agent_pb2.Pong(ping_ns=action.ping_ns, wall_ns=time.time_ns())
            self._send(agent_pb2.AgentMessage(pong=pong).SerializeToString())
        elif isinstance(action, Hang):
            self._break(End(action.failure, action.detail), now_s)
        elif not isinstance(action, Stop):
            self._sleep(action.until_s - now_s)

    def _sleep(self, timeout_s: float) -> None:
        longest_s = FOLD_S if self._is_folding or self.spool is not None else _LONGEST_SLEEP_S
        self._is_held_up = True  # before the look, so that what comes after the look wakes
        if self._stream is None or not self._stream.unread:
            self._outbox.wait(max(0.0, min(timeout_s, longest_s)), frames=NEVER)
        self._is_held_up = False

    def _send(self, message: bytes) -> None:
        if self._stream is not None:
            self._stream.send(message)

    # --- the stream

    def _open(self, now_s: float) -> None:
        self.link.opened(now_s)
        try:
            self._stream = Stream(self._endpoint, self._access, self._came)
        except Exception as error:  # no thread to be had, a name that cannot be parsed
            self._break(End("absent", str(error)), now_s)
            return
        self._send(agent_pb2.AgentMessage(hello=self._hello(self.link)).SerializeToString())

    def _came(self, message: bytes | End) -> None:
        """On the reading thread. An acknowledgement that nobody waits for is read with the next tokens: to
        wake this thread for each would cost as much as sending does."""
        is_awaited = self._is_held_up or self._hurry or self._close_by_s is not None
        if is_awaited or not isinstance(message, bytes) or not is_ack(message):
            self._outbox.wake()

    def _receive(self, now_s: float) -> None:
        while self._stream is not None and self._stream.unread:
            message = self._stream.unread.popleft()
            if isinstance(message, End):
                self._break(message, now_s)
            else:
                self._hear(message, now_s)

    def _hear(self, data: bytes, now_s: float) -> None:
        try:
            message = agent_pb2.CollectorMessage.FromString(data)
        except DecodeError:
            self._break(End("garbled", "a message that does not parse"), now_s)
            return
        before = self.link.phase
        self.link.received(message, now_s)
        self._outbox.reserve(self.link.window_bytes)
        if before == "greeting" and self.link.phase == "open":
            self._scale_due = True  # the collector may have lost it
            self._say(self._outage.over(sum(self._ledger.account().dropped.values())))
        elif self.link.phase == "stopped":
            self._say(self._outage.final(self.link.stopped_because))

    def _break(self, end: End, now_s: float) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self.link.phase == "stopped":
            return
        why = self.link.hang or end  # the collector's last word says more than the end of the stream after it
        self.link.broken(now_s)
        self._say(self._outage.failed(why.failure, why.detail))

    def _say(self, line: str | None) -> None:
        if line is not None:
            logger.warning(line)

    # --- batches

    def _draw(self, until_s: float, now_s: float) -> None:
        if self.spool is not None and len(self.spool):
            self._unspool(self.spool)
            return
        if sketches := self.folding.due(now_s, at_once=self._hurry):
            self._pack([], sketches)
            return
        if self._is_folding:
            until_s = min(until_s, now_s + FOLD_S)
        waiting = self._outbox.frames + sum(drawn.frames for drawn in self._ahead)
        if not waiting:
            self._draw_events(until_s, now_s)
            return
        if self._ripe_s is None:
            came_s = self._outbox.oldest_s(now_s)
            self._lulls.see(self._outbox.lull_s, (came_s, self._came_s))
            self._ripe_s, self._came_s = self._ripens_s(came_s), came_s
        goes_s = self._ripe_s
        lull_s, has_lulls = self._outbox.lull_s, self._has_lulls(now_s)
        if has_lulls and lull_s < self._came_s:
            goes_s = max(goes_s, self._came_s + self._lulls.longest_s)
        elif has_lulls and lull_s == self._passed_s:
            goes_s = max(goes_s, (self._lulls.joins_by_s(self._came_s) or lull_s) + SLACK_S)
        elif has_lulls and waiting < BATCH_FRAMES and not self._hurry and self._may_join():
            self._passed_s = lull_s
            self._outbox.make_ready()
            self._await_lull(until_s, now_s)
            return
        if waiting < BATCH_FRAMES and now_s < goes_s and not self._hurry:
            age_s = self._ripe_s - self._came_s
            self._outbox.wait(goes_s - now_s, frames=BATCH_FRAMES, lull_at_age_s=age_s)
            return
        self._ripe_s = self._lone_event_s = None
        self._packed_s = now_s
        self._pack(self._gather())

    def _ripens_s(self, came_s: float) -> float:
        """When what came is to be sent: at once where the rhythm says that nothing joins it in time."""
        self._rhythm.came(came_s)
        self._flows = came_s < self._packed_s + FLOWS_S
        expected, ripe_s = self._rhythm.next_s, came_s + GATHER_S
        return came_s if expected is not None and expected[0] > ripe_s else ripe_s

    def _may_join(self) -> bool:
        """Whether what waits, once it is made ready, may wait for the next lull: a message costs the same for
        several steps as for one."""
        self._lulls.heard(self._outbox.lull_s)
        is_going = self._close_by_s is not None or self._ahead or self._outbox.is_half_full
        return not is_going and self._lulls.joins_by_s(self._came_s) is not None

    def _has_lulls(self, now_s: float) -> bool:
        """Whether the host says when it has time."""
        return now_s < self._outbox.lull_s + LAST_S and self._lulls.longest_s > 0

    def _draw_events(self, until_s: float, now_s: float) -> None:
        """No frame waits. Events that waited long enough for one go alone."""
        self._ripe_s = None
        if not len(self._outbox) and not self._ahead:
            self._lone_event_s = None
            self._await_frames(until_s, now_s)
            return
        if self._lone_event_s is None:
            self._lone_event_s = now_s + EVENTS_ALONE_S
        if now_s >= self._lone_event_s or self._hurry:
            self._lone_event_s = None
            self._pack(self._gather())
        else:
            self._outbox.wait(min(until_s, self._lone_event_s) - now_s)

    def _await_frames(self, until_s: float, now_s: float) -> None:
        """Sleep until there is something. While frames flow, or come in a rhythm, no host's thread pays for
        waking this one."""
        if self._hurry and self.link.unacknowledged and not self._has_asked:
            self._has_asked = True
            self._do(Report(), now_s)  # which the collector answers by an acknowledgement
            return
        soonest_s, latest_s = self._rhythm.next_s or (now_s - GATHER_S, now_s - GATHER_S)
        if self.link.unacknowledged:
            until_s = min(until_s, now_s + _ACKS_WAIT_S)
        if self._has_lulls(now_s):
            self._await_lull(until_s, now_s)
        elif self._flows and now_s < self._packed_s + FLOWS_S:
            self._outbox.wait(min(until_s - now_s, GATHER_S), frames=BATCH_FRAMES)
        elif now_s < soonest_s + GATHER_S:
            self._outbox.wait(min(until_s, soonest_s + GATHER_S) - now_s, frames=BATCH_FRAMES)
        elif now_s < latest_s + GATHER_S:  # later than others were: look again, and again
            self._outbox.wait(min(until_s - now_s, GATHER_S), frames=BATCH_FRAMES)
        else:
            self._outbox.wait(until_s - now_s)

    def _await_lull(self, until_s: float, now_s: float) -> None:
        """Sleep until the host has a lull. Where it is known when, the host's thread does not pay for waking
        this one."""
        self._lulls.heard(self._outbox.lull_s)
        looks_s = self._lulls.next_s
        if looks_s is not None and now_s < looks_s:
            self._outbox.wait(min(until_s, looks_s) - now_s, frames=BATCH_FRAMES)
            return
        age_s = GATHER_S if self._flows else 0.0
        most_s = min(until_s - now_s, self._lulls.longest_s)
        self._outbox.wait(most_s, frames=BATCH_FRAMES, lull_at_age_s=age_s)

    def _gather(self) -> list[Drawn]:
        """What makes the next batch: in order, without a gap, not too large."""
        gathered: list[Drawn] = []
        frames = nbytes = 0
        expected = None
        while (drawn := self._next()) is not None:
            too_much = frames + drawn.frames > BATCH_FRAMES or nbytes + drawn.nbytes > BATCH_BYTES
            if gathered and (too_much or drawn.first_sequence != expected):
                self._ahead.appendleft(drawn)
                break
            gathered.append(drawn)
            frames += drawn.frames
            nbytes += drawn.nbytes
            expected = drawn.first_sequence + drawn.frames
        return gathered

    def _next(self) -> Drawn | None:
        if self._ahead:
            return self._ahead.popleft()
        drawn = self._take()
        while drawn is not None and drawn.rows is not True:
            drawn = self._fold_rows(drawn) or self._take()
        if drawn is None:
            return None
        drawn = _weighed(drawn)
        if drawn.frames <= BATCH_FRAMES and drawn.nbytes <= BATCH_BYTES:
            return drawn
        self._ahead.extend(_split(drawn))
        return self._ahead.popleft()

    # --- tokens that nobody asked for

    @property
    def _is_folding(self) -> bool:
        return not self.link.wanted.is_all or not self.folding.is_idle

    def _take(self) -> Drawn | None:
        drawn = self._outbox.take()
        if drawn is not None and isinstance(drawn.payload, RequestEvent):
            self.folding.event(drawn.payload, time.monotonic())
        return drawn

    def _fold(self) -> None:
        """Take what is only to be folded from the head of the outbox, and events out of its way."""
        while (kind := self._outbox.next_kind) == "folds" or (kind == "event" and self._may_step_aside):
            drawn = self._take()
            if drawn is not None and (kept := self._fold_rows(drawn)) is not None:
                self._ahead.append(kept)

    @property
    def _may_step_aside(self) -> bool:
        return len(self._ahead) < EVENTS_ASIDE and not self.link.wanted.is_all

    def _fold_rows(self, drawn: Drawn) -> Drawn | None:
        """Fold what is to be folded of it; what is left, as if it had come alone."""
        block, now_s = drawn.payload, time.monotonic()
        if drawn.rows is True or not isinstance(block, FrameBlock):
            return drawn
        try:
            rest = block if drawn.rows is False else _only(block, ~drawn.rows)
            self.folding.take(rest, now_s)
        except Exception as error:
            self._shield.note(f"fold:{type(error).__name__}")
            self._shield.say_once("fold", "tokens could not be folded: %s", error)
        if drawn.rows is False:
            return None
        kept = _only(block, drawn.rows)
        nbytes = drawn.nbytes * drawn.frames // max(1, len(block))
        return Drawn(kept, drawn.frames, drawn.first_sequence, nbytes)

    # --- the spool

    def _relieve(self, now_s: float) -> None:
        """Move what memory will have no room for to the disk, oldest first."""
        spool = self.spool
        while spool is not None and self._outbox.is_half_full and spool.takes(BATCH_BYTES, now_s):
            drawn = self._gather()
            if not drawn:
                return
            self._pack(drawn, spool=spool)

    def _write(self, parcel: Parcel, spool: Spool) -> None:
        try:
            spool.write(parcel, self.link.stamp_of(parcel), time.monotonic())
        except OSError as error:
            self._ledger.drop(parcel.frames, "spool_full")
            self._shield.note(f"spool:{type(error).__name__}")
            self._shield.say_once("spool", "the spool cannot be written, and frames are dropped: %s", error)

    def _unspool(self, spool: Spool) -> None:
        found = spool.read()
        if found is None:
            return
        parcel, stamp, is_whole = found
        if not is_whole:
            self._ledger.drop(parcel.frames, "spool_lost")
            self._shield.note("spool:damaged")
            return
        self.link.add(self.link.stamped(parcel, stamp))
        self._reserve()

    def _reserve(self) -> None:
        self._outbox.reserve(self.link.window_bytes + sum(item.nbytes for item in self._ahead))

    # --- encoding

    def _pack(
        self, drawn: list[Drawn], sketches: list[Sketch] | None = None, spool: Spool | None = None
    ) -> None:
        """Encode as one batch; where that fails, one by one, so that only what is wrong is lost."""
        if not drawn and not sketches:
            return
        try:
            parcel = self._parcel(drawn, sketches or [])
        except Exception as error:
            if len(drawn) > 1:
                for one in drawn:
                    with self._shield.at("link"):  # what is wrong with one must not lose those behind it
                        self._pack([one], spool=spool)
                return
            self._ledger.drop(sum(one.frames for one in drawn), "invalid")
            if not isinstance(error, CodecError):
                raise
            self._shield.note("encode:CodecError")
            self._shield.say_once("encode", "a frame cannot be sent and is dropped: %s", error)
            return
        if spool is not None:
            self._write(parcel, spool)
        else:
            self.link.add(parcel)
        self._reserve()

    def _parcel(self, drawn: list[Drawn], sketches: list[Sketch]) -> Parcel:
        first = drawn[0].first_sequence if drawn else self.link.last_taken + 1
        blocks = [item.payload for item in drawn if isinstance(item.payload, FrameBlock)]
        events = [item.payload for item in drawn if isinstance(item.payload, RequestEvent)]
        batch = FrameBatch(
            epoch_ms=self.link.epoch_ms,
            first_sequence=self.link.sequence_of(first),
            blocks=tuple(redact_block(block, self._tokens) for block in blocks),
            events=tuple(redact_event(event, self._tokens) for event in events),
            scales=self._scales(blocks),
            sent_ns=time.time_ns(),
            sketches=tuple(sketches),
        )
        data = self._codec.encode(batch).SerializeToString()
        return Parcel(first, sum(item.frames for item in drawn), agent_message_bytes(data))

    def _scales(self, blocks: list[FrameBlock]) -> tuple[Scale, ...]:
        before = self._gauge.scale.version
        for block in blocks:
            self._gauge.update(block)
        scale = self._gauge.scale
        due = scale.version > before or (self._scale_due and scale.version > 0)
        self._scale_due = self._scale_due and not due
        return (scale,) if due else ()

    # --- the end

    def _leave(self, now_s: float) -> bool:
        """Whether it is time to go: refused, or closing with nothing left to wait for."""
        if self.link.phase == "stopped":
            return True
        if self._close_by_s is None:
            return False
        self._hurry = True
        return (
            now_s >= self._close_by_s
            or not self._busy()
            or (self._outage.down and self.link.phase == "apart")
        )

    def _end(self) -> None:
        """Take leave, then settle what is left: everything that was captured has a fate now."""
        if self.link.phase != "stopped":
            with self._shield.at("farewell"):
                self._farewell()
        if self._stream is not None:
            self._stream.close()
        reason = self.stopped_for or "closed"
        self.link.give_up_window(UNCERTAIN)
        if self.spool is not None:
            self._ledger.drop(self.spool.close(), reason)
        while self._ahead:
            self._ledger.drop(self._ahead.popleft().frames, reason)
        self.drain(reason)

    def _farewell(self) -> None:
        stream = self._stream
        if stream is None or self.link.phase != "open":
            return
        self._send(agent_pb2.AgentMessage(stats=self._account()).SerializeToString())
        goodbye = agent_pb2.Goodbye(reason="closed")
        self._send(agent_pb2.AgentMessage(goodbye=goodbye).SerializeToString())
        stream.finish()
        deadline = time.monotonic() + _FAREWELL_S
        while not stream.ended and (left := deadline - time.monotonic()) > 0:
            self._sleep(left)
        while stream.unread and not isinstance(message := stream.unread.popleft(), End):
            self._hear(message, time.monotonic())  # the last word may be an acknowledgement


def _only(block: FrameBlock, rows: Array) -> FrameBlock:
    """The rows, and no requests but theirs."""
    kept = block.select(np.flatnonzero(rows))
    used, index = np.unique(kept.columns["request_index"], return_inverse=True)
    requests = tuple(block.requests[i] for i in used.tolist())
    columns = {**kept.columns, "request_index": index.astype(np.uint16)}
    return FrameBlock(requests, columns, kept.texts)


def _weighed(drawn: Drawn) -> Drawn:
    """With what its columns weigh: in the outbox it may have held far more, to make them from."""
    block = drawn.payload
    if not isinstance(block, FrameBlock):
        return drawn
    try:
        nbytes = sum(column.nbytes for column in block.columns.values())
    except Exception:  # as it will where it is packed, and there it counts
        nbytes = 0
    return replace(drawn, nbytes=nbytes)


def _split(drawn: Drawn) -> list[Drawn]:
    """A block that is too large for a batch, as several. Their arrays are views of it."""
    block = drawn.payload
    if not isinstance(block, FrameBlock) or drawn.frames < 2:
        return [drawn]
    per_frame = -(-drawn.nbytes // drawn.frames)
    rows = max(1, min(BATCH_FRAMES, BATCH_BYTES // per_frame))
    parts = []
    for at in range(0, drawn.frames, rows):
        columns = {name: column[at : at + rows] for name, column in block.columns.items()}
        texts = None if block.texts is None else block.texts[at : at + rows]
        part = FrameBlock(block.requests, columns, texts)
        parts.append(Drawn(part, len(part), drawn.first_sequence + at, per_frame * len(part)))
    return parts
