"""Passes on their way along the layers: every layer is lit when its time has come, however one looks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgurite.viewer.contribution import NOT_CAPTURED
from fulgurite.viewer.glow import FADE_S, Glow
from fulgurite.viewer.pulses import HEADS_AT, JOINED_PER_S, PLATES_AT, Pulse, Pulses

L, H = 5, 3
T0 = 1000.0
GAPS_S = st.one_of(st.floats(0.0, 0.3), st.floats(0.0, 1.0 / JOINED_PER_S))


def _pulse(seed: int, at_s: float, spread_s: float, *, gaps: bool = False) -> Pulse:
    rng = np.random.default_rng(seed)
    heads, plates = (rng.random(shape).astype(np.float32) for shape in ((L, H), (L, 1)))
    if gaps:
        heads[rng.random((L, H)) < 0.4] = np.nan
    return Pulse.of(at_s, spread_s, heads, plates, head_hues=heads - 0.5 if seed % 2 else None)


def _lights() -> tuple[Pulses, Glow]:
    return Pulses(L, H, 1), Glow((L, H + 1))


def _wanted(pulses: list[Pulse], now_s: float, *, plates: bool) -> np.ndarray:
    """The definition: the largest of all hits that are due, each faded; passes in a row begin together."""
    light = np.zeros((L, 1 if plates else H))
    for before, pulse in zip([None, *pulses], pulses, strict=False):
        begin_s = pulse.at_s
        if before is not None and 0.0 < pulse.at_s - before.at_s < 1.0 / JOINED_PER_S:
            begin_s = (math.floor(pulse.at_s * JOINED_PER_S) + 1) / JOINED_PER_S
        for layer in range(L):
            along_s = pulse.spread_s * (layer + (PLATES_AT if plates else HEADS_AT)) / L
            due_s = pulse.at_s + along_s
            if begin_s + (0.0 if pulse.spread_s == 0.0 else along_s) <= now_s:
                row = pulse.values.reshape(L, H + 1)[layer]
                values = row[H:] if plates else row[:H]
                light[layer] = np.fmax(light[layer], values * np.exp((due_s - now_s) / FADE_S))
    return light


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(GAPS_S, st.sampled_from([0.0, 0.2, 0.45])), min_size=1, max_size=12),
    st.lists(st.floats(0.001, 0.4), min_size=1, max_size=8),
    st.booleans(),
)
def test_every_node_shows_the_largest_of_what_has_reached_it(
    passes: list[tuple[float, float]], looks: list[float], gaps: bool
) -> None:
    (under_way, glow), all_of_them = _lights(), []
    at_s = T0
    for seed, (gap_s, spread_s) in enumerate(passes):
        at_s += gap_s
        all_of_them.append(_pulse(seed, at_s, spread_s, gaps=gaps))
        under_way.add(all_of_them[-1])
    now_s = T0
    for look_s in looks:
        now_s += look_s + 1e-4
        under_way.advance(now_s, glow)
        wanted = [_wanted(all_of_them, now_s, plates=plates) for plates in (False, True)]
        assert np.allclose(glow.light(now_s), np.concatenate(wanted, axis=1), rtol=1e-4, atol=1e-6)
    under_way.advance(at_s + 1.0, glow)
    assert len(under_way) == 0


def test_a_hue_comes_with_the_light_of_its_own_pass() -> None:
    under_way, glow = _lights()
    bright, dim = _pulse(1, T0, 0.0), _pulse(2, T0 + 0.01, 0.0)
    bright.values[:] = 0.9
    dim.values[:] = 0.1
    for pulse in (bright, dim):
        under_way.add(pulse)
    under_way.advance(T0 + 0.02, glow)
    assert bright.hues is not None
    assert glow.texels[..., 3].ravel() == pytest.approx(bright.hues)
    assert (glow.texels[:, H:, 3] == NOT_CAPTURED).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(GAPS_S, min_size=2, max_size=12), st.lists(st.floats(0.0, 1.0), max_size=30))
def test_how_often_one_looks_while_passes_come_changes_no_light(
    gaps_s: list[float], looks: list[float]
) -> None:
    seldom, often = _lights(), _lights()
    at_s = T0
    for seed, gap_s in enumerate(gaps_s):
        for look in sorted(looks):
            often[0].advance(at_s + look * gap_s, often[1])
        at_s += gap_s
        for under_way, _ in (seldom, often):
            under_way.add(_pulse(seed, at_s, 0.2))
    for under_way, glow in (seldom, often):
        under_way.advance(at_s + 1.0, glow)
    assert np.allclose(seldom[1].light(at_s + 1.0), often[1].light(at_s + 1.0), rtol=1e-4, atol=1e-7)


def test_passes_that_come_faster_than_pictures_travel_as_one() -> None:
    under_way, _ = _lights()
    for step in range(40):
        under_way.add(_pulse(step, T0 + step * 0.005, 0.45))
    assert len(under_way) <= 1 + math.ceil(40 * 0.005 * JOINED_PER_S)


def test_a_pass_that_joins_late_lights_what_is_still_to_be_reached() -> None:
    under_way, glow = _lights()
    begin_s = T0 + 1.0 / JOINED_PER_S
    for at_s in (T0, T0 + 0.005):
        under_way.add(_level(at_s, 0.1))
    under_way.advance(begin_s + 0.225, glow)
    under_way.add(_level(T0 + 0.006, 0.9))
    under_way.advance(T0 + 1.0, glow)
    late = 0.9 * math.exp((T0 + 0.006 - begin_s) / FADE_S)
    assert glow.texels[:2, :, 0].max() <= 0.1 + 1e-6
    assert glow.texels[3:, :, 0] == pytest.approx(np.full((2, H + 1), late), rel=1e-5)


def test_an_origin_that_moves_while_a_pass_is_under_way_moves_its_stamps_and_no_light() -> None:
    (moved, other), (stayed, glow) = _lights(), _lights()
    for under_way in (moved, stayed):
        under_way.add(_level(T0, 0.5))
    moved.advance(T0 + 0.2, other)
    other.move_origin(T0)
    for under_way, lights in ((moved, other), (stayed, glow)):
        under_way.advance(T0 + 1.0, lights)
    assert other.texels[..., 1] + T0 == pytest.approx(glow.texels[..., 1], abs=1e-3)
    assert other.light(T0 + 1.0) == pytest.approx(glow.light(T0 + 1.0), rel=1e-4)


def _level(at_s: float, value: float) -> Pulse:
    """A pass with one value for all nodes."""
    return Pulse.of(at_s, 0.45, np.full((L, H), value, np.float32), np.full((L, 1), value, np.float32))
