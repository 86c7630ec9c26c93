"""How much of something is left: a rate, and a set of names. Pure."""

from __future__ import annotations

from collections.abc import Hashable


class Bucket:
    """So many a second, after a burst.

    Parameters
    ----------
    per_s, burst : float
        It fills at this rate, up to this much.
    now_s : float
        Monotonic time.
    """

    def __init__(self, per_s: float, burst: float, now_s: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._left, self._at_s = burst, now_s

    def take(self, amount: float, now_s: float) -> bool:
        """Take `amount` where it is there."""
        self._fill(now_s)
        if amount > self._left:
            return False
        self._left -= amount
        return True

    def owe(self, amount: float, now_s: float) -> float:
        """Take `amount` whether or not it is there; seconds until nothing is owed."""
        self._fill(now_s)
        self._left -= amount
        return max(0.0, -self._left / self._per_s)

    def _fill(self, now_s: float) -> None:
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s


class Names:
    """At most so many different names within a time.

    Parameters
    ----------
    most : int
    age_s : float
        After so long without being said a name is forgotten.
    """

    def __init__(self, most: int, age_s: float) -> None:
        self._most, self._age_s = most, age_s
        self._said_s: dict[Hashable, float] = {}  # in the order in which they were said last

    def say(self, name: Hashable, now_s: float) -> bool:
        """Whether there is room for `name`; it is then remembered."""
        while self._said_s and now_s - next(iter(self._said_s.values())) > self._age_s:
            del self._said_s[next(iter(self._said_s))]
        if name not in self._said_s and len(self._said_s) >= self._most:
            return False
        self._said_s.pop(name, None)
        self._said_s[name] = now_s
        return True
