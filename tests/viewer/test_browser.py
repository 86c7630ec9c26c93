"""The page with remote rendering in headless Chromium, on a real collector: lightning moves, pause holds it.

The stream is made up, step by step, and sent through the agent's own exporter.
"""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from tests.viewer.made_up import CHROMIUM, FLAGS, Replica, free_address, process, until, wave

from fulgurite.viewer.feed import probe

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


@dataclass
class Watched:
    """A page with what it complained about."""

    page: Page
    flowing: threading.Event
    complaints: list[str] = field(default_factory=list)
    at: tuple[float, float] = (0.0, 0.0)

    def picture(self) -> np.ndarray[Any, Any]:
        """The scene as it is on screen, RGB as int16."""
        data = self.page.locator(".fg-scene").screenshot()
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.int16)

    def state(self, name: str) -> Any:
        """A value of the page's state."""
        return self.page.evaluate(f"window.trame.state.get('{name}')")

    def press(self, keys: str) -> None:
        """Press keys on the page."""
        self.page.keyboard.press(keys)

    def mode(self, wanted: str) -> None:
        """Wait until the playhead is in this mode."""
        until(lambda: self.state("fg_mode") == wanted, f"the mode is {wanted}")


def _changed(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """The share of pixels that differ visibly."""
    if one.shape != other.shape:
        return 1.0
    return float((np.abs(one - other).max(axis=-1) > 24).mean())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium found: install chromium, chromium-browser or google-chrome")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def collector() -> Iterator[str]:
    address = free_address()
    with process("fulgurite.collector", "--redis", "memory://", "--listen", address) as started:

        def answers() -> bool:
            assert started.poll() is None, "the collector ended"
            return probe(address, timeout_s=1.0).answer == "ready"

        until(answers, "the collector answers")
        yield address


@pytest.fixture(scope="module")
def flowing(collector: str) -> Iterator[threading.Event]:
    pace = threading.Event()
    pace.set()
    replicas = [Replica(collector, "one", 2, pace), Replica(collector, "two", 1, pace)]
    yield pace
    for replica in replicas:
        replica.close()


@contextmanager
def _open(browser: Browser, collector: str, flowing: threading.Event) -> Iterator[Watched]:
    listen = free_address()
    url = f"http://{listen}/"
    arguments = ("--remote", "--collector", collector, "--listen", listen)
    with process("fulgurite.viewer", *arguments) as started:
        assert started.stdout is not None
        assert started.stdout.readline().startswith(f"fulgurite view: {url}")
        page = browser.new_page(viewport={"width": 1100, "height": 700})
        watched = Watched(page, flowing)
        _listen(watched, url)
        page.goto(url)
        page.wait_for_selector(".fg-bar")
        yield watched
        page.close()
    assert watched.complaints == []
    assert started.returncode == 0


def _listen(watched: Watched, url: str) -> None:
    page, complaints = watched.page, watched.complaints
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on(
        "console",
        lambda said: (
            complaints.append(f"console: {said.text}") if said.type in ("error", "warning") else None
        ),
    )
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((url, "data:", f"blob:{url}"))
            else complaints.append(f"foreign: {request.url}")
        ),
    )


@pytest.fixture
def watched(browser: Browser, collector: str, flowing: threading.Event) -> Iterator[Watched]:
    flowing.set()
    with _open(browser, collector, flowing) as opened:
        until(lambda: len(opened.state("fg_replicas") or ()) == 2, "both replicas are listed")
        until(lambda: opened.page.locator(".fg-token").count() > 10, "tokens are in the strip")
        yield opened


def _still(watched: Watched) -> np.ndarray[Any, Any]:
    """The picture at rest: the same three times, since a loaded machine draws it finer late."""
    last, same = [watched.picture()], [0]

    def rests() -> bool:
        time.sleep(0.9)  # a picture that stands is drawn once more, finer, after a while
        now = watched.picture()
        same[0] = 0 if np.any(now != last[0]) else same[0] + 1
        last[0] = now
        return same[0] == 2

    until(rests, "the picture rests")
    return last[0]


def test_lightning_moves_pause_holds_it_and_live_goes_on(watched: Watched) -> None:
    before = watched.picture()
    until(lambda: _changed(before, watched.picture()) > 0.01, "the picture changes while tokens flow")
    watched.press("Space")
    watched.mode("paused")
    held = _still(watched)
    chips = watched.page.locator(".fg-lane").all_inner_texts()
    deadline_s = time.monotonic() + 2.0
    while time.monotonic() < deadline_s:
        assert _changed(held, watched.picture()) == 0.0
        time.sleep(0.2)
    assert watched.page.locator(".fg-lane").all_inner_texts() == chips
    watched.press("Space")
    watched.mode("playing")
    until(lambda: _changed(held, watched.picture()) > 0.01, "the picture changes after the pause")
    watched.press("l")
    watched.mode("live")


def test_the_buttons_do_what_the_keys_do(watched: Watched) -> None:
    watched.page.locator("[data-command=pause]").click()
    watched.mode("paused")
    watched.page.locator("[data-command=live]").click()
    watched.mode("live")


def test_the_replica_selector_changes_what_is_shown(watched: Watched) -> None:
    watched.press("Space")
    watched.mode("paused")
    both = _still(watched)
    assert watched.page.locator(".fg-strip-replica").count() == 2
    watched.page.locator("[data-replica$='/two']").click()
    until(lambda: watched.page.locator(".fg-strip-replica").count() == 1, "one strip is left")
    alone = _still(watched)
    assert _changed(both, alone) > 0.05
    assert watched.page.locator("[data-replica$='/two']").get_attribute("aria-pressed") == "false"
    watched.press("a")
    until(lambda: watched.page.locator(".fg-strip-replica").count() == 2, "both are back")
    until(lambda: _changed(both, _still(watched)) < 0.01, "both are seen as before")


def test_cameras_change_the_view_and_reset_brings_it_back(watched: Watched) -> None:
    watched.press("Space")
    watched.mode("paused")
    first = _still(watched)
    watched.press("4")
    until(lambda: watched.state("fg_camera") == 3, "the camera is chosen")
    assert _changed(first, _still(watched)) > 0.05
    watched.press("r")
    until(lambda: _changed(first, _still(watched)) < 0.01, "the first view is back")


def test_dragging_turns_the_model(watched: Watched) -> None:
    watched.press("Space")
    watched.mode("paused")
    first = _still(watched)
    box = watched.page.locator(".fg-scene").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    watched.page.mouse.move(x, y)
    watched.page.mouse.down()
    watched.page.mouse.move(x + 120, y, steps=6)
    watched.page.mouse.up()
    until(lambda: _changed(first, watched.picture()) > 0.05, "the model is turned")


def test_a_chip_tells_its_numbers_and_steps_go_from_token_to_token(watched: Watched) -> None:
    watched.press("Space")
    watched.mode("paused")
    chip = watched.page.locator(".fg-token").first
    chip.hover()
    tip = watched.page.locator(".fg-tip").inner_text()
    for word in ("position", "probability", "log-probability", "entropy", "request"):
        assert word in tip
    first = watched.page.locator(".fg-token").first
    newest = first.inner_text()
    _step_until(
        watched, "Control+ArrowLeft", lambda: first.inner_text() != newest, "back to the token before"
    )
    _step_until(watched, "Control+ArrowRight", lambda: first.inner_text() == newest, "and forth again")


def _step_until(watched: Watched, keys: str, condition: Callable[[], bool], what: str) -> None:
    """Press again and again: the tokens in between are those of the other replica.

    A page that is slow to answer is waited for, so that no step too many is made.
    """

    def stepped() -> bool:
        watched.press(keys)
        for _ in range(6):
            watched.page.wait_for_timeout(500)
            if condition():
                return True
        return False

    until(stepped, what, within_s=90.0)


def _point_at_a_head(watched: Watched) -> None:
    """Move the pointer over the scene, row by row, until it is over a head."""
    box = watched.page.locator(".fg-scene").bounding_box()
    assert box is not None
    title = watched.page.locator(".fg-card header b")
    for down in np.linspace(0.22, 0.75, 18):
        for right in np.linspace(0.05, 0.45, 24):
            watched.at = (box["x"] + right * box["width"], box["y"] + down * box["height"])
            watched.page.mouse.move(*watched.at)
            watched.page.wait_for_timeout(90)
            if title.count() and "head" in title.inner_text():
                watched.page.wait_for_timeout(400)  # what was on its way has come
                if title.count() and "head" in title.inner_text():
                    return
    raise AssertionError("no card came up over any head")


def test_pointing_at_a_head_shows_its_measured_values_a_click_keeps_them_and_escape_lets_go(
    watched: Watched,
) -> None:
    watched.press("Space")
    watched.mode("paused")
    _still(watched)
    _point_at_a_head(watched)
    card = watched.page.locator(".fg-card")
    layer, head = (int(n) for n in re.findall(r"\d+", card.locator("header b").inner_text()))
    name = card.locator("header span").inner_text()
    text = card.inner_text()
    step, rows = int(re.findall(r"w(\d+)”", text)[0]), {"one": 2, "two": 1}[name]
    value = float(wave(step, rows)[-1, layer, head])  # the card is about the last row of the step
    shown = card.locator("dd:not(.fg-what)").all_inner_texts()
    assert float(shown[0]) == pytest.approx(0.05 + 0.4 * value**3, rel=0.01)
    assert float(shown[1].removesuffix(" logits").replace("−", "-")) == pytest.approx(4 * value - 2, abs=0.01)
    assert "1.5 nats" in text
    assert "50 %" in card.locator("li").first.inner_text()
    watched.page.mouse.down()
    watched.page.mouse.up()
    watched.page.locator(".fg-card.fg-pinned").wait_for()
    ring = watched.page.locator(".fg-ring").bounding_box()
    assert ring is not None
    x, y = watched.at
    assert abs(ring["x"] + ring["width"] / 2 - x) < 0.6 * ring["width"]
    assert abs(ring["y"] + ring["height"] / 2 - y) < 0.6 * ring["height"]
    watched.page.mouse.move(5, 5)
    watched.page.wait_for_timeout(600)
    assert card.locator("header b").inner_text() == f"layer {layer} · head {head}"
    watched.press("Escape")
    card.wait_for(state="detached")


def test_the_key_c_changes_hues_and_changes_them_back(watched: Watched) -> None:
    watched.press("Space")
    watched.mode("paused")
    before = _still(watched)
    watched.press("c")
    button = watched.page.locator("[data-command=contribution]")
    until(lambda: button.get_attribute("aria-pressed") == "true", "the button shows it")
    assert _changed(before, _still(watched)) > 0.02
    watched.press("c")
    until(lambda: button.get_attribute("aria-pressed") == "false", "the button shows it")
    until(lambda: _changed(before, _still(watched)) < 0.01, "the first picture is back")


def test_help_opens_and_closes_by_key_and_names_every_channel(watched: Watched) -> None:
    watched.press("?")
    dialog = watched.page.locator(".fg-help")
    dialog.wait_for(state="visible")
    text = dialog.inner_text()
    assert "What am I looking at?" in text
    assert "||o_h|| / ||r+||" in text
    assert "<o_h, g*(u_y - u_mean)> / s" in text
    assert "Contribution" in text
    watched.press("Escape")
    dialog.wait_for(state="hidden")


def test_the_picture_can_be_saved(watched: Watched) -> None:
    with watched.page.expect_download() as waiting:
        watched.press("s")
    saved = Image.open(waiting.value.path())
    assert saved.format == "PNG"
    assert saved.size[0] > 300


def test_a_quiet_stream_costs_no_pictures(watched: Watched) -> None:
    watched.flowing.clear()
    first = _still(watched)
    assert _changed(first, _still(watched)) == 0.0
    watched.flowing.set()
    until(lambda: _changed(first, watched.picture()) > 0.01, "it goes on with the stream")


def test_an_absent_collector_is_said_in_the_page(browser: Browser) -> None:
    nobody = free_address()
    with _open(browser, nobody, threading.Event()) as opened:
        opened.page.get_by_text(f"Waiting for a collector at {nobody}").wait_for()
        assert "fulgurite collector --listen" in opened.page.locator(".fg-waiting").inner_text()
