"""A collector as the commands see it: a call for its replicas, a stream of frames, errors in one line."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc

from fulgurite.cli.address import Address
from fulgurite.cli.errors import CommandError
from fulgurite.v1 import spans_pb2, spans_pb2_grpc, viewer_pb2, viewer_pb2_grpc
from fulgurite.wire.access import Access, AccessError
from fulgurite.wire.codec import topology_from_pb
from fulgurite.wire.refusals import STORE_AWAY

if TYPE_CHECKING:
    from fulgurite.v1.viewer_pb2 import (
        ControlState,
        DescribeResponse,
        ListReplicasResponse,
        SetControlResponse,
        WatchResponse,
    )
    from fulgurite.wire.topology import Topology

CONNECT_TIMEOUT_S = 5.0
MAX_MESSAGE_BYTES = 16 * 1024 * 1024


class Collector:
    """A connection to one collector, as a viewer.

    Parameters
    ----------
    address : Address
        Where it listens.
    timeout_s : float
        How long one call, or the first answer of a stream, may take.

    Raises
    ------
    CommandError
        Where the token or the certificates in the environment cannot be used.
    """

    def __init__(self, address: Address, *, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self._address = address
        self._timeout_s = timeout_s
        options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.enable_http_proxy", 0)]
        try:
            self._channel = Access.from_environment().channel(str(address), options)
        except AccessError as error:
            raise CommandError(str(error)) from None
        self._stub: Any = viewer_pb2_grpc.ViewerServiceStub(self._channel)

    def __enter__(self) -> Collector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def replicas(self, selectors: Sequence[str] = ()) -> ListReplicasResponse:
        """Every replica that `selectors` match; all where there are none.

        Raises
        ------
        CommandError
            Where no collector answers at the address.
        """
        request = viewer_pb2.ListReplicasRequest(selectors=list(selectors))
        try:
            response: ListReplicasResponse = self._stub.ListReplicas(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise self._explain(error) from None
        return response

    def describe(self, selectors: Sequence[str] = ()) -> DescribeResponse:
        """How the collector process that answers is, and the replicas with their links.

        Raises
        ------
        CommandError
            Where no collector answers at the address.
        """
        request = viewer_pb2.DescribeRequest(selectors=list(selectors))
        stub: Any = viewer_pb2_grpc.AdminServiceStub(self._channel)
        try:
            response: DescribeResponse = stub.Describe(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise self._explain(error) from None
        return response

    def control(self, selectors: Sequence[str], **wanted: Any) -> list[ControlState]:
        """Ask something of replicas; what is asked of each now.

        Parameters
        ----------
        wanted : fields of `SetControlRequest`.

        Raises
        ------
        CommandError
            Where no collector answers at the address.
        """
        request = viewer_pb2.SetControlRequest(selectors=list(selectors), **wanted)
        stub: Any = viewer_pb2_grpc.AdminServiceStub(self._channel)
        try:
            response: SetControlResponse = stub.SetControl(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise self._explain(error) from None
        return list(response.replicas)

    def spans(self, trace_id: bytes) -> list[bytes]:
        """The spans that others sent of a trace: serialised ResourceSpans of OTLP.

        Raises
        ------
        CommandError
            Where no collector answers at the address.
        """
        request = spans_pb2.FindSpansRequest(trace_id=trace_id)
        try:
            response = spans_pb2_grpc.SpanServiceStub(self._channel).FindSpans(
                request, timeout=self._timeout_s
            )
        except grpc.RpcError as error:
            raise self._explain(error) from None
        return list(response.resource_spans)

    def watch(self, selectors: Sequence[str] = (), *, history_s: float = 0.0) -> Iterator[WatchResponse]:
        """What the collector tells a viewer, from `history_s` seconds ago on, until either hangs up.

        Raises
        ------
        CommandError
            Where no collector answers at the address, and where it goes away later.
        """
        self._wait_until_connected()
        request = viewer_pb2.WatchRequest(selectors=list(selectors), history_s=history_s)
        call = self._stub.Watch(request)
        heard = False
        try:
            for message in call:
                heard = True
                yield message
        except grpc.RpcError as error:
            raise self._gone() if heard else self._explain(error) from None
        finally:
            call.cancel()

    def topologies(self, keys: Collection[str]) -> dict[str, Topology]:
        """The topologies of the replicas named `keys`, as far as they are told within the time of one call.
        Asks no agent for anything, and leaves out what it does not get."""
        request = viewer_pb2.WatchRequest(selectors=list(keys), passive=True, status_interval_s=60.0)
        call = self._stub.Watch(request, timeout=self._timeout_s)
        found: dict[str, Topology] = {}
        try:
            for message in call:
                if message.HasField("replica") and message.replica.HasField("topology"):
                    found[message.replica.key] = topology_from_pb(message.replica.topology)
                if len(found) == len(keys):
                    break
        except grpc.RpcError:
            pass
        finally:
            call.cancel()
        return found

    def _wait_until_connected(self) -> None:
        try:
            grpc.channel_ready_future(self._channel).result(timeout=self._timeout_s)
        except grpc.FutureTimeoutError:
            raise CommandError(_not_there(self._address)) from None

    def _gone(self) -> CommandError:
        return CommandError(f"the collector at {self._address} went away")

    def _explain(self, error: grpc.RpcError) -> CommandError:
        # What a stub raises is a grpc.Call as well; the stubs do not say so.
        call: Any = error
        code, details = call.code(), call.details()
        if code is grpc.StatusCode.UNAVAILABLE and details.startswith(STORE_AWAY):
            return CommandError(f"the collector at {self._address} waits for its store: {details}")
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return CommandError(_not_there(self._address))
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return CommandError(f"the collector at {self._address} does not let this client in: {details}")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return CommandError(_not_a_collector(self._address))
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return CommandError(details, status=2)
        return CommandError(f"the collector at {self._address} refused: {details} ({code.name})")


def _not_there(address: Address) -> str:
    if listens(address):
        return _not_a_collector(address)
    return (
        f"no collector at {address}: start one with `fulgurite collector` (or `fulgurite demo`), "
        "or name another with --collector HOST:PORT"
    )


def _not_a_collector(address: Address) -> str:
    return (
        f"{address} answers, but not as a Fulgurite collector: "
        "is the port right? Name another with --collector HOST:PORT"
    )


def listens(address: Address, *, timeout_s: float = 1.0) -> bool:
    """Whether anything accepts a TCP connection at `address`."""
    try:
        with socket.create_connection((address.host, address.port), timeout=timeout_s):
            return True
    except OSError:
        return False
