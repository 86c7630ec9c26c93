"""Where things sit: no two heads overlap, every node has a place, the same model has the same layout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scenes.streams import topology

from fulgurite.viewer.layout import DISC_LAYERS, HEAD_GROWTH, SHEAR, WALL_HEADS, Layout
from fulgurite.wire.topology import Topology


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """From 2 layers of one head to 126 layers of 128, dense or with experts, some layers with fewer heads."""
    layers, heads = draw(st.integers(2, 126)), draw(st.sampled_from([1, 2, 3, 8, 12, 25, 32, 64, 96, 128]))
    shape = topology(layers, heads, experts=draw(st.sampled_from([0, 0, 4, 8, 64, 256])))
    if draw(st.booleans()):
        counts = st.sampled_from([0, 1, max(1, heads // 2), heads])
        shape = replace(shape, layer_heads=tuple(draw(counts) for _ in range(layers)))
    return shape


SHAPES = [
    topology(1, 1),
    topology(2, 2),
    topology(8, 8),
    topology(12, 12),
    topology(32, 32, experts=8),
    topology(61, 128, experts=256),
    topology(80, 64),
    topology(126, 128),
    replace(topology(24, 16), layer_heads=(16, 0, 8) * 8),
]


def _least_distance(layout: Layout) -> float:
    """Of two heads: within a layer, and of layers so near that their heads could touch."""
    layers = len(layout.heads)
    # sheared ribs: two heads of layers k apart are at least 0.92 k pitches apart
    reach = min(layers - 1, int(np.ceil(0.3 / (0.9 * layout.pitch))))
    least = np.inf
    for step in range(reach + 1):
        for layer in range(layers - step):
            a, b = layout.heads[layer], layout.heads[layer + step]
            gap = np.linalg.norm(a[:, None].astype(float) - b[None], axis=-1)
            if step == 0:
                np.fill_diagonal(gap, np.inf)
            gap = gap[np.isfinite(gap)]
            least = min(least, float(gap.min())) if gap.size else least
    return least


def _holds(shape: Topology) -> None:
    layout = Layout.for_topology(shape)
    present = ~np.isnan(layout.heads[..., 0])
    assert present.sum(axis=1).tolist() == list(shape.layer_heads)
    assert _least_distance(layout) >= 2 * layout.head_radius * HEAD_GROWTH * 0.999
    assert layout.head_radius > 0
    for part in (layout.plates, layout.ffn, layout.spine, layout.cells, layout.points):
        assert np.isfinite(part).all()
    assert layout.plates.shape[:2] == (shape.layers, max(1, shape.experts))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.layers}x{shape.heads}")
def test_no_two_heads_overlap_in_models_that_exist(shape: Topology) -> None:
    _holds(shape)


@settings(max_examples=25, deadline=None)
@given(topologies())
def test_no_two_heads_overlap_in_any_model(shape: Topology) -> None:
    _holds(shape)


def test_the_measure_of_distance_would_see_an_overlap() -> None:
    layout = Layout.for_topology(topology(8, 8))
    heads = layout.heads.copy()
    heads[3, 2] = heads[4, 2]
    assert _least_distance(replace(layout, heads=heads)) == 0.0


@settings(max_examples=25, deadline=None)
@given(topologies())
def test_plates_of_a_layer_do_not_overlap(shape: Topology) -> None:
    layout = Layout.for_topology(shape)
    if layout.ffn_kind == "disc":
        return
    unsheared = layout.plates[..., 0] - SHEAR * layout.plates[..., 2]
    assert (unsheared[1:].min(axis=(1, 2)) > unsheared[:-1].max(axis=(1, 2))).all()
    y = layout.plates[..., 1]
    assert (y[:, :-1].min(axis=2) > y[:, 1:].max(axis=2)).all()


def test_discs_are_for_few_layers_and_no_experts() -> None:
    assert Layout.for_topology(topology(DISC_LAYERS, 8)).ffn_kind == "disc"
    assert Layout.for_topology(topology(DISC_LAYERS + 1, 8)).ffn_kind == "shelf"
    assert Layout.for_topology(topology(4, 8, experts=4)).ffn_kind == "shelf"


def test_a_wall_has_one_cell_around_each_head_of_a_large_model() -> None:
    shape = topology(40, 128)
    assert shape.layers * shape.heads > WALL_HEADS
    layout = Layout.for_topology(shape)
    walls = layout.walls
    assert walls is not None
    assert np.abs(walls.mean(axis=2) - layout.heads).max() < 0.02 * layout.pitch
    unsheared = walls[..., 0] - SHEAR * walls[..., 2]
    assert (unsheared[1:].min(axis=(1, 2)) > unsheared[:-1].max(axis=(1, 2))).all()


def test_a_small_model_has_spheres_and_no_wall() -> None:
    few = replace(topology(40, 128), layer_heads=(128, 0, 64, 128) * 10)
    assert sum(few.layer_heads) <= WALL_HEADS
    assert Layout.for_topology(few).walls is None


def test_no_rib_line_crosses_a_head() -> None:
    for shape in (topology(8, 8), topology(12, 12), topology(32, 32)):
        layout = Layout.for_topology(shape)
        ends = layout.ribs().reshape(-1, 3)
        heads = layout.heads.reshape(-1, 3)
        gap = np.linalg.norm(ends[:, None] - heads[None], axis=-1)
        assert gap.min() >= layout.head_radius * 0.999


def test_equal_topologies_have_equal_layouts() -> None:
    one, other = Layout.for_topology(topology(12, 12)), Layout.for_topology(topology(12, 12))
    assert np.array_equal(one.heads, other.heads)
    assert one.labels == other.labels


def test_the_words_name_every_part() -> None:
    assert {label.text for label in Layout.for_topology(topology(4, 8)).labels} == {
        "layer 0", "1", "2", "3", "KV cache", "residual stream", "attention heads",
    }  # fmt: skip
    assert "experts" in {label.text for label in Layout.for_topology(topology(4, 8, experts=4)).labels}
    assert "FFN" in {label.text for label in Layout.for_topology(topology(40, 8)).labels}


def test_a_model_without_layers_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="test-model has no layer: there is nothing to lay out"):
        Layout.for_topology(topology(0, 8))
