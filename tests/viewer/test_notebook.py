"""A view in a notebook: a real kernel runs the cells, and Chromium opens what the cell's output holds."""

from __future__ import annotations

import http.server
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.viewer.made_up import CHROMIUM, Replica, free_address, process, until
from tests.viewer.site import served
from tests.viewer.test_page import GL

from fulgurite import viewer
from fulgurite.viewer.feed import probe

CELLS = (
    "from fulgurite import viewer\nview = viewer.show({collector!r}, view='bare=1', height=480)\nview",
    "view.close()\nview",
)


@pytest.fixture(scope="module")
def collector() -> Iterator[str]:
    address, flowing = free_address(), threading.Event()
    flowing.set()
    with process("fulgurite.collector", "--redis", "memory://", "--listen", address):
        until(lambda: probe(address, timeout_s=1.0).answer == "ready", "the collector answers")
        replica = Replica(address, "one", 1, flowing)
        yield address
        replica.close()


@contextmanager
def _notebook_page(output: str) -> Iterator[str]:
    """A page of another site with the output of a cell in it."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<!doctype html><title>notebook</title>{output}".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing on the terminal."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}/"  # not the site of the frame: no cookie goes there
    server.shutdown()
    server.server_close()


@pytest.mark.browser
def test_a_cell_of_a_real_notebook_shows_the_storm_and_close_ends_it(collector: str) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium found: install chromium, chromium-browser or google-chrome")
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [nbformat.v4.new_code_cell(text.format(collector=collector)) for text in CELLS]
    book = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(book, timeout=120, kernel_name="python3")
    with client.setup_kernel():
        shown = client.execute_cell(cells[0], 0)
        output = shown["outputs"][0]["data"]["text/html"]
        port = int(re.findall(r"http://127\.0\.0\.1:(\d+)/with/", output)[0])
        _sees_tokens(output)
        closed = client.execute_cell(cells[1], 1)
    assert "was closed" in closed["outputs"][0]["data"]["text/html"]
    with socket.socket() as asked:
        assert asked.connect_ex(("127.0.0.1", port)) != 0


def _sees_tokens(output: str) -> None:
    from playwright.sync_api import sync_playwright

    with _notebook_page(output) as url, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(GL))
        page = browser.new_page(viewport={"width": 900, "height": 600})
        page.goto(url)
        until(lambda: len(page.frames) == 2, "the frame is there")
        frame = page.frames[1]
        count = "[...(window.fulgurite?.replicas.values() ?? [])].flatMap((r) => r.history.chunks).length"
        until(lambda: frame.evaluate(count) > 3, "tokens come into the frame")
        assert frame.evaluate("document.body.classList.contains('bare')")
        browser.close()


def test_a_page_that_runs_already_is_shown_with_its_token_in_the_path() -> None:
    import asyncio

    import aiohttp

    async def status(address: str) -> int:
        async with aiohttp.ClientSession() as session, session.get(address) as answer:
            return answer.status

    with served(token="s/cret") as site:
        cell = viewer.show(url=site.url, token="s/cret")
        assert cell.url == f"{site.url}with/s%2Fcret/"
        assert asyncio.run(status(cell.url)) == 200
        assert asyncio.run(status(f"{cell.url}page/main.js")) == 200
        assert asyncio.run(status(f"{site.url}with/wrong/")) == 401
        assert asyncio.run(status(f"{site.url}with/wrong/page/main.js")) == 401
        cell.close()
        assert asyncio.run(status(f"{site.url}?token=s/cret")) == 200  # it is another's: it goes on


def test_behind_a_proxy_the_frame_has_its_path(monkeypatch: pytest.MonkeyPatch, collector: str) -> None:
    with viewer.show(collector, proxy="/user/me/proxy/{port}/") as cell:
        assert re.fullmatch(r"/user/me/proxy/\d+/with/[\w-]+/", cell.url)
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/hub/me/")
    with viewer.show(collector) as cell:
        assert cell.url.startswith("/hub/me/proxy/")
        assert cell._repr_mimebundle_()["text/html"].startswith("<iframe")


def test_wrong_arguments_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="is not an address"):
        viewer.show("nowhere")
    with pytest.raises(ValueError, match="where the port goes"):
        viewer.show("127.0.0.1:4747", proxy="/proxy/")
    with pytest.raises(ValueError, match="is not an address of a page"):
        viewer.show(url="nonsense")
