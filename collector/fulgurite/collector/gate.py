"""The gate that every call goes through: who is it, may they, and is it not too much.

Health is for everybody who reaches the port: an orchestrator has no credential. All else needs one as soon as
there are credentials. A credential that is withdrawn ends the streams that were opened with it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc

from fulgurite.collector import caller
from fulgurite.collector.caller import ANYBODY, Scope
from fulgurite.collector.credentials import Credential, Credentials, CredentialsFile, Limits
from fulgurite.collector.limits import Bucket, Names
from fulgurite.wire.replica import ReplicaKey

log = logging.getLogger(__name__)

SPANS: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
OPEN_SERVICES: Final = frozenset({"grpc.health.v1.Health"})
SCOPE_OF: Final[Mapping[str, Scope]] = {
    "fulgurite.v1.AgentService": "ingest",
    "fulgurite.v1.ViewerService": "view",
    "fulgurite.v1.SpanService": "view",
    "fulgurite.v1.AdminService": "admin",
    SPANS: "ingest",
    "opentelemetry.proto.collector.metrics.v1.MetricsService": "ingest",
}
"""What a service needs. One that is not named here needs ``admin``."""
BURST_S: Final = 4.0
LEAST_BURST: Final = 4.0
LINES_PER_S: Final = 1.0
NOBODY: Final = Credential(ANYBODY, Limits(calls=1 << 30, calls_per_s=1e9, bytes_per_s=1e18), None, None)
"""Who comes in where nobody is asked: limited by the collector's own settings."""


class Denied(Exception):
    """The call is not served. The message is for whoever made it, and tells no secret."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Purse:
    """What one credential has used up, in this process."""

    def __init__(self, limits: Limits, *, age_s: float, now_s: float) -> None:
        self.limits = limits
        self.calls = 0
        self._rate = Bucket(limits.calls_per_s, max(LEAST_BURST, BURST_S * limits.calls_per_s), now_s)
        self._bytes = Bucket(limits.bytes_per_s, BURST_S * limits.bytes_per_s, now_s)
        self._names = Names(limits.names, age_s)

    def open(self, name: str, now_s: float) -> None:
        """One call more.

        Raises
        ------
        Denied
            Where it is one too many.
        """
        if self.calls >= self.limits.calls:
            text = f"{name!r} has {self.calls} calls open, which is its limit"
            raise Denied(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        if not self._rate.take(1, now_s):
            text = f"{name!r} makes more than {self.limits.calls_per_s:g} calls a second"
            raise Denied(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        self.calls += 1

    def pause_s(self, nbytes: int, now_s: float) -> float:
        """So many bytes came: how long to wait before more are read."""
        return self._bytes.owe(nbytes, now_s)

    def has_room_for(self, key: ReplicaKey) -> bool:
        """Whether one may be the agent of this replica as well."""
        return self._names.say(key, time.monotonic())


@dataclass(slots=True, eq=False)
class Pass:
    """One call that was let in.

    Attributes
    ----------
    is_void : bool
        Its credential was withdrawn: nothing more is taken from it, nor sent to it.
    """

    credential: Credential
    service: str
    is_void: bool = False


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Lets calls in.

    Parameters
    ----------
    file : CredentialsFile or None
        None: nobody is asked; where the port asks for certificates, one that its CA signed is enough.
    age_s : float
        For how long a replica that left still counts: as long as the store keeps it.
    """

    def __init__(self, file: CredentialsFile | None, *, age_s: float) -> None:
        self._file, self._age_s = file, age_s
        self._purses: dict[str, Purse] = {}
        self._open: set[Pass] = set()
        self._lines = Bucket(LINES_PER_S, LINES_PER_S * 10, time.monotonic())

    async def run(self) -> None:
        """Void what was opened with credentials that are no longer there, once a second, until cancelled."""
        while self._file is not None:
            await asyncio.sleep(1.0)
            self.void_withdrawn(self._file.in_force())

    def void_withdrawn(self, in_force: Credentials) -> None:
        """Void the calls of credentials that are not `in_force`. Each ends where it would speak or be heard.

        Nothing is cancelled: gRPC tells a peer nothing of a call whose task was.
        """
        for one in self._open:
            one.is_void = one.is_void or one.credential not in in_force

    # --- deciding

    def credential(self, authorization: str | None, names: tuple[str, ...]) -> Credential:
        """Whose call it is.

        Parameters
        ----------
        authorization : str or None
            ``Bearer TOKEN``, as the call has it.
        names : tuple of str
            In the client's certificate, where it showed one.

        Raises
        ------
        Denied
            Where it is nobody's that is known.
        """
        if self._file is None:
            return NOBODY
        in_force = self._file.in_force()
        if authorization is not None:
            scheme, _, token = authorization.partition(" ")
            found = in_force.of_token(token.strip()) if scheme.lower() == "bearer" else None
        else:
            found = in_force.of_certificate(names)
        if found is None:
            shown = "the token is not known here" if authorization else "no token came with the call"
            raise Denied(
                grpc.StatusCode.UNAUTHENTICATED,
                f"{shown}: set FULGURITE_TOKEN to one that this collector's --credentials file knows",
            )
        return found

    def check(self, credential: Credential, service: str) -> None:
        """Whether it may call this service.

        Raises
        ------
        Denied
            Where it may not.
        """
        scope = SCOPE_OF.get(service, "admin")
        if scope not in credential.caller.scopes:
            raise Denied(
                grpc.StatusCode.PERMISSION_DENIED,
                f"the credential {credential.caller.name!r} has no scope {scope!r}",
            )

    def purse(self, credential: Credential) -> Purse:
        """What it has used up."""
        name = credential.caller.name
        purse = self._purses.get(name)
        if purse is None or purse.limits != credential.limits:
            purse = self._purses[name] = Purse(credential.limits, age_s=self._age_s, now_s=time.monotonic())
        return purse

    def admit_spans(self, authorization: str | None) -> None:
        """Whether spans may be sent, where there is no call to hold open: over HTTP.

        Raises
        ------
        Denied
            Where not.
        """
        credential = self.credential(authorization, ())
        self.check(credential, SPANS)
        purse = self.purse(credential)
        purse.open(credential.caller.name, time.monotonic())
        purse.calls -= 1

    def calls(self) -> dict[tuple[str, str], int]:
        """How many calls are open, by the name of their credential and their service."""
        return dict(Counter((one.credential.caller.name, one.service) for one in self._open))

    # --- doing

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Wrap what serves the call."""
        handler = await continuation(details)
        service = str(details.method).strip("/").rpartition("/")[0]
        if handler is None or service in OPEN_SERVICES:
            return handler
        return self._wrapped(handler, service)

    def _wrapped(self, handler: Any, service: str) -> Any:
        kind = (
            ("unary", "stream")[handler.request_streaming]
            + "_"
            + ("unary", "stream")[handler.response_streaming]
        )
        behaviour = getattr(handler, kind)
        guarded = self._guarded_stream if inspect.isasyncgenfunction(behaviour) else self._guarded_call
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(guarded(behaviour, service), handler.request_deserializer, handler.response_serializer)

    def _guarded_call(self, behaviour: Any, service: str) -> Any:
        async def call(request: Any, context: Any) -> Any:
            admitted = await self._admitted(context, service)
            try:
                return await behaviour(self._metered(request, admitted), context)
            finally:
                self._leave(admitted)

        return call

    def _guarded_stream(self, behaviour: Any, service: str) -> Any:
        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            admitted = await self._admitted(context, service)
            try:
                async for response in behaviour(self._metered(request, admitted), context):
                    if admitted.is_void:
                        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the credential was withdrawn")
                    yield response
            finally:
                self._leave(admitted)

        return stream

    async def _admitted(self, context: Any, service: str) -> Pass:
        try:
            credential = self.credential(_authorization(context), _names(context))
            self.check(credential, service)
            purse = self.purse(credential)
            purse.open(credential.caller.name, time.monotonic())
        except Denied as denied:
            self._log_denied(service, context, denied)
            await context.abort(denied.code, denied.reason)
        admitted = Pass(credential, service)
        self._open.add(admitted)
        caller.be(credential.caller, purse.has_room_for)
        return admitted

    def _log_denied(self, service: str, context: Any, denied: Denied) -> None:
        """Once in a while: a peer must not be able to fill the log."""
        if self._lines.take(1, time.monotonic()):
            log.warning("denied %s to %s: %s", service, context.peer(), denied.reason)

    def _leave(self, admitted: Pass) -> None:
        self._open.discard(admitted)
        purse = self._purses.get(admitted.credential.caller.name)
        if purse is not None:
            purse.calls = max(0, purse.calls - 1)

    def _metered(self, request: Any, admitted: Pass) -> Any:
        """The messages of a stream, read no faster than the credential may send, and none when it is void."""
        if not hasattr(request, "__aiter__") or admitted.credential is NOBODY:
            return request
        return self._paced(request, admitted, self.purse(admitted.credential))

    async def _paced(self, messages: AsyncIterator[Any], admitted: Pass, purse: Purse) -> AsyncIterator[Any]:
        async for message in messages:
            if admitted.is_void:
                return
            pause_s = purse.pause_s(len(message), time.monotonic())
            yield message
            if pause_s > 0:
                await asyncio.sleep(pause_s)


def _authorization(context: Any) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key.lower() == "authorization":
            return value if isinstance(value, str) else None
    return None


def _names(context: Any) -> tuple[str, ...]:
    """Every name in the client's certificate."""
    found = context.auth_context() or {}
    keys = ("x509_subject_alternative_name", "x509_common_name")
    return tuple(value.decode("utf-8", "replace") for key in keys for value in found.get(key, ()))
