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
    Bolts,
    Kind,
    Pushes,
    Reads,
    chain,
    frame_seed,
    heads_and_strikes,
    heads_per_group,
)
from fulgurite.viewer.camera import CameraRig
from fulgurite.viewer.carpet import Carpet
from fulgurite.viewer.colors import REQUESTS, Display, RequestColors, display_of
from fulgurite.viewer.contribution import Shares, hue, pushes, shares_of
from fulgurite.viewer.glow import Glow
from fulgurite.viewer.hud import Hud
from fulgurite.viewer.layout import CELLS, Layout
from fulgurite.wire.topology import Topology

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.wire.frame import FrameBlock, RequestEvent, Scale

    Floats = NDArray[np.float32]

SPREAD_S = 0.45
STRIP_TOKENS = 96
FEWEST_SLOTS = 72
REFUSED_FOR_S = 0.03
RATE_OVER_S = 3.0
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


@dataclass(slots=True)
class _Pulse:
    """The display values of one step on their way along the layers."""

    at_s: float
    spread_s: float
    heads: Floats  # (L, H)
    plates: Floats  # (L, E)
    head_hues: Floats  # (L, H), NaN: not captured
    plate_hues: Floats  # (L, E)
    next_heads: int = 0
    next_plates: int = 0


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one token brought: whether its chain was drawn, and what was captured of it."""

    at_s: float
    is_drawn: bool
    layers_read: int
    has_pushes: bool


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
    heads : Glow
        Shape (L, H).
    plates : Glow
        Shape (L, E), E = 1 for a dense FFN. Dense: the FFN's activity. With experts: their gate weights.
    carpet : Carpet
    bolts : Bolts
    strip : deque of StripToken
        The last tokens, oldest first.
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
        self.heads = Glow((topology.layers, topology.heads))
        self.plates = Glow((topology.layers, self.layout.plates.shape[1]))
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
        self._pulses: deque[_Pulse] = deque()
        self._seen: deque[_Seen] = deque()
        self._sums = [0, 0, 0, 0]  # over what was seen: chains, tokens read, layers read, tokens with pushes
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

    def set_slots(self, slots: int) -> None:
        """How many arcs may live from now on."""
        if slots != len(self.bolts):
            self.bolts.resize(slots)

    def clear(self) -> None:
        """Nothing was applied: for a seek, before the past of the new place is applied."""
        for part in (self.heads, self.plates, self.carpet, self.bolts, self.strip, self._pulses, self._seen):
            part.clear()
        self._texts.clear()
        self._sums = [0, 0, 0, 0]
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
        if event.kind in ("finished", "aborted"):
            self._end(event.request_id)

    def apply(
        self, block: FrameBlock, at_s: float | NDArray[np.float64], *, spread_s: float = SPREAD_S
    ) -> None:
        """Frames that become due at `at_s`: one time for all, or one per frame (n,), never decreasing."""
        n = len(block)
        if not n:
            return
        times = np.broadcast_to(np.asarray(at_s, np.float64), (n,))
        heads, ffn, plates = self._displays(block)
        head_pushes = self._pushes(block, "head_contribution", self.heads.display.shape)
        ffn_pushes = self._pushes(block, "ffn_contribution", (self.topology.layers,))
        plate_hues = np.broadcast_to(hue(ffn_pushes)[..., None], plates.shape)
        for low, high in _steps(times):
            # one forward pass: the nodes show the largest value of its rows, and the hue of that row
            lit, lit_hues = _largest(heads[low:high], hue(head_pushes[low:high]))
            flat, flat_hues = _largest(plates[low:high], plate_hues[low:high])
            self._pulses.append(_Pulse(float(times[low]), spread_s, lit, flat, lit_hues, flat_hues))
            self._tokens(
                block, range(low, high), times, heads, ffn, Pushes(head_pushes, ffn_pushes), spread_s
            )
        self._remember(block, float(times[-1]))
        self.strip_revision += 1

    # what follows from it

    def advance(self, now_s: float, origin_s: float = 0.0) -> None:
        """Light what is due by `now_s`."""
        for pulse in self._pulses:
            self._travel(pulse, now_s)
        while self._pulses and self._pulses[0].next_plates >= self.topology.layers:
            self._pulses.popleft()
        self.carpet.expire(now_s)
        self._forget(now_s)
        self.bolts.advance(now_s, origin_s)

    @property
    def tokens_per_chain(self) -> float | None:
        """How many tokens one drawn chain stands for, over the last seconds; None where none was drawn."""
        chains = self._sums[0]
        return len(self._seen) / chains if chains else None

    @property
    def requests(self) -> list[tuple[str, int]]:
        """The requests under way with the index of their colour, in the order in which they came."""
        return [(request_id, self._colors.of(request_id)) for request_id in self._last_token_s]

    @property
    def reads_captured(self) -> bool:
        """Whether a frame of the last seconds said where a head looked: else the cells send no strikes."""
        return self._sums[1] > 0

    @property
    def reads(self) -> Captured:
        """Of how many tokens of the last seconds is known where heads looked, and in how many layers."""
        _, tokens, layers, _ = self._sums
        return Captured(tokens, len(self._seen), layers / tokens if tokens else 0.0)

    @property
    def contributions(self) -> Captured:
        """Of how many tokens of the last seconds the contributions were captured and are verified."""
        tokens = self._sums[3]
        return Captured(tokens, len(self._seen), float(self.topology.layers) if tokens else 0.0)

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
        """The display function of a node kind (`head`, `ffn`)."""
        return display_of(self.scale, kind)

    # inside

    def _displays(self, block: FrameBlock) -> tuple[Floats, Floats, Floats]:
        """Display values of heads (n, L, H), FFN blocks (n, L) and plates (n, L, E); NaN: not measured."""
        n, (layers, width) = len(block), self.heads.display.shape
        heads = self._shown(block, "head_write", "head", (n, layers, width))
        heads = np.where(self._absent, np.nan, heads).astype(np.float32)
        ffn = self._shown(block, "ffn_write", "ffn", (n, layers))
        if self.topology.experts == 0:
            return heads, ffn, ffn[..., None]
        return heads, ffn, self._experts(block)

    def _shown(self, block: FrameBlock, channel: str, kind: str, shape: tuple[int, ...]) -> Floats:
        function = self.display(kind)
        if function is None or channel not in block.columns:
            return np.full(shape, np.nan, np.float32)
        return function(block.columns[channel])

    def _experts(self, block: FrameBlock) -> Floats:
        """Gate weights on their own plates; an expert that the router did not choose has weight 0."""
        shape = (len(block), *self.plates.display.shape)
        if "expert_ids" not in block.columns or "expert_weights" not in block.columns:
            return np.full(shape, np.nan, np.float32)
        ids = block.columns["expert_ids"].astype(np.int64)
        weights = np.clip(block.columns["expert_weights"], 0.0, 1.0).astype(np.float32)
        plates = np.zeros(shape, np.float32)
        chosen = (ids >= 0) & (ids < shape[-1])
        frame, layer, _ = np.nonzero(chosen)
        np.maximum.at(plates, (frame, layer, ids[chosen]), weights[chosen])
        plates[~chosen.any(axis=-1)] = np.nan
        return plates

    def _tokens(
        self,
        block: FrameBlock,
        rows: range,
        times: NDArray[np.float64],
        heads: Floats,
        ffn: Floats,
        pushed: Pushes,
        spread_s: float,
    ) -> None:
        """The tokens of one step: cache, chain, strip; who waited longest for a chain goes first."""
        names = [block.requests[int(block.columns["request_index"][row])].request_id for row in rows]
        drawn: set[int] = set()
        order = sorted(rows, key=lambda row: (self._last_chain_s.get(names[row - rows[0]], -math.inf), row))
        for row in order:
            request_id = names[row - rows[0]]
            self._last_token_s[request_id] = float(times[row])
            color = self._colors.of(request_id)
            self._cache(block, row, request_id, float(times[row]))
            one = Pushes(pushed.heads[row], pushed.ffn[row])
            if self._strike(
                block, row, request_id, color, float(times[row]), heads[row], ffn[row], one, spread_s
            ):
                drawn.add(row)
        for row in rows:
            read = int(self._layers_read(block, row).sum())
            has_pushes = bool(np.isfinite(pushed.heads[row]).any())
            self._seen.append(_Seen(float(times[row]), row in drawn, read, has_pushes))
            self._count(self._seen[-1], 1)
            self.strip.append(
                self._strip_token(block, row, names[row - rows[0]], float(times[row]), row in drawn)
            )

    def _cache(self, block: FrameBlock, row: int, request_id: str, at_s: float) -> None:
        if "kv_tokens" not in block.columns:
            return
        tokens = block.columns["kv_tokens"][row].astype(np.int32)
        sequence = int(block.columns["sequence"][row])
        prefill = int(block.columns["phase"][row]) == 0
        first = 0 if prefill else int(tokens.max()) - 1
        self.carpet.write((request_id, sequence), tokens, at_s, first=first)

    def _strike(
        self,
        block: FrameBlock,
        row: int,
        request_id: str,
        color: int,
        at_s: float,
        heads: Floats,
        ffn: Floats,
        pushed: Pushes,
        spread_s: float,
    ) -> bool:
        """Draw this token's chain, if there is room."""
        if at_s < self._refused_until_s or not (np.isfinite(heads).any() or np.isfinite(ffn).any()):
            return False
        reads = self._reads(block, row)
        layers, slots = self.topology.layers, len(self.bolts)
        top, strikes = (
            (heads_per_group(layers, slots), 0) if reads is None else heads_and_strikes(layers, slots)
        )
        arcs = chain(
            self.layout,
            heads,
            ffn,
            top=top,
            reads=reads,
            strikes=strikes,
            pushes=pushed,
            lane=color,
        )
        if not self.bolts.admits(arcs, at_s, spread_s):
            self._refused_until_s = at_s + REFUSED_FOR_S
            return False
        seed = frame_seed(
            request_id, int(block.columns["sequence"][row]), int(block.columns["position"][row])
        )
        self.bolts.add(arcs, at_s, spread_s, color=REQUESTS[color][1], seed=seed)
        for index in np.flatnonzero(arcs.kind == Kind.READ).tolist():
            layer, cell = arcs.node[index].tolist()
            self.carpet.read(layer, cell, at_s + float(arcs.delay[index]) * spread_s)
        self._last_chain_s[request_id] = at_s
        return True

    def _layers_read(self, block: FrameBlock, row: int) -> NDArray[np.bool_]:
        """In which layers this frame says where heads looked, shape (L,)."""
        if "attended_positions" not in block.columns or "attended_weights" not in block.columns:
            return np.zeros(self.topology.layers, np.bool_)
        known = (block.columns["attended_positions"][row] >= 0).any(axis=(-2, -1))
        if "measured_layers" in block.columns:
            known = known & (block.columns["measured_layers"][row] > 0)
        return np.asarray(known, np.bool_)

    def _reads(self, block: FrameBlock, row: int) -> Reads | None:
        """Where this token's heads looked; nothing of a layer that was not measured; None: nowhere known."""
        layers = self._layers_read(block, row)
        if not layers.any():
            return None
        positions = np.where(layers[:, None, None], block.columns["attended_positions"][row], -1)
        weights = np.asarray(block.columns["attended_weights"][row], np.float32)
        return Reads(self.carpet.cell_of(positions), weights)

    def _pushes(self, block: FrameBlock, channel: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return pushes(block, channel, shape, self.topology.dtype)

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

    def _travel(self, pulse: _Pulse, now_s: float) -> None:
        layers, spread_s = self.topology.layers, pulse.spread_s
        progress = (now_s - pulse.at_s) / spread_s * layers if spread_s > 0.0 else math.inf
        pulse.next_heads = self._light(
            self.heads, pulse.heads, pulse.head_hues, pulse, pulse.next_heads, progress, 0.25, spread_s
        )
        pulse.next_plates = self._light(
            self.plates, pulse.plates, pulse.plate_hues, pulse, pulse.next_plates, progress, 0.60, spread_s
        )

    def _light(
        self,
        glow: Glow,
        values: Floats,
        hues: Floats,
        pulse: _Pulse,
        begin: int,
        progress: float,
        offset: float,
        spread_s: float,
    ) -> int:
        """Hit the layers that the pulse has reached; returns the first that it has not."""
        layers = len(values)
        end = min(layers, max(begin, math.floor(min(progress - offset, layers)) + 1))
        if end > begin:
            reached = pulse.at_s + spread_s * (np.arange(begin, end) + offset) / layers
            glow.hit(slice(begin, end), values[begin:end], reached[:, None], hues[begin:end])
        return end

    def _count(self, seen: _Seen, by: int) -> None:
        """Keep the sums over what was seen: they are asked for in every picture."""
        for index, value in enumerate(
            (seen.is_drawn, seen.layers_read > 0, seen.layers_read, seen.has_pushes)
        ):
            self._sums[index] += by * int(value)

    def _forget(self, now_s: float) -> None:
        while self._seen and self._seen[0].at_s < now_s - RATE_OVER_S:
            self._count(self._seen.popleft(), -1)
        silent = [name for name, at_s in self._last_token_s.items() if at_s < now_s - RATE_OVER_S]
        for request_id in silent:
            self._end(request_id)

    def _end(self, request_id: str) -> None:
        self._last_token_s.pop(request_id, None)
        self._last_chain_s.pop(request_id, None)
        self._colors.release(request_id)
        self.carpet.end(request_id)
        self._prompts.pop(request_id, None)
        for of in [key for key in self._texts if key[0] == request_id]:
            del self._texts[of]


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
    revision : int
        Rises when other replicas are shown.
    """

    def __init__(self, scenes: Iterable[ReplicaScene] = (), *, arcs: int = ARCS) -> None:
        self.camera = CameraRig()
        self.hud_visible = True
        self.tokens_visible = True
        self.shows_contribution = False
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

    def _changed(self) -> None:
        self.revision += 1
        slots = max(FEWEST_SLOTS, self._arcs // max(1, len(self.shown)))
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


def _largest(rows: Floats, hues: Floats) -> tuple[Floats, Floats]:
    """The largest value of each node over the rows, and the hue of the row that has it; NaN: none has."""
    filled = np.where(np.isfinite(rows), rows, -np.inf)
    first = filled.argmax(axis=0)[None]
    value = np.take_along_axis(filled, first, axis=0)[0]
    hue_of = np.take_along_axis(hues, first, axis=0)[0]
    known = np.isfinite(value)
    return (
        np.where(known, value, np.nan).astype(np.float32),
        np.where(known, hue_of, np.nan).astype(np.float32),
    )


__all__ = ["SPREAD_S", "Captured", "ReplicaScene", "Storm", "StripToken"]
