"""The cluster as a node saw it last in etcd."""

import pytest

from tickwheel.server.cluster.ports import Batch, Event, Item, Listing, Reset
from tickwheel.server.cluster.registry import (
    MemberRecord,
    MemberState,
    MoveRecord,
    NodeRecord,
    ShardRecord,
    node_key,
    shard_key,
)
from tickwheel.server.cluster.view import View
from tickwheel.server.errors import FailedPrecondition

A, B, C = ("a" * 32, "b" * 32, "c" * 32)


def node(name: str, revision: int) -> Item:
    record = NodeRecord("p", "g", "h", f"host-{name[0]}", "", "1", "2026a")
    return Item(node_key(name), record.encode(), revision, revision, 1, 77)


def shard(number: int, record: ShardRecord, revision: int) -> Item:
    return Item(shard_key(number), record.encode(), 2, revision, 1, 0)


def view() -> View:
    seen = View()
    led = ShardRecord((A, B, C), (), 4, A, 11, released=False)
    meta = Item("meta", b"{}", 1, 1, 1, 0)
    seen.take(Reset(Listing((meta, node(A, 11), node(B, 12), shard(3, led, 20)), 20)))
    return seen


def test_a_leader_leads_as_long_as_its_session_lives() -> None:
    seen = view()
    assert not seen.is_leaderless(seen.shards[3].record)
    seen.take(Batch((Event(node_key(A), None, 21),), 21))
    assert seen.is_leaderless(seen.shards[3].record)
    assert seen.revision == 21


def test_the_same_node_under_a_new_session_is_not_the_leader_that_it_was() -> None:
    seen = view()
    seen.take(Batch((Event(node_key(A), node(A, 30), 30),), 30))
    assert seen.is_leaderless(seen.shards[3].record)


def test_what_was_written_here_is_not_undone_by_old_news() -> None:
    seen = view()
    mine = ShardRecord((A, B, C), (), 5, B, 12, released=False)
    seen.took(3, shard(3, mine, 40))
    old = ShardRecord((A, B, C), (), 4, "", 0, released=True)
    seen.take(Batch((Event(shard_key(3), shard(3, old, 35), 35),), 35))
    assert seen.shards[3].record == mine


def test_a_reset_forgets_what_is_gone() -> None:
    seen = view()
    seen.take(Reset(Listing((node(C, 50),), 50)))
    assert sorted(seen.nodes) == [C]
    assert not seen.shards


def test_members_and_wishes() -> None:
    seen = view()
    assert seen.may_lead(A)
    draining = Item(f"members/{A}", MemberRecord("draining").encode(), 60, 60, 1, 0)
    wish = Item("moves/3", MoveRecord(B).encode(), 61, 61, 1, 0)
    seen.take(Batch((Event(draining.key, draining, 60), Event(wish.key, wish, 61)), 61))
    assert seen.state(A) == MemberState.DRAINING
    assert not seen.may_lead(A)
    assert seen.moves == {3: B}
    seen.take(Batch((Event(draining.key, None, 62), Event(wish.key, None, 63)), 63))
    assert seen.may_lead(A)
    assert not seen.moves


def test_a_node_that_is_not_registered_may_not_lead() -> None:
    assert not view().may_lead(C)


def test_shards_with_too_few_copies_are_known() -> None:
    seen = View(min_copies=2)
    alone = ShardRecord((A,), (), 4, A, 11, released=False)
    seen.take(Reset(Listing((shard(3, alone, 20),), 20)))
    assert seen.thin == {3}
    both = ShardRecord((A, B), (), 4, A, 11, released=False)
    seen.take(Batch((Event(shard_key(3), shard(3, both, 21), 21),), 21))
    assert not seen.thin


def test_a_reset_does_not_undo_what_was_written_here_after_it_was_made() -> None:
    seen = View(min_copies=2)
    seen.take(Reset(Listing((node(A, 11), shard(3, ShardRecord((A, B)), 20)), 20)))
    mine = ShardRecord((B,), (), 5, B, 12, released=False)
    seen.took(3, shard(3, mine, 40))
    seen.take(Reset(Listing((node(A, 11), shard(3, ShardRecord((A, B)), 20)), 39)))
    assert seen.shards[3].record == mine
    assert seen.thin == {3}
    seen.take(Reset(Listing((shard(3, ShardRecord((A, B)), 41),), 41)))
    assert seen.shards[3].record.epoch == 0
    assert seen.thin == set()


@pytest.mark.parametrize(
    ("key", "value"),
    [("members/x", b'{"state":"dancing"}'), ("shards/x", b"{}"), ("moves/x", b'{"leader":"a"}')],
)
def test_what_this_version_does_not_know_is_told_with_its_key(key: str, value: bytes) -> None:
    with pytest.raises(FailedPrecondition, match=key):
        view().take(Batch((Event(key, Item(key, value, 9, 9, 1, 0), 30),), 30))
