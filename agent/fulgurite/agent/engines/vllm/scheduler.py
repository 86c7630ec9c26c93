"""The scheduler: what only it knows travels with each step to the worker.

It runs in another process than the model. Its outputs are sent to the workers anyway, so what it has to say
of requests and of the key-value cache is put on them as one attribute, `NEWS`. Nothing is sent besides, and
nothing waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fulgurite.agent.engines.vllm.around import around
from fulgurite.agent.engines.vllm.docket import Docket
from fulgurite.agent.engines.vllm.frontend import KEY
from fulgurite.agent.engines.vllm.versions import installed_version
from fulgurite.agent.figures import Figures
from fulgurite.agent.shield import Shield
from fulgurite.wire.frame import RequestEvent

NEWS = "_fulgurite"
_shield = Shield()


@dataclass(frozen=True, slots=True)
class News:
    """What goes with a step."""

    figures: Figures
    events: tuple[RequestEvent, ...] = field(default=())


def news_of(output: Any) -> News | None:
    """What the scheduler said with this step."""
    found = getattr(output, NEWS, None)
    return found if isinstance(found, News) else None


def watch() -> None:
    """Observe every scheduler of this process."""
    from vllm.v1.core.sched.scheduler import Scheduler

    for name, make in (
        ("add_request", _adding),
        ("schedule", _scheduling),
        ("_preempt_request", _preempting),
        ("_free_request", _freeing),
    ):
        around(Scheduler, name, make)


def _docket(scheduler: Any) -> Docket:
    found = vars(scheduler).get("_fulgurite_docket")
    if found is None:
        found = scheduler._fulgurite_docket = Docket()
        _count_evictions(scheduler, found)
    docket: Docket = found
    return docket


def _adding(original: Callable[..., Any]) -> Callable[..., Any]:
    def add_request(self: Any, request: Any) -> Any:
        found = original(self, request)
        with _shield.at("arrived"):
            told = _told(request)
            _docket(self).arrived(
                request.request_id,
                told.get("id", request.request_id),
                sequence=_sequence(request.request_id, told),
                prompt=int(request.num_prompt_tokens),
                arrived_s=float(request.arrival_time),
            )
        return found

    return add_request


def _told(request: Any) -> Mapping[str, Any]:
    params = getattr(request, "sampling_params", None)
    told = (getattr(params, "extra_args", None) or {}).get(KEY)
    return told if isinstance(told, dict) else {}


def _sequence(request_id: str, told: Mapping[str, Any]) -> int:
    internal = told.get("internal", request_id)
    child = request_id.removesuffix(f"_{internal}") if request_id != internal else "0"
    return int(told.get("first", 0)) + (int(child) if child.isdigit() else 0)


def _scheduling(original: Callable[..., Any]) -> Callable[..., Any]:
    def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        with _shield.at("schedule"):
            docket = _docket(self)
            now = time.time()
            for data in output.scheduled_new_reqs:
                docket.scheduled(data.req_id, cached=int(data.num_computed_tokens), now_s=now)
            setattr(output, NEWS, News(_figures(self, docket), docket.take()))
        return output

    return schedule


def _figures(scheduler: Any, docket: Docket) -> Figures:
    running, waiting = scheduler.get_request_counts()
    pool = scheduler.kv_cache_manager.block_pool
    whole = max(0, int(pool.num_gpu_blocks) - 1)  # one stands for nothing
    return Figures(
        name="vllm",
        version=installed_version(),
        running=running,
        waiting=waiting,
        kv_blocks=whole,
        kv_blocks_used=whole - int(pool.get_num_free_blocks()),
        evicted=docket.evicted,
        preemptions=docket.preemptions,
        prefix_asked=docket.prefix_asked,
        prefix_found=docket.prefix_found,
        queued=docket.queued,
        queue_ns=docket.queue_ns,
    )


def _preempting(original: Callable[..., Any]) -> Callable[..., Any]:
    def preempt_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, request, *args, **kwargs)
        with _shield.at("preempt"):
            _docket(self).preempted(request.request_id, now_s=time.time())
        return found

    return preempt_request


def _freeing(original: Callable[..., Any]) -> Callable[..., Any]:
    def free_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        with _shield.at("over"):
            _docket(self).over(request.request_id, status=request.status.name, now_s=time.time())
        return original(self, request, *args, **kwargs)

    return free_request


def _count_evictions(scheduler: Any, docket: Docket) -> None:
    pool = scheduler.kv_cache_manager.block_pool

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        def maybe_evict_cached_block(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            docket.evicted += bool(found)
            return found

        return maybe_evict_cached_block

    around(pool, "_maybe_evict_cached_block", counting)
