"""Whether this process is to be observed: decided from the environment and from vLLM's version."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from fulgurite.agent.config import is_wanted
from fulgurite.agent.engines.vllm.versions import SUPPORTED, installed_version, support_of

logger = logging.getLogger("fulgurite.agent")
_said: set[str] = set()


def activate(env: Mapping[str, str] = os.environ) -> bool:
    """Wrap what has to be wrapped; whether anything is."""
    if not is_wanted(env):
        return False
    version = installed_version()
    if support_of(version) is None:
        is_new = _say(
            f"vLLM {version} is not a version that Fulgurite knows: its scheduler's figures are told, and "
            f"nothing inside is measured (known: {', '.join(known.series for known in SUPPORTED)}; "
            "fulgurite.agent.observe(client) measures it from where it is asked)"
        )
        if is_new:
            from fulgurite.agent.engines.vllm import outside

            outside.watch(version)
        return False
    from fulgurite.agent.engines.vllm import choosing, frontend, scheduler, worker

    for part in (choosing, frontend, scheduler, worker):
        part.watch()
    return True


def _say(line: str) -> bool:
    is_new = line not in _said
    if is_new:
        _said.add(line)
        logger.warning(line)
    return is_new
