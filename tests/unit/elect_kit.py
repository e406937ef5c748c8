"""Members of a cluster with elections over one simulated etcd, and replicas that lead when they are told to."""

import asyncio
from random import Random
from typing import Any

from tests.sim.etcd import SimEtcd, SimMemory
from tests.unit.cluster_kit import (
    A,
    B,
    C,
    FakeHost,
    follow,
    node_record,
    now_s,
    put,
    run,
    sim_etcd,
    until,
)

from tickwheel.server.cluster.elect import Election
from tickwheel.server.cluster.ports import Held, Registration
from tickwheel.server.cluster.registry import (
    ShardRecord,
    node_key,
    shard_key,
)
from tickwheel.server.cluster.tasks import Tasks
from tickwheel.server.cluster.view import View
from tickwheel.server.message import NodeId
from tickwheel.server.placement import Site, preference
from tickwheel.server.replica import Role
from tickwheel.server.turn import FenceFailed, Leadership, Released, SteppedDown, Why

SHARD = 7
TOLD_MAX = 100
SITES = {name: Site(f"host-{name[0]}", "") for name in (A, B, C)}
FIRST, SECOND, THIRD = preference(SHARD, SITES)


class FakeReplica:
    """Leads as soon as it is told to; `fails` has its fence fail instead, `takes_a_copy` has it not even begin."""

    def __init__(self, member: "Member") -> None:
        self.role = Role.FOLLOWER
        self.epoch = 0
        self.fails = self.takes_a_copy = False
        self.told: list[Leadership] = []
        self._member = member

    @property
    def leads(self) -> bool:
        return self.role == Role.LEADING

    @property
    def stands(self) -> bool:
        return self.role not in {Role.FOLLOWER, Role.LEADING}

    def led(self, record: Leadership, _now_ms: int) -> None:
        assert record.leader == self._member.name
        self.told.append(record)
        assert len(self.told) < TOLD_MAX, "told again and again"
        if self.takes_a_copy:
            self._member.later(FenceFailed(record.epoch))
            return
        self.epoch, self.role = record.epoch, Role.LEADING
        if self.fails:
            self.role = Role.FOLLOWER
            self._member.later(FenceFailed(record.epoch))

    def following(self, record: Leadership, _now_ms: int) -> None:
        if record.epoch >= self.epoch:
            self.role = Role.FOLLOWER
            self._member.later(SteppedDown(self.epoch, Why.ANOTHER_LEADS, record.leader))

    def step_down(self, detail: str) -> None:
        self.role = Role.FOLLOWER
        self._member.later(SteppedDown(self.epoch, Why.GAVE_UP, detail))

    def release(self) -> None:
        self.role = Role.RELEASED
        self._member.later(Released(self.epoch))


class Clock:
    """The loop's virtual time; the wall's is a little ahead."""

    def now_ms(self) -> int:
        return self.monotonic_ms() + 5

    def monotonic_ms(self) -> int:
        return round(self.monotonic() * 1000)

    def monotonic(self) -> float:
        return now_s()


class Member:
    """One node: its session, its watch, its election, and a replica of one shard."""

    def __init__(self, name: NodeId, etcd: SimEtcd, *, ttl_s: int = 3) -> None:
        self.name = name
        self.view = View()
        self.host = FakeHost()
        self.port = etcd.port(name[0])
        self.faults: list[BaseException] = []
        self.tasks = Tasks(self.faults.append)
        self.replica = FakeReplica(self)
        self.host.replicas[SHARD] = self.replica
        self.host.acting.add(SHARD)
        self.election = Election(
            name, self.port, self.view, self.host.as_host(), clock=Clock(), rng=Random(3),
            spawn=self.tasks.spawn,
        )  # fmt: skip
        self.memory = SimMemory()
        self.session = self.port.session(
            Registration(
                key=node_key(name), value=node_record(name).encode(), ttl_s=ttl_s,
                healthy=lambda: True, on_held=self._held, on_lost=self._lost, memory=self.memory,
            )
        )  # fmt: skip
        self.tasks.spawn(follow(self.port, self.view, self.election.consider_all))

    def _held(self, held: Held) -> None:
        self.election.session_held(held)

    def _lost(self, _held: Held) -> None:
        self.election.session_lost()

    def later(self, event: Any) -> None:
        """As the host does: in a turn of its own."""
        asyncio.get_running_loop().call_soon(self.election.event, SHARD, event)

    async def stop(self) -> None:
        self.election.stopped = True
        self.session.kill()
        await self.tasks.cancel()
        assert self.faults == []


class World:
    """Some members, and what the record says."""

    def __init__(self, *names: NodeId, ttl_s: int = 3) -> None:
        self.etcd = sim_etcd()
        self.operator = self.etcd.port("operator")
        self.members = {name: Member(name, self.etcd, ttl_s=ttl_s) for name in names}

    def __getitem__(self, name: NodeId) -> Member:
        return self.members[name]

    @property
    def record(self) -> ShardRecord:
        item = self.etcd.store.items[shard_key(SHARD)]
        view = View()
        view.took(SHARD, item)
        return view.shards[SHARD].record

    async def place(self, record: ShardRecord) -> None:
        """When all are registered: the shard's first record."""
        await until(lambda: all(m.election.held for m in self.members.values()))
        await until(
            lambda: all(len(m.view.nodes) == len(self.members) for m in self.members.values())
        )
        await put(self.operator, shard_key(SHARD), record)

    async def led_by(self, name: NodeId) -> ShardRecord:
        """Wait until a node leads, and knows it."""
        await until(lambda: self.record.leader == name and self[name].replica.leads)
        return self.record


def story(world_of: tuple[NodeId, ...], tell: Any) -> None:
    """Run it, and hold at its end that nothing unforeseen happened."""

    async def whole() -> None:
        world = World(*world_of)
        await tell(world)
        for member in world.members.values():
            await member.stop()

    run(whole())


def named(leader: NodeId, session: int = 0, epoch: int = 4, voters: Any = (A, B, C)) -> ShardRecord:
    return ShardRecord(voters, (), epoch, leader, session, released=False)


FREE = ShardRecord((A, B, C))
ALL = (A, B, C)
