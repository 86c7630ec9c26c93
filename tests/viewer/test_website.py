"""The page's server with real sockets: many at once, one that stalls, a token, a proxy, a foreign page."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.scenes.streams import block, topology
from tests.viewer.made_up import until
from tests.viewer.site import Site, served

from fulgurite.viewer.inbox import Inbox
from fulgurite.viewer.message import unpack
from fulgurite.viewer.story import Story
from fulgurite.viewer.website import Website

SHAPE = topology(8, 8)
LISTEN_S = 60.0
WIDE = topology(64, 72)


async def _serials(url: str, count: int, session: aiohttp.ClientSession, headers: Any = None) -> list[int]:
    found: list[int] = []
    async with (
        asyncio.timeout(LISTEN_S),
        session.ws_connect(f"{url}ws", headers=headers, max_msg_size=0) as listening,
    ):
        while len(found) < count:
            message = await listening.receive(timeout=40)
            assert message.type is aiohttp.WSMsgType.BINARY, message
            header, _ = unpack(message.data)
            if header["kind"] == "tokens":
                found.append(header["serial"])
    return found


def test_ten_pages_at_once_hear_every_token_in_order() -> None:
    async def listen(site: Site) -> list[list[int]]:
        async with aiohttp.ClientSession() as session:
            pages = [asyncio.ensure_future(_serials(site.url, 30, session)) for _ in range(10)]
            await asyncio.to_thread(until, lambda: len(site.website.guests) == 10, "ten pages are open")
            await asyncio.to_thread(site.tokens, SHAPE, 30, gap_s=0.01)
            return await asyncio.gather(*pages)

    with served() as site:
        site.announce(SHAPE)
        found = asyncio.run(listen(site))
    assert len(found) == 10
    assert all(serials == sorted(serials) and serials == found[0] for serials in found)


def _stalled(url: str) -> socket.socket:
    """A page that was opened and takes nothing."""
    host, _, port = url.removeprefix("http://").rstrip("/").partition(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((host, int(port)))
    raw.sendall(
        f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    return raw


def test_a_page_that_stalls_harms_none_and_is_cut_short_itself() -> None:
    async def listen(site: Site) -> list[int]:
        async with aiohttp.ClientSession() as session:
            page = asyncio.ensure_future(_serials(site.url, 60, session))
            await asyncio.to_thread(until, lambda: len(site.website.guests) == 2, "both pages are open")
            await asyncio.to_thread(site.tokens, WIDE, 60, gap_s=0.05)
            return await page

    with served(queued_bytes=3 << 20) as site:
        site.announce(WIDE)
        raw = _stalled(site.url)
        until(lambda: len(site.website.guests) == 1, "the stalled page is open")
        (stalled,) = site.website.guests
        found = asyncio.run(listen(site))
        until(lambda: stalled.missed > 0, "its queue ran over")
        budget = max(3 << 20, stalled.queued_bytes)
        raw.close()
    assert found == sorted(found)
    assert len(found) == 60
    assert stalled.queued_bytes <= budget


def _get(url: str, **options: Any) -> tuple[int, str, Any]:
    async def get() -> tuple[int, str, Any]:
        jar = aiohttp.CookieJar(unsafe=True)  # cookies of an address without a name
        async with aiohttp.ClientSession(cookie_jar=jar) as session, session.get(url, **options) as answer:
            return answer.status, await answer.text(), answer.headers

    return asyncio.run(get())


def test_with_a_token_nothing_is_served_without_it() -> None:
    with served(token="s3cret") as site:
        for path in ("", "ws", "page/main.js", "fonts/Inter-Regular.otf"):
            status, said, _ = _get(site.url + path)
            assert status == 401, path
            assert "?token=TOKEN" in said
        assert _get(f"{site.url}?token=wrong")[0] == 401
        status, _, headers = _get(f"{site.url}?token=s3cret")
        assert status == 200
        assert "HttpOnly" in headers["Set-Cookie"]
        assert _get(site.url, headers={"Authorization": "Bearer s3cret"})[0] == 200
        assert _get(f"{site.url}page/main.js", cookies={"fulgurite_token": "s3cret"})[0] == 200


def test_a_page_of_another_site_may_not_listen() -> None:
    async def ask(site: Site, origin: str) -> int:
        async with aiohttp.ClientSession() as session:
            try:
                async with session.ws_connect(f"{site.url}ws", headers={"Origin": origin}):
                    return 101
            except aiohttp.WSServerHandshakeError as refused:
                return refused.status

    with served() as site:
        assert asyncio.run(ask(site, "http://elsewhere.example")) == 403
        assert asyncio.run(ask(site, site.url.rstrip("/"))) == 101


def test_no_file_beside_the_page_is_served() -> None:
    with served() as site:
        for path in ("page/../story.py", "page/%2e%2e/story.py", "fonts/%2e%2e%2fstory.py", "story.py"):
            assert _get(site.url + path)[0] in (403, 404), path


@pytest.mark.browser
def test_the_page_works_under_a_path_of_a_reverse_proxy_and_with_a_token() -> None:
    from playwright.sync_api import sync_playwright
    from tests.viewer.made_up import CHROMIUM
    from tests.viewer.test_page import GL

    if CHROMIUM is None:
        pytest.skip("no Chromium found")
    with served(token="s3cret") as site, Proxied(site.url) as address, sync_playwright() as play:
        site.announce(SHAPE)
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(GL))
        page = browser.new_page()
        page.goto(f"{address}?token=s3cret")
        until(lambda: page.evaluate("window.fulgurite?.replicas.size ?? 0") == 1, "the replica is shown")
        site.send(block(SHAPE, deep=True))
        until(lambda: page.locator(".chip").count() == 1, "its token came through the proxy")
        browser.close()


class Proxied:
    """A reverse proxy that serves a site under ``/some/path/``, in a thread of its own."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def __enter__(self) -> str:
        import threading

        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10.0)
        return f"http://127.0.0.1:{self._port}/some/path/"

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10.0)

    async def _serve(self, ready: Any) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_get("/some/path/{path:.*}", self._pass)
        runner = web.AppRunner(app, shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._port = runner.addresses[0][1]
        ready.set()
        await self._end.wait()
        await runner.cleanup()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        url = f"{self._url}/{request.match_info['path']}"
        headers = {"X-Forwarded-Host": request.host}
        headers |= {name: request.headers[name] for name in ("Cookie", "Origin") if name in request.headers}
        async with aiohttp.ClientSession() as session:
            if request.headers.get("Upgrade", "").lower() != "websocket":
                async with session.get(url, params=request.query, headers=headers) as answer:
                    kept = {
                        k: answer.headers[k] for k in ("Content-Type", "Set-Cookie") if k in answer.headers
                    }
                    return web.Response(status=answer.status, body=await answer.read(), headers=kept)
            near = web.WebSocketResponse()
            await near.prepare(request)
            async with session.ws_connect(url, params=request.query, headers=headers, max_msg_size=0) as far:
                async for message in far:
                    await near.send_bytes(message.data)
            return near


def test_the_server_ends_while_pages_are_open() -> None:
    async def listen(site: Site) -> float:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{site.url}ws", max_msg_size=0) as page,
        ):
            await page.receive(timeout=10)
            began_s = time.monotonic()
            site.website.stop()
            while (await page.receive(timeout=20)).type is aiohttp.WSMsgType.BINARY:
                pass
            return time.monotonic() - began_s

    with served() as site:
        asyncio.run(listen(site))


def test_one_that_has_ended_may_be_stopped_again() -> None:
    website = Website(Story(name="ended"), Inbox())
    ready: list[int] = []
    website.serve(
        "127.0.0.1", 0, on_ready=lambda port: (ready.append(port), website.stop()), stop_on_signals=False
    )
    website.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ready[0]))
