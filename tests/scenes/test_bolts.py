"""Lightning: every arc is a node's, its light is that node's value, and only its shape is decoration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scenes.streams import topology

from fulgurite.viewer.bolts import (
    DIMMEST,
    GROUPS,
    LIFE_S,
    READS_PER_HEAD,
    STRAND_RADIUS,
    Arcs,
    Bolts,
    Kind,
    Pushes,
    Reads,
    chain,
    frame_seed,
    heads_and_strikes,
)
from fulgurite.viewer.contribution import NO_PUSH, NOT_CAPTURED, hue
from fulgurite.viewer.layout import Layout

L, H = 8, 6
LAYOUT = Layout.for_topology(topology(L, H))
COLOR = (0.1, 0.5, 0.9)


def _values(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 1, (L, H)).astype(np.float32), rng.uniform(0, 1, L).astype(np.float32)


def _of(arcs: Arcs, kind: Kind) -> dict[tuple[int, int], float]:
    return {tuple(arcs.node[i].tolist()): float(arcs.display[i]) for i in np.flatnonzero(arcs.kind == kind)}


@given(st.integers(0, 10_000), st.integers(1, H))
def test_the_brightest_heads_of_each_layer_strike_with_their_own_value(seed: int, top: int) -> None:
    heads, ffn = _values(seed)
    arcs = chain(LAYOUT, heads, ffn, top=top)
    struck = _of(arcs, Kind.HEAD)
    for layer in range(L):
        wanted = [h for h in np.argsort(-heads[layer], kind="stable")[:top] if heads[layer, h] >= DIMMEST]
        assert {head for at, head in struck if at == layer} == {int(head) for head in wanted}
    assert all(value == pytest.approx(float(heads[node])) for node, value in struck.items())
    shown = {layer: float(value) for layer, value in enumerate(ffn) if value >= DIMMEST}
    assert _of(arcs, Kind.FFN) == pytest.approx({(layer, 0): value for layer, value in shown.items()})


def test_of_equal_heads_those_of_the_lowest_number_strike() -> None:
    heads = np.full((4, 128), 0.25, np.float32)
    heads[:, 1::3] = 1.0  # as where a display saturates
    arcs = chain(Layout.for_topology(topology(4, 128)), heads, np.full(4, 0.5, np.float32), top=7)
    struck = _of(arcs, Kind.HEAD)
    for layer in {layer for layer, _ in struck}:
        assert {head for at, head in struck if at == layer} == {1, 4, 7, 10, 13, 16, 19}


def test_the_trunk_carries_the_largest_value_of_the_layers_that_it_passes() -> None:
    heads, ffn = _values(1)
    trunk = _of(chain(LAYOUT, heads, ffn, top=2), Kind.TRUNK)
    assert trunk == pytest.approx({(i, 0): float(max(heads[i].max(), ffn[i])) for i in range(L)})


def test_heads_that_change_places_change_strikes() -> None:
    heads, ffn = _values(2)
    order = np.array([3, 0, 5, 1, 4, 2])
    before = _of(chain(LAYOUT, heads, ffn, top=H), Kind.HEAD)
    after = _of(chain(LAYOUT, heads[:, order], ffn, top=H), Kind.HEAD)
    assert after == {
        (layer, int(np.flatnonzero(order == head)[0])): value for (layer, head), value in before.items()
    }


def test_one_value_changes_its_own_strike_and_the_trunk_beside_it() -> None:
    heads, ffn = _values(3)
    changed = heads.copy()
    changed[4, 2] = 1.0
    before, after = chain(LAYOUT, heads, ffn, top=H), chain(LAYOUT, changed, ffn, top=H)
    assert _of(before, Kind.FFN) == _of(after, Kind.FFN)
    for kind, node in ((Kind.HEAD, (4, 2)), (Kind.TRUNK, (4, 0))):
        was, now = _of(before, kind), _of(after, kind)
        assert (was.pop(node, None), now.pop(node)) != (1.0, 1.0)
        assert was == now


def test_what_was_not_measured_does_not_strike() -> None:
    heads, ffn = _values(4)
    heads[3] = np.nan
    ffn[5] = np.nan
    arcs = chain(LAYOUT, heads, ffn, top=H)
    assert not [node for node in _of(arcs, Kind.HEAD) if node[0] == 3]
    assert (5, 0) not in _of(arcs, Kind.FFN)
    nothing = chain(LAYOUT, np.full_like(heads, np.nan), np.full_like(ffn, np.nan), top=H)
    assert len(nothing) == 0


def test_strikes_come_from_the_cells_that_a_struck_head_reads_and_from_no_other() -> None:
    heads, ffn = _values(5)
    cells, weights = np.full((L, H, 2), -1, np.int32), np.zeros((L, H, 2), np.float32)
    cells[2], weights[2] = (7, 3), (0.6, 0.25)
    arcs = chain(LAYOUT, heads, ffn, top=2, reads=Reads(cells, weights))
    which = np.flatnonzero(arcs.kind == Kind.READ)
    assert sorted(tuple(node) for node in arcs.node[which].tolist()) == [(2, 3), (2, 3), (2, 7), (2, 7)]
    for index in which:
        assert np.allclose(arcs.start[index], LAYOUT.cells[2, arcs.node[index, 1]].mean(axis=0))
    assert not _of(chain(LAYOUT, heads, ffn, top=2), Kind.READ)


def test_a_strike_is_as_wide_as_its_attention_weight_and_attention_lights_no_head() -> None:
    heads, ffn = _values(5)
    cells = np.full((L, H, 1), 4, np.int32)
    light, heavy = (
        chain(LAYOUT, heads, ffn, top=2, reads=Reads(cells, np.full((L, H, 1), weight, np.float32)))
        for weight in (0.1, 0.9)
    )
    strikes = light.kind == Kind.READ
    assert np.allclose(light.width[strikes], 0.1)
    assert np.allclose(heavy.width[strikes], 0.9)
    assert np.array_equal(light.display, heavy.display)
    assert np.array_equal(light.width[~strikes], light.display[~strikes])
    assert (light.push[strikes] == NO_PUSH).all()


def test_positions_of_one_cell_add_up_and_what_is_hardly_looked_at_has_no_strike() -> None:
    cells = np.array([[[5, 2, 5, 9, -1]]], np.int32)
    weights = np.array([[[0.30, 0.35, 0.25, 0.09, 0.9]]], np.float32)
    strongest = Reads(cells, weights).strongest(0, 0)
    assert [cell for cell, _ in strongest] == [5, 2]
    assert [weight for _, weight in strongest] == pytest.approx([0.55, 0.35])
    assert [cell for cell, _ in Reads(cells, 0.2 * weights).strongest(0, 0)] == [5]
    assert Reads(cells, np.full_like(weights, np.nan)).strongest(0, 0) == []


def test_hues_are_the_pushes_of_the_nodes_and_of_the_trunk_their_sum() -> None:
    heads, ffn = _values(11)
    rng = np.random.default_rng(11)
    pushes = Pushes(rng.normal(0, 2, (L, H)), rng.normal(0, 2, L))
    arcs = chain(LAYOUT, heads, ffn, top=H, pushes=pushes)
    for index, (layer, head) in enumerate(arcs.node.tolist()):
        wanted = {
            Kind.HEAD: pushes.heads[layer, head],
            Kind.FFN: pushes.ffn[layer],
            Kind.TRUNK: pushes.heads[layer].sum() + pushes.ffn[layer],
        }[Kind(arcs.kind[index])]
        assert arcs.push[index] == pytest.approx(float(hue(wanted)), abs=1e-6)
    plain = chain(LAYOUT, heads, ffn, top=H)
    assert (plain.push == NOT_CAPTURED).all()
    assert np.array_equal(plain.display, arcs.display)
    assert np.array_equal(plain.width, arcs.width)


def test_one_push_that_is_missing_leaves_its_own_arc_and_the_sum_without_hue() -> None:
    heads, ffn = _values(11)
    pushes = Pushes(np.ones((L, H)), np.ones(L))
    pushes.heads[3, 1] = np.nan
    heads[3, 1] = 1.0
    arcs = chain(LAYOUT, heads, ffn, top=H, pushes=pushes)
    which = np.flatnonzero(arcs.push == NOT_CAPTURED)
    without = {(Kind(arcs.kind[i]), tuple(arcs.node[i].tolist())) for i in which}
    assert without == {(Kind.HEAD, (3, 1)), (Kind.TRUNK, (3, 0))}


def test_arcs_end_at_the_nodes_that_they_belong_to() -> None:
    heads, ffn = _values(6)
    arcs = chain(LAYOUT, heads, ffn, top=2)
    for index in np.flatnonzero(arcs.kind == Kind.HEAD):
        layer, head = arcs.node[index]
        assert np.linalg.norm(arcs.start[index] - LAYOUT.heads[layer, head]) <= LAYOUT.head_radius
        assert LAYOUT.spine[layer, 0] <= arcs.end[index, 0] <= LAYOUT.spine[layer + 1, 0]
    assert (np.diff(arcs.delay) >= 0).all()


def test_requests_run_on_strands_of_their_own_beside_the_axis() -> None:
    heads, ffn = _values(7)
    trunks = []
    for lane in range(7):
        arcs = chain(LAYOUT, heads, ffn, top=2, lane=lane)
        trunks.append(arcs.start[arcs.kind == Kind.TRUNK])
        assert np.array_equal(arcs.display, chain(LAYOUT, heads, ffn, top=2).display)
    apart = [np.linalg.norm(a - b, axis=-1).min() for i, a in enumerate(trunks) for b in trunks[:i]]
    assert min(apart) > 0.9 * STRAND_RADIUS
    assert np.linalg.norm(trunks[3] - trunks[0], axis=-1).max() == pytest.approx(STRAND_RADIUS, rel=1e-4)


def test_a_deep_model_has_a_bounded_number_of_arcs() -> None:
    shape = topology(126, 32)
    layout = Layout.for_topology(shape)
    arcs = chain(layout, np.ones((126, 32), np.float32), np.ones(126, np.float32), top=4)
    assert len(arcs) <= GROUPS * (1 + 4 + 1)


@given(st.integers(1, 200), st.integers(60, 600))
def test_about_three_chains_fit(layers: int, slots: int) -> None:
    top, _ = heads_and_strikes(layers, slots, chains=3, has_reads=False)
    assert 1 <= top <= 4
    if slots >= 9 * min(layers, GROUPS):
        assert 3 * min(layers, GROUPS) * (top + 2) <= slots
    heads, strikes = heads_and_strikes(layers, slots)
    assert 1 <= heads <= 4
    assert 0 <= strikes <= READS_PER_HEAD
    chain_arcs = min(layers, GROUPS) * (2 + heads * (1 + strikes))
    assert chain_arcs <= slots or slots < 3 * min(layers, GROUPS)
    if slots >= 8 * min(layers, GROUPS):
        assert strikes >= 1
        assert 2 * chain_arcs <= slots


def test_a_frame_has_one_seed_in_every_process() -> None:
    assert frame_seed("request-1", 0, 7) == 45406
    assert frame_seed("request-1", 0, 7) != frame_seed("request-1", 0, 8)
    assert all(0 <= frame_seed("r", 0, position) < 65536 for position in range(500))


def _slots(seed: int, color: tuple[float, float, float] = COLOR) -> np.ndarray:
    bolts = Bolts(100)
    arcs = chain(LAYOUT, *_values(8), top=2)
    assert bolts.admits(arcs, 10.0, 0.4)
    bolts.add(arcs, 10.0, 0.4, color=color, seed=seed)
    bolts.advance(10.4, 0.0)
    return bolts.slots.copy()


def test_the_seed_changes_the_path_and_neither_light_nor_width_nor_colour() -> None:
    one, other = _slots(1), _slots(999)
    differs = one != other
    assert differs[:, 3, 0].any()
    differs[:, 3, 0] = False
    assert not differs.any()


def test_the_texture_holds_ends_birth_life_colour_and_value() -> None:
    arcs, slots = chain(LAYOUT, *_values(8), top=2), _slots(1)
    n = len(arcs)
    assert np.allclose(slots[:n, 0, :3], arcs.start)
    assert np.allclose(slots[:n, 1, :3], arcs.end)
    assert np.allclose(slots[:n, 0, 3], 10.0 + 0.4 * arcs.delay, atol=1e-5)
    assert np.allclose(slots[:n, 1, 3], LIFE_S)
    assert np.allclose(slots[:n, 2, :3], COLOR)
    assert np.allclose(slots[:n, 2, 3], arcs.display)
    assert np.allclose(slots[:n, 3, 1], arcs.kind)
    assert np.allclose(slots[:n, 3, 2], arcs.width)
    assert np.allclose(slots[:n, 3, 3], arcs.push)
    assert not slots[n:].any()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.0, 0.15), min_size=1, max_size=25), st.floats(0.01, 0.2))
def test_there_are_never_more_arcs_than_slots_and_chains_come_whole(gaps: list[float], look_s: float) -> None:
    bolts, arcs = Bolts(90), chain(LAYOUT, *_values(9), top=2)
    now_s, admitted, looked = 0.0, [], 0.0
    for gap in gaps:
        now_s += gap
        if bolts.admits(arcs, now_s, 0.4):
            bolts.add(arcs, now_s, 0.4, color=COLOR, seed=1)
            admitted.append(now_s)
    while looked < now_s + 1.0:
        looked += look_s
        bolts.advance(looked, 0.0)
        births = np.concatenate([at + arcs.delay.astype(float) * 0.4 for at in admitted])
        assert bolts.live(looked) == int(((births <= looked) & (looked < births + LIFE_S)).sum())
        assert bolts.live(looked) <= 90


def test_with_other_slots_the_newest_arcs_live_on() -> None:
    bolts, arcs = Bolts(100), chain(LAYOUT, *_values(8), top=2)
    bolts.admits(arcs, 10.0, 0.4)
    bolts.add(arcs, 10.0, 0.4, color=COLOR, seed=1)
    bolts.advance(10.3, 0.0)
    before, live = bolts.slots[bolts.slots[:, 1, 3] > 0], bolts.live(10.3)
    bolts.resize(200)
    assert bolts.live(10.3) == live > 10
    assert np.array_equal(bolts.slots[bolts.slots[:, 1, 3] > 0], before)
    bolts.resize(8)
    assert np.array_equal(bolts.slots[:, 0, 3], before[-8:, 0, 3])
    bolts.advance(10.35, 0.0)
    assert len(bolts) == 8


def test_a_new_origin_keeps_births_where_they_were() -> None:
    bolts, arcs = Bolts(100), chain(LAYOUT, *_values(8), top=2)
    bolts.admits(arcs, 300.0, 0.4)
    bolts.add(arcs, 300.0, 0.4, color=COLOR, seed=1)
    bolts.advance(300.25, 0.0)
    born = bolts.slots[:, 1, 3] > 0
    before = bolts.slots[:, 0, 3].copy()
    bolts.advance(300.25, 256.0)
    assert born.any()
    assert np.allclose(before[born] - 256.0, bolts.slots[born, 0, 3], atol=1e-3)
