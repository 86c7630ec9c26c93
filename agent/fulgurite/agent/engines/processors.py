"""The distribution that a token was drawn from: what `generate` has after its last processor.

Temperature, top-k, top-p and the like are put together by `generate` itself, behind whatever it is handed. So
what puts them together is wrapped on the instance, and one more is added, which keeps the scores and hands
them on as they are. Where nothing processes the logits nothing is added: the model's own distribution is the
one that is sampled from.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from fulgurite.agent.engines.transformers import Call, Engine

NAME = "_get_logits_processor"


class ProcessorsWrapper:
    """Stands in for the method of a model that puts the processors together.

    A copy of the model gets its own plain one.
    """

    def __init__(self, engine: Engine, model: nn.Module) -> None:
        self.engine: Engine | None = engine
        self._model = weakref.ref(model)
        self._plain = getattr(type(model), NAME)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = types.MethodType(self._plain, self._model())(*args, **kwargs)
        call = self.engine.call.get() if self.engine is not None else None
        if call is not None and len(found) and not (call.draft or call.assisted or call.search is not None):
            call.owns_scores = not _are_shared(found, args[0] if args else kwargs.get("generation_config"))
            found.append(_keeper_class()(call))
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._model(), NAME)


def _are_shared(processors: Iterable[object], options: object) -> bool:
    """Whether somebody else may hold the scores, and write into them: the caller of `generate`, where it
    hands them out, or a processor of somebody else's."""
    if getattr(options, "output_scores", True) or getattr(options, "return_dict_in_generate", True):
        return True
    return not all(type(one).__module__.startswith("transformers.") for one in processors)


def wrap(engine: Engine, model: nn.Module) -> ProcessorsWrapper | None:
    """See to it that `engine` learns the scores; None where this model has no such method of its class."""
    if not callable(getattr(type(model), NAME, None)) or NAME in model.__dict__:
        return None
    wrapper = ProcessorsWrapper(engine, model)
    model.__dict__[NAME] = wrapper
    return wrapper


def unwrap(wrapper: ProcessorsWrapper, model: nn.Module | None) -> None:
    """Undo `wrap`, where nobody has wrapped it since."""
    wrapper.engine = None
    if model is not None and model.__dict__.get(NAME) is wrapper:
        del model.__dict__[NAME]


@functools.cache
def _keeper_class() -> type[Any]:
    from transformers import LogitsProcessor  # the agent is importable without transformers

    class ScoresKeeper(LogitsProcessor):
        """Keeps what the processors before it made of the logits."""

        def __init__(self, call: Call) -> None:
            self.call = call

        def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:  # noqa: ARG002
            self.call.scores = scores
            return scores

    return ScoresKeeper
