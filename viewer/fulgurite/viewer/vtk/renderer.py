"""Draws a storm: one viewport per replica under one camera, the writings on top, pixels out.

    renderer = Renderer(storm, width=1280, height=720)
    pixels = renderer.render(playhead_s, clock_s)      # (height, width, 3) uint8, first row on top
    renderer.render_window                             # the vtkRenderWindow, for a front-end that draws
    renderer.pick(x, y)                                # (replica key, node) under a pixel, by projection

A picture is a function of the storm and of the two times. Make one only where `probe` says that VTK can draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fulgurite.viewer import panels, writing
from fulgurite.viewer.camera import Insets, Pick, View, grid, pick
from fulgurite.viewer.colors import on_paper
from fulgurite.viewer.layout import HEAD_GROWTH
from fulgurite.viewer.pace import SHED
from fulgurite.viewer.vtk.probe import choose_backend

choose_backend()

from vtkmodules.util.numpy_support import vtk_to_numpy  # noqa: E402
from vtkmodules.vtkCommonCore import vtkUnsignedCharArray  # noqa: E402
from vtkmodules.vtkRenderingCore import vtkCamera, vtkRenderer, vtkRenderWindow  # noqa: E402

from fulgurite.viewer.vtk.actors import Frame, ReplicaActors  # noqa: E402
from fulgurite.viewer.vtk.panel import Panel  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Hashable

    from numpy.typing import NDArray

    from fulgurite.viewer.scene import ReplicaScene, Storm

BACKGROUND = (0.006, 0.008, 0.020)
PANELS_FROM_WIDTH = 860  # a viewport narrower than this has no room for panels
LABELS_FROM_WIDTH = 420  # a viewport narrower than this has no words in the scene


@dataclass(slots=True)
class _Viewport:
    """One replica's place in the window, in pixels from the upper left."""

    scene: ReplicaScene
    renderer: Any
    actors: ReplicaActors
    x: int
    y: int
    width: int
    height: int
    slots: NDArray[np.float32]
    top: Panel
    bottom: Panel
    top_key: Hashable = None
    bottom_key: Hashable = None
    words_s: float = -math.inf
    palette: str = ""
    panels_key: Hashable = None


class Renderer:
    """A window onto a storm.

    Parameters
    ----------
    storm : Storm
    width, height : int
        In pixels.
    offscreen : bool
        False: a window on the desktop.
    words_period_s : float
        Least time of the camera's clock between two paintings of a viewport's words. 0: whenever they change,
        so that a picture follows from the storm alone; a front-end that draws live wants about 0.1.
    """

    def __init__(
        self,
        storm: Storm,
        *,
        width: int = 1280,
        height: int = 720,
        offscreen: bool = True,
        words_period_s: float = 0.0,
    ) -> None:
        self._words_period_s = words_period_s
        self.storm = storm
        self._camera = vtkCamera()
        self._view: View | None = None
        self._points: NDArray[np.float32] | None = None
        self._insets = Insets()
        self._unit_pixels = 0.0  # of one unit of length at unit depth, in a viewport one pixel high
        self._viewports: list[_Viewport] = []
        self._revision: tuple[object, ...] = ()
        self._sheets: dict[str, Panel] = {}
        self._pixels = vtkUnsignedCharArray()
        self._window = vtkRenderWindow()
        self._window.SetOffScreenRendering(offscreen)
        self._window.SetMultiSamples(0)
        self._window.SetNumberOfLayers(2)
        self._window.SetWindowName("Fulgurite")
        self._window.SetSize(width, height)
        self._overlay = self._overlay_renderer()
        self._window.AddRenderer(self._overlay)
        self._window.SetSize(width, height)

    @property
    def render_window(self) -> Any:
        """The vtkRenderWindow. `prepare` brings it up to date; its own Render draws."""
        return self._window

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        width, height = self._window.GetSize()
        return int(width), int(height)

    def resize(self, width: int, height: int) -> None:
        """A new size in pixels."""
        if (width, height) != self.size:
            self._window.SetSize(max(64, width), max(64, height))

    def prepare(self, now_s: float, clock_s: float | None = None) -> None:
        """Bring everything to the playhead `now_s` without drawing; `clock_s` moves the camera."""
        self.storm.advance(now_s, clock_s)
        self._arrange()
        self._aim()
        for viewport in self._viewports:
            self._update(viewport)

    def render(self, now_s: float, clock_s: float | None = None) -> NDArray[np.uint8]:
        """Draw the picture of `now_s`.

        Returns
        -------
        ndarray of uint8, shape (height, width, 3)
            RGB, the first row on top; its own memory.
        """
        self.prepare(now_s, clock_s)
        self._window.Render()
        return self.read()

    def read(self) -> NDArray[np.uint8]:
        """The picture that was drawn last, shape (height, width, 3); for print where the storm is light."""
        picture = self.raw(shown=not self._window.GetOffScreenRendering())
        return on_paper(picture) if self.storm.is_light else picture.copy()

    def raw(self, *, shown: bool) -> NDArray[np.uint8]:
        """What is in the buffer on screen, or in the one that is drawn to; valid until the next call."""
        width, height = self.size
        self._window.GetPixelData(0, 0, width - 1, height - 1, int(shown), self._pixels, 0)
        pixels: NDArray[np.uint8] = vtk_to_numpy(self._pixels)  # type: ignore[no-untyped-call]
        return pixels.reshape(height, width, 3)[::-1]

    def pick(self, x: float, y: float) -> tuple[str, Pick] | None:
        """The replica and the node under pixel (x, y) of the window."""
        for viewport in self._viewports:
            inside = (
                viewport.x <= x < viewport.x + viewport.width
                and viewport.y <= y < viewport.y + viewport.height
            )
            if inside and self._view is not None:
                layout = viewport.scene.layout
                found = pick(
                    self._view, layout, x - viewport.x, y - viewport.y, viewport.width, viewport.height
                )
                return None if found is None else (viewport.scene.key, found)
        return None

    def project(self, key: str, points: NDArray[Any]) -> NDArray[np.float64]:
        """Window pixels (x, y) and depth of points (…, 3) in the viewport of a replica."""
        from fulgurite.viewer.camera import project

        viewport = next(v for v in self._viewports if v.scene.key == key)
        if self._view is None:
            raise RuntimeError("nothing was drawn yet: call render first")
        at = project(self._view, points, viewport.width, viewport.height)
        return np.asarray(at + np.array([viewport.x, viewport.y, 0.0]), np.float64)

    def place(self, key: str, node: Pick) -> tuple[float, float, float] | None:
        """Where a node of a replica is seen: window pixels (x, y), and its reach; None: not on screen."""
        if self._view is None or all(viewport.scene.key != key for viewport in self._viewports):
            return None
        layout = self.storm[key].layout
        if node.kind == "head" and layout.walls is None:
            middle = layout.heads[node.layer, node.head]
            rim = middle + np.array([0.0, HEAD_GROWTH * layout.head_radius, 0.0], np.float32)
            found = self.project(key, np.stack([middle, rim]))
        else:
            quads = {"head": layout.walls, "ffn": layout.plates, "cell": layout.cells}[node.kind]
            assert quads is not None
            corners = quads[node.layer, max(0, node.head)]
            found = self.project(key, np.concatenate([corners.mean(axis=0)[None], corners]))
        reach = float(np.linalg.norm(found[1:, :2] - found[0, :2], axis=-1).max())
        return (float(found[0, 0]), float(found[0, 1]), reach) if np.isfinite(found).all() else None

    def close(self) -> None:
        """Give the window and its memory on the graphics card back."""
        self._window.Finalize()

    def show_sheet(self, name: str, pixels: NDArray[np.uint8] | None, x: int = 0, y: int = 0) -> None:
        """Lay a sheet (premultiplied RGBA) over the window, its upper left corner at pixel (x, y).

        None takes the sheet of that name away.
        """
        old = self._sheets.get(name)
        if pixels is None or (old is not None and (old.height, old.width) != pixels.shape[:2]):
            if old is not None:
                self._overlay.RemoveActor(old.actor)
                del self._sheets[name]
            old = None
        if pixels is None:
            return
        if old is None:
            old = Panel(pixels.shape[1], pixels.shape[0], self._window.GetState())  # type: ignore[attr-defined]
            self._overlay.AddActor(old.actor)
            self._sheets[name] = old
        old.write(pixels)
        old.place(x, self.size[1] - y - pixels.shape[0])

    # arranging

    def _arrange(self) -> None:
        """Viewports for the replicas that are shown; built anew only where those, or the size, changed."""
        storm = self.storm
        wanted = (
            storm.revision,
            self.size,
            storm.hud_visible,
            storm.tokens_visible,
            storm.shows_contribution,
            storm.panels_visible,
        )
        if wanted != self._revision:
            self._revision = wanted
            self._rebuild()

    def _rebuild(self) -> None:
        for viewport in self._viewports:
            self._window.RemoveRenderer(viewport.renderer)
            self._overlay.RemoveActor(viewport.top.actor)
            self._overlay.RemoveActor(viewport.bottom.actor)
        width, height = self.size
        shown = self.storm.shown
        columns, rows = grid(len(shown), width, height)
        old = {viewport.scene.key: viewport for viewport in self._viewports}
        self._viewports = []
        for index, scene in enumerate(shown):
            row, column = divmod(index, columns)
            x0, x1 = column * width // columns, (column + 1) * width // columns
            y0, y1 = row * height // rows, (row + 1) * height // rows
            self._viewports.append(self._viewport(scene, old.get(scene.key), (x0, y0, x1 - x0, y1 - y0)))
        layouts = [viewport.scene.layout for viewport in self._viewports]
        self._points = np.concatenate([layout.points for layout in layouts]) if layouts else None
        if layouts:
            self._insets = self._free(self._viewports[0])
        self._frame_overlay()

    def _viewport(
        self, scene: ReplicaScene, old: _Viewport | None, place: tuple[int, int, int, int]
    ) -> _Viewport:
        x, y, w, h = place
        width, height = self.size
        renderer = vtkRenderer()
        renderer.SetUseOIT(False)  # else VTK blends translucent actors its own way, and the bolts vanish
        renderer.SetBackground(*BACKGROUND)
        renderer.SetActiveCamera(self._camera)
        renderer.SetViewport(x / width, 1 - (y + h) / height, (x + w) / width, 1 - y / height)
        renderer.SetLayer(0)
        kept = (
            old is not None
            and old.scene is scene
            and old.slots is scene.bolts.slots
            and (old.width, old.height) == (w, h)
        )
        actors = old.actors if old is not None and kept else ReplicaActors(scene, self._scale(w, h))
        self._window.AddRenderer(renderer)
        state = self._window.GetState()  # type: ignore[attr-defined]  # of the OpenGL window
        for drawing in actors.drawings:
            drawing.bind(state)
            renderer.AddActor(drawing.actor)
        actors.show_labels(w >= LABELS_FROM_WIDTH)
        top = Panel(w, round(writing.TOP_LINES * self._scale(w, h)), state)
        bottom = Panel(w, round(self._bottom_lines * self._scale(w, h)), state)
        if self.storm.hud_visible:
            self._overlay.AddActor(top.actor)
            self._overlay.AddActor(bottom.actor)
        top.place(x, height - y - top.height)
        bottom.place(x, height - y - h)
        return _Viewport(scene, renderer, actors, x, y, w, h, scene.bolts.slots, top, bottom)

    @property
    def _bottom_lines(self) -> float:
        return writing.bottom_lines(self.storm.tokens_visible, self.storm.shows_contribution)

    def _scale(self, width: int, height: int) -> float:
        """Size of the words in a viewport; 1 where it is 720 lines high and at least 640 wide."""
        return float(np.clip(min(height / 620.0, width / 620.0), 0.72, 3.0))

    def _overlay_renderer(self) -> Any:
        overlay = vtkRenderer()
        overlay.SetLayer(1)
        overlay.SetUseOIT(False)
        overlay.InteractiveOff()
        overlay.GetActiveCamera().ParallelProjectionOn()
        return overlay

    def _frame_overlay(self) -> None:
        """One unit of the overlay is one pixel of the window, from the lower left."""
        width, height = self.size
        camera = self._overlay.GetActiveCamera()
        camera.SetFocalPoint(width / 2, height / 2, 0.0)
        camera.SetPosition(width / 2, height / 2, 10.0)
        camera.SetViewUp(0.0, 1.0, 0.0)
        camera.SetParallelScale(height / 2)
        camera.SetClippingRange(1.0, 20.0)

    def _free(self, viewport: _Viewport) -> Insets:
        """What writings leave free of a viewport."""
        scale = self._scale(viewport.width, viewport.height)
        top = writing.TOP_LINES * scale + 4 if self.storm.hud_visible else 8
        below = self._bottom_lines * scale + 4 if self.storm.hud_visible else 8
        right = 0.03
        if self._has_panels(viewport):
            right += panels.WIDTH * scale / viewport.width
        return Insets(top=top / viewport.height, bottom=below / viewport.height, left=0.035, right=right)

    def _aim(self) -> None:
        if self._points is None:
            return
        first, camera, clock_s = self._viewports[0], self.storm.camera, self.storm.clock_s
        camera.track(first.scene.front_x(self.storm.now_s), clock_s)
        view = camera.view(self._points, first.width / first.height, self._insets, clock_s)
        if view != self._view:
            self._view = view
            self._camera.SetPosition(*view.position)
            self._camera.SetFocalPoint(*view.focal)
            self._camera.SetViewUp(*view.up)
            self._camera.SetViewAngle(view.angle_deg)
            reach = np.linalg.norm(self._points - np.array(view.position), axis=1)
            self._camera.SetClippingRange(max(0.05, 0.5 * float(reach.min())), 1.5 * float(reach.max()))
            self._unit_pixels = 0.5 / math.tan(math.radians(view.angle_deg) / 2)

    def _update(self, viewport: _Viewport) -> None:
        storm, scene = self.storm, viewport.scene
        frame = Frame(
            width=viewport.width,
            height=viewport.height,
            pixels=viewport.height * self._unit_pixels,
            shows_contribution=storm.shows_contribution,
            is_still=storm.is_still,
            shed=storm.shed,
        )
        if viewport.palette != scene.palette.name:
            viewport.palette = scene.palette.name
            viewport.actors.recolor(scene.palette.nodes)
        viewport.actors.update(frame, storm.now_s, storm.origin_s)
        if not storm.hud_visible:
            return
        if 0.0 <= storm.clock_s - viewport.words_s < self._words_period_s:
            return
        self._write_words(viewport)

    def _has_panels(self, viewport: _Viewport) -> bool:
        """Whether there is room for the panels beside this picture."""
        return self.storm.panels_visible and viewport.width >= PANELS_FROM_WIDTH

    def _write_panels(self, viewport: _Viewport, scale: float) -> None:
        scene = viewport.scene
        chosen = self.storm.chosen.get(scene.key)
        name = f"panels {scene.key}"
        if not self._has_panels(viewport):
            self.show_sheet(name, None)
            viewport.panels_key = None
            return
        key = panels.key(scene, chosen)
        if key == viewport.panels_key:
            return
        viewport.panels_key, viewport.words_s = key, self.storm.clock_s
        top = round(writing.TOP_LINES * scale)
        height = viewport.height - top - round(self._bottom_lines * scale) - 8
        sheet = panels.paint(scene, chosen, max(80, height), scale)
        self.show_sheet(name, sheet, viewport.x + viewport.width - sheet.shape[1] - 8, viewport.y + top)

    def _write_words(self, viewport: _Viewport) -> None:
        """Paint again what says something else than before."""
        storm, scene = self.storm, viewport.scene
        scale = self._scale(viewport.width, viewport.height)
        self._write_panels(viewport, scale)
        left_out = SHED[storm.shed]
        key = writing.top_key(scene, left_out)
        if key != viewport.top_key:
            viewport.top_key, viewport.words_s = key, storm.clock_s
            viewport.top.write(writing.paint_top(scene, viewport.width, scale, left_out))
        key = writing.bottom_key(scene, storm.tokens_visible, storm.shows_contribution)
        if key != viewport.bottom_key:
            viewport.bottom_key, viewport.words_s = key, storm.clock_s
            viewport.bottom.write(
                writing.paint_bottom(
                    scene,
                    viewport.width,
                    scale,
                    tokens=storm.tokens_visible,
                    contribution=storm.shows_contribution,
                )
            )
