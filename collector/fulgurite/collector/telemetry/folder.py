"""One replica, folded: batches in, spans, logs and figures out. Pure but for the store's words."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from fulgurite.telemetry.encode import LogRecord, Snapshot, resource_for
from fulgurite.telemetry.metrics import AgentAccount, ReplicaMeter
from fulgurite.telemetry.requests import RequestRecord, Requests
from fulgurite.telemetry.sampling import Divergence, Sampling, TailSampler
from fulgurite.telemetry.spans import spans_of
from fulgurite.v1 import viewer_pb2
from fulgurite.wire.codec import Codec, CodecError, codec_for, resource_from_pb
from fulgurite.wire.frame import FrameBatch, RequestEvent

Array = np.ndarray[Any, Any]
Profile = np.ndarray[tuple[int], np.dtype[np.float64]]

PROVIDER: Final = "fulgurite.provider"
DEFAULT_PROVIDER: Final = "transformers"
_INFO: Final = 9
_WARN: Final = 13
_LEVELS: Final = {"aborted": _WARN, "preempted": _WARN}


@dataclass(slots=True)
class Gathered:
    """What came of some batches."""

    spans: list[Any] = field(default_factory=list)
    logs: list[LogRecord] = field(default_factory=list)


class ReplicaFolder:
    """Folds one replica.

    Parameters
    ----------
    announcement : ReplicaAnnouncement
        What it is.
    now_ns : int
        UNIX time since which its counters count.
    """

    def __init__(
        self,
        announcement: viewer_pb2.ReplicaAnnouncement,
        *,
        sampling: Sampling,
        divergence: Divergence,
        now_ns: int,
    ) -> None:
        self.key = announcement.key
        self.started_ns = now_ns
        self.undecodable = 0
        self._divergence = divergence
        self._requests = Requests(announcement.key)
        self._sampler = TailSampler(sampling)
        self._codecs: dict[bytes, Codec] = {}
        self._window = _Window()
        self._meter = ReplicaMeter(announcement.topology.experts)
        self.meet(announcement)

    def meet(self, announcement: viewer_pb2.ReplicaAnnouncement) -> None:
        """What it is now."""
        codec = codec_for(announcement.schema)
        self._codecs[codec.schema_hash] = codec
        self._model = announcement.topology.model_name or "unknown"
        self._topology_hash = bytes(announcement.schema.topology_hash)
        self.resource = {
            **resource_from_pb(announcement.resource),
            "gen_ai.operation.name": "text_completion",
            "gen_ai.request.model": self._model,
        }
        self._provider = self.resource.pop(PROVIDER, "") or DEFAULT_PROVIDER
        self.resource["gen_ai.provider.name"] = self._provider
        named = {k: v for k, v in self.resource.items() if not k.startswith("gen_ai.")}
        self._sdk_resource = resource_for(named)

    def knows(self, schema_hash: bytes) -> bool:
        """Whether batches with this schema can be read."""
        return schema_hash in self._codecs

    def learn(self, announcement: viewer_pb2.ReplicaAnnouncement) -> None:
        """A schema that it had before."""
        codec = codec_for(announcement.schema)
        self._codecs[codec.schema_hash] = codec

    def fold(self, schema_hash: bytes, data: bytes) -> Gathered:
        """Take a batch as it is stored."""
        try:
            batch = self._codecs[schema_hash].decode(data)
        except (CodecError, KeyError):
            self.undecodable += 1
            return Gathered()
        return self._gather(batch)

    def _gather(self, batch: FrameBatch) -> Gathered:
        self._meter.fold(batch)
        self._window.fold(batch)
        found = Gathered(logs=[self._log(event) for event in batch.events])
        for record in self._requests.fold(batch, time.time_ns()):
            found.spans += self._end(record)
        return found

    def tick(self, now_ns: int) -> Gathered:
        """Time has passed: give up requests that nobody hears of, and tell how this replica is doing."""
        found = Gathered()
        for record in self._requests.give_up(now_ns):
            found.spans += self._end(record)
        profile = self._window.profile()
        if profile is not None:
            self._divergence.tell(self._topology_hash, self.key, *profile)
        return found

    def hear(self, status: viewer_pb2.ReplicaStatus) -> None:
        """What its agent says of itself, as a collector wrote it down."""
        agent = status.agent
        is_here = status.state in ("live", "idle")
        self._meter.account = AgentAccount(
            captured=agent.captured,
            acknowledged=agent.acknowledged,
            pending=agent.pending,
            dropped=dict(agent.dropped),
            errors=dict(agent.errors),
            overhead=agent.overhead_ratio if agent.time_ns and is_here else float("nan"),
            running=agent.running_requests if agent.time_ns and is_here else -1,
            waiting=agent.waiting_requests if agent.time_ns and is_here else -1,
            kv_bytes=agent.kv_bytes if agent.time_ns and is_here else -1,
            kv_capacity=agent.kv_capacity_bytes or -1,
        )

    def snapshot(self, now_ns: int) -> Snapshot:
        """Its figures as of now."""
        return Snapshot(
            resource=self.resource,
            points=self._meter.points(now_ns),
            started_ns=self.started_ns,
            time_ns=now_ns,
        )

    def _end(self, record: RequestRecord) -> list[Any]:
        self._meter.end(record)
        is_diverging = self._divergence.is_diverging(self._topology_hash, self.key)
        return list(
            spans_of(
                record,
                self._sdk_resource,
                model=self._model,
                provider=self._provider,
                because=self._sampler.because(record, is_diverging=is_diverging),
                with_tokens=self._sampler.with_tokens(record),
            )
        )

    def _log(self, event: RequestEvent) -> LogRecord:
        attributes: dict[str, str | int] = {
            "gen_ai.response.id": event.request_id,
            "gen_ai.usage.input_tokens": event.prompt_tokens,
            "fulgurite.sequences": event.sequences,
        }
        if event.reason:
            attributes["fulgurite.reason"] = event.reason
        return LogRecord(
            resource={k: v for k, v in self.resource.items() if not k.startswith("gen_ai.")},
            time_ns=event.time_ns,
            event_name=f"fulgurite.request.{event.kind}",
            body=f"request {event.request_id} {event.kind}" + (f": {event.reason}" if event.reason else ""),
            severity=_LEVELS.get(event.kind, _INFO),
            attributes=attributes,
        )


class _Window:
    """Mean activity per layer over the last tokens, as a profile to compare replicas by."""

    KEPT: Final = 0.9

    def __init__(self) -> None:
        self._total = np.zeros(0)
        self._weight = 0.0
        self._tokens = 0

    def fold(self, batch: FrameBatch) -> None:
        """Take the tokens of a batch; what came before counts less and less."""
        for block in batch.blocks:
            if "head_write" in block.columns and "ffn_write" in block.columns:
                heads = _finite(block.columns["head_write"]).mean(axis=(0, 2))
                ffn = _finite(block.columns["ffn_write"]).mean(axis=0)
                self._take(np.concatenate([heads, ffn]), len(block))
        for sketch in batch.sketches:
            heads_told, ffn_told = sketch.columns.get("head_write"), sketch.columns.get("ffn_write")
            if sketch.request is None and heads_told is not None and ffn_told is not None:
                heads = _finite(heads_told.mean.reshape(heads_told.shape)).mean(axis=1)
                self._take(np.concatenate([heads, _finite(ffn_told.mean)]), sketch.tokens)

    def _take(self, profile: Profile, tokens: int) -> None:
        if profile.shape != self._total.shape:
            self._total, self._weight, self._tokens = np.zeros_like(profile), 0.0, 0
        keep = self.KEPT ** (tokens / 64)
        self._total = self._total * keep + profile * tokens
        self._weight = self._weight * keep + tokens
        self._tokens += tokens

    def profile(self) -> tuple[int, Profile] | None:
        """How many tokens it rests on, and the means; None before any was measured."""
        return (self._tokens, self._total / self._weight) if self._weight else None


def _finite(values: Array) -> Array:
    return np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
