"""Whether this process is to be observed, and which methods of SGLang are wrapped for it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Final

from fulgurite.agent.config import is_wanted

logger = logging.getLogger("fulgurite.agent")
SUPPORTED: Final = ("0.5.23",)
"""Releases whose inside we know: those that the tests have run. It changes from one to the next."""

_SCHEDULER: Final = "sglang.srt.managers.scheduler.Scheduler"
_said: set[str] = set()


def activate(env: Mapping[str, str] = os.environ) -> bool:
    """Have SGLang wrap what has to be wrapped; whether anything is."""
    if not is_wanted(env):
        return False
    version = _installed_version()
    if version not in SUPPORTED:
        _say(
            f"SGLang {version} is not a version that Fulgurite knows: nothing of it is measured "
            f"(known: {', '.join(SUPPORTED)})"
        )
        return False
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from fulgurite.agent.engines.sglang import frontend, steps

    for target, hook in (
        (f"{_SCHEDULER}.handle_generate_request", steps.arriving),
        (f"{_SCHEDULER}.abort_request", steps.aborting),
        (f"{_SCHEDULER}.process_batch_result", steps.processing),
        ("sglang.srt.managers.schedule_batch.ScheduleBatch.retract_decode", steps.retracting),
        ("sglang.srt.managers.tp_worker.TpModelWorker.forward_batch_generation", steps.generating),
        ("sglang.srt.model_executor.model_runner.ModelRunner.forward", steps.passing),
        ("sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request", frontend.asking),
    ):
        HookRegistry.register(target, hook, HookType.AROUND)
    return True


def _installed_version() -> str:
    from importlib.metadata import version

    return version("sglang")


def _say(line: str) -> None:
    if line not in _said:
        _said.add(line)
        logger.warning(line)
