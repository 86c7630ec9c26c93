"""Where transformers' continuous batching is listened to: its processor and its manager.

Their steps are methods of classes of transformers, so they are wrapped there while any model is observed, run
first and unchanged, and are put back with the last one. A version whose methods are others is left alone, and
then nothing is measured of it.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from fulgurite.agent.surroundings import current_ref

if TYPE_CHECKING:
    from fulgurite.agent.engines.transformers import Engine

_PROCESSOR = (
    "_generation_step",
    "update_batch",
    "prepare_next_batch",
    "fail_all_requests",
    "_handle_request_error",
)


class Continuous:
    """The wrappers of this process, and who listens to them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Engine]] = weakref.WeakKeyDictionary()
        self._models: weakref.WeakKeyDictionary[Any, weakref.ref[nn.Module]] = weakref.WeakKeyDictionary()
        self._plain: list[tuple[type, str, Any]] = []

    def listen(self, engine: Engine, model: nn.Module) -> bool:
        """Tell `engine` of the steps of `model`; False where this version cannot be listened to."""
        with self._lock:
            if not self._plain and not self._wrap():
                return False
            self._engines[model] = weakref.ref(engine)
            return True

    def leave(self, engine: Engine, model: nn.Module | None) -> None:
        """Undo `listen`; the last one takes the wrappers with it."""
        with self._lock:
            if model is not None and (known := self._engines.get(model)) is not None and known() is engine:
                del self._engines[model]
            if not self._engines:
                for owner, name, plain in self._plain:
                    setattr(owner, name, plain)
                self._plain = []

    def engine_of(self, model: nn.Module | None) -> Engine | None:
        """Who observes `model`."""
        known = self._engines.get(model) if model is not None else None
        return known() if known is not None else None

    def _wrap(self) -> bool:
        try:
            from transformers.generation.continuous_batching import continuous_api as api

            owners = (api.ContinuousBatchProcessor, api.ContinuousBatchingManager)
        except (ImportError, AttributeError):
            return False
        processor, manager = owners
        if not all(hasattr(processor, name) for name in _PROCESSOR) or not hasattr(manager, "add_request"):
            return False
        around = {
            "_generation_step": self._around_step,
            "update_batch": self._around_update,
            "prepare_next_batch": self._around_preparation,
            "fail_all_requests": self._around_failure,
            "_handle_request_error": self._around_error,
        }
        for name, make in around.items():
            self._put(processor, name, make)
        self._put(manager, "add_request", self._around_request)
        # What tells of requests that are over before their first step: other versions have it elsewhere.
        for owner, name, make in (
            (processor, "_update_tp_group_state", self._around_acceptance),
            (manager, "_create_batch_processor", self._around_creation),
        ):
            if name in vars(owner):
                self._put(owner, name, make)
        return True

    def _put(self, owner: type, name: str, make: Callable[[Any], Any]) -> None:
        plain = owner.__dict__[name]
        self._plain.append((owner, name, plain))
        setattr(owner, name, functools.wraps(plain)(make(plain)))

    def _of(self, processor: Any) -> Engine | None:
        known = self._models.get(processor)
        return self.engine_of(known()) if known is not None else None

    # --- the wrappers

    def _around_creation(self, plain: Any) -> Any:
        def create(manager: Any) -> Any:
            processor = plain(manager)
            if (engine := self.engine_of(manager.model)) is not None:
                with engine.shield.at("packed"):
                    self._models[processor] = weakref.ref(manager.model)
            return processor

        return create

    def _around_acceptance(self, plain: Any) -> Any:
        def accept(processor: Any) -> Any:
            found = plain(processor)
            engine = self._of(processor)
            if engine is not None and engine.capture.demand.level != "off":
                with engine.shield.at("packed"):
                    engine.packed.accepted(processor)
            return found

        return accept

    def _around_step(self, plain: Any) -> Any:
        def step(processor: Any, model: nn.Module) -> Any:
            engine = self.engine_of(model)
            if engine is None or engine.capture.demand.level == "off":
                return plain(processor, model)
            with engine.shield.at("packed"):
                self._models[processor] = weakref.ref(model)
                engine.packed.launches(processor)
            try:
                return plain(processor, model)
            finally:
                with engine.shield.at("packed"):
                    engine.packed.launched()

        return step

    def _around_update(self, plain: Any) -> Any:
        def update(processor: Any) -> Any:
            engine = self._of(processor)
            before: Any = None
            if engine is not None:
                with engine.shield.at("packed"):
                    before = engine.packed.updates()
            found = plain(processor)
            if engine is not None and before is not None:
                with engine.shield.at("packed"):
                    engine.packed.updated(before, processor)
            return found

        return update

    def _around_preparation(self, plain: Any) -> Any:
        def prepare(processor: Any) -> Any:
            found = plain(processor)
            if not found and (engine := self._of(processor)) is not None:
                with engine.shield.at("packed"):
                    engine.packed.sweep(processor)
            return found

        return prepare

    def _around_failure(self, plain: Any) -> Any:
        def fail(processor: Any, error: Exception) -> Any:
            found = plain(processor, error)
            if (engine := self._of(processor)) is not None:
                with engine.shield.at("packed"):
                    engine.packed.sweep(processor, is_over=True)
            return found

        return fail

    def _around_error(self, plain: Any) -> Any:
        def handle(processor: Any, error: Exception, state: Any) -> Any:
            found = plain(processor, error, state)
            if (engine := self._of(processor)) is not None:
                with engine.shield.at("packed"):
                    engine.packed.failed(state, error)
            return found

        return handle

    def _around_request(self, plain: Any) -> Any:
        def add(manager: Any, *args: Any, **kwargs: Any) -> Any:
            engine = self.engine_of(manager.model)
            request_id = args[1] if len(args) > 1 else kwargs.get("request_id")
            if engine is not None and isinstance(request_id, str):
                with engine.shield.at("packed"):
                    engine.packed.asked(request_id, current_ref())
            return plain(manager, *args, **kwargs)

        return add


CONTINUOUS = Continuous()
