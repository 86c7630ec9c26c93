"""The frame: everything that was captured for one generated token of one sequence.

A `FrameBlock` holds the frames of some steps as columns, which is how they are captured, sent and drawn; a
`Frame` is one row of it, for people and for tests. Both are immutable: nobody writes into an array that was
handed over.

Shape letters: n frames; the others are those of `fulgurite.wire.channels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fulgurite.wire.channels import BY_NAME, LEVELS, PHASES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fulgurite.wire.sketch import Sketch

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class RequestRef:
    """A request and the trace that it belongs to (hexadecimal ids, empty where there is none)."""

    request_id: str
    trace_id: str = ""
    span_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEvent:
    """What happened to a request where no token can say it.

    Attributes
    ----------
    kind : ``started``, ``finished``, ``aborted`` or ``preempted``.
    time_ns : UNIX time.
    prompt_tokens : the longest prompt among the rows, padding not counted.
    prompt_texts : only where token text was switched on.
    winning_rows : beam rows that were returned.
    generated_tokens : of all sequences, where a server says it itself; else 0.
    """

    request_id: str
    kind: str
    time_ns: int
    prompt_tokens: int = 0
    prompt_tokens_per_row: tuple[int, ...] = ()
    sequences: int = 0
    reason: str = ""
    prompt_texts: tuple[str, ...] = ()
    winning_rows: tuple[int, ...] = ()
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The display scale: per node kind (`head`, `ffn`), the value drawn unlit and the value drawn fully lit.

    Quantiles of the stream itself, over `tokens` tokens; version 0 is the one before anything was measured.
    """

    version: int
    kinds: Mapping[str, tuple[float, float]]
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One generated token: who, when, and every captured channel. A channel that was not captured is None.

    Units, formulas and shapes are those of `fulgurite.wire.channels.CHANNELS`; entries that are undefined (a
    layer without attention) are NaN, integer ones -1.
    """

    request_id: str
    sequence: int
    position: int
    token_id: int
    phase: str
    step: int
    level: str
    started_ns: int
    ended_ns: int
    trace_id: str = ""
    span_id: str = ""
    token_text: str | None = None
    parent_row: int = -1
    batch_size: int | None = None
    logprob: float | None = None
    logprob_sampled: float | None = None
    entropy: float | None = None
    margin: float | None = None
    rank: int | None = None
    top_ids: NDArray[np.int32] | None = None
    top_logprobs: Array | None = None
    lens_rank: NDArray[np.int32] | None = None
    lens_prob: Array | None = None
    head_write: Array | None = None
    ffn_write: Array | None = None
    ffn_cosine: Array | None = None
    residual_norm: Array | None = None
    neuron_ids: NDArray[np.int32] | None = None
    neuron_values: Array | None = None
    head_contribution: Array | None = None
    ffn_contribution: Array | None = None
    embedding_contribution: float | None = None
    other_contribution: float | None = None
    residue: float | None = None
    logit_centered: float | None = None
    attention_entropy: Array | None = None
    sink_mass: Array | None = None
    learned_sink_mass: Array | None = None
    attended_positions: NDArray[np.int32] | None = None
    attended_weights: Array | None = None
    measured_layers: NDArray[np.uint8] | None = None
    expert_ids: NDArray[np.int16] | None = None
    expert_weights: Array | None = None
    kv_tokens: NDArray[np.int32] | None = None
    kv_bytes: int | None = None
    kv_heat: Array | None = None


@dataclass(frozen=True, slots=True)
class FrameBlock:
    """Frames with the same set of channels, as columns.

    Attributes
    ----------
    requests : tuple of RequestRef
        `request_index` points into it.
    columns : mapping of str to ndarray, shape (n, *channel shape)
        By channel name. Floating columns are float32 in the process that captured them; what was decoded from
        the wire has the precision of its encoding, widened to float32.
    texts : tuple of str, length n, or None
        Text of each emitted token; None unless it was switched on.
    """

    requests: tuple[RequestRef, ...]
    columns: Mapping[str, Array]
    texts: tuple[str, ...] | None = field(default=None)

    def __post_init__(self) -> None:
        unknown = [name for name in self.columns if name not in BY_NAME]
        if unknown:
            raise ValueError(f"no such channel: {', '.join(sorted(unknown))}")

    def __len__(self) -> int:
        return len(self.columns["position"])

    def frame(self, row: int) -> Frame:
        """The frame in `row`. Its arrays are views of the block's columns."""
        values: dict[str, Any] = {}
        for name, column in self.columns.items():
            value = column[row]
            values[name] = value.item() if value.ndim == 0 else value
        request = self.requests[values.pop("request_index")]
        values["phase"] = PHASES[values["phase"]]
        values["level"] = LEVELS[values["level"]]
        text = self.texts[row] if self.texts is not None else None
        return Frame(
            request_id=request.request_id,
            trace_id=request.trace_id,
            span_id=request.span_id,
            token_text=text,
            **values,
        )

    def frames(self) -> Iterator[Frame]:
        """Every frame, in order."""
        return (self.frame(row) for row in range(len(self)))

    def select(self, rows: Sequence[int] | Array) -> FrameBlock:
        """The same channels for some of the rows."""
        index = np.asarray(rows)
        columns = {name: column[index] for name, column in self.columns.items()}
        texts = None if self.texts is None else tuple(self.texts[i] for i in index)
        return FrameBlock(self.requests, columns, texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameBatch:
    """What one message carries: blocks of frames in stream order, with the events and scales beside them.

    Frame i over all blocks has stream sequence `first_sequence` + i in epoch `epoch_ms`.
    """

    epoch_ms: int
    first_sequence: int
    blocks: tuple[FrameBlock, ...]
    events: tuple[RequestEvent, ...] = ()
    scales: tuple[Scale, ...] = ()
    sent_ns: int = 0
    sketches: tuple[Sketch, ...] = ()

    def __len__(self) -> int:
        return sum(len(block) for block in self.blocks)

    @property
    def last_sequence(self) -> int:
        """Stream sequence of the last frame; `first_sequence` - 1 for a batch of events alone."""
        return self.first_sequence + len(self) - 1

    def frames(self) -> Iterator[Frame]:
        """Every frame, in stream order."""
        return (frame for block in self.blocks for frame in block.frames())
