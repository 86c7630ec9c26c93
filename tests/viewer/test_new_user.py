"""What a new user looks for in the page, and how many actions each takes: on a real collector, in Chromium.

The counts are those of `docs/viewing.md`.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.viewer.made_up import CHROMIUM, Replica, free_address, process, until, wave
from tests.viewer.test_page import GL

from fulgurite.viewer.feed import probe

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SLOW_STEP_S = 0.2


@dataclass
class Person:
    """Somebody at the page, whose clicks are counted."""

    page: Page
    actions: int = 0

    def click(self, selector: str) -> None:
        """One action."""
        self.actions += 1
        self.page.locator(selector).first.click()

    def reads(self, selector: str) -> str:
        """What is written there: no action."""
        return self.page.locator(selector).first.inner_text()

    def ask(self, expression: str) -> Any:
        """A value in the page, to check what was found."""
        return self.page.evaluate(f"(() => {{ const app = window.fulgurite; return {expression}; }})()")


@pytest.fixture(scope="module")
def collector() -> Iterator[str]:
    """A collector with a fast replica and a slow one, whose request has a trace."""
    address, flowing = free_address(), threading.Event()
    flowing.set()
    with process("fulgurite.collector", "--redis", "memory://", "--listen", address):
        until(lambda: probe(address, timeout_s=1.0).answer == "ready", "the collector answers")
        replicas = [
            Replica(address, "one", 1, flowing),
            Replica(address, "two", 1, flowing, step_s=SLOW_STEP_S, trace_id=TRACE_ID),
        ]
        yield address
        for replica in replicas:
            replica.close()


@pytest.fixture(scope="module")
def opened(collector: str) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium found: install chromium, chromium-browser or google-chrome")
    from playwright.sync_api import sync_playwright

    listen, complaints = free_address(), []
    with (
        process("fulgurite.viewer", "--collector", collector, "--listen", listen) as started,
        sync_playwright() as play,
    ):
        assert started.stdout is not None
        assert started.stdout.readline().startswith("fulgurite view: http://")
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(GL))
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"http://{listen}/")
        until(lambda: page.locator(".fleet [data-row]").count() == 4, "both replicas are in the table")
        until(lambda: page.locator(".chip").count() > 20, "tokens are in the strip")
        yield page
        browser.close()
    assert complaints == []


@pytest.fixture
def person(opened: Page) -> Person:
    """At the page as it opens: in the present, with nothing chosen."""
    opened.keyboard.press("l")
    opened.keyboard.press("Escape")
    opened.keyboard.press("Escape")
    return Person(opened)


def test_the_most_active_head_of_the_last_token_is_one_click_away(person: Person) -> None:
    person.click(".finds [data-command=most_active]")
    card = "[data-panel=card]"
    until(lambda: re.search(r"layer \d+ · head \d+", person.reads(card)), "a head is chosen")
    layer, head = map(int, re.findall(r"layer (\d+) · head (\d+)", person.reads(card))[0])
    (step,) = map(int, re.findall(r"“w(\d+)”, position", person.reads(card)))
    values = wave(step, 1)[0]
    assert values[layer, head] >= values.max() - 2e-3  # float16 on the way
    newest = person.ask("app.replicas.get('/made-up/one').history.span[1]")
    until(lambda: person.ask("app.replicas.get('/made-up/one').history.span[1]") > newest + 0.5, "more came")
    assert f"layer {layer} · head {head}" in person.reads(card)  # the answer is still about its own token
    assert f"“w{step}”, position" in person.reads(card)
    assert person.actions == 1


def test_the_least_probable_token_is_one_click_away(person: Person) -> None:
    until(lambda: person.ask("[...app.replicas.values()].every((r) => r.history.counts.size > 6)"), "a past")
    person.click(".finds [data-command=least_probable]")
    until(lambda: person.ask("app.clock.mode") == "paused", "it stands there")
    assert person.ask("app.token.fact('step')") % 7 == 6  # of every seven the least probable, as it was sent
    assert "probability 12.2 %" in person.reads(".notice")
    assert np.exp(-2.1) == pytest.approx(0.122, abs=5e-4)
    assert person.actions == 1


def test_which_replica_is_slower_is_read_without_any_action(person: Person) -> None:
    until(lambda: person.page.locator(".fleet .more b").count() == 1, "one is called the slowest")
    assert person.reads(".fleet .more:has(b)").startswith("slowest")
    assert person.page.locator(".fleet .more:has(b)").get_attribute("data-row") == "/made-up/two"
    times = [
        float(row.split("\t")[3].split()[0]) * (1e3 if row.split("\t")[3].endswith(" s") else 1.0)
        for row in person.page.locator(".fleet tbody tr:not(.more)").all_inner_texts()
    ]
    assert times[1] > times[0] > 0
    assert person.actions == 0


def test_how_full_the_cache_is_is_read_without_any_action(person: Person) -> None:
    # A sketch of before this viewer came counts for a moment beside the frames of after.
    until(lambda: "4.1 kB" in person.reads(".fleet .more"), "the cache is said, as it was sent")
    (tokens,) = re.findall(r"KV (\d+) tokens, 4.1 kB", person.reads(".fleet .more"))
    assert 5 <= int(tokens) < 205
    assert person.actions == 0


def test_a_click_on_a_replica_makes_the_panels_be_about_it(person: Person) -> None:
    person.click("[data-row='/made-up/two'] button")
    until(lambda: person.ask("app.focused.key") == "/made-up/two", "it is chosen")
    until(lambda: "about=/made-up/two" in person.ask("location.hash"), "a link restores it")
    person.click("[data-row='/made-up/one'] button")
    until(lambda: person.ask("app.focused.key") == "/made-up/one", "the other one")


def test_spans_of_others_are_shown_beside_the_tokens_of_their_request(person: Person, collector: str) -> None:
    now_ns = time.time_ns()
    _send_span(collector, "POST /v1/completions", now_ns - 4 * 10**9, now_ns - 10**9)
    assert not person.page.locator("[data-panel=trace]").is_visible()
    person.click("section[data-replica='/made-up/two'] .chip")
    panel = person.page.locator("[data-panel=trace]")
    until(panel.is_visible, "the panel of the trace comes up")
    label = panel.locator("canvas")
    until(lambda: "POST /v1/completions" in (label.get_attribute("aria-label") or ""), "the span is found")
    assert label.get_attribute("aria-label") == "POST /v1/completions, gateway, 3 s"
    assert TRACE_ID in panel.inner_text()
    person.click("section[data-replica='/made-up/one'] .chip")
    until(lambda: not panel.is_visible(), "a request without a trace has none")


def test_a_wrong_trace_id_is_refused_in_words(person: Person) -> None:
    answer = person.page.evaluate("fetch('trace/xyz').then(async (a) => [a.status, await a.json()])")
    assert answer == [400, {"error": "a trace id has 32 hexadecimal digits"}]


def _send_span(address: str, name: str, start_ns: int, end_ns: int) -> None:
    """As an OpenTelemetry SDK of another service would."""
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

    request = trace_service_pb2.ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    named = resource.resource.attributes.add()
    named.key, named.value.string_value = "service.name", "gateway"
    span = resource.scope_spans.add().spans.add()
    span.trace_id, span.span_id = bytes.fromhex(TRACE_ID), bytes.fromhex("b7ad6b7169203331")
    span.name, span.start_time_unix_nano, span.end_time_unix_nano = name, start_ns, end_ns
    with grpc.insecure_channel(address) as channel:
        trace_service_pb2_grpc.TraceServiceStub(channel).Export(request, timeout=10.0)
