"""Nothing is invented: a picture follows from the stream, light by light. Drawn off screen, read as pixels.

Where the lightning would lie over what is looked at, the picture is taken right after the hit: nodes are lit
at once (`spread_s=0`), and no bolt has grown yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.scenes.streams import SCALE, block, topology

from fulgurite.viewer.bolts import Kind
from fulgurite.viewer.camera import Pick
from fulgurite.viewer.hud import Hud
from fulgurite.viewer.layout import HEAD_GROWTH
from fulgurite.viewer.scene import ReplicaScene, Storm
from fulgurite.wire.frame import FrameBlock
from fulgurite.wire.topology import Topology

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.viewer.vtk.renderer import Renderer

    Window = Callable[[Storm], Renderer]

T0 = 1000.0
SHAPE = topology(4, 6)
LOW, HIGH = SCALE.kinds["head"]


def _scene(shape: Topology = SHAPE, *, scaled: bool = True, key: str = "one") -> ReplicaScene:
    scene = ReplicaScene(shape, key=key, tokens_shown="text")
    if scaled:
        scene.set_scale(SCALE)
    scene.set_hud(Hud(state="live", tokens_per_s=9.0, running_requests=1))
    return scene


def _bare(*scenes: ReplicaScene) -> Storm:
    """Without writings."""
    storm = Storm(scenes)
    storm.hud_visible = storm.tokens_visible = False
    return storm


def _play(storm: Storm, *, steps: int = 8, seed: int = 0, step_s: float = 0.11) -> float:
    """A stream of two requests into every replica; the time of its end."""
    for scene in storm.scenes:
        for step in range(steps):
            frames = block(scene.topology, position=30 + step, requests=("a", "b"), seed=seed, deep=True)
            scene.apply(frames, T0 + step * step_s)
    return T0 + steps * step_s


def _heads(values: NDArray[Any], shape: Topology = SHAPE) -> FrameBlock:
    """One frame with these head writes, and dark FFN blocks."""
    frame = block(shape, without=("logprob",))
    frame.columns["head_write"] = np.asarray(values, np.float32)[None]
    frame.columns["ffn_write"] = np.full((1, shape.layers), SCALE.kinds["ffn"][0], np.float32)
    return frame


def _lit(window: Window, frame: FrameBlock | None, shape: Topology = SHAPE) -> tuple[Renderer, NDArray[Any]]:
    """The picture right after this frame."""
    scene = _scene(shape)
    if frame is not None:
        scene.apply(frame, T0, spread_s=0.0)
    renderer = window(_bare(scene))
    renderer.storm.camera.show(1)
    return renderer, renderer.render(T0).astype(int)


def _seen(renderer: Renderer, shape: Topology = SHAPE) -> dict[tuple[int, int], tuple[int, int]]:
    """The pixel of every head whose centre nothing covers, by (layer, head)."""
    layout = renderer.storm.scenes[0].layout
    at = renderer.project("one", layout.heads)
    found = {}
    for layer in range(shape.layers):
        for head in range(shape.layer_heads[layer]):
            x, y, _ = at[layer, head]
            under = renderer.pick(x, y)
            clear = under is not None and (under[1].layer, under[1].head) == (layer, head)
            if clear and not _behind_a_disc(renderer, x, y):
                found[layer, head] = (int(x), int(y))
    return found


def _behind_a_disc(renderer: Renderer, x: float, y: float) -> bool:
    corners = renderer.project("one", renderer.storm.scenes[0].layout.plates)[:, 0, :, :2]
    return bool(((corners.min(axis=1) < (x, y)) & (corners.max(axis=1) > (x, y))).all(axis=1).any())


def _color(image: NDArray[Any], at: tuple[int, int]) -> NDArray[Any]:
    x, y = at
    return np.asarray(image[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(axis=0))


def _distinct(seed: int) -> NDArray[Any]:
    """Head writes over the whole scale, no two the same in a layer."""
    rng = np.random.default_rng(seed)
    ladder = np.geomspace(LOW, HIGH, SHAPE.heads)  # equal steps of light
    return np.stack([rng.permutation(ladder) for _ in range(SHAPE.layers)])


# the same stream, the same picture


def test_the_same_stream_gives_the_same_picture(window: Window) -> None:
    pictures = []
    for _ in range(2):
        storm = Storm([_scene()])
        end_s = _play(storm)
        pictures.append(window(storm).render(end_s))
    assert np.array_equal(*pictures)
    assert pictures[0].max() > 100


def test_another_stream_gives_another_picture(window: Window) -> None:
    pictures = []
    for seed in (0, 1):
        storm = _bare(_scene())
        end_s = _play(storm, seed=seed)
        pictures.append(window(storm).render(end_s).astype(int))
    assert (np.abs(pictures[0] - pictures[1]).max(axis=-1) > 16).mean() > 0.01


def test_a_picture_does_not_depend_on_those_before_it(window: Window) -> None:
    storm = Storm([_scene()])
    end_s = _play(storm)
    alone = window(storm).render(end_s)
    storm = Storm([_scene()])
    end_s = _play(storm)
    renderer = window(storm)
    for now_s in np.arange(T0, end_s, 0.037):
        renderer.render(float(now_s))
    assert np.array_equal(renderer.render(end_s), alone)


def test_two_replicas_with_the_same_stream_look_the_same(window: Window) -> None:
    storm = _bare(_scene(key="left"), _scene(key="right"))
    end_s = _play(storm)
    image = window(storm, 1280, 360).render(end_s).astype(int)
    assert np.abs(image[:, :640] - image[:, 640:]).max() <= 1  # a rounding of where a pixel lies


# a light is its own value's


def test_heads_that_change_places_change_lights(window: Window) -> None:
    values, order = _distinct(3), np.array([4, 2, 0, 5, 1, 3])
    renderer, before = _lit(window, _heads(values))
    after = _lit(window, _heads(values[:, order]))[1]
    seen = _seen(renderer)
    pairs = [(seen[at, int(order[h])], seen[at, h]) for at, h in seen if (at, int(order[h])) in seen]
    assert len(pairs) >= 12
    for was, now in pairs:
        light = _color(before, was)
        assert light.max() < 60 or np.abs(light - _color(after, now)).max() < 20  # halos fall on dark ones
    moved = [np.abs(_color(before, now) - _color(after, now)).max() for _, now in pairs]
    assert np.median(moved) > 40  # or nothing would be shown by the above


def test_a_larger_value_is_a_brighter_light(window: Window) -> None:
    values = _distinct(5)
    renderer, image = _lit(window, _heads(values))
    seen = _seen(renderer)
    for layer in range(SHAPE.layers):
        here = sorted((values[key], _color(image, at).sum()) for key, at in seen.items() if key[0] == layer)
        assert len(here) >= 3
        assert [light for _, light in here] == sorted(light for _, light in here)


def test_one_value_lights_one_head(window: Window) -> None:
    values = np.full((SHAPE.layers, SHAPE.heads), LOW)
    changed = values.copy()
    changed[2, 3] = HIGH
    renderer, before = _lit(window, _heads(values))
    after = _lit(window, _heads(changed))[1]
    layout = renderer.storm.scenes[0].layout
    rim = layout.heads[2, 3] + np.array([0.0, 5.3 * layout.head_radius, 0.0], np.float32)  # of its halo
    (x, y, _), (_, top, _) = renderer.project("one", np.stack([layout.heads[2, 3], rim]))
    rows, columns = np.nonzero(np.abs(before - after).max(axis=-1) > 2)
    assert len(rows) > 30
    assert np.hypot(columns - x, rows - y).max() <= (y - top) * 1.15 + 2
    assert after[int(y), int(x)].sum() > before[int(y), int(x)].sum() + 150


def test_a_head_is_drawn_where_the_projection_says(window: Window) -> None:
    values = np.full((SHAPE.layers, SHAPE.heads), LOW)
    dark = _lit(window, _heads(values))[1]
    for layer, head in ((0, 1), (1, 5), (3, 0)):
        lit = values.copy()
        lit[layer, head] = HIGH
        renderer, image = _lit(window, _heads(lit))
        weight = np.clip(image - dark, 0, None).sum(axis=-1).astype(float)
        rows, columns = np.mgrid[0 : weight.shape[0], 0 : weight.shape[1]]
        x, y, _ = renderer.project("one", renderer.storm.scenes[0].layout.heads[layer, head])
        assert (columns * weight).sum() / weight.sum() == pytest.approx(x, abs=2.5)
        assert (rows * weight).sum() / weight.sum() == pytest.approx(y, abs=2.5)


# what was not measured is hatched, what is zero is dark


def _stripes(image: NDArray[Any], at: tuple[int, int], reach: int = 4) -> float:
    """How much neighbouring pixels along a row differ around a place."""
    x, y = at
    patch = image[y - reach : y + reach + 1, x - reach : x + reach + 1].sum(axis=-1)
    return float(np.abs(np.diff(patch, axis=1)).mean())


def test_a_replica_without_frames_is_hatched_and_not_dark(window: Window) -> None:
    renderer, dark = _lit(window, _heads(np.full((SHAPE.layers, SHAPE.heads), LOW)))
    hatched = _lit(window, None)[1]
    for at in _seen(renderer).values():
        assert _stripes(hatched, at) > 3 * _stripes(dark, at) + 10


def test_a_zero_is_dark_and_not_hatched(window: Window) -> None:
    renderer, zero = _lit(window, _heads(np.zeros((SHAPE.layers, SHAPE.heads))))
    dark = _lit(window, _heads(np.full((SHAPE.layers, SHAPE.heads), LOW)))[1]
    assert np.array_equal(zero, dark)
    for at in _seen(renderer).values():
        assert _color(zero, at).max() < 60
        assert _stripes(zero, at) < 20


def test_ornaments_that_are_left_out_take_light_around_nodes_and_bolts_and_no_other(window: Window) -> None:
    scene = _scene()
    renderer = window(_bare(scene))
    end_s = _play(renderer.storm)
    pictures = []
    for renderer.storm.shed in (0, 1, 2, 0):
        pictures.append(renderer.render(end_s).astype(int))
    whole, no_glow, plain, again = pictures
    assert np.array_equal(whole, again)
    assert (no_glow <= whole + 1).all()
    assert (no_glow < whole - 8).any()
    for at in _seen(renderer).values():
        assert np.abs(_color(no_glow, at) - _color(whole, at)).max() < 20
    coarse = [image.reshape(45, 8, 80, 8, 3).mean(axis=(1, 3)) for image in (no_glow, plain)]
    assert 0 < np.abs(coarse[0] - coarse[1]).mean() < 4.0, "bolts are where they were, with fewer jags"


def test_a_missing_head_channel_hatches_the_heads_and_lets_the_ffn_shine(window: Window) -> None:
    frame = block(SHAPE)
    whole = _lit(window, frame)[1]
    columns = {name: column for name, column in frame.columns.items() if name != "head_write"}
    renderer, part = _lit(window, replace(frame, columns=columns))
    for at in _seen(renderer).values():
        assert _stripes(part, at) > _stripes(whole, at)
    scene = renderer.storm.scenes[0]
    corners = renderer.project("one", scene.layout.plates)[:, 0, :, :2]
    middle = corners.mean(axis=1)
    for x, y in middle:
        assert np.abs(_color(part, (int(x), int(y))) - _color(whole, (int(x), int(y)))).max() < 12


def test_a_missing_ffn_channel_hatches_the_discs_only(window: Window) -> None:
    renderer, part = _lit(window, block(SHAPE, without=("ffn_write",)))
    whole = _lit(window, block(SHAPE))[1]
    for at in _seen(renderer).values():
        assert np.abs(_color(part, at) - _color(whole, at)).max() < 3
    assert np.abs(part - whole).max() > 60


def test_a_cache_that_was_not_measured_is_hatched(window: Window) -> None:
    renderer, part = _lit(window, block(SHAPE, without=("kv_tokens",)))
    whole = _lit(window, block(SHAPE))[1]
    cells = renderer.project("one", renderer.storm.scenes[0].layout.cells[:, 40].mean(axis=1))
    for x, y, _ in cells:
        assert _stripes(part, (int(x), int(y)), 6) > _stripes(whole, (int(x), int(y)), 6) + 5


@pytest.mark.parametrize("shape", [topology(2, 2), topology(6, 8, experts=4), topology(40, 104)])
def test_every_kind_of_model_is_drawn(window: Window, shape: Topology) -> None:
    storm = _bare(_scene(shape))
    end_s = _play(storm, steps=4)
    image = window(storm).render(end_s)
    empty = window(_bare(_scene(shape))).render(end_s)
    assert (image.max(axis=-1) > 120).sum() > 50
    assert (np.abs(image.astype(int) - empty).max(axis=-1) > 16).mean() > 0.02


def test_a_layer_without_heads_has_no_light(window: Window) -> None:
    shape = replace(SHAPE, layer_heads=(6, 0, 3, 6))
    renderer, image = _lit(window, _heads(np.full((4, 6), HIGH), shape), shape)
    assert np.isnan(renderer.storm.scenes[0].layout.heads[1]).all()
    assert {key for key in _seen(renderer, shape) if key[0] == 1} == set()
    for at in _seen(renderer, shape).values():
        assert _color(image, at).max() > 150


# lightning


def test_a_bolt_has_the_colour_of_its_request(window: Window) -> None:
    storm = _bare(_scene())
    scene = storm.scenes[0]
    scene.apply(_heads(np.full((4, 6), LOW)), T0)
    frame = _heads(np.full((4, 6), HIGH))
    scene.apply(frame, T0 + 0.2)
    renderer = window(storm)
    storm.camera.show(1)
    with_bolts = renderer.render(T0 + 0.2 + 0.2).astype(int)
    scene.bolts.clear()
    without = renderer.render(T0 + 0.2 + 0.2).astype(int)
    more = np.clip(with_bolts - without, 0, None).reshape(-1, 3)
    more = more[more.sum(axis=1) > 60]
    assert len(more) > 200
    assert (more[:, 2] > more[:, 0]).mean() > 0.95  # sky blue: more blue than red


def test_a_larger_value_strikes_brighter_and_wider(window: Window) -> None:
    light, size = [], []
    for share in (0.3, 0.6, 1.0):
        values = np.full((SHAPE.layers, SHAPE.heads), LOW)
        values[1, 4] = LOW + share * (HIGH - LOW)
        scene = _scene()
        scene.apply(_heads(values), T0)
        renderer = window(_bare(scene))
        renderer.storm.camera.show(1)
        struck = renderer.render(T0 + 0.30).astype(int)
        scene.bolts.clear()
        more = np.clip(struck - renderer.render(T0 + 0.30), 0, None).sum(axis=-1)
        light.append(int(more.max()))
        size.append(int((more > 6).sum()))
    assert light[0] < light[1] < light[2]
    assert size[0] < size[1] < size[2]


def test_lightning_moves_and_stands_in_a_pause(window: Window) -> None:
    storm = _bare(_scene())
    _play(storm)
    renderer = window(storm)
    first = renderer.render(T0 + 0.50, 1.0).astype(int)
    paused = renderer.render(T0 + 0.50, 2.0).astype(int)
    later = renderer.render(T0 + 0.56, 3.0).astype(int)
    assert np.array_equal(first, paused)
    assert (np.abs(first - later).max(axis=-1) > 16).mean() > 0.005


def test_the_writings_do_not_cover_the_nodes(window: Window) -> None:
    storm = Storm([_scene(topology(8, 8))])
    renderer = window(storm, 1280, 720)
    renderer.render(T0)
    layout = storm.scenes[0].layout
    at = renderer.project("one", layout.heads.reshape(-1, 3))
    grown = layout.head_radius * HEAD_GROWTH
    up = renderer.project("one", layout.heads.reshape(-1, 3) + np.array([0.0, grown, 0.0]))
    assert up[:, 1].min() > 95
    assert at[:, 1].max() < 720 - 125
    assert at[:, 0].min() > 20
    assert at[:, 0].max() < 1260


# the contribution view


def _pushed(values: NDArray[Any], pushes: NDArray[Any]) -> FrameBlock:
    """One frame with these head writes and contributions, without strikes."""
    frame = _heads(values)
    frame.columns["head_contribution"] = np.asarray(pushes, np.float32)[None]
    frame.columns["ffn_contribution"] = np.zeros((1, SHAPE.layers), np.float32)
    frame.columns["residue"] = np.zeros(1, np.float32)
    return frame


def _contribution(window: Window, frame: FrameBlock, *, at_s: float = T0) -> tuple[Renderer, NDArray[Any]]:
    scene = _scene()
    scene.apply(frame, T0, spread_s=0.0)
    renderer = window(_bare(scene))
    renderer.storm.camera.show(1)
    renderer.storm.shows_contribution = True
    return renderer, renderer.render(at_s).astype(int)


def test_hue_is_the_sign_of_the_push_and_neutral_at_zero(window: Window) -> None:
    pushes = np.zeros((SHAPE.layers, SHAPE.heads))
    pushes[0], pushes[1] = 5.0, -5.0
    renderer, image = _contribution(window, _pushed(np.full_like(pushes, HIGH), pushes))
    for (layer, _), at in _seen(renderer).items():
        red, _, blue = _color(image, at)
        if layer == 0:
            assert red > blue + 60
        elif layer == 1:
            assert blue > red + 60
        else:
            assert abs(red - blue) < 25


def test_brightness_stays_the_write_norm_whatever_the_push(window: Window) -> None:
    values, pushes = _distinct(5), np.full((SHAPE.layers, SHAPE.heads), 3.0)
    renderer, image = _contribution(window, _pushed(values, pushes))
    seen = _seen(renderer)
    for layer in range(SHAPE.layers):
        here = sorted((values[key], _color(image, at).sum()) for key, at in seen.items() if key[0] == layer)
        assert [light for _, light in here] == sorted(light for _, light in here)
    dark = _contribution(window, _pushed(np.full_like(values, LOW), 9.0 * pushes))[1]
    assert max(_color(dark, at).max() for at in seen.values()) < 90  # a strong push lights nothing


def test_what_was_not_captured_is_hatched_in_the_contribution_view_only(window: Window) -> None:
    values = np.full((SHAPE.layers, SHAPE.heads), HIGH)
    known = _contribution(window, _pushed(values, np.full_like(values, 2.0)))[1]
    frame = _heads(values)
    renderer, unknown = _contribution(window, frame)
    reach = max(2, round(_radius_px(renderer)))
    for at in _seen(renderer).values():
        assert _stripes(unknown, at, reach) > _stripes(known, at, reach) + 15
    renderer.storm.shows_contribution = False
    assert np.array_equal(renderer.render(T0), _lit(window, frame)[1])


def _radius_px(renderer: Renderer) -> float:
    layout = renderer.storm.scenes[0].layout
    up = layout.heads[1, 2] + np.array([0.0, HEAD_GROWTH * layout.head_radius, 0.0], np.float32)
    (_, y, _), (_, top, _) = renderer.project("one", np.stack([layout.heads[1, 2], up]))
    return float(y - top)


def test_contributions_change_no_pixel_of_the_activity_view(window: Window) -> None:
    values, pushes = _distinct(4), np.linspace(-8, 8, SHAPE.layers * SHAPE.heads).reshape(SHAPE.layers, -1)
    pictures = []
    for frame in (_pushed(values, pushes), _pushed(values, -pushes), _heads(values)):
        scene = _scene()
        scene.apply(frame, T0)
        pictures.append(window(_bare(scene)).render(T0 + 0.3))
    assert np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])


def test_a_bolt_has_the_hue_of_its_push(window: Window) -> None:
    found = []
    for sign in (1.0, -1.0):
        values = np.full((SHAPE.layers, SHAPE.heads), HIGH)
        renderer, struck = _contribution(
            window, _pushed(values, np.full_like(values, 4.0 * sign)), at_s=T0 + 0.12
        )
        renderer.storm.scenes[0].bolts.clear()
        more = np.clip(struck - renderer.render(T0 + 0.12), 0, None).reshape(-1, 3)
        more = more[more.sum(axis=1) > 60]
        assert len(more) > 100
        found.append(float(np.median(more[:, 0] - more[:, 2])))
    assert found[0] > 20
    assert found[1] < -20


def test_a_strike_is_wider_where_the_head_attended_more_and_the_head_is_no_brighter(window: Window) -> None:
    size = []
    for weight in (0.15, 0.5, 1.0):
        frame = _heads(np.full((SHAPE.layers, SHAPE.heads), LOW))
        frame.columns["head_write"][0, 1, 4] = HIGH
        positions = np.full((1, SHAPE.layers, SHAPE.heads, 8), -1, np.int32)
        weights = np.zeros(positions.shape, np.float32)
        positions[0, 1, 4, 0], weights[0, 1, 4, 0] = 30, weight
        frame.columns["attended_positions"], frame.columns["attended_weights"] = positions, weights
        scene = _scene()
        scene.apply(frame, T0)
        renderer = window(_bare(scene))
        renderer.storm.camera.show(1)
        struck = renderer.render(T0 + 0.30).astype(int)
        slots = scene.bolts.slots
        slots[slots[:, 3, 1] == Kind.READ] = 0.0
        scene.bolts.revision += 1
        more = np.clip(struck - renderer.render(T0 + 0.30), 0, None).sum(axis=-1)
        size.append(int((more > 6).sum()))
        assert scene.heads.display[1, 4] == pytest.approx(1.0)
    assert 20 < size[0] < size[1] < size[2]


# pointing at nodes


def test_a_node_is_marked_where_it_is_picked(window: Window) -> None:
    storm = _bare(_scene(key="left"), _scene(key="right"))
    renderer = window(storm, 1280, 360)
    renderer.render(T0)
    kinds = set()
    for x, y in ((330, 120), (960, 140), (900, 200), (200, 180)):
        for right in range(0, 120, 4):
            found = renderer.pick(x + right, y)
            if found is None:
                continue
            kinds.add(found[1].kind)
            place = renderer.place(*found)
            assert place is not None
            assert np.hypot(place[0] - x - right, place[1] - y) <= place[2] + 1
            assert (place[0] < 640) == (found[0] == "left")
    assert kinds == {"head", "ffn"}
    assert renderer.pick(330, 5) is None
    storm.show(["left"])
    renderer.render(T0)
    assert renderer.place("right", Pick("head", 0, 0)) is None
