"""Records of the cluster in etcd: their JSON, what a take-over changes, and what guards it."""

import pytest

from tickwheel.server.cluster.ports import Item, Relation, Target
from tickwheel.server.cluster.registry import (
    MetaRecord,
    ShardRecord,
    decode,
    leader_guards,
    node_key,
    take_over_guards,
)
from tickwheel.server.errors import FailedPrecondition

A, B, C = ("a" * 32, "b" * 32, "c" * 32)


def item(value: bytes, mod_revision: int = 9) -> Item:
    return Item("shards/3", value, 5, mod_revision, 2, 0)


def test_a_record_survives_its_json() -> None:
    record = ShardRecord((A, B, C), (), 4, A, 17, released=False, config=2)
    assert decode(ShardRecord, item(record.encode())) == record
    assert decode(MetaRecord, item(MetaRecord("u", 64, 3).encode())).shards == 64


@pytest.mark.parametrize("value", [b"", b"[]", b'{"voters": [], "colour": 1}', b"{"])
def test_what_somebody_else_wrote_is_refused_with_its_key(value: bytes) -> None:
    with pytest.raises(FailedPrecondition, match=r"shards/3"):
        decode(ShardRecord, item(value))


def test_a_take_over_counts_the_epoch_up_and_keeps_the_voters() -> None:
    record = ShardRecord((A, B, C), (), 4, A, 17, released=False)
    new = record.taken_over(B, 21, record.voters)
    assert (new.epoch, new.leader, new.session, new.voters, new.config) == (5, B, 21, (A, B, C), 1)


def test_fewer_voters_are_another_configuration() -> None:
    assert ShardRecord((A, B)).taken_over(B, 21, (B,)).config == 2


def test_released_is_told_to_the_successor_alone() -> None:
    given_up = ShardRecord((A, B, C), (), 4, A, 17, released=False).given_up(released=True)
    successor = given_up.taken_over(B, 21, given_up.voters)
    assert successor.released
    assert not successor.taken_over(C, 30, successor.voters).released, "B did not release it"


def test_the_guards_of_a_take_over() -> None:
    record = ShardRecord((A, B, C), (), 4, A, 17, released=False)
    unchanged, mine, theirs = take_over_guards(item(record.encode()), record, B, 21)
    assert (unchanged.target, unchanged.operand) == (Target.MOD_REVISION, 9)
    assert (mine.key, mine.relation, mine.operand) == (node_key(B), Relation.EQUAL, 21)
    assert (theirs.key, theirs.relation, theirs.operand) == (node_key(A), Relation.NOT_EQUAL, 17)


def test_nobody_has_to_be_gone_when_the_shard_has_no_leader_or_is_ones_own() -> None:
    free = ShardRecord((A, B, C))
    assert len(take_over_guards(item(free.encode()), free, B, 21)) == 2
    own = ShardRecord((A, B, C), (), 4, B, 17, released=False)
    assert len(take_over_guards(item(own.encode()), own, B, 21)) == 2
    assert len(leader_guards(item(own.encode()), B, 21)) == 2
