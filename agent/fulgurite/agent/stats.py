"""What the agent says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStats:
    """The agent's account. ``captured == pending + acknowledged + sum(dropped.values())``, always.

    Attributes
    ----------
    captured, acknowledged, pending : int
        Frames handed to the exporter; stored where they were to go; on their way.
    dropped : mapping of str to int
        Frames lost, by reason.
    errors : mapping of str to int
        Failures that were swallowed, by kind.
    level, ceiling : str
        The level in force, and the highest that this attachment can give.
    steps : int
        Forward passes seen.
    overhead_ratio : float
        Our measured share of step time over the last second; NaN before it was measured.
    deep_ratio : float
        Share of steps captured at ``deep`` where that is the level: what was asked for, less where the budget
        does not bear it.
    gram_bytes : int
        Memory of the precomputed projections' Gram matrices.
    shelf_bytes : int
        Memory in which compiled graphs leave what was measured.
    folded : int
        Tokens whose frames nobody asked for: in sketches, not captured.
    spooled_frames, spooled_bytes : int
        Of those pending, what waits on disk.
    clock_offset_s, round_trip_s : float or None
        This machine's clock less the collector's, and the time a word takes there and back; None before it
        was measured.
    unavailable : mapping of str to str
        Channels that cannot be measured soundly on this model, and why.
    """

    captured: int
    acknowledged: int
    pending: int
    level: str
    ceiling: str
    steps: int
    overhead_ratio: float
    deep_ratio: float = 0.0
    gram_bytes: int = 0
    shelf_bytes: int = 0
    folded: int = 0
    spooled_frames: int = 0
    spooled_bytes: int = 0
    clock_offset_s: float | None = None
    round_trip_s: float | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
