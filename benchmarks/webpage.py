"""The page that draws for itself: what its server costs by the number of pages, how fast one page answers.

Streams are synthetic (drawn numbers in the shape of the model; no model ran). *Server* is the share of one
core that the page's server takes: it makes each message once and sends the same bytes to all. Those pages
take the messages and do not draw. *Interaction to image* is from the time stamp of a real mouse event (drag)
in headless Chromium to the moment at which the picture that follows from it is complete (a pixel of it was
read back), in a window of 1280 × 720 with all panels; *detail* is the share of the window's resolution that
the page chose, by its own measurement, to stay fluent, with the ornaments that it left out: while nobody
touches it, and while the model is turned. Drawing is WebGL2 in software (SwiftShader) on the same cores as
the server and the browser.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LOADS = (("GPT-2", 60), ("Llama-3 8B", 60), ("Llama-3 8B", 1000), ("Llama-3 405B", 1000))
PAGES = (1, 10, 50)
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SETTLE_S = 2.0
MOVES = 60
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")

# The time from the event's own stamp to a picture that is there: reading a pixel waits for all drawing.
_MEASURE = """() => {
  const app = window.fulgurite, { gl } = app.picture, pixel = new Uint8Array(4), draw = app.draw.bind(app);
  window.measured = { waiting: null, took: [], drawn: 0, began: performance.now() };
  addEventListener("pointermove", (event) => { window.measured.waiting ??= event.timeStamp; }, true);
  app.draw = (time) => {
    const { measured } = window, since = measured.waiting;
    measured.waiting = null;
    draw(time);
    measured.drawn += 1;
    if (since === null) return;
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
    measured.took.push(performance.now() - since);
  };
}"""


_DETAIL = "window.fulgurite.picture.scale"
_LEFT_OUT = "window.fulgurite.constants.shed[window.fulgurite.picture.shed] || 'nothing'"
_LIVE = "[...window.fulgurite.replicas.values()][0].lights.bolts.live(window.fulgurite.clock.playhead)"


@dataclass(frozen=True, slots=True)
class Served:
    """A running server: its address, and the process."""

    url: str
    process: subprocess.Popen[str]

    @property
    def cpu_s(self) -> float:
        """Seconds of a core that it used so far."""
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


@contextmanager
def _served(model: str, tokens_per_s: int) -> Iterator[Served]:
    command = [sys.executable, "-m", "benchmarks.webpage_process", model, str(tokens_per_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Served(process.stdout.readline().strip(), process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10.0)


async def _listen(url: str, seconds: float, counts: list[int]) -> None:
    """A page that takes every message and draws nothing."""
    import aiohttp

    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}ws", max_msg_size=0) as page:
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                message = await page.receive(timeout=left_s)
            except TimeoutError:
                return
            counts[0] += 1
            counts[1] += len(message.data or b"")


async def _fan_out(served: Served, pages: int, seconds: float) -> dict[str, Any]:
    counts = [0, 0]
    listening = [asyncio.ensure_future(_listen(served.url, SETTLE_S + seconds, counts)) for _ in range(pages)]
    await asyncio.sleep(SETTLE_S)
    counts[:] = [0, 0]
    before_s, began_s = served.cpu_s, time.monotonic()
    await asyncio.gather(*listening)
    took_s = time.monotonic() - began_s
    return {
        "server, of a core": f"{100 * (served.cpu_s - before_s) / took_s:.1f} %",
        "messages/s per page": round(counts[0] / took_s / pages, 1),
        "kB/s per page": round(counts[1] / took_s / pages / 1e3, 1),
    }


def _drag(served: Served, seconds: float) -> dict[str, Any]:
    """A page in Chromium that is dragged at, and drawn as fast as it goes."""
    import shutil

    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        return {"interaction to image p95": None}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(served.url)
        page.wait_for_timeout(5000)
        page.evaluate(_MEASURE)
        page.wait_for_timeout(1000 * seconds)
        drawn = page.evaluate("window.measured.drawn / (performance.now() - window.measured.began) * 1000")
        detail, left_out = page.evaluate(_DETAIL), page.evaluate(_LEFT_OUT)
        live = page.evaluate(_LIVE)
        page.mouse.move(300, 300)
        page.mouse.down()
        for step in range(MOVES):
            page.mouse.move(300 + 3 * step, 300 + step % 7)
            page.wait_for_timeout(40)
        turned, left_out_turned = page.evaluate(_DETAIL), page.evaluate(_LEFT_OUT)
        page.mouse.up()
        took_ms = sorted(page.evaluate("window.measured.took"))
        browser.close()
    return {
        "pictures/s": round(drawn, 1),
        "detail": f"{100 * detail:.0f} %, left out: {left_out}",
        "turned": f"{100 * turned:.0f} %, left out: {left_out_turned}",
        "live arcs": live,
        "interaction to image p50, ms": round(statistics.median(took_ms), 1),
        "p95, ms": round(took_ms[int(0.95 * (len(took_ms) - 1))], 1),
    }


def run(*, seconds: float, model: str | None) -> list[dict[str, Any]]:
    """Every load with every number of pages; then one page that draws."""
    del model
    rows: list[dict[str, Any]] = []
    for name, rate in LOADS:
        with _served(name, rate) as served:
            for pages in PAGES:
                fan_out = asyncio.run(_fan_out(served, pages, seconds / 2))
                rows.append({"model": name, "tokens/s": rate, "pages": pages, **fan_out})
                print(rows[-1], flush=True)
            rows.append({"model": name, "tokens/s": rate, "pages": "1, drawn", **_drag(served, seconds / 2)})
            print(rows[-1], flush=True)
    return rows
