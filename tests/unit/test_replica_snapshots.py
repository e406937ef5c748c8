"""Replica, snapshots: when a peer takes one, what it says then, and what its leader does with the log meanwhile."""

import pytest
from tests.unit.replica_kit import (
    SHARD,
    Net,
    append,
    at,
    events,
    far_ahead,
    net,
    peer_of,
    record,
    replica,
    said,
    synced,
)

from tickwheel.server.errors import LogBroken
from tickwheel.server.lead import Pace
from tickwheel.server.message import (
    Acked,
    Rejected,
)
from tickwheel.server.replica import (
    FenceFailed,
    Leading,
    ReplicaOptions,
    Role,
    SnapshotWanted,
)


def test_a_peer_that_is_too_far_behind_takes_a_snapshot() -> None:
    group = far_ahead()
    leader, c = group["a"], group["c"]
    assert events(group, "a") == [Leading(1), SnapshotWanted("c")]
    assert peer_of(leader, "c")[0] is Pace.SNAPSHOT
    leader.receive("c", Rejected(SHARD, 1, 0), 0)
    assert leader.ignored["Rejected"] == 1
    assert c.installing(4)
    c.receive("a", append(1, (0, 0)), 0)
    assert c.ignored == {"Append": 1}
    c.snapshot_installed(4, 1, "a")
    out = c.take()
    assert [item.type.name for item in out.records] == ["SNAPSHOT_BASE"]
    assert out.synced == [("a", Acked(SHARD, 1, 4))]
    c.persisted(out.mark)
    leader.propose(b"more")
    group.deliver("c", out.synced, 0)
    group.run()
    assert c.last == (1, 5)
    assert (c.commit, c.applied_index) == (4, 4)


def test_a_snapshot_that_is_acked_into_the_void_is_acked_again_when_the_way_is_open() -> None:
    """The way from the leader stands, so it offered the copy; the way back is made a moment later."""
    group = far_ahead()
    leader, c = group["a"], group["c"]
    c.receive("a", append(1, (0, 0)), 0)
    assert c.installing(4)
    c.snapshot_installed(4, 1, "a")
    synced(c)  # and nobody hears it
    assert peer_of(leader, "c")[0] is Pace.SNAPSHOT
    c.connected("b")
    assert said(c) == []
    c.connected("a")
    group.deliver("c", said(c), 0)
    group.run()
    assert peer_of(leader, "c")[0] is Pace.STREAM


def test_a_snapshot_of_a_leader_that_was_never_heard_is_acked_all_the_same() -> None:
    """All that it sent so far was lost, and it sends nothing more before it hears of the copy."""
    one = replica("b")
    assert one.installing(7)
    one.snapshot_installed(7, 4, "a")
    assert one.leader == ""
    assert said(one) == [("a", Acked(SHARD, 4, 7))]
    one.connected("a")
    assert said(one) == [("a", Acked(SHARD, 4, 7))]


def test_an_ack_of_an_epoch_before_says_that_the_copy_is_in_place() -> None:
    """It was made before this leadership, of which its taker has not heard yet."""
    group = far_ahead()
    leader = group["a"]
    assert peer_of(leader, "c")[0] is Pace.SNAPSHOT
    leader.receive("c", Acked(SHARD, 0, 4), 0)
    assert leader.ignored["Acked"] == 1
    assert peer_of(leader, "c")[0] is Pace.PROBE


def test_a_snapshot_that_never_came_is_wanted_again() -> None:
    group = far_ahead()
    leader = group["a"]
    leader.receive("c", Acked(SHARD, 1, 0), 0)
    assert peer_of(leader, "c")[0] is Pace.SNAPSHOT, "an ack of long ago"
    leader.tick(29_999)
    group.run(29_999)
    leader.tick(30_000)
    group.run(30_000)
    assert events(group, "a") == [Leading(1), SnapshotWanted("c"), SnapshotWanted("c")]


def test_a_snapshot_that_is_too_old_when_it_is_in_place_is_followed_by_another() -> None:
    """The way was cut for longer than the log reaches back: the peer says where it is, and need not wait to be asked."""
    group = far_ahead()
    leader = group["a"]
    for _ in range(2):
        leader.receive("c", Acked(SHARD, 1, 2), 0)
        group.run()
    assert events(group, "a") == [Leading(1), SnapshotWanted("c"), SnapshotWanted("c")]
    assert peer_of(leader, "c")[0] is Pace.SNAPSHOT


def test_while_a_snapshot_is_under_way_more_is_kept() -> None:
    options = ReplicaOptions(tail_bytes_max=0, snapshot_tail_bytes_max=10_000)
    group = Net(replica(name, options=options) for name in "abc")
    group.cut = {"c"}
    leader = group.lead("a", 1)
    leader.propose(b"x")
    group.run()
    assert leader._log.base_index == 2
    group.cut = set()
    leader.connected("c")
    group.run()
    leader.propose(b"y")
    group.run()
    assert (leader.applied_index, leader._log.base_index) == (3, 2)


def test_a_start_waits_for_a_snapshot() -> None:
    a = replica("a", base=(10, 1))
    group = Net([a, replica("b"), replica("c")])
    a.led(record(2, "a"), 0)
    group.run()
    assert at(a, Role.STARTING)
    a.tick(9_000)
    assert at(a, Role.STARTING)


def test_a_snapshot_is_taken_only_if_it_is_newer_and_by_a_follower() -> None:
    one = replica("b", base=(10, 2))
    assert not one.installing(10)
    assert one.installing(11)
    one.led(record(5, "b"), 0)
    assert synced(one).events == [FenceFailed(5)]
    one.install_failed()
    one.led(record(6, "b"), 0)
    assert not one.installing(12)
    with pytest.raises(AssertionError):
        one.snapshot_installed(12, 2, "a")


def test_a_snapshot_may_be_of_an_epoch_that_was_not_heard_of() -> None:
    one = replica("b", 1)
    assert one.installing(7)
    one.snapshot_installed(7, 4, "a")
    out = synced(one)
    assert [(item.type.name, item.epoch) for item in out.records] == [
        ("PROMISE", 4),
        ("SNAPSHOT_BASE", 4),
    ]
    assert out.synced == [("a", Acked(SHARD, 4, 7))], "whoever gave it leads"
    assert (one.promised, one.last, one.durable) == (4, (4, 7), 7)


def test_what_recovery_found_void_is_cut_off_on_disk() -> None:
    one = replica("b", base=(5, 2), void=True)
    assert [(item.type.name, item.index, item.epoch) for item in synced(one).records] == [
        ("TRUNCATE", 5, 2)
    ]


def test_applying_is_told_once() -> None:
    group = net()
    leader = group.lead("a", 1)
    leader.applied(1)
    assert leader.applied_index == 1
    with pytest.raises(LogBroken, match="L7"):
        leader.applied(2)
