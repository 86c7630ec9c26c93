"""What a variant is: something that, while it is entered, generates with the model under observation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from benchmarks.sample import StepClock

Generate = Callable[[dict[str, Any], int, StepClock], object]
"""Takes a prompt, a number of tokens for each row, and the clock to call after each token."""

Variant = Callable[[], AbstractContextManager[Generate]]
