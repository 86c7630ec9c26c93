"""Remote rendering for browsers that cannot draw: the VTK page in a process of its own, passed through.

It is started when the first such browser asks, and lives under ``remote/`` of the page's own address: so it
stands behind the same proxy and the same token. In its own process, since where VTK cannot draw it ends that.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

START_S = 60.0
ANSWER_S = 10.0
PASSED = ("Content-Type", "Accept", "User-Agent", "X-Forwarded-Proto")


class Remote:
    """The remote page behind ours.

    Parameters
    ----------
    arguments : of `fulgurite view` beside ``--remote`` and ``--listen``.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = tuple(arguments)
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._starting = asyncio.Lock()
        self._port = 0

    def routes(self, app: web.Application) -> None:
        """Pass on what is asked for under ``remote/``."""
        app.router.add_route("*", "/remote", self._slash)
        app.router.add_route("*", "/remote/{path:.*}", self._pass)

    async def close(self) -> None:
        """End the process."""
        if self._session is not None:
            await self._session.close()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), 5.0)
            if self._process.returncode is None:
                self._process.kill()

    async def _slash(self, request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(request.rel_url.with_name("remote").human_repr().rstrip("/").split("/")[-1] + "/")

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        reason = await self._start()
        if reason:
            return web.Response(status=503, text=f"Remote rendering cannot start: {reason}\n")
        path = request.match_info["path"]
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._socket(request, path)
        assert self._session is not None
        headers = {name: request.headers[name] for name in PASSED if name in request.headers}
        url = f"http://127.0.0.1:{self._port}/{path}"
        try:
            async with self._session.request(
                request.method, url, data=await request.read(), headers=headers, params=request.query
            ) as answer:
                kind = answer.headers.get("Content-Type", "application/octet-stream")
                body = await answer.read()
        except aiohttp.ClientError as error:
            return web.Response(status=503, text=f"Remote rendering does not answer: {error}\n")
        if path.rstrip("/") == "paraview":
            body = body.replace(b"USE_HOST/ws", b"USE_HOST" + _folder(request).encode() + b"ws")
        return web.Response(status=answer.status, body=body, headers={"Content-Type": kind})

    async def _start(self) -> str:
        """Start the process, once; why it did not start, or nothing."""
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return ""
            self._port = _free_port()
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "fulgurite.viewer", *self._arguments),
                *("--remote", "--listen", f"127.0.0.1:{self._port}"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            if self._session is None:
                self._session = aiohttp.ClientSession(auto_decompress=True)
            return await self._answers(self._process, self._session)

    async def _answers(self, process: asyncio.subprocess.Process, session: aiohttp.ClientSession) -> str:
        loop, timeout = asyncio.get_running_loop(), aiohttp.ClientTimeout(total=ANSWER_S)
        deadline_s = loop.time() + START_S
        while loop.time() < deadline_s:
            if process.returncode is not None:
                said = (await process.stderr.read()).decode(errors="replace") if process.stderr else ""
                return said.strip().splitlines()[-1] if said.strip() else "it ended and said nothing"
            # A connection alone says little: one to a port that nobody listens on yet may meet itself.
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(f"http://127.0.0.1:{self._port}/", timeout=timeout):
                    return ""
            await asyncio.sleep(0.1)
        return f"it did not answer within {START_S:g} s"

    async def _socket(self, request: web.Request, path: str) -> web.StreamResponse:
        assert self._session is not None
        near = web.WebSocketResponse(max_msg_size=0, protocols=_protocols(request))
        await near.prepare(request)
        url = f"http://127.0.0.1:{self._port}/{path}"
        async with self._session.ws_connect(url, max_msg_size=0, protocols=_protocols(request)) as far:
            ways = [asyncio.ensure_future(_carry(near, far)), asyncio.ensure_future(_carry(far, near))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
        await near.close()
        return near


Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def _carry(source: Socket, sink: Socket) -> None:
    async for message in source:
        if message.type is aiohttp.WSMsgType.TEXT:
            await sink.send_str(message.data)
        elif message.type is aiohttp.WSMsgType.BINARY:
            await sink.send_bytes(message.data)


def _protocols(request: web.Request) -> tuple[str, ...]:
    named = request.headers.get("Sec-WebSocket-Protocol", "")
    return tuple(name.strip() for name in named.split(",") if name.strip())


def _folder(request: web.Request) -> str:
    """The path of ``remote/`` as the browser sees it: a proxy may have taken some of it away."""
    seen = urlsplit(request.headers.get("Referer", "")).path
    return seen if seen.endswith("/remote/") else "/remote/"


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
