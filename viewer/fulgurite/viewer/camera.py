"""The camera: named views that fit any model into any window, turned by the user, and pointing at nodes.

One camera serves all viewports of a window, so that replicas are compared from the same place. A preset says
from where to look; how far away follows from the layout's corners and the free area between the writings
(`fit`).

Pure. Pixels have their origin at the upper left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.viewer.layout import Layout

EASE_S = 0.7
FOLLOW_S = 1.4  # how gently a camera that follows comes after the light
FOLLOW_CLOSER = 1.9


@dataclass(frozen=True, slots=True)
class Preset:
    """A named view.

    Attributes
    ----------
    azimuth_deg : float
        0 looks along -z, at the open side of the half-pipe; negative looks from layer 0's side. In an
        area as high as wide `azimuth_high_deg` is used, so that the half-pipe fills it.
    elevation_deg, elevation_high_deg : float
        Likewise.
    angle_deg : float
        Vertical opening angle: a long lens keeps far layers legible.
    orbit_s : float
        Seconds for one swing to and fro; 0: the camera stands.
    """

    label: str
    tooltip: str
    azimuth_deg: float
    elevation_deg: float
    azimuth_high_deg: float
    elevation_high_deg: float
    angle_deg: float = 20.0
    orbit_s: float = 0.0
    closer: float = 1.0


PRESETS: tuple[Preset, ...] = (
    Preset("Overview", "All layers, from the side of layer 0.", -27.0, 18.0, -51.0, 31.0, 20.0),
    Preset("Side", "Straight at the open side: layers from left to right.", 0.0, 12.0, -8.0, 16.0),
    Preset("Heads", "Down the pipe from layer 0: every head of a layer.", -66.0, 14.0, -70.0, 16.0, 26.0),
    Preset("Cache", "From above: the carpet of the key-value cache.", -12.0, 54.0, -24.0, 58.0),
    Preset("Output", "From the last layer, where the token is emitted.", 40.0, 20.0, 52.0, 24.0),
    Preset("Drift", "Swings slowly to and fro.", -30.0, 18.0, -52.0, 24.0, 22.0, 48.0),
)


@dataclass(frozen=True, slots=True)
class View:
    """Where a camera stands and looks. Lengths in the layout's unit, `angle_deg` vertical."""

    position: tuple[float, float, float]
    focal: tuple[float, float, float]
    up: tuple[float, float, float]
    angle_deg: float


@dataclass(frozen=True, slots=True)
class Insets:
    """The share of a viewport's height or width that writings cover, at each side."""

    top: float = 0.0
    bottom: float = 0.0
    left: float = 0.02
    right: float = 0.02


def basis(azimuth_deg: float, elevation_deg: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Right, up and forward of a camera that looks from that direction."""
    a, e = math.radians(azimuth_deg), math.radians(elevation_deg)
    forward = np.array([-math.sin(a) * math.cos(e), -math.sin(e), -math.cos(a) * math.cos(e)])
    right = np.array([math.cos(a), 0.0, -math.sin(a)])
    return right, np.cross(right, forward), forward


def fit(
    points: NDArray[Any],
    azimuth_deg: float,
    elevation_deg: float,
    angle_deg: float,
    aspect: float,
    insets: Insets,
) -> View:
    """The nearest view from a direction that keeps all `points` (n, 3) in the free area of a viewport.

    Parameters
    ----------
    aspect : float
        Width over height of the viewport.
    """
    right, up, forward = basis(azimuth_deg, elevation_deg)
    low = np.array([-1.0 + 2.0 * insets.left, -1.0 + 2.0 * insets.bottom])
    high = np.array([1.0 - 2.0 * insets.right, 1.0 - 2.0 * insets.top])
    tangent = math.tan(math.radians(angle_deg) / 2)
    focal, distance = points.mean(axis=0).astype(np.float64), 30.0
    for _ in range(24):
        relative = points - focal
        depth = np.maximum(0.05, distance + relative @ forward)
        at = np.stack([relative @ right / aspect, relative @ up], axis=-1) / (depth * tangent)[:, None]
        least, most = at.min(axis=0), at.max(axis=0)
        shift = ((least + most) - (low + high)) / 2 * distance * tangent
        focal = focal + shift[0] * aspect * right + shift[1] * up
        distance *= float(((most - least) / (high - low)).max())
    position = focal - distance * forward
    return View(_triple(position), _triple(focal), _triple(up), angle_deg)


def project(view: View, points: NDArray[Any], width: float, height: float) -> NDArray[np.float64]:
    """Pixels (x, y) and depth of `points` in a viewport, shape (…, 3); NaN behind the camera."""
    position, focal = np.array(view.position), np.array(view.focal)
    forward = (focal - position) / np.linalg.norm(focal - position)
    right = np.cross(forward, np.array(view.up))
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    relative = np.asarray(points, np.float64) - position
    depth = relative @ forward
    depth = np.where(depth > 1e-6, depth, np.nan)
    scale = height / 2 / math.tan(math.radians(view.angle_deg) / 2) / depth
    return np.stack(
        [width / 2 + relative @ right * scale, height / 2 - relative @ up * scale, depth], axis=-1
    )


def pixels_per_unit(view: View, depth: NDArray[Any], height: float) -> NDArray[np.float64]:
    """How many pixels one unit of length has at that depth."""
    return np.asarray(height / 2 / math.tan(math.radians(view.angle_deg) / 2) / depth, np.float64)


@dataclass(frozen=True, slots=True)
class Pick:
    """A node under the pointer.

    Attributes
    ----------
    kind : ``head``, ``ffn`` or ``cell`` (of the key-value cache).
    head : the head, or of an ``ffn`` the expert, -1 of a dense one, or of a ``cell`` the cell.
    """

    kind: str
    layer: int
    head: int


def pick(view: View, layout: Layout, x: float, y: float, width: float, height: float) -> Pick | None:
    """The node at pixel (x, y) of a viewport: of those that cover it, the nearest to the camera.

    Discs are see-through: a head behind one is found first.
    """
    window = (width, height)
    if layout.walls is not None:
        heads = _pick_quad(view, layout.walls, x, y, *window)
    else:
        heads = _pick_ball(view, layout, x, y, *window)
    plates = _pick_quad(view, layout.plates, x, y, *window)
    cells = _pick_quad(view, layout.cells, x, y, *window)
    if heads is not None and layout.ffn_kind == "disc":
        plates = None
    found = [
        (hit, kind) for hit, kind in ((heads, "head"), (plates, "ffn"), (cells, "cell")) if hit is not None
    ]
    if not found:
        return None
    (_, layer, index), kind = min(found)
    return Pick(kind, layer, -1 if kind == "ffn" and layout.plates.shape[1] == 1 else index)


def _pick_ball(
    view: View, layout: Layout, x: float, y: float, width: float, height: float
) -> tuple[float, int, int] | None:
    """Depth, layer and head of the nearest ball that covers the pixel."""
    heads = project(view, layout.heads, width, height)
    reach = layout.head_radius * pixels_per_unit(view, heads[..., 2], height)
    covers = np.asarray(np.hypot(heads[..., 0] - x, heads[..., 1] - y) <= np.maximum(3.0, reach), np.bool_)
    return _nearest(covers, heads[..., 2])


def _pick_quad(
    view: View, quads: NDArray[Any], x: float, y: float, width: float, height: float
) -> tuple[float, int, int] | None:
    """Likewise of convex quadrilaterals (A, B, 4, 3); NaN: there is none."""
    at = project(view, quads, width, height)
    corners = at[..., :2]
    to = np.roll(corners, -1, axis=-2) - corners
    side = to[..., 0] * (y - corners[..., 1]) - to[..., 1] * (x - corners[..., 0])
    inside = np.asarray((side >= 0).all(axis=-1) | (side <= 0).all(axis=-1), np.bool_)
    return _nearest(inside, at[..., 2].mean(axis=-1))


def _nearest(hits: NDArray[np.bool_], depth: NDArray[np.float64]) -> tuple[float, int, int] | None:
    if not hits.any():
        return None
    at = np.unravel_index(int(np.argmin(np.where(hits, depth, np.inf))), depth.shape)
    return float(depth[at]), int(at[0]), int(at[1])


class CameraRig:
    """The chosen preset with the user's turns on top; eases from one to the next.

    Attributes
    ----------
    preset : int
        Index into `PRESETS`.
    follows : bool
        Whether it travels along the layers with the light, nearer than the preset.
    """

    def __init__(self) -> None:
        self.preset = 0
        self.follows = False
        self._from: tuple[float, ...] | None = None
        self._since_s: float | None = None
        self._turn = [0.0, 0.0]  # azimuth, elevation in degrees
        self._zoom = 1.0
        self._pan = [0.0, 0.0]  # shares of the viewport's height
        self._shown: tuple[float, ...] | None = None
        self._fit: tuple[tuple[Any, ...], NDArray[Any], View] | None = None
        self._tracked_s: float | None = None
        self._tracked_x = 0.0
        self._near = 0.0  # 0: the preset, 1: close to the light

    def show(self, index: int) -> None:
        """Go to a preset.

        Raises
        ------
        ValueError
            Where there is no such preset.
        """
        if not 0 <= index < len(PRESETS):
            raise ValueError(f"there are cameras 0 to {len(PRESETS) - 1}, not {index}")
        self._from, self._since_s = self._shown, None
        self.preset = index
        self._turn, self._zoom, self._pan = [0.0, 0.0], 1.0, [0.0, 0.0]

    def orbit(self, azimuth_deg: float, elevation_deg: float) -> None:
        """Turn around the model."""
        self._turn[0] += azimuth_deg
        self._turn[1] = min(80.0, max(-60.0, self._turn[1] + elevation_deg))

    def zoom(self, factor: float) -> None:
        """Come closer (over 1) or go away."""
        self._zoom = min(12.0, max(0.25, self._zoom * factor))

    def pan(self, right: float, up: float) -> None:
        """Shift the picture, in shares of a viewport's height."""
        self._pan[0] += right
        self._pan[1] += up

    def track(self, x: float | None, clock_s: float) -> None:
        """The light is at `x` along the layers; a camera that follows comes after it, gently."""
        since_s = 0.0 if self._tracked_s is None else max(0.0, clock_s - self._tracked_s)
        self._tracked_s = clock_s
        share = 1.0 - math.exp(-since_s / FOLLOW_S)
        near = 1.0 if self.follows and x is not None else 0.0
        self._near += share * (near - self._near)
        if x is not None:
            self._tracked_x += share * (x - self._tracked_x)

    def direction(self, aspect: float, clock_s: float) -> tuple[float, float, float]:
        """Azimuth, elevation and opening angle now, in degrees, for a free area of that aspect."""
        preset = PRESETS[self.preset]
        # 0 in a wide area, 1 in one as high as wide; below 0 in a very wide one: seen more from the side
        high = min(1.0, max(-0.25, (2.55 - aspect) / 1.35))
        azimuth = preset.azimuth_deg + high * (preset.azimuth_high_deg - preset.azimuth_deg)
        elevation = preset.elevation_deg + high * (preset.elevation_high_deg - preset.elevation_deg)
        if preset.orbit_s:
            azimuth += 26.0 * math.sin(2.0 * math.pi * clock_s / preset.orbit_s)
            elevation += 5.0 * math.sin(2.0 * math.pi * clock_s / (0.73 * preset.orbit_s))
        wanted = (azimuth, elevation, preset.angle_deg)
        eased = self._eased(wanted, clock_s)
        elevation = min(88.0, max(-30.0, eased[1] + self._turn[1]))
        return eased[0] + self._turn[0], elevation, eased[2]

    def _eased(self, wanted: tuple[float, ...], clock_s: float) -> tuple[float, ...]:
        if self._from is not None:
            self._since_s = clock_s if self._since_s is None else self._since_s
            t = min(1.0, max(0.0, (clock_s - self._since_s) / EASE_S))
            if t >= 1.0:
                self._from = None
            else:
                t = t * t * (3.0 - 2.0 * t)
                wanted = tuple(a + t * (b - a) for a, b in zip(self._from, wanted, strict=True))
        self._shown = wanted
        return wanted

    def view(self, points: NDArray[Any], aspect: float, insets: Insets, clock_s: float) -> View:
        """The camera for a viewport of that aspect, fitted to `points`."""
        free = aspect * (1.0 - insets.left - insets.right) / (1.0 - insets.top - insets.bottom)
        azimuth, elevation, angle = self.direction(free, clock_s)
        fitted = self._fitted(points, azimuth, elevation, angle, aspect, insets)
        if self._near > 1e-3:
            fitted = self._closer(fitted)
        if self._zoom == 1.0 and self._pan == [0.0, 0.0]:
            return fitted
        right, up, forward = basis(azimuth, elevation)
        distance = float(np.linalg.norm(np.array(fitted.focal) - fitted.position)) / self._zoom
        span = 2.0 * distance * math.tan(math.radians(angle) / 2)
        focal = np.array(fitted.focal) - self._pan[0] * span * right - self._pan[1] * span * up
        return View(_triple(focal - distance * forward), _triple(focal), fitted.up, angle)

    def _closer(self, view: View) -> View:
        """From a preset's view to one that is nearer and looks at where the light is."""
        focal, position = np.array(view.focal), np.array(view.position)
        target = focal + self._near * (np.array([self._tracked_x, focal[1], focal[2]]) - focal)
        way = (position - focal) * (1.0 - self._near * (1.0 - 1.0 / FOLLOW_CLOSER))
        return View(_triple(target + way), _triple(target), view.up, view.angle_deg)

    def _fitted(self, points: NDArray[Any], *how: Any) -> View:
        """`fit`, kept while nothing changes."""
        if self._fit is None or self._fit[0] != how or self._fit[1] is not points:
            self._fit = how, points, fit(points, *how)
        return self._fit[2]


def grid(count: int, width: int, height: int, wanted_aspect: float = 1.7) -> tuple[int, int]:
    """Columns and rows of viewports for `count` replicas: those whose cells come closest to `wanted_aspect`.

    A cell that stays empty counts as waste.
    """
    best, least = (1, max(1, count)), math.inf
    for columns in range(1, max(1, count) + 1):
        rows = math.ceil(max(1, count) / columns)
        aspect = (width / columns) / (height / rows)
        cost = abs(math.log(aspect / wanted_aspect)) + 0.35 * (columns * rows - count)
        if cost < least - 1e-9:
            best, least = (columns, rows), cost
    return best


def _triple(vector: NDArray[Any]) -> tuple[float, float, float]:
    return float(vector[0]), float(vector[1]), float(vector[2])
