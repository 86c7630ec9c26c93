"""The port for administrators: what agents are to do. Requests come as bytes, as in `ingest`.

What is asked for is kept in the store with the replica, and told to its agent by whichever collector has its
stream. So it also holds for an agent that is away now and comes back.
"""

from __future__ import annotations

import math
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from fulgurite.collector.demand import Demands
from fulgurite.collector.fleet import Fleet, Row, is_selected
from fulgurite.collector.outage import Outage
from fulgurite.collector.store import Store, StoreError, Wish
from fulgurite.v1 import agent_pb2, viewer_pb2
from fulgurite.wire.channels import LEVELS
from fulgurite.wire.refusals import STORE_AWAY

MAX_SELECTORS: Final = 64
MAX_SELECTOR_CHARS: Final = 1024
NOT_SENT: Final = ("demand", "own_level")
"""Of a control that is kept: these are made anew when it is told."""


class AdminService:
    """See `AdminService` in `viewer.proto`."""

    def __init__(self, store: Store, *, fleet: Fleet, demands: Demands, outage: Outage) -> None:
        self._store, self._fleet, self._demands, self._outage = store, fleet, demands, outage

    @property
    def handler(self) -> Any:
        """What a server is given."""
        serialize = viewer_pb2.SetControlResponse.SerializeToString
        handlers = {"SetControl": grpc.unary_unary_rpc_method_handler(self.set_control, None, serialize)}
        return grpc.method_handlers_generic_handler("fulgurite.v1.AdminService", handlers)

    async def set_control(self, data: bytes, context: Any) -> viewer_pb2.SetControlResponse:
        """Ask something of the replicas that a selector names."""
        try:
            request = viewer_pb2.SetControlRequest.FromString(data)
            check_request(request)
        except (DecodeError, ValueError) as error:
            reason = "not a request of an administrator" if isinstance(error, DecodeError) else str(error)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, reason)
        try:
            return await self._set(request)
        except StoreError as error:
            self._outage.failed("write", error)
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{STORE_AWAY}: {error}")
            raise

    async def _set(self, request: viewer_pb2.SetControlRequest) -> viewer_pb2.SetControlResponse:
        self._fleet.expire()
        rows = await self._fleet.rows()
        selectors = tuple(request.selectors)
        chosen = {key: row for key, row in rows.items() if is_selected(key, selectors)}
        wishes = await self._store.wishes(list(chosen))
        response = viewer_pb2.SetControlResponse()
        for key, row in chosen.items():
            state = asked(request, wishes.get(key, Wish()).control, row)
            response.replicas.append(state)
            if not state.refusal:
                await self._store.ask(key, state.control.SerializeToString())
        self._outage.succeeded("write")
        self._demands.hurry()
        return response


def check_request(request: viewer_pb2.SetControlRequest) -> None:
    """Hold a request against what can be asked for.

    Raises
    ------
    ValueError
        Where it asks for something else.
    """
    selectors = request.selectors
    if not 1 <= len(selectors) <= MAX_SELECTORS or not all(selectors):
        raise ValueError(f"{len(selectors)} selectors: name 1 to {MAX_SELECTORS} replicas, * for all")
    if any(len(selector) > MAX_SELECTOR_CHARS for selector in selectors):
        raise ValueError(f"a selector of more than {MAX_SELECTOR_CHARS} characters")
    if request.level and request.level not in LEVELS:
        raise ValueError(f"no such level: {request.level[:40]!r}; it is one of {', '.join(LEVELS)}")
    ratio = request.deep_ratio
    if request.HasField("deep_ratio") and not (math.isfinite(ratio) and ratio <= 1.0):
        raise ValueError(
            f"deep_ratio must be between 0 and 1, or negative for the agent's own, not {ratio:g}"
        )


def asked(request: viewer_pb2.SetControlRequest, before: bytes, row: Row) -> viewer_pb2.ControlState:
    """What is asked of one replica after `request`, where `before` was; or why it is refused."""
    state = viewer_pb2.ControlState(key=row.key.text, state=row.status().state)
    try:
        state.control.ParseFromString(before)
        told = viewer_pb2.ReplicaAnnouncement.FromString(row.announcement)
    except DecodeError:
        state.control.Clear()
        told = viewer_pb2.ReplicaAnnouncement()
    for name in NOT_SENT:
        state.control.ClearField(name)
    state.level_ceiling = told.level_ceiling
    if _is_above(request.level, told.level_ceiling):
        state.refusal = (
            f"level {request.level} is above {told.level_ceiling}, the ceiling of its attachment: "
            f"start the process with FULGURITE_LEVEL={request.level}"
        )
        return state
    _apply(request, state.control)
    return state


def _is_above(level: str, ceiling: str) -> bool:
    return level in LEVELS and ceiling in LEVELS and LEVELS.index(level) > LEVELS.index(ceiling)


def _apply(request: viewer_pb2.SetControlRequest, control: agent_pb2.Control) -> None:
    if request.HasField("level"):
        control.level = request.level
    if request.HasField("pause"):
        control.pause = request.pause
    if request.HasField("deep_ratio"):
        if request.deep_ratio < 0:
            control.ClearField("deep_ratio")
        else:
            control.deep_ratio = request.deep_ratio
    control.kill = control.kill or request.kill
