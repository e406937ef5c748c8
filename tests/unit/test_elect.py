"""Elections of three nodes over one simulated etcd: who stands when, and what a record means whatever was heard of it."""

import asyncio

import pytest
from tests.sim.etcd import Way
from tests.unit.cluster_kit import (
    A,
    now_s,
    put,
    until,
)
from tests.unit.elect_kit import (
    ALL,
    FIRST,
    FREE,
    SECOND,
    SHARD,
    THIRD,
    Member,
    World,
    named,
    story,
)

from tickwheel.server.cluster import elect as room
from tickwheel.server.cluster.ports import Delete
from tickwheel.server.cluster.registry import (
    MemberRecord,
    MoveRecord,
    ShardRecord,
    node_key,
    shard_key,
)

# --- standing ---


def test_who_wants_the_shard_most_takes_it() -> None:
    async def tell(world: World) -> None:
        await world.place(FREE)
        record = await world.led_by(FIRST)
        held = world[FIRST].election.held
        assert held is not None
        assert (record.epoch, record.session, record.released) == (1, held.create_revision, True)
        (told,) = world[FIRST].replica.told
        assert (told.epoch, told.leader, told.voters) == (1, FIRST, ALL)
        await asyncio.sleep(5)
        assert world.record == record
        assert not any(world[name].replica.told for name in (SECOND, THIRD))

    story(ALL, tell)


@pytest.mark.parametrize("gone", [1, 2])
def test_the_others_follow_in_rank(gone: int) -> None:
    """Each of them waits so long that whoever comes before it has won by then."""

    async def tell(world: World) -> None:
        order = [FIRST, SECOND, THIRD]
        for name in order[:gone]:
            world[name].election.stopped = True
        await world.place(FREE)
        began_s = now_s()
        await world.led_by(order[gone])
        assert gone * room.STAGGER_S <= now_s() - began_s < gone * room.STAGGER_S + 0.04

    story(ALL, tell)


def test_nobody_stands_while_the_leader_lives() -> None:
    async def tell(world: World) -> None:
        await world.place(FREE)
        await world.led_by(FIRST)
        writes = world.etcd.store.revision
        for _ in range(50):
            for member in world.members.values():
                member.election.consider_all()
            await asyncio.sleep(0.1)
        assert world.etcd.store.revision == writes

    story(ALL, tell)


def test_when_its_session_is_over_the_next_in_rank_takes_over() -> None:
    async def tell(world: World) -> None:
        await world.place(FREE)
        await world.led_by(FIRST)
        await world[FIRST].stop()
        await until(lambda: node_key(FIRST) not in world.etcd.store.items)
        record = await world.led_by(SECOND)
        assert (record.epoch, record.released) == (2, False)

    story(ALL, tell)


def test_who_is_no_voter_does_not_stand() -> None:
    async def tell(world: World) -> None:
        await world.place(ShardRecord((SECOND, THIRD)))
        assert (await world.led_by(SECOND)).voters == (SECOND, THIRD)
        await world[SECOND].stop()
        await world.led_by(THIRD)
        assert world[FIRST].replica.told == []

    story(ALL, tell)


def test_a_draining_node_stands_late() -> None:
    async def tell(world: World) -> None:
        await put(world.operator, f"members/{FIRST}", MemberRecord("draining"))
        await world.place(FREE)
        await world.led_by(SECOND)

    story(ALL, tell)


def test_but_it_stands_when_nobody_else_does() -> None:
    async def tell(world: World) -> None:
        for name in (SECOND, THIRD):
            world[name].election.stopped = True
        await put(world.operator, f"members/{FIRST}", MemberRecord("draining"))
        await world.place(FREE)
        began_s = now_s()
        await world.led_by(FIRST)
        assert now_s() - began_s >= room.DRAINING_S

    story(ALL, tell)


def test_who_is_wished_for_comes_first() -> None:
    async def tell(world: World) -> None:
        await put(world.operator, f"moves/{SHARD}", MoveRecord(THIRD))
        await world.place(FREE)
        await world.led_by(THIRD)

    story(ALL, tell)


def test_who_is_wished_for_may_be_late() -> None:
    """On a busy machine a node hears of a release half a second after the others did."""

    async def tell(world: World) -> None:
        await put(world.operator, f"moves/{SHARD}", MoveRecord(THIRD))
        await until(lambda: world[THIRD].view.moves)
        world.etcd.stall_watches(THIRD[0], 0.5)
        await put(world.operator, shard_key(SHARD), FREE)
        assert (await world.led_by(THIRD)).epoch == 1

    story(ALL, tell)


def test_but_not_for_ever() -> None:
    async def tell(world: World) -> None:
        world[THIRD].election.stopped = True
        await put(world.operator, f"moves/{SHARD}", MoveRecord(THIRD))
        await until(lambda: all(member.view.moves for member in world.members.values()))
        await world.place(FREE)
        began_s = now_s()
        await world.led_by(FIRST)
        assert 0.5 <= now_s() - began_s <= 1.0

    story(ALL, tell)


@pytest.mark.parametrize("why", ["dead", "draining", "no voter", "nothing was released"])
def test_nobody_waits_for_who_can_not_have_it(why: str) -> None:
    async def tell(world: World) -> None:
        await put(world.operator, f"moves/{SHARD}", MoveRecord(THIRD))
        await until(lambda: all(member.view.moves for member in world.members.values()))
        record, began_s = FREE, 0.0
        if why == "dead":
            await until(lambda: all(member.election.held for member in world.members.values()))
            await world[THIRD].stop()
            await until(lambda: all(len(world[n].view.nodes) == 2 for n in (FIRST, SECOND)))
        elif why == "draining":
            await put(world.operator, f"members/{THIRD}", MemberRecord("draining"))
            await until(lambda: all(member.view.members for member in world.members.values()))
        elif why == "no voter":
            record = ShardRecord((FIRST, SECOND))
        else:
            world[THIRD].election.stopped = True
            record = named("")
        began_s = now_s()
        await put(world.operator, shard_key(SHARD), record)
        await world.led_by(FIRST)
        assert now_s() - began_s < 0.3

    story(ALL, tell)


def test_a_wish_for_a_draining_node_counts_less_than_the_draining() -> None:
    async def tell(world: World) -> None:
        await put(world.operator, f"moves/{SHARD}", MoveRecord(THIRD))
        await put(world.operator, f"members/{THIRD}", MemberRecord("draining"))
        await world.place(FREE)
        await world.led_by(FIRST)

    story(ALL, tell)


def test_without_a_session_nobody_stands() -> None:
    async def tell(world: World) -> None:
        member = world[A]
        await until(lambda: member.election.held is not None)
        member.election.session_lost()
        await put(world.operator, shard_key(SHARD), ShardRecord((A,)))
        await asyncio.sleep(5)
        assert world.record.leader == ""
        held = member.session.held
        assert held is not None
        member.election.session_held(held)
        await world.led_by(A)

    story((A,), tell)


def test_a_shard_whose_record_is_lost_before_it_stands_is_left_alone() -> None:
    async def tell(world: World) -> None:
        await put(world.operator, f"members/{A}", MemberRecord("draining"))
        await world.place(ShardRecord((A,)))
        await asyncio.sleep(0.1)
        await world.operator.transact([], [Delete(shard_key(SHARD))])
        world.etcd.compact()
        del world[A].view.shards[SHARD]
        await asyncio.sleep(5)

    story((A,), tell)


# --- two voters ---


def test_of_two_voters_the_dead_one_is_left_out() -> None:
    async def tell(world: World) -> None:
        pair = (FIRST, SECOND)
        await world.place(ShardRecord(pair))
        record = await world.led_by(FIRST)
        assert (record.voters, record.config) == (pair, 1), "both live"
        await world[FIRST].stop()
        record = await world.led_by(SECOND)
        assert (record.voters, record.config) == ((SECOND,), 2)

    story(ALL, tell)


def test_of_three_nobody_is_left_out() -> None:
    async def tell(world: World) -> None:
        await world.place(FREE)
        await world.led_by(FIRST)
        await world[FIRST].stop()
        record = await world.led_by(SECOND)
        assert (record.voters, record.config) == (ALL, 1)

    story(ALL, tell)


# --- what is heard of a transaction ---


def ways(world: World, *found: Way) -> None:
    """What becomes of the next writes; afterwards all is well."""
    left = list(found)
    world.etcd.draw_way = lambda: left.pop(0) if left else Way.FINE  # type: ignore[method-assign]


@pytest.mark.parametrize("way", [way for way in Way if way != Way.FINE])
def test_whatever_is_heard_of_a_take_over_the_shard_is_led_once_an_epoch(way: Way) -> None:
    async def tell(world: World) -> None:
        for name in (SECOND, THIRD):
            world[name].election.stopped = True
        await world.place(FREE)
        ways(world, way)
        record = await world.led_by(FIRST)
        await asyncio.sleep(20)
        assert world[FIRST].replica.leads
        assert world.record == record
        epochs = [told.epoch for told in world[FIRST].replica.told]
        assert epochs == sorted(set(epochs))
        assert epochs[-1] == record.epoch

    story(ALL, tell)


def test_a_take_over_that_was_applied_unheard_begins_the_leadership() -> None:
    async def tell(world: World) -> None:
        for name in (SECOND, THIRD):
            world[name].election.stopped = True
        await world.place(FREE)
        ways(world, Way.NO_ANSWER)
        assert (await world.led_by(FIRST)).epoch == 1

    story(ALL, tell)


def test_a_refused_take_over_learns_who_was_faster() -> None:
    """The watch is slow; the refusal tells the record."""

    async def tell(world: World) -> None:
        await world.place(FREE)
        world.etcd.stall_watches(SECOND[0], 30.0)
        await world.led_by(FIRST)
        await asyncio.sleep(0.5)
        assert world[SECOND].view.shards[SHARD].record.leader in ("", FIRST)
        assert world.record.epoch == 1
        assert world[SECOND].replica.told == []

    story(ALL, tell)


def test_nothing_is_taken_over_from_a_leader_that_etcd_still_knows() -> None:
    """This node's view is old in the other way: it believes the leader's session over."""

    async def tell(world: World) -> None:
        await world.place(FREE)
        record = await world.led_by(FIRST)
        world.etcd.stall_watches(SECOND[0], 30.0)
        del world[SECOND].view.nodes[FIRST]
        for _ in range(20):
            world[SECOND].election.consider_all()
            await asyncio.sleep(0.1)
        assert world.record == record

    story(ALL, tell)


def test_a_record_that_vanished_is_no_leadership() -> None:
    async def tell(world: World) -> None:
        await world.place(ShardRecord((A,)))
        await world.led_by(A)
        ways(world, Way.NO_REQUEST)
        swap = asyncio.get_running_loop().create_task(
            world[A].election.swap(SHARD, lambda record: record.with_session(0))
        )
        await asyncio.sleep(0.001)
        await world.operator.transact([], [Delete(shard_key(SHARD))])
        with pytest.raises(Exception, match="is gone from etcd"):
            await swap

    story((A,), tell)


# --- changes by the leader ---


def test_only_the_leader_changes_its_record() -> None:
    async def tell(world: World) -> None:
        await world.place(FREE)
        await world.led_by(FIRST)

        def learn(record: ShardRecord) -> ShardRecord:
            return ShardRecord(
                record.voters, ("d" * 32,), record.epoch, record.leader, record.session,
                released=record.released,
            )  # fmt: skip

        assert not await world[SECOND].election.swap(SHARD, learn)
        assert await world[FIRST].election.swap(SHARD, learn)
        assert world.record.learners == ("d" * 32,)
        assert world[FIRST].view.shards[SHARD].record == world.record, "known at once"
        world[FIRST].election.session_lost()
        assert not await world[FIRST].election.swap(SHARD, learn)

    story(ALL, tell)


def test_a_lost_session_costs_a_leader_that_goes_on_nothing() -> None:
    """Nobody took the shard meanwhile: it is led on, at the same epoch, under the new session."""

    async def tell(world: World) -> None:
        for name in (SECOND, THIRD):
            world[name].election.stopped = True
        await world.place(FREE)
        before = await world.led_by(FIRST)
        world.etcd.end_lease(world[FIRST].memory.lease)
        await until(lambda: world.record.session != before.session)
        assert world.record.epoch == before.epoch
        assert world[FIRST].replica.leads
        assert len(world[FIRST].replica.told) == 1

    story(ALL, tell)


def test_one_that_lost_its_session_and_the_shard_follows() -> None:
    async def tell(world: World) -> None:
        await world.place(FREE)
        await world.led_by(FIRST)
        world.etcd.cut(FIRST[0])
        record = await world.led_by(SECOND)
        assert world[FIRST].replica.leads, "it has not heard of it"
        world.etcd.heal(FIRST[0])
        await until(lambda: not world[FIRST].replica.leads)
        await asyncio.sleep(5)
        assert world.record == record

    story(ALL, tell)


def test_a_node_that_was_started_again_takes_its_shard_anew() -> None:
    """The record names it under the session of its former life."""

    async def tell(world: World) -> None:
        await world.place(ShardRecord((A,)))
        await world.led_by(A)
        await world[A].stop()
        world.members[A] = Member(A, world.etcd)
        record = await world.led_by(A)
        assert record.epoch == 2

    story((A,), tell)


# --- giving up ---


def test_a_leadership_that_found_no_quorum_is_given_up_and_left_to_others() -> None:
    async def tell(world: World) -> None:
        world[FIRST].replica.fails = True
        await world.place(FREE)
        record = await world.led_by(SECOND)
        assert (record.epoch, record.released) == (2, False)

    story(ALL, tell)


def test_one_that_takes_a_copy_when_it_has_won_gives_up_and_is_not_told_in_circles() -> None:
    """Its replica fails at once and has begun no epoch; told again in the same turn, the node would stand still."""

    async def tell(world: World) -> None:
        world[FIRST].replica.takes_a_copy = True
        await world.place(FREE)
        record = await world.led_by(SECOND)
        assert (record.epoch, record.released) == (2, False)
        assert len(world[FIRST].replica.told) == 1

    story(ALL, tell)


def test_and_it_stays_away_for_a_while() -> None:
    async def tell(world: World) -> None:
        world[A].replica.fails = True
        await world.place(ShardRecord((A,)))
        await until(lambda: len(world[A].replica.told) == 1)
        began_s = now_s()
        world[A].replica.fails = False
        await world.led_by(A)
        low_s, high_s = room.STAY_AWAY_S
        assert low_s <= now_s() - began_s < high_s + 0.2

    story((A,), tell)


def test_what_was_released_has_a_successor_that_waits_for_nothing() -> None:
    async def tell(world: World) -> None:
        await put(world.operator, f"moves/{SHARD}", MoveRecord(FIRST))
        await world.place(FREE)
        await world.led_by(FIRST)
        await put(world.operator, f"moves/{SHARD}", MoveRecord(THIRD))
        await until(lambda: world[SECOND].view.moves[SHARD] == THIRD)
        world[FIRST].replica.release()
        began_s = now_s()
        record = await world.led_by(THIRD)
        assert now_s() - began_s < 0.04
        assert (record.epoch, record.released) == (2, True)
        assert world[THIRD].replica.told[-1].released

    story(ALL, tell)


@pytest.mark.parametrize("way", [way for way in Way if way != Way.FINE])
def test_a_release_that_etcd_did_not_answer_is_not_forgotten(way: Way) -> None:
    async def tell(world: World) -> None:
        await world.place(FREE)
        await world.led_by(FIRST)
        await put(world.operator, f"members/{FIRST}", MemberRecord("draining"))
        await until(lambda: world[FIRST].view.members)
        ways(world, way)
        world[FIRST].replica.release()
        assert (await world.led_by(SECOND)).epoch == 2

    story(ALL, tell)


def test_a_release_while_etcd_is_away_happens_when_it_is_back() -> None:
    async def tell(world: World) -> None:
        await world.place(FREE)
        await world.led_by(FIRST)
        await put(world.operator, f"members/{FIRST}", MemberRecord("draining"))
        await until(lambda: world[FIRST].view.members)
        world.etcd.down = True
        world[FIRST].replica.release()
        await asyncio.sleep(2)
        world.etcd.down = False
        world.etcd.change_leader()
        await world.led_by(SECOND)

    story(ALL, tell)


def test_a_leader_without_a_quorum_lets_others_try() -> None:
    async def tell(world: World) -> None:
        await world.place(FREE)
        await world.led_by(FIRST)
        first = world[FIRST]

        async def watch(for_s: float) -> None:
            until_s = now_s() + for_s
            while now_s() < until_s:
                first.election.watch_rights()
                await asyncio.sleep(0.25)

        first.host.acting.clear()
        await watch(room.QUORUMLESS_MS / 1000 - 0.5)
        first.host.acting.add(SHARD)
        await watch(1.0)
        first.host.acting.clear()
        await watch(room.QUORUMLESS_MS / 1000 - 0.5)
        assert first.replica.leads, "it was well in between"
        await watch(1.5)
        assert not first.replica.leads
        record = await world.led_by(SECOND)
        assert not record.released

    story(ALL, tell)


# --- the end ---


def test_a_node_that_stops_releases_everything_and_takes_nothing() -> None:
    async def tell(world: World) -> None:
        await world.place(FREE)
        await world.led_by(FIRST)
        await world[FIRST].election.release_all(3.0)
        record = await world.led_by(SECOND)
        assert (record.epoch, record.released) == (2, True)
        await asyncio.sleep(10)
        assert world.record == record

    story(ALL, tell)


def test_a_node_that_waits_for_its_turn_does_not_stand_any_more_when_it_stops() -> None:
    async def tell(world: World) -> None:
        await put(world.operator, f"members/{A}", MemberRecord("draining"))
        await world.place(ShardRecord((A,)))
        await asyncio.sleep(0.5)
        await world[A].election.release_all(1.0)
        await asyncio.sleep(10)
        assert world.record.leader == ""

    story((A,), tell)


def test_what_takes_too_long_is_left_as_it_is() -> None:
    async def tell(world: World) -> None:
        await world.place(FREE)
        record = await world.led_by(FIRST)
        world[FIRST].replica.release = lambda: None  # type: ignore[method-assign]
        began_s = now_s()
        await world[FIRST].election.release_all(3.0)
        assert 3.0 <= now_s() - began_s < 3.2
        assert world.record == record

    story(ALL, tell)


def test_a_release_that_meets_another_change_comes_after_it() -> None:
    async def tell(world: World) -> None:
        for name in (SECOND, THIRD):
            world[name].election.stopped = True
        await world.place(FREE)
        await world.led_by(FIRST)
        first = world[FIRST]
        world.etcd.weather = type(world.etcd.weather)(delay_s=0.5)
        world.etcd.end_lease(first.memory.lease)
        await until(lambda: SHARD in first.election._busy)
        await first.election.release_all(5.0)
        assert (world.record.leader, world.record.released) == ("", True)

    story(ALL, tell)
