"""Continuous batching of transformers: many requests packed into one row, each with its own tokens.

A step is launched with the requests that are in it, and updated when its tokens are known; with two batches
in flight the oldest is updated first. The rows that matter are the last positions of the requests that get a
token, in their order. A request that was put back and starts over goes on where it was; what a fork shares
with its parent is told of both.

Shape letters: n requests that get a token in a step, m tokens that were committed, L layers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fulgurite.agent.assemble import PackedStep
from fulgurite.agent.capture import Capture
from fulgurite.agent.identity import Committed, Request, new_ref, new_request
from fulgurite.agent.probes import Pass
from fulgurite.wire.frame import RequestRef

if TYPE_CHECKING:
    from fulgurite.agent.engines.transformers import Engine

Array = np.ndarray[Any, Any]
_CHILD = "__child#"
_WARMUP = "__warmup_"
_MOST_REFS = 1 << 16
_COUNTED = "req_"  # ids that transformers counts itself, anew in each manager


@dataclass(slots=True)
class _Sequence:
    """One sequence that is under way."""

    group: _Group
    number: int
    is_put_back: bool = False


@dataclass(slots=True)
class _Group:
    """A request: its sequences are the one that was asked for, and its forks."""

    request: Request
    open: set[str] = field(default_factory=set)
    stopped: bool = True


@dataclass(slots=True)
class _Row:
    """A request in a launched batch that gets a token."""

    state: Any
    position: int  # of the token
    prompt: int
    kv_bytes: int


@dataclass(slots=True)
class Batch:
    """A launched batch.

    Attributes
    ----------
    rows : of those that get a token, in the order in which the model's last positions are read.
    requests : how many are in it.
    lengths : generated tokens of each row before the update.
    """

    rows: list[_Row]
    requests: int
    passing: Pass | None = None
    started_ns: int = 0


class Packed:
    """The requests of one model that are batched continuously."""

    def __init__(self, engine: Engine, capture: Capture) -> None:
        self._engine = engine
        self.capture = capture
        self._launched: deque[Batch] = deque()
        self._sequences: dict[str, _Sequence] = {}
        self._refs: dict[str, RequestRef] = {}
        self._used: dict[str, int] = {}
        self.launching: Batch | None = None  # written and read by the one thread that runs the model

    # --- what the engine of transformers does

    def asked(self, request_id: str, ref: RequestRef) -> None:
        """A request was handed in: `ref` names the trace that it belongs to."""
        if len(self._refs) >= _MOST_REFS:  # some never began where anybody looked
            self._refs.pop(next(iter(self._refs)), None)
        self._refs[request_id] = ref

    def accepted(self, processor: Any) -> None:
        """Requests and cancellations were taken from their queues: who is cancelled before its first step?

        Such a request is never launched; it is made known here, so that the next sweep tells that it is over.
        """
        waiting = processor.scheduler.waiting_requests
        for name in getattr(processor.scheduler, "_requests_to_cancel", ()):
            if name in waiting:
                self._know(waiting[name])

    def launches(self, processor: Any) -> None:
        """A step begins: who is in it."""
        futures = processor.inputs_and_outputs.requests_in_batch
        rows = [self._row(f.state, processor.cache) for f in futures if f.has_new_token]
        self.launching = Batch(rows, len(futures), started_ns=time.perf_counter_ns())
        for future in futures:
            self._know(future.state)

    def launched(self) -> None:
        """The step runs, or has run."""
        batch, self.launching = self.launching, None
        if batch is not None:
            self._launched.append(batch)

    def updates(self) -> list[tuple[_Row, int, int]]:
        """The oldest step's tokens are about to be handed out: how far each row is, and its forks."""
        return [
            (row, len(row.state.generated_tokens), row.state.num_children)
            for row in (self._launched[0].rows if self._launched else ())
        ]

    def updated(self, before: list[tuple[_Row, int, int]], processor: Any) -> None:
        """The oldest step's tokens were handed out."""
        now = time.perf_counter_ns()
        batch = self._launched.popleft() if self._launched else None
        if batch is None:
            return
        grown = [
            (place, row, children)
            for place, (row, length, children) in enumerate(before)
            if len(row.state.generated_tokens) == length + 1
        ]
        if grown and batch.passing is not None:
            self._commit(batch, batch.passing, grown, now)
        for _, row, _ in grown:
            if int(row.state.status) >= 3:  # finished, or failed
                self._over(row.state)
        self.sweep(processor)

    def sweep(self, processor: Any, *, is_over: bool = False) -> None:
        """Requests that are no longer there were aborted; those that wait again were put back."""
        active, waiting = processor.scheduler.active_requests, processor.scheduler.waiting_requests
        for name, sequence in tuple(self._sequences.items()):
            if is_over or (name not in active and name not in waiting):
                self._ended(name, "aborted", "stopped" if is_over else "cancelled")
            elif name in active:
                sequence.is_put_back = False
            elif not sequence.is_put_back:
                sequence.is_put_back = True
                self.capture.event(sequence.group.request, "preempted")
        if is_over:
            self._launched.clear()

    def failed(self, state: Any, error: Exception) -> None:
        """A request ended with an error, perhaps before its first step."""
        if state.request_id in self._refs and self.capture.demand.level != "off":
            self._know(state)
        if state.request_id in self._sequences:
            self._ended(state.request_id, "aborted", type(error).__name__)

    # --- the forward pass

    def opened(self, passing: Pass, indices: torch.Tensor) -> None:
        """The pass of the step that is launched: only the positions that give tokens matter.

        Parameters
        ----------
        indices : Tensor of int, shape (n or more,), of these positions.
        """
        assert self.launching is not None
        passing.picked = indices[: len(self.launching.rows)].long()  # a copy: the next batch overwrites it

    def closed(self, passing: Pass) -> None:
        """That pass is over: it has one row per token now."""
        batch = self.launching
        if batch is not None and batch.rows:
            passing.batch, passing.width, passing.keep = len(batch.rows), 1, 1
            passing.measured, passing.picked = len(batch.rows), None
            batch.passing = passing

    # --- inside

    def _row(self, state: Any, cache: Any) -> _Row:
        prompt = state._true_initial_tokens or len(state.initial_tokens)
        return _Row(state, state.position_offset, prompt, _kv_bytes(cache, state.request_id))

    def _know(self, state: Any) -> _Sequence | None:
        name: str = state.request_id
        known = self._sequences.get(name)
        if known is not None or name.startswith(_WARMUP):
            return known
        base, _, number = name.partition(_CHILD)
        parent = self._sequences.get(base)
        if number.isdigit() and parent is not None:
            return self._join(name, parent.group, 1 + int(number))
        prompt = state._true_initial_tokens or len(state.initial_tokens)
        group = _Group(new_request(self._named(base), rows=1 + state.num_children, width=prompt, mask=None))
        texts = self._texts(state.initial_tokens[:prompt])
        self.capture.event(group.request, "started", texts=texts, at_ns=int(state.created_time * 1e9))
        return self._join(name, group, 1 + int(number) if number.isdigit() else 0)

    def _join(self, name: str, group: _Group, number: int) -> _Sequence:
        found = self._sequences[name] = _Sequence(group, number)
        group.open.add(name)
        return found

    def _named(self, request_id: str) -> RequestRef:
        ref = self._refs.pop(request_id, None) or new_ref()
        name = request_id
        if request_id.startswith(_COUNTED):
            used = self._used[request_id] = self._used.get(request_id, 0) + 1
            name = request_id if used == 1 else f"{request_id}#{used}"
        return RequestRef(name, ref.trace_id, ref.span_id)

    def _texts(self, prompt: list[int]) -> tuple[str, ...]:
        return () if self.capture.texts is None else self.capture.texts.prompts([prompt])

    def _commit(self, batch: Batch, passing: Pass, grown: list[tuple[int, _Row, int]], now_ns: int) -> None:
        told = list(self._told(grown))
        groups = list({id(sequence.group): sequence.group for _, _, sequence in told}.values())
        places = {id(group): place for place, group in enumerate(groups)}
        rows = np.array([place for place, _, _ in told], np.int64)
        position = np.array([row.position for _, row, _ in told], np.int64)
        passes = position - np.array([row.prompt for _, row, _ in told], np.int64)
        committed = Committed(
            real=np.arange(len(told)),
            sequence=np.array([sequence.number for _, _, sequence in told], np.int64),
            position=position,
            row=rows,
            passes=passes,
            parent=np.full(len(told), -1),
        )
        tokens = torch.tensor([[row.state.generated_tokens[-1]] for _, row, _ in told])
        kv_bytes = np.array([row.kv_bytes for _, row, _ in told], np.int64)
        for group in groups:
            group.request.kv_bytes = sum(
                int(b) for b, (_, _, s) in zip(kv_bytes, told, strict=True) if s.group is group
            )

        def made(**found: Any) -> PackedStep:
            return PackedStep(
                **found,
                refs=tuple(group.request.ref for group in groups),
                index=np.array([places[id(sequence.group)] for _, _, sequence in told], np.uint16),
                kv_tokens=self._kv_tokens(position),
                kv_bytes=kv_bytes,
                requests=batch.requests,
            )

        self.capture.commit_packed(passing, tokens, committed, groups[0].request, made, committed_ns=now_ns)

    def _told(self, grown: Iterable[tuple[int, _Row, int]]) -> Iterator[tuple[int, _Row, _Sequence]]:
        """(row, what it is, sequence) of each token: once more for each fork that begins behind it."""
        for place, row, children in grown:
            sequence = self._know(row.state)
            if sequence is None:
                continue
            yield place, row, sequence
            if row.state.num_children == children:
                continue  # it was not forked in this update
            for number in range(children):
                yield (
                    place,
                    row,
                    self._join(f"{row.state.request_id}{_CHILD}{number}", sequence.group, 1 + number),
                )

    def _kv_tokens(self, position: Array) -> Array:
        """Cached tokens after the pass, (m, L), -1 where a layer has no keys."""
        windows = self._engine.windows
        held = np.where(windows > 0, np.minimum(position[:, None], windows), position[:, None])
        return np.where(windows < 0, -1, held).astype(np.int32)

    def _over(self, state: Any) -> None:
        if state.request_id in self._sequences:
            stopped = bool(state.generated_tokens) and state.generated_tokens[-1] in state._eos_token_ids
            self._ended(state.request_id, "finished", "stop" if stopped else "length")

    def _ended(self, name: str, kind: str, reason: str) -> None:
        """One sequence is over; with the last one the request is."""
        group = self._sequences.pop(name).group
        group.open.discard(name)
        group.stopped &= reason == "stop"
        if kind == "finished":
            reason = "stop" if group.stopped else "length"
        if not group.open:
            self.capture.event(group.request, kind, reason=reason)


def _kv_bytes(cache: Any, request_id: str) -> int:
    """Bytes of the blocks that a request holds, those that it shares with others included."""
    return sum(
        len(allocator.block_table.get(request_id, ())) * allocator.bytes_per_block
        for allocator in cache.cache_allocators.values()
    )
