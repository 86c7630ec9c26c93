"""The account balances at every moment, and refuses what would break it."""

from __future__ import annotations

from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.wire.ledger import Ledger, LedgerError

OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["capture", "acknowledge", "full", "refused"]), st.integers(0, 5))
)


@given(OPERATIONS)
def test_whatever_is_counted_the_sum_holds_and_pending_is_never_negative(
    operations: list[tuple[str, int]],
) -> None:
    ledger = Ledger()
    for what, frames in operations:
        before = ledger.account()
        try:
            if what == "capture":
                ledger.capture(frames)
            elif what == "acknowledge":
                ledger.acknowledge(frames)
            else:
                ledger.drop(frames, what)
        except LedgerError:
            assert frames > before.pending
            assert ledger.account() == before
        account = ledger.account()
        assert account.captured == account.pending + account.acknowledged + sum(account.dropped.values())
        assert account.pending >= 0


def test_settling_more_than_is_pending_is_refused_with_the_account() -> None:
    ledger = Ledger()
    ledger.capture(2)
    with pytest.raises(LedgerError, match="3 frames cannot be settled"):
        ledger.acknowledge(3)
    with pytest.raises(LedgerError, match="-1 frames cannot be captured"):
        ledger.capture(-1)


def test_a_sealed_ledger_has_nothing_pending_and_still_counts_what_is_settled_late() -> None:
    ledger = Ledger()
    ledger.capture(5)
    ledger.drop(1, "unacknowledged")
    ledger.seal("unacknowledged")
    account = ledger.account()
    assert (account.pending, account.dropped) == (0, {"unacknowledged": 5})
    ledger.acknowledge(3)
    assert ledger.account().acknowledged == 3
    assert ledger.account().dropped == {"unacknowledged": 2}
    ledger.drop(1, "closed")
    assert ledger.account().dropped == {"unacknowledged": 1, "closed": 1}
    with pytest.raises(LedgerError):
        ledger.acknowledge(1)


def test_dropping_nothing_names_no_reason() -> None:
    ledger = Ledger()
    ledger.drop(0, "outbox_full")
    assert ledger.account().dropped == {}


def test_threads_that_count_at_the_same_time_lose_nothing() -> None:
    ledger = Ledger()
    rounds = 2000
    broken: list[object] = []

    def count() -> None:
        for i in range(rounds):
            ledger.capture(2)
            ledger.acknowledge(1)
            ledger.drop(1, "even" if i % 2 == 0 else "odd")

    def watch() -> None:
        while ledger.account().captured < 8 * rounds:
            account = ledger.account()
            if account.pending < 0:
                broken.append(account)

    threads = [Thread(target=count) for _ in range(4)] + [Thread(target=watch)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    account = ledger.account()
    assert not broken
    assert (account.captured, account.acknowledged, account.pending) == (8 * rounds, 4 * rounds, 0)
    assert account.dropped == {"even": 2 * rounds, "odd": 2 * rounds}
