"""The guest in somebody else's process: observe a language model while it serves.

Nothing heavy is imported until a model is instrumented; torch is the host's anyway.

Examples
--------
>>> from fulgurite.agent import instrument, InMemoryExporter  # doctest: +SKIP
>>> exporter = InMemoryExporter()  # doctest: +SKIP
>>> with instrument(model, exporter=exporter):  # doctest: +SKIP
...     model.generate(**inputs)
>>> exporter.frames[0].head_write.shape  # doctest: +SKIP
(6, 8)
"""

from __future__ import annotations

import logging
import os
import weakref
from typing import TYPE_CHECKING, Any

from fulgurite.agent import config
from fulgurite.agent.blackbox import observe, unobserve
from fulgurite.agent.exporter import InMemoryExporter

if TYPE_CHECKING:
    from fulgurite.agent.attachment import Agent
    from fulgurite.agent.exporter import Exporter

__all__ = ["Agent", "InMemoryExporter", "instrument", "observe", "unobserve"]

logger = logging.getLogger("fulgurite.agent")
_attached: weakref.WeakKeyDictionary[Any, weakref.ref[Agent]] = weakref.WeakKeyDictionary()


def instrument(
    model: Any,
    *,
    tokenizer: Any = None,
    level: str | None = None,
    exporter: Exporter | None = None,
    endpoint: str | None = None,
    tokens: str | None = None,
    deep_ratio: float | None = None,
    budget: float | str | None = None,
    spool: str | os.PathLike[str] | None = None,
) -> Agent:
    """Observe `model`: any decoder-only torch model of transformers.

    Every setting: argument over ``FULGURITE_*`` variable over default.

    Parameters
    ----------
    model : a decoder-only model; it is not changed but for hooks, which `Agent.close` takes out without a
        trace.
    tokenizer : needed only for token texts.
    level : ``off``, ``pulse``, ``heads`` (default) or ``deep``: what is captured, and the most that can be.
    exporter : where frames go; by default a link to the collector at `endpoint`.
    endpoint : ``HOST:PORT`` of the collector, default ``127.0.0.1:4747``.
    tokens : what of a token may leave the process: ``off`` (default), ``ids`` or ``text``.
    deep_ratio : share of steps captured at ``deep``, default 1/16, and 1.0 with an in-memory exporter.
    budget : share of step time that capture may take before it lowers its level, default 0.02; ``"none"``: no
        limit.
    spool : folder in which frames wait for a collector when memory has no room for them; default: none, they
        are dropped and counted. ``FULGURITE_SPOOL_BYTES`` bounds it, default 256 MiB.

    Returns
    -------
    Agent
        Its `close` ends the observation. Without `exporter`, a model that is observed already gives the same
        agent.

    Raises
    ------
    TypeError
        Where `model` is not a torch model with a configuration.
    ValueError
        For an encoder-decoder, or a setting that means nothing.
    """
    outer = model if hasattr(model, "_orig_mod") else None
    model = _checked(_unwrapped(model))
    settings = config.settings(
        endpoint=endpoint,
        level=level,
        tokens=tokens,
        deep_ratio=deep_ratio,
        budget=budget,
        spool=spool,
        in_process=isinstance(exporter, InMemoryExporter),
    )
    known = _attached.get(model)
    running = known() if known is not None else None
    if exporter is None and running is not None and running.level != "off":
        if running.settings != settings:
            logger.warning(
                "this model is observed already, with other settings: its agent is returned as it is "
                "(close() it first for these to hold)"
            )
        return running

    from fulgurite.agent.attachment import Agent  # torch is imported only when it is needed

    _say_what_does_not_hold(settings, tokenizer, has_exporter=exporter is not None)
    if settings.disabled:
        settings = config.switched_off(settings)
        exporter = exporter if exporter is not None else InMemoryExporter()
    agent = Agent(
        model,
        exporter if exporter is not None else _link(model, settings),
        settings,
        tokenizer=tokenizer,
        outer=outer,
    )
    agent.start()
    _attached[model] = weakref.ref(agent)
    return agent


def _say_what_does_not_hold(settings: config.Settings, tokenizer: Any, *, has_exporter: bool) -> None:
    if settings.spool is not None and has_exporter:
        logger.warning("spool=%s has no effect with an exporter of your own", settings.spool)
    if settings.tokens == "text" and tokenizer is None:
        logger.warning("tokens='text' needs instrument(model, tokenizer=...): ids are sent, texts are not")


def _link(model: Any, settings: config.Settings) -> Exporter:
    from fulgurite.agent.exporter import GrpcExporter

    link = GrpcExporter(
        settings.endpoint,
        access=settings.access,
        spool=settings.spool,
        spool_bytes=settings.spool_bytes,
    )
    weakref.finalize(model, link.leave).atexit = False
    return _with_otlp(link, config.otlp())


def _with_otlp(link: Exporter, wish: str) -> Exporter:
    """The link, request spans and metrics by OTLP beside it (``on``), or these alone (``only``)."""
    if wish == "off":
        return link
    try:
        from fulgurite.agent.otel import RequestTelemetry, Several

        telemetry = RequestTelemetry()
    except (ImportError, ValueError) as error:
        logger.warning("FULGURITE_OTLP=%s has no effect: %s (pip install 'fulgurite[otlp]')", wish, error)
        return link
    if not telemetry.has_targets:
        logger.warning(
            "FULGURITE_OTLP=%s has no effect: name a receiver with OTEL_EXPORTER_OTLP_ENDPOINT", wish
        )
        return link
    return telemetry if wish == "only" else Several(link, telemetry)


def _unwrapped(model: Any) -> Any:
    """The model itself under `torch.compile` or an adapter's wrapper."""
    model = getattr(model, "_orig_mod", model)
    getter = getattr(model, "get_base_model", None)
    return getter() if callable(getter) else model


def _checked(model: Any) -> Any:
    if not callable(getattr(model, "register_forward_hook", None)) or not hasattr(model, "config"):
        raise TypeError(
            f"instrument() observes a torch model of transformers, not {type(model).__name__!r}: "
            "pass the object that you call generate() on"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder; only decoder-only models can be observed: "
            "there is no single residual stream from its input to its output"
        )
    return model


def __getattr__(name: str) -> Any:
    if name == "Agent":
        from fulgurite.agent.attachment import Agent

        return Agent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
