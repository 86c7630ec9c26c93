"""Memory that is used again."""

from __future__ import annotations

import threading

import numpy as np

from fulgurite.agent.scratch import MOST_BYTES, scratch


def test_one_use_gives_the_same_memory_and_another_use_other_memory() -> None:
    first = scratch("one", (3, 5))
    assert np.shares_memory(first, scratch("one", (2, 4)))
    assert not np.shares_memory(first, scratch("other", (3, 5)))
    assert not np.shares_memory(first, scratch("one", (3, 5), np.int32))
    assert scratch("one", (6, 7)).shape == (6, 7)


def test_what_is_large_is_not_kept() -> None:
    size = MOST_BYTES // 4 + 1
    assert not np.shares_memory(scratch("large", (size,)), scratch("large", (size,)))


def test_each_thread_has_its_own() -> None:
    ours, theirs = scratch("thread", (8,)), []
    thread = threading.Thread(target=lambda: theirs.append(scratch("thread", (8,))))
    thread.start()
    thread.join()
    assert not np.shares_memory(ours, theirs[0])
