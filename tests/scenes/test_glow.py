"""The light of nodes: the largest recent value, fading; hatched where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.viewer.glow import FADE_S, FADES_OVER_S, NEVER_S, Glow
from fulgurite.viewer.shaders import source

HITS = st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 1.0, width=32)), min_size=1, max_size=12)


def _hits(glow: Glow, first: int, values: list[float], at_s: float, delay_s: float = 0.0) -> None:
    """Values arrive at the nodes from `first` on, and at no other."""
    nodes, size = slice(first, first + len(values)), math.prod(glow.shape)
    display, delays_s = np.ones(size, np.float32), np.full(size, delay_s, np.float32)
    display[nodes] = values
    glow.hit(nodes, glow.ready(display, at_s, delays_s, np.exp(delays_s / np.float32(FADE_S))))


def _hit(glow: Glow, value: float, at_s: float) -> None:
    _hits(glow, 0, [value], at_s)


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
    _hits(glow, 4, [math.nan, math.nan, 0.8, math.nan], 0.0)
    light = glow.light(0.0)
    assert light[1, 2] == pytest.approx(0.8)
    light[1, 2] = 0.0
    assert not light.any()


def test_a_node_without_a_value_is_unmeasured_and_a_zero_is_a_value() -> None:
    glow = Glow((1, 3))
    _hits(glow, 0, [math.nan, 0.0, 0.5], 0.0)
    assert glow.unmeasured().tolist() == [[True, False, False]]
    assert glow.texels[0, :, 2].tolist() == [1.0, 0.0, 0.0]
    assert glow.texels[0, :, 0].tolist() == [0.0, 0.0, 0.5]


@given(st.floats(0.0, 0.4), st.floats(0.0, 1.0, width=32), st.floats(0.0, 1.0, width=32))
def test_a_value_that_comes_later_than_its_pass_fades_from_then_on(
    delay_s: float, late: float, soon: float
) -> None:
    glow = Glow((1,))
    _hits(glow, 0, [late], 0.0, delay_s)
    _hit(glow, soon, 0.0)
    wanted = max(late * math.exp((delay_s - 1.0) / FADE_S), soon * math.exp(-1.0 / FADE_S))
    display, stamp, *_ = glow.texels[0].tolist()
    assert float(glow.light(1.0)[0]) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert display * math.exp((stamp - 1.0) / FADE_S) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 2.0)), min_size=1, max_size=8), st.booleans())
def test_the_texels_say_what_is_unmeasured_after_every_hit(
    hits: list[tuple[bool, float]], is_hidden: bool
) -> None:
    glow = Glow((1, 2))
    glow.hide(np.array([[is_hidden, False]]))
    for is_missing, at_s in hits:
        _hits(glow, 0, [math.nan if is_missing else 0.5, 0.5], at_s)
        state = np.where([[is_hidden, False]], 2.0, glow.unmeasured())
        assert np.array_equal(glow.texels[..., 2], state)


def test_stamps_move_with_the_origin_and_keep_their_light_apart_from_what_was_never_hit() -> None:
    glow = Glow((2,))
    glow.move_origin(1.7e9)
    _hit(glow, 0.5, 1.7e9 + 255.0)
    glow.move_origin(1.7e9 + 256.0)
    assert glow.texels[:, 1].tolist() == [-1.0, NEVER_S]
    assert glow.unmeasured().tolist() == [False, True]
    assert float(glow.light(1.7e9 + 255.1)[0]) == pytest.approx(0.5 * math.exp(-0.1 / FADE_S), rel=1e-4)


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
    _hits(glow, 0, [0.5, 0.6], 1.0)
    glow.clear()
    assert np.array_equal(glow.texels, Glow((2,)).texels)
    assert not glow.light(1.0).any()


def test_the_shader_fades_as_fast_as_this() -> None:
    assert f"FADE_S = {FADE_S:g}" in source("common")
    assert math.exp(-FADES_OVER_S / FADE_S) < 0.06
