"""The cluster for the doors: the map and its news, who leads what, and what an operator may change."""

import asyncio
from typing import Any, cast

import pytest
from tests.unit.cluster_kit import A, B, C, FakeHost, Seen, now_s, run, sim_etcd, until
from tests.unit.elect_kit import Clock

from tickwheel.server.cluster import control as room
from tickwheel.server.cluster.control import Control
from tickwheel.server.cluster.peer_port import Peers
from tickwheel.server.cluster.ports import Held
from tickwheel.server.cluster.registry import MetaRecord, MoveRecord, ShardRecord
from tickwheel.server.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    NotLeader,
    Unavailable,
)
from tickwheel.server.topology import Standing, Topology


class FakePeers:
    async def forward(self, peer: str, method: str, request: bytes, timeout_s: float) -> bytes:
        return f"{peer[0]} {method} {len(request)} {timeout_s:g}".encode()


class World:
    """Node a of three. Shard 0 is led by a, 1 by b, 2 by nobody."""

    def __init__(self) -> None:
        self.view = Seen()
        self.sessions = {name: self.view.node(name) for name in (A, B, C)}
        for number, leader in ((0, A), (1, B), (2, "")):
            self.led_by(number, leader, epoch=4)
        self.led: list[int] = [0]
        self.etcd = sim_etcd()
        self.port = self.etcd.port(A)
        self.held: Held | None = Held(7, self.sessions[A], 3_600_000)
        self.etcd.store.grant(3_600, self.held.lease, now_s())
        self.control = Control(
            A, MetaRecord("c" * 32, 3, 3), self.view, FakeHost().as_host(), etcd=self.port,
            peers=cast("Peers", FakePeers()), clock=Clock(), led=lambda: tuple(self.led),
            held=lambda: self.held,
        )  # fmt: skip

    def led_by(self, number: int, leader: str, epoch: int = 5) -> None:
        session = self.sessions.get(leader, 0)
        self.view.shard(number, ShardRecord((A, B, C), (), epoch, leader, session, released=False))

    def standings(self) -> list[Standing]:
        return [shard.standing for shard in self.control.topology().shards]

    async def key(self, key: str) -> Any:
        found = await self.port.get(key)
        return found and found.item.value


# --- the map ---


def test_the_map() -> None:
    async def story() -> None:
        world = World()
        world.view.member(B, "draining")
        world.view.member("d" * 32, "removed")
        found = world.control.topology()
        assert (found.cluster, found.shard_count, found.read_ms) == ("c" * 32, 3, 5)
        assert found.revision == world.view.revision
        states = [(node.name[0], node.state, node.alive, node.host) for node in found.nodes]
        assert states == [
            ("a", "active", True, "host-a"),
            ("b", "draining", True, "host-b"),
            ("c", "active", True, "host-c"),
            ("d", "removed", False, ""),
        ]
        assert [shard.leader for shard in found.shards] == [A, B, ""]
        assert found.shards[0].voters == (A, B, C)
        assert world.control.shard_count == 3

    run(story())


def test_where_shards_stand() -> None:
    async def story() -> None:
        world = World()
        assert world.standings() == [Standing.SERVING, Standing.SERVING, Standing.LEADERLESS]
        world.led.clear()
        assert world.standings()[0] == Standing.STARTING, "named, and still loading"
        for number in range(3):
            world.view.wish(number, C)
        assert world.standings() == [Standing.MOVING, Standing.MOVING, Standing.LEADERLESS]
        world.view.gone(B)
        assert world.standings()[1] == Standing.LEADERLESS
        assert world.control.topology().shards[1].leader == ""
        world.view.node(B)
        assert world.standings()[1] == Standing.LEADERLESS, "another life of b"

    run(story())


def test_who_leads() -> None:
    async def story() -> None:
        world = World()
        assert world.control.leader_of(0) == ""
        assert world.control.leader_of(1) == B
        for number in (2, 9):
            with pytest.raises(NotLeader) as caught:
                world.control.leader_of(number)
            assert caught.value.reason == "LEADERLESS"
            assert caught.value.metadata == {"shard": str(number)}
            assert caught.value.retry_after_ms
        assert world.control.others() == (B,)
        assert world.control.led() == (0,)
        assert await world.control.forward(B, "m", b"xx") == b"b m 2 30"
        await world.control.forward(B, "scatter/ListJobs", b"")
        assert world.control.forwarded == 1, "a part of a list is not passed on"

    run(story())


# --- news ---


def watching(world: World, after: int) -> tuple[list[Topology], "asyncio.Task[None]"]:
    found: list[Topology] = []

    async def watch() -> None:
        async for topology in world.control.watch(after):
            found.append(topology)
            await asyncio.sleep(1.0)  # a slow reader

    return found, asyncio.get_running_loop().create_task(watch())


def test_a_watch_begins_with_what_is_and_gives_a_slow_reader_the_latest() -> None:
    async def story() -> None:
        world = World()
        found, task = watching(world, 0)
        await asyncio.sleep(0.1)
        first = world.view.revision
        assert [topology.revision for topology in found] == [first]
        for epoch in (6, 7, 8):
            world.led_by(1, C, epoch)
            world.control.changed()
        await asyncio.sleep(5)
        assert [topology.revision for topology in found] == [first, first + 3]
        assert found[-1].shards[1].epoch == 8
        world.control.changed()
        await asyncio.sleep(5)
        assert len(found) == 2, "nothing had changed"
        task.cancel()

    run(story())


def test_who_knows_the_map_hears_of_the_next_one() -> None:
    async def story() -> None:
        world = World()
        found, task = watching(world, world.view.revision)
        await asyncio.sleep(1)
        assert found == []
        world.led_by(2, B)
        world.control.changed()
        await asyncio.sleep(0.1)
        assert [topology.shards[2].leader for topology in found] == [B]
        task.cancel()

    run(story())


def test_a_shard_that_begins_to_be_served_is_news() -> None:
    async def story() -> None:
        world = World()
        world.led.clear()
        found, task = watching(world, 0)
        await asyncio.sleep(2)
        world.led.append(0)
        world.control.changed()
        await asyncio.sleep(2)
        standings = [topology.shards[0].standing for topology in found]
        assert standings == [Standing.STARTING, Standing.SERVING]
        task.cancel()

    run(story())


# --- draining ---


def test_a_node_is_drained_and_taken_back() -> None:
    async def story() -> None:
        world = World()
        assert (await world.control.drain(B, undo=False)).state == "draining"
        assert await world.key(f"members/{B}") == b'{"state":"draining"}'
        assert world.view.state(B) == "draining"
        assert (await world.control.drain(B, undo=True)).state == "active"
        assert await world.key(f"members/{B}") == b'{"state":"active"}'

    run(story())


def test_a_node_that_is_gone_may_be_drained_and_one_that_never_was_not() -> None:
    async def story() -> None:
        world = World()
        world.view.member(C, "active")
        world.view.gone(C)
        assert not (await world.control.drain(C, undo=False)).alive
        with pytest.raises(NotFound) as caught:
            await world.control.drain("d" * 32, undo=False)
        assert caught.value.reason == "NODE_NOT_FOUND"

    run(story())


def test_the_last_node_that_takes_shards_is_not_drained() -> None:
    async def story() -> None:
        world = World()
        world.view.gone(C)
        world.view.member(B, "draining")
        with pytest.raises(FailedPrecondition) as caught:
            await world.control.drain(A, undo=False)
        assert caught.value.reason == "NOWHERE_TO_GO"
        assert await world.key(f"members/{A}") is None
        await world.control.drain(A, undo=True)

    run(story())


# --- moving ---


def test_a_shard_is_moved() -> None:
    async def story() -> None:
        world = World()
        task = asyncio.get_running_loop().create_task(world.control.move(0, C, 4))
        await until(lambda: "moves/0" in world.etcd.store.items)
        assert await world.key("moves/0") == MoveRecord(C).encode()
        world.led_by(0, B)
        world.control.changed()
        await asyncio.sleep(1)
        assert not task.done(), "another one leads"
        world.led_by(0, C, 6)
        world.control.changed()
        shard = await task
        assert (shard.leader, shard.epoch) == (C, 6)
        assert await world.key("moves/0") is None

    run(story())


def test_a_shard_that_is_there_already_is_moved_at_once() -> None:
    async def story() -> None:
        world = World()
        assert (await world.control.move(1, B, 0)).leader == B
        assert now_s() < 1

    run(story())


@pytest.mark.parametrize(
    ("shard", "node", "epoch", "kind", "reason"),
    [
        (7, B, 0, NotFound, "SHARD_NOT_FOUND"),
        (0, B, 3, Aborted, "EPOCH_CHANGED"),
        (0, "d" * 32, 0, FailedPrecondition, "NOT_A_VOTER"),
        (1, C, 4, FailedPrecondition, "NOT_A_VOTER"),
    ],
)
def test_a_move_that_can_not_be(
    shard: int, node: str, epoch: int, kind: type[Exception], reason: str
) -> None:
    async def story() -> None:
        world = World()
        world.view.gone(C)
        with pytest.raises(kind) as caught:
            await world.control.move(shard, node, epoch)
        assert cast("NotFound", caught.value).reason == reason
        assert await world.key(f"moves/{shard}") is None

    run(story())


def test_a_move_that_takes_too_long_is_wished_for_no_more() -> None:
    async def story() -> None:
        world = World()
        with pytest.raises(DeadlineExceeded) as caught:
            await world.control.move(0, C, 0)
        assert caught.value.reason == "MOVE_SLOW"
        assert A in caught.value.message
        assert room.MOVE_S <= now_s() < room.MOVE_S + 1
        assert await world.key("moves/0") is None

    run(story())


def test_a_caller_who_goes_away_takes_the_wish_along() -> None:
    async def story() -> None:
        world = World()
        task = asyncio.get_running_loop().create_task(world.control.move(0, C, 0))
        await until(lambda: "moves/0" in world.etcd.store.items)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await world.key("moves/0") is None

    run(story())


def test_a_wish_ends_with_the_node_that_was_asked() -> None:
    async def story() -> None:
        world = World()
        task = asyncio.get_running_loop().create_task(world.control.move(0, C, 0))
        await until(lambda: "moves/0" in world.etcd.store.items)
        assert world.held is not None
        world.etcd.store.revoke(world.held.lease)
        assert await world.key("moves/0") is None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(story())


@pytest.mark.parametrize("held", [None, Held(8, 1, 3_000)])
def test_who_is_not_registered_wishes_for_nothing(held: Held | None) -> None:
    async def story() -> None:
        world = World()
        world.held = held
        with pytest.raises(Unavailable) as caught:
            await world.control.move(0, C, 0)
        assert caught.value.reason == "NOT_REGISTERED"
        assert await world.key("moves/0") is None

    run(story())


def test_two_who_wish_do_not_take_each_others_wish_back() -> None:
    async def story() -> None:
        world = World()
        spawn = asyncio.get_running_loop().create_task
        first = spawn(world.control.move(0, B, 0))
        await asyncio.sleep(1)
        second = spawn(world.control.move(0, C, 0))
        await asyncio.sleep(1)
        first.cancel()
        await asyncio.sleep(1)
        assert await world.key("moves/0") == MoveRecord(C).encode()
        world.led_by(0, C, 6)
        world.control.changed()
        assert (await second).leader == C

    run(story())


def test_a_move_that_is_done_is_done_though_the_wish_stays() -> None:
    async def story() -> None:
        world = World()
        task = asyncio.get_running_loop().create_task(world.control.move(0, C, 0))
        await until(lambda: "moves/0" in world.etcd.store.items)
        world.etcd.down = True
        world.led_by(0, C, 6)
        world.control.changed()
        assert (await task).leader == C

    run(story())


def test_a_wish_that_never_reached_etcd_is_an_error() -> None:
    async def story() -> None:
        world = World()
        world.etcd.down = True
        world.etcd.rng.random = lambda: 0.5  # type: ignore[method-assign]
        with pytest.raises(Unavailable):
            await world.control.move(0, C, 0)

    run(story())
