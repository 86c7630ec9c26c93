"""SGLang, unmodified: a plugin of its own plugin system that observes the model where it runs.

SGLang loads the entry point ``sglang.srt.plugins`` in every one of its processes and lets it wrap named
methods. `register` does nothing there unless the environment configures Fulgurite and the version is one that
we know (`plugin`). No file of SGLang is changed.

Nothing of SGLang is imported with this module.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("fulgurite.agent")


def register() -> None:
    """What SGLang calls in each of its processes. Never raises."""
    try:
        from fulgurite.agent.engines.sglang.plugin import activate

        activate()
    except Exception as error:  # the server is to start all the same
        logger.warning("fulgurite does not observe this server: %s", error, exc_info=error)
