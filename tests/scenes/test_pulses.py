"""Passes on their way along the layers: every layer is lit when its time has come, however one looks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgurite.viewer.glow import FADE_S, Glow
from fulgurite.viewer.pulses import HEADS_AT, PLATES_AT, Pulse, Pulses

L, H = 5, 3
T0 = 1000.0


def _pulse(seed: int, at_s: float, spread_s: float, *, gaps: bool = False) -> Pulse:
    rng = np.random.default_rng(seed)
    heads, plates = (rng.random(shape).astype(np.float32) for shape in ((L, H), (L, 1)))
    if gaps:
        heads[rng.random((L, H)) < 0.4] = np.nan
    return Pulse(at_s, spread_s, heads, plates, head_hues=heads - 0.5 if seed % 2 else None)


def _wanted(pulses: list[Pulse], now_s: float, *, plates: bool) -> np.ndarray:
    """The definition: the largest of all hits that are due, each faded."""
    light = np.zeros((L, 1 if plates else H))
    for pulse in pulses:
        for layer in range(L):
            due_s = pulse.at_s + pulse.spread_s * (layer + (PLATES_AT if plates else HEADS_AT)) / L
            if (pulse.at_s if pulse.spread_s == 0.0 else due_s) <= now_s:
                values = (pulse.plates if plates else pulse.heads)[layer]
                light[layer] = np.fmax(light[layer], values * np.exp((due_s - now_s) / FADE_S))
    return light


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 0.3), st.sampled_from([0.0, 0.2, 0.45])), min_size=1, max_size=12),
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
