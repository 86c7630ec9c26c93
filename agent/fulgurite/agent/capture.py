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
from fulgurite.agent.anatomy import Anatomy, LayerParts, declared
from fulgurite.agent.assemble import Step
from fulgurite.agent.contribution import CHANNELS as CONTRIBUTIONS
from fulgurite.agent.contribution import Attribution
from fulgurite.agent.deep import Deep, Reasons
from fulgurite.agent.exporter import Exporter
from fulgurite.agent.grams import gram
from fulgurite.agent.identity import Committed, Request
from fulgurite.agent.late import LateBlock
from fulgurite.agent.lens import CHANNELS as LENS
from fulgurite.agent.norms import NormSpec
from fulgurite.agent.probes import Current, Pass, Probes
from fulgurite.agent.ranks import OWN, OWN_DEEP, elsewhere
from fulgurite.agent.readout import Readout, find_readout
from fulgurite.agent.sampling import Budget, Demand, level_of_step
from fulgurite.agent.shelf import ROWS, Place, Shelf
from fulgurite.agent.shield import Shield
from fulgurite.agent.texts import TokenTexts
from fulgurite.agent.weights import (
    Unreadable,
    Watched,
    effective_bias,
    effective_weight,
    identity_of,
    tolerance,
)
from fulgurite.agent.wiring import LayerWiring, Tap, candidate_taps, part_of, wire
from fulgurite.wire.channels import LEVELS, Level
from fulgurite.wire.frame import RequestEvent

Array = np.ndarray[Any, Any]
_WITH_LAYERS = ("heads", "deep")
_OF_DEEP = ("attention", "neurons", "lens_")
_OF_LAYERS = ("head_write", "ffn_write", "ffn_cosine", "residual_norm")
_UNROUTED = "not measured in compiled passes, where no Python sees what the experts are handed"
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
        demand: Demand,
        budget: Budget,
        deep_ratio: float,
        shield: Shield,
        texts: TokenTexts | None = None,
    ) -> None:
        self.anatomy = anatomy
        self.exporter = exporter
        self.demand = demand
        self.budget = budget
        self.deep_ratio = deep_ratio
        self.shield = shield
        self.texts = texts
        self.current = Current()
        self.steps = 0
        self._numbers = itertools.count()
        self.overhead_ratio = float("nan")
        self.running: dict[str, Request] = {}
        self.on_wired: Any = None
        self.kept_places: set[tuple[int, str]] = set()
        self._lock = threading.Lock()
        self._in_flight: dict[int, weakref.ref[Pass]] = {}  # by thread
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()
        self.shelf = Shelf()
        self._probes = Probes(self.current, shield, self.shelf)
        self._deep = Deep(anatomy, self.current, shield)
        self._layout: reduce.Plan | None = None
        self._wiring: tuple[LayerWiring, ...] = ()
        self._candidates: list[tuple[int, Tap]] = []
        self._inputs: dict[int, int] = {}
        self._candidate_plan = -1
        self._opening = (0, 0)  # plan and slots of a pass that begins now, replaced as one
        self._grams: list[torch.Tensor] = []
        self._plain: dict[int, torch.Tensor] = {}
        self._marks: dict[int, tuple[object, ...]] = {}
        self._blind: dict[int, str] = {}
        self._watched = Watched()
        self._joints = _joints(anatomy)
        self.look_again: Callable[[], Anatomy | None] | None = None
        self._unsettled = True
        self._probe_ns = 0
        self._final: tuple[int, int] | None = None
        self._attribution: Attribution | None = None
        self._readout_mark: tuple[object, ...] = ()

    def prepare(self) -> None:
        """What is computed before the first pass: the Gram matrices, and what a probe costs."""
        if LEVELS.index(self.demand.ceiling) < LEVELS.index("heads"):
            return
        self._probe_ns = _probe_cost_ns()
        for layer in self.anatomy.layers:
            if layer.projection is not None:
                with self.shield.at("gram"):
                    self._build_gram(layer, None)
        self._settle_weights()

    def install(self) -> None:
        """Put the probes in that the level in force needs; take out what it does not."""
        with self._lock:
            self.shelf.gate(self.demand.level != "off")
            if self.is_compiled and self._layout is not None and len(self._probes):
                return  # a graph does not see hooks that come back: they stay
            self._probes.remove()
            self._deep.remove()
            self._opening = (self._probes.plan, 0)
            if LEVELS.index(self.demand.level) < LEVELS.index("heads") or not self.anatomy.layers:
                return
            self._unsettled = True
            if self._layout is None:
                self._watch_candidates()
                slots = self._candidate_slots
            else:
                self._watch_plan(self._layout)
                slots = self._layout.slots
            self._watch_experts()
            if self._is_deep:
                self._deep.install()
            self._opening = (self._probes.plan, slots)

    def remove(self) -> None:
        """Take every probe out."""
        with self._lock:
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
        return sum(g.nbytes for g in (self._grams or self._plain.values()))

    def _watch_candidates(self) -> None:
        layers = self.anatomy.layers
        self._candidate_plan = self._probes.plan
        self._candidates = [(layer.index, tap) for layer in layers for tap in candidate_taps(layer)]
        for slot, (index, tap) in enumerate(self._candidates):
            self._watch(layers[index], tap, slot, by_keyword=True)
        heads = [layer for layer in layers if layer.projection is not None]
        self._inputs = {layer.index: len(self._candidates) + i for i, layer in enumerate(heads)}
        for layer in heads:
            assert layer.projection is not None
            self._watch_heads(layer, self._inputs[layer.index])
        self._final = None
        if self._is_deep and self.anatomy.final_norm is not None:
            into = len(self._candidates) + len(heads)
            self._final = (into, into + 1)
            device, width = _device_of(self.anatomy.final_norm), self.anatomy.topology.hidden_size
            self._probes.watch_input(self.anatomy.final_norm, into, width=width, device=device)
            self._probes.watch_output(self.anatomy.final_norm, into + 1, width=width, device=device)

    @property
    def _is_deep(self) -> bool:
        return self.demand.ceiling == "deep"

    def _watch_plan(self, layout: reduce.Plan) -> None:
        for slot, (index, tap) in enumerate(layout.places):
            self._watch(self.anatomy.layers[index], tap, slot, by_keyword=tap.part in ("block", "ffn"))
        for group in layout.groups:
            for slot, index in zip(group.slots, group.layers, strict=True):
                self._watch_heads(self.anatomy.layers[index], slot)

    def _watch(self, layer: LayerParts, tap: Tap, slot: int, *, by_keyword: bool) -> None:
        module = part_of(layer, tap.part)
        assert module is not None
        device, width = _device_of(layer.block), self.anatomy.topology.hidden_size
        if tap.side == "in":
            self._probes.watch_input(module, slot, by_keyword=by_keyword, width=width, device=device)
        else:
            self._probes.watch_output(module, slot, width=width, device=device)

    def _watch_heads(self, layer: LayerParts, slot: int) -> None:
        assert layer.projection is not None
        width = layer.held_heads * layer.head_dim
        self._probes.watch_input(layer.projection, slot, width=width, device=_device_of(layer.block))

    def _watch_experts(self) -> None:
        for layer in self.anatomy.layers:
            for module in layer.experts:
                self._probes.watch_experts(module, layer.index)

    def open(self, batch: int, width: int) -> Pass | None:
        """A forward pass of `batch` rows and `width` positions begins; None where nothing is wanted."""
        started = time.perf_counter_ns()
        before = self.demand.level
        self.demand.hear(self.exporter.wanted_level())
        level = self.demand.level
        if level != before:
            self.install()
        if level not in ("off", "pulse") and self._watched.has_changed():
            self.refresh()
        self.shelf.tick()
        if level == "off":
            self.current.passing = None
            return None
        plan, slots = self._opening
        passing = Pass(batch, width, slots, plan=plan)
        passing.step = self._count_step()
        passing.level = level_of_step(passing.step, level, self.deep_ratio)
        if self._is_deep:
            is_first, is_all = self._layout is None, passing.level == "deep" and self.deep_ratio >= 1.0
            passing.looks = self._deep.turn(passing, every=is_first or is_all)
        passing.started_ns = started
        self.current.passing = passing
        self._takes_off(passing)
        return passing

    def _takes_off(self, passing: Pass) -> None:
        """The shelf holds one pass: those that run at the same time, in several threads, leave none."""
        passing.stamp, mine = self.shelf.stamp, threading.get_ident()
        if self._in_flight:
            for thread, other in tuple(self._in_flight.items()):
                running = other() if thread != mine else None
                if running is not None:
                    running.crowded = passing.crowded = True
        self._in_flight[mine] = weakref.ref(passing)

    @property
    def _candidate_slots(self) -> int:
        return len(self._candidates) + len(self._inputs) + (2 if self._final is not None else 0)

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
        rows = _last_logits(passing, logits)
        passing.logits = rows.clone() if copies and rows.data_ptr() == logits.data_ptr() else rows
        raw = passing.deep.get(("unembedded", 0)) if passing.deep else None
        if raw is not None:
            passing.deep["unembedded", 0] = _last_logits(passing, raw)
        if passing.level in _WITH_LAYERS and self.anatomy.layers:
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
        passing.level = level_of_step(passing.step, self.demand.level, self.deep_ratio)
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

    def _went_unseen(self, passing: Pass) -> None:
        """Nothing of this pass's layers is there: that is not zero, it is nothing."""
        passing.level = "pulse"
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
        tokens: torch.Tensor,
        stops: frozenset[int],
        *,
        committed_ns: int,
        lines: Committed | None = None,
    ) -> None:
        """The tokens that followed from `passing` are known: reduce, and hand the frames over.

        Parameters
        ----------
        tokens : Tensor of int64, shape (batch,), (batch, n) where one pass gave several, or (m,) with `lines`
        lines : which rows they followed from, where that is not one to one.
        """
        entered = time.perf_counter_ns()
        if torch.is_grad_enabled() or torch.is_autocast_enabled(tokens.device.type):
            with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
                host = self._taken(passing, tokens, lines)
        else:  # as `generate` leaves it
            host = self._taken(passing, tokens, lines)
        ids = host.pop("tokens").reshape(-1).astype(np.int32)
        committed = lines if lines is not None else request.commit(ids, stops)
        self.shelf.tick()
        if committed.real.size and "logprob" in host:
            self._export(self._step(passing, request, host, ids, committed, committed_ns))
        passing.own_ns += time.perf_counter_ns() - entered
        self._account(passing)

    def _taken(self, passing: Pass, tokens: torch.Tensor, lines: Committed | None) -> dict[str, Array]:
        if lines is not None:
            passing.take(rows=torch.from_numpy(lines.row))
        elif passing.keep > 1:
            passing.take(first=tokens.shape[-1])
        is_column = tokens.dim() == 2 and tokens.shape[1] == 1
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
        fed = request.width + int(committed.passes.max())
        cached = request.reader.read(passing.cache, self.anatomy.topology.layers, fed)
        if cached is not None and cached.row_bytes is not None:
            request.kv_bytes = cached.row_bytes * request.rows
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
        if passing.level == "deep":
            step.deep = self._deep.columns(host, committed.position)
            step.host = {name: found for name, found in host.items() if not name.startswith(_OF_DEEP)}
        return step

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
        complete = passing.plan == self._candidate_plan and all(t is not None for t in passing.kept)
        passing.references.clear()
        if complete and layout is not None and len(passing.kept) == self._candidate_slots:
            passing.kept, passing.plan = self._moved(passing, layout), plan
        else:
            passing.level = "pulse"

    def _wire(self, passing: Pass) -> None:
        layers = self.anatomy.layers
        seen: list[dict[Tap, Array]] = [{} for _ in layers]
        for slot, (index, tap) in enumerate(self._candidates):
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
                epsilon=_epsilon(passing, self._candidates),
                constants=self.anatomy.constants + declared(layer.block),
            )
            for layer, found in zip(layers, seen, strict=True)
        )
        topology = self.anatomy.topology
        self._confirm_weights(passing, seen)
        layout = reduce.plan(
            layers,
            self._wiring,
            heads=topology.heads,
            width=topology.hidden_size,
            deep=self._is_deep,
            blind=self._blind,
        )
        self._build_grams(layout)
        unread = self._read_out(passing, layout) if self._is_deep else {}
        undeep = self._deep.learn(passing, self._wiring, seen) if self._is_deep else {}
        self._deep.settle()
        self._say_what_is_missing(unread, undeep)
        passing.kept = self._moved(passing, layout)
        passing.references.clear()
        self._layout = layout
        self._probes.remove()
        self._unsettled = True
        self._watch_plan(layout)
        self._watch_experts()
        self.shelf.retain(self._probes.keys | self.kept_places)
        passing.plan = self._probes.plan
        self._opening = (passing.plan, layout.slots)

    def _moved(self, passing: Pass, layout: reduce.Plan) -> list[torch.Tensor | None]:
        """What the candidates kept, where the plan looks for it."""
        places = {place: slot for slot, place in enumerate(self._candidates)}
        moved = [passing.kept[places[place]] for place in layout.places]
        for group in layout.groups:
            moved += [passing.kept[self._inputs[int(index)]] for index in group.layers]
        return moved

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
        if self._blind:
            index, why = next(iter(self._blind.items()))
            return {**missing, **dict.fromkeys(CONTRIBUTIONS, f"in layer {index}, {why}")}
        if not isinstance(readout, str):
            epsilon = _epsilon(passing, self._candidates)
            self._attribution = Attribution(
                self.anatomy.layers, self._wiring, layout, readout, epsilon=epsilon
            )
        return missing

    def _readout(self, passing: Pass) -> Readout | str:
        if self._final is None or passing.logits is None:
            return "the model's final norm was not found"
        end = self._candidates.index((len(self.anatomy.layers) - 1, Tap("block", "out")))
        slots = dict(zip(("into", "out", "end"), (*self._final, end), strict=True))
        seen = {name: _host_rows(passing.kept[slot]) for name, slot in slots.items()}
        return find_readout(
            self.anatomy.final_norm,
            self.anatomy.unembedding,
            {name: rows for name, rows in seen.items() if rows is not None},
            passing.logits,
            unembedded=passing.deep.get(("unembedded", 0)),
            constants=self.anatomy.constants,
            tolerance=max(1e-4, 4 * _epsilon(passing, self._candidates)),
        )

    def _say_what_is_missing(self, unread: dict[str, str], undeep: Reasons) -> None:
        reasons: Reasons = {channel: list(found) for channel, found in undeep.items()}
        for layer, wires in zip(self.anatomy.layers, self._wiring, strict=True):
            for channel, reason in wires.reasons.items():
                reasons.setdefault(channel, []).append((layer.index, reason))
            if why := self._blind.get(layer.index):
                reasons.setdefault("head_write", []).append((layer.index, why))
            elif why := elsewhere(layer):
                for channel in OWN + (OWN_DEEP if self._is_deep else ()):
                    reasons.setdefault(channel, []).append((layer.index, why))
        said = {channel: f"{_layer_names(found)}: {found[0][1]}" for channel, found in reasons.items()}
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

    def _build_gram(self, layer: LayerParts, norm: NormSpec | None) -> None:
        assert layer.projection is not None
        self._marks[layer.index] = identity_of(layer.projection)
        self._blind.pop(layer.index, None)
        try:
            weight = effective_weight(layer.projection)
            if weight.shape[1] != layer.held_heads * layer.head_dim:
                raise Unreadable("its weights are split over several processes, and not by heads")
            self._plain[layer.index] = gram(weight, layer.held_heads, norm)
        except Unreadable as reason:
            self._plain.pop(layer.index, None)
            self._blind[layer.index] = f"the weights of its output projection are not known: {reason}"

    def _confirm_weights(self, passing: Pass, seen: list[dict[Tap, Array]]) -> None:
        """What we read is what the projection applied in this pass; else its heads are not told."""
        for layer in self.anatomy.layers:
            z = passing.kept[self._inputs[layer.index]] if layer.index in self._inputs else None
            gave = seen[layer.index].get(Tap("projection", "out"))
            if layer.projection is None or layer.index in self._blind or z is None:
                continue
            if z.shape[-1] != layer.held_heads * layer.head_dim:
                self._blind[layer.index] = (
                    f"its output projection was handed {z.shape[-1]} values per position, not the "
                    f"{layer.held_heads * layer.head_dim} of its heads"
                )
            elif gave is not None and layer.held_heads == layer.heads:
                try:
                    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
                        error = _misfit(layer.projection, z, gave)
                except Unreadable as reason:
                    self._blind[layer.index] = f"its output projection is not known: {reason}"
                    continue
                if error > max(tolerance(layer.projection), 4 * _epsilon(passing, self._candidates)):
                    self._blind[layer.index] = (
                        f"its output projection gave something else than its weights do (by {error:.0%})"
                    )

    def _settle_weights(self) -> None:
        parts = [(layer.projection, layer.ffn_linear) for layer in self.anatomy.layers]
        self._watched.settle(tuple(part for pair in parts for part in pair if part is not None))

    def _norm_of(self, index: int) -> NormSpec | None:
        mixer = self._wiring[index].mixer if self._wiring else None
        return mixer.norm if mixer is not None else None

    def _build_grams(self, layout: reduce.Plan) -> None:
        for layer in self.anatomy.layers:
            if (
                layer.projection is not None
                and (self._norm_of(layer.index) or layer.index not in self._plain)
                and layer.index not in self._blind
            ):
                self._build_gram(layer, self._norm_of(layer.index))
        self._collect(layout)

    def _collect(self, layout: reduce.Plan) -> None:
        grams = [[self._plain[int(index)] for index in group.layers] for group in layout.groups]
        self._grams = [torch.stack([g.to(group[0].device) for g in group]) for group in grams]
        for group, stacked in zip(layout.groups, self._grams, strict=True):
            for i, index in enumerate(group.layers):
                self._plain[int(index)] = stacked[i]

    def refresh(self) -> None:
        """Build the Gram matrices anew whose projection was written to or exchanged since (adapters,
        training)."""
        self._settle_weights()
        if any(parent._modules.get(name) is not part for parent, name, part in self._joints):
            self._start_over()
            return
        stale = [
            layer
            for layer in self.anatomy.layers
            if layer.projection is not None
            and layer.index in self._marks
            and self._marks[layer.index] != identity_of(layer.projection)
        ]
        blind = set(self._blind)
        for layer in stale:
            self._build_gram(layer, self._norm_of(layer.index))
        if set(self._blind) != blind:
            self._start_over()
            return
        if stale and self._layout is not None:
            self._collect(self._layout)
        if self._deep.readout is not None and (stale or self._is_readout_stale()):
            self._layout = self._attribution = None  # found anew in the next pass
            self.install()

    def _start_over(self) -> None:
        """Parts were exchanged, or their weights can no longer be had, or can again: find all anew."""
        anatomy = self.look_again() if self.look_again is not None else None
        if anatomy is None:
            return
        self.remove()
        self.anatomy, self._joints = anatomy, _joints(anatomy)
        self._deep = Deep(anatomy, self.current, self.shield)
        self._layout = self._attribution = None
        self._wiring, self._grams = (), []
        self._plain, self._marks, self._blind = {}, {}, {}
        self.prepare()
        self.install()
        self._make_unavailable({})

    def _is_readout_stale(self) -> bool:
        unembedding = self.anatomy.unembedding
        return unembedding is not None and identity_of(unembedding) != self._readout_mark

    def _measure(self, passing: Pass, tokens: torch.Tensor) -> dict[str, Array]:
        """Every result of this pass on the host, in one copy."""
        logits = passing.logits
        assert logits is not None
        ids = tokens if tokens.device == logits.device else tokens.to(logits.device)
        if passing.plan != self._probes.plan:
            passing.level = "pulse"  # what it kept is not what is looked for any more
        full = passing.level in _WITH_LAYERS
        host: dict[str, Array] = {}
        found: dict[str, torch.Tensor] = {}
        if logits.device.type == "cpu" and logits.shape[0] == 1:
            host = reduce.row_uncertainty(logits, ids, full=full)
        else:
            found = {"tokens": ids, **reduce.uncertainty(logits, ids, full=full)}
        if full and self._layout is not None and not self.shield.is_out("reduce"):
            with self.shield.at("reduce"):
                top_ids = found.get("top_ids")
                if passing.level == "deep" and top_ids is None:
                    top_ids = torch.from_numpy(reduce.top_ids(host))
                found.update(self._layers(passing, self._layout, ids, top_ids))
        if full and passing.extra and not self.shield.is_out("experts"):
            with self.shield.at("experts"):
                found.update(_experts(passing, self._layer_count))
        for name in ("alive", "alive_logits"):
            if (alive := getattr(passing, name)) is not None:
                found[name] = alive
        if found:
            host.update(reduce.to_host(found))
        return self._alive(passing, host)

    def _alive(self, passing: Pass, host: dict[str, Array]) -> dict[str, Array]:
        """What was measured, without what a compiled graph did not leave in this pass."""
        logits, layers = host.pop("alive_logits", None), host.pop("alive", None)
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
            self._say_routing_is_missing()
        return host

    def _say_routing_is_missing(self) -> None:
        if any(layer.experts for layer in self.anatomy.layers) and self.shield.say_once(
            "routing", "expert_ids, expert_weights: not measured in compiled passes"
        ):
            self._make_unavailable(dict.fromkeys(("expert_ids", "expert_weights"), _UNROUTED))

    @property
    def _layer_count(self) -> int:
        return self.anatomy.topology.layers

    def _layers(
        self, passing: Pass, layout: reduce.Plan, tokens: torch.Tensor, candidates: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        kept = passing.kept
        if any(tensor is None for tensor in kept):
            self.shield.note("probe:silent")
            self.shield.say_once(
                "silent", "a part of the model was not seen in a pass: no activity is told of its token"
            )
            return {}
        vectors: list[torch.Tensor] = kept[: len(layout.places)]  # type: ignore[assignment]
        if not vectors:
            return {}
        if layout.is_joint:  # the heads' outputs are as wide as the stream: all of it is one tensor
            whole = reduce.stack(kept)  # type: ignore[arg-type]
            stacked = whole[: len(vectors)]
            found = reduce.stream(stacked, layout)
            found["heads0"] = reduce.squares(whole[len(vectors) :], self._grams[0])
        else:
            stacked = reduce.stack(vectors)
            found = reduce.stream(stacked, layout)
            for i, group in enumerate(layout.groups):
                inputs: list[torch.Tensor] = kept[group.slots[0] : group.slots[-1] + 1]  # type: ignore[assignment]
                found[f"heads{i}"] = reduce.head_squares(inputs, self._grams[i])
        if passing.level == "deep" and self._watched.has_changed():
            passing.level = "heads"  # the weights of this pass are not those that are there now
        if passing.level == "deep":
            with self.shield.at("deep"):
                found.update(self._deep.measure(passing, layout, stacked, candidates))
        if passing.level == "deep" and self._attribution is not None and passing.logits is not None:
            heads: dict[int, torch.Tensor] = {
                int(index): kept[slot]  # type: ignore[misc]
                for group in layout.groups
                for slot, index in zip(group.slots, group.layers, strict=True)
            }
            with self.shield.at("contribution"):
                found.update(
                    self._attribution.of(
                        stacked,
                        heads,
                        passing.logits,
                        tokens[:, 0].to(stacked.device),
                        unembedded=passing.deep.get(("unembedded", 0)),
                    )
                )
        return found

    def _export(self, step: Step) -> None:
        real = step.committed.real
        texts = self.texts.of(step.ids[real]) if self.texts is not None else None
        self.exporter.export(
            LateBlock((step.request.ref,), step.columns, rows=real.size, nbytes=step.nbytes, texts=texts)
        )

    def _account(self, passing: Pass) -> None:
        now = time.perf_counter_ns()
        own = passing.own_ns + (len(self._probes) + self._deep.hooks) * self._probe_ns
        self.budget.spend(own, now - passing.started_ns)
        verdict = self.budget.verdict(now)
        if verdict is None:
            return
        self.overhead_ratio, over = verdict
        if over:
            self._degrade()
        self.exporter.report(
            overhead_ratio=self.overhead_ratio,
            level=self.demand.level,
            running_requests=len(self.running),
            kv_bytes=sum(request.kv_bytes for request in list(self.running.values())),
        )

    def _degrade(self) -> None:
        level: Level | None = self.demand.degrade()
        if level is None:
            return
        limit = self.budget.limit or 0.0
        self.shield.say_once(
            f"budget:{level}",
            "capture took %.1f %% of step time, over the budget of %.1f %%: level lowered to %s "
            "(set_level() or a larger budget= brings it back)",
            100 * self.overhead_ratio,
            100 * limit,
            level,
        )
        self.install()


def _last_logits(passing: Pass, logits: torch.Tensor) -> torch.Tensor:
    """Logits of the rows that matter, (batch * keep, vocabulary), owned by us where the pass made more of
    them."""
    if passing.keep > 1:
        return logits[:, -passing.keep :].reshape(-1, logits.shape[-1])
    if passing.last is not None and logits.shape[1] == passing.width:
        return logits[torch.arange(passing.batch, device=logits.device), passing.last.to(logits.device)]
    rows = logits.select(1, -1)
    return rows.clone() if logits.shape[1] > 1 else rows


def _experts(passing: Pass, layers: int) -> dict[str, torch.Tensor]:
    """Expert ids and weights, (layers, n, experts per token); -1 and NaN where a layer has none."""
    like = next(iter(passing.extra.values()))[0]
    rows, most = passing.measured, max(ids.shape[-1] for ids, _ in passing.extra.values())
    ids = torch.full((layers, rows, most), -1.0, device=like.device)
    weights = torch.full((layers, rows, most), float("nan"), device=like.device)
    for layer, (chosen, gates) in passing.extra.items():
        ids[layer, :, : chosen.shape[-1]] = chosen.reshape(rows, -1).float()
        weights[layer, :, : gates.shape[-1]] = gates.reshape(rows, -1).float()
    return {"expert_ids": ids, "expert_weights": weights}


def _joints(anatomy: Anatomy) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, part) of everything that an adapter may be put on."""
    found: list[tuple[nn.Module, str, nn.Module]] = []
    for layer in anatomy.layers:
        parts = {id(p) for p in (layer.mixer, layer.projection, layer.ffn, layer.ffn_linear) if p is not None}
        for parent in layer.block.modules():
            found += [(parent, name, part) for name, part in parent.named_children() if id(part) in parts]
    return found


def _misfit(projection: nn.Module, z: torch.Tensor, gave: Array) -> float:
    """Relative error of what the matrix gives for `z` against what the projection gave."""
    weight, bias = effective_weight(projection), effective_bias(projection)
    made = z.detach().reshape(-1, z.shape[-1]).to(weight.device, torch.float32) @ weight.T
    wanted = torch.as_tensor(gave, dtype=torch.float32, device=weight.device)
    if bias is not None:
        wanted = wanted - bias.to(weight.device, torch.float32)
    if made.shape != wanted.shape:
        return float("inf")
    return float((made - wanted).norm() / made.norm().clamp(min=1e-12))


def _device_of(module: nn.Module) -> torch.device | None:
    found = next(module.parameters(), None)
    return None if found is None else found.device


def _rows(kept: torch.Tensor) -> Array:
    """What was kept as float64 rows on the host."""
    found: Array = kept.detach().to("cpu", torch.float64).reshape(-1, kept.shape[-1]).numpy()
    return found


def _host_rows(kept: torch.Tensor | None) -> Array | None:
    return None if kept is None else _rows(kept)


def _epsilon(passing: Pass, candidates: list[tuple[int, Tap]]) -> float:
    kept = (passing.kept[slot] for slot in range(len(candidates)))
    return max(
        (torch.finfo(t.dtype).eps for t in kept if t is not None and t.is_floating_point()), default=1e-7
    )


def _layer_names(found: list[tuple[int, str]]) -> str:
    numbers = [str(index) for index, _ in found]
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    return f"{len(numbers)} layers ({', '.join(numbers[:2])}{', …' if len(numbers) > 2 else ''})"


def _probe_cost_ns() -> int:
    """What one of our hooks costs on this machine, measured on a module that does nothing."""
    module, current = nn.Identity(), Current()
    tensor = torch.zeros(1, 1, 1)
    bare = _time_calls(module, tensor)
    probes = Probes(current, Shield(strict=False))
    probes.watch_input(module, 0)
    probes.trust()
    current.passing = Pass(1, 1, 1)
    with_probe = _time_calls(module, tensor)
    probes.remove()
    return max(0, with_probe - bare)


def _time_calls(module: nn.Module, tensor: torch.Tensor, calls: int = 50, rounds: int = 3) -> int:
    best = 1 << 60
    for _ in range(rounds):
        started = time.perf_counter_ns()
        for _ in range(calls):
            module(tensor)
        best = min(best, time.perf_counter_ns() - started)
    return best // calls
