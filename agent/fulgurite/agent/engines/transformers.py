"""Transformers models in this process: `generate`, and plain loops of ``model(...)`` with a cache.

Two hooks on the model itself open and close each forward pass. `generate` is wrapped on the instance: the
wrapper marks the pass as belonging to a request, and adds a stopping criterion, which is called once per step
with the tokens that were committed and stops nothing. In a plain loop the tokens are those that the next call
is fed.

Shape letters: b rows, t positions of a pass.
"""

from __future__ import annotations

import functools
import inspect
import time
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.compiler import is_compiling
from torch.utils.hooks import RemovableHandle

from fulgurite.agent.capture import Capture
from fulgurite.agent.identity import Request, new_ref, new_request
from fulgurite.agent.probes import Pass
from fulgurite.wire.frame import RequestRef

Array = np.ndarray[Any, Any]


class Call:
    """One call of `generate`.

    Attributes
    ----------
    passing : the last forward pass, until its tokens are known.
    beams : rows are beams whose order changes; no frames are made of them.
    """

    __slots__ = ("beams", "criterion_rows", "length", "mask", "passing", "ref", "request", "stops")

    def __init__(
        self, ref: RequestRef, mask: torch.Tensor | None, stops: frozenset[int], *, beams: bool
    ) -> None:
        self.ref = ref
        self.mask = mask
        self.stops = stops
        self.beams = beams
        self.passing: Pass | None = None
        self.request: Request | None = None
        self.length = 0


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
    """

    def __init__(self, model: nn.Module, capture: Capture) -> None:
        self._model = weakref.ref(model)
        self.capture = capture
        self.shield = capture.shield
        self._call: ContextVar[Call | None] = ContextVar("fulgurite_call", default=None)
        self._loops: weakref.WeakKeyDictionary[Any, Loop] = weakref.WeakKeyDictionary()
        self._handles: list[RemovableHandle] = []
        self._wrapper: GenerateWrapper | None = None

    def install(self) -> None:
        """Observe passes, and wrap `generate` where the model has it."""
        model = self._model()
        if model is None or self._handles:
            return
        self._handles = [
            model.register_forward_pre_hook(_Opens(self), with_kwargs=True),
            model.register_forward_hook(_Closes(self), with_kwargs=True),
        ]
        if callable(getattr(model, "generate", None)) and self._wrapper is None:
            self._wrapper = GenerateWrapper(self, model)
            model.__dict__["generate"] = self._wrapper

    def remove(self) -> None:
        """Leave the model as it was."""
        while self._handles:
            self._handles.pop().remove()
        model, wrapper = self._model(), self._wrapper
        self._wrapper = None
        if wrapper is not None:
            wrapper.engine = None
            if model is not None:
                _unwrap(model)

    def orphaned(self) -> list[Request]:
        """Requests of plain loops that are under way."""
        return [loop.request for loop in list(self._loops.values())]

    def opens(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A forward pass begins."""
        shape = _input_shape(args, kwargs)
        call = self._call.get()
        cache = kwargs.get("past_key_values")
        if call is None and cache is not None:
            self._continue_loop(cache, args, kwargs, shape)
        passing = (
            self.capture.open(*shape) if shape is not None and (call is None or not call.beams) else None
        )
        if passing is None:
            self.capture.current.passing = None
            return
        mask = kwargs.get("attention_mask")
        passing.mask = mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None
        passing.call = call
        passing.position_ids = kwargs.get("position_ids")
        if call is None and passing.mask is not None and passing.width > 1:
            passing.last = _last_real(passing.mask, passing.width)
        passing.own_ns += time.perf_counter_ns() - passing.started_ns

    def closes(self, kwargs: Mapping[str, Any], output: Any) -> None:
        """A forward pass is over."""
        passing = self.capture.current.passing
        if passing is None:
            return
        logits = output[0] if isinstance(output, tuple) else getattr(output, "logits", None)
        if not isinstance(logits, torch.Tensor) or logits.dim() != 3:
            self.capture.current.passing = None
            return
        cache = kwargs.get("past_key_values")
        if cache is None:
            cache = getattr(output, "past_key_values", None)
        call: Call | None = passing.call
        self.capture.close(passing, logits, cache, copies=call is None)
        if call is not None:
            call.passing = passing
        elif cache is not None:
            self._await_tokens(cache, passing)

    def begin(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Call, tuple[Any, ...], dict[str, Any]]:
        """A call of `generate` begins: what to call it with."""
        model = self._model()
        mask = kwargs.get("attention_mask")
        mask = mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None
        options = _options(model, args, kwargs)
        call = Call(_traced_ref(), mask, _stops(options), beams=int(options("num_beams") or 1) > 1)
        self.capture.refresh()
        if options("cache_implementation") == "paged":
            return call, args, kwargs
        return call, *_with_criterion(args, kwargs, _criterion(self, call))

    def committed(self, call: Call, input_ids: torch.Tensor) -> None:
        """`generate` chose tokens: `input_ids` (b, so far) has them at its end."""
        now = time.perf_counter_ns()
        passing, call.passing = call.passing, None
        length, call.length = call.length, int(input_ids.shape[1])
        if passing is None or call.beams:
            return
        grown = call.length - length if call.request is not None else 1
        if grown != 1 or input_ids.shape[0] != passing.batch or passing.logits is None:
            self.shield.note("uncommitted")
            return
        if call.request is None:
            call.request = self._started(call, passing, input_ids)
        self.capture.commit(passing, call.request, input_ids[:, -1], call.stops, committed_ns=now)

    def end(self, call: Call, error: BaseException | None) -> None:
        """`generate` is over."""
        if call.request is None:
            return
        if error is not None:
            self.capture.event(call.request, "aborted", reason=type(error).__name__)
        else:
            all_stopped = bool(call.request.finished.all())
            self.capture.event(call.request, "finished", reason="stop" if all_stopped else "length")

    def _started(self, call: Call, passing: Pass, input_ids: torch.Tensor) -> Request:
        rows, width = int(input_ids.shape[0]), int(input_ids.shape[1]) - 1
        mask = _prompt_mask(call, passing, rows, width)
        request = new_request(call.ref, rows=rows, width=width, mask=mask)
        self.capture.event(request, "started", texts=self._prompt_texts(input_ids[:, :-1], mask))
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

    def _continue_loop(
        self, cache: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], shape: tuple[int, int] | None
    ) -> None:
        """A call with a cache that we know: what it is fed are the tokens of the pass before."""
        loop = self._loops.get(cache)
        if loop is None or loop.passing is None or shape is None:
            return
        passing, loop.passing = loop.passing, None
        ids = args[0] if args else kwargs.get("input_ids")
        if shape[1] != 1 or shape[0] != passing.batch or ids is None:
            _extend_prompt(loop.request, shape[1])
            return
        if not loop.request.generated.any():
            self.capture.event(loop.request, "started")
        now = time.perf_counter_ns()
        self.capture.commit(passing, loop.request, ids[:, 0], frozenset(), committed_ns=now)

    def _await_tokens(self, cache: Any, passing: Pass) -> None:
        loop = self._loops.get(cache)
        if loop is not None:
            loop.passing = passing
            return
        self.capture.refresh()
        held = _logical_length(cache)
        width = max(passing.width, held)
        mask = None if passing.mask is None else passing.mask.cpu().numpy()
        request = new_request(_traced_ref(), rows=passing.batch, width=width, mask=mask)
        self._loops[cache] = Loop(request, passing)
        weakref.finalize(cache, _loop_ended, weakref.ref(self), request).atexit = False

    def loop_ended(self, request: Request) -> None:
        """The cache of a plain loop is gone."""
        if request.generated.any():
            self.capture.event(request, "finished", reason="cache released")

    @property
    def call(self) -> ContextVar[Call | None]:
        """The call of `generate` that runs in this context."""
        return self._call


class GenerateWrapper:
    """Stands in for ``model.generate`` while a model is observed.

    A copy of the model gets its own plain `generate`.
    """

    def __init__(self, engine: Engine, model: nn.Module) -> None:
        self.engine: Engine | None = engine
        self._model = weakref.ref(model)
        self.previous: Any = model.__dict__.get("generate")
        original = self.previous if self.previous is not None else _plain_generate(model)
        functools.update_wrapper(self, original, updated=())
        del self.__dict__[
            "__wrapped__"
        ]  # whoever looks for the signature finds ours, which is the bound method's
        bound: Any = model.generate
        self.__signature__ = inspect.signature(bound)

    def original(self) -> Callable[..., Any]:
        """What this stands in for."""
        if self.previous is not None:
            found: Callable[..., Any] = self.previous
            return found
        model = self._model()
        return types.MethodType(_plain_generate(model), model)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.previous is not None and not isinstance(self.previous, GenerateWrapper):
            return _same, (self.previous,)
        # the copy exists, still without attributes, when this is called for it: so this finds its class's own
        return getattr, (self._model(), "generate")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        engine, original = self.engine, self.original()
        if engine is None or engine.capture.demand.level == "off":
            return original(*args, **kwargs)
        call: Call | None = None
        with engine.shield.at("generate"):
            call, args, kwargs = engine.begin(args, kwargs)
        if call is None:
            return original(*args, **kwargs)
        token = engine.call.set(call)
        error: BaseException | None = None
        try:
            return original(*args, **kwargs)
        except BaseException as raised:
            error = raised
            raise
        finally:
            engine.call.reset(token)
            with engine.shield.at("generate"):
                engine.end(call, error)


def _plain_generate(model: Any) -> Callable[..., Any]:
    found: Callable[..., Any] = type(model).generate
    return found


def _same(value: Any) -> Any:
    return value


def _unwrap(model: nn.Module) -> None:
    """Take wrappers that no longer observe anything off, as far as nobody else has wrapped them."""
    while isinstance(wrapper := model.__dict__.get("generate"), GenerateWrapper) and wrapper.engine is None:
        if wrapper.previous is None:
            del model.__dict__["generate"]
        else:
            model.__dict__["generate"] = wrapper.previous
    outer = wrapper
    while isinstance(outer, GenerateWrapper):
        inner = outer.previous
        if isinstance(inner, GenerateWrapper) and inner.engine is None:
            outer.previous = inner.previous
        else:
            outer = inner


class _ModelHook:
    """A hook on the model itself; a copy of the model carries a function that does nothing in its place."""

    __slots__ = ("engine",)

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

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
            self.engine.capture.current.passing = None
            self.engine.shield.caught("open", error)


class _Closes(_ModelHook):
    __slots__ = ()

    def __call__(self, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if is_compiling():
            return
        try:
            self.engine.closes(kwargs, output)
        except Exception as error:
            self.engine.capture.current.passing = None
            self.engine.shield.caught("close", error)


@functools.cache
def _criterion_class() -> type[Any]:
    from transformers import StoppingCriteria  # the agent is importable without transformers

    class CommitPoint(StoppingCriteria):
        """Sees every step's committed tokens and never stops anything."""

        def __init__(self, engine: Engine, call: Call) -> None:
            self.engine = engine
            self.call = call
            self.never: torch.Tensor | None = None

        def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
            try:
                self.engine.committed(self.call, input_ids)
            except Exception as error:
                self.engine.shield.caught("commit", error)
            if self.never is None or self.never.shape[0] != input_ids.shape[0]:
                self.never = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
            return self.never

    return CommitPoint


def _criterion(engine: Engine, call: Call) -> Any:
    return _criterion_class()(engine, call)


def _with_criterion(
    args: tuple[Any, ...], kwargs: dict[str, Any], criterion: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `generate` with `criterion` added; the caller's own list stays as it is."""
    from transformers import StoppingCriteriaList

    place = 3  # of `stopping_criteria` among the positional arguments
    given = args[place] if len(args) > place else kwargs.get("stopping_criteria")
    extended = StoppingCriteriaList([*(given or ()), criterion])
    if len(args) > place:
        return (*args[:place], extended, *args[place + 1 :]), kwargs
    return args, {**kwargs, "stopping_criteria": extended}


def _options(
    model: nn.Module | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[[str], Any]:
    """Looks an option of `generate` up where `generate` does: argument, given configuration, the model's
    own."""
    given = args[1] if len(args) > 1 else kwargs.get("generation_config")
    sources = [given, getattr(model, "generation_config", None)]

    def look_up(name: str) -> Any:
        if kwargs.get(name) is not None:
            return kwargs[name]
        found = (getattr(source, name, None) for source in sources if source is not None)
        return next((value for value in found if value is not None), None)

    return look_up


def _stops(options: Callable[[str], Any]) -> frozenset[int]:
    found = options("eos_token_id")
    if found is None:
        return frozenset()
    if isinstance(found, torch.Tensor):
        found = found.reshape(-1).tolist()
    return frozenset(int(token) for token in (found if isinstance(found, Iterable) else (found,)))


def _traced_ref() -> RequestRef:
    """A new request under the OpenTelemetry span that is current, if any."""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return new_ref()
    return new_ref(trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id))


def _input_shape(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, int] | None:
    ids = args[0] if args else kwargs.get("input_ids")
    if ids is None:
        ids = kwargs.get("inputs_embeds")
    return (
        (int(ids.shape[0]), int(ids.shape[1])) if isinstance(ids, torch.Tensor) and ids.dim() >= 2 else None
    )


def _last_real(mask: torch.Tensor, width: int) -> torch.Tensor | None:
    """Where each row's last real position is in a pass of `width` positions; None where it is the last for
    all."""
    recent = mask[:, -width:]
    if recent.shape[1] != width or bool((recent[:, -1] != 0).all()):
        return None
    order = torch.arange(1, width + 1, device=mask.device)
    return ((recent != 0) * order).argmax(-1)


def _prompt_mask(call: Call, passing: Pass, rows: int, width: int) -> Array | None:
    """Which positions of the prompts are real, (b, width): from the pass's own mask, else from what was
    given."""
    for mask in (passing.mask, call.mask):
        if mask is not None and mask.shape[1] >= width:
            found: Array = mask.cpu().numpy()
            return np.repeat(found, rows // len(found), axis=0) if len(found) != rows else found
    positions = passing.position_ids
    if not isinstance(positions, torch.Tensor) or positions.dim() != 2 or width == 0:
        return None
    real = positions[:, -1].cpu().numpy().astype(np.int64) + 1
    real = np.broadcast_to(real, (rows,))
    if (real > width).any():
        return None
    return (np.arange(width)[None, :] >= width - real[:, None]).astype(np.int64)


def _extend_prompt(request: Request, width: int) -> None:
    """A prompt that is fed in pieces: nothing was generated in between."""
    if not request.generated.any():
        request.prompt += width
        request.width += width


def _logical_length(cache: Any) -> int:
    getter = getattr(cache, "get_seq_length", None)
    return int(getter()) if callable(getter) else 0


def _loop_ended(engine: weakref.ref[Engine], request: Request) -> None:
    found = engine()
    if found is not None:
        with found.shield.at("loop"):
            found.loop_ended(request)
