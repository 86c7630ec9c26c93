"""The shield: what keeps our failures out of the host.

There is exactly one shield per agent, at every way in from the host: hooks, the wrapped `generate`, stopping
criteria, finalisers. It swallows `Exception`, counts it, and logs the first of a kind; `BaseException`
passes. With ``FULGURITE_STRICT=1`` (our own tests) it raises, so that nothing hides.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from types import TracebackType

logger = logging.getLogger("fulgurite.agent")

STRIKES = 3  # failures after which a place is not tried again


class Shield:
    """Counts failures by kind and keeps them from the host.

    Parameters
    ----------
    strict : bool, optional
        Raise in place of swallowing. By default what ``FULGURITE_STRICT`` says.

    Examples
    --------
    >>> shield = Shield(strict=False)
    >>> with shield.at("commit"):
    ...     raise RuntimeError("ours")
    >>> dict(shield.errors)
    {'commit:RuntimeError': 1}
    """

    def __init__(self, strict: bool | None = None) -> None:
        self.strict = os.environ.get("FULGURITE_STRICT", "") in ("1", "true") if strict is None else strict
        self._errors: Counter[str] = Counter()
        self._strikes: Counter[str] = Counter()
        self._said: set[str] = set()
        self._lock = threading.Lock()

    @property
    def errors(self) -> dict[str, int]:
        """Swallowed failures by kind: ``place:ExceptionName``."""
        return dict(self._errors)

    def caught(self, place: str, error: Exception) -> None:
        """Account for `error` at `place`.

        Raises
        ------
        Exception
            `error` itself in strict mode.
        """
        kind = f"{place}:{type(error).__name__}"
        with self._lock:
            self._errors[kind] += 1
            self._strikes[place] += 1
            first = self._errors[kind] == 1
        if self.strict:
            raise error
        if first:
            logger.warning(
                "%s failed and was left out (%s); the model is not affected", place, error, exc_info=error
            )

    def is_out(self, place: str) -> bool:
        """Whether `place` failed so often that it is not to be tried again."""
        return self._strikes[place] >= STRIKES

    def forked(self) -> None:
        """In a child: no thread that could hold the lock lives on."""
        self._lock = threading.Lock()

    def note(self, kind: str) -> None:
        """Count something that is left out without an exception."""
        with self._lock:
            self._errors[kind] += 1

    def say_once(self, key: str, message: str, *args: object) -> bool:
        """Log `message` the first time that `key` is seen, and say whether it is."""
        with self._lock:
            new = key not in self._said
            self._said.add(key)
        if new:
            logger.warning(message, *args)
        return new

    def at(self, place: str) -> _Guard:
        """A context that keeps what fails inside it from the host."""
        return _Guard(self, place)


class _Guard:
    __slots__ = ("_place", "_shield")

    def __init__(self, shield: Shield, place: str) -> None:
        self._shield = shield
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self._shield.caught(self._place, error)
        return True
