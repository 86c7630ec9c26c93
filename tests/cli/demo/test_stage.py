"""How far a run has come."""

from __future__ import annotations

from fulgurite.cli.demo.stage import Seen, Stage


def test_news_is_told_once_and_in_the_order_in_which_it_was_seen() -> None:
    stage = Stage(("replica-0", "replica-1"), has_page=True)
    looks = [
        Seen(None),
        Seen({}),
        Seen({"replica-1": 0}),
        Seen({"replica-1": 3}, page=True),
        Seen({"replica-0": 1, "replica-1": 9}, page=True),
    ]
    assert [stage.see(look) for look in looks] == [
        [],
        ["collector"],
        [],
        ["replica-1", "page"],
        ["replica-0"],
    ]
    assert stage.is_up
    assert stage.tokens == {"replica-0": 1, "replica-1": 9}


def test_what_is_missing_is_named() -> None:
    stage = Stage(("replica-0", "replica-1"), has_page=True)
    stage.see(Seen({"replica-0": 5}))
    assert stage.missing == ("replica-1", "page")
    assert not stage.is_up


def test_a_run_without_a_page_does_not_wait_for_one() -> None:
    stage = Stage(("replica-0",), has_page=False)
    stage.see(Seen({"replica-0": 5}))
    assert stage.is_up


def test_other_replicas_of_the_same_collector_do_not_count() -> None:
    stage = Stage(("replica-0",), has_page=False)
    assert stage.see(Seen({"somebody": 100})) == ["collector"]
    assert not stage.is_up
