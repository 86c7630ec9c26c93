"""What pages are told: the stream as messages, each packed once for everybody, and the past for latecomers.

A `Story` holds one `Session` whose playhead is the present, and hears what that session lights: the tokens of
each step, and the arcs of every chain that was drawn. A page has the rest by itself: its own time, camera,
selection and colours. What one token says is said to all with the same bytes.

Kinds of message: ``hello``, ``replica`` and ``scale`` (again where they change), ``tokens``, ``event``,
``state`` (the figures of all replicas, once a second). Pure: who calls `turn` brings the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fulgurite.viewer import hud
from fulgurite.viewer.bolts import Arcs, Bolts
from fulgurite.viewer.events import Event, Frames
from fulgurite.viewer.facts import facts
from fulgurite.viewer.message import finite, pack
from fulgurite.viewer.portrait import hello, portrait, unit
from fulgurite.viewer.retelling import tokens
from fulgurite.viewer.session import NEUTRAL, Replica, Session
from fulgurite.viewer.strip import Strip
from fulgurite.viewer.timeline import Timeline

if TYPE_CHECKING:
    from fulgurite.viewer.scene import ReplicaScene
    from fulgurite.viewer.track import Segment
    from fulgurite.wire.frame import RequestEvent

STATE_PERIOD_S = 1.0
KEPT_BYTES = 32 << 20
BYTES_PER_S = 3 << 20  # of columns, per replica: what a model says beyond is folded
BURST_S = 2.0
FIGURES = ("tokens_per_s", "inter_token_p50_s", "inter_token_p99_s", "first_token_p50_s", "window_s")


@dataclass(frozen=True, slots=True)
class Message:
    """One message to every page.

    Attributes
    ----------
    kind : as in its header.
    of : what a newer message of the same kind replaces, where only the newest counts; empty: it is kept.
    tokens : how many tokens it tells.
    last_s : when the last of them is played.
    """

    data: bytes
    kind: str
    of: str = ""
    tokens: int = 0
    last_s: float = 0.0


class TellingBolts(Bolts):
    """Slots that also say which chains they were given.

    Attributes
    ----------
    told : list of (seed, Arcs)
        Chains since it was emptied last.
    """

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.told: list[tuple[int, Arcs]] = []

    def add(
        self, arcs: Arcs, at_s: float, spread_s: float, *, color: tuple[float, float, float], seed: int
    ) -> None:
        """Let a chain begin at `at_s`, and say so."""
        super().add(arcs, at_s, spread_s, color=color, seed=seed)
        self.told.append((seed, arcs))


class ListeningStrip(Strip):
    """A strip that hands on the tokens that were played."""

    def __init__(self, heard: Callable[[Segment], None]) -> None:
        super().__init__(NEUTRAL)
        self._heard = heard

    def feed(self, segment: Segment) -> None:
        """Append tokens that were played."""
        super().feed(segment)
        self._heard(segment)


class Allowance:
    """Bytes that may be said: so many a second, and those of `BURST_S` at once."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._left = bytes_per_s * BURST_S
        self._at_s: float | None = None

    def left(self, now_s: float) -> int:
        """What may be said now."""
        since_s = 0.0 if self._at_s is None else max(0.0, now_s - self._at_s)
        self._at_s = now_s
        self._left = min(self._bytes_per_s * BURST_S, self._left + since_s * self._bytes_per_s)
        return int(self._left)

    def spend(self, size: int) -> None:
        """So much was said."""
        self._left = max(0.0, self._left - size)


class Story:
    """Events in, messages out.

    Parameters
    ----------
    name : tells this story from another one: a page that hears another name begins anew.
    address : of the collector, for what is said about the connection.
    history_s : how much of the past a newcomer is told.
    kept_bytes : at most so many bytes of it.
    bytes_per_s : most bytes of columns per second and replica; the light of what is more is folded.
    """

    def __init__(
        self,
        *,
        name: str = "",
        address: str = "",
        history_s: float = 90.0,
        kept_bytes: int = KEPT_BYTES,
        bytes_per_s: float = BYTES_PER_S,
    ) -> None:
        timeline = Timeline(delay_s=0.0, keep_s=history_s, refill_s=history_s, budget_bytes=64 << 20)
        self.session = Session(timeline=timeline, address=address)
        self.session.strip = ListeningStrip(self._heard)
        self.name = name
        self._history_s = history_s
        self._kept_bytes = kept_bytes
        self._bytes_per_s = bytes_per_s
        self._kept: deque[Message] = deque()
        self._size = 0
        self._latest: dict[str, Message] = {}
        self._allowed: dict[str, Allowance] = {}
        self._portrayed: dict[str, tuple[Any, ...]] = {}
        self._scaled: dict[str, int] = {}
        self._said: list[Message] = []
        self._serial = 0
        self._state_s = float("-inf")
        self._now_s = 0.0

    def turn(self, events: Iterable[Event], now_s: float) -> list[Message]:
        """Take what came in, and bring the present to `now_s`; what there is to tell of it, in order."""
        self._said, self._now_s = [], now_s
        events = list(events)
        self.session.absorb(events, now_s)
        for scene in self.session.storm.scenes:
            if not isinstance(scene.bolts, TellingBolts):
                scene.bolts = TellingBolts(len(scene.bolts))
        self._portray()
        for event in events:
            if isinstance(event, Frames):
                self._happened(event)
        self.session.advance(now_s)
        if self.session.storm.scenes:
            self.session.storm.advance(now_s)
        self._figures(now_s)
        self._forget(now_s)
        return self._said

    def welcome(self, now_s: float) -> list[bytes]:
        """What someone who comes now must know before the stream, without the kept past."""
        first = hello(story=self.name, history_s=self._history_s, now_s=now_s, address=self.session.address)
        # A replica is told again when its name changes; what speaks of it comes behind it all the same.
        known = sorted(self._latest.values(), key=lambda message: message.kind != "replica")
        return [first, *(message.data for message in known)]

    def past(self) -> list[Message]:
        """The kept past, oldest first."""
        return list(self._kept)

    # what is said

    def _say(self, message: Message) -> None:
        self._said.append(message)
        if message.of:
            self._latest.pop(message.of, None)
            self._latest[message.of] = message
        else:
            self._kept.append(message)
            self._size += len(message.data)

    def _portray(self) -> None:
        """Replicas that are new or changed, and their scales."""
        for key, replica in self.session.replicas.items():
            scene = self.session.storm[key]
            level = self.session.state_level(key)
            face = (id(scene), self.session.name(key), scene.tokens_shown, level)
            if self._portrayed.get(key) != face:
                self._portrayed[key] = face
                data = portrait(scene, name=self.session.name(key), level=level)
                self._say(Message(data, "replica", of=f"replica {key}"))
                self._allowed.setdefault(key, Allowance(self._bytes_per_s))
            self._rescale(key, replica, scene)

    def _rescale(self, key: str, _replica: Replica, scene: ReplicaScene) -> None:
        if scene.scale is not None and self._scaled.get(key) != id(scene.scale):
            self._scaled[key] = id(scene.scale)
            scale = scene.scale
            header = {
                "kind": "scale",
                "key": key,
                "version": scale.version,
                "kinds": {kind: list(ends) for kind, ends in scale.kinds.items()},
                "tokens": scale.tokens,
            }
            self._say(Message(pack(header), "scale", of=f"scale {key}"))

    def _happened(self, frames: Frames) -> None:
        for event in frames.batch.events:
            self._say(Message(pack(_event(frames.key, event)), "event", last_s=self._now_s))

    def _heard(self, segment: Segment) -> None:
        """The session lit these tokens."""
        key = segment.key
        scene = self.session.storm[key]
        told: list[tuple[int, Arcs]] = []
        if isinstance(scene.bolts, TellingBolts):
            told, scene.bolts.told = scene.bolts.told, []
        self._serial += 1
        allowed = self._allowed[key]
        data = tokens(
            scene,
            segment.block,
            np.asarray(segment.at_s, np.float64),
            told,
            unit=unit(scene.layout),
            room=allowed.left(self._now_s),
            header={"key": key, "serial": self._serial, "sent_s": self._now_s, "live": segment.live},
        )
        if segment.live:
            allowed.spend(len(data))
        self._say(Message(data, "tokens", tokens=len(segment.at_s), last_s=float(segment.at_s[-1])))

    def _figures(self, now_s: float) -> None:
        """The figures of every replica, and the connection."""
        if now_s - self._state_s < STATE_PERIOD_S:
            return
        self._state_s = now_s
        shown = facts(self.session)
        header = {
            "kind": "state",
            "sent_s": now_s,
            "connected": self.session.connected,
            **{name: shown.get(f"fg_{name}", "") for name in ("waiting", "advice", "lost")},
            "replicas": [self._replica(key, replica) for key, replica in self.session.replicas.items()],
        }
        self._say(Message(pack(header), "state", of="state"))

    def _replica(self, key: str, replica: Replica) -> dict[str, Any]:
        session, status = self.session, replica.status
        shown = session.storm[key].hud
        said: dict[str, Any] = {
            "key": key,
            "level": session.state_level(key),
            "state": "lost" if session.connected is False else (status.state if status else "") or "live",
            "speed": hud.speed_line(shown),
            "memory": hud.memory_line(shown, None),
            "account": hud.account_line(shown),
            "badge": hud.badge(shown),
            "missing": replica.gap_frames,
            "gap_s": finite(replica.gap_s, 3),
            "gap_reason": replica.gap_reason,
            "trouble": replica.trouble,
        }
        if status is not None:
            for name in FIGURES:
                said[name] = finite(getattr(status, name))
            said["dropped"] = dict(status.dropped)
            for name in (
                "kv_tokens",
                "kv_bytes",
                "kv_capacity_bytes",
                "running_requests",
                "waiting_requests",
            ):
                said[name] = getattr(status, name)
            said["overhead_ratio"] = finite(status.overhead_ratio)
        return said

    def _forget(self, now_s: float) -> None:
        while self._kept and (
            self._size > self._kept_bytes or self._kept[0].last_s < now_s - self._history_s
        ):
            self._size -= len(self._kept.popleft().data)


def _event(key: str, event: RequestEvent) -> dict[str, Any]:
    return {
        "kind": "event",
        "key": key,
        "at_s": event.time_ns / 1e9,
        "what": event.kind,
        "request": event.request_id,
        "prompt_tokens": list(event.prompt_tokens_per_row) or [event.prompt_tokens],
        "prompts": list(event.prompt_texts),
        "reason": event.reason,
    }
