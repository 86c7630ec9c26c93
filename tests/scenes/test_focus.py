"""A focus leaves out what it says, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from tests.scenes.streams import SCALE, block, topology

from fulgurite.viewer.focus import EVERYTHING, Focus, parse
from fulgurite.viewer.scene import ReplicaScene

SHAPE = topology(6, 4)


@pytest.mark.parametrize(
    ("text", "focus"),
    [
        ("layer 3", Focus(layers=(3, 3))),
        ("L3-5", Focus(layers=(3, 5))),
        ("l 5..3", Focus(layers=(3, 5))),
        ("L3 H2", Focus(layers=(3, 3), head=2)),
        ("head 2", Focus(head=2)),
        ("not layer 1", Focus(layers=(1, 1), is_hidden=True)),
        ("request abc", Focus(request="abc")),
        ("trace 0f", Focus(trace="0f")),
    ],
)
def test_what_people_write_is_understood(text: str, focus: Focus) -> None:
    assert parse(text) == focus


@pytest.mark.parametrize("text", ["", "hello", "layer", "request", "L", "3"])
def test_what_names_nothing_is_refused_with_what_can_be_written(text: str) -> None:
    with pytest.raises(ValueError, match="names nothing: write layer 3, L3-7"):
        parse(text)


def test_a_hidden_node_is_bare_and_the_others_keep_their_light() -> None:
    plain, narrow = ReplicaScene(SHAPE), ReplicaScene(SHAPE)
    narrow.set_focus(Focus(layers=(2, 3)))
    for scene in (plain, narrow):
        scene.set_scale(SCALE)
        scene.apply(block(SHAPE), 1000.0)
        scene.advance(1001.0)
    state = narrow.heads.texels[..., 2]
    assert (state == 2.0).all(axis=1).tolist() == [True, True, False, False, True, True]
    assert np.array_equal(narrow.heads.texels[2:4], plain.heads.texels[2:4])
    assert set(narrow.bolts.slots[narrow.bolts.slots[:, 3, 1] == 1][:, 0, 3] > 0) <= {True}
    narrow.set_focus(EVERYTHING)
    assert np.array_equal(narrow.heads.texels, plain.heads.texels)


def test_only_the_tokens_of_a_request_are_lit() -> None:
    one, both = ReplicaScene(SHAPE), ReplicaScene(SHAPE)
    frames = block(SHAPE, requests=("alpha", "beta"))
    both.set_focus(Focus(request="alp"))
    one_row = frames.select([0])
    for scene, made in ((one, one_row), (both, frames)):
        scene.set_scale(SCALE)
        scene.apply(made, 1000.0)
        scene.advance(1001.0)
    assert np.array_equal(one.heads.texels, both.heads.texels)
    assert [token.request_id for token in both.strip] == ["alpha"]
