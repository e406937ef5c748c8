"""A cluster's records, and a node's view of them, for the tests of what is done about them.

Everything runs on virtual time, over the simulated etcd of tests/sim.
"""

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar, cast

from tests.sim.etcd import EtcdWeather, SimEtcd, SimPort
from tests.sim.loop import VirtualLoop

from tickwheel.server.cluster.host import Host
from tickwheel.server.cluster.ports import Batch, Etcd, Event, Item, Put
from tickwheel.server.cluster.registry import (
    MemberRecord,
    MoveRecord,
    NodeRecord,
    Record,
    ShardRecord,
    node_key,
    shard_key,
)
from tickwheel.server.cluster.view import View
from tickwheel.server.message import NodeId

T = TypeVar("T")
A, B, C = ("a" * 32, "b" * 32, "c" * 32)
CALM = EtcdWeather(delay_s=0.0, watch_delay_s=0.0)


def run(work: Coroutine[Any, Any, T], timeout_s: float = 300.0) -> T:
    """On virtual time, and no longer than so many virtual seconds; no timer and no task may fail unheard."""
    unheard: list[object] = []

    async def bounded() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: unheard.append(what))
        async with asyncio.timeout(timeout_s):
            found = await work
        assert unheard == []
        return found

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(bounded())


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def until(
    holds: Callable[[], object], timeout_s: float = 60.0, step_s: float = 0.005
) -> None:
    """Wait for a condition, in virtual time."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - bounded
            await asyncio.sleep(step_s)


def node_record(name: NodeId, host: str = "", zone: str = "") -> NodeRecord:
    host = host or f"host-{name[0]}"
    return NodeRecord("p:1", "g:2", "h:3", host, zone, "1.0", "2026a")


def item(key: str, record: Record, revision: int, create_revision: int = 0) -> Item:
    return Item(key, record.encode(), create_revision or revision, revision, 1, 7)


class Seen(View):
    """A view that the test writes into; each change is a revision."""

    def put(self, key: str, record: Record | None) -> int:
        """Returns the revision."""
        revision = self.revision + 1
        found = None if record is None else item(key, record, revision)
        self.take(Batch((Event(key, found, revision),), revision))
        return revision

    def node(self, name: NodeId, host: str = "", zone: str = "") -> int:
        """Registered; returns the session."""
        return self.put(node_key(name), node_record(name, host, zone))

    def gone(self, name: NodeId) -> None:
        self.put(node_key(name), None)

    def shard(self, number: int, record: ShardRecord) -> None:
        self.put(shard_key(number), record)

    def member(self, name: NodeId, state: str) -> None:
        self.put(f"members/{name}", MemberRecord(state))

    def wish(self, number: int, name: NodeId | None) -> None:
        self.put(f"moves/{number}", None if name is None else MoveRecord(name))


def sim_etcd(weather: EtcdWeather = CALM, seed: int = 1) -> SimEtcd:
    return SimEtcd(asyncio.get_running_loop(), Random(seed), weather)


async def follow(port: SimPort, view: View, *told: Callable[[], None]) -> None:
    """Keep a view up to date, as `Member` does."""
    async for news in port.watch(""):
        view.take(news)
        for tell in told:
            tell()


async def put(etcd: Etcd, key: str, record: Record) -> None:
    await etcd.transact([], [Put(key, record.encode())])


class FakeHost:
    """As much of a `Host` as the rooms around it ask for."""

    def __init__(self) -> None:
        self.replicas: dict[int, Any] = {}
        self.acting: set[int] = set()
        self.poked: list[int] = []

    def may_act(self, shard: int) -> bool:
        return shard in self.acting

    def poke(self, shard: int) -> None:
        self.poked.append(shard)

    def as_host(self) -> Host:
        return cast("Host", self)
