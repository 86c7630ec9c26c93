"""Putting an observer together for a model that a worker has just loaded.

Imported only in a worker that is observed: torch is there.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from typing import Any

from torch import nn

from fulgurite.agent import config
from fulgurite.agent.anatomy import Anatomy
from fulgurite.agent.engines.flat.attended import Attended
from fulgurite.agent.engines.flat.desk import Desk
from fulgurite.agent.engines.flat.measure import Measure
from fulgurite.agent.engines.flat.measured import measured
from fulgurite.agent.engines.flat.seen import Unsupported
from fulgurite.agent.engines.vllm import trial
from fulgurite.agent.engines.vllm.observer import Observer
from fulgurite.agent.engines.vllm.pages import looked
from fulgurite.agent.engines.vllm.parts import dissect, rows_held, without_layers
from fulgurite.agent.engines.vllm.routing import Routing
from fulgurite.agent.engines.vllm.versions import installed_version
from fulgurite.agent.exporter import Exporter, GrpcExporter
from fulgurite.agent.ranks import merge_topologies
from fulgurite.agent.shield import Shield
from fulgurite.agent.texts import TokenTexts
from fulgurite.agent.thrift import Thrift
from fulgurite.wire.channels import LEVELS


def observe(worker: Any, shield: Shield) -> tuple[Observer, Mapping[int, nn.Module]] | None:
    """An observer of the model of `worker`, that is attached to its exporter, and vLLM's attention modules by
    layer; None at level ``off``."""
    settings = config.settings()
    if settings.level == "off":
        return None
    runner = worker.model_runner
    name = _name(worker.vllm_config)
    exporter = _exporter(settings, worker, name, shield)
    desk = Desk(_rows(runner), runner.device, runner.model_config.dtype)
    found: Anatomy | None = None
    measure: Measure | None = None
    attention: Mapping[int, nn.Module] = {}
    if LEVELS.index(settings.level) >= LEVELS.index("heads"):
        found, measure, attention = _measured(runner, name, desk, shield, settings, exporter)
    if found is None:
        found = _shape(runner, name)
    places, place = _ranks(worker)
    exporter.attach(
        found.topology,
        level=settings.level,
        ceiling=settings.level,
        tokens=settings.tokens,
        resource={
            **config.resource(model_name=name),
            config.ENGINE: "vllm",
            config.ENGINE_VERSION: installed_version(),
        },
    )
    atexit.register(exporter.close)
    if place == places[0]:  # what the other ranks tell is not missing from the whole
        for channel, reason in merge_topologies([found.topology]).unavailable:
            shield.say_once(f"{reason}", "%s is not measured: %s", channel, reason)
    observer = Observer(
        found,
        exporter=exporter,
        thrift=Thrift.of(settings, exporter=exporter, shield=shield),
        shield=shield,
        desk=desk,
        measure=measure,
        texts=_texts(settings, runner),
        ranks=len(places),
    )
    return observer, attention


def _shape(runner: Any, name: str) -> Anatomy:
    """The model's parts where its layers are not asked for: caches are told by them."""
    try:
        return dissect(runner.model, runner.vllm_config, name=name).anatomy
    except Unsupported as why:
        return without_layers(runner.vllm_config, name=name, reason=str(why))


def _name(vllm_config: Any) -> str:
    served = vllm_config.model_config.served_model_name
    name = served[0] if isinstance(served, list) and served else served
    return str(name or vllm_config.model_config.model).rstrip("/").rsplit("/", 1)[-1]


def _texts(settings: config.Settings, runner: Any) -> TokenTexts | None:
    if settings.tokens != "text":
        return None
    from vllm.tokenizers import cached_tokenizer_from_config

    return TokenTexts(cached_tokenizer_from_config(runner.model_config))


def _exporter(settings: config.Settings, worker: Any, name: str, shield: Shield) -> Exporter:
    """To the collector: of a model that is split over processes, through the first of them."""
    exporter = GrpcExporter(
        settings.endpoint, access=settings.access, spool=settings.spool, spool_bytes=settings.spool_bytes
    )
    places, place = _ranks(worker)
    if len(places) == 1:
        return exporter
    from fulgurite.agent.rank_exporters import joined
    from fulgurite.agent.rank_group import RankGroup, _store

    key = f"fulgurite/vllm/{'-'.join(map(str, places))}/{name}"
    group = RankGroup(places, place, key, _store())
    return joined(exporter, group, shield, tells_tokens=settings.tokens != "off")


def _ranks(worker: Any) -> tuple[tuple[int, ...], int]:
    """Places of the processes that the model is split over by tensor parallelism, and that of this one."""
    if int(worker.vllm_config.parallel_config.tensor_parallel_size) == 1:
        return (0,), 0
    from vllm.distributed.parallel_state import get_tp_group

    return tuple(get_tp_group().ranks), int(get_tp_group().rank)


def _rows(runner: Any) -> int:
    """Rows whose logits one step may take, within the memory that the desk may hold."""
    drafts = int(getattr(runner, "num_spec_tokens", 0) or 0)
    return max(1, int(runner.scheduler_config.max_num_seqs) * (1 + drafts))


def _measured(
    runner: Any, name: str, desk: Desk, shield: Shield, settings: config.Settings, exporter: Exporter
) -> tuple[Anatomy | None, Measure | None, Mapping[int, nn.Module]]:
    """The model's parts, what measures them, and the attention modules of its layers."""
    try:
        found = dissect(runner.model, runner.vllm_config, name=name)
        seen = trial.run(runner, found)
    except Unsupported as why:
        return without_layers(runner.vllm_config, name=name, reason=str(why)), None, {}
    except Exception as error:
        shield.caught("trial", error)
        reason = f"the model could not be tried out ({type(error).__name__})"
        return without_layers(runner.vllm_config, name=name, reason=reason), None, {}
    layers, routed = found.anatomy.layers, found.anatomy.topology.experts_per_token
    routing = (lambda: Routing(layers, desk, routed)) if routed else (lambda: None)
    asked = getattr(exporter, "exchange", None) if getattr(exporter, "exchanges", False) else None
    anatomy, measure = measured(
        found.anatomy,
        seen,
        desk,
        settings,
        routing=routing,
        part=rows_held(found.anatomy.unembedding) if asked is not None else None,
        exchange=asked,
        attended=Attended(
            looked(found.attention, layers, desk.device),
            desk,
            every=settings.deep_ratio >= 1.0,
            close=seen.close,
        ),
    )
    measure.install(layers)
    return anatomy, measure, found.attention
