"""The measures of agreement, on numbers that can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.reference.errors import (
    agreement,
    channel_agreement,
    ranks,
    relative_error,
    relative_errors,
    spearman,
)


def test_an_error_is_relative_to_the_largest_magnitude_of_its_group() -> None:
    reference = np.array([[[1.0, -10.0], [0.1, 0.2]]])  # (frames, layers, heads)
    measured = reference + np.array([[[0.5, 0.0], [0.0, 0.02]]])
    np.testing.assert_allclose(relative_errors(measured, reference, grouped=2), [[[0.05, 0.0], [0.0, 0.1]]])
    assert relative_error(measured, reference, grouped=2) == pytest.approx(0.1)
    assert relative_error(measured, reference, grouped=0) == pytest.approx(0.05)


def test_a_channel_with_its_own_scale_is_not_divided_by_a_small_value() -> None:
    assert relative_error([1e-3], [1e-6], grouped=1, magnitude=1.0) == pytest.approx(999e-6)
    assert channel_agreement("ffn_cosine", [[1e-3]], [[1e-6]]).relative == pytest.approx(999e-6)


def test_undefined_in_both_is_no_error_and_in_one_is() -> None:
    nothing = float("nan")
    assert relative_error([1.0, nothing], [1.0, nothing], grouped=0) == 0.0
    assert relative_error([nothing], [nothing], grouped=0) == 0.0
    with pytest.raises(ValueError, match=r"only the measured value is undefined at \(1,\)"):
        relative_error([1.0, nothing], [1.0, 2.0], grouped=0)
    with pytest.raises(ValueError, match=r"only the reference value is undefined at \(0,\)"):
        relative_error([1.0], [nothing], grouped=0)


def test_something_where_the_reference_has_nothing_is_infinitely_wrong() -> None:
    assert relative_error([0.0, 0.0], [0.0, 0.0], grouped=0) == 0.0
    assert relative_error([0.0, 1e-9], [0.0, 0.0], grouped=0) == math.inf


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"measured has shape \(1,\), the reference \(2,\)"):
        relative_error([1.0], [1.0, 2.0], grouped=0)


def test_ties_share_their_mean_rank() -> None:
    assert ranks([30.0, 10.0, 20.0, 20.0]).tolist() == [3.0, 0.0, 1.5, 1.5]


def test_rank_correlation_sees_order_and_nothing_else() -> None:
    values = np.array([3.0, 1.0, 2.0, 9.0])
    assert spearman(values, np.exp(values)) == pytest.approx(1.0)
    assert spearman(values, -values) == pytest.approx(-1.0)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)  # 1 − 6·4 / (5·24)
    assert math.isnan(spearman([1.0, 1.0], [1.0, 2.0]))


def test_the_worst_group_decides_the_correlation() -> None:
    reference = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    measured = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [5.0, 5.0, 5.0]])
    found = agreement(measured, reference, grouped=1)
    assert found.correlation == pytest.approx(-1.0)
    assert found.relative == pytest.approx(2.0 / 3.0)
    assert found.compared == 9
