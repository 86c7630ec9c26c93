"""Which processes a demo consists of."""

from __future__ import annotations

from pathlib import Path

import pytest

from fulgurite.cli.address import Address
from fulgurite.cli.demo.plan import STOP_ORDER, Options, cast, film, moved

COLLECTOR, PAGE, FREE = (Address("127.0.0.1", port) for port in (1, 2, 3))
IN_USE = ["starting", "cannot listen on 127.0.0.1:1: the port is in use"]


def options(**fields: object) -> Options:
    return Options(**({"collector": COLLECTOR, "page": PAGE} | fields))  # type: ignore[arg-type]


def test_a_demo_is_a_collector_its_replicas_and_a_viewer() -> None:
    assert [spec.name for spec in cast(options(replicas=3))] == [
        "collector",
        "replica-0",
        "replica-1",
        "replica-2",
        "viewer",
    ]


def test_a_headless_demo_has_a_film_in_place_of_the_page() -> None:
    plan = options(out=Path("film.mp4"), seconds=4.0)
    assert {spec.role for spec in cast(plan)} == {"collector", "replica"}
    arguments = film(plan).arguments
    assert arguments[arguments.index("--seconds") + 1] == "4"
    assert arguments[arguments.index("--out") + 1] == "film.mp4"


def test_a_desktop_demo_has_a_window_in_place_of_the_page() -> None:
    (window,) = (spec for spec in cast(options(desktop=True)) if spec.role in ("viewer", "window"))
    assert window.role == "window"
    assert "--desktop" in window.arguments
    assert window.role in STOP_ORDER


def test_replicas_differ_in_name_and_seed_and_in_nothing_else() -> None:
    first, second = (spec for spec in cast(options(model="gpt2")) if spec.role == "replica")
    assert first.environment["OTEL_SERVICE_NAME"] == second.environment["OTEL_SERVICE_NAME"] == "demo"
    assert first.environment["OTEL_RESOURCE_ATTRIBUTES"] == "service.instance.id=replica-0"
    assert second.environment["OTEL_RESOURCE_ATTRIBUTES"] == "service.instance.id=replica-1"
    differing = [(a, b) for a, b in zip(first.arguments, second.arguments, strict=True) if a != b]
    assert differing == [("1", "2")]
    assert "gpt2" in first.arguments


def test_replicas_show_everything_unless_asked_for_less() -> None:
    replica = next(spec for spec in cast(options()) if spec.role == "replica")
    assert replica.arguments[replica.arguments.index("--level") + 1] == "deep"
    assert replica.environment["FULGURITE_DEEP_RATIO"] == "1"
    sampled = next(spec for spec in cast(options(level="heads", deep_ratio=0.5)) if spec.role == "replica")
    assert sampled.arguments[sampled.arguments.index("--level") + 1] == "heads"
    assert sampled.environment["FULGURITE_DEEP_RATIO"] == "0.5"


def test_everybody_speaks_to_the_collector_that_is_started() -> None:
    assert all(str(COLLECTOR) in spec.arguments for spec in cast(options()))


def test_every_role_has_a_place_in_the_order_of_stopping() -> None:
    assert {spec.role for spec in cast(options())} | {"film", "window"} == set(STOP_ORDER)


def test_a_port_that_was_taken_in_the_meantime_gives_way_to_another() -> None:
    assert moved(options(), "collector", IN_USE, free=FREE) == options(collector=FREE)
    assert moved(options(), "viewer", IN_USE, free=FREE) == options(page=FREE)


@pytest.mark.parametrize(
    ("name", "said", "fields"),
    [
        ("collector", [], {}),
        ("collector", ["no such host"], {}),
        ("replica-0", IN_USE, {}),
        ("viewer", IN_USE, {"page_was_asked_for": True}),
    ],
)
def test_nothing_else_is_mended_by_another_port(
    name: str, said: list[str], fields: dict[str, object]
) -> None:
    assert moved(options(**fields), name, said, free=FREE) is None
