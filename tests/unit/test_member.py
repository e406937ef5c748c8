"""A node joins: the cluster's own record, its session, the watch, and the first placement."""

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest
from tests.sim.etcd import SimEtcd, SimMemory, Way
from tests.unit.cluster_kit import A, B, C, node_record, now_s, put, run, sim_etcd, until

from tickwheel.server.cluster.elect import Election
from tickwheel.server.cluster.member import PLACED_AT_ONCE, Member, Self, found, join
from tickwheel.server.cluster.peer_port import Member as Peer
from tickwheel.server.cluster.peer_port import Peers
from tickwheel.server.cluster.ports import Delete, Held, Put
from tickwheel.server.cluster.registry import (
    META,
    MemberRecord,
    MetaRecord,
    NodeRecord,
    ShardRecord,
    node_key,
    shard_key,
)
from tickwheel.server.cluster.tasks import Tasks
from tickwheel.server.cluster.view import View
from tickwheel.server.errors import FailedPrecondition, PermissionDenied
from tickwheel.server.message import NodeId

SHARDS = 8
MINE = MetaRecord("1" * 32, SHARDS, 3)
ALL = (A, B, C)


# --- joining ---


def test_the_first_node_makes_the_cluster_and_the_second_finds_it() -> None:
    async def story() -> None:
        etcd = sim_etcd()
        assert await join(etcd.port("a"), MINE) == MINE
        other = MetaRecord("2" * 32, SHARDS, 1)
        assert await join(etcd.port("b"), other) == MINE, "its uuid and its replicas count"

    run(story())


def test_of_many_that_come_at_once_one_makes_it() -> None:
    async def story() -> None:
        etcd = sim_etcd()
        wanted = [MetaRecord(str(n) * 32, SHARDS, 3) for n in range(5)]
        found = await asyncio.gather(*(join(etcd.port(f"n{m.cluster[0]}"), m) for m in wanted))
        assert len(set(found)) == 1
        assert found[0] in wanted

    run(story())


@pytest.mark.parametrize(
    "other", [MetaRecord("2" * 32, 9, 3), MetaRecord("2" * 32, SHARDS, 3, format=2)]
)
def test_a_node_that_is_set_up_for_another_cluster_is_refused(other: MetaRecord) -> None:
    async def story() -> None:
        etcd = sim_etcd()
        await join(etcd.port("a"), MINE)
        with pytest.raises(FailedPrecondition) as caught:
            await join(etcd.port("b"), other)
        assert caught.value.reason == "CLUSTER_DIFFERS"
        assert caught.value.metadata == {"shards": "8", "configured": str(other.shards)}

    run(story())


RESTORED = MetaRecord("3" * 32, SHARDS, 3, founder=A)


def test_a_restored_cluster_begins_once_and_only_where_there_is_none() -> None:
    async def story() -> None:
        etcd = sim_etcd()
        port = etcd.port("a")
        assert await found(port, RESTORED, "/tw/") == RESTORED
        assert await found(port, RESTORED, "/tw/") == RESTORED, "a start that was broken off"
        assert await join(etcd.port("b"), MINE) == RESTORED
        for there in (replace(RESTORED, cluster="4" * 32), MINE):
            other = sim_etcd()
            await join(other.port("b"), there)
            with pytest.raises(
                FailedPrecondition, match=r"below /tw/.* another --cluster"
            ) as caught:
                await found(other.port("a"), RESTORED, "/tw/")
            assert caught.value.reason == "CLUSTER_EXISTS"
            assert caught.value.metadata["cluster"] == there.cluster

    run(story())


def test_records_of_shards_alone_are_a_cluster_too() -> None:
    async def story() -> None:
        etcd = sim_etcd()
        await put(etcd.port("b"), shard_key(0), ShardRecord((B,)))
        with pytest.raises(FailedPrecondition, match="etcdctl del --prefix /tw/"):
            await found(etcd.port("a"), RESTORED, "/tw/")
        assert META not in etcd.store.items

    run(story())


# --- one node ---


class FakeElection:
    def __init__(self) -> None:
        self.stopped = False
        self.held: list[int] = []
        self.lost = 0
        self.looks = 0

    def session_held(self, held: Held) -> None:
        self.held.append(held.create_revision)

    def session_lost(self) -> None:
        self.lost += 1

    def consider_all(self) -> None:
        self.looks += 1


class FakePeers:
    def __init__(self) -> None:
        self.sessions: list[int] = []
        self.members: dict[NodeId, Peer] = {}

    def set_session(self, session: int) -> None:
        self.sessions.append(session)

    def set_members(self, members: dict[NodeId, Peer]) -> None:
        self.members = members


class Node:
    """A member with all that it tells."""

    def __init__(
        self, name: NodeId, etcd: SimEtcd, record: NodeRecord | None = None, meta: MetaRecord = MINE
    ) -> None:
        self.name = name
        self.view = View()
        self.election = FakeElection()
        self.peers = FakePeers()
        self.faults: list[BaseException] = []
        self.held: list[int] = []
        self.changes = 0
        self.memory = SimMemory()
        self.port = etcd.port(name[0])
        myself = Self(
            id=name, record=record or node_record(name), ttl_s=3, healthy=lambda: True,
            memory=self.memory,
        )  # fmt: skip
        self.member = Member(
            myself, meta, self.port, self.view, election=cast("Election", self.election),
            peers=cast("Peers", self.peers), tasks=Tasks(self.faults.append), hold=self.held.append,
            promised=lambda number: 100 + number,
        )  # fmt: skip
        self.member.on_change(self._changed)

    def _changed(self) -> None:
        self.changes += 1


def told(
    *names: NodeId,
    tell: Any,
    records: dict[NodeId, NodeRecord] | None = None,
    meta: MetaRecord | None = None,
) -> None:
    """Start these nodes, tell the story, stop them; nothing unforeseen may have happened."""

    async def story() -> None:
        etcd = sim_etcd()
        nodes = {name: Node(name, etcd, (records or {}).get(name), meta or MINE) for name in names}
        try:
            await tell(etcd, nodes)
        finally:
            for node in nodes.values():
                await node.member.stop()
        assert [node.faults for node in nodes.values()] == [[] for _ in nodes]

    run(story())


def records(etcd: SimEtcd) -> dict[int, ShardRecord]:
    view = View()
    for number in range(MINE.shards):
        if shard_key(number) in etcd.store.items:
            view.took(number, etcd.store.items[shard_key(number)])
    return {number: seen.record for number, seen in view.shards.items()}


def start(nodes: dict[NodeId, Node]) -> None:
    for node in nodes.values():
        node.member.start()


def test_a_node_registers_and_says_so() -> None:
    async def tell(etcd: SimEtcd, nodes: dict[NodeId, Node]) -> None:
        start(nodes)
        node = nodes[A]
        await until(lambda: A in node.view.nodes)
        session = etcd.store.items[node_key(A)].create_revision
        assert node.election.held == node.peers.sessions == [session]
        assert node.view.nodes[A].record == node_record(A)
        assert node.election.looks == node.changes > 0

    told(A, tell=tell)


def test_a_session_that_is_lost_is_another_one_afterwards() -> None:
    async def tell(etcd: SimEtcd, nodes: dict[NodeId, Node]) -> None:
        start(nodes)
        node = nodes[A]
        await until(lambda: node.election.held)
        etcd.end_lease(node.memory.lease)
        await until(lambda: len(node.election.held) == 2)
        assert node.election.lost == 1
        assert node.peers.sessions == node.election.held
        assert node.election.held[0] < node.election.held[1]

    told(A, tell=tell)


def test_the_others_are_whom_it_talks_to() -> None:
    async def tell(etcd: SimEtcd, nodes: dict[NodeId, Node]) -> None:
        start(nodes)
        await until(lambda: len(nodes[A].peers.members) == 2)
        session = etcd.store.items[node_key(B)].create_revision
        assert nodes[A].peers.members[B] == Peer("p:1", session)
        assert A not in nodes[A].peers.members
        await nodes[C].member.stop()
        await until(lambda: sorted(nodes[A].peers.members) == [B])

    told(A, B, C, tell=tell)


def test_leaving_is_told_at_once() -> None:
    async def tell(etcd: SimEtcd, nodes: dict[NodeId, Node]) -> None:
        start(nodes)
        await until(lambda: B in nodes[A].view.nodes)
        began_s = now_s()
        await nodes[B].member.stop()
        await until(lambda: B not in nodes[A].view.nodes)
        assert now_s() - began_s < 0.1
        assert nodes[B].election.stopped

    told(A, B, tell=tell)


def test_a_node_that_never_started_may_be_stopped() -> None:
    async def tell(_etcd: SimEtcd, _nodes: dict[NodeId, Node]) -> None:
        return

    told(A, tell=tell)


def test_what_it_holds_is_opened() -> None:
    """As voter or learner; other shards are none of its business."""

    async def tell(etcd: SimEtcd, nodes: dict[NodeId, Node]) -> None:
        operator = etcd.port("operator")
        voters = {0: ShardRecord((A, B)), 1: ShardRecord((B,), (A,)), 2: ShardRecord((B, C))}
        for number, record in voters.items():
            await put(operator, shard_key(number), record)
        start(nodes)
        await until(lambda: nodes[A].held)
        assert set(nodes[A].held) == {0, 1}

    told(A, tell=tell)


def test_a_watch_that_is_refused_is_tried_again() -> None:
    async def tell(_etcd: SimEtcd, nodes: dict[NodeId, Node]) -> None:
        node = nodes[A]
        real = node.port.watch
        left = [PermissionDenied("the password changed")] * 3

        async def watch(prefix: str, from_revision: int = 0) -> Any:
            if left:
                raise left.pop()
            async for news in real(prefix, from_revision):
                yield news

        node.port.watch = watch  # type: ignore[method-assign]
        start(nodes)
        await until(lambda: A in node.view.nodes)
        assert now_s() >= 1.5

    told(A, tell=tell)


def test_a_record_that_nobody_can_read_stops_no_node() -> None:
    async def tell(etcd: SimEtcd, nodes: dict[NodeId, Node]) -> None:
        operator = etcd.port("operator")
        await operator.transact([], [Put("shards/0", b"{}"), Put("members/x", b'{"state":"odd"}')])
        start(nodes)
        await asyncio.sleep(3)
        await operator.transact([], [Delete("shards/0"), Delete("members/x")])
        await until(lambda: A in nodes[A].view.nodes)

    told(A, tell=tell)


# --- the first placement ---


def test_the_first_placement_waits_for_hosts() -> None:
    async def tell(etcd: SimEtcd, nodes: dict[NodeId, Node]) -> None:
        for name in (A, B):
            nodes[name].member.start()
        await asyncio.sleep(5)
        assert records(etcd) == {}
        nodes[C].member.start()
        await until(lambda: len(records(etcd)) == SHARDS)
        for record in records(etcd).values():
            assert (sorted(record.voters), record.epoch, record.leader) == ([A, B, C], 0, "")

    told(A, B, C, tell=tell)


def test_a_restored_cluster_is_placed_on_its_founder_alone() -> None:
    """However many others are there: they hold nothing, and could agree on that."""

    async def tell(etcd: SimEtcd, nodes: dict[NodeId, Node]) -> None:
        for name in (B, C, "d" * 32):
            nodes[name].member.start()
        await asyncio.sleep(5)
        assert records(etcd) == {}
        nodes[A].member.start()
        await until(lambda: len(records(etcd)) == SHARDS)
        for number, record in records(etcd).items():
            assert record == ShardRecord((A,), epoch=100 + number), "above all that its copy knows"
        await until(lambda: len(nodes[A].held) >= SHARDS)

    told(A, B, C, "d" * 32, tell=tell, meta=RESTORED)


def test_two_nodes_of_one_host_are_one_host() -> None:
    async def tell(etcd: SimEtcd, nodes: dict[NodeId, Node]) -> None:
        start(nodes)
        await asyncio.sleep(5)
        assert records(etcd) == {}
        await put(etcd.port("operator"), node_key("d" * 32), node_record("d" * 32))
        await until(lambda: len(records(etcd)) == SHARDS)
        for record in records(etcd).values():
            assert len({voter in (A, B) for voter in record.voters}) == 2
            assert not {A, B} <= set(record.voters)

    told(A, B, C, tell=tell, records={A: node_record(A, "one"), B: node_record(B, "one")})


def test_a_node_that_drains_is_no_place() -> None:
    async def tell(etcd: SimEtcd, nodes: dict[NodeId, Node]) -> None:
        await put(etcd.port("operator"), f"members/{C}", MemberRecord("draining"))
        start(nodes)
        await asyncio.sleep(5)
        assert records(etcd) == {}
        await put(etcd.port("operator"), f"members/{C}", MemberRecord("active"))
        await until(lambda: len(records(etcd)) == SHARDS)

    told(A, B, C, tell=tell)


def test_what_has_a_record_keeps_it() -> None:
    async def tell(etcd: SimEtcd, nodes: dict[NodeId, Node]) -> None:
        there = ShardRecord((A, B), (), 9, "", released=False)
        await put(etcd.port("operator"), shard_key(3), there)
        start(nodes)
        await until(lambda: len(records(etcd)) == SHARDS)
        assert records(etcd)[3] == there

    told(A, B, C, tell=tell)


def test_with_every_record_there_nothing_is_placed() -> None:
    async def tell(etcd: SimEtcd, nodes: dict[NodeId, Node]) -> None:
        operator = etcd.port("operator")
        for number in range(SHARDS):
            await put(operator, shard_key(number), ShardRecord((A,)))
        start(nodes)
        await asyncio.sleep(3)
        assert all(etcd.store.items[shard_key(n)].version == 1 for n in range(SHARDS))

    told(A, tell=tell)


def test_a_placement_that_etcd_does_not_answer_is_tried_again() -> None:
    async def tell(etcd: SimEtcd, nodes: dict[NodeId, Node]) -> None:
        start(nodes)
        await until(lambda: all(node.election.held for node in nodes.values()))
        left = [Way.NO_ANSWER, Way.RESET, Way.NO_REQUEST, Way.LATE] * 2
        etcd.draw_way = lambda: left.pop(0) if left else Way.FINE  # type: ignore[method-assign]
        await until(lambda: len(records(etcd)) == SHARDS)
        await asyncio.sleep(20)
        assert all(etcd.store.items[shard_key(n)].version == 1 for n in range(SHARDS))

    told(A, B, C, tell=tell)


def test_several_nodes_place_very_many_shards_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    many = MetaRecord("1" * 32, 3 * PLACED_AT_ONCE + 5, 3)
    monkeypatch.setattr("tests.unit.test_member.MINE", many)

    async def tell(etcd: SimEtcd, nodes: dict[NodeId, Node]) -> None:
        start(nodes)
        await until(lambda: len(records(etcd)) == many.shards)
        await until(lambda: all(len(n.view.shards) == many.shards for n in nodes.values()))
        await asyncio.sleep(3)
        assert all(etcd.store.items[shard_key(n)].version == 1 for n in range(many.shards))
        assert len({record.voters[0] for record in records(etcd).values()}) == 3, "spread"

    told(A, B, C, tell=tell)


def test_the_clusters_record_is_one_key() -> None:
    async def story() -> None:
        etcd = sim_etcd()
        await join(etcd.port("a"), MINE)
        assert [item.key for item in (await etcd.port("b").list("")).items] == [META]

    run(story())
