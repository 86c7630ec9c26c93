"""A replica that is played step by step, and the figures that a collector makes of what comes.

The agent's own folding makes its sketches, the collector's own aggregate reads what comes, and what is held
in truth is known at every step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fulgurite.agent.folding import Folding
from fulgurite.agent.pump import _only
from fulgurite.agent.wanted import Wanted
from fulgurite.collector.aggregate import Aggregate
from fulgurite.collector.gauges import is_kept_whole
from fulgurite.v1 import viewer_pb2
from fulgurite.wire.codec import codec_for, schema_for
from fulgurite.wire.frame import FrameBatch, FrameBlock, RequestEvent, RequestRef
from fulgurite.wire.sketch import Sketch
from fulgurite.wire.topology import Topology

SECOND_NS = 1_000_000_000
T0_NS = 1_700_000_000 * SECOND_NS
STEP_S = 0.02
BYTES = 512
ONE_IN = 4
CODEC = codec_for(
    schema_for(
        Topology(
            model_name="tiny",
            architecture="LlamaForCausalLM",
            layers=2,
            heads=2,
            kv_heads=2,
            head_dim=8,
            hidden_size=16,
            ffn_size=32,
            vocab_size=100,
        )
    )
)
KEPT = [f"w{n}" for n in range(100) if is_kept_whole(RequestRef(f"w{n}"), ONE_IN)]
FOLDED = [f"f{n}" for n in range(100) if not is_kept_whole(RequestRef(f"f{n}"), ONE_IN)]


@dataclass
class Played:
    """A replica and its collector, in one loop without a clock."""

    step: int = 0
    watched: bool = False
    made: int = 0
    changes: int = 0
    _was_watched: bool = False
    tokens: dict[str, int] = field(default_factory=dict)
    folding: Folding = field(default_factory=Folding)
    figures: Aggregate = field(
        default_factory=lambda: Aggregate(is_kept_whole=lambda request: is_kept_whole(request, ONE_IN))
    )

    @property
    def now_s(self) -> float:
        return self.step * STEP_S

    @property
    def now_ns(self) -> int:
        return T0_NS + round(self.now_s * SECOND_NS)

    @property
    def kv_tokens(self) -> int:
        """In truth."""
        return sum(self.tokens.values())

    def begin(self, request: str) -> None:
        self.tokens[request] = 0
        self._tell(RequestEvent(request_id=request, kind="started", time_ns=self.now_ns))

    def end(self, request: str) -> None:
        del self.tokens[request]
        self._tell(RequestEvent(request_id=request, kind="finished", time_ns=self.now_ns))

    def settle(self) -> None:
        """What waits to be folded is sent."""
        if sketches := self.folding.due(self.now_s, at_once=True):
            self._send(sketches=tuple(sketches))

    def _tell(self, event: RequestEvent) -> None:
        self.folding.event(event, self.now_s)
        self._send(events=(event,))

    def turn(self, steps: int = 1) -> None:
        """Each request gets so many tokens, which go the way that is asked for."""
        for _ in range(steps):
            self.step += 1
            if self.tokens:
                self._make()
            if sketches := self.folding.due(self.now_s):
                self._send(sketches=tuple(sketches))

    def _make(self) -> None:
        names = list(self.tokens)
        prefill = np.array([self.tokens[name] == 0 for name in names])
        for name in names:
            self.tokens[name] += 1
        block = block_of(names, [self.tokens[name] for name in names], prefill, self.now_ns)
        self.made += len(names)
        self.changes += len(names) * (self.watched != self._was_watched)
        self._was_watched = self.watched
        rows = Wanted(watched=self.watched, one_in=ONE_IN).rows(block)
        if rows is True:
            self._send(block)
        elif rows is False:
            self.folding.take(block, self.now_s)
        else:
            self._send(_only(block, rows))
            self.folding.take(_only(block, ~rows), self.now_s)

    def _send(
        self,
        *blocks: FrameBlock,
        events: tuple[RequestEvent, ...] = (),
        sketches: tuple[Sketch, ...] = (),
    ) -> None:
        batch = FrameBatch(epoch_ms=1, first_sequence=1, blocks=blocks, events=events, sketches=sketches)
        decoded = CODEC.decode(CODEC.encode(batch).SerializeToString())
        self.figures.fold(decoded, self.now_ns)

    def status(self) -> viewer_pb2.ReplicaStatus:
        return self.figures.status(self.now_ns)


def block_of(names: list[str], kv_tokens: list[int], prefill: np.ndarray, ended_ns: int) -> FrameBlock:
    count = len(names)
    held = np.array(kv_tokens, np.int64)
    return FrameBlock(
        tuple(RequestRef(name) for name in names),
        {
            "request_index": np.arange(count, dtype=np.uint16),
            "sequence": np.zeros(count, np.uint16),
            "position": (held - 1).astype(np.int32),
            "token_id": np.full(count, -1, np.int32),
            "phase": np.where(prefill, 0, 1).astype(np.uint8),
            "level": np.full(count, 2, np.uint8),
            "step": held,
            "started_ns": np.full(count, ended_ns - round(STEP_S * SECOND_NS)),
            "ended_ns": np.full(count, ended_ns),
            "head_write": np.full((count, 2, 2), 0.5, np.float32),
            "kv_tokens": np.repeat(held[:, None], 2, axis=1).astype(np.int32),
            "kv_bytes": BYTES * held,
        },
    )
