"""Handing a shard over: to whom, when, and that it stands still only for a moment."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.cluster_kit import A, B, C, FakeHost, Seen, now_s, run, until

from tickwheel.server import handover as room
from tickwheel.server.cluster.registry import ShardRecord
from tickwheel.server.errors import NotLeader
from tickwheel.server.handover import HandOver
from tickwheel.server.message import NodeId
from tickwheel.server.placement import Site, preference
from tickwheel.server.runner import Runner

SITES = {name: Site(f"host-{name[0]}", "") for name in (A, B, C)}
OF_A, OF_B = (
    [n for n in range(60) if preference(n, SITES)[0] == name] for name in (A, B)
)  # the shards that these nodes want most


class FakeSlot:
    def __init__(self) -> None:
        self.shard = SimpleNamespace(epoch=4, flights={})
        self.busy = False
        self.leading: list[str] = []
        self.led = True

    def leads(self, epoch: int) -> bool:
        return self.led and self.shard.epoch == epoch


class FakeReplica:
    """Releases at once, unless it is stuck: then what was proposed is never committed."""

    def __init__(self, slot: FakeSlot) -> None:
        self.slot = slot
        self.commit = 5_000
        self.reached: dict[NodeId, int] = dict.fromkeys((A, B, C), 5_000)
        self.accepts = True
        self.stuck = False
        self.releases = 0

    def matches(self) -> dict[NodeId, int]:
        return self.reached

    def release(self) -> None:
        if not self.accepts:
            raise NotLeader("this node does not lead it")
        self.releases += 1
        self.accepts = False
        if not self.stuck:
            self.slot.led = False


class FakeRunner:
    def __init__(self) -> None:
        self.slots: dict[int, FakeSlot] = {}
        self.paused: list[FakeSlot] = []
        self.log: list[tuple[str, float]] = []
        self.tasks: list[asyncio.Future[None]] = []

    def pause(self, slot: FakeSlot) -> None:
        self.paused.append(slot)
        self.log.append(("pause", now_s()))

    def resume(self, slot: FakeSlot) -> None:
        self.paused.remove(slot)
        self.log.append(("resume", now_s()))

    def spawn(self, work: "Awaitable[None]") -> None:
        self.tasks.append(asyncio.ensure_future(work))


class World:
    """Node a leads some shards; b and c are there, and well since long ago unless told otherwise."""

    def __init__(self, *shards: int) -> None:
        self.view = Seen()
        self.sessions = {name: self.view.node(name) for name in (A, B, C)}
        self.host = FakeHost()
        self.runner = FakeRunner()
        for number in shards:
            slot = self.runner.slots[number] = FakeSlot()
            self.host.replicas[number] = FakeReplica(slot)
            self.record(number, A)
        self.hand_over = HandOver(
            A, self.view, self.host.as_host(), cast("Runner", self.runner),
            lambda: round(now_s() * 1000),
        )  # fmt: skip
        self.task = asyncio.ensure_future(self.hand_over.run())

    def record(self, number: int, leader: NodeId, **more: Any) -> None:
        session = self.sessions[leader]
        fields: dict[str, Any] = {"epoch": 4, "released": False} | more
        self.view.shard(
            number, ShardRecord((A, B, C), (), leader=leader, session=session, **fields)
        )

    def replica(self, number: int) -> FakeReplica:
        return cast("FakeReplica", self.host.replicas[number])

    @property
    def released(self) -> list[int]:
        return [number for number in self.host.replicas if self.replica(number).releases]

    async def end(self) -> None:
        self.hand_over.stop()
        await self.task
        await asyncio.gather(*self.runner.tasks)


Tell = Callable[[World], Coroutine[Any, Any, None]]


def story(*shards: int) -> Callable[[Tell], Callable[[], None]]:
    """Tell it in a world of these shards, and hold that no task of it failed."""

    def decorate(tell: Tell) -> Callable[[], None]:
        def told() -> None:
            async def whole() -> None:
                world = World(*shards)
                await tell(world)
                await world.end()

            run(whole(), 3_600)

        return told

    return decorate


SETTLED_S = room.SETTLED_MS / 1000


# --- to whom ---


@story(OF_A[0])
async def test_what_it_wants_most_it_keeps(world: World) -> None:
    await asyncio.sleep(2 * SETTLED_S)
    assert world.released == []
    assert world.runner.log == []


@story(OF_B[0])
async def test_what_another_wants_more_it_gives_when_that_one_has_settled(world: World) -> None:
    await asyncio.sleep(SETTLED_S - 1)
    assert world.released == []
    await asyncio.sleep(2)
    assert world.released == [OF_B[0]]
    assert OF_B[0] in world.host.poked


@story(OF_B[0])
async def test_a_node_that_came_back_has_to_settle_anew(world: World) -> None:
    await asyncio.sleep(SETTLED_S - 1)
    world.view.gone(B)
    world.view.node(B)
    second = preference(OF_B[0], SITES)[1]
    await asyncio.sleep(SETTLED_S - 1)
    assert world.released == ([] if second == A else [OF_B[0]])


@story(next(n for n in OF_B if preference(n, SITES)[1] == A))
async def test_with_the_best_one_gone_the_second_best_keeps_it(world: World) -> None:
    world.view.gone(B)
    await asyncio.sleep(2 * SETTLED_S)
    assert world.released == []


@story(OF_A[0])
async def test_a_wish_is_followed_at_once(world: World) -> None:
    world.view.wish(OF_A[0], C)
    await asyncio.sleep(0.2)
    assert world.released == [OF_A[0]]


@story(OF_B[0])
async def test_a_wish_to_stay_is_followed_too(world: World) -> None:
    world.view.wish(OF_B[0], A)
    await asyncio.sleep(2 * SETTLED_S)
    assert world.released == []


@story(OF_A[0])
async def test_a_wish_that_can_not_be_is_waited_with(world: World) -> None:
    number = OF_A[0]
    world.view.wish(number, C)
    world.replica(number).reached[C] = world.replica(number).commit - room.BEHIND_MAX - 1
    await asyncio.sleep(5)
    assert world.released == [], "it lacks too much of the log"
    world.replica(number).reached[C] += 1
    world.view.gone(C)
    await asyncio.sleep(5)
    assert world.released == [], "it is gone"
    world.view.node(C)
    await asyncio.sleep(0.2)
    assert world.released == [number]


@story(OF_A[0])
async def test_a_wish_for_who_is_no_voter_any_more_is_not_followed(world: World) -> None:
    """It could not take the shard, and this node would get it back: over and over."""
    number = OF_A[0]
    session = world.sessions[A]
    world.view.shard(number, ShardRecord((A, B), (C,), 4, A, session, released=False))
    world.view.wish(number, C)
    await asyncio.sleep(5)
    assert world.released == []


@story(*OF_A[:5])
async def test_a_draining_node_gives_everything_to_whoever_is_there(world: World) -> None:
    await asyncio.sleep(0.5)
    world.view.gone(C)
    world.view.node(C)
    world.view.member(A, "draining")
    await asyncio.sleep(1)
    assert world.released == OF_A[:5]


@story(OF_A[0])
async def test_a_draining_node_keeps_what_nobody_can_take(world: World) -> None:
    world.view.member(A, "draining")
    world.view.member(B, "draining")
    world.replica(OF_A[0]).reached[C] = 0
    await asyncio.sleep(5)
    assert world.released == []


@story(OF_B[0])
async def test_what_it_does_not_lead_is_not_its_to_give(world: World) -> None:
    world.record(OF_B[0], C)
    world.view.wish(OF_B[0], B)
    await asyncio.sleep(2 * SETTLED_S)
    assert world.runner.log == []
    del world.view.shards[OF_B[0]]
    await asyncio.sleep(1)
    assert world.runner.log == []


# --- how ---


@story(OF_A[0])
async def test_what_is_in_flight_lands_first(world: World) -> None:
    number = OF_A[0]
    slot = world.runner.slots[number]
    slot.shard.flights[1] = "a request"
    world.view.wish(number, B)
    await until(lambda: world.runner.log)
    await asyncio.sleep(0.05)
    slot.shard.flights.clear()
    slot.leading.append("its outcome")
    await asyncio.sleep(0.02)
    slot.leading.clear()
    slot.busy = True
    await asyncio.sleep(0.02)
    assert world.released == []
    slot.busy = False
    await asyncio.sleep(0.01)
    assert world.released == [number]
    assert [what for what, _ in world.runner.log] == ["pause"], (
        "it leads no more: nothing to resume"
    )


@story(OF_A[0])
async def test_what_stays_in_flight_is_led_on_and_tried_again(world: World) -> None:
    number = OF_A[0]
    slot = world.runner.slots[number]
    slot.shard.flights[1] = "a slow request"
    world.view.wish(number, B)
    await asyncio.sleep(3)
    assert world.released == []
    (_, paused_s), (_, resumed_s), *others = world.runner.log
    assert resumed_s - paused_s <= room.LAND_S + 0.01
    assert len(others) in {2, 4}, "once a second"
    slot.shard.flights.clear()
    await asyncio.sleep(1.5)
    assert world.released == [number]


@story(OF_A[0])
async def test_a_leadership_that_ends_meanwhile_is_not_released(world: World) -> None:
    number = OF_A[0]
    slot = world.runner.slots[number]
    slot.shard.flights[1] = "a request"
    world.view.wish(number, B)
    await until(lambda: world.runner.log)
    slot.led = False
    slot.shard.flights.clear()
    await asyncio.sleep(1)
    assert world.released == []
    assert "resume" not in [what for what, _ in world.runner.log]


@story(OF_A[0])
async def test_one_that_ends_in_the_same_moment_stops_no_node(world: World) -> None:
    """The replica knows it, the runner is told in the next turn."""
    number = OF_A[0]
    world.replica(number).accepts = False
    world.view.wish(number, B)
    await asyncio.sleep(1)
    assert world.released == []
    assert "resume" not in [what for what, _ in world.runner.log]


@story(OF_A[0])
async def test_a_release_that_does_not_end_is_not_begun_twice(world: World) -> None:
    """Without a quorum the last entry is never committed. What can't be written is not taken, either."""
    number = OF_A[0]
    world.replica(number).stuck = True
    world.view.wish(number, B)
    await asyncio.sleep(10)
    assert world.replica(number).releases == 1
    assert "resume" not in [what for what, _ in world.runner.log]


@story(OF_A[0])
async def test_a_shard_that_is_gone_by_then_is_left_alone(world: World) -> None:
    world.view.wish(OF_A[0], B)
    real = world.runner.spawn

    def spawn(work: "Awaitable[None]") -> None:
        world.runner.slots.clear()
        real(work)

    world.runner.spawn = spawn  # type: ignore[method-assign]
    await asyncio.sleep(1)
    assert world.runner.log == []


# --- how often ---


@story(*OF_A[:6])
async def test_two_at_a_time(world: World) -> None:
    for number in OF_A[:6]:
        world.runner.slots[number].shard.flights[1] = "a request"
    world.view.member(A, "draining")
    most = 0
    for _ in range(200):
        most = max(most, len(world.runner.paused))
        await asyncio.sleep(0.01)
    assert most == room.AT_A_TIME
    assert world.released == []


@story(OF_B[0])
async def test_a_shard_that_comes_back_is_offered_ever_more_seldom(world: World) -> None:
    number = OF_B[0]
    slot, replica = world.runner.slots[number], world.replica(number)
    given: list[float] = []
    await asyncio.sleep(SETTLED_S)
    while len(given) < 8:
        await until(lambda: replica.releases > len(given), 1_000, 0.05)
        given.append(now_s())
        slot.led = replica.accepts = True
    pauses = [later - before for before, later in pairwise(given)]
    wanted = [1, 4, 16, 64, 256, 300, 300]
    assert pauses == pytest.approx(wanted, abs=0.5)


@story(OF_B[0])
async def test_one_that_stayed_away_for_long_is_offered_as_at_first(world: World) -> None:
    number = OF_B[0]
    slot, replica = world.runner.slots[number], world.replica(number)
    await until(lambda: replica.releases == 1, 1_000, 0.05)
    slot.led = replica.accepts = True
    await until(lambda: replica.releases == 2, 1_000, 0.05)
    slot.led = replica.accepts = True
    await until(lambda: replica.releases == 3, 1_000, 0.05)
    world.record(number, B)
    await asyncio.sleep(3 * room.AGAIN_MS_MAX / 1000)
    world.record(number, A)
    slot.led = replica.accepts = True
    began_s = now_s()
    await until(lambda: replica.releases == 4)
    assert now_s() - began_s < 1
