"""Puts a token on every call of a channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc

from fulgurite.wire.access import METADATA_KEY


class _Details(NamedTuple):
    """What grpc asks of the details of a call, by name."""

    method: Any = None
    timeout: Any = None
    metadata: Any = None
    credentials: Any = None
    wait_for_ready: Any = None
    compression: Any = None


class Bearer(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]
):
    """Puts the token on every call."""

    def __init__(self, bearer: str) -> None:
        self._bearer = bearer

    def _with_token(self, continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
        metadata = [*(details.metadata or ()), (METADATA_KEY, self._bearer)]
        fields = {name: getattr(details, name, None) for name in _Details._fields}
        return continuation(_Details(**{**fields, "metadata": metadata}), request)

    intercept_unary_unary: Any = _with_token
    intercept_unary_stream: Any = _with_token
    intercept_stream_stream: Any = _with_token
