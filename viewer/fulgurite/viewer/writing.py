"""The writings over a replica's picture: title and figures above, legend, requests and token strip below.

Pure: what is painted follows from the scene. Two sheets per viewport, each painted again only when what it
says changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fulgurite.viewer.colors import Display, bar_colors, push_colors
from fulgurite.viewer.contribution import LARGEST_LOGITS, LINEAR_LOGITS, Shares, hue
from fulgurite.viewer.glow import FADES_OVER_S
from fulgurite.viewer.hud import account_line, badge, memory_line, model_line, speed_line
from fulgurite.viewer.lettering import Canvas, Color, fitted, width_of
from fulgurite.wire.channels import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Hashable

    from numpy.typing import NDArray

    from fulgurite.viewer.lettering import Bytes
    from fulgurite.viewer.scene import Captured, ReplicaScene, StripToken

WHITE: Color = (238, 242, 252)
TEXT: Color = (168, 184, 226)
DIM: Color = (112, 126, 168)
WARN: Color = (240, 176, 80)
FIELD: Color = (58, 66, 96)
VERIFIED: Color = (112, 200, 160)

TOP_LINES, LEGEND_LINES, STRIP_LINES, SHARES_LINES = 84.0, 62.0, 54.0, 38.0
STRIP_ROWS, STRIP_PITCH = 2, 22.0
MARGIN = 20.0


def top_key(scene: ReplicaScene, left_out: str = "") -> Hashable:
    """Changes when the upper sheet must be painted again."""
    return scene.hud_revision, scene.title, _rounded(scene.tokens_per_chain), scene.focus, left_out


def paint_top(scene: ReplicaScene, width: int, scale: float, left_out: str = "") -> Bytes:
    """Title and figures, and what was left out to be in time: RGBA, `TOP_LINES * scale` high."""
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
    memory = memory_line(hud, scene.tokens_per_chain, left_out)
    if scene.focus.text:
        memory = (
            f"only {scene.focus.text}  ·  {memory}"
            if not scene.focus.is_hidden
            else f"{scene.focus.text}  ·  {memory}"
        )
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


def bottom_key(scene: ReplicaScene, tokens: bool, contribution: bool = False) -> Hashable:
    """Changes when the lower sheet must be painted again."""
    legend = scene.scale, note(scene, contribution), scene.carpet.tokens_per_cell, tuple(scene.requests)
    shares = scene.shares if contribution else None
    strip = scene.strip_revision if tokens else -1
    return (legend, scene.palette.name, strip, tokens, contribution, shares)


def bottom_lines(tokens: bool, contribution: bool = False) -> float:
    """Height of the lower sheet at scale 1."""
    return LEGEND_LINES + (SHARES_LINES if contribution else 0.0) + (STRIP_LINES if tokens else 0.0)


def paint_bottom(
    scene: ReplicaScene, width: int, scale: float, *, tokens: bool, contribution: bool = False
) -> Bytes:
    """Legend, requests and, where wanted, the shares of the newest token and the token strip: RGBA."""
    canvas = Canvas(width, round(bottom_lines(tokens, contribution) * scale))
    used = _requests(canvas, scene, width, scale)
    _legend(canvas, scene, width, scale, used, contribution)
    if contribution:
        _shares(canvas, scene, width, LEGEND_LINES * scale, scale)
    if tokens:
        _strip(canvas, scene, width, bottom_lines(False, contribution) * scale, scale)
    return canvas.pixels


@dataclass(frozen=True, slots=True)
class Entry:
    """What the light of one node kind means.

    Attributes
    ----------
    name : of the node kind.
    channel : the quantity that is drawn.
    display : the two ends of its scale; None while the stream has none.
    is_push : whether the bar shows hues of a signed push; its scale is `contribution.hue`.
    """

    name: str
    channel: str
    display: Display | None
    is_push: bool = False

    @property
    def text(self) -> str:
        """The line beside the colour bar: node kind, channel, formula and unit."""
        return f"{self.name}:  {self.channel} = {formula(self.channel)}  {self._unit}"

    @property
    def short_text(self) -> str:
        """The same without the formula, where there is no room for it: the page's help has it."""
        return f"{self.name}:  {self.channel}  {self._unit}"

    @property
    def shortest_text(self) -> str:
        """Channel and unit alone."""
        return f"{self.channel}  {self._unit}"

    @property
    def _unit(self) -> str:
        """The unit, and that the bar is logarithmic where it is."""
        is_log = self.display is not None and self.display.is_log
        return f"[{BY_NAME[self.channel].unit}]" + (", log" if is_log else "")


def _longest(texts: tuple[str, ...], room: float, pixels: float) -> str:
    """The first of `texts` that fits, else as much of the last as does."""
    return next((text for text in texts if width_of(text, pixels) <= room), fitted(texts[-1], room, pixels))


def legend(scene: ReplicaScene, contribution: bool = False) -> tuple[Entry, Entry]:
    """The node kinds of a replica: what their light means, or in the contribution view their hue."""
    if contribution:
        block = "experts, sum" if scene.topology.experts else "FFN"
        return (
            Entry("heads", "head_contribution", None, is_push=True),
            Entry(block, "ffn_contribution", None, is_push=True),
        )
    heads = Entry("heads", "head_write", scene.display("head"))
    if scene.topology.experts:
        return heads, Entry("experts", "expert_weights", scene.display("expert"))
    return heads, Entry("FFN", "ffn_write", scene.display("ffn"))


def _legend(
    canvas: Canvas, scene: ReplicaScene, width: int, scale: float, left: float, contribution: bool
) -> None:
    """One colour bar per node kind: the channel with its formula and unit, and the ends of its scale."""
    bar = 118 * scale
    end = width - MARGIN * scale
    for row, entry in enumerate(legend(scene, contribution)):
        y = (6 + 18 * row) * scale
        if entry.is_push:
            _push_bar(canvas, scene.contributions, end, y, bar, scale)
        else:
            _bar(canvas, entry.display, end, y, bar, scale, scene.palette.nodes)
        at = end - bar - 52 * scale
        text = _longest(
            (entry.text, entry.short_text, entry.shortest_text), at - left - 12 * scale, 12 * scale
        )
        canvas.text(at, y, text, 12 * scale, TEXT, align=1)
    text = fitted(note(scene, contribution), end - left - 12 * scale, 11 * scale)
    canvas.text(end, 43 * scale, text, 11 * scale, DIM, align=1)


def _bar(
    canvas: Canvas,
    display: Display | None,
    end: float,
    y: float,
    bar: float,
    scale: float,
    table: NDArray[np.float32],
) -> None:
    """The colour bar, its ends written at both sides; hatched where there is no scale yet."""
    from_x, height = end - bar - 4 * scale, 8 * scale
    if display is None:
        canvas.picture(from_x - 36 * scale, y + 4 * scale, _hatch(round(bar - 20 * scale), round(height)))
        canvas.text(end, y, "no scale", 11 * scale, DIM, align=1)
        return
    colors = (bar_colors(table) * 255.0 + 0.5).astype(np.uint8)
    columns = np.linspace(0, len(colors) - 1, max(2, round(bar - 40 * scale))).round().astype(int)
    canvas.picture(from_x, y + 4 * scale, np.repeat(colors[columns][None], max(2, round(height)), axis=0))
    canvas.text(from_x - 5 * scale, y, figure(display.low), 11 * scale, TEXT, align=1)
    canvas.text(end, y, figure(display.high), 11 * scale, TEXT, align=1)


def _push_bar(canvas: Canvas, captured: Captured, end: float, y: float, bar: float, scale: float) -> None:
    """The hues from the strongest push against to the strongest towards; hatched where none is captured."""
    from_x, height = end - bar - 4 * scale, 8 * scale
    if captured.of and not captured.tokens:
        canvas.picture(from_x - 36 * scale, y + 4 * scale, _hatch(round(bar - 42 * scale), round(height)))
        canvas.text(end, y, "not captured", 11 * scale, WARN, align=1)
        return
    colors = (push_colors()[:, :3] * 255.0 + 0.5).astype(np.uint8)
    columns = np.linspace(0, len(colors) - 1, max(2, round(bar - 40 * scale))).round().astype(int)
    canvas.picture(from_x, y + 4 * scale, np.repeat(colors[columns][None], max(2, round(height)), axis=0))
    canvas.text(from_x - 5 * scale, y, f"−{LARGEST_LOGITS:g}", 11 * scale, TEXT, align=1)
    canvas.text(end, y, f"+{LARGEST_LOGITS:g}", 11 * scale, TEXT, align=1)


def shares_text(shares: Shares | None, captured: Captured) -> tuple[tuple[str, ...], bool]:
    """What is said of the newest token's shares, longest first, and whether it is a warning."""
    if shares is None or (captured.of and not captured.tokens and shares.is_verified):
        return ("contributions not captured",), True
    token = f"“{printed(shares.token)}”" if shares.token is not None else f"position {shares.position}"
    if not shares.is_verified:
        found = (
            "was not measured"
            if shares.residue is None
            else f"{shares.residue:.0e} σ is over {shares.bound:g}"
        )
        return (f"{token}: unverified, its residue {found}", f"unverified, residue {found}"), True
    parts = "  ".join(f"{name} {_share(shares, value)}" for name, value in shares.parts)
    whole = "100 %" if shares.percent(0.0) is not None else "too small for shares"
    sum_of = f"{shares.logit:+.2f} = {whole}:  {parts}".replace("-", "−")
    return (
        f"{token}: logit − mean {sum_of}",
        f"{token}: {sum_of}",
        f"{token}: {parts.replace('embedding', 'emb.')}",
    ), False


def _share(shares: Shares, value: float) -> str:
    percent = shares.percent(value)
    return (
        f"{value:+.2f}" if percent is None else f"{percent:+.0f} %".replace("-0 %", "+0 %").replace("-", "−")
    )


def _shares(canvas: Canvas, scene: ReplicaScene, width: int, top: float, scale: float) -> None:
    """How the newest token's logit is made up: what pushed towards it to the right of zero, the rest left."""
    left, room = MARGIN * scale, width - 2 * MARGIN * scale
    texts, is_warning = shares_text(scene.shares, scene.contributions)
    residue = "" if scene.shares is None or is_warning else f"residue {scene.shares.residue:.0e} σ"
    taken = canvas.text(left + room, top + 19 * scale, residue, 12 * scale, DIM, align=1)
    text = _longest(texts, room - taken - 10 * scale, 12 * scale)
    canvas.text(left, top + 19 * scale, text, 12 * scale, WARN if is_warning else TEXT)
    y, height = top + 3 * scale, 13 * scale
    if is_warning or scene.shares is None:
        canvas.picture(left, y, _hatch(round(room), round(height)))
        return
    for name, from_share, to_share, logits in spans(scene.shares):
        x, long = left + from_share * room, (to_share - from_share) * room
        if long < 1.0:
            continue
        color = push_colors()[round(127.5 * (1.0 + float(hue(logits)))), :3]
        ink: Color = (round(255 * color[0]), round(255 * color[1]), round(255 * color[2]))
        canvas.box(x, y, max(1.0, long - 1.5 * scale), height, ink)
        if width_of(name, 11 * scale) + 8 * scale < long:
            canvas.text(x + 4 * scale, y - 1 * scale, name, 11 * scale, (12, 14, 22))
    zero = left + _zero(scene.shares) * room
    canvas.box(zero - scale, y - 2 * scale, 2 * scale, height + 4 * scale, WHITE)


def spans(shares: Shares) -> list[tuple[str, float, float, float]]:
    """The bar: (name, from, to, logits) of each part, as shares of its length; negative parts end at zero."""
    least = sum(abs(value) for _, value in shares.parts) or 1.0
    low = high = _zero(shares)
    found = []
    for name, value in shares.parts:
        if value < 0:
            found.append((name, low + value / least, low, value))
            low += value / least
        else:
            found.append((name, high, high + value / least, value))
            high += value / least
    return found


def _zero(shares: Shares) -> float:
    """Where zero lies on the bar, 0 … 1."""
    least = sum(abs(value) for _, value in shares.parts) or 1.0
    return -sum(value for _, value in shares.parts if value < 0) / least


def _requests(canvas: Canvas, scene: ReplicaScene, width: int, scale: float) -> float:
    """The colours of the requests under way, as many as there is room for; where they end."""
    column, rows = 118 * scale, 3
    places = rows * max(1, int((0.34 * width - MARGIN * scale) // column))
    requests = scene.requests
    named = requests if len(requests) <= places else requests[-(places - 1) :]
    for place, (request_id, color) in enumerate(named):
        x, y = MARGIN * scale + place // rows * column, (6 + 18 * (place % rows)) * scale
        canvas.box(x, y + 7 * scale, 14 * scale, 3 * scale, ink_of(scene, color))
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
        left = _row(canvas, scene, row, width, y, size, scale, is_newest=row[-1].at_s == newest_s)
        if index == 0 and scene.tokens_shown != "text":
            words = "token text is off" if scene.tokens_shown == "off" else "token text is off: ids"
            if left - MARGIN * scale > width_of(words, 11 * scale):
                canvas.text(MARGIN * scale, y + 3 * scale, words, 11 * scale, DIM)
    if not rows:
        canvas.text(MARGIN * scale, top + 9 * scale, "no token yet", 15 * scale, DIM)


def _row(
    canvas: Canvas,
    scene: ReplicaScene,
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
        # a piece of a word stands close to the piece before it
        gap = (8 if not known or (token.text or "")[:1].isspace() else 2) * scale
        room = width_of(text, size) + gap
        if x - room < MARGIN * scale:
            break
        x -= room
        color = ink_of(scene, token.color)
        ink: Color = color if known else (round(0.6 * color[0]), round(0.6 * color[1]), round(0.6 * color[2]))
        is_last = is_newest and token is row[-1]
        canvas.text(x + gap - scale, y, text, size, WHITE if is_last and known else ink)
        _probability(canvas, token, color, x + gap - scale, y + size + 2 * scale, room - gap, scale)
    return x


def _probability(
    canvas: Canvas, token: StripToken, color: Color, x: float, y: float, room: float, scale: float
) -> None:
    canvas.box(x, y, room, 2.5 * scale, FIELD, 0.8)
    if token.probability is not None:
        canvas.box(x, y, max(1.0, room * token.probability), 2.5 * scale, color)


def token_text(token: StripToken) -> tuple[str, bool]:
    """What the strip says of a token, and whether it is its text: else its id, or its position."""
    if token.text is not None:
        return printed(token.text), True
    return (f"#{token.token_id}" if token.token_id >= 0 else f"·{token.position}"), False


def printed(text: str) -> str:
    """A token's text on one line, never empty."""
    shown = text.replace("\n", "↵").replace("\t", "→").replace("\r", "")
    return shown.strip() or ("␣" if shown else "∅")


def formula(channel: str) -> str:
    """The formula of a channel in print."""
    text = BY_NAME[channel].formula.replace("||", "‖").replace("o_h", "oₕ").replace("r+", "r⁺")
    for plain, print_ in (("<", ""), (">", ""), (", g*(", " · g ("), (" - ", " − "), ("u_mean", "ū")):
        text = text.replace(plain, print_)
    return "gate weight" if channel == "expert_weights" else text


def note(scene: ReplicaScene, contribution: bool = False) -> str:
    """What else must be said of the picture."""
    if contribution:
        captured = scene.contributions
        parts = [
            f"hue: push on the emitted token, logarithmic over {LINEAR_LOGITS:g}",
            "brightness: head_write, ffn_write",
        ]
        if captured.of and not captured.tokens:
            parts.insert(0, "hatched: contributions not captured")
        elif captured.tokens < captured.of:
            parts.insert(0, f"contributions: {rate_text(captured)}, the rest hatched")
        return "  ·  ".join(parts)
    return "  ·  ".join(
        [*_reads(scene), f"light fades over {FADES_OVER_S:g} s", "a bolt's shape is decoration"]
    )


def _reads(scene: ReplicaScene) -> list[str]:
    """Of how many tokens is known where heads looked, and what a strike's width means."""
    captured, layers = scene.reads, sum(heads > 0 for heads in scene.topology.layer_heads)
    if not captured.tokens:
        return [] if scene.latest is not None and not captured.of else ["KV reads not captured"]
    words = f"KV reads: {rate_text(captured)}"
    if captured.layers < layers - 0.5:
        words += f", {captured.layers:.0f} of {layers} layers"
    return [words, "strike width: attention weight 0 … 1"]


def rate_text(captured: Captured) -> str:
    """How often: ``1 token in 2``."""
    if captured.tokens == captured.of:
        return "every token"
    if not captured.tokens:
        return "not captured"
    every = captured.of / captured.tokens
    return f"1 token in {every:.0f}" if every >= 1.75 else f"{100 / every:.0f} % of the tokens"


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


def ink_of(scene: ReplicaScene, index: int) -> Color:
    """The colour of a request in a replica's palette, as bytes."""
    r, g, b = scene.request_color(index)
    return round(r * 255), round(g * 255), round(b * 255)


def _rounded(value: float | None) -> int | None:
    return None if value is None else max(1, round(value))
