"""One forward pass at a time: open it, let probes keep, reduce it when its tokens are known, hand the frames
over.

The first pass at level `heads` shows how the model adds its parts to the residual stream (`wiring`); from
then on only what is needed is kept. Everything runs on the host's thread; nothing waits for anything.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from fulgurite.agent import reduce
from fulgurite.agent.anatomy import Anatomy, declared
from fulgurite.agent.assemble import PackedStep, Step
from fulgurite.agent.contribution import CHANNELS as CONTRIBUTIONS
from fulgurite.agent.contribution import Attribution
from fulgurite.agent.deep import Deep, Reasons
from fulgurite.agent.exporter import Exporter
from fulgurite.agent.headweights import HeadWeights, norm_of
from fulgurite.agent.identity import Committed, Request
from fulgurite.agent.kv import CacheReading
from fulgurite.agent.late import LateBlock
from fulgurite.agent.lens import CHANNELS as LENS
from fulgurite.agent.lull_probe import LullProbe
from fulgurite.agent.measure import WITH_LAYERS, Measure
from fulgurite.agent.posts import Posts
from fulgurite.agent.probe_cost import probe_cost_ns
from fulgurite.agent.probes import Current, Pass, Probes
from fulgurite.agent.pulse_step import PulseStep
from fulgurite.agent.readout import Readout, find_readout
from fulgurite.agent.shelf import EVERY, NOBODY, ROWS, Place, Shelf
from fulgurite.agent.shield import Shield
from fulgurite.agent.texts import TokenTexts
from fulgurite.agent.thrift import Thrift
from fulgurite.agent.unmeasured import unmeasured
from fulgurite.agent.weights import Unreadable, Watched, identity_of
from fulgurite.agent.wiring import LayerWiring, Tap, wire
from fulgurite.wire.channels import LEVELS, Level
from fulgurite.wire.frame import RequestEvent

Array = np.ndarray[Any, Any]
_OF_DEEP = ("attention", "neurons", "lens_")
_OF_LAYERS = ("head_write", "ffn_write", "ffn_cosine", "residual_norm")
_PULSE_BYTES = 1024  # of a pulse, beside its row: columns of one number each, and the layers' caches
_UNROUTED = "not told in compiled passes: their graph did not leave what the experts are handed"
_UNSEEN = "not seen in compiled passes: the model has to be instrumented before it is compiled"


class Capture:
    """What is measured on one model.

    Parameters
    ----------
    anatomy : the model's parts.
    on_wired : called when the first pass showed that less can be measured than was said.
    look_again : finds the model's parts anew, where some were exchanged (adapters put on or taken off).
    texts : token texts, None where they are not switched on.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        *,
        exporter: Exporter,
        thrift: Thrift,
        shield: Shield,
        texts: TokenTexts | None = None,
    ) -> None:
        self.anatomy = anatomy
        self.exporter = exporter
        self.thrift = thrift
        self.demand = thrift.demand
        self.shield = shield
        self.texts = texts
        self.current = Current()
        self.steps = 0
        self._numbers = itertools.count()
        self.running: dict[str, Request] = {}
        self.on_wired: Any = None
        self._coming: tuple[int, Level, frozenset[int]] | None = None
        self.kept_places: set[tuple[int, str]] = set()
        self._lock = threading.Lock()
        self._in_flight: dict[int, weakref.ref[Pass]] = {}  # by thread
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()
        self.shelf = Shelf()
        self._is_deep = self.demand.ceiling == "deep"
        self._probes = Probes(self.current, shield, self.shelf)
        self._layout: reduce.Plan | None = None
        self._wiring: tuple[LayerWiring, ...] = ()
        self._opening = (0, 0)  # plan and slots of a pass that begins now, replaced as one
        self._counted = (-1, 0)  # plan, and how many hooks it has
        self._watched = Watched()
        self._fit()
        self.look_again: Callable[[], Anatomy | None] | None = None
        self._unsettled = True
        self._probe_ns = 0
        self._attribution: Attribution | None = None
        self._readout_mark: tuple[object, ...] = ()

    def _fit(self) -> None:
        """What holds the parts of the model that is there now."""
        anatomy = self.anatomy
        self._joints = _joints(anatomy)
        self._posts = Posts(anatomy, self._probes, is_deep=self._is_deep)
        self._weights = HeadWeights(anatomy.layers)
        self._lull = LullProbe(anatomy.unembedding, getattr(self.exporter, "lull", None), self.shield)
        every = self.thrift.rate.value >= 1.0
        self._deep = Deep(anatomy, self.current, self.shield, self.shelf, always=every)
        self._measures = Measure(
            anatomy.topology.layers,
            weights=self._weights,
            deep=self._deep,
            watched=self._watched,
            shield=self.shield,
        )
        if getattr(self.exporter, "exchanges", False):  # of a model that is split over processes
            self._measures.exchange = getattr(self.exporter, "exchange", None)

    def prepare(self) -> None:
        """What is computed before the first pass: the Gram matrices, and what a probe costs."""
        if LEVELS.index(self.demand.ceiling) < LEVELS.index("heads"):
            return
        self._probe_ns = probe_cost_ns()
        self._weights.prepare(self.shield)
        self._settle_weights()

    def install(self) -> None:
        """Put the probes in that the level in force needs; take out what it does not."""
        with self._lock:
            self.shelf.gate(self.demand.level != "off")
            self._lull.install() if self.demand.level != "off" else self._lull.remove()
            if self.is_compiled and self._layout is not None and len(self._probes):
                return  # a graph does not see hooks that come back: they stay
            self._probes.remove()
            self._deep.remove()
            self._opening = (self._probes.plan, 0)
            if LEVELS.index(self.demand.level) < LEVELS.index("heads") or not self.anatomy.layers:
                return
            self._unsettled = True
            if self._layout is None:
                self._posts.watch_candidates()
                slots = self._posts.candidate_slots
            else:
                self._posts.watch_plan(self._layout)
                slots = self._layout.slots
            self._posts.watch_experts()
            if self._is_deep:
                self._deep.install()
            self._opening = (self._probes.plan, slots)

    def remove(self) -> None:
        """Take every probe out."""
        with self._lock:
            self._lull.remove()
            self._probes.remove()
            self._deep.remove()
            self._opening = (self._probes.plan, 0)

    @property
    def is_compiled(self) -> bool:
        """Whether a compiled graph with our operators in it has run."""
        return self.shelf.is_used

    def forked(self) -> None:
        """In a child: no thread that could hold a lock, and no pass of one, lives on."""
        self._lock = threading.Lock()
        self.shield.forked()
        self.running.clear()

    @property
    def probes(self) -> int:
        """How many hooks are in the model's layers."""
        return len(self._probes)

    @property
    def gram_bytes(self) -> int:
        """Memory of the Gram matrices."""
        return self._weights.nbytes

    def open(self, batch: int, width: int) -> Pass | None:
        """A forward pass of `batch` rows and `width` positions begins; None where nothing is wanted."""
        started = time.perf_counter_ns()
        before = self.demand.level
        level = self.thrift.hear()
        if level != before:
            self.install()
        if level not in ("off", "pulse") and self._watched.has_changed():
            self.refresh()
        if level == "off":
            self.shelf.tick()
            self.current.passing = None
            return None
        plan, slots = self._opening
        passing = Pass(batch, width, slots, plan=plan)
        step = passing.step = self._count_step()
        passing.level = level
        if self._is_deep:
            passing.level = self.thrift.level_of(step)
            passing.looks = self._looks_of(step, passing.level)
        if self.shelf.is_used:
            self._tick(passing.level, passing.looks)
        passing.started_ns = started
        self.current.passing = passing
        self._takes_off(passing)
        return passing

    def _looks_of(self, step: int, level: Level) -> frozenset[int]:
        """The layers whose attention is looked at in a step: asked twice, it says the same."""
        if self._coming is None or self._coming[:2] != (step, level) or self._layout is None:
            every = self._layout is None or (level == "deep" and self.thrift.rate.value >= 1.0)
            self._coming = (step, level, self._deep.turn(level, every=every))
        return self._coming[2]

    def _tick(self, level: Level, looks: frozenset[int]) -> None:
        """Tell the shelf of the pass that begins, or of the one that comes."""
        turn = EVERY if len(looks) > 1 else next(iter(looks), NOBODY)
        self.shelf.tick(deep=level == "deep" or self._layout is None, turn=turn)

    def _tick_ahead(self) -> None:
        """The next pass may be one that nothing of ours sees begin."""
        level = self.thrift.level_of(self.steps)
        self._tick(level, self._looks_of(self.steps, level) if self._is_deep else frozenset())

    def _takes_off(self, passing: Pass) -> None:
        """The shelf holds one pass: those that run at the same time, in several threads, leave none."""
        passing.stamp, mine = self.shelf.stamp, threading.get_ident()
        if self._in_flight:
            for thread, other in tuple(self._in_flight.items()):
                running = other() if thread != mine else None
                if running is not None:
                    running.crowded = passing.crowded = True
        self._in_flight[mine] = weakref.ref(passing)

    def _count_step(self) -> int:
        step = next(self._numbers)  # no lock: another thread may hold it for as long as it learns the wiring
        self.steps = step + 1
        return step

    def close(self, passing: Pass, logits: torch.Tensor, cache: Any, *, copies: bool) -> None:
        """The forward pass is over: keep the logits of the rows that matter.

        Parameters
        ----------
        copies : the host may write into its logits, so that a reference would not do.
        """
        entered = time.perf_counter_ns()
        self.current.passing = None
        self._in_flight.pop(threading.get_ident(), None)
        passing.cache = cache
        rows = logits if logits.shape[1] == 1 else _last_logits(passing, logits)
        passing.logits = rows.clone() if copies and _shares(rows, logits) else rows
        if self._is_deep:
            self._deep.closes(passing)
            raw = passing.deep.get(("unembedded", 0)) if passing.deep else None
            if raw is not None:
                passing.deep["unembedded", 0] = _last_logits(passing, raw)
        if passing.level in WITH_LAYERS and self.anatomy.layers:
            with self.shield.at("wiring"):
                kept = passing.kept
                if not kept or (kept[0] is None and all(tensor is None for tensor in kept)):
                    self._fetch(passing)
                self._learn(passing)
        passing.own_ns += time.perf_counter_ns() - entered

    def recover(
        self, batch: int, width: int, logits: Place, *, positions: int, cache: Any, started_ns: int
    ) -> Pass | None:
        """A pass that no hook saw, because the whole of it was compiled.

        Parameters
        ----------
        logits : where its graph left them, if it did: of the last `positions` positions.
        """
        if self.demand.level == "off":
            return None
        plan, slots = self._opening
        passing = Pass(batch, width, slots, plan=plan)
        passing.step = self._count_step()
        passing.level = self.thrift.level_of(passing.step)
        if self._is_deep:
            passing.looks = self._looks_of(passing.step, passing.level)
        passing.started_ns = started_ns
        self._takes_off(passing)
        rows = logits.read(batch, positions, 1)
        if rows is None:
            return None
        passing.alive_logits = self.shelf.alive([logits], batch, positions)
        self.close(passing, rows, cache, copies=False)
        return passing

    def _fetch(self, passing: Pass) -> None:
        """No probe ran, so the pass was compiled: take what its graph left, where it left something."""
        places = self._probes.places(len(passing.kept)) if passing.plan == self._probes.plan else None
        alone = passing.last is None and not passing.crowded
        found = [place.read(passing.batch, passing.width, passing.keep) for place in places or ()]
        if not found or not alone or any(tensor is None for tensor in found):
            return
        passing.alive = self.shelf.alive(places or (), passing.batch, passing.width)
        if self._layout is not None or bool(passing.alive):
            passing.kept = list(found)
            self._fetch_experts(passing)
            if passing.level == "deep" or (self._is_deep and self._layout is None):
                self._deep.fetch(passing, now=self._layout is None)

    def _fetch_experts(self, passing: Pass) -> None:
        """How the tokens were routed: of all layers of experts, or of none."""
        places = self._probes.fetch_experts(passing)
        if places:
            passing.alive_experts = self.shelf.alive(places, passing.batch, passing.width)
            if self._layout is None and not passing.alive_experts:
                places = None  # nothing is learned from it
        if places is None:
            passing.extra, passing.alive_experts = {}, None

    def _went_unseen(self, passing: Pass) -> None:
        """Nothing of this pass's layers is there: that is not zero, it is nothing."""
        passing.level, passing.awaited = "pulse", None
        self.shield.note("compiled:unseen")
        if self.shield.say_once(
            "unseen",
            "a compiled pass was not seen by our probes, and gives no activity: instrument the model before "
            "it is compiled, run one pass at a time, of at most %d rows",
            ROWS,
        ):
            self._make_unavailable(dict.fromkeys(_OF_LAYERS, _UNSEEN))

    def commit(
        self,
        passing: Pass,
        request: Request,
        tokens: torch.Tensor | Array,
        stops: frozenset[int],
        *,
        committed_ns: int,
        lines: Committed | None = None,
        scores: torch.Tensor | None = None,
        owns_scores: bool = False,
        hand_over: Callable[[Step], None] | None = None,
    ) -> None:
        """The tokens that followed from `passing` are known: reduce, and hand the frames over.

        Parameters
        ----------
        tokens : of int64, shape (batch,), (batch, n) where one pass gave several, or (m,) with `lines`
        lines : which rows they followed from, where that is not one to one.
        scores : Tensor, shape (batch, V): what was sampled from, where processors changed the logits.
        owns_scores : nobody else writes into them from now on.
        hand_over : takes the step in place of the exporter.
        """
        entered = time.perf_counter_ns()
        passing.scores, passing.owns_scores = scores, owns_scores
        host = self._taken(passing, tokens, lines)
        ids = host.pop("tokens")
        if ids.dtype != np.int32 or ids.ndim != 1:
            ids = ids.reshape(-1).astype(np.int32)
        committed = lines if lines is not None else request.commit(ids, stops)
        if self.shelf.is_used:
            self._tick_ahead()
        if committed.real.size and ("logprob" in host or passing.unreduced is not None):
            step = self._step(passing, request, host, ids, committed, committed_ns)
            (hand_over or self.hand_over)(step)
        passing.own_ns += time.perf_counter_ns() - entered
        self._account(passing)

    def commit_pulse(
        self,
        passing: Pass,
        request: Request,
        fed: torch.Tensor,
        stops: frozenset[int],
        *,
        committed_ns: int,
        scores: torch.Tensor | None,
        owns_scores: bool,
    ) -> bool:
        """As `commit`, of a pass at level `pulse` in which every row goes on, all of which is left to whoever
        reads it; False where that cannot be. Whether the token of a lone row ends it is not looked at.

        Parameters
        ----------
        fed : Tensor of int64, shape (b, t), the texts with the tokens at their end. Not written to any more.
        """
        entered, logits, rows = time.perf_counter_ns(), passing.logits, passing.batch
        if logits is None or not (logits.is_cpu and fed.is_cpu and request.all_run):
            return False
        if passing.alive_logits is not None or passing.keep != 1 or self.shelf.is_used:
            return False
        if self.texts is not None:
            return False
        if scores is not None and not (scores.is_cpu and scores.shape[0] == rows):
            return False
        size = self._measures.room_for(rows, logits, is_scored=scores is not None)
        if not size:
            return False
        if scores is not None and not owns_scores:
            scores = scores.clone()
        committed = request.go_on()
        tokens: torch.Tensor | list[int]
        if rows == 1:
            tokens, size = fed, size + fed.nbytes
        else:  # the texts of many weigh much; and cold, numpy takes twice as long for it
            tokens = fed[:, -1].tolist()
            if stops:
                request.stop_at(tokens, stops)
        cached = self._cached(passing, request, committed)
        epoch_ns = self._epoch_ns
        step = PulseStep(
            request, committed, logits, scores, tokens, passing.step, passing.started_ns + epoch_ns,
            committed_ns + epoch_ns, cached, size + rows * _PULSE_BYTES,
        )  # fmt: skip
        self._measures.waits(step)
        self.exporter.export(LateBlock((request.ref,), step.columns, rows=rows, nbytes=step.nbytes))
        passing.own_ns += time.perf_counter_ns() - entered
        self._account(passing)
        return True

    def commit_packed(
        self,
        passing: Pass,
        tokens: torch.Tensor,
        committed: Committed,
        request: Request,
        make: Callable[..., PackedStep],
        *,
        committed_ns: int,
    ) -> None:
        """As `commit`, of a pass whose rows are of many requests.

        Parameters
        ----------
        tokens : Tensor of int64, shape (m, 1)
        committed : which rows they followed from.
        request : one of them.
        make : a step of what was measured.
        """
        entered = time.perf_counter_ns()
        host = self._taken(passing, tokens, committed)
        ids = host.pop("tokens").reshape(-1).astype(np.int32)
        if self.shelf.is_used:
            self._tick_ahead()
        if "logprob" in host or passing.unreduced is not None:
            step = make(
                host=host,
                ids=ids,
                committed=committed,
                request=request,
                level=passing.level,
                number=passing.step,
                batch=passing.batch,
                started_ns=passing.started_ns + self._epoch_ns,
                ended_ns=committed_ns + self._epoch_ns,
                layout=self._layout,
                cached=None,
            )
            step.unreduced, step.awaited = passing.unreduced, passing.awaited
            self._add_deep(step, host, passing, committed)
            self.hand_over(step)
        passing.own_ns += time.perf_counter_ns() - entered
        self._account(passing)

    def _add_deep(self, step: Step, host: dict[str, Array], passing: Pass, committed: Committed) -> None:
        if passing.level != "deep":
            return
        step.deep = self._deep.told(host, committed.position, passing.fetched)
        if late := self._deep.refused_late():
            self._make_unavailable(late)
        step.host = {name: found for name, found in host.items() if not name.startswith(_OF_DEEP)}

    def _taken(
        self, passing: Pass, tokens: torch.Tensor | Array, lines: Committed | None
    ) -> dict[str, Array]:
        if lines is not None or passing.keep > 1:
            with torch.no_grad():
                rows = None if lines is None else torch.from_numpy(lines.row)
                passing.take(first=None if lines is not None else tokens.shape[-1], rows=rows)
        is_column = tokens.ndim == 2 and tokens.shape[1] == 1
        return self._measure(passing, tokens if is_column else tokens.reshape(-1, 1))

    def _step(
        self,
        passing: Pass,
        request: Request,
        host: dict[str, Array],
        ids: Array,
        committed: Committed,
        committed_ns: int,
    ) -> Step:
        """What is left of the pass: nothing of it holds a tensor of the model, nor the model."""
        cached = self._cached(passing, request, committed)
        step = Step(
            host,
            ids,
            committed,
            request,
            passing.level,
            passing.step,
            passing.batch,
            passing.started_ns + self._epoch_ns,
            committed_ns + self._epoch_ns,
            self._layout,
            cached,
        )
        step.unreduced, step.awaited = passing.unreduced, passing.awaited
        self._add_deep(step, host, passing, committed)
        return step

    def _cached(self, passing: Pass, request: Request, committed: Committed) -> CacheReading | None:
        cached = request.reader.again(passing.cache)
        if cached is None:
            cached = request.reader.read(
                passing.cache,
                self.anatomy.topology.layers,
                lambda: request.width + int(committed.passes.max()),
            )
        if cached is not None and cached.row_bytes is not None:
            request.kv_bytes = cached.row_bytes * request.rows
        return cached

    def event(
        self,
        request: Request,
        kind: str,
        *,
        reason: str = "",
        texts: tuple[str, ...] = (),
        at_ns: int | None = None,
    ) -> None:
        """Say what happened to a request, now or at `at_ns`, and remember whether it is under way."""
        if kind == "started":
            self.running[request.ref.request_id] = request
        else:
            self.running.pop(request.ref.request_id, None)
        self.exporter.event(
            RequestEvent(
                request_id=request.ref.request_id,
                kind=kind,
                time_ns=(time.perf_counter_ns() if at_ns is None else at_ns) + self._epoch_ns,
                prompt_tokens=int(request.prompt.max(initial=0)),
                prompt_tokens_per_row=tuple(int(p) for p in request.prompt),
                sequences=request.rows,
                reason=reason,
                prompt_texts=texts,
                winning_rows=request.winners,
                drafted_tokens=request.drafted,
                accepted_tokens=request.accepted,
            )
        )

    def _learn(self, passing: Pass) -> None:
        if self.shield.is_out("wiring"):
            passing.level = "pulse"
            return
        if self._layout is None:
            passing.is_usual = False
            with self._lock:
                if self._layout is None and passing.plan == self._probes.plan:
                    self._wire(passing)
        self._catch_up(passing)
        if self._unsettled and passing.references:
            for probe, reference in passing.references:
                probe.settle(passing, reference)
            self._unsettled = False
        passing.references.clear()

    def _catch_up(self, passing: Pass) -> None:
        """Another thread learned the wiring, or changed the level, while this pass ran."""
        plan, layout = self._probes.plan, self._layout
        if passing.plan == plan:
            return
        complete = passing.plan == self._posts.candidate_plan and all(t is not None for t in passing.kept)
        passing.references.clear()
        if complete and layout is not None and len(passing.kept) == self._posts.candidate_slots:
            passing.kept, passing.plan = self._posts.moved(passing.kept, layout), plan
        else:
            passing.level = "pulse"

    def _wire(self, passing: Pass) -> None:
        layers = self.anatomy.layers
        seen: list[dict[Tap, Array]] = [{} for _ in layers]
        for slot, (index, tap) in enumerate(self._posts.candidates):
            kept = passing.kept[slot] if slot < len(passing.kept) else None
            if kept is not None:
                seen[index][tap] = _rows(kept)
        if not any(seen):
            self._went_unseen(passing)
            return
        self._wiring = tuple(
            wire(
                layer,
                found,
                epsilon=self._posts.epsilon(passing),
                constants=self.anatomy.constants + declared(layer.block),
            )
            for layer, found in zip(layers, seen, strict=True)
        )
        topology = self.anatomy.topology
        self._weights.confirm(self._posts.handed(passing), seen, self._posts.epsilon(passing))
        layout = reduce.plan(
            layers,
            self._wiring,
            heads=topology.heads,
            width=topology.hidden_size,
            deep=self._is_deep,
            blind=self._weights.blind,
        )
        self._weights.complete(layout, self._wiring)
        unread = self._read_out(passing, layout) if self._is_deep else {}
        undeep = self._deep.learn(passing, self._wiring, seen) if self._is_deep else {}
        self._deep.settle()
        self._say_what_is_missing(unread, undeep)
        passing.kept = self._posts.moved(passing.kept, layout)
        passing.references.clear()
        self._layout = layout
        self._probes.remove()
        self._unsettled = True
        self._posts.routed(passing)
        self._posts.watch_plan(layout)
        self._posts.watch_experts()
        self.shelf.retain(self._probes.keys | self._deep.keys | self.kept_places)
        passing.plan = self._probes.plan
        self._opening = (passing.plan, layout.slots)

    def _read_out(self, passing: Pass, layout: reduce.Plan) -> dict[str, str]:
        """Find how the stream becomes logits; the reason for each channel that cannot be told."""
        self._attribution = self._deep.readout = None
        readout = self._readout(passing)
        missing: dict[str, str] = {}
        if isinstance(readout, str):
            missing.update(dict.fromkeys((*CONTRIBUTIONS, *LENS), readout))
        else:
            self._deep.readout = readout
            self._readout_mark = identity_of(self.anatomy.unembedding) if self.anatomy.unembedding else ()
        for layer, wires in zip(self.anatomy.layers, self._wiring, strict=True):
            if wires.order in ("unknown", "post_norm"):
                reason = f"in layer {layer.index}, {next(iter(wires.reasons.values()))}"
                return {**missing, **dict.fromkeys(CONTRIBUTIONS, reason)}
        if self._weights.blind:
            index, why = next(iter(self._weights.blind.items()))
            return {**missing, **dict.fromkeys(CONTRIBUTIONS, f"in layer {index}, {why}")}
        if not isinstance(readout, str):
            epsilon = self._posts.epsilon(passing)
            attribution = Attribution(self.anatomy.layers, self._wiring, layout, readout, epsilon=epsilon)
            if readout.is_split:  # it is then done later, and not between two passes
                try:
                    attribution.matrices()
                except Unreadable as reason:
                    why = f"{reason}, and its vocabulary is split over several processes"
                    return {**missing, **dict.fromkeys(CONTRIBUTIONS, why)}
            self._attribution = attribution
        return missing

    def _readout(self, passing: Pass) -> Readout | str:
        if self._posts.final is None or passing.logits is None:
            return "the model's final norm was not found"
        end = self._posts.candidates.index((len(self.anatomy.layers) - 1, Tap("block", "out")))
        slots = dict(zip(("into", "out", "end"), (*self._posts.final, end), strict=True))
        seen = {name: _host_rows(passing.kept[slot]) for name, slot in slots.items()}
        return find_readout(
            self.anatomy.final_norm,
            self.anatomy.unembedding,
            {name: rows for name, rows in seen.items() if rows is not None},
            passing.logits.flatten(0, -2),
            unembedded=passing.deep.get(("unembedded", 0)),
            constants=self.anatomy.constants,
            tolerance=max(1e-4, 4 * self._posts.epsilon(passing)),
            is_shared=self._measures.exchange is not None,
        )

    def _say_what_is_missing(self, unread: dict[str, str], undeep: Reasons) -> None:
        said = unmeasured(
            self.anatomy.layers, self._wiring, self._weights.blind, undeep, is_deep=self._is_deep
        )
        said.update(unread)
        if not said:
            return
        for reason in dict.fromkeys(said.values()):
            channels = ", ".join(channel for channel, why in said.items() if why == reason)
            self.shield.say_once(channels, "%s: not measured in %s", channels, reason)
        self._make_unavailable(said)

    def _make_unavailable(self, reasons: dict[str, str]) -> None:
        self.anatomy = self.anatomy.without(reasons)
        if self.on_wired is not None:
            with self.shield.at("announce"):
                self.on_wired()

    def _settle_weights(self) -> None:
        parts = [(layer.projection, layer.ffn_linear) for layer in self.anatomy.layers]
        self._watched.settle(tuple(part for pair in parts for part in pair if part is not None))

    def refresh(self) -> None:
        """Build the Gram matrices anew whose projection was written to or exchanged since (adapters,
        training)."""
        self._settle_weights()
        self._deep.refresh()
        if any(parent._modules.get(name) is not part for parent, name, part in self._joints):
            self._start_over()
            return
        stale = self._weights.stale()
        blind = set(self._weights.blind)
        for layer in stale:
            self._weights.build(layer, norm_of(self._wiring, layer.index))
        if set(self._weights.blind) != blind:
            self._start_over()
            return
        if stale and self._layout is not None:
            self._weights.collect(self._layout)
        if self._deep.readout is not None and (stale or self._is_readout_stale()):
            self._layout = self._attribution = None  # found anew in the next pass
            self.install()

    def _start_over(self) -> None:
        """Parts were exchanged, or their weights can no longer be had, or can again: find all anew."""
        anatomy = self.look_again() if self.look_again is not None else None
        if anatomy is None:
            return
        self.remove()
        self.anatomy = anatomy
        self._fit()
        self._layout, self._attribution, self._wiring = None, None, ()
        self.prepare()
        self.install()
        self._make_unavailable({})

    def _is_readout_stale(self) -> bool:
        unembedding = self.anatomy.unembedding
        return unembedding is not None and identity_of(unembedding) != self._readout_mark

    def _measure(self, passing: Pass, tokens: torch.Tensor | Array) -> dict[str, Array]:
        """Every result of this pass on the host."""
        if passing.plan != self._probes.plan:
            passing.level = "pulse"  # what it kept is not what is looked for any more
        host = self._measures.of(passing, tokens, self._layout, self._attribution)
        return host if passing.unreduced is not None else self._alive(passing, host)

    def _alive(self, passing: Pass, host: dict[str, Array]) -> dict[str, Array]:
        """What was measured, without what a compiled graph did not leave in this pass."""
        alive = ("alive_logits", "alive", "alive_deep", "alive_experts")
        logits, layers, deep, experts = (host.pop(name, None) for name in alive)
        if (logits is not None or layers is not None) and self.shelf.stamp != passing.stamp:
            logits, layers = (None if found is None else np.zeros(1) for found in (logits, layers))
        if logits is not None and not logits.all():
            self._went_unseen(passing)
            return {"tokens": host["tokens"]}
        if layers is not None and not layers.all():
            self._went_unseen(passing)
            return {name: host[name] for name in ("tokens", "logprob")}  # what `pulse` tells
        if logits is not None or layers is not None:
            self.shelf.is_used = True
        if experts is not None and not experts.all():
            host = {name: found for name, found in host.items() if not name.startswith("expert_")}
        if layers is not None and "expert_ids" not in host:
            self._say_routing_is_missing()
        if deep is not None:
            quiet = [
                f"{kind}{i}" for (kind, i), there in zip(passing.fetched, deep, strict=True) if not there
            ]
            return {name: found for name, found in host.items() if name not in quiet}
        return host

    def _say_routing_is_missing(self) -> None:
        if any(layer.experts for layer in self.anatomy.layers) and self.shield.say_once(
            "routing", "expert_ids, expert_weights: not measured in compiled passes"
        ):
            self._make_unavailable(dict.fromkeys(("expert_ids", "expert_weights"), _UNROUTED))

    def hand_over(self, step: Step) -> None:
        """Give a step to the exporter."""
        real = step.committed.real
        texts = self.texts.of(step.ids[real]) if self.texts is not None else None
        self.exporter.export(
            LateBlock(
                step.refs if isinstance(step, PackedStep) else (step.request.ref,),
                step.columns,
                rows=real.size,
                nbytes=step.nbytes,
                texts=texts,
            )
        )

    def _account(self, passing: Pass) -> None:
        now = time.perf_counter_ns()
        own = passing.own_ns + self._hooks() * self._probe_ns + self._lull.own_ns
        self._lull.own_ns = 0
        budget = self.thrift.budget
        if passing.is_usual:
            budget.spend(own, now - passing.started_ns, is_deep=passing.level == "deep")
        if not budget.is_due(now):
            return
        is_lowered = self.thrift.judge(now)
        if is_lowered is None:
            return
        if is_lowered:
            self.install()
        self.exporter.report(
            overhead_ratio=self.thrift.overhead_ratio,
            level=self.demand.level,
            running_requests=len(self.running),
            kv_bytes=sum(request.kv_bytes for request in list(self.running.values())),
        )

    def _hooks(self) -> int:
        """How many hooks are in the model, counted once for each set of probes."""
        plan, hooks = self._counted
        if plan != self._probes.plan:
            hooks = len(self._probes) + self._deep.hooks
            self._counted = self._probes.plan, hooks
        return hooks


def _last_logits(passing: Pass, logits: torch.Tensor) -> torch.Tensor:
    """Logits of the rows that matter, (batch * keep, vocabulary), owned by us where the pass made more of
    them."""
    if passing.picked is not None:
        count = passing.picked.shape[0]
        is_whole = logits.shape[1] == passing.width and count < passing.width
        rows = logits[0].index_select(0, passing.picked) if is_whole else logits[0, :count]
        return rows.clone()  # what samples may write into them
    if passing.keep > 1:
        return logits[:, -passing.keep :].reshape(-1, logits.shape[-1])
    if passing.last is not None and logits.shape[1] == passing.width:
        return logits[torch.arange(passing.batch, device=logits.device), passing.last.to(logits.device)]
    rows = logits.select(1, -1)
    return rows.clone() if logits.shape[1] > 1 else rows


def _shares(rows: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether who writes into `whole` may write into `rows`."""
    return rows.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def _joints(anatomy: Anatomy) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, part) of everything that an adapter may be put on."""
    found: list[tuple[nn.Module, str, nn.Module]] = []
    for layer in anatomy.layers:
        parts = {id(p) for p in (layer.mixer, layer.projection, layer.ffn, layer.ffn_linear) if p is not None}
        for parent in layer.block.modules():
            found += [(parent, name, part) for name, part in parent.named_children() if id(part) in parts]
    return found


def _rows(kept: torch.Tensor) -> Array:
    """What was kept as float64 rows on the host."""
    found: Array = kept.detach().to("cpu", torch.float64).reshape(-1, kept.shape[-1]).numpy()
    return found


def _host_rows(kept: torch.Tensor | None) -> Array | None:
    return None if kept is None else _rows(kept)
