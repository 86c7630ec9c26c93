"""What the page shows around the picture, as plain JSON values under the names of the page's state. Pure."""

from __future__ import annotations

import html
from typing import Any

from fulgurite.viewer.colors import REQUESTS
from fulgurite.viewer.inspection import card
from fulgurite.viewer.session import GAP_SHOWN_S, Replica, Session
from fulgurite.viewer.strip import Chip, Lane
from fulgurite.viewer.timeline import SLOT_S, Mode

GAP_WORDS = {
    "slow_viewer": "skipped: this viewer was too slow",
    "trimmed": "no longer kept by the collector",
    "dropped_by_agent": "dropped in the model's process",
    "lost": "lost on the way",
    "malformed": "could not be read",
}


def facts(session: Session) -> dict[str, Any]:
    """Everything that changes around the picture."""
    return {
        "fg_replicas": [_button(session, key) for key in session.replicas],
        "fg_strip": [_strip(session, key) for key in session.shown],
        "fg_time": _time(session),
        "fg_mode": session.timeline.mode.value,
        "fg_behind": _behind(session),
        "fg_level": _level(session),
        "fg_card": _card(session),
        "fg_contribution": session.storm.shows_contribution,
        "fg_camera": session.storm.camera.preset,
        **_connection(session),
    }


def _card(session: Session) -> dict[str, Any] | None:
    """What is said of the node under the pointer, or of the pinned one."""
    found = session.inspected
    if found is None:
        return None
    key, pick = found
    said = card(session.storm[key], pick, session.scene_s)
    mark = None if session.mark is None else [round(share, 4) for share in session.mark]
    return {**said, "pinned": session.pinned is not None, "replica": session.name(key), "mark": mark}


def _connection(session: Session) -> dict[str, str]:
    if session.replicas:
        lost = session.down_reason if session.connected is False else ""
        return {"fg_waiting": "", "fg_advice": "", "fg_lost": lost}
    if session.connected:
        waiting, text = (
            "Waiting for a model",
            session.down_reason
            or (
                f"The collector at {session.address} answers; no replica showed itself yet. Attach one with "
                "`fulgurite.agent.instrument(model)`, or start a server with `fulgurite run -- COMMAND`."
            ),
        )
    elif session.connected is False:
        waiting = f"Waiting for a collector at {session.address}"
        text = session.down_reason[:1].upper() + session.down_reason[1:] + ". This page goes on by itself."
    else:
        waiting, text = f"Looking for a collector at {session.address}", ""
    return {"fg_waiting": waiting, "fg_advice": marked(text), "fg_lost": ""}


def marked(text: str) -> str:
    """Plain text as HTML: escaped, with what stands between back-ticks as code."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))


def _state(session: Session, replica: Replica) -> str:
    """The colour of its dot: how the replica is, whatever the playhead does."""
    if session.connected is False:
        return "lost"
    if replica.status is not None and replica.status.state:
        return replica.status.state
    return "live" if replica.tokens else "idle"


def _button(session: Session, key: str) -> dict[str, Any]:
    replica = session.replicas[key]
    rate = replica.status.tokens_per_s if replica.status is not None else None
    return {
        "key": key,
        "name": session.name(key),
        "shown": key in session.shown,
        "state": _state(session, replica),
        "rate": "" if rate is None else f"{rate:.0f} tok/s",
        "tooltip": f"{key}: {replica.seen.topology.model_name}. Show or hide it.",
    }


def _level(session: Session) -> str:
    levels = {session.state_level(key) for key in session.shown} - {""}
    return "" if not levels else "level " + " / ".join(sorted(levels))


def _behind(session: Session) -> str:
    if session.timeline.mode is Mode.LIVE or session.timeline.playhead_s is None:
        return ""
    behind_s = max(0.0, session.window()[1] - session.timeline.playhead_s)
    speed = session.timeline.speed
    return f"−{behind_s:.1f} s" + (
        "" if speed == 1.0 or session.timeline.mode is Mode.PAUSED else f" ×{speed:g}"
    )


def _time(session: Session) -> dict[str, Any]:
    from_s, to_s = session.window()
    counts = session.timeline.counts(from_s, to_s)
    peak = max(counts, default=0)
    width = max(to_s - from_s, 1e-9)
    at_s = session.timeline.playhead_s
    return {
        "bins": [round(count / peak, 3) if peak else 0.0 for count in counts],
        "peak": round(peak / SLOT_S),
        "span": round(width),
        "at": 1.0 if at_s is None else round(min(1.0, max(0.0, (at_s - from_s) / width)), 4),
        "gaps": sorted(
            {round((gap_s - from_s) / width, 3) for gap_s in session.gaps_s if from_s <= gap_s <= to_s}
        ),
    }


def _strip(session: Session, key: str) -> dict[str, Any]:
    replica = session.replicas[key]
    tints = dict(session.storm[key].requests)
    return {
        "key": key,
        "name": session.name(key),
        "state": _state(session, replica),
        "figures": _figures(replica),
        "lanes": [_lane(lane, tints) for lane in session.strip.rows(key)],
        "unseen": session.strip.unseen(key, session.scene_s),
        "gap": _gap(session, replica),
        "empty": "No token here yet."
        if session.timeline.mode is Mode.LIVE
        else "No token was kept from before this moment.",
    }


def _figures(replica: Replica) -> str:
    status = replica.status
    words = [replica.seen.topology.model_name]
    if status is not None and status.inter_token_p50_s is not None:
        words.append(f"{1000 * status.inter_token_p50_s:.1f} ms/token")
    if status is not None and status.first_token_p50_s is not None and status.first_token_p50_s > 0.0:
        words.append(f"{1000 * status.first_token_p50_s:.0f} ms to first")
    if replica.seen.tokens == "off":
        words.append("text is off")
    elif replica.seen.tokens == "ids":
        words.append("ids only")
    return "  ·  ".join(words)


def _gap(session: Session, replica: Replica) -> str:
    if session.now_s - replica.gap_s < GAP_SHOWN_S:
        return f"{replica.missed:,} tokens not shown: {GAP_WORDS.get(replica.gap_reason, replica.gap_reason)}"
    return replica.trouble


def _lane(lane: Lane, tints: dict[str, int]) -> dict[str, Any]:
    if lane.request_id in tints:
        lane.tint = tint(tints[lane.request_id])
    return {
        "id": f"{lane.request_id}/{lane.sequence}",
        "request": lane.request_id,
        "sequence": lane.sequence,
        "label": short(lane.request_id) + (f"·{lane.sequence}" if lane.sequence else ""),
        "tint": lane.tint,
        "chips": [_chip(chip) for chip in lane.chips],
    }


def tint(color: int) -> str:
    """A request's colour of the scene, as ``#rrggbb``."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in REQUESTS[color][1])


def short(request_id: str) -> str:
    """The end of a request's id, where ids differ."""
    return request_id if len(request_id) <= 8 else request_id[-8:]


def _chip(chip: Chip) -> list[Any]:
    return [
        chip.serial,
        chip.text,
        _rounded(chip.probability, 4),
        chip.position,
        _rounded(chip.logprob, 4),
        _rounded(chip.entropy, 4),
        chip.rank,
        chip.phase,
        None if chip.step_s is None else round(1000 * chip.step_s, 2),
        chip.token_id,
    ]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
