"""From values to colours: monotone, one function per node kind, requests that can be told apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.viewer.colors import REQUESTS, Display, RequestColors, bar_colors, display_of, node_colors
from fulgurite.wire.frame import Scale

VALUES = st.floats(-1e4, 1e4, allow_nan=False, width=32)


def _luminance(rgb: np.ndarray) -> np.ndarray:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


@given(VALUES, VALUES, st.lists(VALUES, min_size=2, max_size=30))
def test_a_larger_value_is_never_darker(a: float, b: float, values: list[float]) -> None:
    shown = Display(min(a, b), max(a, b))(np.sort(np.array(values, np.float32)))
    assert (np.diff(shown) >= 0).all()
    assert ((shown >= 0) & (shown <= 1)).all()


def test_the_ends_of_the_scale_are_dark_and_fully_lit_and_what_lies_beyond_is_clipped() -> None:
    shown = Display(0.1, 0.5)([0.0, 0.1, 0.3, 0.5, 7.0])
    assert shown.tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])


def test_on_a_logarithmic_scale_equal_ratios_are_equal_steps_of_light() -> None:
    shown = Display(0.01, 1.0, is_log=True)([-1.0, 0.0, 0.001, 0.01, 0.1, 1.0, 5.0])
    assert shown.tolist() == pytest.approx([0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 1.0])
    assert math.isnan(float(Display(0.01, 1.0, is_log=True)(np.array(math.nan))))


@given(VALUES, VALUES, st.lists(VALUES, min_size=2, max_size=30))
def test_on_a_logarithmic_scale_a_larger_value_is_never_darker(
    a: float, b: float, values: list[float]
) -> None:
    low, high = max(1e-6, min(a, b)), max(1e-6, a, b)
    shown = Display(low, high, is_log=True)(np.sort(np.array(values, np.float32)))
    assert (np.diff(shown) >= 0).all()
    assert ((shown >= 0) & (shown <= 1)).all()


def test_what_is_not_a_number_stays_none() -> None:
    assert math.isnan(float(Display(0.0, 1.0)(np.array(math.nan))))


def test_the_colours_of_nodes_grow_lighter_all_the_way() -> None:
    assert (np.diff(_luminance(bar_colors())) > 0).all()
    assert (np.diff(node_colors()[:, 3]) >= 0).all()


def test_the_bar_shows_what_a_node_shows() -> None:
    table, bar = node_colors(), bar_colors()
    assert np.allclose(bar[-1], table[-1, :3])
    assert table[0, 3] == 0.0  # an unlit node is glass alone


@pytest.mark.parametrize(
    "scale",
    [
        None,
        Scale(version=1, kinds={"ffn": (0.0, 1.0)}),
        Scale(version=1, kinds={"head": (0.5, 0.5)}),
        Scale(version=1, kinds={"head": (math.nan, 1.0)}),
    ],
)
def test_without_a_usable_scale_there_is_no_display(scale: Scale | None) -> None:
    assert display_of(scale, "head") is None


def test_each_kind_has_its_own_scale() -> None:
    scale = Scale(version=1, kinds={"head": (0.0, 1.0), "ffn": (2.0, 4.0)})
    assert display_of(scale, "head") == Display(0.0, 1.0)
    assert display_of(scale, "ffn") == Display(2.0, 4.0, is_log=True)  # 0 has no logarithm


def _lab(rgb: tuple[float, float, float]) -> np.ndarray:
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb])
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    t = to_xyz @ linear / np.array([0.95047, 1.0, 1.08883])
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_the_colours_of_requests_can_be_told_apart() -> None:
    labs = [_lab(rgb) for _, rgb in REQUESTS]
    apart = [np.linalg.norm(a - b) for i, a in enumerate(labs) for b in labs[:i]]
    assert min(apart) > 20.0


def test_a_request_keeps_its_colour_and_gives_it_back() -> None:
    colors = RequestColors()
    given_out = [colors.of(f"r{i}") for i in range(len(REQUESTS))]
    assert sorted(given_out) == list(range(len(REQUESTS)))
    assert [colors.of(f"r{i}") for i in range(len(REQUESTS))] == given_out
    colors.release("r3")
    assert "r3" not in colors
    assert colors.of("new") == given_out[3]
