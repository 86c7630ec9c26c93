"""When each message is to be sent. Pure.

Open loop: the time of the n-th message does not depend on how the ones before it went. Where sending falls
behind, the lateness grows and is reported; the load does not politely slow down.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """A steady pace.

    Attributes
    ----------
    per_s : float
        Tokens a second.
    offset_s : float
        By how much the first message is put off, so that replicas do not all send at once.
    """

    per_s: float
    offset_s: float = 0.0

    def due_s(self, tokens_before: int) -> float:
        """Seconds after the start at which the message behind `tokens_before` tokens is due."""
        return self.offset_s + tokens_before / self.per_s
