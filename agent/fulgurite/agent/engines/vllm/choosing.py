"""What vLLM chooses for itself where the user did not: the way of running that can be observed.

Where Triton is installed, vLLM takes its second model runner and schedules ahead of its own results, and then
the tokens of a step are not known where the model runs. Both are settings of vLLM. Here they are set for an
engine that is to be observed, unless the user has chosen, and one line says so. An engine that needs the
second runner, or is not to be had this way, keeps what it would have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from fulgurite.agent.engines.vllm.around import around
from fulgurite.agent.shield import Shield

RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
_NEED_V2 = frozenset({"LongcatFlashNgramForCausalLM"})  # they refuse the first runner when they are loaded
_shield = Shield()


@dataclass(frozen=True, slots=True)
class Choice:
    """What is set.

    Attributes
    ----------
    runner : the first model runner.
    in_step : no scheduling ahead of results.
    """

    runner: bool
    in_step: bool

    def __bool__(self) -> bool:
        return self.runner or self.in_step


def choice(
    env: Mapping[str, str], *, async_scheduling: bool | None, has_triton: bool, is_cpu: bool
) -> Choice:
    """What has to be set for an engine to be observed: nothing that the user chose, or that it does anyway.

    Examples
    --------
    >>> choice({}, async_scheduling=None, has_triton=True, is_cpu=False)
    Choice(runner=True, in_step=True)
    >>> bool(choice({RUNNER: "1"}, async_scheduling=True, has_triton=True, is_cpu=False))
    False
    """
    return Choice(
        runner=has_triton and RUNNER not in env,
        in_step=async_scheduling is None and not is_cpu,  # on a CPU it never does
    )


def watch() -> None:
    """Choose whenever the configuration of an engine is made."""
    from vllm.engine.arg_utils import EngineArgs

    around(EngineArgs, "create_engine_config", _configuring)


def _configuring(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        chosen = Choice(runner=False, in_step=False)
        with _shield.at("choose"):
            chosen = _choice_of(self)
        if not chosen:
            return original(self, *args, **kwargs)
        _set(self, chosen, os.environ)
        try:
            found = original(self, *args, **kwargs)
            is_fit = not needs_second_runner(found)
        except Exception:  # perhaps for what we set: it is asked again as the user asked it
            is_fit = False
        if is_fit:
            with _shield.at("say"):
                _say(chosen)
            return found
        _unset(self, chosen, os.environ)
        return original(self, *args, **kwargs)

    return create_engine_config


def _choice_of(arguments: Any) -> Choice:
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON

    from fulgurite.agent.config import settings

    if settings().level == "off":
        return Choice(runner=False, in_step=False)
    return choice(
        os.environ,
        async_scheduling=arguments.async_scheduling,
        has_triton=bool(HAS_TRITON),
        is_cpu=bool(current_platform.is_cpu()),
    )


def needs_second_runner(config: Any) -> bool:
    """Whether the engine of this configuration would not load its model with the first one."""
    drafting = getattr(config, "speculative_config", None)
    architectures = getattr(getattr(config, "model_config", None), "architectures", None) or ()
    return bool(
        _NEED_V2.intersection(architectures)
        or getattr(drafting, "method", None) == "dflash"
        or getattr(config, "ec_transfer_config", None) is not None
        or getattr(config, "use_v2_model_runner", False)
    )


def _set(arguments: Any, chosen: Choice, env: MutableMapping[str, str]) -> None:
    if chosen.runner:
        env[RUNNER] = "0"
    if chosen.in_step:
        arguments.async_scheduling = False


def _unset(arguments: Any, chosen: Choice, env: MutableMapping[str, str]) -> None:
    if chosen.runner:
        env.pop(RUNNER, None)
    if chosen.in_step:
        arguments.async_scheduling = None


def _say(chosen: Choice) -> None:
    done = [f"{RUNNER}=0"] if chosen.runner else []
    done += ["--no-async-scheduling"] if chosen.in_step else []
    _shield.say_once(
        "chosen",
        "so that Fulgurite can observe it, vLLM runs here with %s (to keep vLLM's own choice, and have its "
        "inside not measured: %s)",
        " and ".join(done),
        " and ".join(_opposite(chosen)),
    )


def _opposite(chosen: Choice) -> list[str]:
    return ([f"{RUNNER}=1"] if chosen.runner else []) + (["--async-scheduling"] if chosen.in_step else [])
