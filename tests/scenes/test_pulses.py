"""Passes on their way along the layers: every layer is lit when its time has come, however one looks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    return Pulse(at_s, spread_s, heads, plates, head_hues=heads - 0.5 if seed % 2 else None)


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
                values = (pulse.plates if plates else pulse.heads)[layer]
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
    under_way, heads, plates, all_of_them = Pulses(), Glow((L, H)), Glow((L, 1)), []
    at_s = T0
    for seed, (gap_s, spread_s) in enumerate(passes):
        at_s += gap_s
        all_of_them.append(_pulse(seed, at_s, spread_s, gaps=gaps))
        under_way.add(all_of_them[-1])
    now_s = T0
    for look_s in looks:
        now_s += look_s + 1e-4
        under_way.advance(now_s, heads, plates)
        assert np.allclose(
            heads.light(now_s), _wanted(all_of_them, now_s, plates=False), rtol=1e-4, atol=1e-6
        )
        assert np.allclose(
            plates.light(now_s), _wanted(all_of_them, now_s, plates=True), rtol=1e-4, atol=1e-6
        )
    under_way.advance(at_s + 1.0, heads, plates)
    assert len(under_way) == 0


def test_a_hue_comes_with_the_light_of_its_own_pass() -> None:
    under_way, heads, plates = Pulses(), Glow((L, H)), Glow((L, 1))
    bright, dim = _pulse(1, T0, 0.0), _pulse(2, T0 + 0.01, 0.0)
    bright.heads[:] = 0.9
    dim.heads[:] = 0.1
    for pulse in (bright, dim):
        under_way.add(pulse)
    under_way.advance(T0 + 0.02, heads, plates)
    assert bright.head_hues is not None
    assert heads.push == pytest.approx(bright.head_hues)


@settings(max_examples=40, deadline=None)
@given(st.lists(GAPS_S, min_size=2, max_size=12), st.lists(st.floats(0.0, 1.0), max_size=30))
def test_how_often_one_looks_while_passes_come_changes_no_light(
    gaps_s: list[float], looks: list[float]
) -> None:
    seldom, often = [(Pulses(), Glow((L, H)), Glow((L, 1))) for _ in range(2)]
    at_s = T0
    for seed, gap_s in enumerate(gaps_s):
        for look in sorted(looks):
            often[0].advance(at_s + look * gap_s, *often[1:])
        at_s += gap_s
        for under_way, *_ in (seldom, often):
            under_way.add(_pulse(seed, at_s, 0.2))
    for under_way, *glows in (seldom, often):
        under_way.advance(at_s + 1.0, *glows)
    for one, other in zip(seldom[1:], often[1:], strict=True):
        assert np.allclose(one.light(at_s + 1.0), other.light(at_s + 1.0), rtol=1e-4, atol=1e-7)


def test_passes_that_come_faster_than_pictures_travel_as_one() -> None:
    under_way = Pulses()
    for step in range(40):
        under_way.add(_pulse(step, T0 + step * 0.005, 0.45))
    assert len(under_way) <= 1 + math.ceil(40 * 0.005 * JOINED_PER_S)
