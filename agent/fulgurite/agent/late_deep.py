"""What `deep` tells of a step and whoever reads the block works out: what costs most of it, the products with
each output projection and the choice of the largest neurons.

The host's thread then pays for what needs the model as it is now. What is read of the model later is its
weights, in its own memory: where somebody wrote to them since, nothing is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fulgurite.agent.contribution import LateHeads, Rows
from fulgurite.agent.neurons import LateNeurons
from fulgurite.agent.shield import Shield

Array = np.ndarray[Any, Any]


class LateDeep:
    """Of one step.

    Attributes
    ----------
    heads, neurons : None where nothing of it is left.
    """

    def __init__(self, shield: Shield) -> None:
        self.heads: LateHeads | None = None
        self.neurons: LateNeurons | None = None
        self._shield = shield

    @property
    def nbytes(self) -> int:
        """What is held of its own, and what the channels will hold, at most about."""
        return sum(part.nbytes for part in (self.heads, self.neurons) if part is not None)

    def told(self, inputs: Sequence[Rows]) -> dict[str, Array]:
        """The results, named as those that the host's thread gives.

        Parameters
        ----------
        inputs : per group of the plan, what each of its layers' projections was handed, (n, H * D) each.
        """
        found: dict[str, Array] = {}
        if self.heads is not None:
            with self._shield.at("contribution"):
                found.update(self.heads.told(inputs))
        if self.neurons is not None:
            with self._shield.at("deep"):
                found.update(self.neurons.told())
        return found
