"""Which processes the demo consists of, and how each is called (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fulgurite.cli.address import Address

Role = Literal["collector", "replica", "viewer", "window", "film"]
SERVICE = "demo"
STOP_ORDER: tuple[Role, ...] = ("film", "window", "viewer", "replica", "collector")
"""Who is asked to leave first. Replicas hand over what they captured before the collector goes."""

# One thread per replica: two of them, the collector and the viewer share what may be two cores.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for.

    Attributes
    ----------
    collector, page : where they listen.
    page_was_asked_for : whether the page must be served there; elsewhere another free port does as well.
    model : id or folder of a `transformers` model; None for the bundled one.
    level : what is captured.
    deep_ratio : share of steps captured at `deep`. At 1 every layer's attention is read in every step; below,
        one layer per deep step. At the demo's pace a core has room for it.
    pace : tokens per second and replica; 0 for as fast as it goes.
    out : film or picture; None for the page.
    desktop : a native window in place of the page.
    """

    collector: Address
    page: Address
    page_was_asked_for: bool = False
    model: str | None = None
    replicas: int = 2
    level: str = "deep"
    deep_ratio: float = 1.0
    pace: float = 30.0
    seconds: float | None = None
    out: Path | None = None
    desktop: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process: a module with its arguments and the variables that differ from ours.

    Attributes
    ----------
    listening : a part of the line with which it says that it listens; empty where it does not listen.
    """

    name: str
    role: Role
    module: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    listening: str = ""


def cast(options: Options) -> list[ProcessSpec]:
    """The processes that run to the end, the collector first. The film is not among them."""
    replicas = [_replica(index, options) for index in range(options.replicas)]
    viewer = [] if options.out is not None else [_window(options) if options.desktop else _viewer(options)]
    return [_collector(options), *replicas, *viewer]


def film(options: Options) -> ProcessSpec:
    """The process that films, started once there is something to film. It ends by itself."""
    assert options.out is not None
    seconds = () if options.seconds is None else ("--seconds", f"{options.seconds:g}")
    return ProcessSpec(
        name="film",
        role="film",
        module="fulgurite.cli",
        arguments=(
            "view",
            "--collector",
            str(options.collector),
            "--headless",
            *seconds,
            "--out",
            str(options.out),
        ),
    )


def moved(options: Options, name: str, last_lines: Sequence[str], *, free: Address) -> Options | None:
    """What to do where a process ended since its port had been taken after we had seen that it was free.

    Parameters
    ----------
    options : Options
    name : str
        Of the process.
    last_lines : sequence of str
        What it said last.
    free : Address
        A port that is free.

    Returns
    -------
    Options or None
        With `free` in place of the port. None where it ended of something else, or the port was asked for.
    """
    if not any("in use" in line for line in last_lines):
        return None
    if name == "collector":
        return replace(options, collector=free)
    if name == "viewer" and not options.page_was_asked_for:
        return replace(options, page=free)
    return None


def replica_names(options: Options) -> tuple[str, ...]:
    """`service.instance.id` of each replica."""
    return tuple(f"replica-{index}" for index in range(options.replicas))


def _collector(options: Options) -> ProcessSpec:
    return ProcessSpec(
        name="collector",
        role="collector",
        module="fulgurite.cli",
        # Whoever comes later sees the last minute of everything.
        arguments=("collector", "--listen", str(options.collector), "--history", "all"),
        listening="listening on",
    )


def _viewer(options: Options) -> ProcessSpec:
    return ProcessSpec(
        name="viewer",
        role="viewer",
        module="fulgurite.cli",
        arguments=("view", "--collector", str(options.collector), "--listen", str(options.page)),
        listening=f"http://{options.page}/ shows",
    )


def _window(options: Options) -> ProcessSpec:
    return ProcessSpec(
        name="window",
        role="window",
        module="fulgurite.cli",
        arguments=("view", "--collector", str(options.collector), "--desktop"),
    )


def _replica(index: int, options: Options) -> ProcessSpec:
    name = replica_names(options)[index]
    model = () if options.model is None else ("--model", options.model)
    return ProcessSpec(
        name=name,
        role="replica",
        module="fulgurite.cli.demo.replica",
        arguments=(
            *("--endpoint", str(options.collector), "--level", options.level),
            *("--seed", str(index + 1), "--pace", f"{options.pace:g}", *model),
        ),
        environment={
            **ONE_THREAD,
            "FULGURITE_DEEP_RATIO": f"{options.deep_ratio:g}",
            "OTEL_SERVICE_NAME": SERVICE,
            "OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={name}",
        },
    )
