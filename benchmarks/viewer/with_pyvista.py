"""The same nodes and arcs with PyVista's usual calls, in an environment of its own: a program.

Every picture all nodes get new values and all arcs new shapes, as ours do: sphere glyphs scaled and coloured
by a scalar, arcs as polylines with tubes around them (or plain). Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pyvista as pv  # type: ignore[import-not-found]

KNOTS = 13


def _paths(start: np.ndarray, end: np.ndarray, rng: np.random.Generator) -> pv.PolyData:
    u = np.linspace(0.0, 1.0, KNOTS)[None, :, None]
    points = start[:, None] * (1 - u) + end[:, None] * u
    points = points + rng.normal(0.0, 0.02, points.shape)
    lines = np.hstack([np.full((len(start), 1), KNOTS), np.arange(len(start) * KNOTS).reshape(-1, KNOTS)])
    return pv.PolyData(points.reshape(-1, 3), lines=lines.ravel())


def main() -> None:
    """Argument: a file of places, arcs to draw, pictures, width, height, ``tubes`` or ``lines``."""
    file, arcs, pictures, width, height, way = sys.argv[1:7]
    data, rng = np.load(file), np.random.default_rng(0)
    start, end = data["from"][: int(arcs)], data["to"][: int(arcs)]
    plotter = pv.Plotter(off_screen=True, window_size=[int(width), int(height)])
    plotter.set_background((0.006, 0.008, 0.020))
    nodes = pv.PolyData(data["nodes"].astype(np.float32))
    nodes["light"] = rng.random(nodes.n_points)
    ball = pv.Sphere(radius=0.03, theta_resolution=8, phi_resolution=6)
    plotter.add_mesh(nodes.glyph(scale="light", geom=ball), scalars="light", cmap="inferno", name="nodes")
    plotter.camera_position = [(-6.0, 4.0, 12.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0)]
    plotter.show(auto_close=False)
    times = []
    for index in range(int(pictures) + 1):
        begin = time.perf_counter()
        nodes["light"] = rng.random(nodes.n_points)
        glyphs = nodes.glyph(scale="light", geom=ball)
        plotter.add_mesh(glyphs, scalars="light", cmap="inferno", name="nodes", reset_camera=False)
        if len(start):
            paths = _paths(start, end, rng)
            shape = paths.tube(radius=0.008, n_sides=6) if way == "tubes" else paths
            plotter.add_mesh(shape, color="#56b4e9", name="arcs", reset_camera=False, line_width=2)
        drawing = time.perf_counter()
        plotter.render()
        if index >= 1:
            times.append((time.perf_counter() - begin, drawing - begin))
    total, python = np.median(np.array(times), axis=0) * 1e3
    print(json.dumps({"frame_ms": total, "python_ms": python, "version": pv.__version__}))


if __name__ == "__main__":
    main()
