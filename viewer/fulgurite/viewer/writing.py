"""The writings over a replica's picture: title and figures above, legend, requests and token strip below.

Pure: what is painted follows from the scene. Two sheets per viewport, each painted again only when what it
says changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fulgurite.viewer.colors import REQUESTS, Display, bar_colors
from fulgurite.viewer.glow import FADES_OVER_S
from fulgurite.viewer.hud import account_line, badge, memory_line, model_line, speed_line
from fulgurite.viewer.lettering import Canvas, Color, fitted, width_of
from fulgurite.wire.channels import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Hashable

    from fulgurite.viewer.lettering import Bytes
    from fulgurite.viewer.scene import ReplicaScene, StripToken

WHITE: Color = (238, 242, 252)
TEXT: Color = (168, 184, 226)
DIM: Color = (112, 126, 168)
WARN: Color = (240, 176, 80)
FIELD: Color = (58, 66, 96)
VERIFIED: Color = (112, 200, 160)

TOP_LINES, LEGEND_LINES, STRIP_LINES = 84.0, 62.0, 54.0
STRIP_ROWS, STRIP_PITCH = 2, 22.0
MARGIN = 20.0


def top_key(scene: ReplicaScene) -> Hashable:
    """Changes when the upper sheet must be painted again."""
    return scene.hud_revision, scene.title, _rounded(scene.tokens_per_chain)


def paint_top(scene: ReplicaScene, width: int, scale: float) -> Bytes:
    """Title and figures: RGBA, `TOP_LINES * scale` high."""
    canvas = Canvas(width, round(TOP_LINES * scale))
    hud, margin, right = scene.hud, MARGIN * scale, width - MARGIN * scale
    speed = speed_line(hud)
    speed_width = width_of(speed, 15 * scale)
    title = fitted(scene.title, right - margin - speed_width - 24 * scale, 21 * scale, "bold")
    used = canvas.text(margin, 11 * scale, title, 21 * scale, WHITE, weight="bold")
    if hud.replica and hud.replica != scene.title:
        room = right - margin - used - speed_width - 40 * scale
        canvas.text(
            margin + used + 12 * scale, 17 * scale, fitted(hud.replica, room, 14 * scale), 14 * scale, TEXT
        )
    alert = hud.state in ("lost", "gap", "waiting")
    canvas.text(right, 15 * scale, speed, 15 * scale, WARN if alert else WHITE, align=1)
    memory = memory_line(hud, scene.tokens_per_chain)
    taken = canvas.text(right, 39 * scale, memory, 13 * scale, TEXT, align=1)
    room = right - margin - taken - 16 * scale
    canvas.text(margin, 39 * scale, fitted(model_line(scene.topology), room, 13 * scale), 13 * scale, TEXT)
    canvas.text(right, 58 * scale, account_line(hud), 12 * scale, WARN if hud.gap_frames else DIM, align=1)
    _badge(canvas, badge(hud), margin, 58 * scale, scale, VERIFIED if hud.faithfulness else WARN)
    return canvas.pixels


def _badge(canvas: Canvas, text: str, x: float, y: float, scale: float, color: Color) -> None:
    """A word in a frame."""
    width, height, line = width_of(text, 11 * scale) + 14 * scale, 17 * scale, max(1.0, scale)
    for left, top, w, h in (
        (x, y, width, line),
        (x, y + height - line, width, line),
        (x, y, line, height),
        (x + width - line, y, line, height),
    ):
        canvas.box(left, top, w, h, color, 0.45)
    canvas.text(x + 7 * scale, y + 2 * scale, text, 11 * scale, color)


def bottom_key(scene: ReplicaScene, tokens: bool) -> Hashable:
    """Changes when the lower sheet must be painted again."""
    legend = scene.scale, scene.reads_captured, scene.carpet.tokens_per_cell, tuple(scene.requests)
    return (legend, scene.strip_revision if tokens else -1, tokens)


def bottom_lines(tokens: bool) -> float:
    """Height of the lower sheet at scale 1."""
    return LEGEND_LINES + (STRIP_LINES if tokens else 0.0)


def paint_bottom(scene: ReplicaScene, width: int, scale: float, *, tokens: bool) -> Bytes:
    """Legend, requests and, where wanted, the token strip: RGBA."""
    canvas = Canvas(width, round(bottom_lines(tokens) * scale))
    used = _requests(canvas, scene, width, scale)
    _legend(canvas, scene, width, scale, used)
    if tokens:
        _strip(canvas, scene, width, LEGEND_LINES * scale, scale)
    return canvas.pixels


@dataclass(frozen=True, slots=True)
class Entry:
    """What the light of one node kind means.

    Attributes
    ----------
    name : of the node kind.
    channel : the quantity that is drawn.
    display : the two ends of its scale; None while the stream has none.
    """

    name: str
    channel: str
    display: Display | None

    @property
    def text(self) -> str:
        """The line beside the colour bar: node kind, channel, formula and unit."""
        return f"{self.name}:  {self.channel} = {formula(self.channel)}  [{BY_NAME[self.channel].unit}]"


def legend(scene: ReplicaScene) -> tuple[Entry, Entry]:
    """The node kinds of a replica."""
    heads = Entry("heads", "head_write", scene.display("head"))
    if scene.topology.experts:
        return heads, Entry("experts", "expert_weights", Display(0.0, 1.0))
    return heads, Entry("FFN", "ffn_write", scene.display("ffn"))


def _legend(canvas: Canvas, scene: ReplicaScene, width: int, scale: float, left: float) -> None:
    """One colour bar per node kind: the channel with its formula and unit, and the ends of its scale."""
    bar = 118 * scale
    end = width - MARGIN * scale
    for row, entry in enumerate(legend(scene)):
        y = (6 + 18 * row) * scale
        _bar(canvas, entry.display, end, y, bar, scale)
        at = end - bar - 52 * scale
        canvas.text(at, y, fitted(entry.text, at - left - 12 * scale, 12 * scale), 12 * scale, TEXT, align=1)
    text = fitted(note(scene), end - left - 12 * scale, 11 * scale)
    canvas.text(end, 43 * scale, text, 11 * scale, DIM, align=1)


def _bar(canvas: Canvas, display: Display | None, end: float, y: float, bar: float, scale: float) -> None:
    """The colour bar, its ends written at both sides; hatched where there is no scale yet."""
    from_x, height = end - bar - 4 * scale, 8 * scale
    if display is None:
        canvas.picture(from_x - 36 * scale, y + 4 * scale, _hatch(round(bar - 20 * scale), round(height)))
        canvas.text(end, y, "no scale", 11 * scale, DIM, align=1)
        return
    colors = (bar_colors() * 255.0 + 0.5).astype(np.uint8)
    columns = np.linspace(0, len(colors) - 1, max(2, round(bar - 40 * scale))).round().astype(int)
    canvas.picture(from_x, y + 4 * scale, np.repeat(colors[columns][None], max(2, round(height)), axis=0))
    canvas.text(from_x - 5 * scale, y, figure(display.low), 11 * scale, TEXT, align=1)
    canvas.text(end, y, figure(display.high), 11 * scale, TEXT, align=1)


def _requests(canvas: Canvas, scene: ReplicaScene, width: int, scale: float) -> float:
    """The colours of the requests under way, as many as there is room for; where they end."""
    column, rows = 118 * scale, 3
    places = rows * max(1, int((0.34 * width - MARGIN * scale) // column))
    requests = scene.requests
    named = requests if len(requests) <= places else requests[-(places - 1) :]
    for place, (request_id, color) in enumerate(named):
        x, y = MARGIN * scale + place // rows * column, (6 + 18 * (place % rows)) * scale
        canvas.box(x, y + 7 * scale, 14 * scale, 3 * scale, _rgb(color))
        name = fitted(short(request_id), column - 28 * scale, 12 * scale)
        canvas.text(x + 20 * scale, y, name, 12 * scale, TEXT)
    if len(named) < len(requests):
        x, y = MARGIN * scale + (places - 1) // rows * column, (6 + 18 * (rows - 1)) * scale
        canvas.text(x + 20 * scale, y, f"+ {len(requests) - len(named)} more", 12 * scale, DIM)
    return MARGIN * scale + math.ceil(min(len(requests), places) / rows) * column


def strip_rows(scene: ReplicaScene) -> list[list[StripToken]]:
    """The last tokens by sequence: of the `STRIP_ROWS` that spoke last, in the order in which they began."""
    rows: dict[tuple[str, int], list[StripToken]] = {}
    for token in scene.strip:
        rows.setdefault((token.request_id, token.sequence), []).append(token)
    speaking = sorted(rows, key=lambda key: rows[key][-1].at_s)[-STRIP_ROWS:]
    return [row for key, row in rows.items() if key in speaking]


def _strip(canvas: Canvas, scene: ReplicaScene, width: int, top: float, scale: float) -> None:
    """A row per sequence, the newest token at the right: text in the request's colour, probability below."""
    canvas.box(MARGIN * scale, top + 2 * scale, width - 2 * MARGIN * scale, 1, FIELD, 0.7)
    rows = strip_rows(scene)
    newest_s = max((row[-1].at_s for row in rows), default=0.0)
    for index, row in enumerate(rows):
        y = top + (9 if len(rows) == 1 else 6 + STRIP_PITCH * index) * scale
        size = (15 if len(rows) == 1 else 13) * scale
        left = _row(canvas, row, width, y, size, scale, is_newest=row[-1].at_s == newest_s)
        if index == 0 and scene.tokens_shown != "text":
            words = "token text is off" if scene.tokens_shown == "off" else "token text is off: ids"
            if left - MARGIN * scale > width_of(words, 11 * scale):
                canvas.text(MARGIN * scale, y + 3 * scale, words, 11 * scale, DIM)
    if not rows:
        canvas.text(MARGIN * scale, top + 9 * scale, "no token yet", 15 * scale, DIM)


def _row(
    canvas: Canvas,
    row: list[StripToken],
    width: int,
    y: float,
    size: float,
    scale: float,
    *,
    is_newest: bool,
) -> float:
    """One sequence's tokens from the right, as many as fit; where they begin."""
    x = width - MARGIN * scale
    for token in reversed(row):
        text, known = token_text(token)
        room = width_of(text, size) + 8 * scale
        if x - room < MARGIN * scale:
            break
        x -= room
        color = _rgb(token.color)
        ink: Color = color if known else (round(0.6 * color[0]), round(0.6 * color[1]), round(0.6 * color[2]))
        is_last = is_newest and token is row[-1]
        canvas.text(x + 4 * scale, y, text, size, WHITE if is_last and known else ink)
        _probability(canvas, token, x + 3 * scale, y + size + 2 * scale, room - 6 * scale, scale)
    return x


def _probability(canvas: Canvas, token: StripToken, x: float, y: float, room: float, scale: float) -> None:
    canvas.box(x, y, room, 2.5 * scale, FIELD, 0.8)
    if token.probability is not None:
        canvas.box(x, y, max(1.0, room * token.probability), 2.5 * scale, _rgb(token.color))


def token_text(token: StripToken) -> tuple[str, bool]:
    """What the strip says of a token, and whether it is its text: else its id, or its position."""
    if token.text is not None:
        shown = token.text.replace("\n", "↵").replace("\t", "→").replace("\r", "")
        return (shown.strip() or ("␣" if shown else "∅")), True
    return (f"#{token.token_id}" if token.token_id >= 0 else f"·{token.position}"), False


def formula(channel: str) -> str:
    """The formula of a channel in print."""
    text = BY_NAME[channel].formula.replace("||", "‖").replace("o_h", "oₕ").replace("r+", "r⁺")
    return "gate weight" if channel == "expert_weights" else text


def note(scene: ReplicaScene) -> str:
    """What else must be said of the picture."""
    parts = [f"light fades over {FADES_OVER_S:g} s", "a bolt's shape is decoration"]
    if not scene.reads_captured:
        parts.insert(0, "KV reads not captured")
    return "  ·  ".join(parts)


def short(request_id: str) -> str:
    """The end of a request's name, where names of one run differ."""
    return request_id if len(request_id) <= 12 else "…" + request_id[-8:]


def figure(value: float) -> str:
    """A bound of a scale, with two digits that count."""
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"
    return f"{value:.0e}"


def _hatch(width: int, height: int) -> Bytes:
    y, x = np.mgrid[0 : max(2, height), 0 : max(2, width)]
    ink = ((x + y) % 6 < 2)[..., None]
    return np.where(ink, np.array([102, 104, 112]), np.array([14, 15, 18])).astype(np.uint8)


def _rgb(index: int) -> Color:
    r, g, b = REQUESTS[index][1]
    return round(r * 255), round(g * 255), round(b * 255)


def _rounded(value: float | None) -> int | None:
    return None if value is None else max(1, round(value))
