"""One model under observation: what `instrument` returns."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import uuid
import weakref
from types import TracebackType
from typing import Any

from torch import nn

from fulgurite.agent import config
from fulgurite.agent.anatomy import Anatomy, dissect
from fulgurite.agent.capture import Capture
from fulgurite.agent.engines.transformers import Engine
from fulgurite.agent.exporter import Exporter, InMemoryExporter
from fulgurite.agent.rank_exporters import LeadExporter, MemberExporter, joined
from fulgurite.agent.rank_group import group_of
from fulgurite.agent.shield import Shield
from fulgurite.agent.stats import AgentStats
from fulgurite.agent.texts import TokenTexts
from fulgurite.agent.thrift import Thrift
from fulgurite.wire.channels import LEVELS, Level
from fulgurite.wire.topology import Topology

logger = logging.getLogger("fulgurite.agent")


class Agent:
    """Observes one model until it is closed. Made by `fulgurite.agent.instrument`; also a context manager."""

    def __init__(
        self,
        model: nn.Module,
        exporter: Exporter,
        settings: config.Settings,
        *,
        tokenizer: Any = None,
        outer: nn.Module | None = None,
    ) -> None:
        self.settings = settings
        self.exporter = exporter
        self._shield = Shield()
        self._model = weakref.ref(model)
        self._closed = False
        self._lock = threading.Lock()
        anatomy = dissect(model)
        exporter = self.exporter = self._joined(exporter, anatomy)
        texts = TokenTexts(tokenizer) if tokenizer is not None and settings.tokens == "text" else None
        self._thrift = Thrift.of(
            settings, exporter=exporter, shield=self._shield, remedy="set_level() or a larger budget="
        )
        self._demand = self._thrift.demand
        self._capture = Capture(
            anatomy,
            exporter=exporter,
            thrift=self._thrift,
            shield=self._shield,
            texts=texts,
        )
        self._capture.on_wired = self._announce
        self._capture.look_again = self._look_again
        self._resource = {**config.resource(model_name=anatomy.topology.model_name), **_engine()}
        self._engine = Engine(model, self._capture, outer)

    def _joined(self, exporter: Exporter, anatomy: Anatomy) -> Exporter:
        """Of a model that is split over processes, all take part in one replica; what stays in a process
        does not."""
        if not isinstance(exporter, InMemoryExporter):
            with self._shield.at("ranks"):
                tells_tokens = self.settings.tokens != "off"
                found = joined(exporter, group_of(anatomy), self._shield, tells_tokens=tells_tokens)
                if isinstance(found, LeadExporter | MemberExporter):
                    weakref.finalize(self._model(), found.leave).atexit = False
                return found
        return exporter

    def start(self) -> None:
        """Say what is observed, then observe it."""
        self._announce()
        for channel, reason in self.topology.unavailable:
            self._shield.say_once(channel, "%s is not measured: %s", channel, reason)
        if self.settings.level != "off":
            self._capture.prepare()
            self._capture.install()
            self._engine.install()
        _running.add(self)

    def _look_again(self) -> Anatomy | None:
        model = self._model()
        return None if model is None else dissect(model)

    def _announce(self) -> None:
        self.exporter.attach(
            self.topology,
            level=self._demand.level,
            ceiling=self.settings.level,
            tokens=self.settings.tokens,
            resource=self._resource,
        )

    def renew(self) -> None:
        """After a fork: another process, another replica."""
        with self._shield.at("fork"):
            self._lock = threading.Lock()
            self._capture.forked()
            instance = uuid.uuid4().hex[:12]  # even where the environment names one: the parent has that
            self._resource = {
                **self._resource,
                "service.instance.id": instance,
                "process.pid": str(os.getpid()),
            }
            if not self._closed:
                self._announce()

    @property
    def topology(self) -> Topology:
        """The model's shape, and what cannot be measured on it."""
        return self._capture.anatomy.topology

    @property
    def level(self) -> Level:
        """The level in force."""
        return "off" if self._closed else self._demand.level

    def set_level(self, level: str) -> None:
        """Capture at `level` from the next step on. This beats what a collector asks for.

        Raises
        ------
        ValueError
            For a level that does not exist, or that is above the one that the model was instrumented with.
        """
        known = next((name for name in LEVELS if name == level), None)
        if known is None:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {level!r}")
        self._demand.ask(known)
        self._thrift.rate.restore()
        self._apply()

    def pause(self) -> None:
        """Capture nothing, with no hook left in the model, until `resume`."""
        self._demand.pause()
        self._apply()

    def resume(self) -> None:
        """Undo `pause`."""
        self._demand.resume()
        self._apply()

    def _apply(self) -> None:
        with self._lock, self._shield.at("apply"):
            if self._closed or self.settings.level == "off":
                return
            if self._demand.level == "off" and not self._capture.is_compiled:
                self._capture.remove()
                self._engine.remove()
            else:  # a graph does not see hooks that come back: there the gate is shut, and they stay
                self._capture.install()
                self._engine.install()

    def stats(self) -> AgentStats:
        """What was captured, where it went, and what it cost."""
        told = self.exporter.stats()
        errors = dict(told.errors)
        for kind, count in self._shield.errors.items():
            errors[kind] = errors.get(kind, 0) + count
        if unopened := self._engine.unopened:
            errors["compiled:unopened"] = unopened
            self._shield.say_once(
                "unopened",
                "a compiled model ran outside of generate(): no frames are made of such passes "
                "(instrument the compiled module itself, or compile model.forward)",
            )
        return AgentStats(
            captured=told.captured,
            acknowledged=told.acknowledged,
            pending=told.pending,
            dropped=dict(told.dropped),
            errors=errors,
            level=self.level,
            ceiling=self.settings.level,
            steps=self._capture.steps,
            overhead_ratio=self._thrift.overhead_ratio,
            deep_ratio=self._thrift.rate.value,
            gram_bytes=self._capture.gram_bytes,
            shelf_bytes=self._capture.shelf.nbytes,
            folded=told.folded,
            spooled_frames=told.spooled_frames,
            spooled_bytes=told.spooled_bytes,
            clock_offset_s=told.clock_offset_s,
            round_trip_s=told.round_trip_s,
            unavailable=dict(self.topology.unavailable),
        )

    def flush(self, timeout_s: float = 2.0) -> bool:
        """Wait until every frame is settled; False where it was not in time."""
        return self.exporter.flush(timeout_s)

    def close(self, timeout_s: float = 2.0) -> None:
        """Take every trace of us out of the model, and deliver what is pending. May be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        _running.discard(self)
        with self._shield.at("close"):
            self._capture.remove()
            self._engine.remove()
            for request in self._engine.orphaned():
                self._engine.loop_ended(request)
            self.exporter.close(timeout_s)

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _engine() -> dict[str, str]:
    """Which library runs the model, and its version; nothing where it is none that we know."""
    found = getattr(sys.modules.get("transformers"), "__version__", None)
    return {} if found is None else {config.ENGINE: "transformers", config.ENGINE_VERSION: str(found)}


_running: weakref.WeakSet[Agent] = weakref.WeakSet()


def _close_at_exit() -> None:
    for agent in tuple(_running):
        agent.close(timeout_s=1.0)


def _renew_in_child() -> None:
    for agent in tuple(_running):
        agent.renew()


atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
