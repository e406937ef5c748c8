"""From a record that was won to an EPOCH_START that is committed."""

import pytest
from tests.unit.replica_kit import (
    SHARD,
    SMALL,
    Free,
    Net,
    append,
    at,
    entries,
    events,
    net,
    record,
    replica,
    said,
    synced,
)

from tickwheel.server.errors import LogBroken
from tickwheel.server.message import (
    Fenced,
    FenceRefused,
    Fetch,
    Fetched,
    FetchRefused,
    LogEntry,
    Rejected,
    Superseded,
)
from tickwheel.server.replica import (
    FenceFailed,
    Leading,
    Replica,
    Role,
    SteppedDown,
    Why,
)

# --- taking over ---


def test_the_best_log_is_adopted_in_chunks() -> None:
    a = replica("a", 1, options=SMALL)
    b = replica("b", 1, 2, 2, 2, 2, 2, options=SMALL)
    group = Net([a, b, replica("c", 1, 3, promised=3, options=SMALL)])
    group.cut = {"c"}
    a.led(record(4, "a"), 0)
    group.run()
    assert a.leads
    assert a.last == (4, 7)
    assert [entry.epoch for entry in group.committed["a"]] == [1, 2, 2, 2, 2, 2, 4]


def test_of_an_epoch_and_a_length_the_epoch_wins() -> None:
    a = replica("a", 1, 2, 2, 2)
    group = Net([a, replica("b", 1, 3), replica("c")])
    group.cut = {"c"}
    a.led(record(4, "a"), 0)
    group.run()
    assert [entry.epoch for entry in group.committed["a"]] == [1, 3, 4]
    kinds = [item.type.name for who, item in group.records if who == "a"]
    assert kinds == ["PROMISE", "TRUNCATE", "ENTRY", "ENTRY"]


def test_a_best_log_that_is_a_prefix_of_ours_in_another_epoch() -> None:
    a = replica("a", 1, 1, 1)
    group = Net([a, replica("b", 1, 1)])
    group.by_name["b"].receive("z", append(2, (1, 1)), 0)
    group.run()
    a.led(record(3, "a", "abc"), 0)
    group.run()
    assert a.last == (3, 4), "its own log was the best: the highest epoch, then the longest"


def test_adopting_steps_back_to_where_the_logs_agree() -> None:
    a = replica("a", 1, 2, 2, 4, 4, 4)
    group = Net([a, replica("b", 1, 3, 3, 3, 5)])
    a.led(record(6, "a"), 0)
    group.run()
    assert [entry.epoch for entry in group.committed["a"]] == [1, 3, 3, 3, 5, 6]


def test_of_equal_logs_nothing_is_fetched() -> None:
    a = replica("a", 1)
    group = Net([a, replica("b", 1), replica("c", 1)])
    a.led(record(2, "a"), 0)
    group.run()
    assert a.leads


def test_the_candidate_is_a_voter_like_any_other() -> None:
    holds = Free()
    holds.ms = 500
    a = replica("a", holds=holds)
    group = Net([a, replica("b"), replica("c")])
    a.led(record(1, "a"), 0)
    group.run()
    assert (a.role, a.promised, a.stands) == (Role.FENCING, 0, True)
    a.receive("z", append(0, (0, 0)), 0)
    holds.ms = 0
    assert a.tick(500)
    group.run()
    assert a.leads


def test_a_refused_fence_is_asked_again_when_the_hold_is_over() -> None:
    a = replica("a")
    a.led(record(1, "a"), 0)
    assert [to for to, _ in said(a)] == ["b", "c"]
    a.receive("b", FenceRefused(SHARD, 1, 700), 10)
    a.receive("z", FenceRefused(SHARD, 1, 700), 10)
    a.receive("b", FenceRefused(SHARD, 9, 700), 10)
    a.tick(100)
    assert [to for to, _ in said(a)] == ["c"]
    a.tick(709)
    assert [to for to, _ in said(a)] == ["c"]
    a.tick(710)
    assert [to for to, _ in said(a)] == ["b"]


def fetching(*own: int) -> Replica:
    """A candidate that fetches from b, whose log is (7, 3)."""
    a = replica("a", *own)
    a.led(record(4, "a"), 0)
    synced(a)
    a.receive("b", Fenced(SHARD, 4, 7, 3), 0)
    return a


def test_a_fetch_is_repeated_and_answered_once() -> None:
    a = fetching(1, 1)
    ask = ("b", Fetch(SHARD, 4, 2, 1))
    assert said(a) == [ask]
    a.receive("c", Fenced(SHARD, 4, 9, 9), 0)
    a.tick(50)
    assert said(a) == []
    a.tick(150)
    assert said(a) == [ask]
    some = Fetched(SHARD, 4, 2, 1, tuple(entries(3, 3, start=3)), 7)
    a.receive("b", some, 160)
    assert said(a) == [("b", Fetch(SHARD, 4, 4, 3))]
    a.receive("b", some, 170)
    assert said(a) == []
    a.receive("c", some, 170)
    a.receive("b", some._replace(epoch=3), 170)
    assert a.ignored == {"Fenced": 1, "Fetched": 3}
    a.receive("b", Fetched(SHARD, 4, 4, 3, (), 7), 180)
    assert said(a) == [], "it brought nothing: the next try is the timer's"
    a.receive("b", Fetched(SHARD, 4, 4, 3, tuple(entries(3, 3, 3, start=5)), 7), 190)
    assert at(a, Role.STARTING)


def test_a_best_that_ends_before_our_log_cuts_it() -> None:
    a = replica("a", 1, 1, 2, 2)
    a.led(record(4, "a"), 0)
    synced(a)
    a.receive("b", Fenced(SHARD, 4, 3, 3), 0)
    assert said(a) == [("b", Fetch(SHARD, 4, 4, 2))]
    a.receive("b", Fetched(SHARD, 4, 3, 3, (), 3), 0)
    assert said(a) == [("b", Fetch(SHARD, 4, 2, 1))]
    a.receive("b", Fetched(SHARD, 4, 2, 1, (LogEntry(3, 3, b"3"),), 3), 0)
    assert (a.role, a.last) == (Role.STARTING, (4, 4))


def test_stepping_back_goes_on_until_the_logs_agree() -> None:
    a = fetching(1, 1)
    synced(a)
    a.receive("b", Fetched(SHARD, 4, 2, 3, (), 7), 0)
    assert said(a) == [("b", Fetch(SHARD, 4, 1, 1))]
    a.receive("b", Fetched(SHARD, 4, 1, 3, (), 7), 0)
    assert said(a) == [("b", Fetch(SHARD, 4, 0, 0))]
    a.receive("b", Fetched(SHARD, 4, 0, 0, tuple(entries(3, 3)), 7), 0)
    assert a.last == (3, 2)


def test_a_best_that_is_not_what_it_was_is_a_broken_log() -> None:
    a = fetching(1, 1)
    with pytest.raises(LogBroken, match="L4"):
        a.receive("b", Fetched(SHARD, 4, 2, 1, tuple(entries(3, start=3)), 3), 0)


def test_a_best_without_what_is_committed_is_a_broken_log() -> None:
    a = replica("a", base=(10, 2))
    a.led(record(4, "a"), 0)
    synced(a)
    a.receive("b", Fenced(SHARD, 4, 12, 3), 0)
    with pytest.raises(LogBroken, match="L4"):
        a.receive("b", Fetched(SHARD, 4, 10, 3, (), 12), 0)


def test_what_the_best_has_no_more_can_not_be_fetched() -> None:
    a = fetching(1, 1)
    a.receive("c", FetchRefused(SHARD, 4, 5), 0)
    assert at(a, Role.FETCHING)
    a.receive("b", FetchRefused(SHARD, 4, 5), 0)
    assert synced(a).events == [FenceFailed(4, "b")]
    assert at(a, Role.FOLLOWER)


def test_a_fetch_is_served() -> None:
    b = replica("b", 2, 2, 3, base=(10, 2), promised=4)
    cases = (
        (Fetch(SHARD, 4, 11, 2), Fetched(SHARD, 4, 11, 2, tuple(entries(2, 3, start=12)), 13)),
        (Fetch(SHARD, 4, 13, 2), Fetched(SHARD, 4, 12, 2, tuple(entries(3, start=13)), 13)),
        (Fetch(SHARD, 4, 9, 2), FetchRefused(SHARD, 4, 11)),
        (Fetch(SHARD, 4, 11, 1), FetchRefused(SHARD, 4, 11)),
    )
    for asked, answer in cases:
        b.receive("a", asked, 0)
        assert said(b) == [("a", answer)]
    b.receive("a", Fetch(SHARD, 5, 11, 2), 0)
    assert said(b) == [], "it has promised nothing to epoch 5"


def test_a_candidate_without_a_quorum_gives_up() -> None:
    a = replica("a")
    a.led(record(1, "a"), 0)
    a.tick(2_999)
    assert at(a, Role.FENCING)
    a.tick(3_000)
    assert synced(a).events == [FenceFailed(1)]


def test_a_start_that_is_not_committed_gives_up_unless_it_gets_on() -> None:
    group = net()
    a = group["a"]
    a.led(record(1, "a"), 0)
    synced(a)
    a.receive("b", Fenced(SHARD, 1, 0, 0), 1_000)
    synced(a)
    a.receive("b", Rejected(SHARD, 1, 0), 3_000)
    a.tick(3_999)
    assert at(a, Role.STARTING)
    a.tick(4_001)
    assert at(a, Role.FOLLOWER)
    assert synced(a).events == [FenceFailed(1)]


def test_a_superseded_candidate_steps_down() -> None:
    a = replica("a")
    a.led(record(3, "a"), 0)
    synced(a)
    a.receive("b", Superseded(SHARD, 2, 9), 0)
    assert at(a, Role.FENCING)
    a.receive("b", Superseded(SHARD, 3, 9), 0)
    assert synced(a).events == [SteppedDown(3, Why.SUPERSEDED, "b promised epoch 9")]
    a.receive("b", Fenced(SHARD, 3, 0, 0), 0)
    a.receive("b", Fetched(SHARD, 3, 0, 0, (), 0), 0)
    a.receive("b", FetchRefused(SHARD, 3, 0), 0)
    a.receive("b", FenceRefused(SHARD, 3, 0), 0)
    assert a.ignored.total() == 5


def test_the_same_record_again_changes_nothing_and_an_old_one_neither() -> None:
    group = net()
    a = group.lead("a", 2)
    a.led(record(2, "a"), 0)
    a.led(record(1, "a"), 0)
    assert a.leads
    a.following(record(1, "b"), 0)
    assert a.leads


def test_an_epoch_that_is_over_is_not_led_again() -> None:
    a = replica("a", promised=5)
    a.led(record(5, "a"), 0)
    assert synced(a).events == [FenceFailed(5)]
    group = net()
    a = group.lead("a", 2)
    a.step_down("no quorum")
    a.led(record(2, "a"), 0)
    assert synced(a).events == [SteppedDown(2, Why.GAVE_UP, "no quorum"), FenceFailed(2)]


def test_a_newer_record_of_ours_begins_anew() -> None:
    group = net()
    a = group.lead("a", 2)
    a.led(record(3, "a"), 0)
    group.run()
    assert a.leads
    assert [event for event in events(group, "a") if isinstance(event, Leading)] == [
        Leading(2),
        Leading(3),
    ]


def test_a_record_of_another_ends_the_leadership() -> None:
    a = net().lead("a", 2)
    a.following(record(3, "b"), 0)
    assert synced(a).events == [SteppedDown(2, Why.ANOTHER_LEADS, "epoch 3 of 'b'")]
    a.following(record(3, "b"), 0)
    assert not a.ready


def test_an_append_of_a_higher_epoch_ends_the_leadership() -> None:
    a = net().lead("a", 2)
    a.receive("b", append(3, (1, 2)), 0)
    assert synced(a).events == [SteppedDown(2, Why.FENCED, "b leads epoch 3")]


def test_of_two_voters_one_is_enough_to_begin_and_both_to_commit() -> None:
    group = net("ab")
    group.cut = {"b"}
    a = group["a"]
    a.led(record(1, "a", "ab"), 0)
    group.run()
    assert at(a, Role.STARTING)
    group.cut = set()
    a.connected("b")
    group.run()
    assert a.leads


def test_only_a_voter_stands() -> None:
    with pytest.raises(AssertionError):
        replica("a").led(record(1, "a", "bc"), 0)
