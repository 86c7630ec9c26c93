"""A version of vLLM that is not known: what it says of its scheduler, and nothing else.

vLLM publishes figures for Prometheus, under names that it keeps, in the registry of the process that speaks
HTTP. A thread of ours reads that registry once a second. Nothing is wrapped, nothing of vLLM is imported, and
nothing is switched on: where the user has vLLM's statistics off there are none.
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from fulgurite.agent import config
from fulgurite.agent.exporter import GrpcExporter
from fulgurite.agent.figures import Figures
from fulgurite.agent.shield import Shield
from fulgurite.wire.channels import CHANNELS
from fulgurite.wire.topology import BLACK_BOX, Topology

EVERY_S: Final = 1.0
_RUNNING: Final = "vllm:num_requests_running"
_NAMES: Final = (
    _RUNNING,
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:num_preemptions",
    "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits",
    "vllm:cache_config_info",
)
_shield = Shield()


def watch(version: str) -> None:
    """Read the figures of this process, if it is the one that has them, for as long as it lives."""
    over = threading.Event()
    arguments = (version, over)
    thread = threading.Thread(target=_read, args=arguments, name="fulgurite-vllm-figures", daemon=True)
    atexit.register(over.set)
    thread.start()


def _read(version: str, over: threading.Event) -> None:
    exporter: GrpcExporter | None = None
    while not over.wait(EVERY_S) and not _shield.is_out("figures"):
        with _shield.at("figures"):
            samples = tuple(_samples())
            if exporter is None:
                name = model_of(samples)
                exporter = _attached(name, version) if name else None
            if exporter is not None:
                figures = figures_of(samples, version)
                exporter.report(
                    overhead_ratio=float("nan"),  # reading a registry is no part of a step
                    level="pulse",
                    running_requests=figures.running,
                    kv_bytes=0,
                    figures=figures,
                )
    if exporter is not None:
        exporter.close()


def _samples() -> Iterable[Any]:
    known = sys.modules.get("prometheus_client")
    if known is None:
        return
    for metric in known.REGISTRY.restricted_registry(_all_names()).collect():
        yield from metric.samples


def _all_names() -> list[str]:
    return [name + end for name in _NAMES for end in ("", "_total")]


def model_of(samples: Iterable[Any]) -> str:
    """The name under which a model is served, empty where none is."""
    return next((str(s.labels.get("model_name", "")) for s in samples if s.name == _RUNNING), "")


def figures_of(samples: Iterable[Any], version: str) -> Figures:
    """What the samples say, summed over engines; what is missing among them is 0."""
    found: dict[str, float] = {}
    usage: list[float] = []
    blocks = 0
    for sample in samples:
        name = sample.name.removesuffix("_total")
        found[name] = found.get(name, 0.0) + float(sample.value)
        if name == "vllm:kv_cache_usage_perc":
            usage.append(float(sample.value))
        elif name == "vllm:cache_config_info":
            blocks += _whole(sample.labels)
    share = sum(usage) / len(usage) if usage else 0.0

    def told(name: str) -> int:
        return int(found.get(name, 0.0))

    return Figures(
        name="vllm",
        version=version,
        running=told(_RUNNING),
        waiting=told("vllm:num_requests_waiting"),
        kv_blocks=blocks,
        kv_blocks_used=round(share * blocks),
        preemptions=told("vllm:num_preemptions"),
        prefix_asked=told("vllm:prefix_cache_queries"),
        prefix_found=told("vllm:prefix_cache_hits"),
    )


def _whole(labels: Mapping[str, str]) -> int:
    said = str(labels.get("num_gpu_blocks", ""))
    return int(said) if said.isdigit() else 0


def topology_of(model: str, version: str) -> Topology:
    """Nothing but a name: one layer stands for the model, and every channel says why it is missing."""
    reason = f"vLLM {version} is not a version that Fulgurite knows: only its scheduler's figures are told"
    return Topology(
        model_name=model,
        architecture=BLACK_BOX,
        layers=1,
        heads=0,
        kv_heads=0,
        head_dim=0,
        hidden_size=0,
        ffn_size=0,
        vocab_size=0,
        layer_kinds=("none",),
        unavailable=tuple((c.name, reason) for c in CHANNELS if c.family != "identity"),
    )


def _attached(model: str, version: str, make: Callable[..., GrpcExporter] = GrpcExporter) -> GrpcExporter:
    settings = config.settings()
    name = model.rstrip("/").rsplit("/", 1)[-1]
    exporter = make(settings.endpoint, access=settings.access)
    exporter.attach(
        topology_of(name, version),
        level="pulse",
        ceiling="pulse",
        tokens="off",
        resource={
            **config.resource(model_name=name),
            config.ENGINE: "vllm",
            config.ENGINE_VERSION: version,
        },
    )
    exporter.connect()
    return exporter
