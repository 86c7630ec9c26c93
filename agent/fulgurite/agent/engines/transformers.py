"""Transformers models in this process: `generate`, and plain loops of ``model(...)`` with a cache.

Two hooks on the model itself open and close each forward pass. `generate` is wrapped on the instance: the
wrapper marks the pass as belonging to a request, and adds a stopping criterion, which is called once per step
with the tokens that were committed and stops nothing. In a plain loop the tokens are those that the next call
is fed.

Shape letters: b rows, t positions of a pass, n tokens that one pass gave.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.compiler import is_compiling
from torch.utils.hooks import RemovableHandle

from fulgurite.agent.anatomy import accepts, linear_shape
from fulgurite.agent.assemble import Step
from fulgurite.agent.beams import Beams
from fulgurite.agent.capture import Capture
from fulgurite.agent.engines import arguments
from fulgurite.agent.engines.continuous import CONTINUOUS
from fulgurite.agent.engines.generate import GenerateWrapper, criterion, unwrap, with_criterion
from fulgurite.agent.engines.packed import Packed
from fulgurite.agent.engines.processors import ProcessorsWrapper
from fulgurite.agent.engines.processors import unwrap as unwrap_processors
from fulgurite.agent.engines.processors import wrap as wrap_processors
from fulgurite.agent.engines.search import Search
from fulgurite.agent.identity import Request, new_ref, new_request
from fulgurite.agent.probes import Pass
from fulgurite.agent.shelf import Place, leave
from fulgurite.agent.surroundings import current_ref
from fulgurite.wire.frame import RequestRef

Array = np.ndarray[Any, Any]


class Call:
    """One call of `generate`.

    Attributes
    ----------
    width : positions of the prompt, where it was given as ids.
    search : of a beam search, else None.
    assisted : one pass may commit several tokens.
    draft : made by `generate` itself to propose tokens: nothing of it is a request.
    began_ns : when it began, by the monotonic clock: the time to the first token counts from here.
    passing : the last forward pass, until its tokens are known.
    cache : of the last pass.
    since, arrivals : when its tokens were handed over; how many calls had begun or ended by then.
    scores : of this step (b, V) behind all processors, until its tokens are known.
    owns_scores : nobody gets them who could write into them.
    held : the last step and the length of its text, where `generate` may take it back.
    deferred : whether it may, None until the first step.
    fed : the text of one row, where nobody looked yet whether its last token ends it.
    seen, counted : length of the text at the last step, and up to where its tokens were counted.
    unwanted : of its last pass nothing was to be measured: that nothing was seen of it says nothing.
    """

    __slots__ = (
        "arrivals", "assisted", "began_ns", "cache", "counted", "deferred", "draft", "fed", "held", "mask",
        "owns_scores", "passing", "ref", "request", "scores", "search", "seen", "since", "stops", "unwanted",
        "width",
    )  # fmt: skip

    def __init__(
        self,
        ref: RequestRef,
        *,
        mask: torch.Tensor | None = None,
        stops: frozenset[int] = frozenset(),
        width: int = 0,
        beams: int = 1,
        assisted: bool = False,
        draft: bool = False,
    ) -> None:
        self.ref = ref
        self.mask = mask
        self.stops = stops
        self.width = width
        self.search = Search(beams) if beams > 1 else None
        self.assisted = assisted
        self.draft = draft
        self.began_ns = time.perf_counter_ns()
        self.passing: Pass | None = None
        self.request: Request | None = None
        self.seen = self.counted = width
        self.cache: Any = None
        self.scores: torch.Tensor | None = None
        self.owns_scores = self.unwanted = False
        self.held: tuple[Step, int] | None = None
        self.deferred: bool | None = None
        self.fed: torch.Tensor | None = None
        self.since = self.arrivals = 0


class Loop:
    """A plain loop over one cache object: the pass whose tokens the next call will bring."""

    __slots__ = ("passing", "request")

    def __init__(self, request: Request, passing: Pass) -> None:
        self.request = request
        self.passing: Pass | None = passing


class Engine:
    """Observes one model of transformers.

    Parameters
    ----------
    model : the model, held weakly.
    capture : what opens, closes and reduces passes.
    outer : the compiled module around it, where that was given: its hooks run outside of the graph.
    """

    def __init__(self, model: nn.Module, capture: Capture, outer: nn.Module | None = None) -> None:
        self._model = weakref.ref(model)
        self._outer = None if outer is None else weakref.ref(outer)
        self._logits = _logits_place(model, capture)
        self._keeps_logits = accepts(model, "logits_to_keep")  # `generate` then asks for the last one's alone
        self._compiled_passes = 0
        self._calls: set[Call] = set()
        self._arrivals = 0
        self.capture = capture
        self.shield = capture.shield
        self._call: ContextVar[Call | None] = ContextVar("fulgurite_call", default=None)
        self._loops: weakref.WeakKeyDictionary[Any, Loop] = weakref.WeakKeyDictionary()
        self._handles: list[RemovableHandle] = []
        self._wrapper: GenerateWrapper | None = None
        self._processors: ProcessorsWrapper | None = None
        self.packed = Packed(self, capture)
        self.windows = _windows(model, capture.anatomy.topology.layers)
        self._is_heard = False

    def install(self) -> None:
        """Observe passes, and wrap `generate` where the model has it."""
        model = self._model()
        if model is None or self._handles:
            return
        for call in tuple(self._calls):
            call.unwanted = True  # nothing of ours stood there when its pass began
        for module in (model, self._outer() if self._outer is not None else None):
            if module is not None:
                self._handles += [
                    module.register_forward_pre_hook(_Opens(self), with_kwargs=True),
                    module.register_forward_hook(_Closes(self), with_kwargs=True),
                ]
        if callable(getattr(model, "generate_batch", None)):
            self._is_heard = CONTINUOUS.listen(self, model)
        if callable(getattr(model, "generate", None)) and self._wrapper is None:
            self._wrapper = GenerateWrapper(self, model)
            model.__dict__["generate"] = self._wrapper
            self._processors = wrap_processors(self, model)

    def remove(self) -> None:
        """Leave the model as it was."""
        while self._handles:
            self._handles.pop().remove()
        model, wrapper = self._model(), self._wrapper
        self._wrapper = None
        CONTINUOUS.leave(self, model)
        if self._processors is not None:
            unwrap_processors(self._processors, model)
            self._processors = None
        if wrapper is not None:
            wrapper.engine = None
            if model is not None:
                unwrap(model)

    @property
    def unopened(self) -> int:
        """Passes of a compiled model that nothing of ours outside of the graph saw. Asks the device."""
        return 0 if self._logits is None else max(0, self._logits.written - self._compiled_passes)

    def failed(self, place: str, error: Exception) -> None:
        """Our own failure at `place`: this pass is not measured, and after the third none is any more."""
        self.capture.current.passing = None
        try:
            self.shield.caught(place, error)
        finally:
            if self.shield.is_out(place):
                self.remove()
                self.capture.remove()
                self.shield.say_once(
                    "given_up", "%s failed three times: this model is observed no more", place
                )

    @property
    def logits(self) -> Place | None:
        """Where a compiled graph leaves the logits."""
        return self._logits

    def orphaned(self) -> list[Request]:
        """Requests of plain loops that are under way."""
        return [loop.request for loop in list(self._loops.values())]

    # --- forward passes

    def opens(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A forward pass begins."""
        self.capture.current.passing = None
        shape, call = arguments.input_shape(args, kwargs), self._call.get()
        if shape is None or (call is not None and call.draft):
            return
        if call is None:
            cache = arguments.given_cache(args, kwargs)
            if arguments.is_paged(cache):
                self._opens_packed(shape, kwargs)
                return
            if cache is not None:
                self._continue_loop(cache, args, kwargs, shape)
        elif call.search is not None and call.request is not None:
            call.search.go_on(arguments.fed_ids(args, kwargs), self._settler(call))
        passing = self.capture.open(*shape)
        if passing is not None:
            self._describe(passing, call, kwargs)
            passing.own_ns += time.perf_counter_ns() - passing.started_ns
        elif call is not None:
            call.unwanted = True

    def _opens_packed(self, shape: tuple[int, int], kwargs: Mapping[str, Any]) -> None:
        """Of continuous batching: many requests in one row."""
        if not self._is_heard:
            self._say_unmeasured("continuous batching of this version of transformers")
        indices, batch = kwargs.get("logits_indices"), self.packed.launching
        if batch is None or not batch.rows or not isinstance(indices, torch.Tensor) or shape[0] != 1:
            return
        passing = self.capture.open(*shape)
        if passing is not None:
            passing.looks = frozenset()  # its attention reads pages
            self.packed.opened(passing, indices)
            passing.own_ns += time.perf_counter_ns() - passing.started_ns

    def _describe(self, passing: Pass, call: Call | None, kwargs: Mapping[str, Any]) -> None:
        passing.call = call
        passing.arrivals = self._arrivals
        if call is not None and call.request is not None and not call.assisted:
            return  # the rest is about its prompt
        passing.mask = arguments.two_dimensional(kwargs.get("attention_mask"))
        passing.position_ids = kwargs.get("position_ids")
        if call is None:
            if passing.mask is not None and passing.width > 1:
                passing.last = arguments.last_real(passing.mask, passing.width)
        elif call.assisted:
            prompt = call.width if call.request is None and call.width else None
            passing.keep = arguments.verified(kwargs, passing.width, prompt=prompt)

    def closes(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, *, is_outer: bool = False
    ) -> None:
        """A forward pass is over. Of a compiled module, `is_outer`: the model's own hook is in the graph."""
        passing = self.capture.current.passing
        if passing is None:
            return
        entered = time.perf_counter_ns()
        self.capture.current.passing = None
        logits = output[0] if isinstance(output, tuple) else getattr(output, "logits", None)
        if not isinstance(logits, torch.Tensor) or logits.dim() != 3 or logits.shape[1] < passing.keep:
            return
        if passing.picked is not None:
            self.capture.close(passing, logits, None, copies=True)
            self.packed.closed(passing)
            return
        cache = arguments.given_cache(args, kwargs)
        if cache is None:
            cache = arguments.made_cache(output)
        call: Call | None = passing.call
        self._compiled_passes += is_outer
        if len(self._calls) > (call is not None) or self._arrivals != passing.arrivals:  # `_is_crowded`
            passing.crowded = True
        passing.own_ns += time.perf_counter_ns() - entered
        # a plain loop may write into its logits, and assisted decoding does
        self.capture.close(passing, logits, cache, copies=call is None or call.assisted)
        if call is None:
            if cache is not None:
                self._await_tokens(cache, passing)
        elif call.search is not None:
            call.search.closed(_follows(call.search.passing, passing), cache)
        else:
            call.passing = passing if call.passing is None else _follows(call.passing, passing)
            call.cache = cache

    def _say_unmeasured(self, what: str) -> None:
        self.shield.say_once(what, "%s is not measured: no frames are made of it", what)

    # --- calls of generate

    def begin(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Call, tuple[Any, ...], dict[str, Any]]:
        """A call of `generate` begins: what to call it with."""
        if self._call.get() is not None:  # by `generate` itself, for drafts
            return Call(new_ref(), draft=True), args, kwargs
        options = arguments.options_of(self._model(), args, kwargs)
        call = Call(
            current_ref(),
            mask=arguments.two_dimensional(kwargs.get("attention_mask")),
            stops=arguments.stops_of(options),
            width=arguments.prompt_width(args, kwargs),
            beams=int(options("num_beams") or 1),
            assisted=arguments.is_assisted(options, kwargs),
        )
        self.capture.refresh()
        if options("cache_implementation") == "paged":  # `generate` hands over to continuous batching
            return Call(call.ref, draft=True), args, kwargs
        given = with_criterion(args, kwargs, criterion(self, call))
        self._calls.add(call)
        self._arrivals += 1
        call.since, call.arrivals = time.perf_counter_ns(), self._arrivals
        return call, *given

    def committed(self, call: Call, input_ids: torch.Tensor) -> None:
        """`generate` chose tokens: `input_ids` (b, so far) has them at its end."""
        now = time.perf_counter_ns()
        if call.search is not None:
            self._chosen(call, call.search, input_ids, now)
            return
        passing, call.passing = call.passing, None
        scores, call.scores = call.scores, None
        length, before = int(input_ids.shape[1]), call.seen
        call.seen = length
        if passing is None:
            unwanted, call.unwanted = call.unwanted, False
            if length == before + 1 and not unwanted:
                passing = self._compiled_pass(call, int(input_ids.shape[0]), length - 1)
        if passing is None:  # nothing was observed; what was committed is counted when something is again
            return
        n = length - before if call.assisted and before else 1
        if not 0 < n <= passing.keep or input_ids.shape[0] != passing.batch or passing.logits is None:
            self.shield.note("uncommitted")
            return
        if call.request is None:
            call.request = self._started(call, passing, input_ids[:, :-n])
            call.counted = length - n
        request = call.request
        if call.counted < length - n:
            request.commit(input_ids[:, call.counted : length - n].cpu().numpy(), call.stops)
        call.counted = length
        if call.assisted:
            request.drafted += passing.keep - 1
            request.accepted += n - 1
        if call.deferred is None:
            call.deferred = is_deferred(input_ids.device)
        call.fed = None
        passing.own_ns += time.perf_counter_ns() - now
        is_plain = passing.level == "pulse" and not (call.deferred or call.assisted)
        if is_plain and self.capture.commit_pulse(
            passing, request, input_ids, call.stops,
            committed_ns=now, scores=scores, owns_scores=call.owns_scores,
        ):  # fmt: skip
            call.fed = input_ids if passing.batch == 1 else None
            call.since, call.arrivals = time.perf_counter_ns(), self._arrivals
            return
        hand_over = self._holder(call, length) if call.deferred else None
        last = slice(length - n, length)
        tokens = input_ids.numpy()[:, last] if input_ids.is_cpu else input_ids[:, last]
        self.capture.commit(
            passing, request, tokens, call.stops,
            committed_ns=now, scores=scores, owns_scores=call.owns_scores, hand_over=hand_over,
        )  # fmt: skip
        call.since, call.arrivals = time.perf_counter_ns(), self._arrivals

    def _holder(self, call: Call, length: int) -> Callable[[Step], None]:
        """Where `generate` finds out one step late that it is over, the last step may be taken back: it is
        handed over with the next one, or when the end shows that it counts."""

        def hold(step: Step) -> None:
            held, call.held = call.held, (step, length)
            if held is not None:
                self.capture.hand_over(held[0])

        return hold

    def _compiled_pass(self, call: Call, rows: int, prompt: int) -> Pass | None:
        """`generate` compiles the model with its hooks: what the graph left of the pass, if it left it."""
        if call.assisted or self._logits is None or not self._handles:
            return None
        self._compiled_passes += 1
        if self._is_crowded(call, call.arrivals):
            return None
        width = prompt if call.request is None else 1
        return self.capture.recover(
            rows,
            width,
            self._logits,
            positions=1 if self._keeps_logits else width,
            cache=call.cache,
            started_ns=call.since,
        )

    def _is_crowded(self, call: Call | None, arrivals: int) -> bool:
        """Whether another call may have run since: the graph leaves room for one pass."""
        return len(self._calls) > (call is not None) or self._arrivals != arrivals

    def _chosen(self, call: Call, search: Search, candidates: torch.Tensor, now: int) -> None:
        search.chosen(candidates, now)
        if call.request is None and search.passing is not None:
            prompts = search.prompts(search.passing.batch)
            call.request = self._started(call, search.passing, prompts)
            search.lines = Beams(call.request, prompts.cpu().numpy().astype(np.int64), search.beams)

    def _settler(self, call: Call) -> Any:
        def settle(passing: Pass, lines: Any, tokens: Array, chosen_ns: int) -> None:
            assert call.request is not None
            chosen = torch.from_numpy(tokens)
            self.capture.commit(
                passing, call.request, chosen, call.stops, committed_ns=chosen_ns, lines=lines
            )

        return settle

    def end(self, call: Call, output: Any, error: BaseException | None) -> None:
        """`generate` is over."""
        if call in self._calls:
            self._calls.discard(call)
            self._arrivals += 1
        if call.search is not None:
            call.search.release()
        request = call.request
        if request is None and error is not None and not call.draft:
            request = self._unbegun(call)
        if request is None:
            return
        if call.held is not None:
            ids = getattr(output, "sequences", output)
            if not isinstance(ids, torch.Tensor) or ids.shape[1] >= call.held[1]:
                self.capture.hand_over(call.held[0])
        if error is not None:
            self.capture.event(request, "aborted", reason=type(error).__name__)
            return
        if call.search is not None:
            request.winners = call.search.end(output, self._settler(call))
            stopped = _all_stopped(output, call.stops)
        else:
            if call.fed is not None:
                request.stop_at([int(call.fed[0, -1])], call.stops)
            stopped = bool(request.finished.all())
        self.capture.event(request, "finished", reason="stop" if stopped else "length")

    def _unbegun(self, call: Call) -> Request:
        """A request that ended before its first token: a client that left early, say."""
        mask = None if call.mask is None else call.mask.cpu().numpy()
        rows, width = (1, call.width) if mask is None else mask.shape
        request = new_request(call.ref, rows=rows, width=width, mask=mask)
        self.capture.event(request, "started", at_ns=call.began_ns)
        return request

    def _started(self, call: Call, passing: Pass, prompts: torch.Tensor) -> Request:
        rows, width = int(prompts.shape[0]), int(prompts.shape[1])
        mask = arguments.prompt_mask(call.mask, passing, rows, width)
        request = new_request(call.ref, rows=rows, width=width, mask=mask)
        self.capture.event(request, "started", texts=self._prompt_texts(prompts, mask), at_ns=call.began_ns)
        return request

    def _prompt_texts(self, prompt: torch.Tensor, mask: Array | None) -> tuple[str, ...]:
        if self.capture.texts is None:
            return ()
        ids = prompt.cpu().numpy()
        if mask is None or mask.shape != ids.shape:
            return self.capture.texts.prompts(ids.tolist())
        return self.capture.texts.prompts(
            [row[real != 0].tolist() for row, real in zip(ids, mask, strict=True)]
        )

    # --- plain loops

    def _continue_loop(
        self, cache: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], shape: tuple[int, int]
    ) -> None:
        """A call with a cache that we know: what it is fed are the tokens of the pass before."""
        loop = self._loops.get(cache)
        if loop is None or loop.passing is None:
            return
        passing, loop.passing = loop.passing, None
        ids = arguments.fed_ids(args, kwargs)
        if shape[1] != 1 or shape[0] != passing.batch or ids is None:
            self._new_turn(cache, loop, shape[1])
            return
        if not loop.request.generated.any():
            self.capture.event(loop.request, "started", at_ns=passing.started_ns)
        now = time.perf_counter_ns()
        self.capture.commit(passing, loop.request, ids[:, 0], frozenset(), committed_ns=now)

    def _new_turn(self, cache: Any, loop: Loop, width: int) -> None:
        """A prompt that is fed in pieces goes on; behind generated tokens it is another request."""
        if loop.request.generated.any():
            del self._loops[cache]
            self.loop_ended(loop.request)
        else:
            loop.request.lengthen(width)

    def _await_tokens(self, cache: Any, passing: Pass) -> None:
        loop = self._loops.get(cache)
        if loop is not None:
            loop.passing = passing
            return
        self.capture.refresh()
        held = _logical_length(cache)
        width = max(passing.width, held)
        mask = None if passing.mask is None else passing.mask.cpu().numpy()
        request = new_request(current_ref(), rows=passing.batch, width=width, mask=mask)
        self._loops[cache] = Loop(request, passing)
        weakref.finalize(cache, _loop_ended, weakref.ref(self), request).atexit = False

    def loop_ended(self, request: Request) -> None:
        """The cache of a plain loop is gone."""
        if request.generated.any() and request.ref.request_id in self.capture.running:
            self.capture.event(request, "finished", reason="cache released")

    @property
    def call(self) -> ContextVar[Call | None]:
        """The call of `generate` that runs in this context."""
        return self._call


class _ModelHook:
    """A hook on the model itself; a copy of the model carries a function that does nothing in its place."""

    __slots__ = ("engine", "place")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.place = engine.logits

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


class _Opens(_ModelHook):
    __slots__ = ()

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_compiling():
            return
        try:
            self.engine.opens(args, kwargs)
        except Exception as error:
            self.engine.failed("open", error)


class _Closes(_ModelHook):
    __slots__ = ()

    def __call__(self, of: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if is_compiling():
            if self.place is not None:
                _leave_logits(output, self.place)
            return
        try:
            self.engine.closes(args, kwargs, output, is_outer="_orig_mod" in of._modules)
        except Exception as error:
            self.engine.failed("close", error)


def _leave_logits(output: Any, place: Place) -> None:
    """In a graph that is traced. Anything but plain code breaks it."""
    logits = output[0] if isinstance(output, tuple) else getattr(output, "logits", None)
    if isinstance(logits, torch.Tensor):
        leave(logits, place)


def _logits_place(model: nn.Module, capture: Capture) -> Place | None:
    unembedding = capture.anatomy.unembedding
    shape = None if unembedding is None else linear_shape(unembedding)
    parameter = next(unembedding.parameters(), None) if unembedding is not None else None
    if shape is None or parameter is None:
        return None
    key = (id(model), "logits")
    capture.kept_places.add(key)
    return capture.shelf.place(key, shape[1], parameter.device)


def _follows(before: Pass | None, passing: Pass) -> Pass:
    """`passing`, which took up what `before`, a piece of the same prompt, had spent."""
    if before is not None:
        passing.started_ns = before.started_ns
        passing.own_ns += before.own_ns
    return passing


def is_deferred(device: torch.device) -> bool:
    """Whether `generate` finds out one step late on this device that it is over."""
    utils = sys.modules.get("transformers.generation.utils")
    check = getattr(utils, "DeferredStopCheck", None)
    return check is not None and bool(check.is_supported(device, None, False, is_assistant=False))


def _all_stopped(output: Any, stops: frozenset[int]) -> bool:
    """Whether every returned line has an end in it."""
    ids = getattr(output, "sequences", output)
    if not stops or not isinstance(ids, torch.Tensor):
        return False
    return bool(np.isin(ids.cpu().numpy(), np.fromiter(stops, np.int64)).any(-1).all())


def _windows(model: nn.Module, layers: int) -> Array:
    """How many tokens each layer's pages hold at most, int64 (L,): 0 for all, -1 where it has none."""
    config = getattr(model, "config", None)
    kinds = list(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if len(kinds) != layers:
        kinds = ["sliding_attention" if isinstance(window, int) else "full_attention"] * layers
    held = {"full_attention": 0, "sliding_attention": window if isinstance(window, int) else 0}
    return np.array([held.get(kind, -1) for kind in kinds], np.int64)


def _logical_length(cache: Any) -> int:
    getter = getattr(cache, "get_seq_length", None)
    return int(getter()) if callable(getter) else 0


def _loop_ended(engine: weakref.ref[Engine], request: Request) -> None:
    found = engine()
    if found is not None:
        with found.shield.at("loop"):
            found.loop_ended(request)
