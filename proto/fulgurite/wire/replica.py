"""The name of a replica: the OpenTelemetry triplet, as one text, and what selects it.

The text is used as a key in stores and on the wire, so every part is percent-escaped: a slash, a brace (the
hash tag of a Redis key), a space or a control character in a service name cannot reach into somebody else's
key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from urllib.parse import quote, unquote

MAX_PART_CHARS = 255
UNKNOWN_SERVICE = "unknown_service"  # what OpenTelemetry calls a service without a name


@dataclass(frozen=True, slots=True, order=True)
class ReplicaKey:
    """One serving process of one model.

    Attributes
    ----------
    namespace, service, instance : str
        ``service.namespace`` (may be empty), ``service.name``, ``service.instance.id``.

    Raises
    ------
    ValueError
        Where the service or the instance is empty, or a part is longer than 255 characters when escaped.
    """

    namespace: str
    service: str
    instance: str

    def __post_init__(self) -> None:
        if not self.service:
            raise ValueError("a replica needs a service name: set OTEL_SERVICE_NAME")
        if not self.instance:
            raise ValueError("a replica needs a service.instance.id: set it in OTEL_RESOURCE_ATTRIBUTES")
        for part in (self.namespace, self.service, self.instance):
            if len(_escape(part)) > MAX_PART_CHARS:
                raise ValueError(
                    f"a replica's name is too long (over {MAX_PART_CHARS} characters): {part[:40]!r}…"
                )

    @property
    def text(self) -> str:
        """``namespace/service/instance``, each part percent-escaped."""
        return "/".join(_escape(part) for part in (self.namespace, self.service, self.instance))

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> ReplicaKey:
        """The key whose `text` this is.

        Raises
        ------
        ValueError
            Where it is not three parts as `text` writes them.
        """
        parts = text.split("/")
        if len(parts) != 3:
            raise ValueError(f"not a replica: {text[:80]!r}; it is written namespace/service/instance")
        key = cls(*(unquote(part) for part in parts))
        if key.text != text:  # one replica, one text: two spellings would be two keys in a store
            raise ValueError(f"not a replica as it is written here: {text[:80]!r}; write {key.text!r}")
        return key

    @classmethod
    def from_resource(cls, resource: Mapping[str, str]) -> ReplicaKey:
        """The key of an OpenTelemetry resource."""
        return cls(
            resource.get("service.namespace", ""),
            resource.get("service.name", "") or UNKNOWN_SERVICE,
            resource.get("service.instance.id", ""),
        )

    def matches(self, selector: str) -> bool:
        """Whether `selector` means this replica.

        A selector is ``[namespace/]service[/instance]``, each part with ``*``, ``?`` and ``[…]`` as in file
        names. Two parts are tried both as namespace/service and as service/instance. Empty, or ``*``: every
        replica.
        """
        if selector in ("", "*"):
            return True
        patterns = tuple(unquote(part) for part in selector.split("/"))
        names = (self.namespace, self.service, self.instance)
        if len(patterns) == 1:
            return _fits(patterns, names[1:2])
        if len(patterns) == 2:
            return _fits(patterns, names[:2]) or _fits(patterns, names[1:])
        return len(patterns) == 3 and _fits(patterns, names)


@lru_cache(maxsize=4096)  # the same few names are written for every batch
def _escape(part: str) -> str:
    return quote(part, safe="")


def _fits(patterns: tuple[str, ...], names: tuple[str, ...]) -> bool:
    return all(fnmatchcase(name, pattern) for name, pattern in zip(names, patterns, strict=True))
