"""The variants that run in our own environment: off, the agent's levels, transformers' outputs, spans."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.overhead.subject import greedy, load
from benchmarks.overhead.variant import Generate, Variant
from benchmarks.sample import StepClock
from fulgurite.agent import instrument

FIRST_DEEP = 18
"""Tokens by which a deep step is over, where one in 16 is."""


def _plain(model: Any, inputs: dict[str, Any], tokens: int, clock: StepClock, **options: Any) -> object:
    return model.generate(**inputs, **greedy(tokens), stopping_criteria=[clock], **options)


@contextmanager
def _off(model: Any) -> Iterator[Generate]:
    yield partial(_plain, model)


@contextmanager
def _agent(model: Any, endpoint: str, level: str, deep_ratio: float | None = None) -> Iterator[Generate]:
    # The budget would lower the level under load, and the figure would be that of another level.
    with instrument(model, level=level, endpoint=endpoint, deep_ratio=deep_ratio, budget="none") as agent:
        yield _connected(agent, partial(_plain, model), warms=FIRST_DEEP if level == "deep" else 0)
        stats = agent.stats()
        if stats.errors or stats.level != level:
            raise RuntimeError(f"the agent did not do what was to be measured: {stats}")


def _connected(agent: Any, plain: Generate, *, warms: int) -> Generate:
    """The first call, which warms up, is of `warms` tokens at least, and ends when the stream stands: to
    connect is not what is measured, nor what the first deep step learns."""
    flushed: list[bool] = []

    def generate(inputs: dict[str, Any], tokens: int, clock: StepClock) -> object:
        made = plain(inputs, tokens if flushed else max(tokens, warms), clock)
        if not flushed:
            flushed.append(agent.flush(60.0))
            if not flushed[0]:
                raise RuntimeError(f"the collector did not take the first frames: {agent.stats()}")
        return made

    return generate


@contextmanager
def _outputs(model: Any) -> Iterator[Generate]:
    yield partial(
        _plain, model, output_attentions=True, output_hidden_states=True, return_dict_in_generate=True
    )


@contextmanager
def _spans(model: Any) -> Iterator[Generate]:
    """A span per token and one per layer in it, through the batch processor to an exporter that drops all."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:  # noqa: ARG002 - the port's signature
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    tracer = provider.get_tracer("benchmark")
    with _hooked(model, tracer):
        yield partial(_plain, model)
    provider.shutdown()


@contextmanager
def _hooked(model: Any, tracer: Any) -> Iterator[None]:
    from opentelemetry import trace

    token: list[Any] = []
    layer: list[Any] = []

    def begin_token(*_: Any) -> None:
        token.append(tracer.start_span("token"))

    def end_token(*_: Any) -> None:
        token.pop().end()

    def begin_layer(index: int, *_: Any) -> None:
        context = trace.set_span_in_context(token[-1])
        layer.append(tracer.start_span("layer", context=context, attributes={"layer": index}))

    def end_layer(*_: Any) -> None:
        layer.pop().end()

    handles = [model.register_forward_pre_hook(begin_token), model.register_forward_hook(end_token)]
    for index, block in enumerate(model.model.layers):
        handles.append(block.register_forward_pre_hook(partial(begin_layer, index)))
        handles.append(block.register_forward_hook(end_layer))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def variants(folder: Path, dtype: str, endpoint: str) -> dict[str, Variant]:
    """All of them, on one copy of the model, and one with eager attention for transformers' outputs."""
    model, eager = load(folder, dtype), load(folder, dtype, attention="eager")
    return {
        "off": partial(_off, model),
        "off again": partial(_off, model),
        "pulse": partial(_agent, model, endpoint, "pulse"),
        "heads": partial(_agent, model, endpoint, "heads"),
        "deep (1 step in 16)": partial(_agent, model, endpoint, "deep"),
        "deep, every token": partial(_agent, model, endpoint, "deep", 1.0),
        "transformers outputs (eager)": partial(_outputs, eager),
        "OpenTelemetry, span per token and layer": partial(_spans, model),
    }
