"""Where a viewer stands in a stream, and what it is told is missing."""

from __future__ import annotations

from fulgurite.collector.cursor import BEFORE_ALL, Cursor, Missing
from fulgurite.collector.store import Entry, EntryId, Position


def frames(epoch: int, first: int, last: int) -> Entry:
    at = EntryId(epoch, last)
    return Entry(id=at, at=at, count=last - first + 1, schema_hash=b"", ingested_ns=0, batch=b"")


def events(epoch: int, behind: int, at: int) -> Entry:
    return Entry(
        id=EntryId(epoch, behind), at=EntryId(at), count=0, schema_hash=b"", ingested_ns=0, batch=b""
    )


def test_from_a_position_on_what_was_seen_is_not_wanted_and_what_lacks_is_known() -> None:
    cursor = Cursor.at("k", Position(EntryId(7, 4), EntryId(50)))
    assert not cursor.wants(frames(7, 1, 4))
    assert not cursor.wants(events(7, 4, 50))
    assert cursor.wants(events(7, 4, 51))
    entry = frames(7, 9, 12)
    assert cursor.wants(entry)
    assert cursor.missing_before(entry) == [Missing(7, 5, 8)]
    cursor.pass_over(entry)
    assert not cursor.wants(entry)
    assert cursor.missing_before(frames(7, 13, 13)) == []


def test_events_do_not_move_what_is_expected() -> None:
    cursor = Cursor.at("k", Position(EntryId(7, 4), EntryId()))
    cursor.pass_over(events(7, 4, 9))
    assert cursor.missing_before(events(7, 4, 10)) == []
    assert cursor.missing_before(frames(7, 6, 6)) == [Missing(7, 5, 5)]


def test_a_new_epoch_is_expected_to_begin_at_one() -> None:
    cursor = Cursor.at("k", Position(EntryId(7, 4), EntryId()))
    assert cursor.missing_before(frames(8, 1, 4)) == []
    assert cursor.missing_before(frames(8, 3, 4)) == [Missing(8, 1, 2)]


def test_where_nothing_was_stored_yet_the_first_frame_is_expected() -> None:
    cursor = Cursor.at("k", Position())
    assert cursor.is_at_the_beginning
    assert cursor.missing_before(frames(8, 3, 4)) == [Missing(8, 1, 2)]


def test_where_any_frame_may_be_the_first_none_is_missing() -> None:
    cursor = Cursor("k", position=Position(), expected=None)
    assert cursor.missing_before(frames(8, 3, 4)) == []
    cursor.pass_over(frames(8, 3, 4))
    assert cursor.missing_before(frames(8, 6, 6)) == [Missing(8, 5, 5)]


def test_skipping_tells_what_was_skipped() -> None:
    cursor = Cursor.at("k", Position(EntryId(7, 4), EntryId()))
    assert cursor.skip_to(Position(EntryId(7, 90), EntryId(3))) == [Missing(7, 5, 90)]
    assert cursor.position == Position(EntryId(7, 90), EntryId(3))
    assert cursor.skip_to(Position(EntryId(7, 90), EntryId(4))) == []
    assert cursor.skip_to(Position(EntryId(9, 10), EntryId(4))) == [Missing(9, 1, 10)]
    assert cursor.missing_before(frames(9, 11, 12)) == []


def test_skipping_where_there_are_no_frames_tells_nothing() -> None:
    cursor = Cursor("k", position=Position(), expected=BEFORE_ALL)
    assert cursor.skip_to(Position(EntryId(), EntryId(4))) == []
    assert cursor.missing_before(frames(1, 1, 1)) == []


def test_events_before_the_entry_that_was_named_are_not_wanted() -> None:
    after = EntryId(7, 8)
    cursor = Cursor("k", position=Position(after), expected=after.next, events_from=after)
    assert not cursor.wants(events(7, 4, 20))
    assert cursor.wants(events(7, 8, 21))


def test_what_an_epoch_still_had_is_missing_where_that_is_known() -> None:
    ends = {7: 9, 8: 20}
    assert Cursor.at("k", Position(EntryId(7, 4))).missing_before(frames(8, 3, 4), ends) == [
        Missing(7, 5, 9),
        Missing(8, 1, 2),
    ]
    assert Cursor.at("k", Position(EntryId(7, 9))).missing_before(frames(8, 1, 4), ends) == []
    assert Cursor.at("k", Position()).missing_before(frames(8, 1, 4), ends) == []
    cursor = Cursor.at("k", Position(EntryId(7, 4)))
    assert cursor.skip_to(Position(EntryId(8, 20)), ends) == [Missing(7, 5, 9), Missing(8, 1, 20)]
    assert cursor.missing_before(frames(8, 21, 24), ends) == []
