"""The scene as plain arrays: what of each replica is lit now, and the storm of all of them.

No VTK, no clock, no network.

The use of it::

    scene = ReplicaScene(topology, key=key, title="stories-5m", tokens_shown="text")
    scene.set_scale(scale)                 # without a scale nothing can be drawn to scale: nodes stay hatched
    scene.apply(segment.block, segment.at_s)  # tokens that are due, each at its time on the time axis
    scene.set_hud(Hud(...)); scene.mark("live")
    storm = Storm(); storm.add(scene)
    storm.camera.show(0)                   # camera.PRESETS; also camera.orbit(dx, dy), .zoom(f), .pan(dx, dy)
    storm.show(None)                       # every replica; storm.show([key]): some of them
    storm.advance(playhead_s)              # once per picture; after a seek clear, then apply the past
    pixels = renderer.render(playhead_s, clock_s)   # calls storm.advance itself

The picture is a function of the applied blocks and of the time that `advance` is given: the same stream at
the same times gives the same picture. Layers light up one after the other over `SPREAD_S`, a display of the
order of computation (the real pass takes milliseconds).

Shape letters: L layers, H heads, n frames.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fulgurite.viewer.bolts import (
    ARCS,
    LIFE_S,
    Bolts,
    Kind,
    Reads,
    chain,
    frame_seed,
    heads_and_strikes,
)
from fulgurite.viewer.camera import CameraRig, Pick
from fulgurite.viewer.carpet import Carpet
from fulgurite.viewer.colors import Display, RequestColors, display_of, expert_display
from fulgurite.viewer.contribution import Shares, shares_of
from fulgurite.viewer.focus import EVERYTHING, Focus
from fulgurite.viewer.glow import Glow
from fulgurite.viewer.hud import Hud
from fulgurite.viewer.layout import CELLS, Layout
from fulgurite.viewer.palettes import Palette, palettes
from fulgurite.viewer.pulses import Pulses
from fulgurite.viewer.steplight import StepLight
from fulgurite.wire.topology import Topology

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.wire.frame import FrameBlock, RequestEvent, Scale

    Floats = NDArray[np.float32]

SPREAD_S = 0.45
STRIP_TOKENS = 160
STRIP_SEQUENCES = 3  # that the strip follows; in a storm there are hundreds
STRIP_HOLD_S = 1.5
FEWEST_SLOTS = 96
REFUSED_FOR_S = 0.03
RATE_OVER_S = 3.0
PACE_OVER_S = 0.5  # of the stream: how fast tokens come, for how rich a chain may be
MOST_CHAINS = 4
PROMPTS_KEPT = 4096
ORIGIN_S = 256.0  # the shader's clock restarts so often: float32 keeps 0.03 ms


@dataclass(frozen=True, slots=True)
class StripToken:
    """One emitted token of the token strip.

    Attributes
    ----------
    text : as emitted, or None where token text is not switched on.
    token_id : -1 where token ids are not switched on.
    color : index into `colors.REQUESTS`.
    probability : exp(logprob), or None where it was not measured.
    has_chain : whether its lightning was drawn.
    """

    request_id: str
    sequence: int
    position: int
    text: str | None
    token_id: int
    color: int
    probability: float | None
    at_s: float
    has_chain: bool


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the tokens of one step brought: how many, how many chains, and what was captured of them."""

    at_s: float
    tokens: int
    drawn: int
    read: int
    layers_read: int
    pushed: int


@dataclass(frozen=True, slots=True)
class Captured:
    """How much of the last seconds' tokens carried a channel of level `deep`.

    Attributes
    ----------
    tokens, of : tokens that did, of so many.
    layers : mean layers per such token in which it was measured.
    """

    tokens: int
    of: int
    layers: float


class ReplicaScene:
    """What is drawn of one replica.

    Parameters
    ----------
    topology : Topology
    title : str
        Heading of its viewport; empty: the model's name.
    key : str
        Its name to the storm; two scenes of one storm need two keys.
    tokens_shown : ``off``, ``ids`` or ``text``
        What of a token the replica lets out; decides what the strip says where it has no text.
    slots : int
        Most live arcs.

    Attributes
    ----------
    layout : Layout
    nodes : Glow
        Heads, then plates of each layer, shape (L, H + E), E = 1 for a dense FFN. One grid, so that a pass
        lights what it reaches in one go.
    heads, plates : Lights
        Its two parts. Of plates, dense: the FFN's activity; with experts: their gate weights.
    carpet : Carpet
    bolts : Bolts
    strip : deque of StripToken
        The last tokens of the few sequences that it follows, oldest first.
    strip_revision, hud_revision : int
        Rise when the strip, or a figure or the scale, changed.
    shares : Shares or None
        What made up the logit of the newest token whose contributions were captured.
    latest, latest_deep : (FrameBlock, row, at_s) or None
        The newest frame, and the newest one of level `deep`: for who points at a node.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        title: str = "",
        key: str = "",
        tokens_shown: str = "off",
        slots: int = ARCS,
    ) -> None:
        self.topology = topology
        self.key = key or title or topology.model_name
        self.title = title or topology.model_name
        self.tokens_shown = tokens_shown
        self.layout = Layout.for_topology(topology)
        heads, plates = topology.heads, self.layout.plates.shape[1]
        self.nodes = Glow((topology.layers, heads + plates))
        self.heads, self.plates = self.nodes.columns(0, heads), self.nodes.columns(heads, heads + plates)
        self.carpet = Carpet(topology.layers, CELLS)
        self.bolts = Bolts(slots)
        self.strip: deque[StripToken] = deque(maxlen=STRIP_TOKENS)
        self.strip_revision = 0
        self.hud_revision = 0
        self.hud = Hud(state="waiting")
        self.scale: Scale | None = None
        self.head_values = np.full((topology.layers, topology.heads), np.nan, np.float32)
        self.ffn_values = np.full(topology.layers, np.nan, np.float32)
        self._absent = np.arange(topology.heads) >= np.asarray(topology.layer_heads)[:, None]
        self._colors = RequestColors()
        self._last_token_s: dict[str, float] = {}
        self._last_chain_s: dict[str, float] = {}
        self._followed: dict[tuple[str, int], float] = {}  # sequence: when its newest token was played
        self._row_free_s = -math.inf  # not before then
        self._pulses = Pulses(topology.layers, heads, plates)
        self._pace: deque[tuple[float, int]] = deque()
        self._seen: deque[_Seen] = deque()
        self._sums = [0, 0, 0, 0, 0]  # over what was seen: tokens, chains, read, layers read, pushed
        self.focus = EVERYTHING
        self.palette = palettes()[0]
        self._refused_until_s = -math.inf
        self.shares: Shares | None = None
        self.latest: tuple[FrameBlock, int, float] | None = None
        self.latest_deep: tuple[FrameBlock, int, float] | None = None
        self._texts: dict[tuple[str, int], dict[int, str]] = {}
        self._prompts: dict[str, tuple[int, ...]] = {}

    # what it is told

    def set_scale(self, scale: Scale | None) -> None:
        """The display scale from now on. What is lit keeps the light it was given."""
        if scale != self.scale:
            self.scale = scale
            self.hud_revision += 1

    def set_hud(self, hud: Hud) -> None:
        """The figures from now on."""
        if hud != self.hud:
            self.hud = hud
            self.hud_revision += 1

    def mark(self, state: str) -> None:
        """What state the replica is in: a key of `hud.STATE_WORDS`."""
        if state != self.hud.state:
            self.set_hud(replace(self.hud, state=state))

    def set_palette(self, palette: Palette) -> None:
        """Other colours from now on; bolts that live keep theirs."""
        if palette.name != self.palette.name:
            self.palette = palette
            self.hud_revision += 1
            self.strip_revision += 1

    def request_color(self, index: int) -> tuple[float, float, float]:
        """The colour of a request, RGB from 0 to 1, by the index that `requests` gives."""
        text = self.palette.requests[index % len(self.palette.requests)]
        return int(text[1:3], 16) / 255, int(text[3:5], 16) / 255, int(text[5:7], 16) / 255

    def set_slots(self, slots: int) -> None:
        """How many arcs may live from now on."""
        if slots != len(self.bolts):
            self.bolts.resize(slots)

    def clear(self) -> None:
        """Nothing was applied: for a seek, before the past of the new place is applied."""
        for part in (self.nodes, self.carpet, self.bolts, self.strip, self._pulses):
            part.clear()
        self._seen.clear()
        self._pace.clear()
        self._followed.clear()
        self._row_free_s = -math.inf
        self._texts.clear()
        self._sums = [0, 0, 0, 0, 0]
        self.shares = self.latest = self.latest_deep = None
        self.head_values[:] = self.ffn_values[:] = np.nan
        self._last_token_s.clear()
        self._last_chain_s.clear()
        self._colors = RequestColors()
        self._refused_until_s = -math.inf
        self.strip_revision += 1

    def event(self, event: RequestEvent, at_s: float) -> None:  # noqa: ARG002
        """What happened to a request: one that ended frees its colour and its cache."""
        if event.kind == "started":
            self._prompts[event.request_id] = event.prompt_tokens_per_row or (event.prompt_tokens,)
            if len(self._prompts) > PROMPTS_KEPT:  # of requests whose end was never told
                self._prompts.pop(next(iter(self._prompts)))
        if event.kind in ("finished", "aborted"):
            self._end(event.request_id)

    def set_focus(self, focus: Focus) -> None:
        """What is looked at from now on; who sets it applies the past anew."""
        self.focus = focus
        heads, blocks = focus.hidden_heads(self.topology), focus.hidden_blocks(self.topology)
        hidden = np.zeros(self.nodes.shape, np.bool_)
        if heads is not None:
            hidden[:, : self.topology.heads] = heads
        if blocks is not None:
            hidden[:, self.topology.heads :] = blocks[:, None]
        self.nodes.hide(hidden)
        self.hud_revision += 1

    def apply(
        self, block: FrameBlock, at_s: float | NDArray[np.float64], *, spread_s: float = SPREAD_S
    ) -> None:
        """Frames that become due at `at_s`: one time for all, or one per frame (n,), never decreasing."""
        times = np.broadcast_to(np.asarray(at_s, np.float64), (len(block),))
        rows = self.focus.rows(block)
        if rows is not None:
            block, times = block.select(rows), times[rows]
        if not len(block):
            return
        light = StepLight.of(block, self.topology, self.display)
        drawn: set[int] = set()
        for low, high in _steps(times):
            self._pulses.add(light.pulse(low, high, float(times[low]), spread_s))
            drawn |= self._tokens(block, low, high, float(times[low]), light, spread_s)
        self._write_strip(block, times, drawn)
        self._remember(block, float(times[-1]))
        self.strip_revision += 1

    # what follows from it

    def advance(self, now_s: float, origin_s: float = 0.0) -> None:
        """Light what is due by `now_s`."""
        self.nodes.move_origin(origin_s)
        self._pulses.advance(now_s, self.nodes)
        self.carpet.expire(now_s)
        self._forget(now_s)
        self.bolts.advance(now_s, origin_s)

    @property
    def tokens_per_chain(self) -> float | None:
        """How many tokens one drawn chain stands for, over the last seconds; None where none was drawn."""
        tokens, chains = self._sums[:2]
        return tokens / chains if chains else None

    def front_x(self, now_s: float) -> float | None:
        """Where along the layers the newest light is, in the layout's unit; None: none is under way."""
        share = self._pulses.front(now_s)
        spine = self.layout.spine
        return None if share is None else float(spine[0, 0] + share * (spine[-1, 0] - spine[0, 0]))

    @property
    def chains(self) -> int:
        """Chains drawn over the last seconds."""
        return self._sums[1]

    @property
    def requests(self) -> list[tuple[str, int]]:
        """The requests under way with the index of their colour, in the order in which they came."""
        return [(request_id, self._colors.of(request_id)) for request_id in self._last_token_s]

    @property
    def reads_captured(self) -> bool:
        """Whether a frame of the last seconds said where a head looked: else the cells send no strikes."""
        return self._sums[2] > 0

    @property
    def reads(self) -> Captured:
        """Of how many tokens of the last seconds is known where heads looked, and in how many layers."""
        of, _, tokens, layers, _ = self._sums
        return Captured(tokens, of, layers / tokens if tokens else 0.0)

    @property
    def contributions(self) -> Captured:
        """Of how many tokens of the last seconds the contributions were captured and are verified."""
        of, tokens = self._sums[0], self._sums[4]
        return Captured(tokens, of, float(self.topology.layers) if tokens else 0.0)

    def text_at(self, request_id: str, sequence: int, position: int) -> str | None:
        """The token at a position of a sequence, if it was emitted here with its text."""
        return self._texts.get((request_id, sequence), {}).get(position)

    def prompt_tokens(self, request_id: str, sequence: int) -> int | None:
        """How long the prompt of a sequence was; None where that was not said."""
        rows = self._prompts.get(request_id)
        if not rows:
            return None
        return rows[sequence] if sequence < len(rows) else rows[-1]

    def display(self, kind: str) -> Display | None:
        """The display function of a node kind (`head`, `ffn`, `expert`); None: the stream has no scale."""
        if kind == "expert":
            return expert_display(self.topology.experts_per_token)
        return display_of(self.scale, kind)

    # inside

    def _tokens(
        self, block: FrameBlock, low: int, high: int, at_s: float, light: StepLight, spread_s: float
    ) -> set[int]:
        """The tokens of one step: cache, chains; the rows whose chain was drawn."""
        index = block.columns["request_index"][low:high].tolist()
        names = [block.requests[i].request_id for i in index]
        for request_id in names:
            self._last_token_s.pop(request_id, None)
            self._last_token_s[request_id] = at_s  # who was silent longest stands first
        self._cache(block, low, high, names, at_s)
        self._pace.append((at_s, high - low))
        while self._pace[0][0] < at_s - PACE_OVER_S:
            self._pace.popleft()
        read = self._layers_read(block, low, high)
        drawn = self._strikes(block, low, names, at_s, light, spread_s, read)
        tokens_read = int(read.any(axis=1).sum())
        pushed = light.pushed(low, high)
        self._count(_Seen(at_s, high - low, len(drawn), tokens_read, int(read.sum()), pushed), 1)
        return drawn

    def _cache(self, block: FrameBlock, low: int, high: int, names: list[str], at_s: float) -> None:
        if "kv_tokens" not in block.columns:
            return
        tokens = block.columns["kv_tokens"][low:high]
        if (tokens == tokens[:, :1]).all():
            tokens = tokens[:, :1]  # one number tells of all layers, in most models
        tokens = tokens.astype(np.int32)
        sequences = list(zip(names, block.columns["sequence"][low:high].tolist(), strict=True))
        prefill = block.columns["phase"][low:high] == 0
        first = np.where(prefill, 0, tokens.max(axis=1) - 1)
        self.carpet.write_step(sequences, tokens, at_s, first=first)

    def _strikes(
        self,
        block: FrameBlock,
        low: int,
        names: list[str],
        at_s: float,
        light: StepLight,
        spread_s: float,
        read: NDArray[np.bool_],
    ) -> set[int]:
        """Draw the chains for which there is room; who waited longest for one goes first."""
        drawn: set[int] = set()
        if at_s < self._refused_until_s or not light.is_lit:
            return drawn
        waited = np.array([self._last_chain_s.get(name, -math.inf) for name in names])
        for at in np.argsort(waited, kind="stable").tolist():
            if not self._strike(block, low + at, names[at], at_s, light, spread_s, read[at]):
                self._refused_until_s = at_s + max(REFUSED_FOR_S, self.bolts.full_for_s)
                break
            drawn.add(low + at)
        return drawn

    def _strike(
        self,
        block: FrameBlock,
        row: int,
        request_id: str,
        at_s: float,
        light: StepLight,
        spread_s: float,
        read: NDArray[np.bool_],
    ) -> bool:
        """Draw this token's chain, if there is room."""
        reads = self._reads(block, row, read)
        top, strikes = heads_and_strikes(
            self.topology.layers,
            len(self.bolts),
            chains=self._chains_wanted,
            has_reads=reads is not None,
            has_experts=self.topology.experts > 0,
        )
        color = self._colors.of(request_id)
        arcs = chain(
            self.layout,
            light.heads(row),
            light.ffn(row),
            top=top,
            reads=reads,
            strikes=strikes,
            pushes=light.pushes(row),
            lane=color,
            experts=light.experts(row),
            hidden=self.focus.hidden_heads(self.topology),
        )
        if not len(arcs):
            return True  # nothing of it is lit enough to be drawn, and nothing is in its way
        if not self.bolts.admits(arcs, at_s, spread_s):
            return False
        seed = frame_seed(
            request_id, int(block.columns["sequence"][row]), int(block.columns["position"][row])
        )
        self.bolts.add(arcs, at_s, spread_s, color=self.request_color(color), seed=seed)
        for index in np.flatnonzero(arcs.kind == Kind.READ).tolist():
            layer, cell = arcs.node[index].tolist()
            self.carpet.read(layer, cell, at_s + float(arcs.delay[index]) * spread_s)
        self._last_chain_s[request_id] = at_s
        return True

    @property
    def _chains_wanted(self) -> int:
        """How many chains are to live at a time: as many as tokens come in an arc's life, two to four.

        Few and rich ones where tokens are few, many and lean ones in a storm.
        """
        per_s = sum(tokens for _, tokens in self._pace) / PACE_OVER_S
        return int(np.clip(math.ceil(per_s * LIFE_S), 2, MOST_CHAINS))

    def _layers_read(self, block: FrameBlock, low: int, high: int) -> NDArray[np.bool_]:
        """In which layers these frames say where heads looked, shape (high - low, L)."""
        if "attended_positions" not in block.columns or "attended_weights" not in block.columns:
            return np.zeros((high - low, self.topology.layers), np.bool_)
        known = (block.columns["attended_positions"][low:high] >= 0).any(axis=(-2, -1))
        if "measured_layers" in block.columns:
            known = known & (block.columns["measured_layers"][low:high] > 0)
        return np.asarray(known, np.bool_)

    def _reads(self, block: FrameBlock, row: int, layers: NDArray[np.bool_]) -> Reads | None:
        """Where this token's heads looked; nothing of a layer that was not measured; None: nowhere known."""
        if not layers.any():
            return None
        positions = np.where(layers[:, None, None], block.columns["attended_positions"][row], -1)
        weights = np.asarray(block.columns["attended_weights"][row], np.float32)
        return Reads(self.carpet.cell_of(positions), weights)

    def _write_strip(self, block: FrameBlock, times: NDArray[np.float64], drawn: set[int]) -> None:
        """Tokens of the few sequences that the strip follows, from one to its end."""
        index = block.columns["request_index"].tolist()
        sequences = [
            (block.requests[i].request_id, sequence)
            for i, sequence in zip(index, block.columns["sequence"].tolist(), strict=True)
        ]
        rows: Iterable[int] = range(len(sequences))
        if len(self._followed) >= STRIP_SEQUENCES and times[-1] < self._row_free_s:
            rows = [row for row in rows if sequences[row] in self._followed]  # in a storm a few of many
        for row in rows:
            if self._follows(sequences[row], float(times[row])):
                token = self._strip_token(block, row, sequences[row][0], float(times[row]), row in drawn)
                self.strip.append(token)

    def _follows(self, sequence: tuple[str, int], at_s: float) -> bool:
        """Whether the strip has a row for it: it had one, or one is free because another fell silent."""
        followed = self._followed
        if sequence not in followed and len(followed) >= STRIP_SEQUENCES:
            if at_s < self._row_free_s:
                return False
            silent = min(followed, key=lambda key: followed[key])
            self._row_free_s = followed[silent] + STRIP_HOLD_S
            if at_s < self._row_free_s:
                return False
            del followed[silent]
        followed[sequence] = at_s
        return True

    def _strip_token(
        self, block: FrameBlock, row: int, request_id: str, at_s: float, has_chain: bool
    ) -> StripToken:
        columns = block.columns
        logprob = float(columns["logprob"][row]) if "logprob" in columns else math.nan
        return StripToken(
            request_id=request_id,
            sequence=int(columns["sequence"][row]),
            position=int(columns["position"][row]),
            text=block.texts[row] if block.texts is not None else None,
            token_id=int(columns["token_id"][row]) if "token_id" in columns else -1,
            color=self._colors.of(request_id),
            probability=math.exp(min(0.0, logprob)) if math.isfinite(logprob) else None,
            at_s=at_s,
            has_chain=has_chain,
        )

    def _remember(self, block: FrameBlock, at_s: float) -> None:
        """The last measured values, for who points at a node."""
        row = len(block) - 1
        self.latest = (block, row, at_s)
        if "head_contribution" in block.columns or "attended_positions" in block.columns:
            self.latest_deep = self.latest
            self.shares = shares_of(block, row, self.topology.dtype)
        for index, text in enumerate(block.texts or ()):
            request_id = block.requests[int(block.columns["request_index"][index])].request_id
            of = (request_id, int(block.columns["sequence"][index]))
            self._texts.setdefault(of, {})[int(block.columns["position"][index])] = text
        if "head_write" in block.columns:
            self.head_values = block.columns["head_write"][-1].astype(np.float32)
        if "ffn_write" in block.columns:
            self.ffn_values = block.columns["ffn_write"][-1].astype(np.float32)

    def _count(self, seen: _Seen, by: int) -> None:
        """Keep the sums over what was seen: they are asked for in every picture."""
        if by > 0:
            self._seen.append(seen)
        brought = (seen.tokens, seen.drawn, seen.read, seen.layers_read, seen.pushed)
        self._sums = [total + by * value for total, value in zip(self._sums, brought, strict=True)]

    def _forget(self, now_s: float) -> None:
        while self._seen and self._seen[0].at_s < now_s - RATE_OVER_S:
            self._count(self._seen.popleft(), -1)
        while self._last_token_s:
            request_id = next(iter(self._last_token_s))  # who was silent longest
            if self._last_token_s[request_id] >= now_s - RATE_OVER_S:
                break
            self._end(request_id)

    def _end(self, request_id: str) -> None:
        self._last_token_s.pop(request_id, None)
        self._last_chain_s.pop(request_id, None)
        self._colors.release(request_id)
        self.carpet.end(request_id)
        self._prompts.pop(request_id, None)
        for of in [key for key in self._texts if key[0] == request_id]:
            del self._texts[of]
        for of in [key for key in self._followed if key[0] == request_id]:
            del self._followed[of]


class Storm:
    """Every replica in one window, side by side, under one camera.

    Parameters
    ----------
    arcs : int
        Most live arcs over all replicas that are shown.

    Attributes
    ----------
    camera : CameraRig
        One for all viewports: they turn together.
    hud_visible, tokens_visible : bool
        Titles, figures and legends; the token strip.
    shows_contribution : bool
        Whether hue is the signed push on the emitted token; else bolts have the colour of their request.
    panels_visible : bool
        Panels beside each picture: the matrix of heads, attention, logit lens, cache, latency.
    chosen : dict of Pick
        The chosen node of a replica, by its key: what its panels speak of.
    is_light : bool
        Dark ink on light paper, for print.
    is_still : bool
        Reduced motion: bolts neither grow nor flicker, the camera does not travel.
    shed : int
        Which ornaments are left out: index into `pace.SHED`. 0, the whole picture, but where a live window
        would come late.
    revision : int
        Rises when other replicas are shown.
    """

    def __init__(self, scenes: Iterable[ReplicaScene] = (), *, arcs: int = ARCS) -> None:
        self.camera = CameraRig()
        self.hud_visible = True
        self.tokens_visible = True
        self.shows_contribution = False
        self.panels_visible = False
        self.chosen: dict[str, Pick] = {}
        self.is_light = False
        self.is_still = False
        self.shed = 0
        self._palette = palettes()[0]
        self.revision = 0
        self.now_s = 0.0
        self.clock_s = 0.0
        self._arcs = arcs
        self._scenes: dict[str, ReplicaScene] = {}
        self._wanted: tuple[str, ...] | None = None
        for scene in scenes:
            self.add(scene)

    @property
    def scenes(self) -> list[ReplicaScene]:
        """Every replica, in the order in which they came."""
        return list(self._scenes.values())

    @property
    def shown(self) -> list[ReplicaScene]:
        """The replicas that have a viewport, in the order in which they came."""
        if self._wanted is None:
            return self.scenes
        return [scene for key, scene in self._scenes.items() if key in self._wanted] or self.scenes

    @property
    def origin_s(self) -> float:
        """What the times in textures are relative to."""
        return math.floor(self.now_s / ORIGIN_S) * ORIGIN_S

    def __contains__(self, key: str) -> bool:
        return key in self._scenes

    def __getitem__(self, key: str) -> ReplicaScene:
        return self._scenes[key]

    def add(self, scene: ReplicaScene) -> None:
        """A new replica, or a new scene in the place of the one with the same key."""
        scene.set_palette(self._palette)
        self._scenes[scene.key] = scene
        self._changed()

    def remove(self, key: str) -> None:
        """A replica is gone."""
        if self._scenes.pop(key, None) is not None:
            self._changed()

    def show(self, keys: Iterable[str] | None) -> None:
        """Show these replicas; None: all of them."""
        self._wanted = None if keys is None else tuple(keys)
        self._changed()

    @property
    def palette(self) -> Palette:
        """The colours of nodes and requests."""
        return self._palette

    @palette.setter
    def palette(self, palette: Palette) -> None:
        self._palette = palette
        for scene in self._scenes.values():
            scene.set_palette(palette)

    @property
    def arcs(self) -> int:
        """Most live arcs over all replicas that are shown; 0: no bolts."""
        return self._arcs

    @arcs.setter
    def arcs(self, arcs: int) -> None:
        if arcs != self._arcs:
            self._arcs = arcs
            self._changed()

    def _changed(self) -> None:
        self.revision += 1
        slots = max(FEWEST_SLOTS, self._arcs // max(1, len(self.shown))) if self._arcs else 1
        for scene in self._scenes.values():
            scene.set_slots(slots)

    def advance(self, now_s: float, clock_s: float | None = None) -> None:
        """Bring every replica to `now_s`, the playhead; the camera to `clock_s`, which runs on in a pause."""
        self.now_s = now_s
        self.clock_s = now_s if clock_s is None else clock_s
        for scene in self._scenes.values():
            scene.advance(now_s, self.origin_s)


def _steps(times: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Runs of equal times."""
    edges = [0, *(np.flatnonzero(np.diff(times)) + 1).tolist(), len(times)]
    return list(itertools.pairwise(edges))


__all__ = ["SPREAD_S", "Captured", "ReplicaScene", "Storm", "StripToken"]
