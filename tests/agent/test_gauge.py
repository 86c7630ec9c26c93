"""The display scale is measured on the stream, and does not depend on how the stream was cut."""

from __future__ import annotations

import numpy as np
import pytest

from fulgurite.agent.gauge import HIGH_QUANTILE, LOW_QUANTILE, ScaleGauge
from fulgurite.wire.frame import FrameBlock, RequestRef, Scale


def block_of(values: np.ndarray, name: str = "head_write") -> FrameBlock:
    return FrameBlock((RequestRef("r"),), {"position": np.zeros(len(values), np.int32), name: values})


def stream(tokens: int, factor: float = 1.0) -> list[FrameBlock]:
    rng = np.random.default_rng(1)
    values = factor * rng.lognormal(0, 1, (tokens, 3, 4)).astype(np.float32)
    return [block_of(values[i : i + 1]) for i in range(tokens)]


def test_there_is_no_scale_before_there_are_tokens() -> None:
    gauge = ScaleGauge()
    assert gauge.scale == Scale(version=0, kinds={})
    assert [gauge.update(block) for block in stream(7)] == [None] * 7


def test_the_bounds_are_the_quantiles_of_what_was_captured() -> None:
    gauge = ScaleGauge()
    blocks = stream(1000)
    for block in blocks:
        gauge.update(block)
    values = np.concatenate([block.columns["head_write"].ravel() for block in blocks])
    low, high = gauge.scale.kinds["head"]
    assert low == pytest.approx(np.quantile(values, LOW_QUANTILE), rel=0.1)
    assert high == pytest.approx(np.quantile(values, HIGH_QUANTILE), rel=0.1)
    assert set(gauge.scale.kinds) == {"head"}


def test_versions_rise_and_a_scale_that_hardly_moved_is_not_a_new_one() -> None:
    gauge = ScaleGauge()
    scales = [scale for block in stream(3000) if (scale := gauge.update(block)) is not None]
    assert [scale.version for scale in scales] == list(range(1, len(scales) + 1))
    assert len(scales) < 10
    assert scales[-1] == gauge.scale


def test_zeros_and_missing_values_do_not_count() -> None:
    gauge = ScaleGauge()
    values = np.full((20, 3, 4), np.nan, np.float32)
    values[:, 0], values[:, 1] = 0.0, np.inf
    assert gauge.update(block_of(values)) is None
    values[:, 2] = 1.0
    scale = gauge.update(block_of(np.repeat(values, 2, axis=0)))
    assert scale is not None
    low, high = scale.kinds["head"]
    assert low <= 1.0 <= high < 1.1


def test_values_beyond_every_bin_are_kept_at_the_ends() -> None:
    gauge = ScaleGauge()
    values = np.full((20, 3, 4), 1e-30, np.float32)
    values[:, 2] = 1e30
    scale = gauge.update(block_of(values))
    assert scale is not None
    low, high = scale.kinds["head"]
    assert 0 < low < high < np.inf
