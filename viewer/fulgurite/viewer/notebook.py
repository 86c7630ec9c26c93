"""The page in a notebook's cell: served by this process under a path that only its owner knows, or elsewhere.

No part of Jupyter is needed: what is shown is an object that says itself as HTML, a frame with the page.
A browser sends no cookie into a frame of another site, so what lets the frame in is part of its path.
"""

from __future__ import annotations

import html
import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from fulgurite.viewer.config import DEFAULT_COLLECTOR, parse_address

if TYPE_CHECKING:
    from types import TracebackType

    from fulgurite.viewer.feed import Feed
    from fulgurite.viewer.website import Website

HOST = "127.0.0.1"
HEIGHT = 640
START_LIMIT_S = 30.0
NEEDED = ("aiohttp", "PIL")


@dataclass(frozen=True, slots=True)
class _Server:
    """What runs in this process for a cell."""

    website: Website
    feed: Feed
    thread: threading.Thread


class Cell:
    """A view in a notebook: the last value of a cell, or `display(view)`. Made by `show`.

    Attributes
    ----------
    url : what the frame opens.
    """

    def __init__(self, url: str, *, about: str, height: int = HEIGHT, server: _Server | None = None) -> None:
        self.url = url
        self._about = about
        self._height = height
        self._server = server
        self._is_closed = False

    def close(self) -> None:
        """End what was started for it; where it shows a page of another process, that stays."""
        self._is_closed = True
        server, self._server = self._server, None
        if server is not None:
            server.feed.close()
            server.website.stop()
            server.thread.join(5.0)

    def __enter__(self) -> Cell:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<fulgurite.viewer: {self._about}{', closed' if self._is_closed else ''}>"

    def _repr_html_(self) -> str:
        if self._is_closed:
            return "<p>This view was closed: <code>fulgurite.viewer.show()</code> opens another.</p>"
        return (
            f'<iframe src="{html.escape(self.url)}" title="Fulgurite" allow="fullscreen; clipboard-write" '
            f'style="width:100%;height:{self._height}px;border:0;border-radius:8px"></iframe>'
        )

    def _repr_mimebundle_(self, **_wanted: Any) -> dict[str, str]:
        return {"text/html": self._repr_html_(), "text/plain": repr(self)}


def show(
    collector: str | None = None,
    *,
    url: str | None = None,
    token: str = "",
    replicas: Sequence[str] = (),
    history_s: float = 60.0,
    height: int = HEIGHT,
    view: str = "",
    proxy: str | None = None,
) -> Cell:
    """The storm in a notebook's cell.

    Parameters
    ----------
    collector : ``HOST:PORT`` that the frames come from; else ``FULGURITE_COLLECTOR``, ``FULGURITE_ENDPOINT``,
        else 127.0.0.1:4747. This process serves the page, on a free port of this machine.
    url : the address of a page that runs already (``fulgurite view``), as the browser sees it; nothing is
        started then.
    token : what that page asks for.
    replicas : selectors ``[namespace/]service[/instance]``; empty: every replica.
    history_s : seconds of the past to begin with.
    height : of the frame in pixels.
    view : how the page begins: the part of a link of the page behind ``#``, for example ``bare=1``.
    proxy : how the browser reaches a port of this machine where it runs elsewhere, with ``{port}`` in it, for
        example ``/proxy/{port}/``; else ``FULGURITE_NOTEBOOK_PROXY``; else under JupyterHub the path of
        jupyter-server-proxy; else the port itself.

    Raises
    ------
    ImportError
        Where the extra ``viewer`` is not installed.
    ValueError
        Where an argument is no address or template.
    """
    behind = f"#{view.lstrip('#')}" if view else ""
    if url is not None:
        return Cell(_opened(url, token) + behind, about=url, height=height)
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"the view needs {', '.join(missing)}: install it with `pip install 'fulgurite[viewer]'`"
        )
    chosen = collector or _from_environment(os.environ)
    parse_address(chosen)
    template = _template(proxy, os.environ)
    secret = secrets.token_urlsafe(24)
    server, port = _serve(chosen, replicas, history_s, secret)
    where = f"{template.format(port=port).rstrip('/')}/with/{secret}/"
    return Cell(where + behind, about=f"frames of {chosen}", height=height, server=server)


def _from_environment(environ: Mapping[str, str]) -> str:
    return environ.get("FULGURITE_COLLECTOR") or environ.get("FULGURITE_ENDPOINT") or DEFAULT_COLLECTOR


def _template(proxy: str | None, environ: Mapping[str, str]) -> str:
    hub = environ.get("JUPYTERHUB_SERVICE_PREFIX")
    found = proxy or environ.get("FULGURITE_NOTEBOOK_PROXY") or (f"{hub}proxy/{{port}}/" if hub else "")
    if not found:
        return f"http://{HOST}:{{port}}/"
    try:
        if "7" not in found.format(port=7):
            raise ValueError
    except (ValueError, LookupError):
        raise ValueError(
            f"{found!r} does not say where the port goes: write for example /proxy/{{port}}/"
        ) from None
    return found


def _opened(url: str, token: str) -> str:
    parts = urlsplit(url)
    if not parts.netloc and not url.startswith("/"):
        raise ValueError(f"{url!r} is not an address of a page: write for example http://127.0.0.1:8747/")
    if not token:
        return url
    return f"{url.rstrip('/')}/with/{quote(token, safe='')}/"


def _serve(collector: str, replicas: Sequence[str], history_s: float, secret: str) -> tuple[_Server, int]:
    """Serve the page on a free port of this machine, on threads of its own."""
    from fulgurite.viewer.feed import Feed
    from fulgurite.viewer.inbox import Inbox
    from fulgurite.viewer.spans import Spans
    from fulgurite.viewer.story import Story
    from fulgurite.viewer.website import Website

    inbox = Inbox()
    story = Story(name=f"{time.time_ns():x}", address=collector)
    website = Website(story, inbox, token=secret, spans=Spans(collector))
    ready, bound = threading.Event(), [0]

    def is_ready(port: int) -> None:
        bound[0] = port
        ready.set()

    def run() -> None:
        website.serve(HOST, 0, on_ready=is_ready, stop_on_signals=False)

    thread = threading.Thread(target=run, name="fulgurite-notebook", daemon=True)
    thread.start()
    if not ready.wait(START_LIMIT_S):
        raise RuntimeError(f"the page was not served within {START_LIMIT_S:g} s")
    feed = Feed(collector, inbox, selectors=replicas, history_s=history_s).start()
    return _Server(website, feed, thread), bound[0]
