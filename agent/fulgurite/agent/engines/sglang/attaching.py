"""Putting an observer together for a model whose first forward pass was looked at."""

from __future__ import annotations

import atexit
from functools import partial
from importlib.metadata import version
from typing import Any, Final

import torch

from fulgurite.agent import config
from fulgurite.agent.anatomy import Anatomy
from fulgurite.agent.engines.flat.attended import Attended
from fulgurite.agent.engines.flat.desk import Desk
from fulgurite.agent.engines.flat.measured import measured
from fulgurite.agent.engines.flat.seen import Unsupported
from fulgurite.agent.engines.sglang.looks import Look, where
from fulgurite.agent.engines.sglang.observer import Observer
from fulgurite.agent.engines.sglang.parts import dissect, without_layers
from fulgurite.agent.engines.sglang.pools import looked
from fulgurite.agent.exporter import GrpcExporter
from fulgurite.agent.lull_probe import LullProbe
from fulgurite.agent.shield import Shield
from fulgurite.agent.texts import TokenTexts
from fulgurite.agent.thrift import Thrift
from fulgurite.wire.channels import LEVELS

_MOST_ROWS: Final = 1024


class Attaching:
    """From the first pass that tells enough to an observer.

    Attributes
    ----------
    look : what watches the pass that runs, None before and after.
    """

    def __init__(self, runner: Any, shield: Shield) -> None:
        self._runner = runner
        self._shield = shield
        self._settings = config.settings()
        self.look: Look | None = None
        self._anatomy: Anatomy | None = None
        if LEVELS.index(self._settings.level) < LEVELS.index("heads"):
            return
        try:
            self._anatomy = dissect(runner, name=_name(runner))
        except Unsupported as why:
            self._reason = str(why)
        else:
            self.look = Look(self._anatomy)

    def close(self) -> None:
        """Look no more."""
        if self.look is not None:
            self.look.close()

    def observer(self, logits: torch.Tensor) -> Observer:
        """Attach; `logits` (n, V) are what the pass that was looked at gave."""
        self.close()
        settings, runner, shield = self._settings, self._runner, self._shield
        desk = Desk(_rows(runner), torch.device(runner.device), runner.dtype)
        measure = None
        if self.look is None or self._anatomy is None:
            reason = getattr(self, "_reason", "not asked for at level pulse")
            anatomy = without_layers(runner, name=_name(runner), reason=reason)
        else:
            seen = self.look.found(logits[-1:].float(), runner.dtype)
            layers = self._anatomy.layers
            attended = Attended(
                looked(runner, layers, desk.device),
                desk,
                every=settings.deep_ratio >= 1.0,
                close=seen.close,
            )
            anatomy, measure = measured(self._anatomy, seen, desk, settings, attended=attended)
            measure.install(layers, partial(where, self._anatomy, self.look.places()))
        exporter = GrpcExporter(
            settings.endpoint, access=settings.access, spool=settings.spool, spool_bytes=settings.spool_bytes
        )
        exporter.attach(
            anatomy.topology,
            level=settings.level,
            ceiling=settings.level,
            tokens=settings.tokens,
            resource={
                **config.resource(model_name=_name(runner)),
                config.ENGINE: "sglang",
                config.ENGINE_VERSION: version("sglang"),
            },
        )
        atexit.register(exporter.close)
        LullProbe(getattr(runner.model, "logits_processor", None), exporter.lull, shield).install()
        for channel, reason in anatomy.topology.unavailable:
            shield.say_once(reason, "%s is not measured: %s", channel, reason)
        return Observer(
            anatomy,
            exporter=exporter,
            thrift=Thrift.of(settings, exporter=exporter, shield=shield),
            shield=shield,
            desk=desk,
            measure=measure,
            position_bytes=_position_bytes(runner),
            texts=_texts(settings, runner),
        )


def _name(runner: Any) -> str:
    return str(runner.model_config.model_path).rstrip("/").rsplit("/", 1)[-1]


def _rows(runner: Any) -> int:
    return max(1, min(int(getattr(runner, "max_running_requests", 0) or _MOST_ROWS), _MOST_ROWS))


def _texts(settings: config.Settings, runner: Any) -> TokenTexts | None:
    if settings.tokens != "text":
        return None
    from transformers import AutoTokenizer

    return TokenTexts(AutoTokenizer.from_pretrained(runner.model_config.model_path))


def _position_bytes(runner: Any) -> int:
    """Of one position of the key-value cache, over all layers; 0 where the pool does not tell."""
    pool = getattr(runner, "token_to_kv_pool", None)
    if pool is None or not hasattr(pool, "get_kv_size_bytes"):
        return 0
    sizes = pool.get_kv_size_bytes()
    whole = sum(sizes) if isinstance(sizes, tuple) else int(sizes)
    return int(whole) // max(1, int(pool.size) + int(getattr(pool, "page_size", 0) or 0))
