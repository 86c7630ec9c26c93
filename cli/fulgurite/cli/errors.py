"""What a command says when it cannot go on: one line for people, one exit status for scripts."""

from __future__ import annotations


class CommandError(Exception):
    """An expected failure. It is printed as one line, without a traceback.

    Parameters
    ----------
    message : str
        What is wrong, with the value, and what to do about it.
    status : int
        Exit status of the program.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status
