"""The memory of what happened to executions: it knows everything behind its floor, and forgets the oldest of all."""

from tickwheel.server.feed import AGE_MS, ENTRY_BYTES, EXECUTION_BYTES, Feed, Feeds

ONE_BYTES = ENTRY_BYTES + EXECUTION_BYTES + 1
"""What an entry with one execution of one byte takes."""


def told(feed: Feed, *entries: int) -> None:
    for entry in entries:
        feed.put(entry, 1_000 + entry, [(entry, b"x")], [])


def known(feed: Feed, entry: int) -> list[int] | None:
    found = feed.since(entry)
    return None if found is None else [change.entry for change in found]


def test_what_came_after_an_entry_is_known_in_order() -> None:
    feed = Feeds(1 << 20).open(10)
    told(feed, 11, 13)
    feed.put(14, 1_014, [], [])
    feed.put(15, 1_015, [(1, b"live")], [(2, b"ended")])
    assert [known(feed, entry) for entry in (10, 11, 12, 13, 15)] == [
        [11, 13, 15],
        [13, 15],
        [13, 15],
        [15],
        [],
    ]
    last = feed.since(14)
    assert last is not None
    assert [*last[0].images()] == [b"live", b"ended"]
    assert (last[0].touched, last[0].time_ms) == (2, 1_015)
    assert known(feed, 9) is None, "what was before it began is not known"


def test_an_entry_without_executions_takes_no_room() -> None:
    feeds = Feeds(1 << 20)
    feed = feeds.open(0)
    for entry in range(1, 1_000):
        feed.put(entry, entry, [], [])
    assert feeds.bytes_held == 0
    assert known(feed, 0) == []


def test_the_oldest_of_all_shards_goes_when_there_is_no_room() -> None:
    feeds = Feeds(3 * ONE_BYTES)
    busy, calm = feeds.open(0), feeds.open(0)
    told(calm, 1)
    told(busy, 1, 2)
    assert (calm.floor, busy.floor, feeds.bytes_held) == (0, 0, 3 * ONE_BYTES)
    told(busy, 3)
    assert (calm.floor, busy.floor) == (1, 0)
    told(busy, 4)
    assert (calm.floor, busy.floor) == (1, 1)
    assert feeds.bytes_held == 3 * ONE_BYTES
    assert (known(calm, 0), known(calm, 1)) == (None, [])
    assert (known(busy, 0), known(busy, 1)) == (None, [2, 3, 4])


def test_what_is_too_large_for_all_the_room_is_not_kept_and_not_hidden() -> None:
    feeds = Feeds(ONE_BYTES)
    feed = feeds.open(0)
    feed.put(1, 1, [], [(1, b"far too large")])
    assert (feed.floor, feeds.bytes_held) == (1, 0)


def test_what_is_old_goes_by_the_time_it_was_told() -> None:
    feeds = Feeds(1 << 20)
    feed = feeds.open(0)
    feeds.age(5_000)
    told(feed, 1)
    feeds.age(6_000)
    told(feed, 2)
    feeds.age(5_000 + AGE_MS)
    assert feed.floor == 0
    feeds.age(5_001 + AGE_MS)
    assert (feed.floor, known(feed, 1)) == (1, [2])
    feeds.age(6_001 + AGE_MS)
    assert (feed.floor, feeds.bytes_held) == (2, 0)


def test_what_the_journal_still_has_is_recalled_if_it_leads_up_to_what_is_applied() -> None:
    feeds = Feeds(1 << 20)
    feed = feeds.open(20)
    for entry in (15, 16, 18, 19, 20):
        feed.recall(entry, entry, [(1, b"x")], [])
    feed.join(20)
    told(feed, 21)
    assert (feed.floor, known(feed, 17)) == (17, [18, 19, 20, 21])
    broken = feeds.open(20)
    broken.recall(18, 18, [(1, b"x")], [])
    broken.join(20)
    assert (broken.floor, known(broken, 20)) == (20, [])


def test_a_store_that_is_replaced_takes_its_feed_along() -> None:
    feeds = Feeds(3 * ONE_BYTES)
    old, other = feeds.open(0), feeds.open(0)
    told(old, 1, 2)
    told(other, 1)
    old.reset(9)
    assert (old.floor, known(old, 9), feeds.bytes_held) == (9, [], ONE_BYTES)
    told(other, 2, 3)
    assert feeds.bytes_held == 3 * ONE_BYTES
    feeds.age(AGE_MS + 1)
    assert (feeds.bytes_held, other.floor, old.floor) == (0, 3, 9)


def test_listeners_hear_of_executions_only() -> None:
    feeds = Feeds(1 << 20)
    heard: list[str] = []
    listener = lambda: heard.append("news")  # noqa: E731 - taken back by name
    feeds.listeners.add(listener)
    feed = feeds.open(0)
    feed.put(1, 1, [], [])
    assert heard == []
    told(feed, 2)
    assert heard == ["news"]
    feeds.listeners.discard(listener)
    told(feed, 3)
    assert heard == ["news"]
