"""A painted sheet in the window, pixel for pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fulgurite.viewer.vtk.drawing import DataTexture, Drawing

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Panel:
    """A sheet of `width` x `height` pixels, premultiplied RGBA, over everything else.

    Parameters
    ----------
    state : the GL state of the window.
    """

    def __init__(self, width: int, height: int, state: Any) -> None:
        self.width, self.height = max(1, width), max(1, height)
        self._texture = DataTexture(np.zeros((self.height, self.width, 4), np.uint8))
        size = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32) * [self.width, self.height]
        self._drawing = Drawing(
            "panel",
            np.concatenate([size, np.zeros((4, 1), np.float32)], axis=1),
            primitive="triangles",
            blend="premultiplied",
            index=np.array([[0, 1, 2], [0, 2, 3]]),
            attributes={"sheetAt": size},
            textures={"uSheet": self._texture},
        )
        self._drawing.bind(state)
        self.actor = self._drawing.actor

    def place(self, x: float, y: float) -> None:
        """Put the lower left corner there, in pixels from the window's lower left."""
        self.actor.SetPosition(float(x), float(y), 0.0)

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Show this sheet, the first row on top."""
        self._texture.write(pixels[::-1])
