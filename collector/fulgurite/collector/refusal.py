"""Why an agent is turned away: the sentence that it is told."""

from __future__ import annotations


class Refused(Exception):
    """An agent's stream ends here.

    Parameters
    ----------
    reason : str
        One sentence for whoever runs the agent.
    final : bool
        Whether a retry cannot help.
    """

    def __init__(self, reason: str, *, final: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.final = final
