"""When the next decoding step is due, so that a replica generates at a rate that people can follow (pure)."""

from __future__ import annotations


class Pace:
    """A steady rate of tokens.

    Parameters
    ----------
    tokens_per_s : float
        Of all sequences together; 0 for as fast as it goes.
    """

    def __init__(self, tokens_per_s: float) -> None:
        self._tokens_per_s = tokens_per_s
        self._due_s = 0.0

    def wait_s(self, rows: int, *, now_s: float) -> float:
        """Seconds to wait after a step that gave `rows` tokens. `now_s` is any monotonic clock."""
        if not self._tokens_per_s:
            return 0.0
        # Time that was lost (a slow step, a rest between requests) is not made up for by a burst.
        self._due_s = max(now_s, self._due_s + rows / self._tokens_per_s)
        return self._due_s - now_s
