"""What to do next on the stream to the collector. Decides only: it knows no clock, no thread and no socket.

The loop in `fulgurite.agent.pump` tells it what happened (`opened`, `received`, `broken`) and asks `due` what
to do.

How nothing is lost or sent twice. Every frame has a place in the stream of the process; an epoch, which the
collector gives, numbers them from 1. A batch stays in the window, byte by byte as it was sent, until the
collector says that it is stored. After a break the collector says how far it got; what is stored counts as
acknowledged, the rest of the window is sent again as it was. What was sent and may be stored is never dropped
while a collector could still say so: the window has a budget of its own, and it is the outbox behind it that
overflows. If the collector no longer has what it once acknowledged, a new epoch begins.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from fulgurite.agent.wanted import EVERYTHING, Wanted
from fulgurite.v1 import agent_pb2, frame_pb2
from fulgurite.wire.channels import LEVELS
from fulgurite.wire.codec import agent_message_bytes, batch_bytes
from fulgurite.wire.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLimits:
    """How long to wait, and how much to have under way.

    Attributes
    ----------
    welcome_s : from opening the stream to the collector's welcome.
    silence_s : without a word while batches are under way.
    settled_s : after so long a connection the back-off begins anew.
    window_bytes : batches that were sent and not yet acknowledged.
    max_credit : batches under way, whatever the collector allows.
    """

    welcome_s: float = 5.0
    silence_s: float = 20.0
    first_retry_s: float = 0.1
    last_retry_s: float = 10.0
    least_retry_s: float = 0.01
    settled_s: float = 10.0
    longest_hold_s: float = 60.0
    report_s: float = 1.0
    window_bytes: int = 8 << 20
    max_credit: int = 256


@dataclass(frozen=True, slots=True)
class Parcel:
    """A batch in the window.

    Attributes
    ----------
    first_sequence, frames : int
        Place in the stream of the process, and how many (0: events only).
    data : bytes
        A serialised AgentMessage.
    """

    first_sequence: int
    frames: int
    data: bytes

    @property
    def last_sequence(self) -> int:
        """Place of its last frame; of the one before it for events only."""
        return self.first_sequence + self.frames - 1


@dataclass(frozen=True, slots=True)
class Open:
    """Open a stream and send the hello."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send these bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer the collector's ping with the clock of this machine."""

    ping_ns: int


@dataclass(frozen=True, slots=True)
class Draw:
    """There is room: take from the outbox and `add` it, waiting for it until `until_s` at most."""

    until_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """Send the agent's account."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until_s`, unless something is received."""

    until_s: float


@dataclass(frozen=True, slots=True)
class Hang:
    """Break the stream off, then call `broken` with this."""

    failure: Failure
    detail: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Never connect again; all that is and will be in the outbox is dropped for `reason`."""

    reason: str


_ACK_TAG: Final = bytes([agent_pb2.CollectorMessage.ACK_FIELD_NUMBER << 3 | 2])


def is_ack(message: bytes) -> bool:
    """Whether a collector's serialised message is an acknowledgement, which can wait to be read."""
    return message[:1] == _ACK_TAG


Action = Open | Send | Answer | Draw | Report | Wait | Hang | Stop
Failure = Literal["absent", "foreign", "silent", "garbled", "lost_store", "denied", "refused", "closed"]
Phase = Literal["apart", "greeting", "open", "stopped"]


class Link:
    """The agent's end of the stream.

    Parameters
    ----------
    ledger : Ledger
        Where frames are acknowledged and refused. Frames are captured and evicted elsewhere.
    jitter : callable
        A number in [0, 1): how much of the back-off to wait.
    """

    def __init__(
        self, ledger: Ledger, *, jitter: Callable[[], float], limits: LinkLimits | None = None
    ) -> None:
        self._ledger = ledger
        self._jitter = jitter
        self._limits = limits or LinkLimits()
        self._window: deque[Parcel] = deque()
        self._sent = 0  # so many parcels of the window are under way on this stream
        self._pings: deque[int] = deque(maxlen=16)
        self._credit = 0
        self._attempt = 0
        self._opened_s = self._heard_s = self._retry_s = self._hold_s = self._report_s = 0.0
        self.hang: Hang | None = None  # why the stream is to be broken off
        self.last_taken = self._sent_to = 0  # places of the last frame drawn, and of the last ever sent
        self._base = 0  # place in the process's stream that sequence 0 of the epoch has
        self._acknowledged = 0  # in the epoch
        self.phase: Phase = "apart"
        self.epoch_ms = 0
        self.collector_id = ""
        self.level: str | None = None
        self.paused = False
        self.deep_ratio: float | None = None
        self.wanted = EVERYTHING
        self.asked = object()  # replaced after any of these, or `stopped_for`, changed
        self.clock_offset_ns: int | None = None
        self.round_trip_ns = 0
        self.stopped_for = self.stopped_because = ""
        self.errors: Counter[str] = Counter()
        self.window_bytes = 0

    # --- what to do

    def due(self, now_s: float) -> Action:
        """The next thing to do."""
        if self.phase == "stopped":
            return Stop(self.stopped_for)
        if self.phase == "apart":
            return Open() if now_s >= self._retry_s else Wait(self._retry_s)
        hang = self.hang or self._too_quiet(now_s)
        if hang:
            return hang
        if self._pings:
            return Answer(self._pings.popleft())
        if self.phase == "greeting":
            return Wait(self._opened_s + self._limits.welcome_s)
        if now_s >= self._report_s:
            self._report_s = now_s + self._limits.report_s
            return Report()
        return self._next_batch(now_s)

    def _too_quiet(self, now_s: float) -> Hang | None:
        if self.phase == "greeting" and now_s >= self._opened_s + self._limits.welcome_s:
            return Hang("silent", f"no welcome within {self._limits.welcome_s:g} s")
        if self._sent and now_s >= self._heard_s + self._limits.silence_s:
            return Hang("silent", f"no acknowledgement for {self._limits.silence_s:g} s")
        return None

    def _next_batch(self, now_s: float) -> Action:
        if now_s < self._hold_s:
            return Wait(min(self._hold_s, self._report_s))
        if self._sent >= min(self._credit, self._limits.max_credit):
            return Wait(self._report_s)
        if self.has_unsent:
            parcel = self._window[self._sent]
            if not self._sent:
                self._heard_s = now_s  # silence is counted from the first that waits for an answer
            self._sent += 1
            self._sent_to = max(self._sent_to, parcel.last_sequence)
            self._release_covered()
            return Send(parcel.data)
        if self.window_bytes >= self._limits.window_bytes:
            return Wait(self._report_s)
        return Draw(self._report_s)

    # --- what happened

    def opened(self, now_s: float) -> None:
        """A stream was opened and the hello is on its way."""
        self.phase = "greeting"
        self._opened_s = self._heard_s = now_s
        self.hang = None
        self._sent = 0
        self._pings.clear()

    def add(self, parcel: Parcel) -> None:
        """A batch that was drawn, stamped with `epoch_ms` and `sequence_of` its first frame."""
        self._window.append(parcel)
        self.window_bytes += len(parcel.data)
        self.last_taken = max(self.last_taken, parcel.last_sequence)

    def stamp_of(self, parcel: Parcel) -> tuple[int, int]:
        """Epoch and sequence that its first frame has now."""
        return self.epoch_ms, self.sequence_of(parcel.first_sequence)

    def stamped(self, parcel: Parcel, stamp: tuple[int, int]) -> Parcel:
        """A parcel whose data has this stamp, as it is to be sent now."""
        return parcel if stamp == self.stamp_of(parcel) else self._restamped(parcel)

    def sequence_of(self, place: int) -> int:
        """Sequence in the epoch of a place in the stream of the process."""
        return place - self._base

    def received(self, message: agent_pb2.CollectorMessage, now_s: float) -> None:
        """The collector said something."""
        self._heard_s = now_s
        kind = message.WhichOneof("message")
        if kind == "welcome" and self.phase == "greeting":
            self._welcomed(message.welcome, now_s)
        elif kind == "ack" and self.phase == "open":
            self._acked(message.ack, now_s)
        elif kind == "control":
            self._controlled(message.control)
        elif kind == "ping":
            self._pinged(message.ping)
        elif kind == "refusal":
            self._refused(message.refusal)
        elif kind is not None:  # None: of a later version of the protocol
            self._give_up("garbled", f"a {kind} out of turn")

    def broken(self, now_s: float) -> None:
        """The stream is gone: back off, then open another."""
        if self.phase == "stopped":
            return
        limits = self._limits
        if self.phase == "open" and now_s - self._opened_s >= limits.settled_s:
            self._attempt = 0
        longest = min(limits.last_retry_s, limits.first_retry_s * 2.0**self._attempt)
        self._retry_s = now_s + max(limits.least_retry_s, longest * self._jitter())
        self._attempt = min(self._attempt + 1, 30)
        self.phase = "apart"
        self._sent = 0
        self.hang = None

    def give_up_window(self, reason: str) -> None:
        """Nobody will say any more what became of the window: its frames count as dropped."""
        while self._window:
            self._ledger.drop(self._pop().frames, reason)

    @property
    def unacknowledged(self) -> int:
        """Batches in the window."""
        return len(self._window)

    @property
    def has_unsent(self) -> bool:
        """Whether a batch in the window is not on its way."""
        return self._sent < len(self._window)

    @property
    def last_sequence(self) -> int:
        """Sequence in the epoch of the last frame that is captured."""
        return max(0, self._ledger.account().captured - self._base)

    # --- the collector's messages

    def _welcomed(self, welcome: agent_pb2.Welcome, now_s: float) -> None:
        if not welcome.epoch_ms:
            self._give_up("garbled", "a welcome without an epoch")
            return
        if welcome.epoch_ms != self.epoch_ms:
            if welcome.resume_after:
                self._give_up("garbled", f"a new epoch that begins behind {welcome.resume_after}")
                return
            self._begin_epoch(welcome.epoch_ms)
        elif not self._acknowledged <= welcome.resume_after <= self.sequence_of(self._sent_to):
            # What was acknowledged is gone, or what is there is not ours: go on in an epoch of our own.
            self.epoch_ms = 0
            self._give_up("lost_store", f"it has {welcome.resume_after} of {self._acknowledged} frames")
            return
        self._settle(welcome.resume_after, 0)
        self.phase = "open"
        self.collector_id = welcome.collector_id
        self._credit = welcome.credit
        self._hold_s = 0.0
        self._report_s = now_s  # the account first: it says what was dropped before
        self.level = self.deep_ratio = None
        self._want(welcome.level)
        self.paused = False
        self._demanded(welcome.demand if welcome.HasField("demand") else None)
        if welcome.HasField("control"):
            self._controlled(welcome.control)
        self.asked = object()

    def _begin_epoch(self, epoch_ms: int) -> None:
        first = self.epoch_ms == 0 and self._acknowledged == 0 and self._base == 0
        if (
            not first
        ):  # the first epoch begins with the process, so that what was dropped before is a gap in it
            self._base = self._window[0].first_sequence - 1 if self._window else self.last_taken
        self.epoch_ms = epoch_ms
        self._acknowledged = 0
        self._sent_to = self._base
        self._window = deque(self._restamped(parcel) for parcel in self._window)
        self.window_bytes = sum(len(parcel.data) for parcel in self._window)

    def _restamped(self, parcel: Parcel) -> Parcel:
        batch = frame_pb2.Batch.FromString(batch_bytes(parcel.data) or b"")
        batch.epoch_ms = self.epoch_ms
        batch.first_sequence = self.sequence_of(parcel.first_sequence)
        data = agent_message_bytes(batch.SerializeToString())
        return Parcel(parcel.first_sequence, parcel.frames, data)

    def _acked(self, ack: agent_pb2.Ack, now_s: float) -> None:
        if ack.epoch_ms != self.epoch_ms:
            self.errors["ack_of_another_epoch"] += 1
            return
        if ack.sequence > self.sequence_of(self._sent_to):
            self._give_up("garbled", f"an acknowledgement of frame {ack.sequence}, which was not sent")
            return
        self._settle(ack.sequence, ack.rejected)
        self._credit = ack.credit
        self._attempt = 0
        if ack.retry_after_ms:
            self._hold_s = now_s + min(ack.retry_after_ms / 1e3, self._limits.longest_hold_s)
            self._sent = 0

    def _settle(self, sequence: int, rejected: int) -> None:
        """Everything up to `sequence` is stored, except for `rejected` frames, which are refused."""
        done = 0
        while self._window and self.sequence_of(self._window[0].last_sequence) <= sequence:
            done += self._pop().frames
        if rejected > done:
            self.errors["rejected_more_than_sent"] += 1
        rejected = min(rejected, done)
        self._acknowledged = max(self._acknowledged, sequence)
        self._ledger.acknowledge(done - rejected)
        self._ledger.drop(rejected, "refused")

    def _release_covered(self) -> None:
        """Events alone need no acknowledgement where all frames before them have theirs."""
        while self._sent and self.sequence_of(self._window[0].last_sequence) <= self._acknowledged:
            self._pop()

    def _pop(self) -> Parcel:
        parcel = self._window.popleft()
        self.window_bytes -= len(parcel.data)
        self._sent = max(0, self._sent - 1)
        return parcel

    def _controlled(self, control: agent_pb2.Control) -> None:
        if control.own_level:
            self.level = None
        self._want(control.level)
        self.paused = control.pause
        asked = control.deep_ratio if control.HasField("deep_ratio") else None
        if asked is None or 0.0 <= asked <= 1.0:
            self.deep_ratio = asked
        else:
            self.errors["unknown_deep_ratio"] += 1
        if control.HasField("demand"):
            self._demanded(control.demand)
        if control.kill:
            self.level = "off"
            self._stop("killed", "it was switched off there")
        self.asked = object()

    def _demanded(self, demand: agent_pb2.Demand | None) -> None:
        self.wanted = (
            EVERYTHING if demand is None else Wanted(demand.watched, demand.one_in, demand.history_level)
        )

    def _pinged(self, ping: agent_pb2.Ping) -> None:
        self._pings.append(ping.ping_ns)
        if ping.HasField("clock_offset_ns"):
            self.clock_offset_ns, self.round_trip_ns = ping.clock_offset_ns, ping.round_trip_ns

    def _want(self, level: str) -> None:
        if level in LEVELS:
            self.level = level
        elif level:
            self.errors["unknown_level"] += 1

    def _refused(self, refusal: agent_pb2.Refusal) -> None:
        if refusal.final:
            self._stop("refused", refusal.reason[:200])
        self._give_up("refused", refusal.reason[:200])

    def _stop(self, reason: str, because: str) -> None:
        self.phase = "stopped"
        self.stopped_for, self.stopped_because = reason, because
        self.asked = object()
        self.give_up_window(reason)

    def _give_up(self, failure: Failure, detail: str) -> None:
        self.errors[failure] += 1
        self.hang = Hang(failure, detail)
