"""What is written over a replica's picture: its figures, as text. None is left out, never written as zero.

`Hud` is what the front-end knows of a replica; the lines are plain text here and painted by `lettering`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fulgurite.wire.topology import Topology

UNVERIFIED = "unverified on this model"

STATE_WORDS = {
    "waiting": "no frames yet",
    "live": "",
    "idle": "idle",
    "lost": "connection lost",
    "ended": "ended",
    "gap": "frames missing",
    "paused": "paused",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hud:
    """The figures of one replica. None: not known.

    Attributes
    ----------
    replica : its short name; empty: the scene's title stands alone.
    state : a key of `STATE_WORDS`.
    kv_tokens, kv_bytes, kv_capacity_bytes : int
    level : ``pulse``, ``heads``, ``deep``.
    overhead_ratio : the agent's share of the model's step time.
    gap_frames : frames known to be missing in this stream: the ledger's dropped, and what was skipped here.
    latency_s : token committed to picture shown, in seconds.
    faithfulness : verdict of the gates for this model; empty: they were not measured.
    """

    replica: str = ""
    state: str = "live"
    tokens_per_s: float | None = None
    running_requests: int | None = None
    waiting_requests: int | None = None
    kv_tokens: int | None = None
    kv_bytes: int | None = None
    kv_capacity_bytes: int | None = None
    level: str = ""
    overhead_ratio: float | None = None
    gap_frames: int | None = None
    latency_s: float | None = None
    faithfulness: str = ""


def model_line(topology: Topology) -> str:
    """What the model is: ``8 layers x 8 heads · 2 KV heads · 4.2 M parameters``."""
    if topology.is_black_box:
        return "its inside is not measured"
    parts = [f"{topology.layers} layers × {topology.heads} heads"]
    if topology.layers * topology.heads >= 1000:
        parts[0] += f" = {topology.layers * topology.heads:,}"
    if 0 < topology.kv_heads < topology.heads:
        parts.append(f"{topology.kv_heads} KV heads")
    if topology.experts:
        parts.append(f"{topology.experts} experts, {topology.experts_per_token} active")
    if topology.parameters:
        parts.append(f"{quantity(topology.parameters)} parameters")
    return "  ·  ".join(parts)


def speed_line(hud: Hud) -> str:
    """Throughput: ``41 tok/s · 3 running``; the state where nothing flows."""
    word = STATE_WORDS.get(hud.state, hud.state)
    parts = [word] if word else []
    if hud.tokens_per_s is not None:
        parts.append(
            f"{hud.tokens_per_s:,.0f} tok/s" if hud.tokens_per_s >= 10 else f"{hud.tokens_per_s:.1f} tok/s"
        )
    if hud.running_requests is not None:
        parts.append(f"{hud.running_requests} running")
    if hud.waiting_requests:
        parts.append(f"{hud.waiting_requests} waiting")
    return "  ·  ".join(parts)


def memory_line(hud: Hud, tokens_per_chain: float | None, left_out: str = "") -> str:
    """Cache, sampling, what is left out: ``KV 812 tokens, 1.7 MB · level heads · 1 chain = 3 tokens``."""
    parts = []
    kv = _kv(hud)
    if kv:
        parts.append(kv)
    if hud.level:
        parts.append(f"level {hud.level}")
    if tokens_per_chain is not None:
        parts.append(f"1 chain = {_count(tokens_per_chain)}")
    if left_out:
        parts.append(left_out)
    return "  ·  ".join(parts)


def account_line(hud: Hud) -> str:
    """What the agent costs and lost: ``agent 1.8 % · no gaps · 41 ms to screen``."""
    parts = []
    if hud.overhead_ratio is not None:
        parts.append(f"agent {100 * hud.overhead_ratio:.1f} %")
    if hud.gap_frames is not None:
        parts.append(f"{hud.gap_frames:,} frames missing" if hud.gap_frames else "no gaps")
    if hud.latency_s is not None:
        parts.append(f"{1000 * hud.latency_s:,.0f} ms to screen")
    return "  ·  ".join(parts)


def badge(hud: Hud) -> str:
    """The faithfulness badge: what the gates said of this model, or that nobody asked them."""
    return f"faithfulness: {hud.faithfulness}" if hud.faithfulness else UNVERIFIED


def quantity(value: float) -> str:
    """A count for people: ``4.2 M``."""
    for size, name in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:g}"


def bytes_text(value: float) -> str:
    """Bytes for people: ``1.7 MB``."""
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.0f} B"


def _kv(hud: Hud) -> str:
    if hud.kv_bytes is not None and hud.kv_capacity_bytes:
        return f"KV {100 * hud.kv_bytes / hud.kv_capacity_bytes:.0f} %"
    known = []
    if hud.kv_tokens is not None:
        known.append(f"{hud.kv_tokens:,} tokens")
    if hud.kv_bytes is not None:
        known.append(bytes_text(hud.kv_bytes))
    return f"KV {', '.join(known)}" if known else ""


def _count(tokens: float) -> str:
    rounded = max(1, round(tokens))
    return "1 token" if rounded == 1 else f"{rounded} tokens"
