"""Elections of nodes that must not lead for now: they give up what they lead, and stand for nothing."""

import asyncio

from tests.unit.cluster_kit import now_s, put, until
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

from tickwheel.server.cluster.registry import ShardRecord, shard_key
from tickwheel.server.replica import Role


def bar(member: Member, *, barred: bool = True) -> None:
    """As the beats say, a few times a second."""
    member.election.barred = lambda: barred
    member.election.watch_rights()


def test_who_must_not_lead_gives_up_at_once_and_stands_no_more() -> None:
    async def tell(world: World) -> None:
        await world.place(FREE)
        await world.led_by(FIRST)
        began_s = now_s()
        bar(world[FIRST])
        assert not world[FIRST].replica.leads
        record = await world.led_by(SECOND)
        assert now_s() - began_s < 0.3
        assert (record.epoch, record.released) == (2, False), "what it had in flight nobody knows"
        world[SECOND].election.stopped = world[THIRD].election.stopped = True
        await world[SECOND].stop()
        await asyncio.sleep(20)
        assert world.record.leader == SECOND, "its session is over, and nobody else may"
        bar(world[FIRST], barred=False)
        assert (await world.led_by(FIRST)).epoch == 3

    story(ALL, tell)


def test_a_record_that_names_who_must_not_lead_is_given_up() -> None:
    """Its transaction was under way when it was barred."""

    async def tell(world: World) -> None:
        for name in (SECOND, THIRD):
            world[name].election.stopped = True
        await world.place(ShardRecord(ALL, epoch=3))
        await until(lambda: world.record.leader == FIRST)
        await world.led_by(FIRST)
        member = world[FIRST]
        member.election.barred = lambda: True
        member.replica.role = Role.RELEASED
        held = member.election.held
        assert held is not None
        await put(world.operator, shard_key(SHARD), named(FIRST, held.create_revision, epoch=9))
        await until(lambda: world.record.leader == "")
        assert (world.record.epoch, world.record.released) == (9, False)
        assert [told.epoch for told in member.replica.told] == [4]

    story(ALL, tell)
