"""A browser that cannot draw is served the remote page under our own address, started when it asks."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from aiohttp import web
from tests.viewer.made_up import free_address

from fulgurite.viewer.remote import Remote

pytest.importorskip("trame")
pytest.importorskip("vtkmodules")


def test_the_remote_page_lives_under_our_address_also_behind_a_proxy() -> None:
    async def ask() -> tuple[int, str, list[str], int]:
        remote = Remote(["--collector", free_address()])
        app = web.Application()
        remote.routes(app)
        runner = web.AppRunner(app, shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with aiohttp.ClientSession() as session:
                async with session.get(f"{url}/remote/") as answer:
                    status, said = answer.status, await answer.text()
                places = []
                for page in ("/remote/", "/some/path/remote/"):
                    headers = {"Referer": f"https://example.org{page}", "Content-Type": "application/json"}
                    async with session.post(f"{url}/remote/paraview/", data="{}", headers=headers) as answer:
                        places.append(json.loads(await answer.text())["sessionURL"])
                async with session.ws_connect(f"{url}/remote/ws") as socket:
                    opened = int(not socket.closed)
            return status, said, places, opened
        finally:
            await remote.close()
            await runner.cleanup()

    status, said, places, opened = asyncio.run(asyncio.wait_for(ask(), 120.0))
    assert status == 200, said
    assert "<html" in said.lower()
    assert places == ["ws://USE_HOST/remote/ws", "ws://USE_HOST/some/path/remote/ws"]
    assert opened == 1
