"""Shares of ranks: matched by step, waited for once, and told over a line that refuses what is not ours."""

from __future__ import annotations

import socket
import struct
from typing import Any

import numpy as np
import pytest

from fulgurite.agent import rank_wire
from fulgurite.agent.joint import Joint
from fulgurite.agent.ranks import share
from fulgurite.wire.frame import FrameBlock, RequestEvent, RequestRef

NAN = float("nan")


def block(step: int, *heads: float, position: int = 5) -> FrameBlock:
    columns: dict[str, Any] = {
        "request_index": np.zeros(1, np.uint16),
        "sequence": np.zeros(1, np.uint16),
        "position": np.full(1, position, np.int32),
        "token_id": np.full(1, 7, np.int32),
        "step": np.full(1, step, np.int64),
        "level": np.full(1, 2, np.uint8),
        "head_write": np.array([[heads]], np.float32),
        "kv_bytes": np.full(1, 100, np.int64),
    }
    return FrameBlock((RequestRef("r"),), columns)


def event(kind: str) -> RequestEvent:
    return RequestEvent(request_id="r", kind=kind, time_ns=1)


def test_blocks_and_events_come_out_in_order_each_with_the_shares_of_all() -> None:
    joint = Joint((1,), wait_s=5.0)
    joint.put_own(event("started"), 0.0)
    joint.put_own(block(0, 1.0, NAN), 0.0)
    joint.put_own(event("finished"), 0.0)
    assert joint.take(1.0) == [event("started")]
    assert len(joint) == 1
    joint.put_part(1, block(0, NAN, 2.0))
    whole, ended = joint.take(1.0)
    assert isinstance(whole, FrameBlock)
    assert whole.columns["head_write"].tolist() == [[[1.0, 2.0]]]
    assert whole.columns["kv_bytes"].tolist() == [200]
    assert ended == event("finished")
    assert joint.is_empty
    assert joint.notes == []


def test_a_rank_that_is_late_is_waited_for_once_and_comes_back() -> None:
    joint = Joint((1,), wait_s=5.0)
    joint.put_own(block(0, 1.0, NAN), 0.0)
    assert joint.take(4.9) == []
    (alone,) = joint.take(5.1)
    assert isinstance(alone, FrameBlock)
    assert np.isnan(alone.columns["head_write"][0, 0, 1])
    assert "kv_bytes" not in alone.columns
    assert joint.notes == [("late", 1)]
    joint.put_own(block(1, 1.0, NAN), 6.0)
    assert len(joint.take(6.0)) == 1, "it is not waited for again"
    joint.put_part(1, block(1, NAN, 2.0))
    joint.put_part(1, block(2, NAN, 2.0))
    joint.put_own(block(2, 1.0, NAN), 7.0)
    (whole,) = joint.take(7.0)
    assert isinstance(whole, FrameBlock)
    assert whole.columns["head_write"].tolist() == [[[1.0, 2.0]]]


def test_a_rank_that_counts_other_tokens_is_left_out() -> None:
    joint = Joint((1,), wait_s=5.0)
    joint.put_part(1, block(0, NAN, 2.0, position=9))
    joint.put_own(block(0, 1.0, NAN), 0.0)
    (alone,) = joint.take(0.0)
    assert isinstance(alone, FrameBlock)
    assert np.isnan(alone.columns["head_write"][0, 0, 1])
    assert joint.notes == [("out of step", 1)]


def test_a_share_says_nothing_of_tokens() -> None:
    told = share(block(0, 1.0, NAN))
    assert "token_id" not in told
    assert {"step", "position", "head_write", "kv_bytes"} <= set(told)


def test_what_is_sent_is_what_comes() -> None:
    near, far = socket.socketpair()
    with near, far:
        rank_wire.send(near, {"level": "deep"}, share(block(3, 1.0, NAN)))
        received = rank_wire.receive(far)
        assert received is not None
        head, arrays = received
        assert head == {"level": "deep"}
        for name, array in share(block(3, 1.0, NAN)).items():
            np.testing.assert_array_equal(arrays[name], array)
            assert arrays[name].dtype == array.dtype
        near.close()
        assert rank_wire.receive(far) is None


@pytest.mark.parametrize(
    "message",
    [
        struct.pack("!II", 1 << 31, 0),
        struct.pack("!II", 2, 0) + b"{]",
        struct.pack("!II", 46, 0) + b'{"arrays": [["a", "|O", [1]]]}'.ljust(46),
        struct.pack("!II", 46, 0) + b'{"arrays": [["a", "<f4", [9]]]}'.ljust(46),
    ],
)
def test_what_is_no_message_of_ours_is_refused(message: bytes) -> None:
    near, far = socket.socketpair()
    with near, far:
        near.sendall(message)
        with pytest.raises(ValueError):
            rank_wire.receive(far)
