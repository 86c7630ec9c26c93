"""vLLM, unmodified: a plugin of its own plugin system that observes the model where it runs.

vLLM loads the entry point ``vllm.general_plugins`` in every one of its processes. `register` does nothing
there unless the environment configures Fulgurite. Where it does, and the version is one that we know
(`versions`), methods of the front end (`frontend`), the scheduler (`scheduler`) and the worker (`worker`) are
wrapped; no file of vLLM is changed. A version that we do not know is left alone.

Nothing of vLLM is imported with this module.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("fulgurite.agent")


def register() -> None:
    """What vLLM calls in each of its processes, perhaps several times. Never raises."""
    try:
        from fulgurite.agent.engines.vllm.plugin import activate

        activate()
    except Exception as error:  # vLLM would not catch it, and would not start
        logger.warning("fulgurite does not observe this server: %s", error, exc_info=error)
