"""ClusterService without its transport: names in, the map out."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tickwheel.server.api import limits
from tickwheel.server.api.cluster import SPACE_S, ClusterDoor, parse_node, parse_shard
from tickwheel.server.cluster.registry import MemberState
from tickwheel.server.errors import InvalidArgument, ResourceExhausted
from tickwheel.server.topology import NodeInfo, NodeName, ShardInfo, Standing, Topology
from tickwheel.v1 import cluster_service_pb2 as pb

A, B = "a" * 32, "b" * 32
ANNA = NodeInfo(A, "active", True, "g:1", "h:2", "anna", "z1", "1.2", "2026a")
BERT = NodeInfo(B, "draining", False, "", "", "", "", "", "")
SHARDS = (
    ShardInfo(0, 4, A, (A, B), (), Standing.SERVING),
    ShardInfo(1, 7, "", (A,), (B,), Standing.LEADERLESS),
)
MAP = Topology("c" * 32, 2, (ANNA, BERT), SHARDS, 17, 1_500)


class Port:
    """A cluster that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    @property
    def shard_count(self) -> int:
        return 2

    def topology(self) -> Topology:
        return MAP

    async def watch(self, after_revision: int) -> AsyncIterator[Topology]:
        self.asked.append(("watch", after_revision))
        yield MAP
        yield MAP

    async def drain(self, node: NodeName, *, undo: bool) -> NodeInfo:
        self.asked.append(("drain", node, undo))
        return BERT

    async def move(self, shard: int, node: NodeName, epoch: int) -> ShardInfo:
        self.asked.append(("move", shard, node, epoch))
        return SHARDS[shard]

    def led(self) -> tuple[int, ...]:
        raise NotImplementedError

    def leader_of(self, shard: int) -> NodeName:
        raise NotImplementedError

    async def forward(self, node: NodeName, method: str, request: bytes) -> bytes:
        raise NotImplementedError

    def others(self) -> tuple[NodeName, ...]:
        raise NotImplementedError


async def test_the_map() -> None:
    shown = await ClusterDoor(Port()).get_cluster(pb.GetClusterRequest())
    assert (shown.uid, shown.shard_count, shown.revision) == ("c" * 32, 2, 17)
    assert shown.read_time.ToMilliseconds() == 1_500
    anna, bert = shown.nodes
    assert anna == pb.Node(
        name=f"nodes/{A}", state=pb.NODE_STATE_ACTIVE, alive=True, grpc_address="g:1",
        http_address="h:2", host="anna", zone="z1", version="1.2", tzdata_version="2026a",
    )  # fmt: skip
    assert (bert.state, bert.alive) == (pb.NODE_STATE_DRAINING, False)
    served, leaderless = shown.shards
    assert served == pb.Shard(
        name="shards/0", number=0, epoch=4, leader=f"nodes/{A}",
        voters=[f"nodes/{A}", f"nodes/{B}"], state=pb.SHARD_STATE_SERVING,
    )  # fmt: skip
    assert (leaderless.leader, list(leaderless.learners)) == ("", [f"nodes/{B}"])


async def test_the_map_as_it_changes() -> None:
    port = Port()
    door = ClusterDoor(port)
    request = pb.WatchClusterRequest(after_revision=16)
    found = [response.cluster.revision async for response in door.watch_cluster(request)]
    assert (found, port.asked) == ([17, 17], [("watch", 16)])


async def test_all_who_watch_are_told_one_message() -> None:
    door = ClusterDoor(Port())
    request = pb.WatchClusterRequest()
    first, second = door.watch_cluster(request), door.watch_cluster(request)
    await asyncio.gather(anext(first), anext(second))
    assert door._message(MAP) is door._message(MAP)
    for watch in (first, second):
        await watch.aclose()  # type: ignore[attr-defined]
    assert door._watchers == 0


async def test_there_is_an_end_of_watchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WATCHERS_MAX", 1)
    door = ClusterDoor(Port())
    request = pb.WatchClusterRequest()
    first = door.watch_cluster(request)
    await anext(first)
    with pytest.raises(ResourceExhausted) as caught:
        await anext(door.watch_cluster(request))
    assert caught.value.retry_after_ms
    assert len([response async for response in first]) == 1
    assert len([response async for response in door.watch_cluster(request)]) == 2


async def test_maps_do_not_follow_each_other_at_once() -> None:
    now = asyncio.get_running_loop().time
    told = [now() async for _ in ClusterDoor(Port()).watch_cluster(pb.WatchClusterRequest())]
    assert told[1] - told[0] >= SPACE_S


async def test_changes_reach_the_cluster() -> None:
    port = Port()
    door = ClusterDoor(port)
    node = await door.drain_node(pb.DrainNodeRequest(name=f"nodes/{B}", undo=True))
    assert node.name == f"nodes/{B}"
    shard = await door.move_shard(pb.MoveShardRequest(name="shards/1", node=f"nodes/{A}", epoch=7))
    assert shard.number == 1
    assert port.asked == [("drain", B, True), ("move", 1, A, 7)]


@pytest.mark.parametrize(
    "name", ["", A, "nodes/", f"nodes/{A}x", f"nodes/{A.upper()}", f"nodes/{A}\n"]
)
async def test_a_node_that_is_misspelled(name: str) -> None:
    port = Port()
    with pytest.raises(InvalidArgument) as caught:
        await ClusterDoor(port).drain_node(pb.DrainNodeRequest(name=name))
    (violation,) = caught.value.violations
    assert (violation.field, violation.reason) == ("name", "NODE_NAME")
    with pytest.raises(InvalidArgument) as caught:
        await ClusterDoor(port).move_shard(pb.MoveShardRequest(name="shards/0", node=name))
    assert caught.value.violations[0].field == "node"
    assert port.asked == []


@pytest.mark.parametrize(
    "name", ["", "1", "shards/", "shards/-1", "shards/2", "shards/x", "shards/\u0661", "shards/1\n"]
)
async def test_a_shard_that_is_misspelled(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await ClusterDoor(Port()).move_shard(pb.MoveShardRequest(name=name, node=f"nodes/{A}"))
    (violation,) = caught.value.violations
    assert (violation.field, violation.reason) == ("name", "SHARD_NAME")


def test_names_taken_apart() -> None:
    assert parse_node("name", f"nodes/{A}") == A
    assert parse_shard("shards/63", 64) == 63


@pytest.mark.parametrize("state", list(MemberState))
@pytest.mark.parametrize("standing", list(Standing))
async def test_every_state_has_a_number(state: MemberState, standing: Standing) -> None:
    node = NodeInfo(A, state, True, "", "", "", "", "", "")
    shard = ShardInfo(0, 1, A, (A,), (), standing)
    port = Port()
    port.topology = lambda: Topology("c", 1, (node,), (shard,), 1, 0)  # type: ignore[method-assign]
    shown = await ClusterDoor(port).get_cluster(pb.GetClusterRequest())
    assert pb.NodeState.Name(shown.nodes[0].state) == f"NODE_STATE_{state.name}"
    assert pb.ShardState.Name(shown.shards[0].state) == f"SHARD_STATE_{standing.name}"
