"""Where captured frames go: the port, an exporter that keeps them in the process, and one that sends them.

The contract of the port is written once, on `Exporter`.
"""

from __future__ import annotations

import atexit
import os
import time
import uuid
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from fulgurite.agent.config import DEFAULT_SPOOL_BYTES
from fulgurite.agent.figures import Figures
from fulgurite.agent.gauge import ScaleGauge
from fulgurite.agent.link import Link, LinkLimits
from fulgurite.agent.outbox import DEFAULT_BUDGET_BYTES, Outbox
from fulgurite.agent.privacy import check_policy
from fulgurite.agent.shield import Shield
from fulgurite.agent.wanted import EVERYTHING
from fulgurite.v1 import agent_pb2
from fulgurite.wire.access import Access
from fulgurite.wire.codec import PROTOCOL, codec_for, resource_to_pb, schema_for, topology_to_pb
from fulgurite.wire.frame import Frame, FrameBlock, RequestEvent, Scale
from fulgurite.wire.ledger import Ledger
from fulgurite.wire.topology import Topology

if TYPE_CHECKING:
    from fulgurite.agent.pump import Pump
    from fulgurite.agent.spool import Spool

INSTANCE_ID: Final = "service.instance.id"
_DRAINED_AT_ONCE: Final = 8
"""Items that a host's call lets go of where nothing will be sent any more: the sender lets go of the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterStats:
    """An exporter's account: ``captured == pending + acknowledged + sum(dropped.values())``, always.

    Attributes
    ----------
    captured, acknowledged, pending : int
        Frames handed over; stored where they were to go; on their way.
    dropped : mapping of str to int
        Frames lost, by reason.
    errors : mapping of str to int
        Failures that were swallowed, by kind.
    folded : int
        Tokens that nobody asked for: in sketches, not captured.
    spooled_frames, spooled_bytes : int
        Of those pending, what waits on disk.
    clock_offset_s, round_trip_s : float or None
        This machine's clock less the collector's, and the time a word takes there and back.
    """

    captured: int
    acknowledged: int
    pending: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    folded: int = 0
    spooled_frames: int = 0
    spooled_bytes: int = 0
    clock_offset_s: float | None = None
    round_trip_s: float | None = None


@runtime_checkable
class Exporter(Protocol):
    """What takes frames off the host's thread.

    `export` and `event` are called on the host's thread: they MUST cost the same however much is buffered,
    MUST NOT block and MUST NOT raise. The block becomes the exporter's: nobody writes into its arrays
    afterwards. When an exporter is full the oldest frames go and are counted. They may be called from several
    threads at once.
    """

    def attach(
        self, topology: Topology, *, level: str, ceiling: str, tokens: str, resource: Mapping[str, str]
    ) -> None:
        """Name the model and the process. MUST come before the first block.

        Parameters
        ----------
        level, ceiling : the level captured now, and the highest that this attachment can capture.
        tokens : ``off``, ``ids`` or ``text``: what of a token may leave the process.
        resource : OpenTelemetry resource attributes, `service.instance.id` among them.
        """

    def export(self, block: FrameBlock) -> None:
        """Take the frames of one step."""

    def event(self, event: RequestEvent) -> None:
        """Take what happened to a request."""

    def wanted_level(self) -> str | None:
        """The level that a remote side asks for (``off`` while it pauses us); None: nothing asked."""

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was handed over is settled; False where it was not in time."""

    def stats(self) -> ExporterStats:
        """The account as of now."""

    def report(
        self,
        *,
        overhead_ratio: float,
        level: str,
        running_requests: int,
        kv_bytes: int,
        figures: Figures | None = None,
    ) -> None:
        """Say how the agent is, to be passed on about once a second. Same rules as `export`.

        Parameters
        ----------
        overhead_ratio : the agent's measured share of step time; NaN before it was measured.
        kv_bytes : bytes of all caches under way.
        figures : what the serving engine says, where there is one.
        """

    def close(self, timeout_s: float = 2.0) -> None:
        """Flush for at most `timeout_s`, then stop; what is pending is dropped. May be called again."""


class InMemoryExporter:
    """Keeps every frame in the process: for tests and notebooks, not for servers.

    Parameters
    ----------
    max_frames : int, optional
        At most so many frames are kept; the oldest blocks go first and are counted as ``memory_full``.

    Examples
    --------
    >>> exporter = InMemoryExporter()
    >>> exporter.frames
    []
    """

    def __init__(self, max_frames: int | None = None) -> None:
        if max_frames is not None and max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, not {max_frames}")
        self._max_frames = max_frames
        self._topology: Topology | None = None
        self._blocks: deque[FrameBlock] = deque()
        self._events: deque[RequestEvent] = deque()
        self._built: tuple[tuple[int, int], list[Frame]] = ((0, 0), [])
        self._lock = Lock()  # of the counters, among the host's own threads; nobody sends here
        _forkable.add(self)
        self._captured = self._dropped = 0
        self.level = self.ceiling = self.tokens = ""
        self.resource: Mapping[str, str] = {}

    def attach(
        self, topology: Topology, *, level: str, ceiling: str, tokens: str, resource: Mapping[str, str]
    ) -> None:
        """See `Exporter.attach`. A later attachment replaces the topology; frames stay."""
        self._topology = topology
        self.level, self.ceiling, self.tokens, self.resource = level, ceiling, tokens, dict(resource)

    def export(self, block: FrameBlock) -> None:
        """See `Exporter.export`."""
        _ = block.columns  # what is kept for long is kept as columns, which weigh least
        with self._lock:
            self._captured += len(block)
            self._blocks.append(block)
            if self._max_frames is not None:
                self._shed(self._max_frames)

    def _after_fork(self) -> None:
        self._lock = Lock()  # the thread that held it may not live on

    def _shed(self, max_frames: int) -> None:
        while self._captured - self._dropped > max_frames:
            self._dropped += len(self._blocks.popleft())

    def event(self, event: RequestEvent) -> None:
        """See `Exporter.event`."""
        self._events.append(event)

    def wanted_level(self) -> str | None:
        """None: there is no remote side."""
        return None

    def flush(self, timeout_s: float) -> bool:  # noqa: ARG002 - nothing to wait for
        """True: a frame is kept when `export` returns."""
        return True

    def stats(self) -> ExporterStats:
        """The account: kept frames are acknowledged ones."""
        dropped = {"memory_full": self._dropped} if self._dropped else {}
        kept = self._captured - self._dropped
        return ExporterStats(captured=self._captured, acknowledged=kept, pending=0, dropped=dropped)

    def report(
        self,
        *,
        overhead_ratio: float,
        level: str,
        running_requests: int,
        kv_bytes: int,
        figures: Figures | None = None,
    ) -> None:
        """Nobody to tell."""

    def close(self, timeout_s: float = 2.0) -> None:
        """Nothing to stop: frames stay readable."""

    @property
    def topology(self) -> Topology:
        """The model's shape.

        Raises
        ------
        RuntimeError
            Before anything was attached.
        """
        if self._topology is None:
            raise RuntimeError("nothing is attached yet: pass this exporter to instrument(model, exporter=…)")
        return self._topology

    @property
    def blocks(self) -> tuple[FrameBlock, ...]:
        """The kept blocks, in the order of capture."""
        return tuple(self._blocks)

    @property
    def frames(self) -> list[Frame]:
        """Every kept frame, ordered by step, then sequence. Arrays are views of the blocks."""
        version = (self._captured, self._dropped)
        if version != self._built[0]:
            frames = [frame for block in self.blocks for frame in block.frames()]
            frames.sort(key=lambda frame: (frame.step, frame.sequence))
            self._built = (version, frames)
        return list(self._built[1])

    @property
    def events(self) -> list[RequestEvent]:
        """Every request event, in order."""
        return list(self._events)

    @property
    def scale(self) -> Scale:
        """The display scale measured on the kept frames; version 0 where there are too few."""
        gauge = ScaleGauge()
        for block in self.blocks:
            gauge.update(block)
        return gauge.scale


@dataclass(frozen=True, slots=True)
class _Attachment:
    """What `attach` was told, and what the agent last reported."""

    topology: Topology
    level: str
    ceiling: str
    tokens: str
    resource: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Condition:
    """How the agent last said that it is."""

    level: str
    overhead_ratio: float = float("nan")
    running_requests: int = 0
    kv_bytes: int = 0
    figures: Figures | None = None


class GrpcExporter:
    """Sends frames to a collector: a bounded outbox, and one daemon thread that owns the stream.

    It connects with the first block, in the process that captured it. After a fork the child begins anew:
    empty, with an account of its own and a fresh `service.instance.id`. At exit it flushes for at most 2 s.

    Parameters
    ----------
    endpoint : str
        ``HOST:PORT`` of the collector.
    encoding : str
        ``exact`` or ``compact`` (see `fulgurite.wire.codec`).
    budget_bytes : int
        What all buffers together may weigh.
    access : Access, optional
        Without: plain text.
    limits : LinkLimits, optional
        How long to wait for what.
    spool : Path, optional
        Folder where frames wait that memory has no room for.
    spool_bytes : int
        How much may wait there.

    Raises
    ------
    ValueError
        For an encoding or a budget that cannot be.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        encoding: str = "exact",
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        access: Access | None = None,
        limits: LinkLimits | None = None,
        spool: Path | None = None,
        spool_bytes: int = DEFAULT_SPOOL_BYTES,
    ) -> None:
        if encoding not in ("exact", "compact"):
            raise ValueError(f"encoding must be exact or compact, not {encoding!r}")
        self._endpoint, self._encoding, self._access = endpoint, encoding, access
        self._budget_bytes = budget_bytes
        self._spool_folder, self._spool_bytes = spool, spool_bytes
        self._limits = limits or LinkLimits(window_bytes=min(8 << 20, budget_bytes // 2))
        self._attachment: _Attachment | None = None
        self._closed = False
        self._renew()
        _forkable.add(self)

    def _renew(self) -> None:
        """Begin with nothing: at the start, and in a child after a fork, where no thread lives on."""
        self._ledger = Ledger()
        self._outbox = Outbox(self._ledger, self._budget_bytes)
        self._shield = Shield()
        self._pump: Pump | None = None
        self._prepared: Pump | None = None  # its making takes milliseconds, which no token should pay
        self._starting = Lock()
        self._condition = _Condition("")

    def _after_fork(self) -> None:
        self._renew()
        if self._attachment is not None:
            old = self._attachment
            resource = {**old.resource, INSTANCE_ID: str(uuid.uuid4())}
            self._attachment = _Attachment(old.topology, old.level, old.ceiling, old.tokens, resource)
            self._condition = _Condition(old.level)

    # --- the port

    def attach(
        self, topology: Topology, *, level: str, ceiling: str, tokens: str, resource: Mapping[str, str]
    ) -> None:
        """See `Exporter.attach`.

        Raises
        ------
        ValueError
            For a `tokens` that is no policy, or where another model is attached already.
        """
        check_policy(tokens)
        known = self._attachment
        if known is not None and replace(known.topology, unavailable=topology.unavailable) != topology:
            raise ValueError("one exporter serves one model: give the other model an exporter of its own")
        if known is not None and self._pump is not None:
            topology = known.topology  # the stream has begun under its hash
        named = {INSTANCE_ID: str(uuid.uuid4()), **resource}
        self._attachment = _Attachment(topology, level, ceiling, tokens, named)
        self._condition = _Condition(level)
        self._prepared = self._make_pump(self._attachment)

    def export(self, block: FrameBlock) -> None:
        """See `Exporter.export`."""
        try:
            pump = self._pump
            wanted = EVERYTHING if pump is None else pump.link.wanted
            self._outbox.put(block, True if wanted.is_all else wanted.rows(block))
            if pump is None or self._closed or pump.link.stopped_for:
                self._after_put()
        except Exception as error:
            self._swallow(error)

    def lull(self) -> None:
        """The calling thread of the host's goes into a long call that needs nothing of Python's (the largest
        product of a step, a wait for its device): what waits is encoded and sent meanwhile, where it would
        hold the host up least. Same rules as `export`. An exporter need not have it."""
        self._outbox.lull()

    def event(self, event: RequestEvent) -> None:
        """See `Exporter.event`."""
        try:
            self._outbox.put_event(event)
            self._after_put()
        except Exception as error:
            self._swallow(error)

    def wanted_level(self) -> str | None:
        """See `Exporter.wanted_level`."""
        if self._pump is None:
            return None
        link, attachment = self._pump.link, self._attachment
        if link.paused or link.stopped_for:
            return "off"
        return link.wanted.level(link.level, attachment.ceiling if attachment is not None else "deep")

    def wanted_deep_ratio(self) -> float | None:
        """The share of steps to capture at ``deep`` that the collector asks for; None: nothing asked."""
        return None if self._pump is None else self._pump.link.deep_ratio

    def asked(self) -> object:
        """Something that is another thing once the collector asks for another level or share; None: nothing
        is known of it. An exporter need not have it: it spares the host's thread the questions."""
        return None if self._pump is None else self._pump.link.asked

    def paused(self) -> bool:
        """Whether the collector asked for a pause."""
        return self._pump is not None and self._pump.link.paused

    def flush(self, timeout_s: float) -> bool:
        """See `Exporter.flush`."""
        if self._pump is None:
            return self._ledger.account().pending == 0
        return self._pump.flush(timeout_s)

    def stats(self) -> ExporterStats:
        """See `Exporter.stats`."""
        account = self._ledger.account()
        return ExporterStats(
            captured=account.captured,
            acknowledged=account.acknowledged,
            pending=account.pending,
            dropped=account.dropped,
            errors=self._errors(),
            folded=account.folded,
            **self._link_stats(),
        )

    def _link_stats(self) -> dict[str, Any]:
        pump = self._pump
        if pump is None:
            return {}
        told: dict[str, Any] = {}
        if pump.spool is not None:
            told |= {"spooled_frames": pump.spool.frames, "spooled_bytes": pump.spool.nbytes}
        if pump.link.clock_offset_ns is not None:
            offset_s, round_trip_s = pump.link.clock_offset_ns / 1e9, pump.link.round_trip_ns / 1e9
            told |= {"clock_offset_s": offset_s, "round_trip_s": round_trip_s}
        return told

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
        self._condition = _Condition(level, overhead_ratio, running_requests, kv_bytes, figures)

    def close(self, timeout_s: float = 2.0) -> None:
        """See `Exporter.close`."""
        self._closed = True
        with self._starting:
            pump = self._pump
        if pump is not None:
            pump.close(timeout_s)
        else:
            self._discard("closed")

    def leave(self, timeout_s: float = 2.0) -> None:
        """As `close`, but without waiting for it: the model is gone, and whoever collects it waits for
        nobody."""
        self._closed = True
        if self._pump is not None:
            self._pump.leave(timeout_s)

    def connect(self) -> None:
        """Connect now, and not with the first block: for whoever has figures and no frames."""
        try:
            if self._attachment is not None and not self._closed:
                self._start(self._attachment)
            if self._pump is not None:
                self._pump.call()
        except Exception as error:
            self._swallow(error)

    # --- inside

    def _after_put(self) -> None:
        pump = self._pump
        if pump is None:
            if self._closed or self._attachment is None:
                self._discard("closed" if self._closed else "not_attached")
            else:
                self._start(self._attachment)
        elif self._closed or pump.stopped_for:
            pump.drain(pump.stopped_for or "closed", most=_DRAINED_AT_ONCE)

    def _start(self, attachment: _Attachment) -> None:
        """Start the thread, once per process."""
        if not self._starting.acquire(blocking=False):
            return  # another thread is at it
        try:
            if self._pump is None and not self._closed:
                pump = self._prepared or self._make_pump(attachment)
                pump.start()
                self._pump, self._prepared = pump, None
        finally:
            self._starting.release()

    def _make_pump(self, attachment: _Attachment) -> Pump:
        from fulgurite.agent.pump import Pump

        return Pump(
            self._endpoint,
            outbox=self._outbox,
            ledger=self._ledger,
            codec=codec_for(schema_for(attachment.topology, self._encoding)),
            tokens=attachment.tokens,
            hello=self._hello,
            account=self._account,
            shield=self._shield,
            access=self._access,
            limits=self._limits,
            experts=attachment.topology.experts,
            spool=self._make_spool(),
        )

    def _make_spool(self) -> Spool | None:
        if self._spool_folder is None:
            return None
        from fulgurite.agent.spool import Spool

        return Spool(self._spool_folder, self._spool_bytes)

    def _hello(self, link: Link) -> agent_pb2.Hello:
        attachment = self._attachment
        assert attachment is not None  # nothing starts before `attach`
        return agent_pb2.Hello(
            protocol=PROTOCOL,
            agent_version=_version(),
            resource=resource_to_pb(attachment.resource),
            topology=topology_to_pb(attachment.topology),
            schema=schema_for(attachment.topology, self._encoding),
            level=self._condition.level,
            level_ceiling=attachment.ceiling,
            tokens=attachment.tokens,
            epoch_ms=link.epoch_ms,
            last_sequence=link.last_sequence,
            wall_ns=time.time_ns(),
        )

    def _account(self) -> agent_pb2.AgentStats:
        account, condition = self._ledger.account(), self._condition
        spool = self._pump.spool if self._pump is not None else None
        return agent_pb2.AgentStats(
            captured=account.captured,
            acknowledged=account.acknowledged,
            pending=account.pending,
            dropped=account.dropped,
            errors=self._errors(),
            folded=account.folded,
            spooled_frames=spool.frames if spool is not None else 0,
            spooled_bytes=spool.nbytes if spool is not None else 0,
            level=condition.level,
            overhead_ratio=condition.overhead_ratio,
            running_requests=condition.running_requests,
            kv_bytes=condition.kv_bytes,
            time_ns=time.time_ns(),
            **_engine_to_pb(condition.figures),
        )

    def _errors(self) -> dict[str, int]:
        errors = dict(self._shield.errors)
        if self._pump is not None:
            errors |= {f"link:{kind}": count for kind, count in tuple(self._pump.link.errors.items())}
            errors |= dict(self._pump.folding.lost)
        if evicted := self._outbox.events_evicted:
            errors["events_evicted"] = evicted
        if unfolded := self._outbox.unfolded:
            errors["tokens_not_folded"] = unfolded
        return errors

    def _discard(self, reason: str) -> None:
        while (drawn := self._outbox.take()) is not None:
            self._ledger.drop(drawn.frames, reason)

    def _swallow(self, error: Exception) -> None:
        """The host never hears of it, not even in strict mode: that is the contract of `export`."""
        self._shield.note(f"export:{type(error).__name__}")
        self._shield.say_once("export", "a block could not be handed over: %s", error)


_forkable: weakref.WeakSet[InMemoryExporter | GrpcExporter] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for exporter in tuple(_forkable):
        exporter._after_fork()


def _at_exit() -> None:
    for exporter in tuple(_forkable):
        exporter.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)


def _engine_to_pb(figures: Figures | None) -> dict[str, Any]:
    """The fields of the account that a serving engine fills."""
    if figures is None:
        return {}
    return {
        "waiting_requests": figures.waiting,
        "kv_capacity_bytes": figures.kv_bytes,
        "engine": agent_pb2.EngineFigures(
            name=figures.name,
            version=figures.version,
            kv_blocks=figures.kv_blocks,
            kv_blocks_used=figures.kv_blocks_used,
            kv_blocks_evicted=figures.evicted,
            preemptions=figures.preemptions,
            prefix_tokens_asked=figures.prefix_asked,
            prefix_tokens_found=figures.prefix_found,
            requests_scheduled=figures.queued,
            queue_s=figures.queue_ns / 1e9,
        ),
    }


def _version() -> str:
    try:
        return version("fulgurite")
    except PackageNotFoundError:  # run from the sources
        return "0"
