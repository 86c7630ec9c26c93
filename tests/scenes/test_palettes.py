"""Palettes under simulated colour-blindness: light stays ordered by lightness, requests stay apart.

Simulation after G. Machado, M. Oliveira, L. Fernandes, 2009, full severity, in linear light.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from fulgurite.viewer.colors import bar_colors, on_paper
from fulgurite.viewer.palettes import palettes

SEEN_BY = {
    "anyone": np.eye(3),
    "protanopes": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopes": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopes": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip


def _lab(rgb: Any, eyes: str) -> np.ndarray:
    """CIELAB of sRGB colours as these eyes see them."""
    rgb = np.asarray(rgb, np.float64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ SEEN_BY[eyes].T, 0.0, 1.0)
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    t = xyz / np.array([0.9505, 1.0, 1.089])
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1
    )


@pytest.mark.parametrize("eyes", SEEN_BY)
@pytest.mark.parametrize("index", range(len(palettes())), ids=[palette.name for palette in palettes()])
def test_more_light_is_lighter_for_every_eye(index: int, eyes: str) -> None:
    lightness = _lab(bar_colors(palettes()[index].nodes), eyes)[:, 0]
    steps = lightness[16::16] - lightness[:-16:16]
    assert (steps > 0).all()
    assert lightness[-1] - lightness[0] > 60


@pytest.mark.parametrize("index", range(len(palettes())), ids=[palette.name for palette in palettes()])
def test_on_paper_more_light_is_more_ink(index: int) -> None:
    inks = on_paper((bar_colors(palettes()[index].nodes) * 255).astype(np.uint8)) / 255.0
    lightness = _lab(inks, "anyone")[:, 0]
    assert lightness[0] > 80
    assert lightness[-1] < 60
    assert (np.diff(lightness[::16]) < 0.5).all()


@pytest.mark.parametrize("eyes", SEEN_BY)
def test_the_first_four_requests_stay_apart_for_every_eye(eyes: str) -> None:
    for palette in palettes():
        rgb = [[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in palette.requests[:4]]
        for one, two in itertools.combinations(_lab(rgb, eyes), 2):
            assert np.linalg.norm(one - two) > 9, palette.name


def test_two_palettes_are_meant_for_colour_blind_eyes() -> None:
    assert sum(palette.is_safe for palette in palettes()) >= 2
