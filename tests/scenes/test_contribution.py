"""The signed push: its hue is odd and rising; the shares of a token make up its logit, or are unverified."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.scenes.streams import block, topology

from fulgurite.viewer.colors import COLORS, push_colors
from fulgurite.viewer.contribution import (
    LARGEST_LOGITS,
    NOT_CAPTURED,
    hue,
    pushes,
    residue_bound,
    shares_of,
    texel,
    verified,
)
from fulgurite.wire.frame import FrameBlock

SHAPE = topology(4, 6)
logits = st.floats(-50, 50, allow_nan=False)

# red-green blindness, severity 1, on linear light (Machado, Oliveira and Fernandes, 2009)
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)


def _with(frames: FrameBlock, **columns: np.ndarray) -> FrameBlock:
    return replace(frames, columns={**frames.columns, **columns})


@given(logits, logits)
def test_a_stronger_push_has_a_hue_further_out_and_its_opposite_the_opposite_one(a: float, b: float) -> None:
    assert float(hue(-a)) == -float(hue(a))
    if a < b:
        assert float(hue(a)) <= float(hue(b))
    assert -1.0 <= float(hue(a)) <= 1.0


def test_no_push_is_neutral_and_the_largest_has_the_end_of_the_scale() -> None:
    assert float(hue(0.0)) == 0.0
    assert float(hue(LARGEST_LOGITS)) == pytest.approx(1.0)
    assert abs(float(hue(0.01))) < 0.03
    assert np.isnan(hue(np.nan))
    assert texel(hue([np.nan, 0.0])).tolist() == [NOT_CAPTURED, 0.0]


def _linear(color: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4))


@pytest.mark.parametrize(
    "sight", [np.eye(3), DEUTERANOPIA, PROTANOPIA], ids=["full", "deuteranopia", "protanopia"]
)
def test_against_none_and_towards_stay_apart_for_every_eye(sight: np.ndarray) -> None:
    colors = push_colors()[:, :3]
    against, none, towards = (sight @ _linear(colors[i]) for i in (16, COLORS // 2, COLORS - 17))
    for one, other in ((against, none), (none, towards), (against, towards)):
        assert np.linalg.norm(one - other) > 0.3


def test_the_shares_of_a_token_make_up_its_logit() -> None:
    frames = block(SHAPE, deep=True)
    shares = shares_of(frames, 0, "float32")
    assert shares is not None
    parts = dict(shares.parts)
    assert parts["heads"] == pytest.approx(float(frames.columns["head_contribution"].sum()), rel=1e-5)
    assert parts["FFN"] == pytest.approx(float(frames.columns["ffn_contribution"].sum()), rel=1e-5)
    assert sum(shares.percent(value) or 0.0 for _, value in shares.parts) == pytest.approx(100.0, abs=1e-3)
    assert shares.left_over == pytest.approx(0.0, abs=1e-5)
    assert shares.is_verified


def test_without_every_part_there_are_no_shares() -> None:
    for missing in ("head_contribution", "embedding_contribution", "logit_centered"):
        assert shares_of(block(SHAPE, deep=True, without=(missing,)), 0, "float32") is None
    assert shares_of(block(SHAPE), 0, "float32") is None


def test_a_logit_near_the_mean_has_no_shares_in_percent() -> None:
    frames = _with(block(SHAPE, deep=True), logit_centered=np.array([0.01], np.float32))
    shares = shares_of(frames, 0, "float32")
    assert shares is not None
    assert shares.percent(1.0) is None


@pytest.mark.parametrize(
    ("dtype", "bound"), [("float32", 1e-3), ("bfloat16", 2e-2), ("float16", 2e-2), ("", 2e-2)]
)
def test_a_residue_over_the_bound_of_the_number_format_is_unverified(dtype: str, bound: float) -> None:
    assert residue_bound(dtype) == bound
    residues = np.array([0.9 * bound, -0.9 * bound, 1.1 * bound, -1.1 * bound, np.nan], np.float32)
    frames = _with(block(SHAPE, requests=tuple("abcde"), deep=True), residue=residues)
    assert verified(frames, dtype).tolist() == [True, True, False, False, False]
    found = pushes(frames, "head_contribution", (4, 6), dtype)
    assert np.isfinite(found).all(axis=(1, 2)).tolist() == [True, True, False, False, False]


def test_a_frame_without_a_residue_is_not_verified() -> None:
    assert not verified(block(SHAPE, deep=True, without=("residue",)), "float32").any()
    assert np.isnan(pushes(block(SHAPE), "head_contribution", (4, 6), "float32")).all()
