"""The worker: where the model runs. Its loading and its steps are wrapped on the instance.

What is looked for in the runner is checked when a worker has loaded its model; where something is not as we
know it, the model runs unobserved and one line says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from fulgurite.agent.engines.vllm import scheduler
from fulgurite.agent.engines.vllm.around import around
from fulgurite.agent.engines.vllm.frontend import KEY
from fulgurite.agent.engines.vllm.observer import Observer
from fulgurite.agent.engines.vllm.rows import Known, Stops, rows_of
from fulgurite.agent.shield import Shield
from fulgurite.wire.frame import RequestRef

_NEEDED = (
    "_prepare_inputs",
    "_bookkeeping_sync",
    "execute_model",
    "sample_tokens",
    "input_batch",
    "requests",
)
_shield = Shield()


def watch() -> None:
    """Observe every worker of this process from its birth on."""
    from vllm.v1.worker.worker_base import WorkerBase

    around(WorkerBase, "__init__", _born)


def _born(original: Callable[..., Any]) -> Callable[..., Any]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        with _shield.at("worker"):
            around(self, "load_model", lambda load: _loading(self, load))

    return init


def _loading(worker: Any, load: Callable[..., Any]) -> Callable[..., Any]:
    def load_model(*args: Any, **kwargs: Any) -> Any:
        with _shield.at("mark"):
            _mark(worker.vllm_config)
        found = load(*args, **kwargs)
        with _shield.at("attach"):
            _attach(worker)
        return found

    return load_model


def _mark(config: Any) -> None:
    """Give compiled graphs with our operators in them a place of their own in the compile cache: plugins are
    not part of its key."""
    from fulgurite.agent.config import settings

    if isinstance(config.additional_config, dict):
        config.additional_config[KEY] = f"taps-5 {settings().level} {settings().deep_ratio >= 1.0}"


def _attach(worker: Any) -> None:
    from fulgurite.agent.engines.vllm.attaching import observe

    runner = worker.model_runner
    missing = [name for name in _NEEDED if not hasattr(runner, name)]
    if missing:
        _shield.say_once(
            "runner",
            "this model runner of vLLM (%s.%s) is not one that Fulgurite knows: its inside is not measured",
            type(runner).__module__,
            type(runner).__name__,
        )
        return
    if getattr(runner, "use_async_scheduling", False):
        _shield.say_once(
            "async",
            "vLLM schedules ahead of its own results here: its inside is not measured "
            "(start it with --no-async-scheduling)",
        )
        return
    found = observe(worker, _shield)
    if found is not None:
        Watched(runner, *found).install()


class Watched:
    """A runner whose steps are told to an observer.

    Parameters
    ----------
    attention : vLLM's attention module of each layer that has one, by layer.
    """

    def __init__(self, runner: Any, observer: Observer, attention: Mapping[int, Any]) -> None:
        self.runner = runner
        self.observer = observer
        self.attention = attention
        self._started_ns = 0
        self._requests = 0
        self._is_sized = False

    def install(self) -> None:
        """Wrap the methods that make a step, on the instance."""
        around(self.runner, "execute_model", self._executing)
        around(self.runner, "_prepare_inputs", self._preparing)
        around(self.runner, "sample_tokens", self._sampling)
        around(self.runner, "_bookkeeping_sync", self._bookkeeping)
        tell = getattr(self.observer.exporter, "lull", None)
        if tell is not None and hasattr(self.runner.model, "compute_logits"):
            around(self.runner.model, "compute_logits", partial(_lulling, tell))

    def _executing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            self._started_ns = time.perf_counter_ns()
            with _shield.at("news"):
                self._hear(scheduler_output)
            return original(scheduler_output, *args, **kwargs)

        return execute_model

    def _hear(self, output: Any) -> None:
        """What the scheduler says with this step."""
        for data in output.scheduled_new_reqs:
            known = _known(data, int(self.runner.max_model_len))
            if known is not None:
                self.observer.known[data.req_id] = known
        news = scheduler.news_of(output)
        if news is not None:
            self.observer.figures = news.figures
            for event in news.events:
                self.observer.tell(event)
        if not output.total_num_scheduled_tokens:
            self.observer.report()
        self.observer.forget(tuple(output.finished_req_ids))

    def _preparing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def prepare_inputs(scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
            found = original(scheduler_output, num_scheduled_tokens)
            with _shield.at("begin"):
                self._begin(scheduler_output, num_scheduled_tokens, found[0])
            return found

        return prepare_inputs

    def _begin(self, output: Any, scheduled: Any, chosen: Any) -> None:
        batch = self.runner.input_batch
        names, count = batch.req_ids, int(batch.num_reqs)
        drafts = output.scheduled_spec_decode_tokens
        rows = rows_of(
            names[:count],
            batch.num_computed_tokens_cpu[:count],
            np.asarray(scheduled[:count]),
            np.array([len(drafts.get(name, ())) for name in names[:count]]),
            self.runner.discard_request_mask.np[:count],
            batch.request_lora_mapping[:count] > 0,
        )
        self._requests = count
        self.observer.begin(rows, chosen, self._started_ns)

    def _sampling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def sample_tokens(grammar_output: Any) -> Any:
            with _shield.at("see"):
                state = self.runner.execute_model_state
                if state is not None:
                    logits = state.logits
                    # float32 is sampled from in place, and a grammar masks what it forbids
                    written = grammar_output is not None or (
                        logits is not None and logits.element_size() == 4
                    )
                    self.observer.see(logits, is_overwritten=written)
            return original(grammar_output)

        return sample_tokens

    def _bookkeeping(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def bookkeeping_sync(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            with _shield.at("commit"):
                self._commit(found[3])
            return found

        return bookkeeping_sync

    def _commit(self, tokens: list[list[int]]) -> None:
        if not self._is_sized:
            self._is_sized = True
            self.observer.block_bytes = _block_bytes(self.runner)
            self.observer.groups = self._groups()
        requests = self.runner.requests
        blocks = {
            name: requests[name].block_ids for name in self.runner.input_batch.req_ids if name in requests
        }
        self.observer.commit(tokens, blocks, requests=self._requests)

    def _groups(self) -> dict[int, int]:
        """By layer, the group of caches that it is in."""
        config = getattr(self.runner, "kv_cache_config", None)
        groups = enumerate(getattr(config, "kv_cache_groups", ()))
        of = {name: number for number, group in groups for name in group.layer_names}
        return {i: of[module.layer_name] for i, module in self.attention.items() if module.layer_name in of}


def _lulling(tell: Callable[[], None], original: Callable[..., Any]) -> Callable[..., Any]:
    """Before the largest product of a step, behind which the engine waits for its device (`lulls`)."""

    def compute_logits(*args: Any, **kwargs: Any) -> Any:
        with _shield.at("lull"):
            tell()
        return original(*args, **kwargs)

    return compute_logits


def _known(data: Any, most_in_all: int) -> Known | None:
    params = data.sampling_params
    if params is None:  # nothing is generated
        return None
    told = (params.extra_args or {}).get(KEY) or {}
    internal = told.get("internal", data.req_id)
    child = data.req_id.removesuffix(f"_{internal}") if data.req_id != internal else "0"
    ref = RequestRef(told.get("id", data.req_id), told.get("trace_id", ""), told.get("span_id", ""))
    ends = {params.eos_token_id, *(params.stop_token_ids or ())} - {None}
    stops = Stops(frozenset(ends), params.max_tokens or 1 << 62, most_in_all)
    index = int(child) if child.isdigit() else 0
    return Known(ref, int(told.get("first", 0)) + index, data.prompt_len, stops)


def _block_bytes(runner: Any) -> tuple[int, ...]:
    """Bytes of one block of each group of caches, over the layers of the group."""
    config = getattr(runner, "kv_cache_config", None)
    groups = getattr(config, "kv_cache_groups", ())
    return tuple(int(g.kv_cache_spec.page_size_bytes) * len(g.layer_names) for g in groups)
