"""The page for browsers that cannot draw: one scene, drawn here, shown as pictures, with its controls.

One camera and one playhead for everybody; `website` serves the page that draws for itself.

The picture goes through trame-rca as JPEG, everything else as trame state. What a control does is in
`panel`; what is shown is in `session`; when and how finely it is drawn is in `studio`. This file connects
them to a web server.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from aiohttp import web
from trame.app import get_server
from trame.ui.vuetify3 import VAppLayout
from trame.widgets import html as widgets
from trame_rca import module as rca_module
from wslink.websocket import LinkProtocol

from fulgurite.viewer import panel
from fulgurite.viewer.session import Session
from fulgurite.viewer.studio import Picture, Studio
from fulgurite.wire.channels import CHANNELS

AREA = "storm"
ASSETS = Path(str(files("fulgurite.viewer").joinpath("page"))) / "remote"
FONTS = Path(str(files("fulgurite.viewer").joinpath("fonts")))
PICTURES_UNDER_WAY = 3  # to one browser: a slow one gets fewer pictures, not older ones
LIGHTS = {
    "head_write": "heads",
    "ffn_write": "feed-forward blocks",
    "kv_tokens": "cache",
    "head_contribution": "hue of heads (C)",
    "ffn_contribution": "hue of feed-forward blocks (C)",
    "attended_weights": "width of a strike from the cache",
    "logprob": "bar under a token",
}

ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24'>"
    "<rect width='24' height='24' rx='5' fill='#070a13'/>"
    "<path d='M13.6 2.5 L9.4 9.6 L13 10.7 L8.8 16.1 L11.6 17 L9.6 21.5' stroke='#8fb4ff' stroke-width='2.2' "
    "fill='none' "
    "stroke-linejoin='round' stroke-linecap='round'/></svg>"
)


class Area:
    """The picture's place in the page: what trame-rca calls a view adapter."""

    def __init__(self, studio: Studio, pending: Callable[[], int]) -> None:
        self.area_name = AREA
        self.streamer: Any = None
        self._studio = studio
        self._pending = pending
        self._held: tuple[int, int] | None = None
        self._moves = False

    def set_streamer(self, streamer: Any) -> None:
        """Called by trame-rca when the area is known to it."""
        self.streamer = streamer

    def update_size(self, _origin: str, size: Mapping[str, Any]) -> None:
        """A browser shows the area at this size."""
        ratio = min(2.0, float(size.get("p", 1)))
        self._studio.resize(int(size.get("w", 300) * ratio), int(size.get("h", 300) * ratio))

    def reset(self) -> None:
        """A browser asks for a whole picture; every one is."""

    def push(self, picture: Picture) -> None:
        """Show a picture in every page; on the server's thread."""
        if self.streamer is None or self._pending() > PICTURES_UNDER_WAY:
            return
        meta = {
            "type": "image/jpeg",
            "codec": "",
            "w": picture.width,
            "h": picture.height,
            "st": picture.made_ns // 1_000_000,
            "key": "key",
        }
        self.streamer.push_content(self.area_name, meta, picture.jpeg)

    def on_interaction(self, _origin: str, event: Mapping[str, Any]) -> None:
        """Drag turns, with Shift (or another button) it moves; the wheel comes nearer."""
        kind = event.get("type", "")
        place = (int(event.get("x", 0)), int(event.get("y", 0)))
        if kind.endswith("ButtonPress"):
            self._held, self._moves = place, bool(event.get("shiftKey")) or not kind.startswith("Left")
        elif kind.endswith("ButtonRelease"):
            self._held = None
        elif kind == "MouseMove" and self._held is not None:
            by = (place[0] - self._held[0], place[1] - self._held[1])
            self._held = place
            moves = self._moves
            self._studio.post(lambda session: (session.pan if moves else session.orbit)(*by))
        elif kind == "MouseWheel":
            turns = float(event.get("spinY", 0.0))
            self._studio.post(lambda session: session.zoom(0.9**turns))


class Door(LinkProtocol):  # type: ignore[misc]
    """Counts the pages that are open."""

    def __init__(self, changed: Callable[[int], None]) -> None:
        super().__init__()
        self._clients: set[str] = set()
        self._changed = changed

    def onConnect(self, _request: Any, client_id: str) -> None:  # noqa: N802
        """A page was opened."""
        self._clients.add(client_id)
        self._changed(len(self._clients))

    def onClose(self, client_id: str) -> None:  # noqa: N802
        """A page was closed."""
        self._clients.discard(client_id)
        self._changed(len(self._clients))


class Page:
    """The web page of one studio; a `panel.Stage`.

    Parameters
    ----------
    cameras : the presets of the scene, (label, tooltip).
    """

    def __init__(self, cameras: tuple[tuple[str, str], ...]) -> None:
        self._server = get_server(name=f"fulgurite-{time.monotonic_ns()}", client_type="vue3")
        self._table = panel.commands(cameras)
        self._commands = {command.name: command for command in self._table}
        self._keys = panel.by_shortcut(self._table)
        self._secret = secrets.token_hex(24)  # never begins with "-": it is an argument of a command line
        self._stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._studio: Studio | None = None
        self._area: Area | None = None
        self._build()

    # what the studio calls, on its own thread

    def show(self, picture: Picture) -> None:
        """A new picture."""
        self._on_loop(lambda: self._area.push(picture) if self._area is not None else None)

    def tell(self, shown: Mapping[str, Any]) -> None:
        """What stands around the picture."""
        self._on_loop(lambda: self._update(shown))

    def _on_loop(self, action: Callable[[], None]) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed in between
                loop.call_soon_threadsafe(action)

    def _update(self, shown: Mapping[str, Any]) -> None:
        with self._server.state as state:
            for name, value in shown.items():
                if state[name] != value:
                    state[name] = value

    # what a person can ask for: panel.Stage

    def ask(self, action: Callable[[Session], None]) -> None:
        """Have this done to the session, and its result drawn."""
        self._post(action)

    def toggle_pause(self) -> None:
        """Stand still, or go on from there."""
        self._post(Session.toggle_pause)

    def go_live(self) -> None:
        """Back to the present."""
        self._post(Session.go_live)

    def seek_by(self, seconds: float) -> None:
        """Move through the past."""
        self._post(lambda session: session.seek_by(seconds))

    def seek_to_start(self) -> None:
        """To the oldest token that is kept."""
        self._post(lambda session: session.seek_fraction(0.0))

    def seek_to_end(self) -> None:
        """To the newest token that is kept."""
        self._post(lambda session: session.seek_fraction(1.0))

    def step(self, tokens: int) -> None:
        """To the next or previous token."""
        self._post(lambda session: session.step(tokens))

    def faster(self, factor: float) -> None:
        """Multiply the speed at which the past is played."""
        self._post(lambda session: session.faster(factor))

    def show_camera(self, index: int) -> None:
        """One of the camera presets."""
        self._post(lambda session: session.show_camera(index))

    def next_replica(self, by: int) -> None:
        """Show the next replica alone."""
        self._post(lambda session: session.next_replica(by))

    def show_all_replicas(self) -> None:
        """Every replica, side by side."""
        self._post(Session.show_all)

    def toggle_hud(self) -> None:
        """Titles, figures and legends in the picture."""
        self._post(Session.toggle_hud)

    def toggle_tokens(self) -> None:
        """The token strip."""
        self._toggle("fg_tokens")

    def toggle_contribution(self) -> None:
        """Hue: the signed push on the emitted token, or the request."""
        self._post(Session.toggle_contribution)

    def toggle_help(self) -> None:
        """What am I looking at?"""
        self._toggle("fg_help")

    def save_picture(self) -> None:
        """Save what is on screen."""
        if self._studio is not None:
            self._studio.picture(lambda data: self._on_loop(lambda: self._send_picture(data)))

    def toggle_fullscreen(self) -> None:
        """The whole screen."""
        self._server.js_call("fg_keys", "fullscreen")

    def clear(self) -> None:
        """Close what is open."""
        with self._server.state as state:
            state.fg_help = False
        self._post(lambda session: session.pin(None))

    def _post(self, action: Callable[[Session], None]) -> None:
        if self._studio is not None:
            self._studio.post(action)

    def _toggle(self, name: str) -> None:
        with self._server.state as state:
            state[name] = not state[name]

    def _send_picture(self, data: bytes) -> None:
        name = time.strftime("fulgurite-%Y%m%d-%H%M%S.png")
        self._server.js_call("fg_keys", "save", name, base64.b64encode(data).decode())

    # the page

    def _build(self) -> None:
        server = self._server
        server.enable_module(rca_module)
        server.enable_module(
            {
                "serve": {"__fulgurite": str(ASSETS), "__fulgurite/fonts": str(FONTS)},
                "scripts": ["__fulgurite/fulgurite.js"],
                "styles": ["__fulgurite/fulgurite.css"],
                "vue_use": ["fulgurite"],
            }
        )
        server.state.trame__title = "Fulgurite"
        server.state.trame__favicon = "data:image/svg+xml;base64," + base64.b64encode(ICON.encode()).decode()
        server.state.update(self._fixed() | FIRST_STATE)
        server.trigger("fg_command")(lambda name: self._do(self._commands.get(name)))
        server.trigger("fg_key")(lambda keys: self._do(self._keys.get(keys)))
        server.trigger("fg_replica")(self._replica)
        server.trigger("fg_scrub")(self._scrub)
        server.trigger("fg_point")(self._point)
        server.trigger("fg_click")(self._click)
        with VAppLayout(server, vuetify_config={"theme": {"defaultTheme": "dark"}}):
            widgets.Div((ASSETS / "page.html").read_text(encoding="utf-8"))

    def _do(self, command: panel.Command | None) -> None:
        if command is not None:
            command.do(self)

    def _replica(self, key: str) -> None:
        self._post(lambda session: session.toggle_replica(str(key)))

    def _scrub(self, fraction: float) -> None:
        self._post(lambda session: session.seek_fraction(min(1.0, max(0.0, float(fraction)))))

    def _point(self, x: float | None = None, y: float | None = None) -> None:
        """Where the pointer is, in shares of the picture; nothing: it left."""
        if self._studio is not None:
            self._studio.point(None if x is None or y is None else (float(x), float(y)))

    def _click(self, x: float, y: float) -> None:
        if self._studio is not None:
            self._studio.click((float(x), float(y)))

    def _fixed(self) -> dict[str, Any]:
        """What never changes while the page is open."""
        groups: dict[str, list[panel.Command]] = {}
        for command in self._table:
            groups.setdefault(command.group, []).append(command)
        cameras = [command for command in groups["Camera"] if command.name.startswith("camera_")]
        return {
            "fg_keys": sorted(self._keys),
            "fg_time_commands": [_button(self._commands[name]) for name in ("step_back", "pause", "step")],
            "fg_live_title": _title(self._commands["live"]),
            "fg_help_title": _title(self._commands["help"]),
            "fg_contribution_title": _title(self._commands["contribution"]),
            "fg_tokens_title": _title(self._commands["tokens"]),
            "fg_cameras": [_button(command) for command in cameras],
            "fg_keymap": [
                {
                    "name": name,
                    "rows": [{"keys": panel.shown(c.shortcut[0]), "label": c.label} for c in group],
                }
                for name, group in groups.items()
            ],
            "fg_channels": [
                {
                    "name": channel.name,
                    "light": LIGHTS[channel.name],
                    "formula": channel.formula,
                    "unit": channel.unit,
                }
                for channel in CHANNELS
                if channel.name in LIGHTS
            ],
        }

    def serve(
        self,
        host: str,
        port: int,
        studio: Studio,
        *,
        on_ready: Callable[[int], None],
        stop_on_signals: bool = True,
    ) -> None:
        """Serve until a signal or `stop`; `on_ready` is told the port."""
        asyncio.run(self._serve(host, port, studio, on_ready, stop_on_signals))

    def stop(self) -> None:
        """End `serve`; from any thread."""
        self._on_loop(self._stopping.set)

    async def _serve(
        self, host: str, port: int, studio: Studio, on_ready: Callable[[int], None], stop_on_signals: bool
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._studio = studio
        server = self._server
        self._area = Area(studio, lambda: int(server.context.network_monitor.pending))
        server.add_protocol_to_configure(lambda root: root.registerLinkProtocol(Door(studio.look)))
        server.controller.on_server_bind.add(self._routes)
        server.controller.on_server_ready.add(lambda **_: self._ready(on_ready))
        if stop_on_signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._stopping.set)
        # Our own command line is none of trame's business.
        os.environ["TRAME_ARGS"] = f"--server --nosignalhandlers --authKey {self._secret}"
        serving = asyncio.ensure_future(
            server.start(
                port=port,
                host=host,
                exec_mode="coroutine",
                timeout=0,
                show_connection_info=False,
                open_browser=False,
                disable_logging=True,
                thread=True,
            )
        )
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        self._loop = None
        if serving.done():
            serving.result()
            return
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(server.stop(), timeout=3.0)
        serving.cancel()

    def _routes(self, server: Any) -> None:
        """How our page finds its socket; a page from elsewhere cannot read the answer and stays out."""
        server.app.router.add_post("/paraview/", self._invite)

    async def _invite(self, request: web.Request) -> web.Response:
        scheme = "wss" if request.headers.get("X-Forwarded-Proto", request.scheme) == "https" else "ws"
        return web.json_response({"sessionURL": f"{scheme}://USE_HOST/ws", "secret": self._secret})

    def _ready(self, on_ready: Callable[[int], None]) -> None:
        self._server.controller.rc_area_register(self._area)
        on_ready(int(self._server.port))


FIRST_STATE: dict[str, Any] = {
    "fg_replicas": [],
    "fg_strip": [],
    "fg_time": {"bins": [], "gaps": [], "at": 1.0, "span": 0, "peak": 0},
    "fg_mode": "live",
    "fg_behind": "",
    "fg_level": "",
    "fg_camera": 0,
    "fg_contribution": False,
    "fg_card": None,
    "fg_tokens": True,
    "fg_help": False,
    "fg_waiting": "Looking for a collector",
    "fg_advice": "",
    "fg_lost": "",
    "fg_failure": "",
}


def _title(command: panel.Command) -> str:
    return f"{command.tooltip} ({panel.shown(command.shortcut[0])})"


def _button(command: panel.Command) -> dict[str, str]:
    return {"name": command.name, "label": command.label, "title": _title(command)}
