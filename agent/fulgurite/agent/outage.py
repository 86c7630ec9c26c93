"""What the log says of the link: one line when it is down, one when it is up again, nothing in between."""

from __future__ import annotations

from typing import Final

_KEPT: Final = "The model is not affected; frames are kept up to the budget, then dropped and counted"

_LINES: Final = {
    "absent": "no collector at {endpoint} ({detail}). {kept}, until one answers; start one with "
    "`fulgurite collector`, or name another with FULGURITE_ENDPOINT",
    "foreign": "what answers at {endpoint} is not a Fulgurite collector ({detail}). {kept}; "
    "check FULGURITE_ENDPOINT",
    "silent": "the collector at {endpoint} does not answer ({detail}). {kept}, until it does; check its log",
    "garbled": "the collector at {endpoint} does not keep to the protocol ({detail}). {kept}; "
    "check that it is a Fulgurite collector of a version near to this one's",
    "lost_store": "the collector at {endpoint} no longer has what it acknowledged ({detail}); "
    "a new epoch begins",
    "denied": "the collector at {endpoint} does not accept this agent's credentials ({detail}). {kept}; "
    "check them",
    "refused": "the collector at {endpoint} refuses this replica ({detail}). {kept}",
    "closed": "the collector at {endpoint} ended the stream ({detail}). {kept}, until it is back",
}
_FINAL: Final = (
    "the collector at {endpoint} ended the capture of this replica ({reason}); "
    "nothing more is sent, and what is captured is dropped and counted"
)


class Outage:
    """Remembers what was said since the link was last up.

    Parameters
    ----------
    endpoint : str
        What to name in each line.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._said: set[str] = set()

    @property
    def down(self) -> bool:
        """Whether the link failed and has not come back."""
        return bool(self._said)

    def failed(self, failure: str, detail: str) -> str | None:
        """The line for a failure; None where one like it was said in this outage."""
        if failure in self._said:
            return None
        self._said.add(failure)
        return _LINES[failure].format(
            endpoint=self._endpoint, detail=detail[:200] or "no reason given", kept=_KEPT
        )

    def over(self, dropped: int) -> str | None:
        """The line for a link that is up again; None where it was not down."""
        if not self._said:
            return None
        self._said.clear()
        return f"the collector at {self._endpoint} answers again; {dropped} frames were dropped so far"

    def final(self, reason: str) -> str:
        """The line for a link that will not come back."""
        return _FINAL.format(endpoint=self._endpoint, reason=reason[:200])
