"""The viewer's memory and its playhead: keeps the last minute of every replica, says which tokens are due.

A token is played at the time at which it was measured, plus one constant delay: bursts of arriving batches
become the even rhythm in which the model really emitted them. The playhead follows the present (live),
stands (paused), or runs behind at its own speed (playing). Pure: every call is handed the time, nothing
here reads a clock or draws.

Time axis, in seconds of UNIX time as this machine reads it: a token's place `at_s` is its `ended_ns` plus
its replica's lag, which covers slow links and clocks that disagree; live, the playhead is `delay_s` behind
the clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from fulgurite.viewer.highlights import Spot, Why, spots
from fulgurite.viewer.track import Kept, Segment, Track
from fulgurite.wire.frame import FrameBlock

SLOT_S = 0.5  # of the coarse count of tokens over time


class Mode(Enum):
    """What moves the playhead."""

    LIVE = "live"
    PAUSED = "paused"
    PLAYING = "playing"


@dataclass(frozen=True, slots=True)
class Played:
    """What a tick of the playhead passed over.

    Attributes
    ----------
    playhead_s : where it stands now.
    jumped : the scene must be filled anew: `segments` hold what should be lit at the playhead.
    skipped : frames that were passed without being played, because they are no longer kept.
    """

    playhead_s: float
    segments: tuple[Segment, ...] = ()
    jumped: bool = False
    skipped: int = 0


class Timeline:
    """The last minute of each replica, and a playhead over it.

    Parameters
    ----------
    keep_s : how far back the past is kept, in seconds.
    budget_bytes : most bytes kept per replica; the oldest go first.
    delay_s : how far the live playhead runs behind the clock, so that what arrives unevenly is played evenly.
    refill_s : how much of the past lights the scene anew after a jump.
    """

    def __init__(
        self,
        *,
        keep_s: float = 90.0,
        budget_bytes: int = 128 << 20,
        delay_s: float = 0.15,
        refill_s: float = 4.0,
    ) -> None:
        self.delay_s = delay_s
        self._keep_s = keep_s
        self._budget_bytes = budget_bytes
        self._refill_s = refill_s
        self._tracks: dict[str, Track] = {}
        self._mode = Mode.LIVE
        self._speed = 1.0
        self._playhead_s: float | None = None
        self._ticked_s: float | None = None
        self._jump = False
        self._loop: tuple[float, float] | None = None
        self._skipped = 0
        self._counts: dict[int, int] = {}

    # what it holds

    @property
    def mode(self) -> Mode:
        """What moves the playhead."""
        return self._mode

    @property
    def speed(self) -> float:
        """Seconds of stream per second of clock while playing; live it is 1."""
        return 1.0 if self._mode is Mode.LIVE else self._speed

    @property
    def playhead_s(self) -> float | None:
        """Where the playhead stands; None before the first tick."""
        return self._playhead_s

    @property
    def keys(self) -> tuple[str, ...]:
        """Replicas that have a past here, in the order in which they came."""
        return tuple(self._tracks)

    def span(self) -> tuple[float, float] | None:
        """The times of the oldest and newest token kept, or None where there is none."""
        tracks = [track for track in self._tracks.values() if track.kept]
        if not tracks:
            return None
        return min(t.kept[0].first_s for t in tracks), max(t.kept[-1].last_s for t in tracks)

    def nbytes(self, key: str) -> int:
        """Bytes kept for one replica."""
        return self._tracks[key].nbytes if key in self._tracks else 0

    def tokens(self, key: str, limit: int) -> list[Segment]:
        """The last tokens of `key` at or before the playhead, at most `limit`, oldest first."""
        if key not in self._tracks or self._playhead_s is None:
            return []
        return self._tracks[key].last(limit, self._playhead_s)

    def counts(self, from_s: float, to_s: float) -> list[int]:
        """Tokens of all replicas per `SLOT_S` of the time from `from_s` to `to_s`."""
        return [self._counts.get(slot, 0) for slot in range(int(from_s // SLOT_S), int(to_s // SLOT_S))]

    # what comes in

    def add(self, key: str, blocks: Iterable[FrameBlock], now_s: float, *, live: bool = True) -> None:
        """Keep the frames of one message, in stream order. `live` is False for the past that came first."""
        track = self._tracks.setdefault(key, Track(key))
        filled = [block for block in blocks if len(block)]
        if live and filled:
            measured_s = float(filled[-1].columns["ended_ns"].max()) / 1e9
            track.lag.learn(now_s - measured_s, now_s)
        for block in filled:
            self._keep(track, block, now_s, live)
        self._forget(track)

    def _keep(self, track: Track, block: FrameBlock, now_s: float, live: bool) -> None:
        at_s = block.columns["ended_ns"].astype(np.float64) / 1e9 + track.lag.value_s
        at_s = np.minimum(at_s, now_s)  # nothing was measured after it got here
        if track.kept:
            at_s = np.maximum(at_s, track.kept[-1].last_s)
        at_s = np.maximum.accumulate(at_s)
        self._count(at_s)
        idle = track.played_all()
        track.add(block, at_s, live=live)
        playhead_s = self._playhead_s if self._playhead_s is not None else now_s - self.delay_s
        if idle and at_s[-1] <= playhead_s - self._refill_s:
            track.move_to(playhead_s)  # of a past that would light nothing any more

    def _count(self, at_s: NDArray[np.float64]) -> None:
        slots, counts = np.unique((at_s // SLOT_S).astype(np.int64), return_counts=True)
        for slot, count in zip(slots.tolist(), counts.tolist(), strict=True):
            self._counts[slot] = self._counts.get(slot, 0) + count
        newest = int(slots[-1])
        if len(self._counts) > 2 * self._keep_s / SLOT_S:
            self._counts = {
                slot: n for slot, n in self._counts.items() if slot > newest - self._keep_s / SLOT_S
            }

    def _forget(self, track: Track) -> None:
        newest_s = track.kept[-1].last_s if track.kept else 0.0
        while len(track.kept) > 1 and (
            track.nbytes > self._budget_bytes or track.kept[0].last_s < newest_s - self._keep_s
        ):
            self._skipped += track.forget()

    def drop(self, key: str) -> None:
        """Forget a replica."""
        self._tracks.pop(key, None)

    # what moves the playhead

    def pause(self) -> None:
        """Stand exactly here."""
        self._mode = Mode.PAUSED

    def resume(self) -> None:
        """Go on from exactly here, behind the present."""
        if self._mode is Mode.PAUSED:
            self._mode = Mode.PLAYING

    def toggle(self) -> None:
        """Pause, or go on from where it was paused."""
        if self._mode is Mode.PAUSED:
            self.resume()
        else:
            self.pause()

    def go_live(self) -> None:
        """Back to the present, at its own speed."""
        self._loop = None
        if self._mode is not Mode.LIVE:
            self._mode, self._speed, self._jump = Mode.LIVE, 1.0, True

    def set_speed(self, speed: float) -> None:
        """Play at `speed` seconds of stream per second, behind the present."""
        if not 0.0 < speed <= 100.0:
            raise ValueError(f"speed must be over 0 and at most 100, not {speed}")
        self._speed = speed
        if self._mode is Mode.LIVE and speed != 1.0:
            self._mode = Mode.PLAYING

    def seek(self, to_s: float) -> None:
        """Put the playhead at `to_s`, within what is kept. Live playing ends; a pause stays one."""
        span = self.span()
        if span is None or self._playhead_s is None:
            return
        self._playhead_s = min(max(to_s, span[0]), span[1])
        self._jump = True
        if self._mode is Mode.LIVE:
            self._mode = Mode.PLAYING

    @property
    def looped(self) -> tuple[float, float] | None:
        """From when to when the past is played again and again; None: it is not."""
        return self._loop

    def loop(self, span: tuple[float, float] | None) -> None:
        """Play from the first to the second time again and again; None: go on from here."""
        self._loop = span
        if span is not None:
            self.seek(span[0])
            self._mode = Mode.PLAYING

    def refresh(self) -> None:
        """Have the scene filled anew where the playhead stands."""
        self._jump = self._playhead_s is not None

    def kept(self, key: str) -> list[Kept]:
        """The kept past of one replica, oldest first."""
        return list(self._tracks[key].kept) if key in self._tracks else []

    def next_spot(self, keys: Iterable[str], why: Why) -> Spot | None:
        """Pause on the next token that stands out, behind the last one from the first; None: none does."""
        found = sorted((s for key in keys for s in spots(self.kept(key), why)), key=lambda spot: spot.at_s)
        if not found or self._playhead_s is None:
            return None
        at_s = self._playhead_s
        ahead = next((spot for spot in found if spot.at_s > at_s), found[0])
        self.show_spot(ahead)
        return ahead

    def show_spot(self, spot: Spot) -> None:
        """Pause on this token."""
        self._loop = None
        self.pause()
        self.seek(spot.at_s)

    def seek_by(self, seconds: float) -> None:
        """Move the playhead by so many seconds."""
        if self._playhead_s is not None:
            self.seek(self._playhead_s + seconds)

    def step(self, tokens: int, keys: Iterable[str] | None = None) -> None:
        """Pause, and put the playhead on the next (1) or previous (-1) moment at which a token came."""
        if self._playhead_s is None:
            return
        self.pause()
        moments = self._moments(self._tracks if keys is None else keys)
        if not moments:
            return
        here = bisect_right(moments, self._playhead_s) - 1  # the moment that is shown now
        to = min(max(here + tokens, 0), len(moments) - 1)
        if tokens < 0 or moments[to] != moments[max(here, 0)] or here < 0:
            self._playhead_s = moments[to]
            self._jump = True

    def _moments(self, keys: Iterable[str]) -> list[float]:
        kept = [k.at_s for key in keys if key in self._tracks for k in self._tracks[key].kept]
        return np.unique(np.concatenate(kept)).tolist() if kept else []

    # time passes

    def tick(self, now_s: float) -> Played:
        """Move the playhead to where it should be at `now_s`; say what it passed over."""
        before_s = self._playhead_s
        self._playhead_s = self._next(now_s)
        skipped, self._skipped = self._skipped, 0
        if self._jump and before_s is not None:
            self._jump = False
            return Played(self._playhead_s, self._refill(), jumped=True, skipped=skipped)
        self._jump = False
        return Played(self._playhead_s, self._due(), skipped=skipped)

    def _next(self, now_s: float) -> float:
        since_s = 0.0 if self._ticked_s is None else max(0.0, now_s - self._ticked_s)
        self._ticked_s = now_s
        live_s = now_s - self.delay_s
        if self._playhead_s is None or self._mode is Mode.LIVE:
            return live_s
        if self._mode is Mode.PAUSED or self._jump:
            return self._playhead_s
        if self._loop is not None and self._playhead_s >= min(self._loop[1], live_s):
            self._jump = True
            return self._loop[0]
        return min(self._playhead_s + since_s * self._speed, live_s)

    def _due(self) -> tuple[Segment, ...]:
        playhead_s = self._playhead_s or 0.0
        return tuple(segment for track in self._tracks.values() for segment in track.due(playhead_s))

    def _refill(self) -> tuple[Segment, ...]:
        """What lights the scene at the playhead; what comes after it is due next."""
        playhead_s = self._playhead_s or 0.0
        segments: list[Segment] = []
        for track in self._tracks.values():
            segments += track.between(playhead_s - self._refill_s, playhead_s)
            track.move_to(playhead_s)
        return tuple(segments)


__all__ = ["Mode", "Played", "Segment", "Timeline"]
