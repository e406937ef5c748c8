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
    far_ahead,
    net,
    peer_of,
    record,
    replica,
    said,
    synced,
)

from tickwheel.server.errors import LogBroken, NotLeader
from tickwheel.server.lead import Pace
from tickwheel.server.message import (
    Acked,
    Fence,
    Fenced,
    FenceRefused,
    Fetch,
    LogEntry,
    Rejected,
    Superseded,
)
from tickwheel.server.replica import (
    CasWanted,
    FenceFailed,
    Leading,
    Outcome,
    Released,
    ReplicaOptions,
    Role,
    SnapshotWanted,
    SteppedDown,
    Why,
)

# --- the normal path ---


def test_three_agree() -> None:
    group = net()
    leader = group.lead("a", 1)
    assert (leader.accepts, leader.stands, leader.leader, leader.learners) == (True, False, "a", ())
    assert leader.configs == (("a", "b", "c"),)
    assert [leader.propose(b"x"), leader.propose(b"y")] == [2, 3]
    group.run()
    assert [entry.payload for entry in group.committed["a"]] == [b"", b"x", b"y"]
    assert leader.commit == leader.applied_index == leader.durable == 3
    assert leader.matches() == {"b": 3, "c": 3}
    group["a"].tick(1)
    group.run()
    assert group.committed["c"] == group.committed["b"] == group.committed["a"]
    assert group["b"].leader == "a"
    assert group["b"].configs == () == group["b"].learners
    assert group["b"].matches() == {}


def test_an_append_leaves_before_the_fsync_and_its_own_disk_counts_after() -> None:
    leader = net().lead("a", 1, voters="a")
    leader.propose(b"x")
    out = leader.take()
    assert (len(out.records), out.committed) == (1, [])
    assert not leader.take()
    leader.persisted(out.mark)
    assert leader.take().committed == [LogEntry(2, 1, b"x")]

    leader = net().lead("a", 1)
    leader.propose(b"x")
    out = leader.take()
    assert [to for to, _ in out.now] == ["b", "c"]


def test_a_majority_of_others_commits_but_is_handed_out_after_the_own_fsync() -> None:
    leader = net().lead("a", 1)
    leader.propose(b"x")
    out = leader.take()
    for peer in "bc":
        leader.receive(peer, Acked(SHARD, 1, 2), 0)
    assert leader.take().committed == []
    assert leader.commit == 2
    leader.persisted(out.mark)
    assert leader.take().committed == [LogEntry(2, 1, b"x")]


def test_two_voters_need_both() -> None:
    group = net("ab")
    leader = group.lead("a", 1, voters="ab")
    group.cut = {"b"}
    leader.propose(b"x")
    group.run()
    assert leader.commit == 1


def test_a_learner_is_fed_and_does_not_count() -> None:
    group = net("abc")
    leader = group.lead("a", 1, voters="ab", learners="c")
    leader.propose(b"x")
    group.run()
    assert group["c"].last == (1, 2)
    group.cut = {"b"}
    leader.propose(b"y")
    group.run()
    assert group["c"].last == (1, 3)
    assert leader.commit == 2


def test_only_a_leader_takes_proposals() -> None:
    one = replica()
    for call in (lambda: one.propose(b"x"), one.release, lambda: one.reconfigure("ab", "")):
        with pytest.raises(NotLeader):
            call()
    leader = net().lead("a", 1)
    with pytest.raises(AssertionError):
        leader.propose(b"")


def test_nothing_to_say_is_nothing() -> None:
    one = replica()
    assert not one.ready
    assert not one.take()
    assert not one.tick(10_000)


# --- a follower ---


def test_a_follower_acks_what_is_on_its_disk() -> None:
    one = replica("b")
    one.receive("a", append(1, (0, 0), *entries(1, 1), commit=1), 0)
    out = one.take()
    assert [item.type.name for item in out.records] == ["PROMISE", "ENTRY", "ENTRY"]
    assert out.now == []
    assert out.synced == [("a", Acked(SHARD, 1, 2))]
    assert out.committed == []
    one.persisted(out.mark)
    assert one.take().committed == entries(1)


def test_a_follower_says_where_it_may_agree() -> None:
    one = replica("b", 1, 1, 2, 2)
    one.receive("a", append(3, (9, 3)), 0)
    assert said(one) == [("a", Rejected(SHARD, 3, 4))]
    one.receive("a", append(3, (4, 1)), 0)
    assert said(one) == [("a", Rejected(SHARD, 3, 2))]
    one.receive("a", append(3, (2, 1), *entries(1, 3, start=3), commit=3), 0)
    assert said(one) == [("a", Acked(SHARD, 3, 4))]
    assert one.last == (3, 4)
    assert one.commit == 3


def test_everything_committed_agrees() -> None:
    one = replica("b", 2, 2, base=(10, 2))
    one.receive("a", append(2, (4, 1), *entries(1, start=5), commit=12), 0)
    assert said(one) == [("a", Acked(SHARD, 2, 10))]
    assert one.commit == 10, "only up to where the message agrees"
    one.receive("a", append(2, (14, 2), commit=14), 0)
    assert said(one) == [("a", Rejected(SHARD, 2, 12))]


def test_a_hint_is_never_below_the_commit() -> None:
    one = replica("b", 5, 5, base=(10, 5))
    one.receive("a", append(6, (12, 4)), 0)
    assert said(one) == [("a", Rejected(SHARD, 6, 10))]


def test_a_late_append_cuts_nothing_off() -> None:
    one = replica("b", 1, 1, 1)
    one.receive("a", append(1, (0, 0), *entries(1)), 0)
    assert said(one) == [("a", Acked(SHARD, 1, 1))]
    assert one.last == (1, 3)


def test_a_lower_epoch_is_told_so() -> None:
    one = replica("b", 1, promised=5)
    for message in (append(4, (1, 1)), Fence(SHARD, 4, released=False), Fetch(SHARD, 4, 0, 0)):
        one.receive("a", message, 0)
        assert said(one) == [("a", Superseded(SHARD, 4, 5))]


def test_two_leaders_of_an_epoch_are_a_broken_log() -> None:
    one = replica("b")
    one.receive("a", append(1, (0, 0)), 0)
    with pytest.raises(LogBroken, match="L1"):
        one.receive("c", append(1, (0, 0)), 0)
    leader = net().lead("a", 1)
    with pytest.raises(LogBroken, match="L1"):
        leader.receive("b", append(1, (0, 0)), 0)
    with pytest.raises(LogBroken, match="L1"):
        leader.receive("b", Fence(SHARD, 1, released=False), 0)
    with pytest.raises(LogBroken, match="L1"):
        leader.following(record(1, "b"), 0)
    with pytest.raises(LogBroken, match="L1"):
        leader.led(record(2, "b"), 0)


def test_a_leader_without_what_is_committed_is_a_broken_log() -> None:
    one = replica("b", 1, 1, base=(10, 1))
    one.receive("a", append(1, (11, 1), commit=11), 0)
    with pytest.raises(LogBroken, match="L4"):
        one.receive("a", append(1, (11, 3)), 0)


# --- promises ---


def test_a_promise_is_on_disk_before_it_is_said() -> None:
    one = replica("b", 1, 1)
    one.receive("a", Fence(SHARD, 3, released=False), 0)
    out = one.take()
    assert [(item.type.name, item.epoch) for item in out.records] == [("PROMISE", 3)]
    assert (out.now, out.synced) == ([], [("a", Fenced(SHARD, 3, 2, 1))])
    one.receive("a", Fence(SHARD, 3, released=False), 0)
    assert not one.take(), "said again: it still waits for the disk"
    one.persisted(out.mark)
    assert one.take().now == [("a", Fenced(SHARD, 3, 2, 1))]


def test_a_hold_delays_a_promise() -> None:
    holds = Free()
    one = replica("b", holds=holds)
    holds.ms = 300
    one.receive("a", Fence(SHARD, 3, released=False), 0)
    assert said(one) == [("a", FenceRefused(SHARD, 3, 300))]
    assert one.promised == 0
    holds.ms = 0
    one.receive("a", Fence(SHARD, 3, released=False), 0)
    assert said(one) == [("a", Fenced(SHARD, 3, 0, 0))]
    assert holds.told == [0, 3]


def test_a_promise_ends_the_own_leadership() -> None:
    group = net()
    leader = group.lead("a", 1)
    leader.receive("b", Fence(SHARD, 2, released=False), 0)
    out = leader.take()
    assert out.events == [SteppedDown(1, Why.FENCED, "b stands for epoch 2")]
    assert (leader.role, leader.leads, leader.leader) == (Role.FOLLOWER, False, "")


# --- feeding peers ---


def test_a_window_bounds_what_is_under_way() -> None:
    group = Net(replica(name, options=SMALL) for name in "abc")
    leader = group.lead("a", 1)
    group.cut = {"b", "c"}
    for _ in range(10):
        leader.propose(b"x")
    to_b = [message for to, message in said(leader) if to == "b"]
    assert [len(message.entries) for message in to_b] == [2, 2]  # type: ignore[union-attr]
    leader.receive("b", Acked(SHARD, 1, 3), 0)
    to_b = [message for to, message in said(leader) if to == "b"]
    assert [message.prev_index for message in to_b] == [5]  # type: ignore[union-attr]


def test_a_lost_append_is_found_out_by_the_next() -> None:
    group = net()
    leader = group.lead("a", 1)
    group.cut = {"b"}
    leader.propose(b"x")
    group.run()
    group.cut = set()
    leader.propose(b"y")
    group.run()
    assert group["b"].last == (1, 3)
    assert peer_of(leader, "b") == (Pace.STREAM, 3, 4)


def test_a_silent_peer_is_probed_now_and_then() -> None:
    group = net()
    leader = group.lead("a", 1)
    group.cut = {"b"}
    leader.propose(b"x")
    group.run()
    assert peer_of(leader, "b") == (Pace.STREAM, 1, 3)
    leader.tick(0)
    assert len(said(leader)) == 2, "what is committed now, to both"
    for now_ms in range(100, 1_000, 100):
        leader.tick(now_ms)
        assert [to for to, _ in said(leader) if to == "b"] == []
    leader.tick(1_000)
    assert [to for to, _ in said(leader) if to == "b"] == ["b"]
    assert peer_of(leader, "b") == (Pace.PROBE, 1, 2)
    leader.tick(1_400)
    assert [to for to, _ in said(leader) if to == "b"] == []
    leader.tick(1_500)
    assert [to for to, _ in said(leader) if to == "b"] == ["b"]


def test_a_peer_without_a_link_is_sent_nothing() -> None:
    group = net()
    group["a"].disconnected("b")
    leader = group.lead("a", 1)
    leader.disconnected("c")
    leader.disconnected("z")
    leader.connected("z")
    leader.propose(b"x")
    leader.tick(9_000)
    assert said(leader) == []
    leader.connected("b")
    assert [to for to, _ in said(leader)] == ["b"]
    leader.step_down("")
    leader.connected("c")
    leader.disconnected("c")


def test_an_idle_peer_learns_the_commit_and_is_asked_from_time_to_time() -> None:
    group = net()
    leader = group.lead("a", 1)
    leader.propose(b"x")
    group.run()
    assert group["b"].commit == 1
    leader.tick(10)
    group.run()
    assert group["b"].commit == 2
    assert not leader.tick(20)
    assert leader.tick(5_010)


def test_acks_that_can_not_be_are_ignored() -> None:
    group = net()
    leader = group.lead("a", 2)
    leader.receive("b", Acked(SHARD, 2, 99), 0)
    leader.receive("z", Acked(SHARD, 2, 1), 0)
    leader.receive("b", Acked(SHARD, 1, 1), 0)
    leader.receive("b", Rejected(SHARD, 2, 0), 0)
    leader.receive("b", Rejected(SHARD, 2, 9), 0)
    leader.receive("z", Rejected(SHARD, 2, 0), 0)
    group["b"].receive("a", Acked(SHARD, 2, 1), 0)
    group["b"].receive("a", Rejected(SHARD, 2, 1), 0)
    assert (leader.ignored["Acked"], leader.ignored["Rejected"]) == (3, 3)
    assert group["b"].ignored == {"Acked": 1, "Rejected": 1}
    assert leader.matches() == {"b": 1, "c": 1}


# --- snapshots ---


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


# --- voters ---


def test_voters_change_jointly_and_when_caught_up() -> None:
    group = net("abcd")
    leader = group.lead("a", 1)
    group.cut = {"d"}
    leader.reconfigure(("a", "b", "d"), ("c",))
    assert leader.configs == (("a", "b", "c"), ("a", "b", "d"))
    group.run()
    assert CasWanted(1, ("a", "b", "d"), ("c",)) in events(group, "a"), "a and b are enough"
    leader.reconfigured(Outcome.UNKNOWN)
    assert len(leader.configs) == 2
    leader.reconfigured(Outcome.DONE)
    assert list(leader.configs) == [("a", "b", "d")]
    assert leader.learners == ("c",)
    assert list(leader.matches()) == ["b", "c", "d"]


def test_while_voters_change_a_commit_needs_both_sets() -> None:
    group = net("abcd")
    leader = group.lead("a", 1)
    group.cut = {"d"}
    leader.reconfigure(("a", "d"), ())
    leader.propose(b"x")
    group.run()
    assert leader.commit == 1
    assert events(group, "a") == [Leading(1)]
    group.cut = set()
    leader.connected("d")
    group.run()
    assert leader.commit == 2
    assert events(group, "a")[-1] == CasWanted(1, ("a", "d"), ())
    leader.reconfigured(Outcome.REFUSED)
    group.run()
    assert events(group, "a")[-1] == SteppedDown(1, Why.RECORD_LOST)
    leader.reconfigured(Outcome.DONE)


def test_a_change_that_never_catches_up_can_be_given_up() -> None:
    group = net("abcd")
    leader = group.lead("a", 1)
    assert not leader.abandon_reconfigure()
    group.cut = {"d"}
    leader.reconfigure(("a", "d"), ())
    leader.propose(b"x")
    group.run()
    assert leader.abandon_reconfigure()
    group.run()
    assert leader.commit == 2
    leader.reconfigure(("a", "b"), ())
    group.run()
    assert not leader.abandon_reconfigure(), "it may be in the record"
    assert not group["b"].abandon_reconfigure()


def test_the_rules_of_a_change() -> None:
    group = net("abcd")
    leader = group.lead("a", 1)
    with pytest.raises(LogBroken, match="not among"):
        leader.reconfigure(("b", "c"), ())
    group.cut = {"d"}
    leader.reconfigure(("a", "d"), ())
    with pytest.raises(LogBroken, match="another change"):
        leader.reconfigure(("a", "b"), ())
    with pytest.raises(LogBroken, match="learners change"):
        leader.set_learners("d")
    with pytest.raises(LogBroken, match="caught up"):
        leader.reconfigured(Outcome.DONE)
    fresh = replica("a")
    fresh.led(record(1, "a", "a"), 0)
    out = fresh.take()
    fresh.persisted(out.mark)
    assert at(fresh, Role.STARTING)
    assert fresh._lead is not None
    with pytest.raises(LogBroken, match="EPOCH_START"):
        fresh._lead.reconfigure(("a", "b"), (), 0)


def test_learners_come_and_go() -> None:
    group = net("abcd")
    leader = group.lead("a", 1)
    leader.set_learners("d")
    group.run()
    assert group["d"].last == (1, 1)
    assert leader.learners == ("d",)
    leader.set_learners("")
    assert list(leader.matches()) == ["b", "c"]


# --- stopping ---


def test_a_release_waits_for_what_was_proposed() -> None:
    group = net()
    leader = group.lead("a", 1)
    leader.propose(b"x")
    leader.release()
    assert leader.leads
    assert not leader.accepts
    with pytest.raises(NotLeader):
        leader.propose(b"y")
    out = leader.take()
    assert out.events == []
    group.deliver("a", out.now, 0)
    leader.persisted(out.mark)
    group.run()
    assert events(group, "a") == [Leading(1), Released(1)]
    assert (leader.role, leader.leads, leader.stands) == (Role.RELEASED, False, True)
    leader.tick(10)
    group.run()
    assert group["b"].commit == 2, "its followers still learn what is committed"
    leader.following(record(1, ""), 0)
    assert at(leader, Role.FOLLOWER)


def test_a_follower_has_nothing_to_step_down_from() -> None:
    one = replica()
    one.step_down("whatever")
    assert not one.ready


def test_options_hold_their_relations() -> None:
    for wrong in (
        {"probe_bytes_max": 0}, {"append_bytes_max": 1}, {"window_bytes_max": 1}, {"tail_bytes_max": -1},
        {"snapshot_tail_bytes_max": 1}, {"retry_ms": 5_000},
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            ReplicaOptions(**wrong)
