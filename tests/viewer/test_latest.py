"""One key, one survivor."""

from __future__ import annotations

from fulgurite.viewer.latest import Latest


def test_a_newer_value_replaces_the_unread_one_of_its_key() -> None:
    mailbox: Latest[str, int] = Latest()
    mailbox.put("a", 1)
    mailbox.put("b", 2)
    mailbox.put("a", 3)
    assert mailbox.take() == [2, 3]


def test_what_was_taken_is_gone() -> None:
    mailbox: Latest[str, int] = Latest()
    mailbox.put("a", 1)
    mailbox.take()
    assert mailbox.take() == []


def test_it_never_holds_more_than_one_value_per_key() -> None:
    mailbox: Latest[int, int] = Latest()
    for value in range(10_000):
        mailbox.put(value % 3, value)
    assert len(mailbox) == 3
    assert mailbox.take() == [9_997, 9_998, 9_999]
