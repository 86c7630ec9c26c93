"""The scheduler's process: requests come and go, passes run, tokens count. Each function stands around one
method of SGLang (`plugin` says which), calls it once, and gives back what it gave.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fulgurite.agent.engines.sglang.frontend import told_of
from fulgurite.agent.engines.sglang.looks import FEWEST
from fulgurite.agent.engines.sglang.observer import Counted, Held, Observer, Seen
from fulgurite.agent.figures import Figures
from fulgurite.agent.shield import Shield
from fulgurite.wire.frame import RequestEvent, RequestRef

_shield = Shield()
_HELD = "_fulgurite_held"
_NOTHING: tuple[list[Any], Held | None] = ([], None)


@dataclass(slots=True)
class _Known:
    """A request under way."""

    ref: RequestRef
    prompt: int
    is_seen: bool = False


class _Watched:
    """One scheduler, and the model that it runs."""

    def __init__(self) -> None:
        self.observer: Observer | None = None
        self.attaching: Any = None
        self.known: dict[str, _Known] = {}
        self.early: list[RequestEvent] = []  # of before the model is known
        self.figures = Figures(name="sglang", version=_version())
        self.is_given_up = False

    def tell(self, request_id: str, kind: str, *, reason: str = "") -> None:
        known = self.known[request_id] if kind == "started" else self.known.pop(request_id, None)
        if known is None:
            return
        event = RequestEvent(
            request_id=known.ref.request_id, kind=kind, time_ns=time.time_ns(), prompt_tokens=known.prompt,
            prompt_tokens_per_row=(known.prompt,), sequences=1, reason=reason,
        )  # fmt: skip
        if self.observer is None:
            self.early = [*self.early[-255:], event]
        else:
            self.observer.exporter.event(event)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sglang")
    except PackageNotFoundError:
        return ""


_watched = _Watched()  # a scheduler's process has one


def _is_ours(request_id: Any) -> bool:
    """Whether it is somebody's request, and not the server asking itself how it is."""
    return isinstance(request_id, str) and not request_id.startswith("HEALTH_CHECK")


def arriving(original: Callable[..., Any], scheduler: Any, received: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``Scheduler.handle_generate_request``."""
    with _shield.at("arriving"):
        told = told_of(received.sampling_params)
        if _is_ours(received.rid):
            ref = RequestRef(received.rid[:128], told.get("trace_id", ""), told.get("span_id", ""))
            prompt = len(received.input_ids or ())
            _watched.known[received.rid] = _Known(ref, prompt)
            _watched.tell(received.rid, "started")
    return original(scheduler, received, *args, **kwargs)


def aborting(original: Callable[..., Any], scheduler: Any, received: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``Scheduler.abort_request``: what waited is gone at once, what runs ends with its next step."""
    waited = [req.rid for req in scheduler.waiting_queue]
    found = original(scheduler, received, *args, **kwargs)
    with _shield.at("aborting"):
        left = {req.rid for req in scheduler.waiting_queue}
        for request_id in waited:
            if request_id not in left:
                _watched.tell(request_id, "aborted", reason="cancelled")
    return found


def retracting(original: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``ScheduleBatch.retract_decode``: requests that are put back for want of memory."""
    found = original(batch, *args, **kwargs)
    with _shield.at("retracting"):
        figures = _watched.figures
        _watched.figures = replace(figures, preemptions=figures.preemptions + len(found[0]))
    return found


def passing(original: Callable[..., Any], runner: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``ModelRunner.forward``."""
    if runner.is_draft_worker or _watched.is_given_up:
        return original(runner, batch, *args, **kwargs)
    with _shield.at("begin"):
        _begin(runner, batch)
    found = original(runner, batch, *args, **kwargs)
    with _shield.at("see"):
        _see(found)
    if _shield.is_out("begin") or _shield.is_out("see"):
        _watched.is_given_up = True
    return found


def _begin(runner: Any, batch: Any) -> None:
    mode = batch.forward_mode
    if mode.is_decode():
        chosen = torch.arange(int(batch.batch_size))
    elif mode.is_extend_without_speculative() and batch.extend_seq_lens_cpu is not None:
        chosen = torch.as_tensor(list(batch.extend_seq_lens_cpu)).cumsum(0) - 1
    else:
        return
    if _watched.observer is not None:
        _watched.observer.begin(chosen, lambda: _seen(runner, batch, int(chosen.shape[0])))
    elif _watched.attaching is None and int(batch.input_ids.shape[0]) >= FEWEST:
        from fulgurite.agent.engines.sglang.attaching import Attaching

        _watched.attaching = Attaching(runner, _shield)


def _seen(runner: Any, batch: Any, rows: int) -> Seen | None:
    """What the rows of a pass see of the cache; None where it does not tell."""
    places = getattr(getattr(runner, "req_to_token_pool", None), "req_to_token", None)
    requests, counts = batch.req_pool_indices, batch.seq_lens
    if places is None or requests is None or counts is None or requests.shape[0] != rows:
        return None
    return Seen(places, requests, counts[:rows].cpu().numpy().astype(np.int64))


def _see(found: Any) -> None:
    logits = getattr(found.logits_output, "next_token_logits", None)
    if _watched.observer is not None:
        _watched.observer.see(logits)
        return
    attaching, _watched.attaching = _watched.attaching, None
    if attaching is None:
        return
    if logits is None:
        attaching.close()
        return
    _watched.observer = observer = attaching.observer(logits)
    for event in _watched.early:
        observer.exporter.event(event)
    _watched.early = []
    observer.first(logits)


def generating(original: Callable[..., Any], worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``TpModelWorker.forward_batch_generation``."""
    result = original(worker, batch, *args, **kwargs)
    if batch is None or kwargs.get("is_verify") or getattr(worker, "is_draft_worker", False):
        return result
    with _shield.at("sampled"):
        requests = list(batch.reqs)
        later = result.delay_sample_func
        if later is None:
            _sampled(requests, result)
        else:  # a grammar waits for the token before

            def sample_later() -> Any:
                made = later()
                with _shield.at("sampled"):
                    _sampled(requests, made)
                return made

            result.delay_sample_func = sample_later
    return result


def _sampled(requests: list[Any], result: Any) -> None:
    observer, tokens = _watched.observer, result.next_token_ids
    if observer is None or tokens is None or tokens.shape[0] != len(requests):
        return
    held = observer.sampled(tokens)
    if held is not None:
        setattr(result, _HELD, (requests, held))


def processing(
    original: Callable[..., Any], scheduler: Any, batch: Any, result: Any, *args: Any, **kwargs: Any
) -> Any:
    """Around ``Scheduler.process_batch_result``: which tokens count, and which requests are over."""
    before = [(req, len(req.output_ids), req.finished()) for req in batch.reqs]
    found = original(scheduler, batch, result, *args, **kwargs)
    with _shield.at("counted"):
        _count(scheduler, before, result)
    return found


def _count(scheduler: Any, before: list[tuple[Any, int, bool]], result: Any) -> None:
    observer = _watched.observer
    requests, held = vars(result).pop(_HELD, _NOTHING)
    if observer is not None and held is not None:
        had = {id(req): count for req, count, _ in before}
        counted = []
        for row, req in enumerate(requests):
            known, count = _watched.known.get(req.rid), had.get(id(req), -1)
            if known is None or count < 0 or len(req.output_ids) != count + 1:
                continue
            if int(req.output_ids[-1]) != int(held.tokens[row]):
                _shield.note("sglang:other_token")
                continue
            _meet(req, known)
            counted.append(Counted(row, known.ref, known.prompt + count, known.prompt))
        observer.figures = _figures(scheduler)
        observer.counted(held, counted, requests=len(requests))
    for req, _, was_over in before:
        if req.finished() and not was_over:
            reason = str((req.finished_reason.to_json() or {}).get("type", ""))
            kind = "aborted" if reason == "abort" else "finished"
            _watched.tell(req.rid, kind, reason="cancelled" if kind == "aborted" else reason)


def _meet(req: Any, known: _Known) -> None:
    """Its first token: how long it waited, and what of its prompt was there already."""
    if known.is_seen:
        return
    known.is_seen = True
    figures = _watched.figures
    _watched.figures = replace(
        figures,
        prefix_asked=figures.prefix_asked + known.prompt,
        prefix_found=figures.prefix_found + int(getattr(req, "cached_tokens", 0) or 0),
    )


def _figures(scheduler: Any) -> Figures:
    whole = int(scheduler.max_total_num_tokens)
    free = int(scheduler.token_to_kv_pool_allocator.available_size())
    return replace(
        _watched.figures,
        running=len(scheduler.running_batch.reqs),
        waiting=len(scheduler.waiting_queue),
        kv_blocks=whole,
        kv_blocks_used=max(0, whole - free),
    )
