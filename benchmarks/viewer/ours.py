"""Our scene under a synthetic stream: what a picture takes, and how much of that is Python."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import numpy as np

from benchmarks.viewer.load import SCALE, Model, Stream
from fulgurite.viewer.desktop import FASTEST_FPS, SLOWEST_FPS
from fulgurite.viewer.pace import SHED, Pace
from fulgurite.viewer.scene import ReplicaScene, Storm
from fulgurite.viewer.vtk.renderer import Renderer

FPS = 60.0  # of the stream's time from picture to picture
WARM_UP = 60  # in which the pace finds what must be left out
WORDS_PERIOD_S = 0.12  # as live front-ends have it


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one picture, medians, in milliseconds; `live` arcs on average.

    Attributes
    ----------
    frame : from the stream's tokens to the drawn picture.
    prepare : processor time of this thread for the Python work of a picture: light, slots, textures, camera,
        words.
    tokens : likewise, for taking in the tokens that came since the last one.
    left_out : the ornaments that were left out in the end, as the picture says it.
    """

    frame: float
    frame_p95: float
    prepare: float
    tokens: float
    live: float
    left_out: str


def window(model: Model, arcs: int, size: tuple[int, int]) -> tuple[ReplicaScene, Renderer]:
    """A scene of this model in a window off screen."""
    storm = Storm([ReplicaScene(model.topology, key=model.name)], arcs=arcs)
    scene = storm.scenes[0]
    scene.set_scale(SCALE)
    return scene, Renderer(storm, width=size[0], height=size[1], words_period_s=WORDS_PERIOD_S)


def measure(model: Model, arcs: int, tokens_per_s: int, *, pictures: int, size: tuple[int, int]) -> Cost:
    """What a picture costs with so many arcs to live at most, drawn as the live window would: in time."""
    scene, renderer = window(model, arcs, size)
    stream, began_s = Stream(model, tokens_per_s), 1000.0
    pace = Pace(fastest_fps=FASTEST_FPS, slowest_fps=SLOWEST_FPS)
    times: list[tuple[float, float, float, int]] = []
    for index in range(WARM_UP + pictures):
        now_s = began_s + index / FPS
        began_wall_s = time.perf_counter()
        t0 = time.thread_time()
        for step in stream.until(began_s, now_s):
            scene.apply(step.block, step.at_s)
        t1 = time.thread_time()
        renderer.storm.shed = pace.shed  # the number of arcs is what this row is about, and stays
        renderer.prepare(now_s, now_s)
        t2 = time.thread_time()
        renderer.render_window.Render()
        took_s = time.perf_counter() - began_wall_s
        pace.learn(took_s)
        if index >= WARM_UP:
            times.append((took_s, t2 - t1, t1 - t0, scene.bolts.live(now_s)))
    renderer.close()
    total, prepare, tokens, live = np.array(times).T
    return Cost(
        frame=1e3 * float(np.median(total)),
        frame_p95=1e3 * float(np.percentile(total, 95)),
        prepare=1e3 * float(np.median(prepare)),
        tokens=1e3 * float(np.mean(tokens)),
        live=float(np.mean(live)),
        left_out=SHED[pace.shed],
    )


def positions(model: Model) -> dict[str, np.ndarray]:
    """What a peer is to draw: places of the nodes (n, 3), and arcs of a warm scene as ends (m, 3)."""
    scene, renderer = window(model, 2000, (64, 64))
    stream = Stream(model, 10_000)
    for step in stream.until(1000.0, 1001.5):
        scene.apply(step.block, step.at_s)
        scene.advance(step.at_s)
    renderer.close()
    layout, slots = scene.layout, scene.bolts.slots
    nodes = np.concatenate(
        [layout.heads.reshape(-1, 3), layout.ffn, layout.cells.mean(axis=2).reshape(-1, 3)[::2]]
    )
    return {"nodes": nodes, "from": slots[:, 0, :3].copy(), "to": slots[:, 1, :3].copy()}


def memory(model: Model, *, stream_s: float) -> tuple[float, float]:
    """Resident MiB after a minute and after `stream_s` of stream, played as fast as it goes."""
    scene, renderer = window(model, 400, (320, 180))
    stream, began_s, found = Stream(model, 1000), 1000.0, []
    at_s = began_s
    for upto_s in (60.0, stream_s):
        while at_s < began_s + upto_s:
            at_s += 0.5
            for step in stream.until(began_s, at_s):
                scene.apply(step.block, step.at_s)
            renderer.render(at_s, at_s)
        found.append(_resident_mib())
    renderer.close()
    return found[0], found[1]


def _resident_mib() -> float:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
