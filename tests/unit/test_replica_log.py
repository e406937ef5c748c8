"""The log, what is on disk of it, and how it comes back from the journal."""

import pytest
from tests.unit.replica_kit import SHARD, append, entries, events, far_ahead, peer_of, replica, said

from tickwheel.server.errors import LogBroken
from tickwheel.server.lead import Pace
from tickwheel.server.ledger import Ledger
from tickwheel.server.log import Log, recovered
from tickwheel.server.message import Acked, Fenced, LogEntry
from tickwheel.server.quorum import commit_quorum, fence_quorum, reached
from tickwheel.server.record import Record, RecordType, ShardMark
from tickwheel.server.turn import Leading, SnapshotWanted

NONE = ShardMark()


def test_quorums() -> None:
    assert [commit_quorum(n) for n in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]
    assert [fence_quorum(n) for n in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]
    for n in range(1, 9):
        assert commit_quorum(n) + fence_quorum(n) == n + 1, "any two meet"
    assert reached([7]) == 7
    assert reached([7, 9]) == 7
    assert reached([9, 3, 7]) == 7
    with pytest.raises(AssertionError):
        commit_quorum(0)


# --- Log ---


def test_an_empty_log() -> None:
    log = Log()
    assert log.last == (0, 0)
    assert log.holds(0, 0)
    assert not log.holds(1, 1)
    assert log.behind(0, 100) == ()


def test_what_is_below_the_base_is_held_whatever_its_epoch() -> None:
    log = Log(10, 3, entries(3, 4, start=11))
    assert log.last == (4, 12)
    assert log.holds(7, 99)
    assert log.holds(10, 3)
    assert not log.holds(10, 2)
    assert log.holds(12, 4)
    assert not log.holds(12, 3)
    assert not log.holds(13, 4)


def test_where_two_logs_may_agree() -> None:
    log = Log(10, 3, entries(3, 3, 5, 5, 8, start=11))
    assert log.may_agree(15, 8) == 15
    assert log.may_agree(99, 9) == 15
    assert log.may_agree(15, 7) == 14
    assert log.may_agree(13, 7) == 13
    assert log.may_agree(15, 4) == 12
    assert log.may_agree(10, 4) == 10
    assert log.may_agree(9, 9) is None
    assert log.may_agree(15, 2) is None


def test_a_chunk_is_bounded_in_bytes_but_never_empty() -> None:
    log = Log(0, 0, entries(1, 1, 1))
    assert [entry.index for entry in log.behind(0, 1)] == [1]
    assert [entry.index for entry in log.behind(0, 130)] == [1, 2]
    assert [entry.index for entry in log.behind(1, 1000)] == [2, 3]


def test_entries_follow_each_other() -> None:
    log = Log(0, 0, entries(2))
    with pytest.raises(LogBroken, match="L3"):
        log.append(LogEntry(3, 2, b"gap"))
    with pytest.raises(LogBroken, match="L2"):
        log.append(LogEntry(2, 1, b"an older epoch"))


def test_a_tail_of_what_is_applied_stays() -> None:
    log = Log(0, 0, entries(1, 1, 1, 2, 2))
    log.apply_to(3, 1000)
    log.apply_to(2, 1000)
    assert (log.base_index, log.applied) == (0, 3)
    log.apply_to(4, 140)
    assert (log.base_index, log.base_epoch) == (2, 1)
    log.apply_to(5, 0)
    assert (log.base_index, log.base_epoch, log.last) == (5, 2, (2, 5))


def test_a_snapshot_keeps_what_comes_after_it_only_if_it_is_in_the_log() -> None:
    held = Log(0, 0, entries(1, 1, 2))
    assert held.install(2, 1)
    assert (held.base_index, held.last) == (2, (2, 3))
    other = Log(0, 0, entries(1, 1, 2))
    assert not other.install(2, 2)
    assert (other.base_epoch, other.last) == (2, (2, 2))
    shorter = Log(0, 0, entries(1))
    assert not shorter.install(5, 3)
    assert shorter.last == (3, 5)


# --- recovery ---


def entry(index: int, epoch: int) -> Record:
    return Record(RecordType.ENTRY, 1, epoch, index, b"%d" % index)


def other(kind: RecordType, index: int, epoch: int) -> Record:
    return Record(kind, 1, epoch, index)


def test_recovery_of_entries_behind_the_store() -> None:
    found = recovered(
        NONE, [other(RecordType.PROMISE, 0, 3), entry(1, 1), entry(2, 1), entry(3, 3)], 2, 1
    )
    assert found.promised == 3
    assert not found.void
    assert (found.log.base_index, found.log.base_epoch, found.log.last) == (2, 1, (3, 3))


def test_recovery_of_nothing() -> None:
    found = recovered(ShardMark(promised=9), [], 0, 0)
    assert (found.promised, found.log.last) == (9, (0, 0))


def test_the_store_may_be_ahead() -> None:
    found = recovered(NONE, [entry(1, 1), entry(2, 1)], 5, 2)
    assert found.log.last == (2, 5)
    assert found.promised == 2, "what was applied was promised"


def test_what_leads_up_to_the_applied_entry_is_its_past() -> None:
    records = [entry(4, 1), entry(5, 1), entry(6, 2), entry(7, 2)]
    past = {(applied, epoch): recovered(NONE, records, applied, epoch).past
            for applied, epoch in [(6, 2), (7, 2), (3, 1), (9, 2), (6, 9)]}  # fmt: skip
    assert {key: [e.index for e in found] for key, found in past.items()} == {
        (6, 2): [4, 5, 6],
        (7, 2): [4, 5, 6, 7],
        (3, 1): [],
        (9, 2): [],
        (6, 9): [],
    }
    assert recovered(NONE, [], 6, 2).past == []


def test_a_truncation_is_replayed() -> None:
    cut = other(RecordType.TRUNCATE, 1, 1)
    found = recovered(NONE, [entry(1, 1), entry(2, 1), entry(3, 1), cut, entry(2, 4)], 0, 0)
    assert found.log.last == (4, 2)
    found = recovered(NONE, [cut, entry(2, 4)], 1, 1)
    assert found.log.last == (4, 2)
    found = recovered(NONE, [entry(2, 1), cut, entry(2, 4)], 1, 1)
    assert found.log.last == (4, 2), "the truncation goes below the oldest segment"


def test_a_snapshot_is_replayed() -> None:
    base = other(RecordType.SNAPSHOT_BASE, 7, 3)
    found = recovered(NONE, [entry(1, 1), base, entry(8, 3)], 7, 3)
    assert found.log.last == (3, 8)
    found = recovered(NONE, [base, entry(8, 3)], 7, 3)
    assert found.log.last == (3, 8)


def test_a_snapshot_inside_the_log_leaves_the_rest() -> None:
    kept = [
        entry(1, 1),
        entry(2, 1),
        entry(3, 1),
        other(RecordType.SNAPSHOT_BASE, 2, 1),
        entry(4, 1),
    ]
    assert recovered(NONE, kept, 2, 1).log.last == (1, 4)


def test_a_snapshot_that_ends_where_the_log_ended_differently() -> None:
    records = [entry(1, 1), other(RecordType.SNAPSHOT_BASE, 1, 2), entry(2, 2)]
    assert recovered(NONE, records, 1, 2).log.last == (2, 2)


def test_a_snapshot_of_another_history_voids_the_longer_log() -> None:
    records = [
        entry(1, 1), entry(2, 1), entry(3, 1),
        other(RecordType.SNAPSHOT_BASE, 2, 4), other(RecordType.TRUNCATE, 2, 4), entry(3, 4),
    ]  # fmt: skip
    found = recovered(NONE, records, 2, 4)
    assert not found.void
    assert found.log.last == (4, 3)


def test_the_record_of_a_snapshot_may_be_gone_with_its_segment() -> None:
    assert recovered(NONE, [entry(1, 1), entry(9, 3), entry(10, 3)], 9, 3).log.last == (3, 10)


def test_a_dropped_shard_keeps_its_promise() -> None:
    dropped = other(RecordType.SHARD_DROP, 0, 0)
    found = recovered(NONE, [other(RecordType.PROMISE, 0, 6), entry(1, 1), dropped], 0, 0)
    assert (found.promised, found.log.last) == (6, (0, 0))


def test_what_contradicts_the_store_is_void() -> None:
    found = recovered(NONE, [entry(1, 1), entry(2, 1), entry(3, 1)], 2, 5)
    assert found.void
    assert found.log.last == (5, 2)


def test_a_hole_is_refused() -> None:
    with pytest.raises(LogBroken, match="begins at 5"):
        recovered(NONE, [entry(5, 1)], 3, 1)


def test_an_entry_twice_is_refused() -> None:
    with pytest.raises(LogBroken, match="twice"):
        recovered(NONE, [entry(1, 1), entry(1, 2)], 0, 0)


def test_framing_is_no_record_of_a_shard() -> None:
    with pytest.raises(AssertionError):
        recovered(NONE, [other(RecordType.BATCH_END, 0, 0)], 0, 0)


# --- Ledger ---


def ledger(*epochs: int) -> Ledger:
    return Ledger(1, Log(0, 0, entries(*epochs)))


def test_durable_follows_the_marks() -> None:
    book = ledger()
    book.append(entries(1, 1))
    assert book.take().mark == 1
    book.append(entries(1, start=3))
    assert book.take().mark == 2
    assert book.durable == 0
    book.persisted(1)
    assert book.durable == 2
    book.persisted(2)
    assert book.durable == 3


def test_what_was_truncated_is_not_durable_even_if_its_write_ends_later() -> None:
    book = ledger()
    book.append(entries(1, 1, 1))
    book.take()
    book.truncate(1)
    book.append(entries(2, start=2))
    assert [record.type.name for record in book.take().records] == ["TRUNCATE", "ENTRY"]
    book.persisted(1)
    assert book.durable == 1
    book.persisted(2)
    assert book.durable == 2


def test_truncating_below_the_commit_is_refused() -> None:
    book = ledger(1, 1, 1)
    book.commit_to(2)
    book.truncate(2)
    with pytest.raises(LogBroken, match="L6"):
        book.truncate(1)


def test_an_ack_waits_for_the_records_it_speaks_of() -> None:
    book = ledger()
    book.append(entries(1))
    book.ack("b", Acked(1, 1, 1))
    assert book.take().synced == [("b", Acked(1, 1, 1))]
    book.ack("b", Acked(1, 1, 1))
    out = book.take()
    assert (out.now, out.synced) == ([], []), "the records left with an earlier Output"
    assert not book.ready
    book.persisted(1)
    assert book.take().now == [("b", Acked(1, 1, 1))]
    book.ack("b", Acked(1, 1, 1))
    assert book.take().now == [("b", Acked(1, 1, 1))], "all is on disk"


def test_what_is_held_back_leaves_with_its_own_mark() -> None:
    book = ledger()
    for index in (1, 2):
        book.append(entries(1, start=index))
        book.take()
        book.when_synced("b", Fenced(1, index, 0, 0))
        book.take()
    book.persisted(1)
    assert book.take().now == [("b", Fenced(1, 1, 0, 0))]
    book.persisted(2)
    assert book.take().now == [("b", Fenced(1, 2, 0, 0))]


def test_of_several_acks_the_last_leaves() -> None:
    book = ledger(1, 1)
    book.ack("b", Acked(1, 1, 1))
    book.ack("b", Acked(1, 1, 2))
    assert book.take().now == [("b", Acked(1, 1, 2))]


def test_committed_is_handed_out_only_once_it_is_on_this_disk() -> None:
    book = ledger()
    book.append(entries(1, 1))
    book.commit_to(2)
    assert book.take().committed == []
    book.persisted(1)
    assert book.ready
    assert book.take().committed == entries(1, 1)
    assert not book.take()


def test_applying_what_was_not_handed_out_is_refused() -> None:
    with pytest.raises(LogBroken, match="L7"):
        ledger(1).applied(1, 0)


def test_merging_keeps_what_is_there() -> None:
    book = ledger(1, 1, 1)
    assert book.merge(0, entries(1, 1)) == 2
    assert book.log.last == (1, 3)
    assert book.merge(2, entries(1, 2, start=3)) == 4
    assert book.log.last == (2, 4)
    assert book.merge(3, entries(3, start=4)) == 4
    assert book.log.last == (3, 4)
    with pytest.raises(LogBroken, match="L3"):
        book.merge(3, [LogEntry(4, 3, b"other bytes")])


def test_merging_skips_what_is_below_the_base() -> None:
    book = Ledger(1, Log(5, 2, entries(2, start=6)))
    assert book.merge(3, entries(1, 2, 2, 2, start=4)) == 7
    assert book.log.last == (2, 7)


def test_a_snapshot_that_is_older_than_the_commit_is_refused() -> None:
    book = ledger(1, 1)
    book.commit_to(2)
    with pytest.raises(LogBroken, match="L6"):
        book.install(1, 1)


def test_a_snapshot_of_another_history_is_two_records() -> None:
    book = ledger(1, 1, 1)
    book.install(2, 4)
    names = [record.type.name for record in book.take().records]
    assert names == ["SNAPSHOT_BASE", "TRUNCATE"]
    kept = ledger(1, 1, 1)
    kept.install(2, 1)
    assert [record.type.name for record in kept.take().records] == ["SNAPSHOT_BASE"]
    short = ledger(1)
    short.install(2, 4)
    assert [record.type.name for record in short.take().records] == ["SNAPSHOT_BASE"]


def test_what_is_said_again_does_not_take_the_place_of_what_is_new() -> None:
    b = replica("b", 1)
    b.receive("a", append(1, (1, 1), *entries(1, start=2)), 0)
    b.connected("a")
    assert said(b) == [("a", Acked(SHARD, 1, 2))]


def test_a_snapshot_that_could_not_be_offered_is_wanted_again_soon() -> None:
    group = far_ahead()
    leader = group["a"]
    leader.not_offered("b")
    leader.not_offered("z")
    group["b"].not_offered("a")
    assert peer_of(leader, "c")[0] is Pace.SNAPSHOT
    leader.not_offered("c")
    group.run()
    assert events(group, "a") == [Leading(1), SnapshotWanted("c"), SnapshotWanted("c")]
