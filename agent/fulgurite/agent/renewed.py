"""Whether a model makes its tensors anew in every pass, so that those of one can be held over the next."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fulgurite.agent.reduce import Plan

_LOOKS = 2  # the first pass of one position may have kept copies: it is the two after it that tell


class Renewed:
    """What passes of one position have shown. The tensors of each are held until the next, so that none of it
    can lie where one of them does, unless the model writes into the same memory in every pass."""

    def __init__(self) -> None:
        self._trusted: Plan | None = None
        self._refused: Plan | None = None
        self._looks = 0
        self._before: tuple[Plan, list[torch.Tensor]] | None = None

    def is_trusted(self, kept: Sequence[torch.Tensor], layout: Plan) -> bool:
        """Whether `kept`, of a pass of one position under `layout`, stays as it is."""
        if layout is self._trusted:
            return True
        if layout is self._refused:
            return False
        before, self._before = self._before, (layout, list(kept))
        if before is None or before[0] is not layout:
            self._looks = 0
            return False
        places = {tensor.data_ptr() for tensor in before[1]}
        self._looks += 1
        if not places.isdisjoint(tensor.data_ptr() for tensor in kept):
            self._refused, self._before = layout, None
        elif self._looks == _LOOKS:
            self._trusted, self._before = layout, None
        return layout is self._trusted
