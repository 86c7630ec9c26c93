"""One person's view of the stream: the feed fills a timeline, the timeline's playhead lights the storm.

Nothing here draws, waits or reads a clock; whoever does calls `absorb` and `advance` with the time, then
renders at `scene_s`. The order of replicas is the order in which they came, and stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np

from fulgurite.viewer.camera import PRESETS, Pick
from fulgurite.viewer.events import (
    CaughtUp,
    Event,
    FeedDown,
    FeedTrouble,
    FeedUp,
    Frames,
    GapSeen,
    ReplicaSeen,
    ReplicaStatus,
    StatusSeen,
)
from fulgurite.viewer.focus import EVERYTHING, Focus, parse
from fulgurite.viewer.highlights import Spot, Why, least_probable
from fulgurite.viewer.hud import Hud
from fulgurite.viewer.palettes import palettes
from fulgurite.viewer.scene import ReplicaScene, Storm
from fulgurite.viewer.strip import Strip
from fulgurite.viewer.timeline import Mode, Played, Segment, Timeline
from fulgurite.wire.frame import RequestEvent
from fulgurite.wire.replica import ReplicaKey

SIDE_BY_SIDE = 4
AFTERGLOW_S = 2.5  # after the last token there is still light to fade
EASING_S = 1.0  # after a change of camera there is still movement
GAP_SHOWN_S = 5.0
LATENCIES = 256
STRIP_REFILL = 512
NEUTRAL = "#8391b4"  # of a request to which the scene gave no colour
LINGER_S = 1.0  # a request keeps its colour for so long after its end: its last bolts are still there


@dataclass(slots=True)
class Replica:
    """What is known of one replica."""

    seen: ReplicaSeen
    status: ReplicaStatus | None = None
    tokens: int = 0
    missed: int = 0  # frames that exist and did not get here
    gap_reason: str = ""
    gap_s: float = float("-inf")
    trouble: str = ""
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))
    unshown_ns: list[int] = field(
        default_factory=list
    )  # when the tokens were made that are lit and not shown yet

    @property
    def gap_frames(self) -> int | None:
        """Frames known to be missing: dropped on the way, and not seen here. None: no account of it yet."""
        dropped = sum(self.status.dropped.values()) if self.status is not None else 0
        if self.status is None and not self.missed:
            return None
        return dropped + self.missed


class Session:
    """A storm with its past, its selection and its connection.

    Parameters
    ----------
    timeline : the memory; None: one with the defaults.
    address : of the collector, for what is said about the connection.
    """

    def __init__(self, *, timeline: Timeline | None = None, address: str = "") -> None:
        self.storm = Storm()
        self.timeline = timeline or Timeline()
        self.address = address
        self.strip = Strip(NEUTRAL)
        self.replicas: dict[str, Replica] = {}
        self.connected: bool | None = None
        self.down_reason = ""
        self.gaps_s: deque[float] = deque(maxlen=256)
        self.now_s = 0.0
        self.hovered: tuple[str, Pick] | None = None
        self.pinned: tuple[str, Pick] | None = None
        self.mark: tuple[float, float, float] | None = None
        self.chosen: Spot | None = None
        self.focus = EVERYTHING
        self._chosen: tuple[str, ...] | None = None
        self._lit_until_s = 0.0
        self._moving_until_s = 0.0
        self._revision = (-1, -1)
        self._told: deque[tuple[float, str, RequestEvent]] = deque(maxlen=4096)

    @property
    def scene_s(self) -> float:
        """The time at which the storm is to be drawn."""
        return self.timeline.playhead_s or 0.0

    @property
    def tokens(self) -> int:
        """Tokens that were lit so far."""
        return sum(replica.tokens for replica in self.replicas.values())

    @property
    def shown(self) -> tuple[str, ...]:
        """The replicas on screen, in the order in which they came."""
        if self._chosen is not None:
            return tuple(key for key in self.replicas if key in self._chosen)
        return tuple(self.replicas)[:SIDE_BY_SIDE]

    # what the feed tells

    def absorb(self, events: Iterable[Event], now_s: float) -> None:
        """Take what came in."""
        self.now_s = now_s
        for event in events:
            self._take(event, now_s)

    def _take(self, event: Event, now_s: float) -> None:
        if isinstance(event, Frames):
            self._frames(event)
        elif isinstance(event, ReplicaSeen):
            self._replica(event)
        elif isinstance(event, StatusSeen):
            self._status(event.status)
        elif isinstance(event, GapSeen):
            self._gap(event, now_s)
        elif isinstance(event, FeedTrouble):
            self._trouble(event)
        elif isinstance(event, (FeedUp, FeedDown)):
            self.connected = isinstance(event, FeedUp)
            self.down_reason = event.reason if isinstance(event, FeedDown) else ""
        elif isinstance(event, CaughtUp):
            pass

    def _replica(self, seen: ReplicaSeen) -> None:
        known = self.replicas.get(seen.key)
        if known is not None and known.seen.topology == seen.topology:
            known.seen = seen
            scene = self.storm[seen.key]
            scene.tokens_shown = seen.tokens
            scene.set_scale(seen.scale or scene.scale)
            return
        if known is not None:  # another model under the same name: what was kept of the old one fits no more
            self.timeline.drop(seen.key)
            self.strip.clear(seen.key)
        self.replicas[seen.key] = Replica(seen, status=known.status if known is not None else None)
        scene = ReplicaScene(seen.topology, key=seen.key, tokens_shown=seen.tokens)
        scene.set_scale(seen.scale)
        scene.set_focus(self.focus)
        self.storm.add(scene)
        self.storm.show(self.shown)
        self._touch()

    def _frames(self, event: Frames) -> None:
        if event.key not in self.replicas:
            return  # nothing is known of its shape
        for scale in event.batch.scales:
            self.storm[event.key].set_scale(scale)
        for told in event.batch.events:
            if told.kind == "started":  # says how long the prompt is, and changes no light
                self.storm[event.key].event(told, told.time_ns / 1e9)
                continue
            self._told.append((told.time_ns / 1e9 + LINGER_S, event.key, told))
        if len(event.batch):
            self.timeline.add(event.key, event.batch.blocks, event.received_ns / 1e9, live=event.live)

    def _status(self, status: ReplicaStatus) -> None:
        if status.key in self.replicas:
            self.replicas[status.key].status = status

    def _gap(self, gap: GapSeen, now_s: float) -> None:
        self.gaps_s.append(now_s)
        replica = self.replicas.get(gap.key)
        if replica is not None:
            replica.missed += gap.frames
            replica.gap_reason, replica.gap_s = gap.reason, now_s

    def _trouble(self, event: FeedTrouble) -> None:
        if event.key in self.replicas:
            self.replicas[event.key].trouble = event.reason
        else:
            self.down_reason = f"replica {event.key}: {event.reason}"

    # time passes

    def advance(self, now_s: float) -> bool:
        """Move the playhead to where it should be; whether the picture is another than before."""
        self.now_s = now_s
        before_s = self.timeline.playhead_s
        played = self.timeline.tick(now_s)
        if played.jumped:
            self._refill(played)
        elif played.segments:
            self._light(played, before_s)
        self._tell(played.playhead_s)
        for key in self.replicas:
            self._write(key)
        revision = (self.storm.revision, sum(scene.hud_revision for scene in self.storm.scenes))
        changed = revision != self._revision or played.jumped or bool(played.segments)
        self._revision = revision
        camera = self.storm.camera
        moving = now_s < self._moving_until_s or bool(PRESETS[camera.preset].orbit_s) or camera.follows
        lit = self.timeline.mode is not Mode.PAUSED and self.scene_s < self._lit_until_s
        moving = moving and not self.storm.is_still
        return changed or moving or lit

    def _write(self, key: str) -> None:
        """The figures over the picture; in a pause they stand still with it."""
        if self.timeline.mode is Mode.PAUSED:
            self.storm[key].mark(self.state(key))
        else:
            self.storm[key].set_hud(self._hud(key))

    def _tell(self, playhead_s: float) -> None:
        """Requests that ended, once the playhead has passed it."""
        while self._told and self._told[0][0] <= playhead_s:
            at_s, key, event = self._told.popleft()
            self.storm[key].event(event, at_s)

    def _light(self, played: Played, before_s: float | None) -> None:
        live = self.timeline.mode is Mode.LIVE
        for segment in played.segments:
            at_s, fresh = segment.at_s, live and segment.live
            if fresh and before_s is not None:
                at_s = np.maximum(at_s, min(before_s, played.playhead_s))  # what comes late is lit now
            self._apply(segment, at_s)
            replica = self.replicas[segment.key]
            replica.tokens += len(at_s)
            if fresh:
                replica.unshown_ns += segment.block.columns["ended_ns"].tolist()
        self._lit_until_s = played.playhead_s + AFTERGLOW_S

    def _apply(self, segment: Segment, at_s: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        self.storm[segment.key].apply(segment.block, at_s)
        self.strip.feed(segment)

    def _refill(self, played: Played) -> None:
        """The scene as it was at the playhead."""
        for scene in self.storm.scenes:
            scene.clear()
        self.strip.clear()
        for segment in played.segments:
            self.storm[segment.key].apply(segment.block, segment.at_s)
        for key in self.replicas:
            self.replicas[key].unshown_ns.clear()
            for segment in self.timeline.tokens(key, STRIP_REFILL):
                self.strip.feed(segment)
        self._lit_until_s = played.playhead_s + AFTERGLOW_S

    def on_screen(self, now_s: float) -> None:
        """What is lit was shown at `now_s`: the latency from token to screen is measured here."""
        for replica in self.replicas.values():
            latencies_s = (now_s - made_ns / 1e9 for made_ns in replica.unshown_ns[-LATENCIES:])
            # negative: the clocks disagree, and nothing can be said
            replica.latencies_s.extend(latency_s for latency_s in latencies_s if latency_s >= 0.0)
            replica.unshown_ns.clear()

    # figures

    def latency_s(self, key: str) -> float | None:
        """Token committed to picture made, the median of the last ones; None where it was not measured."""
        latencies = self.replicas[key].latencies_s
        return median(latencies) if latencies else None

    def state(self, key: str) -> str:
        """A word for the replica's state, as the scene knows them."""
        replica = self.replicas[key]
        if self.connected is False:
            return "lost"
        if self.timeline.mode is Mode.PAUSED:
            return "paused"
        if self.now_s - replica.gap_s < GAP_SHOWN_S:
            return "gap"
        if replica.status is not None and replica.status.state in ("idle", "lost", "ended"):
            return replica.status.state
        return "live" if replica.tokens else "waiting"

    def state_level(self, key: str) -> str:
        """What the replica captures now; empty where nothing is known."""
        replica = self.replicas[key]
        return (replica.status.level if replica.status is not None else "") or replica.seen.level

    def _hud(self, key: str) -> Hud:
        replica = self.replicas[key]
        status = replica.status or ReplicaStatus(key=key, state="")
        latency_s = self.latency_s(key)
        return Hud(
            replica=self.name(key),
            state=self.state(key),
            tokens_per_s=status.tokens_per_s,
            running_requests=status.running_requests,
            waiting_requests=status.waiting_requests,
            kv_tokens=status.kv_tokens,
            kv_bytes=status.kv_bytes,
            kv_capacity_bytes=status.kv_capacity_bytes,
            level=self.state_level(key),
            overhead_ratio=status.overhead_ratio,
            gap_frames=replica.gap_frames,
            latency_s=None if latency_s is None else round(latency_s, 3),
        )

    def name(self, key: str) -> str:
        """A short name that no other replica here has."""
        service, instance = _parts(key)
        others = [_parts(other) for other in self.replicas if other != key]
        if all(other != service for other, _ in others):
            return service
        rivals = [other for name, other in others if name == service]
        short = instance if len(instance) <= 16 else instance[:8]
        if any(other.startswith(short) for other in rivals):
            short = instance
        return short if all(name == service for name, _ in others) else f"{service} · {short}"

    # what a person asks for

    def toggle_pause(self) -> None:
        """Stand still, or go on from there."""
        self.timeline.toggle()

    def go_live(self) -> None:
        """Back to the present."""
        self.timeline.go_live()

    def seek_by(self, seconds: float) -> None:
        """Move through the past."""
        self.timeline.seek_by(seconds)

    def seek_fraction(self, fraction: float) -> None:
        """To a place in the kept past: 0 its beginning, 1 its end."""
        from_s, to_s = self.window()
        self.timeline.seek(from_s + fraction * (to_s - from_s))

    def window(self) -> tuple[float, float]:
        """From when to when the time bar reaches: the kept past, at least ten seconds, up to the present."""
        to_s = self.now_s - self.timeline.delay_s
        span = self.timeline.span()
        return (min(span[0], to_s - 10.0) if span is not None else to_s - 10.0), to_s

    def step(self, tokens: int) -> None:
        """To the next or previous token of the replicas on screen."""
        self.timeline.step(tokens, self.shown)

    def faster(self, factor: float) -> None:
        """Multiply the speed at which the past is played."""
        self.timeline.set_speed(min(16.0, max(1 / 16, self.timeline.speed * factor)))

    def show_camera(self, index: int) -> None:
        """One of the presets."""
        self.storm.camera.show(min(index, len(PRESETS) - 1))
        self._touch()

    def orbit(self, right_px: float, up_px: float) -> None:
        """Turn the model under the pointer."""
        self.storm.camera.orbit(-0.3 * right_px, -0.3 * up_px)

    def pan(self, right_px: float, up_px: float, *, height_px: float = 720.0) -> None:
        """Move the picture with the pointer."""
        self.storm.camera.pan(right_px / height_px, up_px / height_px)

    def zoom(self, factor: float) -> None:
        """Come nearer (over 1) or go away."""
        self.storm.camera.zoom(factor)

    def select(self, keys: Sequence[str] | None) -> None:
        """Show these replicas; None: as many as fit, from the first."""
        known = None if keys is None else tuple(key for key in keys if key in self.replicas)
        self._chosen = known or None
        self.storm.show(self.shown)
        self._touch()

    def toggle_replica(self, key: str) -> None:
        """Show or hide one replica; the last one shown stays."""
        shown = self.shown
        if key in shown:
            self.select([other for other in shown if other != key] or shown)
        else:
            self.select([*shown, key])

    def next_replica(self, by: int) -> None:
        """Show one replica alone: the one after (1) or before (-1) the first on screen."""
        keys = tuple(self.replicas)
        if not keys:
            return
        alone = len(self.shown) == 1
        at = keys.index(self.shown[0]) + by if alone else (0 if by > 0 else len(keys) - 1)
        self.select([keys[at % len(keys)]])

    def show_all(self) -> None:
        """Every replica, side by side."""
        self.select(None)

    def toggle_hud(self) -> None:
        """Titles, figures and legends in the picture."""
        self.storm.hud_visible = not self.storm.hud_visible

    def toggle_contribution(self) -> None:
        """Hue: the signed push on the emitted token, or the request."""
        self.storm.shows_contribution = not self.storm.shows_contribution

    def next_token(self, why: Why) -> None:
        """Pause on the next token of those on screen that is slow, surprising or uncertain."""
        self.chosen = self.timeline.next_spot(self.shown, why) or self.chosen

    def choose_least_probable(self) -> None:
        """Pause on the least probable token that is kept of the replicas on screen."""
        found = [spot for key in self.shown if (spot := least_probable(self.timeline.kept(key))) is not None]
        if found:
            self.chosen = min(found, key=lambda spot: float(spot.block.columns["logprob"][spot.row]))
            self.timeline.show_spot(self.chosen)

    def toggle_loop(self) -> None:
        """Play the chosen token's request again and again, or go on."""
        if self.timeline.looped is not None:
            self.timeline.loop(None)
            return
        spot = self._token
        if spot is None:
            return
        times = [
            k.at_s[rows]
            for key in self.shown
            for k in self.timeline.kept(key)
            if (rows := Focus(request=spot.request_id).rows(k.block)) is not None and len(rows)
        ]
        if times:
            every = np.concatenate(times)
            self.timeline.loop((float(every.min()) - 0.05, float(every.max()) + AFTERGLOW_S / 2))

    @property
    def _token(self) -> Spot | None:
        """The chosen token, else the newest one that is lit."""
        latest = [scene.latest for scene in self.storm.shown if scene.latest is not None]
        if self.chosen is not None and self.timeline.mode is not Mode.LIVE:
            return self.chosen
        if not latest:
            return None
        block, row, at_s = max(latest, key=lambda found: found[2])
        return Spot(at_s, block, row)

    def choose_most_active(self) -> None:
        """Keep the card of the head that wrote most of the last token of the first replica on screen.

        In the present it pauses there, so that the answer keeps its token.
        """
        for scene in self.storm.shown:
            if np.isfinite(scene.head_values).any():
                layer, head = np.unravel_index(int(np.nanargmax(scene.head_values)), scene.head_values.shape)
                self._choose((scene.key, Pick("head", int(layer), int(head))))
                if self.timeline.mode is Mode.LIVE and scene.latest is not None:
                    block, row, at_s = scene.latest
                    self.chosen = Spot(at_s, block, row)
                    self.timeline.show_spot(self.chosen)
                return

    def move_choice(self, layers: int, heads: int) -> None:
        """From the chosen node to the one so many layers and heads on."""
        if self.pinned is None:
            self.choose_most_active()
            return
        key, node = self.pinned
        topology = self.storm[key].topology
        layer = min(max(node.layer + layers, 0), topology.layers - 1)
        most = topology.layer_heads[layer] if node.kind == "head" else max(1, topology.experts)
        head = node.head if node.head < 0 else min(max(node.head + heads, 0), max(0, most - 1))
        self._choose((key, Pick(node.kind, layer, head)))

    def look_at(self, focus: Focus) -> None:
        """Leave everything else out of the picture; `EVERYTHING` takes it back."""
        if focus == self.focus:
            return
        self.focus = focus
        for scene in self.storm.scenes:
            scene.set_focus(focus)
        self.timeline.refresh()

    def search(self, text: str) -> None:
        """Look at what a text names; nothing: at everything.

        Raises
        ------
        ValueError
            Where it names nothing; says what can be written.
        """
        self.look_at(parse(text) if text.strip() else EVERYTHING)

    def toggle_isolate(self) -> None:
        """Only the light of the chosen token's request, or all again."""
        token = self._token
        if self.focus.request or token is None:
            self.look_at(replace(self.focus, request=""))
        else:
            self.look_at(replace(self.focus, request=token.request_id))

    def toggle_layer(self, *, is_hidden: bool = False) -> None:
        """Only the chosen node's layer, or all but it; again: all layers."""
        if self.focus.layers is not None or self.pinned is None:
            self.look_at(replace(self.focus, layers=None, head=None, is_hidden=False))
        else:
            layer = self.pinned[1].layer
            self.look_at(replace(self.focus, layers=(layer, layer), is_hidden=is_hidden))

    def toggle_panels(self) -> None:
        """Show or hide the panels beside the picture."""
        self.storm.panels_visible = not self.storm.panels_visible

    def next_palette(self) -> None:
        """Other colours."""
        every = palettes()
        names = [palette.name for palette in every]
        self.storm.palette = every[(names.index(self.storm.palette.name) + 1) % len(every)]

    def toggle_theme(self) -> None:
        """Dark, or light for print."""
        self.storm.is_light = not self.storm.is_light

    def toggle_motion(self) -> None:
        """Bolts that neither grow nor flicker, a camera that jumps; or all of it again."""
        self.storm.is_still = not self.storm.is_still

    def toggle_follow(self) -> None:
        """Let the camera travel with the lightning, or stand."""
        self.storm.camera.follows = not self.storm.camera.follows
        self._touch()

    def hover(self, found: tuple[str, Pick] | None) -> None:
        """The pointer is over this node of a replica, or over none."""
        self.hovered = found

    def pin(self, found: tuple[str, Pick] | None) -> None:
        """Keep the card of this node; None, or the same again: keep none."""
        self._choose(None if found == self.pinned else found)

    def _choose(self, found: tuple[str, Pick] | None) -> None:
        """The node that cards and panels speak of."""
        self.pinned = found
        self.storm.chosen = {} if found is None else {found[0]: found[1]}

    def mark_at(self, place: tuple[float, float, float] | None) -> None:
        """Where the inspected node is seen: x, y, reach, in shares of the picture's width, height, height."""
        self.mark = place

    @property
    def inspected(self) -> tuple[str, Pick] | None:
        """The node whose card is shown: the pinned one, else the one under the pointer."""
        found = self.pinned or self.hovered
        return found if found is not None and found[0] in self.shown else None

    def _touch(self) -> None:
        self._moving_until_s = self.now_s + EASING_S


def _parts(key: str) -> tuple[str, str]:
    """Service and instance of a replica."""
    try:
        parsed = ReplicaKey.parse(key)
    except ValueError:
        return key, key
    return parsed.service, parsed.instance
