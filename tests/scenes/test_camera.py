"""The camera: nothing is cut, and pointing finds what is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scenes.streams import topology

from fulgurite.viewer.camera import EASE_S, PRESETS, CameraRig, Insets, Pick, View, fit, grid, pick, project
from fulgurite.viewer.layout import Layout
from fulgurite.wire.topology import Topology

INSETS = Insets(top=0.14, bottom=0.18, left=0.03, right=0.03)
WIDTH, HEIGHT = 1280, 720
SHAPES = [topology(4, 6), topology(8, 8), topology(12, 12), topology(32, 32, experts=8), topology(126, 128)]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.floats(-75, 60),
    st.floats(5, 60),
    st.floats(0.7, 3.6),
    st.floats(0.05, 0.25),
)
def test_every_layer_is_inside_the_free_area(
    shape: Topology, azimuth: float, elevation: float, aspect: float, inset: float
) -> None:
    points = Layout.for_topology(shape).points
    insets = Insets(top=inset, bottom=0.3 - inset, left=0.03, right=0.03)
    view = fit(points, azimuth, elevation, 20.0, aspect, insets)
    at = project(view, points, aspect * 1000, 1000)
    assert at[:, 0].min() >= aspect * 30 - 2
    assert at[:, 0].max() <= aspect * 970 + 2
    assert at[:, 1].min() >= 1000 * inset - 2
    assert at[:, 1].max() <= 1000 * (0.7 + inset) + 2


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.layers}x{shape.heads}")
def test_the_overview_fills_the_width_or_the_height(shape: Topology) -> None:
    points = Layout.for_topology(shape).points
    view = CameraRig().view(points, WIDTH / HEIGHT, INSETS, 0.0)
    at = project(view, points, WIDTH, HEIGHT)
    across = np.ptp(at[:, 0]) / (WIDTH * 0.94)
    down = np.ptp(at[:, 1]) / (HEIGHT * 0.68)
    assert max(across, down) > 0.97
    assert min(across, down) > 0.6


@pytest.mark.parametrize("preset", range(len(PRESETS)), ids=lambda index: PRESETS[index].label)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.layers}x{shape.heads}")
def test_pointing_at_a_head_finds_it_or_one_in_front_of_it(shape: Topology, preset: int) -> None:
    layout, rig = Layout.for_topology(shape), CameraRig()
    rig.show(preset)
    view = rig.view(layout.points, WIDTH / HEIGHT, INSETS, 0.0)
    places = layout.heads if layout.walls is None else layout.walls.mean(axis=2)
    at = project(view, places, WIDTH, HEIGHT)
    step = max(1, shape.layers * shape.heads // 60)
    for layer, head in np.ndindex(shape.layers, shape.heads):
        if (layer * shape.heads + head) % step:
            continue
        found = pick(view, layout, at[layer, head, 0], at[layer, head, 1], WIDTH, HEIGHT)
        assert found is not None
        if found != Pick("head", layer, head):
            assert _depth(view, layout, found) < at[layer, head, 2] + 1e-6


def _depth(view: View, layout: Layout, node: Pick) -> float:
    """The depth of what was found: of a wall's cell, a plate or a cell of the cache that of its middle."""
    quads = {"head": layout.walls, "ffn": layout.plates, "cell": layout.cells}[node.kind]
    if quads is None:
        return float(project(view, layout.heads[node.layer, node.head], WIDTH, HEIGHT)[2])
    return float(project(view, quads[node.layer, max(0, node.head)], WIDTH, HEIGHT)[..., 2].mean())


@pytest.mark.parametrize("preset", range(len(PRESETS)), ids=lambda index: PRESETS[index].label)
@pytest.mark.parametrize(
    "shape",
    [topology(12, 12), topology(32, 32, experts=8), topology(80, 64), topology(61, 128, experts=256)],
    ids=lambda shape: f"{shape.layers}x{shape.heads}",
)
def test_at_every_level_of_detail_every_kind_of_node_is_found_where_it_is_seen(
    shape: Topology, preset: int
) -> None:
    layout, rig = Layout.for_topology(shape), CameraRig()
    rig.show(preset)
    view = rig.view(layout.points, WIDTH / HEIGHT, INSETS, 0.0)
    kinds = {"ffn": layout.plates, "cell": layout.cells}
    if layout.walls is not None:
        kinds["head"] = layout.walls
    for kind, quads in kinds.items():
        middle = project(view, quads.mean(axis=2), WIDTH, HEIGHT)
        for layer, index in list(np.ndindex(middle.shape[:2]))[:: max(1, middle[..., 0].size // 60)]:
            found = pick(view, layout, *middle[layer, index, :2], WIDTH, HEIGHT)
            wanted = Pick(kind, layer, -1 if kind == "ffn" and quads.shape[1] == 1 else index)
            assert found is not None
            if found != wanted and not (found.kind == "head" and layout.ffn_kind == "disc"):
                assert _depth(view, layout, found) <= middle[layer, index, 2] + 0.02


def test_in_the_overview_every_head_of_the_bundled_shape_can_be_pointed_at() -> None:
    layout = Layout.for_topology(topology(8, 8))
    view = CameraRig().view(layout.points, WIDTH / HEIGHT, INSETS, 0.0)
    found = set()
    for x in np.arange(0, WIDTH, 9.0):
        for y in np.arange(0, HEIGHT, 9.0):
            node = pick(view, layout, x, y, WIDTH, HEIGHT)
            if node is not None and node.kind == "head":
                found.add((node.layer, node.head))
    assert found == set(np.ndindex(8, 8))


def test_pointing_at_an_ffn_block_finds_its_layer_and_beside_the_model_nothing() -> None:
    layout = Layout.for_topology(topology(32, 32, experts=8))
    view = CameraRig().view(layout.points, WIDTH / HEIGHT, INSETS, 0.0)
    for layer in range(32):
        x, y, _ = project(view, layout.plates[layer, 7].mean(axis=0), WIDTH, HEIGHT)
        found = pick(view, layout, x, y, WIDTH, HEIGHT)
        assert found is not None
        assert (found.kind, found.layer) == ("ffn", layer) or found.kind == "head"
    assert pick(view, layout, 5.0, 5.0, WIDTH, HEIGHT) is None


def test_a_preset_is_reached_smoothly_and_exactly() -> None:
    rig = CameraRig()
    start = rig.direction(1.78, 0.0)
    rig.show(3)
    assert rig.direction(1.78, 10.0) == pytest.approx(start)
    middle = rig.direction(1.78, 10.0 + EASE_S / 2)
    end = rig.direction(1.78, 10.0 + 2 * EASE_S)
    fresh = CameraRig()
    fresh.preset = 3
    assert end == pytest.approx(fresh.direction(1.78, 0.0))
    assert min(start[1], end[1]) < middle[1] < max(start[1], end[1])


def test_turning_zooming_and_shifting_move_the_picture() -> None:
    points = Layout.for_topology(topology(8, 8)).points
    rig = CameraRig()
    before = rig.view(points, 1.78, INSETS, 0.0)
    rig.zoom(2.0)
    near = rig.view(points, 1.78, INSETS, 0.0)
    distance = [math.dist(view.position, view.focal) for view in (before, near)]
    assert distance[1] == pytest.approx(distance[0] / 2)
    rig.orbit(30.0, 0.0)
    rig.pan(0.1, 0.0)
    assert rig.view(points, 1.78, INSETS, 0.0).focal != near.focal
    rig.show(0)
    settled = rig.view(points, 1.78, INSETS, 100.0)
    settled = rig.view(points, 1.78, INSETS, 100.0 + 2 * EASE_S)
    assert settled.position == pytest.approx(before.position)


def test_a_camera_that_is_not_there_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=f"there are cameras 0 to {len(PRESETS) - 1}, not 9"):
        CameraRig().show(9)


@given(st.integers(1, 40), st.integers(200, 3000), st.integers(200, 3000))
def test_the_grid_has_room_for_every_replica_and_no_empty_row(count: int, width: int, height: int) -> None:
    columns, rows = grid(count, width, height)
    assert columns * rows >= count
    assert columns * (rows - 1) < count


def test_grids_of_a_wide_window() -> None:
    assert [grid(count, 1280, 720) for count in (1, 2, 4)] == [(1, 1), (2, 1), (2, 2)]
