"""One model of SGLang under observation: a pass at a time, and its frames when the scheduler has counted the
tokens.

SGLang may compute a step ahead: a row whose request turns out to be over is thrown away by its scheduler. So
a pass is reduced as soon as its tokens are known, and handed over when the scheduler says which of them
count. Everything runs on the scheduler's thread; nothing waits for anything.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from fulgurite.agent import reduce
from fulgurite.agent.anatomy import Anatomy
from fulgurite.agent.engines.flat.desk import Desk
from fulgurite.agent.engines.flat.measure import Measure
from fulgurite.agent.engines.flat.step import Step
from fulgurite.agent.exporter import Exporter
from fulgurite.agent.figures import Figures
from fulgurite.agent.late import LateBlock
from fulgurite.agent.routing import heads_of
from fulgurite.agent.shield import Shield
from fulgurite.agent.texts import TokenTexts
from fulgurite.agent.thrift import Thrift
from fulgurite.wire.channels import Level
from fulgurite.wire.frame import RequestRef

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the rows of a pass saw of the cache.

    Attributes
    ----------
    places : Tensor of int, shape (requests, positions), where each position of a request is.
    request : Tensor of int, shape (n,), of each row, its request in there.
    counts : ndarray of int64, shape (n,), how many positions it saw, its own among them.
    """

    places: torch.Tensor
    request: torch.Tensor
    counts: Array

    def where(self, row: int) -> torch.Tensor:
        """The places of what a row saw."""
        return self.places[int(self.request[row]), : int(self.counts[row])]


@dataclass(slots=True, eq=False)
class _Open:
    """The pass that runs.

    Attributes
    ----------
    kept : rows whose layers are kept: the first so many.
    seen : what its rows saw, where that is known.
    """

    level: Level
    number: int
    started_ns: int
    seen: Seen | None = None
    kept: int = 0
    logits: torch.Tensor | None = None
    own_ns: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A pass that was reduced, until its tokens count.

    Attributes
    ----------
    tokens : ndarray of int64, shape (n,), one of each row.
    portions : (start, end, level, results) of rows that were captured alike.
    """

    tokens: Array
    portions: tuple[tuple[int, int, Level, dict[str, Array]], ...]
    number: int
    started_ns: int
    ended_ns: int


@dataclass(frozen=True, slots=True)
class Counted:
    """A token that counts: `row` of the pass, its request, its position and the length of the prompt."""

    row: int
    ref: RequestRef
    position: int
    prompt: int


class Observer:
    """What is measured on one model.

    Parameters
    ----------
    measure : None where the layers cannot be measured: then there are pulses alone.
    position_bytes : of one position of the key-value cache over all layers; 0 where it is not known.
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
        position_bytes: int,
        texts: TokenTexts | None = None,
    ) -> None:
        self.exporter = exporter
        self.shield = shield
        self.figures = Figures()
        self.thrift = thrift
        self._desk, self._measure = desk, measure
        self._position_bytes = position_bytes
        self._texts = texts
        self._numbers = itertools.count()
        self._open: _Open | None = None
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()
        windows = [layer.window if layer.heads else -1 for layer in anatomy.layers]
        self._windows = np.array(windows, np.int64)
        self._looking = tuple(heads_of(layer) for layer in anatomy.layers)

    def begin(self, chosen: torch.Tensor, seen: Callable[[], Seen | None]) -> None:
        """A forward pass is about to run; the rows `chosen` (int64) of it give the logits.

        Parameters
        ----------
        seen : tells what they see, in steps that are looked at deeply.
        """
        entered = time.perf_counter_ns()
        level = self.thrift.hear()
        self._desk.shut()
        self._open = None
        if level == "off":
            return
        number = next(self._numbers)
        step = _Open(self.thrift.level_of(number), number, entered)
        if step.level != "pulse" and self._measure is not None:
            is_deep, attended = step.level == "deep", self._measure.attended
            turn: frozenset[int] = frozenset()
            if is_deep and attended is not None:
                step.seen, turn = seen(), attended.turn(number)
            step.kept = self._desk.open(chosen, deep=is_deep, turn=turn)
        self._open = step
        step.own_ns += time.perf_counter_ns() - entered

    def first(self, logits: torch.Tensor) -> None:
        """The pass that was looked at is over; its tokens are told without the inside."""
        self._open = _Open("pulse", next(self._numbers), time.perf_counter_ns(), logits=logits.clone())

    def see(self, logits: torch.Tensor | None) -> None:
        """The forward pass is over: these are the raw logits (n, V), which sampling writes into."""
        self._desk.shut()
        step = self._open
        if step is None:
            return
        entered = time.perf_counter_ns()
        step.logits = None if logits is None else logits.clone()
        step.own_ns += time.perf_counter_ns() - entered

    def sampled(self, tokens: torch.Tensor) -> Held | None:
        """Reduce the pass: `tokens` (n,) were sampled from its rows."""
        step, self._open = self._open, None
        if step is None or step.logits is None or tokens.shape[0] != step.logits.shape[0]:
            return None
        entered = time.perf_counter_ns()
        with torch.inference_mode():
            portions = tuple(
                (start, end, level, self._reduced(step, tokens, start, end, level))
                for start, end, level in self._portions(step, int(tokens.shape[0]))
            )
        ended = time.perf_counter_ns()
        step.own_ns += ended - entered + self._desk.take_ns()
        self._account(step)
        found = tokens.detach().to("cpu", torch.int64).numpy()
        return Held(found, portions, step.number, step.started_ns + self._epoch_ns, ended + self._epoch_ns)

    def _portions(self, step: _Open, rows: int) -> list[tuple[int, int, Level]]:
        if step.level == "pulse" or self._measure is None:
            return [(0, rows, "pulse")]
        if not self._measure.is_written():
            for kind in self._desk.errors:
                self.shield.note(kind)
            self.shield.note("sglang:unseen")
            self.shield.say_once(
                "unseen",
                "a pass of the model was not seen by our taps (a captured graph?): pulses alone; "
                "--disable-cuda-graph shows its inside",
            )
            return [(0, rows, "pulse")]
        if step.kept < rows:
            self.shield.note("sglang:no_room")
        runs: list[tuple[int, int, Level]] = [(0, step.kept, step.level), (step.kept, rows, "pulse")]
        return [run for run in runs if run[0] < run[1]]

    def _reduced(
        self, step: _Open, tokens: torch.Tensor, start: int, end: int, level: Level
    ) -> dict[str, Array]:
        assert step.logits is not None
        logits = step.logits[start:end].float()
        taken = tokens[start:end].to(logits.device, torch.int64)
        results: dict[str, torch.Tensor] = {}
        if not self.shield.is_out("logits"):
            with self.shield.at("logits"):
                results.update(reduce.uncertainty(logits, taken[:, None], full=level != "pulse"))
        if level != "pulse" and self._measure is not None and not self.shield.is_out("reduce"):
            with self.shield.at("reduce"):
                candidates = results.get("top_ids")
                results.update(
                    self._measure.layers(slice(start, end), logits, taken, candidates, deep=level == "deep")
                )
        if level == "deep" and step.seen is not None and not self.shield.is_out("attention"):
            with self.shield.at("attention"):
                results.update(self._attended(step.seen, start, end))
        return reduce.to_host(results) if results else {}

    def _attended(self, seen: Seen, start: int, end: int) -> dict[str, torch.Tensor]:
        """Where the heads of the layers whose turn it was looked."""
        attended = self._measure.attended if self._measure is not None else None
        if attended is None or self._measure is None:
            return {}
        rows = slice(start, end)
        handed = partial(self._measure.handed, rows=rows)
        return attended.told(
            rows, handed, seen.counts[rows], lambda row, _: seen.where(start + row), self.shield
        )

    def counted(self, held: Held, tokens: Sequence[Counted], *, requests: int) -> None:
        """Hand the frames of those `tokens` of a pass over that count."""
        entered = time.perf_counter_ns()
        for start, end, level, host in held.portions:
            of = [one for one in tokens if start <= one.row < end]
            if of:
                self._hand_over(held, of, level, host, start, end, requests)
        self.thrift.budget.spend(time.perf_counter_ns() - entered, 0)

    def _hand_over(
        self,
        held: Held,
        of: Sequence[Counted],
        level: Level,
        host: dict[str, Array],
        start: int,
        end: int,
        requests: int,
    ) -> None:
        refs = tuple(dict.fromkeys(one.ref for one in of))
        index = {ref: i for i, ref in enumerate(refs)}
        rows = np.array([one.row - start for one in of])
        whole = np.zeros((4, end - start), np.int64)
        whole[0, rows] = [index[one.ref] for one in of]
        whole[1, rows] = held.tokens[[one.row for one in of]]
        whole[2, rows] = [one.position for one in of]
        whole[3, rows] = [one.prompt for one in of]
        request, token, position, prompt = whole
        size = self._position_bytes
        made = Step(
            host,
            self._measure.layout if self._measure is not None else None,
            request=request,
            sequence=np.zeros(end - start, np.int64),
            token=token,
            position=position,
            prompt=prompt,
            windows=self._windows,
            kv_bytes=position * size if size else np.full(end - start, -1, np.int64),
            level=level,
            requests=requests,
            number=held.number,
            started_ns=held.started_ns,
            ended_ns=held.ended_ns,
            looking=self._looking,
        )
        is_whole = len(of) == end - start

        def columns() -> dict[str, Array]:
            found = made.columns()
            return found if is_whole else {name: column[rows] for name, column in found.items()}

        texts = self._texts.of(token[rows]) if self._texts is not None else None
        self.exporter.export(LateBlock(refs, columns, rows=len(of), nbytes=made.nbytes, texts=texts))

    # --- what is told besides

    def _account(self, step: _Open) -> None:
        now = time.perf_counter_ns()
        self.thrift.budget.spend(step.own_ns, now - step.started_ns, is_deep=step.level == "deep")
        if self.thrift.judge(now) is not None:
            self.report()

    def report(self) -> None:
        """How the engine and we are."""
        told, size = self.figures, self._position_bytes
        self.exporter.report(
            overhead_ratio=self.thrift.overhead_ratio,
            level=self.thrift.demand.level,
            running_requests=told.running,
            kv_bytes=told.kv_blocks_used * size,
            figures=replace(told, kv_bytes=told.kv_blocks * size),
        )
