"""The hook that tells the exporter of the host's lulls (see `lulls`). Measures nothing, keeps nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import nn
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle

from fulgurite.agent.shield import Shield


class LullProbe:
    """Stands in front of the unembedding.

    Parameters
    ----------
    unembedding : None where the model's was not found: then nothing is told.
    tell : None where nobody wants to hear of it.

    Attributes
    ----------
    own_ns : time spent in telling since it was last taken; of several threads, about.
    """

    def __init__(
        self, unembedding: nn.Module | None, tell: Callable[[], None] | None, shield: Shield
    ) -> None:
        self._unembedding = unembedding
        self._tell = tell
        self._shield = shield
        self._handle: RemovableHandle | None = None
        self.own_ns = 0

    def install(self) -> None:
        """Put it in."""
        if self._handle is None and self._unembedding is not None and self._tell is not None:
            self._handle = self._unembedding.register_forward_pre_hook(self)

    def remove(self) -> None:
        """Take it out."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def __call__(self, _: nn.Module, __: tuple[Any, ...]) -> None:
        if is_dynamo_compiling() or self._tell is None:
            return
        started = time.perf_counter_ns()
        try:
            self._tell()
        except Exception as error:
            self._shield.caught("lull", error)
        self.own_ns += time.perf_counter_ns() - started

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")
