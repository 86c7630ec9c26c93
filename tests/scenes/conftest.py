"""Pictures need a drawing library: where there is none, the tests that draw are skipped, by name.

VTK ends the process where nothing can draw, so the probe asks in a subprocess first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from fulgurite.viewer.vtk.probe import ProbeResult, probe

if TYPE_CHECKING:
    from fulgurite.viewer.scene import Storm
    from fulgurite.viewer.vtk.renderer import Renderer

WIDTH, HEIGHT = 640, 360


@pytest.fixture(scope="session")
def drawing() -> ProbeResult:
    """What draws here."""
    pytest.importorskip("vtkmodules")
    result = probe()
    if not result.ok:
        pytest.skip(f"nothing can draw here: {result.detail}")
    return result


@pytest.fixture
def window(drawing: ProbeResult) -> Iterator[Callable[[Storm], Renderer]]:
    """Opens windows onto storms, off screen, and closes them."""
    from fulgurite.viewer.vtk.renderer import Renderer

    opened: list[Renderer] = []

    def open_window(storm: Storm, width: int = WIDTH, height: int = HEIGHT) -> Renderer:
        opened.append(Renderer(storm, width=width, height=height))
        return opened[-1]

    yield open_window
    for renderer in opened:
        renderer.close()
