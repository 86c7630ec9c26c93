"""Windows of a replica are kept by whichever collector folds it, and told by any."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from tests.collector.stage import Agent, asynchronous, collecting, until

from fulgurite.collector.stores.memory import MemoryStore
from fulgurite.collector.windows import BUCKETED_TOKENS, SECOND_NS, Windows
from fulgurite.v1 import viewer_pb2, viewer_pb2_grpc
from fulgurite.wire.frame import FrameBlock, RequestRef
from fulgurite.wire.sketch import FIRST_TOKEN_BOUNDS_S, INTER_TOKEN_BOUNDS_S, Intervals
from fulgurite.wire.sketch_codec import columns_from_pb


async def windows(address: object, *selectors: str, **request: Any) -> viewer_pb2.ListWindowsResponse:
    """The windows of replicas."""
    async with grpc.aio.insecure_channel(str(address)) as channel:
        stub: Any = viewer_pb2_grpc.ViewerServiceStub(channel)
        asked = viewer_pb2.ListWindowsRequest(selectors=selectors, **request)
        response: viewer_pb2.ListWindowsResponse = await stub.ListWindows(asked)
        return response


@asynchronous
async def test_what_one_collector_folded_another_tells() -> None:
    store = MemoryStore()
    async with collecting(store) as here, collecting(store) as there:
        agent = await Agent(here.address).hello()
        heads = np.full((4, 2, 4), 0.5, np.float32)
        await agent.send(1, head_write=heads)
        await agent.acknowledged(4)

        async def found() -> Any:
            response = await windows(there.address, "served", width_s=1)
            return response if response.replicas[0].windows else None

        response = await until(found)
        (told,) = response.replicas
        (window,) = told.windows
        assert (told.key, window.width_s, window.frames, window.folded) == ("/served/a", 1, 4, 0)
        assert columns_from_pb(window.columns)["head_write"].mean.tolist() == [0.5] * 8
        assert sum(window.inter_token) == 3  # of four tokens, 10 ms apart
        assert tuple(response.first_token_bounds_s) == FIRST_TOKEN_BOUNDS_S
        assert tuple(response.inter_token_bounds_s) == INTER_TOKEN_BOUNDS_S
        assert len(window.first_token) == len(FIRST_TOKEN_BOUNDS_S) + 1
        assert not (await windows(there.address, "other", width_s=1)).replicas
        await agent.hang_up()


def activity(frames: int, layers: int = 2, heads: int = 4) -> FrameBlock:
    """Tokens of one request, as far as a window reads them."""
    columns: dict[str, Any] = {
        "position": np.arange(frames, dtype=np.int32),
        "started_ns": np.zeros(frames, np.int64),
        "ended_ns": np.ones(frames, np.int64),
        "head_write": np.full((frames, layers, heads), 0.5, np.float32),
    }
    return FrameBlock((RequestRef("r"),), columns)


@pytest.mark.parametrize(("layers", "heads"), [(2, 4), (0, 4), (2, 0)])
def test_frames_beyond_those_with_quantiles_and_channels_without_values_are_counted_all_the_same(
    layers: int, heads: int
) -> None:
    nothing = Intervals(*(np.zeros(0) for _ in range(4)))
    window = Windows().at(SECOND_NS)
    for _ in range(3):  # the second fills the quantiles, so that of the third not one value is left
        window.take(activity(BUCKETED_TOKENS // 2 + 1, layers, heads), nothing)
    known = window.fold.columns["head_write"]
    assert window.frames == 3 * (BUCKETED_TOKENS // 2 + 1)
    assert known.count.tolist() == [window.frames] * (layers * heads)
    assert known.buckets is not None
    assert known.buckets.sum(axis=1).tolist() == [BUCKETED_TOKENS] * (layers * heads)


@pytest.mark.parametrize(
    ("request_of", "message"),
    [
        ({"width_s": 5}, "1, 10, 60 seconds, not 5"),
        ({}, "not 0"),
        ({"width_s": 1, "history_s": float("nan")}, "history_s"),
    ],
)
def test_a_width_that_is_not_kept_is_refused(request_of: dict[str, Any], message: str) -> None:
    @asynchronous
    async def run() -> None:
        async with collecting() as collector:
            with pytest.raises(grpc.aio.AioRpcError, match=message) as caught:
                await windows(collector.address, **request_of)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    run()
