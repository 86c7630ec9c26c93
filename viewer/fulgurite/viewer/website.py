"""The web server of the page that draws for itself: files, and one websocket per open page.

Every link in the page is relative, so it works under any path behind a reverse proxy. With a token nothing
is served without it; a browser shows it once (``?token=``) and has a cookie from then on. A websocket from a
page of another site is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote, urlsplit

from aiohttp import WSCloseCode, web

from fulgurite.viewer.hall import QUEUED_BYTES, Guest, Hall
from fulgurite.viewer.inbox import Inbox
from fulgurite.viewer.remote import Remote
from fulgurite.viewer.spans import Spans, SpansUnavailableError
from fulgurite.viewer.story import Story

log = logging.getLogger(__name__)

PAGE = Path(str(files("fulgurite.viewer").joinpath("page")))
FONTS = Path(str(files("fulgurite.viewer").joinpath("fonts")))
PERIOD_S = 1 / 40
COOKIE = "fulgurite_token"
WITHIN = "with"  # /with/TOKEN/ shows the token in the path
LET_IN = web.AppKey("let_in", bool)
SEND_TIMEOUT_S = 20.0  # a page that takes nothing for so long is gone
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self' ws: wss:; object-src 'none'; base-uri 'none'; frame-ancestors *"
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Website:
    """Serves one story to any number of pages.

    Parameters
    ----------
    token : what a page must show; empty: nothing.
    remote : starts remote rendering for a browser that cannot draw; None: there is none.
    spans : where spans of others are asked for; None: nowhere.
    queued_bytes : most bytes that wait for one page.
    """

    def __init__(
        self,
        story: Story,
        inbox: Inbox,
        *,
        token: str = "",
        remote: Remote | None = None,
        spans: Spans | None = None,
        queued_bytes: int = QUEUED_BYTES,
    ) -> None:
        self._story = story
        self._inbox = inbox
        self._token = token
        self._remote = remote
        self._spans = spans
        self._queued_bytes = queued_bytes
        self._hall = Hall()
        self._sockets: set[web.WebSocketResponse] = set()
        self._lock = threading.Lock()  # the story is told on one thread, and welcomes on another
        self._stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = threading.Event()

    @property
    def guests(self) -> frozenset[Guest]:
        """The pages that are open."""
        return self._hall.guests

    # life

    def serve(
        self, host: str, port: int, *, on_ready: Callable[[int], None], stop_on_signals: bool = True
    ) -> None:
        """Serve until `stop`, or a signal where those are listened to."""
        asyncio.run(self._serve(host, port, on_ready, stop_on_signals=stop_on_signals))

    def stop(self) -> None:
        """End `serve`; from any thread, and as often as one likes."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
                self._loop.call_soon_threadsafe(self._stopping.set)

    async def _serve(
        self, host: str, port: int, on_ready: Callable[[int], None], *, stop_on_signals: bool
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        if stop_on_signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._stopping.set)
        runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
        teller = threading.Thread(target=self._tell, args=(loop,), name="fulgurite-teller", daemon=True)
        teller.start()
        on_ready(int(runner.addresses[0][1]))
        try:
            await self._stopping.wait()
        finally:
            self._closing.set()
            await runner.cleanup()
            await asyncio.to_thread(teller.join, 3.0)
            if self._remote is not None:
                await self._remote.close()
            if self._spans is not None:
                self._spans.close()

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        """Turn the story, again and again."""
        while not self._closing.is_set():
            began_s = time.monotonic()
            try:
                with self._lock:
                    said = self._story.turn(self._inbox.take(), time.time())
                    if said:
                        loop.call_soon_threadsafe(self._hall.tell, said)
            except RuntimeError:
                return  # the loop was closed in between
            except Exception:
                log.exception("a part of the stream could not be told")
            self._closing.wait(max(0.004, began_s + PERIOD_S - time.monotonic()))

    # what is served

    def app(self) -> web.Application:
        """The application: mount it under any path."""
        app = web.Application(middlewares=[self._guarded], client_max_size=1 << 16)
        self._routes(app)
        if self._remote is not None:
            self._remote.routes(app)
        if self._token:
            # For a frame in another site's page, where cookies do not go: the token is part of the path.
            within = web.Application(client_max_size=1 << 16)
            within[LET_IN] = True
            self._routes(within)
            app.add_subapp(f"/{WITHIN}/{quote(self._token, safe='')}/", within)
        app.on_shutdown.append(self._farewell)
        return app

    def _routes(self, app: web.Application) -> None:
        app.router.add_get("/", self._index)
        app.router.add_get("/ws", self._socket)
        app.router.add_get("/trace/{trace_id}", self._trace)
        app.router.add_static("/page", PAGE)
        app.router.add_static("/fonts", FONTS)

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        shown = request.query.get("token", "")
        if self._token and not self._may(request, shown):
            return web.Response(
                status=401,
                text="This page needs a token: open it as ?token=TOKEN, with the token that "
                "`fulgurite view` was given.\n",
                headers={"WWW-Authenticate": "Bearer"},
            )
        answer = await handler(request)
        if not answer.prepared:
            if not request.path.startswith("/remote"):  # a page of another making
                answer.headers["Content-Security-Policy"] = POLICY
            answer.headers["X-Content-Type-Options"] = "nosniff"
            answer.headers["Referrer-Policy"] = "same-origin"
            answer.headers["Cache-Control"] = "no-cache"
            if self._token and shown:
                secure = request.headers.get("X-Forwarded-Proto", request.scheme) == "https"
                answer.set_cookie(COOKIE, shown, httponly=True, samesite="Strict", secure=secure)
        return answer

    def _may(self, request: web.Request, shown: str) -> bool:
        if any(LET_IN in app for app in request.match_info.apps):
            return True  # its path begins with the token
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return any(
            hmac.compare_digest(found.encode(), self._token.encode())
            for found in (shown, bearer, request.cookies.get(COOKIE, ""))
        )

    async def _index(self, _request: web.Request) -> web.StreamResponse:
        return web.FileResponse(PAGE / "index.html")

    async def _trace(self, request: web.Request) -> web.StreamResponse:
        """The spans of others of a trace, as JSON."""
        if self._spans is None:
            return web.json_response({"error": "this viewer has no collector to ask for spans"}, status=404)
        try:
            found = await asyncio.to_thread(self._spans.find, request.match_info["trace_id"])
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        except SpansUnavailableError as error:
            return web.json_response({"error": str(error)}, status=503)
        return web.json_response({"spans": [asdict(span) for span in found]})

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if LET_IN not in request.app and not is_same_site(request):
            return web.Response(status=403, text="a page of another site may not listen here\n")
        socket = web.WebSocketResponse(heartbeat=25.0, max_msg_size=1 << 12, compress=False)
        await socket.prepare(request)
        guest = await asyncio.to_thread(self._admit, asyncio.get_running_loop())
        sending = asyncio.ensure_future(self._send(socket, guest))
        self._sockets.add(socket)
        try:
            async for _ in socket:
                pass  # a page only listens
        finally:
            self._sockets.discard(socket)
            self._hall.leave(guest)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await sending
        return socket

    def _admit(self, loop: asyncio.AbstractEventLoop) -> Guest:
        """A new page: it knows what was said until now, and hears all that is said from now on."""
        with self._lock:
            now_s = time.time()
            told = self._story.welcome(now_s)
            guest = Guest(told, self._story.past(), now_s, budget_bytes=self._queued_bytes)
            loop.call_soon_threadsafe(self._hall.enter, guest)  # behind what was said before
        return guest

    async def _send(self, socket: web.WebSocketResponse, guest: Guest) -> None:
        try:
            while not socket.closed:
                await asyncio.wait_for(socket.send_bytes(await guest.take()), SEND_TIMEOUT_S)
        except (TimeoutError, ConnectionError):
            await socket.close(code=WSCloseCode.GOING_AWAY, message=b"too slow")

    async def _farewell(self, _app: web.Application) -> None:
        """Pages know that it is over, and ask again later."""
        for opened in set(self._sockets):
            await opened.close(code=WSCloseCode.GOING_AWAY, message=b"the viewer ended")


def is_same_site(request: web.Request) -> bool:
    """Whether a websocket is asked for by a page of this site, or by no page at all."""
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    hosts = {request.host, request.headers.get("X-Forwarded-Host", request.host)}
    return urlsplit(origin).netloc in hosts


def is_free(host: str, port: int) -> bool:
    """Whether the page can be served there."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return True
    except OSError:
        return False
