"""Exporters of the ranks of one model: the first puts the frames together and sends them; the others tell it
their share.

To a collector the group is one replica. Nothing waits on the host's thread: each side has its own daemon
threads and a bounded queue. A rank that is late, lost or not observed is said once; its heads are missing.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fulgurite.agent import rank_wire
from fulgurite.agent.exporter import Exporter, ExporterStats
from fulgurite.agent.figures import Figures
from fulgurite.agent.joint import Joint
from fulgurite.agent.rank_group import RankGroup, find_door, is_on_one_machine, open_door
from fulgurite.agent.rank_rows import RowShare, RowTable
from fulgurite.agent.ranks import merge_topologies, share
from fulgurite.agent.shield import Shield
from fulgurite.wire.frame import FrameBlock, RequestEvent
from fulgurite.wire.ledger import Ledger
from fulgurite.wire.topology import Topology

Array = np.ndarray[Any, Any]
WAIT_S = 5.0  # that a block waits for the shares of the other ranks
_MOST_BLOCKS = 4096
_TICK_S = 0.25
_WORD_S = 5.0
_SAID = {
    "late": "rank %d of this model tells nothing (instrument the model on every rank): its heads are missing",
    "lost": "rank %d of this model has left: its heads are missing from now on",
    "out of step": "rank %d of this model counts other tokens than this one (instrument the model on every "
    "rank before it runs): its heads are missing",
}


class _Rank:
    """What both sides share: the queue from the host, a thread that empties it, an end.

    Attributes
    ----------
    exchanges : whether ranks tell each other rows of the unembedding, which say which tokens were emitted:
        where these stay on one machine, or are told anyway.
    """

    def __init__(self, group: RankGroup, shield: Shield, *, tells_tokens: bool = False) -> None:
        self.exchanges = tells_tokens or is_on_one_machine()
        self.group = group
        self.shield = shield
        self.queue: deque[FrameBlock | RequestEvent] = deque()
        self.wake = threading.Event()
        self.over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._pid = os.getpid()

    def run(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name="fulgurite-ranks", daemon=True)
        self._threads.append(thread)
        thread.start()

    @property
    def is_foreign(self) -> bool:
        """Whether this is a child after a fork, where no thread of ours lives."""
        return os.getpid() != self._pid

    def pause(self, seconds: float) -> bool:
        return self.over.wait(seconds)

    def stop(self, timeout_s: float) -> None:
        self.over.set()
        self.wake.set()
        if not self.is_foreign:
            for thread in self._threads:
                if thread is not threading.current_thread():
                    thread.join(timeout_s)


class LeadExporter(_Rank):
    """The first rank's: joins the shares of the others to its own blocks, and hands them to `inner`.

    Parameters
    ----------
    inner : where whole frames go.
    wait_s : how long a block waits for the others.
    """

    def __init__(
        self,
        inner: Exporter,
        group: RankGroup,
        shield: Shield,
        wait_s: float = WAIT_S,
        *,
        tells_tokens: bool = False,
    ) -> None:
        super().__init__(group, shield, tells_tokens=tells_tokens)
        self.inner = inner
        others = tuple(p for p in group.places if p != group.place)
        self._joint = Joint(others, wait_s)
        self._rows = RowTable(others)
        self._wait_s = wait_s
        self._lock = threading.Lock()  # among our own threads: the host's never takes it
        self._lines: dict[int, socket.socket] = {}
        self._sending = threading.Lock()  # likewise: two of them write to a line
        self._ledger = Ledger()  # of what is not handed to `inner` yet
        self._level: str | None = None
        self._told: dict[str, Any] = {"level": None}
        self._is_started = False

    def attach(
        self, topology: Topology, *, level: str, ceiling: str, tokens: str, resource: Mapping[str, str]
    ) -> None:
        """See `Exporter.attach`."""
        whole = merge_topologies([topology])
        self.inner.attach(whole, level=level, ceiling=ceiling, tokens=tokens, resource=resource)
        if not self._is_started:
            self._is_started = True
            self.run(self._welcome)
            self.run(self._work)

    def export(self, block: FrameBlock) -> None:
        """See `Exporter.export`."""
        if self.is_foreign or self.over.is_set():
            self.inner.export(block)
            return
        self._ledger.capture(len(block))
        if len(self.queue) >= _MOST_BLOCKS:
            self._ledger.drop(len(block), "ranks_full")
            return
        self.queue.append(block)
        self.wake.set()

    def lull(self) -> None:
        """See `GrpcExporter.lull`."""
        tell = getattr(self.inner, "lull", None)
        if tell is not None:
            tell()

    def event(self, event: RequestEvent) -> None:
        """See `Exporter.event`."""
        if self.is_foreign or self.over.is_set():
            self.inner.event(event)
            return
        self.queue.append(event)
        self.wake.set()

    def wanted_level(self) -> str | None:
        """See `Exporter.wanted_level`."""
        return self.inner.wanted_level()

    def wanted_deep_ratio(self) -> float | None:
        """The share of steps to capture at ``deep`` that `inner` is asked for; None: nothing asked."""
        asked = getattr(self.inner, "wanted_deep_ratio", None)
        return None if asked is None else asked()

    def flush(self, timeout_s: float) -> bool:
        """See `Exporter.flush`."""
        until = time.monotonic() + timeout_s
        while self.queue or not self._joint.is_empty:
            if time.monotonic() >= until or self.over.is_set():
                return False
            time.sleep(0.005)
        return self.inner.flush(max(0.0, until - time.monotonic()))

    def stats(self) -> ExporterStats:
        """See `Exporter.stats`. What waits for another rank is pending."""
        own, told = self._ledger.account(), self.inner.stats()
        lost = sum(own.dropped.values())
        return replace(
            told,
            captured=told.captured + own.pending + lost,
            pending=told.pending + own.pending,
            dropped={**told.dropped, **own.dropped},
        )

    def report(
        self,
        *,
        overhead_ratio: float,
        level: str,
        running_requests: int,
        kv_bytes: int,
        figures: Figures | None = None,
    ) -> None:
        """See `Exporter.report`."""
        self._level = level
        self.inner.report(
            overhead_ratio=overhead_ratio,
            level=level,
            running_requests=running_requests,
            kv_bytes=kv_bytes,
            figures=figures,
        )

    def close(self, timeout_s: float = 2.0) -> None:
        """See `Exporter.close`."""
        if not self.is_foreign:
            self.flush(timeout_s)
            self.stop(timeout_s)
            self._hand_over(float("inf"))
            self._hang_up()
        self.inner.close(timeout_s)

    def leave(self) -> None:
        """As `close`, without waiting."""
        self.stop(0.0)
        self._hang_up()
        getattr(self.inner, "leave", self.inner.close)()

    def _hang_up(self) -> None:
        for line in tuple(self._lines.values()):
            _shut(line)

    def _work(self) -> None:
        while not self.over.is_set():
            self.wake.wait(0.02 if not self._joint.is_empty else _TICK_S)
            self.wake.clear()
            with self.shield.at("ranks"):
                self._hand_over(time.monotonic())
                self._tell_level()

    def exchange(self, step: int, own: RowShare, vocabulary: int) -> RowShare | None:
        """All rows of the unembedding that a step needs, for this rank's; None where a rank does not tell its
        own. Waits for the others: called by whoever reads a block, and never under our lock.
        """
        if self.is_foreign or self.over.is_set():
            return None
        whole, waiting, late = self._rows.gather(
            step, own, vocabulary, wait_s=self._wait_s, is_over=self.over.is_set
        )
        for place in waiting:
            self._answer(place, step, whole)
        if late:
            with self._lock:
                for place in late:
                    self._joint.late(place)
        return whole

    def _answer(self, place: int, step: int, whole: RowShare | None) -> None:
        line = self._lines.get(place)
        if line is not None:
            try:
                self._say(line, {"rows": step}, {} if whole is None else whole.first_ids().arrays())
            except OSError:
                pass  # the thread that reads it sees the end

    def _first(self) -> FrameBlock | RequestEvent | None:
        try:
            return self.queue[0]
        except IndexError:
            return None

    def _read_own(self, item: FrameBlock | RequestEvent) -> None:
        """Put a block's columns together while our lock is free: other ranks may be asked for them."""
        if isinstance(item, FrameBlock):
            for place, step in self._rows.finish(int(item.columns["step"][0])):
                self._answer(place, step, None)

    def _hand_over(self, now_s: float) -> None:
        while (item := self._first()) is not None:
            self._read_own(item)
            with self._lock:
                if self._first() is item:  # else the thread that closes took it meanwhile
                    self._joint.put_own(item, now_s)
                    self.queue.popleft()  # not before, since `flush` looks there
        with self._lock:
            for item in self._joint.take(now_s):
                if isinstance(item, FrameBlock):
                    self._ledger.acknowledge(len(item))
                    self.inner.export(item)
                else:
                    self.inner.event(item)
            notes, self._joint.notes = self._joint.notes, []
        for _, place in notes:
            self._rows.left(place)  # waited for once, not once for each
        if now_s != float("inf"):
            for kind, place in notes:
                self.shield.note(f"ranks:{kind}")
                self.shield.say_once(f"ranks:{kind}:{place}", _SAID[kind], place)

    def _tell_level(self) -> None:
        """The others capture at the level of this one, and the same steps at ``deep``."""
        level = self.inner.wanted_level() or self._level
        wanted = {"level": level, "deep_ratio": self.wanted_deep_ratio()}
        if wanted != self._told and level is not None:
            self._told = wanted
            for line in tuple(self._lines.values()):
                try:
                    self._say(line, wanted)
                except OSError:
                    pass  # the thread that reads it sees the end

    def _say(
        self, line: socket.socket, head: Mapping[str, object], arrays: Mapping[str, Array] | None = None
    ) -> None:
        with self._sending:
            rank_wire.send(line, head, arrays)

    # --- the others

    def _welcome(self) -> None:
        try:
            listener, door = open_door(self.group)
        except Exception as error:
            self.shield.caught("ranks", error)
            return
        with listener:
            listener.settimeout(_TICK_S)
            while not self.over.is_set():
                try:
                    line, _ = listener.accept()
                except TimeoutError:
                    continue
                self.run(partial(self._listen, line, door.word))

    def _listen(self, line: socket.socket, word: str) -> None:
        """One rank, until it leaves."""
        place = None
        try:
            line.settimeout(_WORD_S)
            hello = rank_wire.receive(line)
            if hello is None or not secrets.compare_digest(str(hello[0].get("word")), word):
                return
            place = int(hello[0]["place"])
            if place not in self.group.places or place in self._lines:
                place = None
                return
            line.settimeout(None)
            self._lines[place] = line
            self._say(line, self._told)
            while (message := rank_wire.receive(line)) is not None:
                self._hear(line, place, *message)
        except (OSError, ValueError, KeyError):
            pass  # it has left, or is none of ours
        finally:
            _shut(line)
            if place is not None:
                self._lines.pop(place, None)
                self._rows.left(place)
                if not self.over.is_set():
                    with self._lock:
                        self._joint.left(place)
                    self.wake.set()

    def _hear(
        self, line: socket.socket, place: int, head: Mapping[str, Any], columns: Mapping[str, Array]
    ) -> None:
        if "rows" in head:
            if not self._rows.put(place, int(head["rows"]), RowShare.of(columns)):
                self._answer(place, int(head["rows"]), None)
            return
        self._rows.passed(place, int(columns["step"][0]))
        with self._lock:
            self._joint.put_part(place, FrameBlock((), columns))
        self.wake.set()
        self._say(line, {"took": 1})


class MemberExporter(_Rank):
    """Another rank's: tells the first one its share. Request events are the first one's to tell."""

    def __init__(self, group: RankGroup, shield: Shield, *, tells_tokens: bool = False) -> None:
        super().__init__(group, shield, tells_tokens=tells_tokens)
        self._ledger = Ledger()
        self._wanted: str | None = None
        self._deep_ratio: float | None = None
        self._sent: deque[int] = deque()
        self._line: socket.socket | None = None
        self._answers = _Answers()
        self._is_started = False

    def attach(
        self,
        topology: Topology,  # noqa: ARG002
        *,
        level: str,  # noqa: ARG002
        ceiling: str,  # noqa: ARG002
        tokens: str,  # noqa: ARG002
        resource: Mapping[str, str],  # noqa: ARG002
    ) -> None:
        """See `Exporter.attach`: the first rank says what the model is."""
        if not self._is_started and not self.is_foreign:
            self._is_started = True
            self.run(self._work)

    def export(self, block: FrameBlock) -> None:
        """See `Exporter.export`."""
        self._ledger.capture(len(block))
        if self.is_foreign or self.over.is_set():
            self._ledger.drop(len(block), "closed")
            return
        self.queue.append(block)
        if len(self.queue) > _MOST_BLOCKS:
            self._lose("ranks_full", most=1)
        self.wake.set()

    def event(self, event: RequestEvent) -> None:
        """The first rank tells it."""

    def wanted_level(self) -> str | None:
        """The level of the first rank."""
        return self._wanted

    def wanted_deep_ratio(self) -> float | None:
        """The share of steps that the first rank is asked to capture at ``deep``; None: nothing asked."""
        return self._deep_ratio

    def exchange(self, step: int, own: RowShare, vocabulary: int) -> RowShare | None:  # noqa: ARG002
        """The rows of the emitted tokens, for this rank's rows; None where they cannot be had. Waits for the
        first rank: called by our own thread, as it reads a block.
        """
        line = self._line
        if line is None or self.is_foreign or self.over.is_set():
            return None
        try:
            rank_wire.send(line, {"rows": step}, own.arrays())
        except OSError:
            return None  # the thread that reads the line sees the end
        return self._answers.of(step, WAIT_S, self.over.is_set)

    def flush(self, timeout_s: float) -> bool:
        """See `Exporter.flush`: until the first rank has all shares."""
        until = time.monotonic() + timeout_s
        while self._ledger.account().pending:
            if time.monotonic() >= until or self.over.is_set():
                return False
            time.sleep(0.005)
        return True

    def stats(self) -> ExporterStats:
        """See `Exporter.stats`: acknowledged is what the first rank took."""
        account = self._ledger.account()
        return ExporterStats(
            captured=account.captured,
            acknowledged=account.acknowledged,
            pending=account.pending,
            dropped=dict(account.dropped),
        )

    def report(
        self,
        *,
        overhead_ratio: float,
        level: str,
        running_requests: int,
        kv_bytes: int,
        figures: Figures | None = None,
    ) -> None:
        """The first rank reports."""

    def close(self, timeout_s: float = 2.0) -> None:
        """See `Exporter.close`."""
        if not self.is_foreign:
            self.flush(timeout_s)
        self.leave(timeout_s)

    def leave(self, timeout_s: float = 0.0) -> None:
        """As `close`, without waiting for what is pending."""
        self.over.set()
        self.wake.set()
        if self._line is not None:
            _shut(self._line)
        self.stop(timeout_s)
        self._lose("closed")
        while self._sent:
            self._ledger.drop(self._sent.popleft(), "rank_lost")

    def _lose(self, reason: str, most: int | None = None) -> None:
        while self.queue and most != 0:
            try:
                lost = self.queue.popleft()
            except IndexError:
                return
            self._ledger.drop(len(lost), reason)  # type: ignore[arg-type]
            most = None if most is None else most - 1

    def _work(self) -> None:
        with self.shield.at("ranks"):
            line = self._reach()
            if line is None:
                return
            self._line = line
            self.run(lambda: self._hear(line))
            try:
                while not self.over.is_set():
                    self.wake.wait(_TICK_S)
                    self.wake.clear()
                    self._send(line)
            except OSError:
                self._broken()

    def _reach(self) -> socket.socket | None:
        door = find_door(self.group, self.pause)
        if door is None:
            return None
        line = socket.create_connection((door.host, door.port), timeout=_WORD_S)
        line.settimeout(None)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rank_wire.send(line, {"word": door.word, "place": self.group.place})
        return line

    def _send(self, line: socket.socket) -> None:
        while self.queue:
            block = self.queue.popleft()
            assert isinstance(block, FrameBlock)
            self._sent.append(len(block))
            rank_wire.send(line, {}, share(block))

    def _hear(self, line: socket.socket) -> None:
        try:
            while (message := rank_wire.receive(line)) is not None:
                head = message[0]
                if "level" in head:
                    self._wanted, self._deep_ratio = head["level"], head.get("deep_ratio")
                elif "rows" in head:
                    whole = RowShare.of(message[1]) if message[1] else None
                    self._answers.put(int(head["rows"]), whole)
                elif head.get("took") and self._sent:
                    self._ledger.acknowledge(self._sent.popleft())
        except (OSError, ValueError):
            pass
        self._broken()

    def _broken(self) -> None:
        """The first rank has left: nobody puts our frames together any more."""
        if not self.over.is_set():
            self.over.set()
            self.shield.note("ranks:lost")
            self.shield.say_once("ranks:lost", "the first rank of this model has left: no frames are made")
            self._lose("rank_lost")
            while self._sent:
                self._ledger.drop(self._sent.popleft(), "rank_lost")
        self.wake.set()


class _Answers:
    """What the first rank answered last."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._last: tuple[int, RowShare | None] = (-1, None)

    def put(self, step: int, whole: RowShare | None) -> None:
        with self._changed:
            self._last = (step, whole)
            self._changed.notify_all()

    def of(self, step: int, wait_s: float, is_over: Callable[[], bool]) -> RowShare | None:
        until = time.monotonic() + wait_s
        with self._changed:
            while self._last[0] < step and not is_over() and (left_s := until - time.monotonic()) > 0:
                self._changed.wait(min(left_s, _TICK_S))
            return self._last[1] if self._last[0] == step else None


def joined(
    exporter: Exporter, group: RankGroup | None, shield: Shield, *, tells_tokens: bool = False
) -> Exporter:
    """The exporter with which this rank takes part: `exporter` itself where the model is in one process.

    Parameters
    ----------
    tells_tokens : token ids or texts were switched on by name.
    """
    if group is None:
        return exporter
    if group.leads:
        return LeadExporter(exporter, group, shield, tells_tokens=tells_tokens)
    exporter.close(0.0)  # what this rank sees reaches a collector through the first one
    return MemberExporter(group, shield, tells_tokens=tells_tokens)


def _shut(line: socket.socket) -> None:
    try:
        line.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    line.close()
