"""The light of nodes: the largest recent value, fading; hatched where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.viewer.glow import FADE_S, FADES_OVER_S, Glow
from fulgurite.viewer.shaders import source

ALL = slice(0, 1)
HITS = st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 1.0, width=32)), min_size=1, max_size=12)


def _hit(glow: Glow, value: float, at_s: float) -> None:
    glow.hit(ALL, np.array([value], np.float32), at_s)


@given(HITS, st.floats(3.0, 5.0))
def test_the_light_is_the_largest_of_its_fading_hits(hits: list[tuple[float, float]], now_s: float) -> None:
    glow = Glow((1,))
    for at_s, value in hits:
        _hit(glow, value, at_s)
    wanted = max(value * math.exp((at_s - now_s) / FADE_S) for at_s, value in hits)
    assert float(glow.light(now_s)[0]) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@given(HITS)
def test_the_order_in_which_hits_come_does_not_matter(hits: list[tuple[float, float]]) -> None:
    one, other = Glow((1,)), Glow((1,))
    for at_s, value in hits:
        _hit(one, value, at_s)
    for at_s, value in reversed(hits):
        _hit(other, value, at_s)
    assert float(one.light(4.0)[0]) == pytest.approx(float(other.light(4.0)[0]), rel=1e-4, abs=1e-6)


@given(st.lists(st.tuples(st.floats(0.0, 400.0), st.floats(0.0, 1.0, width=32)), min_size=1, max_size=12))
def test_minutes_between_hits_change_nothing(hits: list[tuple[float, float]]) -> None:
    glow, hits = Glow((1,)), sorted(hits)
    for at_s, value in hits:
        _hit(glow, value, 1.7e9 + at_s)
    now_s = hits[-1][0]
    wanted = max(value * math.exp((at_s - now_s) / FADE_S) for at_s, value in hits)
    assert float(glow.light(1.7e9 + now_s)[0]) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_a_hit_lights_its_own_node_only() -> None:
    glow = Glow((3, 4))
    values = np.full((1, 4), np.nan, np.float32)
    values[0, 2] = 0.8
    glow.hit(slice(1, 2), values, 0.0)
    light = glow.light(0.0)
    assert light[1, 2] == pytest.approx(0.8)
    light[1, 2] = 0.0
    assert not light.any()


def test_a_node_without_a_value_is_unmeasured_and_a_zero_is_a_value() -> None:
    glow = Glow((1, 3))
    glow.hit(ALL, np.array([[np.nan, 0.0, 0.5]], np.float32), 0.0)
    assert glow.unmeasured().tolist() == [[True, False, False]]
    texture = glow.texture(0.0)
    assert texture[0, :, 2].tolist() == [1.0, 0.0, 0.0]
    assert texture[0, :, 0].tolist() == [0.0, 0.0, 0.5]


def test_a_channel_that_stops_coming_is_unmeasured_once_its_light_has_faded() -> None:
    glow = Glow((1,))
    _hit(glow, 0.5, 0.0)
    _hit(glow, math.nan, FADES_OVER_S - 0.01)
    assert not glow.unmeasured()[0]
    _hit(glow, math.nan, FADES_OVER_S + 0.01)
    assert glow.unmeasured()[0]
    _hit(glow, 0.1, 2.0)
    assert not glow.unmeasured()[0]


def test_silence_alone_is_not_a_missing_value() -> None:
    glow = Glow((1,))
    _hit(glow, 0.5, 0.0)
    assert not glow.unmeasured()[0]
    assert glow.light(60.0)[0] < 1e-6


def test_cleared_it_is_as_new() -> None:
    glow = Glow((2,))
    glow.hit(slice(0, 2), np.array([0.5, 0.6], np.float32), 1.0)
    glow.clear()
    assert np.array_equal(glow.texture(0.0), Glow((2,)).texture(0.0))


def test_the_shader_fades_as_fast_as_this() -> None:
    assert f"FADE_S = {FADE_S:g}" in source("common")
    assert math.exp(-FADES_OVER_S / FADE_S) < 0.06
