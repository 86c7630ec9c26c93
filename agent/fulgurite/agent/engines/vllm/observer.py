"""One model of vLLM under observation, one step at a time: open it, let the layers leave their rows, reduce
them when the tokens are known, hand the frames over.

Everything runs on the engine's thread; nothing waits for anything. `worker` calls it and shields it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import is_
from typing import Any

import numpy as np
import torch

from fulgurite.agent import reduce
from fulgurite.agent.anatomy import Anatomy
from fulgurite.agent.awaited import Awaited
from fulgurite.agent.engines.flat.attended import Attended
from fulgurite.agent.engines.flat.desk import Desk
from fulgurite.agent.engines.flat.measure import Measure
from fulgurite.agent.engines.flat.step import Step
from fulgurite.agent.engines.vllm.rows import Known, Rows, Sampled, sampled
from fulgurite.agent.exporter import Exporter
from fulgurite.agent.figures import Figures
from fulgurite.agent.late import LateBlock
from fulgurite.agent.routing import heads_of
from fulgurite.agent.shield import Shield
from fulgurite.agent.texts import TokenTexts
from fulgurite.agent.thrift import Thrift
from fulgurite.agent.unreduced import Unreduced
from fulgurite.wire.channels import Level
from fulgurite.wire.frame import RequestEvent, RequestRef

Array = np.ndarray[Any, Any]
Blocks = Sequence[Sequence[int]]


@dataclass(slots=True, eq=False)
class _Open:
    """The step that runs.

    Attributes
    ----------
    kept : rows whose layers are kept: the first so many.
    """

    rows: Rows
    level: Level
    number: int
    started_ns: int
    kept: int = 0
    logits: torch.Tensor | None = None
    own_ns: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Whose:
    """Which request each row of a step is of.

    Attributes
    ----------
    known : of each row.
    request, sequence, prompt : ndarray of int, shape (n,), as of a `Step`; nobody writes into them.
    """

    known: list[Known]
    refs: tuple[RequestRef, ...]
    request: Array
    sequence: Array
    prompt: Array

    @classmethod
    def of(cls, known: list[Known]) -> _Whose:
        refs = tuple(dict.fromkeys(one.ref for one in known))
        index = {ref: i for i, ref in enumerate(refs)}
        return cls(
            known,
            refs,
            np.array([index[one.ref] for one in known]),
            np.array([one.sequence for one in known]),
            np.array([one.prompt for one in known]),
        )


class Observer:
    """What is measured on one model.

    Parameters
    ----------
    measure : None where the layers cannot be measured: then there are pulses alone.
    block_bytes : bytes of one block of each group of key-value caches.
    texts : token texts, None where they are not switched on.
    ranks : processes that the model is split over, each with a cache of its own and as large.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        *,
        exporter: Exporter,
        thrift: Thrift,
        shield: Shield,
        desk: Desk,
        measure: Measure | None,
        texts: TokenTexts | None = None,
        ranks: int = 1,
    ) -> None:
        self.anatomy = anatomy
        self.exporter = exporter
        self.thrift = thrift
        self.shield = shield
        self.desk = desk
        self.measure = measure
        self.texts = texts
        self.ranks = ranks
        self.known: dict[str, Known] = {}
        self.figures = Figures()
        self.block_bytes: tuple[int, ...] = ()
        self.groups: Mapping[int, int] = {}  # by layer, the group of caches that it is in
        self._numbers = itertools.count()
        self._open: _Open | None = None
        self._whose: _Whose | None = None
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()
        windows = [layer.window if layer.heads else -1 for layer in anatomy.layers]
        self._windows = np.array(windows, np.int64)
        self._looking = tuple(heads_of(layer) for layer in anatomy.layers)

    # --- one step

    def begin(self, rows: Rows, chosen: torch.Tensor, started_ns: int) -> None:
        """The forward pass is about to run; the rows `chosen` of it (int64) give the logits."""
        entered = time.perf_counter_ns()
        level = self.thrift.hear()
        self.desk.shut()
        self._open = None
        if level == "off":
            return
        number = next(self._numbers)
        step = _Open(rows, self.thrift.level_of(number), number, started_ns)
        if step.level != "pulse" and self.measure is not None:
            is_deep, attended = step.level == "deep", self.measure.attended
            turn = attended.turn(number) if is_deep and attended is not None else frozenset()
            step.kept = self.desk.open(chosen, deep=is_deep, turn=turn)
        self._open = step
        step.own_ns += time.perf_counter_ns() - entered

    def see(self, logits: torch.Tensor | None, *, is_overwritten: bool) -> None:
        """The forward pass is over: these are the raw logits of the rows.

        Parameters
        ----------
        is_overwritten : the engine is going to write into them.
        """
        step = self._open
        self.desk.shut()
        if step is None or logits is None:
            self._open = None
            return
        entered = time.perf_counter_ns()
        step.logits = logits.clone() if is_overwritten else logits
        step.own_ns += time.perf_counter_ns() - entered

    def commit(self, tokens: Sequence[Sequence[int]], blocks: Mapping[str, Blocks], *, requests: int) -> None:
        """The tokens that followed are known.

        Parameters
        ----------
        tokens : of each request of the batch, in its order.
        blocks : by request, the numbers of the blocks that it holds, of each group of caches.
        requests : of the batch.
        """
        step, self._open = self._open, None
        if step is None or step.logits is None:
            return
        entered = time.perf_counter_ns()
        found = sampled(step.rows, tokens, self.known)
        for start, end, level in self._portions(step, found):
            self._hand_over(step, _part(found, start, end), blocks, level, requests)
        step.own_ns += time.perf_counter_ns() - entered + self.desk.take_ns()
        self._account(step)

    def _portions(self, step: _Open, found: Sampled) -> list[tuple[int, int, Level]]:
        """Runs of the sampled tokens that are captured alike: rows that found no place have pulses alone."""
        count = found.row.size
        if not count:
            return []
        if step.level == "pulse" or self.measure is None:
            return [(0, count, "pulse")]
        if not self.measure.is_written():
            for kind in self.desk.errors:
                self.shield.note(kind)
            self.shield.note("vllm:unseen")
            self.shield.say_once("unseen", "a pass of the model was not seen by our taps: pulses alone")
            return [(0, count, "pulse")]
        fitting = int(np.searchsorted(found.row, step.kept))
        if fitting < count:
            self.shield.note("vllm:no_room")
        runs: list[tuple[int, int, Level]] = [(0, fitting, step.level), (fitting, count, "pulse")]
        return [run for run in runs if run[0] < run[1]]

    def _hand_over(
        self, step: _Open, found: Sampled, blocks: Mapping[str, Blocks], level: Level, requests: int
    ) -> None:
        with torch.inference_mode():
            unreduced = self._left(step, found, level)
            host, awaited = self._measured(step, found, level, blocks) if unreduced is None else ({}, None)
        names = [found.requests[i] for i in found.owner.tolist()]
        whose = self._whose_these([self.known[name] for name in names])
        made = Step(
            host,
            self.measure.layout if self.measure is not None else None,
            request=whose.request,
            sequence=whose.sequence,
            token=found.token,
            position=found.position,
            prompt=whose.prompt,
            windows=self._windows,
            kv_bytes=np.array([self._bytes(blocks.get(name, ())) for name in names], np.int64),
            level=level,
            requests=requests,
            number=step.number,
            started_ns=step.started_ns + self._epoch_ns,
            ended_ns=time.perf_counter_ns() + self._epoch_ns,
            experts=self._experts(found) if level != "pulse" else {},
            adapted=step.rows.adapted[found.owner],
            unreduced=unreduced,
            awaited=awaited,
            looking=self._looking,
        )
        texts = self.texts.of(found.token) if self.texts is not None else None
        self.exporter.export(
            LateBlock(whose.refs, made.columns, rows=found.token.size, nbytes=made.nbytes, texts=texts)
        )

    def _whose_these(self, known: list[Known]) -> _Whose:
        """Of rows of these requests. Most steps are of those of the step before."""
        before = self._whose
        if before is None or len(before.known) != len(known) or not all(map(is_, before.known, known)):
            before = self._whose = _Whose.of(known)
        return before

    def _experts(self, found: Sampled) -> dict[str, Array]:
        routing = self.measure.routing if self.measure is not None else None
        if routing is None or self.shield.is_out("experts"):
            return {}
        with self.shield.at("experts"):
            return routing.columns(_run(found.row))
        return {}

    def _bytes(self, blocks: Blocks) -> int:
        if not self.block_bytes or len(blocks) != len(self.block_bytes):
            return -1
        return sum(len(held) * size for held, size in zip(blocks, self.block_bytes, strict=True))

    def _left(self, step: _Open, found: Sampled, level: Level) -> Unreduced | None:
        """The rows as they are, for the sending thread to reduce; None where that is to be done here."""
        if level == "pulse" or self.measure is None:
            return None
        if self.shield.is_out("logits") or self.shield.is_out("reduce") or self.shield.is_out("leave"):
            return None
        with self.shield.at("leave"):
            rows, picked = _picked(step, found)
            return self.measure.left(rows, picked, found.token, deep=level == "deep")
        return None

    def _measured(
        self, step: _Open, found: Sampled, level: Level, blocks: Mapping[str, Blocks]
    ) -> tuple[dict[str, Array], Awaited | None]:
        """What the layers and the logits tell, and what of it other processes are asked for."""
        rows, picked = _picked(step, found)
        tokens = torch.from_numpy(found.token).to(picked.device)
        results: dict[str, torch.Tensor] = {}
        awaited: Awaited | None = None
        if not self.shield.is_out("logits"):
            with self.shield.at("logits"):
                results.update(reduce.uncertainty(picked, tokens[:, None], full=level != "pulse"))
        if level == "pulse" or self.measure is None:
            return reduce.to_host(results) if results else {}, None
        places = rows if isinstance(rows, slice) else rows.to(self.desk.device)
        candidates = results.get("top_ids")
        if not self.shield.is_out("reduce"):
            with self.shield.at("reduce"):
                results.update(self.measure.layers(places, picked, tokens, candidates, deep=level == "deep"))
        if level == "deep" and not self.shield.is_out("contribution"):
            with self.shield.at("contribution"):
                awaited = self.measure.awaited(
                    places, picked, tokens, candidates, number=step.number, shield=self.shield
                )
        attended = self.measure.attended
        if level == "deep" and attended is not None and not self.shield.is_out("attention"):
            with self.shield.at("attention"):
                results.update(self._attended(attended, places, found, blocks))
        return reduce.to_host(results) if results else {}, awaited

    def _attended(
        self,
        attended: Attended,
        rows: torch.Tensor | slice,
        found: Sampled,
        blocks: Mapping[str, Blocks],
    ) -> dict[str, torch.Tensor]:
        """Where the heads of the layers whose turn it was looked."""
        assert self.measure is not None
        held = [blocks.get(found.requests[i], ()) for i in found.owner.tolist()]
        handed = partial(self.measure.handed, rows=rows)
        return attended.told(rows, handed, found.position, partial(_pages, held, self.groups), self.shield)

    # --- what is told besides

    def tell(self, event: RequestEvent) -> None:
        """What happened to a request."""
        self.exporter.event(event)

    def forget(self, requests: Sequence[str]) -> None:
        """These requests of the engine are over."""
        for name in requests:
            self.known.pop(name, None)

    def _account(self, step: _Open) -> None:
        now = time.perf_counter_ns()
        self.thrift.budget.spend(step.own_ns, now - step.started_ns, is_deep=step.level == "deep")
        if self.thrift.judge(now) is not None:
            self.report()

    def report(self) -> None:
        """How the engine and we are."""
        block, told = self.ranks * max(self.block_bytes, default=0), self.figures
        self.exporter.report(
            overhead_ratio=self.thrift.overhead_ratio,
            level=self.thrift.demand.level,
            running_requests=told.running,
            kv_bytes=told.kv_blocks_used * block,
            figures=replace(told, kv_bytes=told.kv_blocks * block),
        )


def _pages(held: Sequence[Blocks], groups: Mapping[int, int], row: int, layer: int) -> Sequence[int]:
    """The blocks in which the keys are that a row saw in a layer."""
    return held[row][groups[layer]]


def _picked(step: _Open, found: Sampled) -> tuple[torch.Tensor | slice, torch.Tensor]:
    """The rows that tokens followed from, and their logits."""
    logits = step.logits
    assert logits is not None
    rows = _run(found.row)
    return rows, logits[rows] if isinstance(rows, slice) else logits.index_select(0, rows.to(logits.device))


def _run(rows: Array) -> torch.Tensor | slice:
    """As a slice, where they follow on one another."""
    if rows.size and int(rows[-1]) - int(rows[0]) == rows.size - 1:
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return torch.from_numpy(rows)


def _part(found: Sampled, start: int, end: int) -> Sampled:
    return Sampled(
        found.row[start:end],
        found.token[start:end],
        found.position[start:end],
        found.owner[start:end],
        found.requests,
        found.drafted,
        found.accepted,
    )
