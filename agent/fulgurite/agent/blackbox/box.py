"""The models behind one client: a replica for each, whose inside is not measured and which says so."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fulgurite.agent import config
from fulgurite.agent.blackbox.answer import Answer, Taker, Wish
from fulgurite.agent.exporter import Exporter, GrpcExporter
from fulgurite.agent.sampling import Budget
from fulgurite.agent.shield import Shield
from fulgurite.agent.surroundings import current_ref
from fulgurite.wire.channels import CHANNELS
from fulgurite.wire.topology import BLACK_BOX, Topology

REASON = "the model runs elsewhere: its inside cannot be reached"
CLOSED = "closed by the client"
MOST_MODELS = 16  # behind one client
_OUTSIDE = frozenset({"identity", "uncertainty", "time"})


def topology_of(model: str) -> Topology:
    """The shape of a model of which nothing but the name is known: one layer stands for all of it."""
    inside = sorted(c.name for c in CHANNELS if c.family not in _OUTSIDE or c.level == "deep")
    return Topology(
        model_name=model,
        architecture=BLACK_BOX,
        layers=1,
        heads=0,
        kv_heads=0,
        head_dim=0,
        hidden_size=0,
        ffn_size=0,
        vocab_size=0,
        layer_kinds=("none",),
        unavailable=tuple((name, REASON) for name in ("entropy", "logprob_sampled", *inside)),
    )


@dataclass(slots=True)
class _Model:
    """One model: where its frames go, and how it is."""

    exporter: Exporter
    budget: Budget
    running: set[Answer] = field(default_factory=set)
    overhead_ratio: float = float("nan")
    steps: Any = field(default_factory=itertools.count)


class Box:
    """All that is asked through one client.

    Parameters
    ----------
    exporter : for every model; None: a link to the collector for each.
    address : of the server, to be told with the replica.
    """

    def __init__(
        self, settings: config.Settings, exporter: Exporter | None, shield: Shield, *, address: str
    ) -> None:
        self.settings = settings
        self.shield = shield
        self._exporter = exporter
        self._address = address
        self._models: dict[str, _Model] = {}

    def ask(self, model: str, wish: Wish) -> Asked | None:
        """A streamed answer is asked for; None where nothing of it is wanted."""
        found = self._model(model)
        if found is None or found.exporter.wanted_level() == "off":
            return None
        taker = Taker(
            export=found.exporter.export,
            event=found.exporter.event,
            step=found.steps.__next__,
            has_texts=self.settings.tokens == "text",
        )
        answer = Answer(current_ref(), taker, wish, asked_ns=time.time_ns())
        found.running.add(answer)
        self._report(found)
        return Asked(
            answer,
            self.shield,
            spent=found.budget.spend,
            left=lambda: self._left(found, answer),
        )

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was heard is settled; False where it was not in time."""
        settled = [found.exporter.flush(timeout_s) for found in tuple(self._models.values())]
        return all(settled)

    def close(self, timeout_s: float = 2.0) -> None:
        """Deliver what is pending, and stop."""
        for found in tuple(self._models.values()):
            found.exporter.close(timeout_s)

    def _model(self, name: str) -> _Model | None:
        known = self._models.get(name)
        if known is not None:
            return known
        if len(self._models) >= MOST_MODELS:
            self.shield.say_once(
                "models", "over %d models through one client: the rest is not observed", MOST_MODELS
            )
            return None
        made = _Model(self._attached(name), Budget(None))  # links up with its first frame
        return self._models.setdefault(name, made)

    def _attached(self, name: str) -> Exporter:
        settings = self.settings
        exporter = self._exporter or GrpcExporter(
            settings.endpoint, access=settings.access, spool=settings.spool, spool_bytes=settings.spool_bytes
        )
        exporter.attach(
            topology_of(name),
            level="pulse",
            ceiling="pulse",
            tokens=settings.tokens,
            resource={**config.resource(model_name=name), **_engine(), **_server(self._address)},
        )
        return exporter

    def _left(self, found: _Model, answer: Answer) -> None:
        found.running.discard(answer)
        verdict = found.budget.verdict(time.perf_counter_ns())  # over whole answers: chunks come in bursts
        if verdict is not None:
            found.overhead_ratio = verdict[0]
        self._report(found)

    def _report(self, found: _Model) -> None:
        found.exporter.report(
            overhead_ratio=found.overhead_ratio,
            level="pulse",
            running_requests=len(found.running),
            kv_bytes=0,
        )


class Asked:
    """A streamed answer that is under way, as the stream sees it: nothing in it can fail."""

    __slots__ = ("_answer", "_is_over", "_last_ns", "_left", "_shield", "_spent")

    def __init__(
        self,
        answer: Answer,
        shield: Shield,
        *,
        spent: Callable[[int, int], None],
        left: Callable[[], None],
    ) -> None:
        self._answer = answer
        self._shield = shield
        self._spent = spent
        self._left = left
        self._is_over = False
        self._last_ns = time.perf_counter_ns()

    def heard(self, chunk: Any) -> None:
        """A chunk has come."""
        if self._shield.is_out("chunk"):
            return
        entered = time.perf_counter_ns()
        with self._shield.at("chunk"):
            self._answer.heard(chunk, time.time_ns())
            now = time.perf_counter_ns()
            self._spent(now - entered, now - self._last_ns)
            self._last_ns = now

    def over(self, failure: str = "") -> None:
        """No more will come."""
        if self._is_over:
            return
        self._is_over = True
        with self._shield.at("over"):
            self._answer.over(time.time_ns(), failure=failure)
            self._left()

    def __del__(self) -> None:
        self.over(CLOSED)  # it was dropped before its end


def _engine() -> dict[str, str]:
    package = sys.modules.get("openai")
    version = str(getattr(package, "__version__", "")) if package is not None else ""
    told = {config.ENGINE: "a client of openai"}
    return {**told, config.ENGINE_VERSION: version} if version else told


def _server(address: str) -> dict[str, str]:
    host = urlsplit(address).hostname
    return {"server.address": host} if host else {}
