"""The token strip: what was emitted, as rows of chips, one row per sequence of a request. Pure.

A row keeps its place as long as it is shown, so that text can be read while it grows; the row whose
sequence has been silent longest makes room for a new one.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from fulgurite.viewer.track import Segment
from fulgurite.wire.channels import PHASES
from fulgurite.wire.frame import FrameBlock


@dataclass(frozen=True, slots=True)
class Chip:
    """One emitted token. None: not captured, or not switched on.

    Attributes
    ----------
    serial : counts the chips of a strip; never twice the same.
    probability : of this token, from its log-probability under the model's raw logits.
    logprob, entropy : nats.
    """

    serial: int
    position: int
    phase: str
    text: str | None = None
    token_id: int | None = None
    probability: float | None = None
    logprob: float | None = None
    entropy: float | None = None
    rank: int | None = None
    step_s: float | None = None


@dataclass(slots=True)
class Lane:
    """One row: the newest tokens of one sequence.

    Attributes
    ----------
    tint : its colour; whoever knows the scene's colour of the request sets it.
    last_s : when its newest token was played.
    """

    request_id: str
    sequence: int
    tint: str
    chips: deque[Chip]
    last_s: float = 0.0


@dataclass(slots=True)
class _Board:
    """The rows of one replica, and the sequences that have none."""

    lanes: list[Lane] = field(default_factory=list)
    elsewhere: dict[tuple[str, int], float] = field(default_factory=dict)  # sequence -> its newest token


class Strip:
    """Rows of chips per replica.

    Parameters
    ----------
    tint : colour (``#rrggbb``) of a row until it gets that of its request.
    lanes : rows per replica.
    chips : tokens per row.
    hold_s : how long a silent row is kept while another sequence wants its place.
    """

    def __init__(self, tint: str, *, lanes: int = 3, chips: int = 64, hold_s: float = 1.5) -> None:
        self._tint = tint
        self._lanes = lanes
        self._chips = chips
        self._hold_s = hold_s
        self._boards: dict[str, _Board] = {}
        self._serial = 0

    def clear(self, key: str | None = None) -> None:
        """Empty the rows of one replica, or of all."""
        if key is None:
            self._boards.clear()
        else:
            self._boards.pop(key, None)

    def rows(self, key: str) -> tuple[Lane, ...]:
        """The rows of a replica, from the top."""
        return tuple(self._boards[key].lanes) if key in self._boards else ()

    def unseen(self, key: str, now_s: float) -> int:
        """How many sequences emitted tokens in the last `hold_s` and have no row."""
        if key not in self._boards:
            return 0
        return sum(now_s - last_s <= self._hold_s for last_s in self._boards[key].elsewhere.values())

    def feed(self, segment: Segment) -> None:
        """Append tokens that were played."""
        board = self._boards.setdefault(segment.key, _Board())
        block = segment.block
        for row, at_s in enumerate(segment.at_s.tolist()):
            request_id = block.requests[int(block.columns["request_index"][row])].request_id
            sequence = int(block.columns["sequence"][row]) if "sequence" in block.columns else 0
            lane = self._lane(board, (request_id, sequence), at_s)
            if lane is not None:
                lane.chips.append(self._chip(block, row))
                lane.last_s = at_s

    def _lane(self, board: _Board, of: tuple[str, int], at_s: float) -> Lane | None:
        for lane in board.lanes:
            if (lane.request_id, lane.sequence) == of:
                return lane
        place = self._place(board, at_s)
        if place is None:
            board.elsewhere[of] = at_s
            if len(board.elsewhere) > 1024:
                board.elsewhere.pop(next(iter(board.elsewhere)))
            return None
        board.elsewhere.pop(of, None)
        lane = Lane(of[0], of[1], self._tint, deque(maxlen=self._chips), at_s)
        board.lanes[place : place + 1] = [lane]
        return lane

    def _place(self, board: _Board, at_s: float) -> int | None:
        if len(board.lanes) < self._lanes:
            return len(board.lanes)
        place = min(range(len(board.lanes)), key=lambda index: board.lanes[index].last_s)
        return place if at_s - board.lanes[place].last_s > self._hold_s else None

    def _chip(self, block: FrameBlock, row: int) -> Chip:
        self._serial += 1
        logprob = _number(block, "logprob", row)
        started, ended = _whole(block, "started_ns", row), _whole(block, "ended_ns", row)
        return Chip(
            serial=self._serial,
            position=int(block.columns["position"][row]),
            phase=PHASES[int(block.columns["phase"][row])] if "phase" in block.columns else "",
            text=block.texts[row] if block.texts is not None else None,
            token_id=_whole(block, "token_id", row),
            probability=None if logprob is None else math.exp(min(0.0, logprob)),
            logprob=logprob,
            entropy=_number(block, "entropy", row),
            rank=_whole(block, "rank", row),
            step_s=None if started is None or ended is None else (ended - started) / 1e9,
        )


def _number(block: FrameBlock, name: str, row: int) -> float | None:
    if name not in block.columns:
        return None
    value = float(block.columns[name][row])
    return value if math.isfinite(value) else None


def _whole(block: FrameBlock, name: str, row: int) -> int | None:
    if name not in block.columns:
        return None
    value = int(block.columns[name][row])
    return value if value >= 0 else None
