"""Every example scene looks as its reference does, within a tolerance that a wrong time step exceeds.

`FULGURITE_REFERENCES=write` draws the references anew: look at each before it is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.scenes.examples import AT_S, EXAMPLES, SIZE

if TYPE_CHECKING:
    from fulgurite.viewer.scene import Storm
    from fulgurite.viewer.vtk.probe import ProbeResult
    from fulgurite.viewer.vtk.renderer import Renderer

FOLDER = Path(__file__).parent / "references"
MEAN, SHARE = 0.5, 0.004  # of 255; share of pixels that differ by over 16


def _size(name: str) -> tuple[int, int]:
    return {"panels": (900, 506), "four-replicas": (960, 540)}.get(name, SIZE)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_looks_as_its_reference_does(
    name: str, drawing: ProbeResult, window: Callable[[Storm, int, int], Renderer]
) -> None:
    if "llvmpipe" not in drawing.detail:
        pytest.skip(f"references were drawn by llvmpipe, here draws {drawing.detail}")
    from PIL import Image

    picture = window(EXAMPLES[name](), *_size(name)).render(AT_S, AT_S)
    path = FOLDER / f"{name}.png"
    if os.environ.get("FULGURITE_REFERENCES") == "write":
        FOLDER.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path, optimize=True)
    wanted = np.asarray(Image.open(path).convert("RGB")).astype(int)
    apart = np.abs(picture.astype(int) - wanted).max(axis=-1)
    assert apart.mean() < MEAN
    assert (apart > 16).mean() < SHARE


def test_the_tolerance_tells_a_picture_from_one_a_fiftieth_of_a_second_later(
    window: Callable[[Storm, int, int], Renderer],
) -> None:
    renderer = window(EXAMPLES["balls"](), *SIZE)
    now, later = (renderer.render(AT_S + late, AT_S).astype(int) for late in (0.0, 0.02))
    apart = np.abs(now - later).max(axis=-1)
    assert (apart > 16).mean() > SHARE or apart.mean() > MEAN
