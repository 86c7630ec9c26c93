"""Attaches to whatever model a process loads, without a change of its code.

Used by ``fulgurite run`` and by ``opentelemetry-instrument``. A model of transformers is observed from the
moment at which `from_pretrained` has loaded it, or, however it was made, from its first `generate`. HTTP
requests of Starlette and FastAPI tell their id and trace to what they cause.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from fulgurite.agent.shield import Shield
from fulgurite.agent.surroundings import asked, from_headers

logger = logging.getLogger("fulgurite.agent")
_lock = threading.Lock()
_undo: list[Callable[[], None]] = []
_done: set[str] = set()
_seen: weakref.WeakSet[Any] = weakref.WeakSet()
_shield = Shield()


def attach(name: str) -> None:
    """Attach to what the imported module `name` brings; once each."""
    with _lock:
        if name in _done or name not in _ATTACH:
            return
        _done.add(name)
    _ATTACH[name](sys.modules[name])


def detach() -> None:
    """Take our wrappers off. Models that are observed stay so."""
    with _lock:
        while _undo:
            _undo.pop()()
        _done.clear()


def observe(model: Any) -> None:
    """Observe `model` where it is one that can be; never an error in the host."""
    if model in _seen:
        return
    _seen.add(model)
    with _shield.at("auto"):
        if not _is_causal(model):
            return
        from fulgurite.agent import instrument

        try:
            instrument(model)
        except (TypeError, ValueError) as error:
            logger.warning("%s is not observed: %s", type(model).__name__, error)


def _is_causal(model: Any) -> bool:
    """Whether it is a decoder with something to generate from."""
    config = getattr(model, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False):
        return False
    can_generate = getattr(model, "can_generate", None)
    return bool(can_generate()) if callable(can_generate) else False


def _to_transformers(module: Any) -> None:
    owner = module.PreTrainedModel
    _wrap_class_method(owner, "from_pretrained", _loaded)
    if "generate" in vars(_generation_mixin()):
        _wrap(_generation_mixin(), "generate", _generating)
        _wrap(_generation_mixin(), "generate_batch", _generating)
    _wrap_inference_thread()


def _generation_mixin() -> Any:
    return importlib.import_module("transformers.generation.utils").GenerationMixin


def _loaded(plain: Callable[..., Any]) -> Callable[..., Any]:
    def load(*args: Any, **kwargs: Any) -> Any:
        found = plain(*args, **kwargs)
        model = found[0] if isinstance(found, tuple) and found else found  # with output_loading_info
        observe(model)
        return found

    return load


def _generating(plain: Callable[..., Any]) -> Callable[..., Any]:
    def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
        if model not in _seen:
            observe(model)
            own = vars(model).get(plain.__name__)
            if own is not None:  # the wrapper that observes; it comes back here for what it stands for
                return own(*args, **kwargs)
        return plain(model, *args, **kwargs)

    return generate


def _wrap(owner: Any, name: str, around: Callable[[Any], Any]) -> None:
    plain = vars(owner).get(name)
    if plain is None:
        return
    setattr(owner, name, functools.wraps(plain)(around(plain)))
    _undo.append(lambda: setattr(owner, name, plain))


def _wrap_class_method(owner: Any, name: str, around: Callable[[Any], Any]) -> None:
    plain = vars(owner)[name]
    function = around(plain.__func__)
    setattr(owner, name, classmethod(functools.wraps(plain.__func__)(function)))
    _undo.append(lambda: setattr(owner, name, plain))


# --- what serves


def _to_starlette(module: Any) -> None:
    def around(plain: Callable[..., Any]) -> Callable[..., Any]:
        async def call(app: Any, scope: Any, receive: Any, send: Any) -> None:
            if scope.get("type") != "http":
                await plain(app, scope, receive, send)
                return
            headers = {key: value for key, value in scope.get("headers", ()) if key in _HEADERS}
            texts = [headers.get(name, b"").decode("latin-1") for name in _HEADERS]
            with asked(from_headers(*texts)):
                await plain(app, scope, receive, send)

        return call

    _wrap(module.Starlette, "__call__", around)


_HEADERS = (b"x-request-id", b"traceparent")


def _wrap_inference_thread() -> None:
    """The server of transformers hands work to a thread of its own: it goes there with its surroundings."""
    from fulgurite.agent.engines.serving import join_when_there

    _undo.append(join_when_there())


_ATTACH: dict[str, Callable[[Any], None]] = {
    "transformers.modeling_utils": _to_transformers,
    "starlette.applications": _to_starlette,
}
