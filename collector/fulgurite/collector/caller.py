"""Who is at the other end of a call, and what they may do."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal, get_args
from urllib.parse import unquote

from fulgurite.collector.refusal import Refused
from fulgurite.wire.replica import ReplicaKey

Scope = Literal["ingest", "view", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)


@dataclass(frozen=True, slots=True)
class ReplicaPattern:
    """Replicas by name: ``namespace/service/instance``, each part with ``*``, ``?`` and ``[…]``.

    All three parts are written, so that a permission never means more than it says; ``*`` alone is all.
    """

    parts: tuple[str, str, str]

    @classmethod
    def parse(cls, text: str) -> ReplicaPattern:
        """Read a pattern.

        Raises
        ------
        ValueError
            Where it is something else.
        """
        parts = text.split("/") if text != "*" else ["*", "*", "*"]
        if len(parts) != 3 or not parts[1] or not parts[2]:
            raise ValueError(
                f"replicas are named NAMESPACE/SERVICE/INSTANCE, such as 'prod/chat/*', or '*', not {text!r}"
            )
        namespace, service, instance = map(unquote, parts)
        return cls((namespace, service, instance))

    def matches(self, key: ReplicaKey) -> bool:
        """Whether it means this replica."""
        names = (key.namespace, key.service, key.instance)
        return all(map(fnmatchcase, names, self.parts))


@dataclass(frozen=True, slots=True)
class Caller:
    """A peer as its credential names it.

    Attributes
    ----------
    name : str
        Of the credential, for messages and logs.
    scopes : frozenset of str
    replicas : tuple of ReplicaPattern
        What it may write.
    """

    name: str
    scopes: frozenset[Scope]
    replicas: tuple[ReplicaPattern, ...]

    def may_write(self, key: ReplicaKey) -> bool:
        """Whether it may be the agent of this replica."""
        return any(pattern.matches(key) for pattern in self.replicas)


ANYBODY: Final = Caller("anybody", frozenset(SCOPES), (ReplicaPattern(("*", "*", "*")),))
"""Where no credentials are asked for."""


@dataclass(frozen=True, slots=True)
class _Guest:
    caller: Caller
    has_room_for: Callable[[ReplicaKey], bool]


_UNASKED: Final = _Guest(ANYBODY, lambda _: True)
_current: ContextVar[_Guest] = ContextVar("fulgurite_caller")


def current() -> Caller:
    """Who made the call that is being served."""
    return _current.get(_UNASKED).caller


def be(caller: Caller, has_room_for: Callable[[ReplicaKey], bool]) -> None:
    """From here on in this task, the call is of `caller`, who may bring so many replicas."""
    _current.set(_Guest(caller, has_room_for))


def check_replica(key: ReplicaKey) -> None:
    """Whether who makes the current call may be the agent of this replica.

    Raises
    ------
    Refused
        Where not.
    """
    guest = _current.get(_UNASKED)
    if not guest.caller.may_write(key):
        raise Refused(
            f"the credential {guest.caller.name!r} may not write {key}: its `replicas` do not name it"
        )
    if not guest.has_room_for(key):
        reason = (
            f"the credential {guest.caller.name!r} has brought as many replicas as it may; see its `names`"
        )
        raise Refused(reason, final=False)
