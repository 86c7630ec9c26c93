"""`generate` while a model is observed: wrapped on the instance, with a criterion that stops nothing.

A copy of the model gets its own plain `generate`; whoever wraps it after us stays in place when we leave.
"""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from fulgurite.agent.engines.transformers import Call, Engine


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
        output: Any = None
        try:
            output = original(*args, **kwargs)
            return output
        except BaseException as raised:
            error = raised
            raise
        finally:
            engine.call.reset(token)
            with engine.shield.at("generate"):
                engine.end(call, output, error)


def _plain_generate(model: Any) -> Callable[..., Any]:
    found: Callable[..., Any] = type(model).generate
    return found


def _same(value: Any) -> Any:
    return value


def unwrap(model: nn.Module) -> None:
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
                self.engine.failed("commit", error)
            if self.never is None or self.never.shape[0] != input_ids.shape[0]:
                self.never = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
            return self.never

    return CommitPoint


def criterion(engine: Engine, call: Call) -> Any:
    """A stopping criterion that tells `engine` what `call` committed."""
    return _criterion_class()(engine, call)


def with_criterion(
    args: tuple[Any, ...], kwargs: dict[str, Any], added: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `generate` with `added` at the end; the caller's own list stays as it is."""
    from transformers import StoppingCriteriaList

    place = 3  # of `stopping_criteria` among the positional arguments
    given = args[place] if len(args) > place else kwargs.get("stopping_criteria")
    extended = StoppingCriteriaList([*(given or ()), added])
    if len(args) > place:
        return (*args[:place], extended, *args[place + 1 :]), kwargs
    return args, {**kwargs, "stopping_criteria": extended}
