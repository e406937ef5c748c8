"""Nodes of a cluster in one process: each with the calls as its door has them, over fake schedulers, on virtual time.

Nodes("a", "b")["a"].call("GetJob", request)     leaders = {shard: name, or "" for nobody}
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from itertools import count
from typing import Any, TypeVar

from google.protobuf.message import Message
from tests.bad_input import PARENT, good_create, good_job
from tests.fake_scheduler import NOW_MS, TAKES_ALL, FakeScheduler
from tests.sim.loop import VirtualLoop

from tickwheel.server.api import limits
from tickwheel.server.api.convert import Converter
from tickwheel.server.api.grpc import Exchange
from tickwheel.server.api.messages import request_class
from tickwheel.server.cluster import peer_status
from tickwheel.server.command import Create, JobView, NamedCommand, Redrive, Reply, Run
from tickwheel.server.errors import NotLeader, TickwheelError
from tickwheel.server.model import Execution, Ms
from tickwheel.server.placement import shard_of
from tickwheel.server.query import (
    ExecutionHit,
    ExecutionQuery,
    GroupBy,
    Grouping,
    JobCounts,
    JobHit,
    JobQuery,
    Key,
)
from tickwheel.server.topology import NodeInfo, ShardInfo, Topology
from tickwheel.v1 import job_service_pb2 as pb

T = TypeVar("T")
SHARDS = 8


def run(work: Coroutine[Any, Any, T]) -> T:
    """On virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


def names_on(shard: int, wanted: int = 1, *, namespace: str = "acme") -> list[str]:
    """Jobs whose shard is this one."""
    found = (f"j{n}" for n in count() if shard_of(namespace, f"j{n}", SHARDS) == shard)
    return [next(found) for _ in range(wanted)]


def create_of(job: str, **more: Any) -> pb.CreateJobRequest:
    """A create that every node takes."""
    request = good_create()
    request.job_id = job
    request.MergeFrom(pb.CreateJobRequest(**more))
    return request


class Sharded(FakeScheduler):
    """Answers for the shards that its node leads, and in the order of the whole list."""

    def __init__(self, node: "Node") -> None:
        super().__init__()
        self._node = node
        self.consistent: list[bool] = []
        self.batches: list[int] = []

    def _led(self, namespace: str, job: str) -> bool:
        return shard_of(namespace, job, SHARDS) in self._node.led()

    async def call_many(self, commands: Sequence[NamedCommand]) -> list[Reply | TickwheelError]:
        self.batches.append(len(commands))
        mine = [c for c in commands if self._led(c.namespace, c.name)]
        answers = iter(await super().call_many(mine))
        return [next(answers) if c in mine else NotLeader("ask its leader") for c in commands]

    def _create(self, key: tuple[str, str], command: Create) -> JobView:
        known = key in self.jobs
        view = super()._create(key, command)
        if known or command.validate_only:
            return view
        view = view._replace(status=view.status._replace(create_ms=NOW_MS + self._node.tick()))
        self.jobs[key] = view
        return view

    def _start(self, view: JobView, command: Run | Redrive) -> JobView:
        answer = super()._start(view, command)
        self.executions[-1] = self.executions[-1]._replace(create_ms=NOW_MS + self._node.tick())
        return answer

    async def get_job(self, namespace: str, name: str) -> JobView:
        if not self._led(namespace, name):
            raise NotLeader("ask its leader")
        return await super().get_job(namespace, name)

    async def list_jobs(
        self, query: JobQuery, *, consistent: bool
    ) -> tuple[list[JobView], list[JobHit], Ms]:
        self.job_queries.append(query)
        self.consistent.append(consistent)
        await asyncio.sleep(0)
        pairs = [
            (Key(view.status.create_ms, view.row, shard_of(*key, SHARDS)), view)
            for key, view in self.jobs.items()
            if self._led(*key)
        ]
        found = sorted(p for p in pairs if query.after is None or p[0] > query.after)
        found = found[: query.limit]
        views = [view for _, view in found]
        return views, [JobHit(key, view.job) for key, view in found], self._node.read_ms

    async def count_jobs(
        self, query: JobQuery, grouping: Grouping, *, consistent: bool
    ) -> tuple[JobCounts, Ms]:
        self.groupings.append(grouping)
        self.consistent.append(consistent)
        await asyncio.sleep(0)
        if self.counts or grouping.by != GroupBy.NONE:
            return self.counts, self._node.read_ms
        return Counter(0 for key in self.jobs if self._led(*key)), self._node.read_ms

    async def list_executions(
        self, query: ExecutionQuery, *, consistent: bool
    ) -> tuple[list[tuple[ExecutionHit, Execution]], Ms]:
        self.execution_queries.append(query)
        self.consistent.append(consistent)
        if query.job and not self._led(query.namespace, query.job):
            raise NotLeader("ask its leader")
        pairs = [
            (Key(e.create_ms, row, shard_of(e.namespace, e.job, SHARDS)), e)
            for row, e in enumerate(self.executions)
            if query.job in ("", e.job)
        ]
        found = sorted(
            (p for p in pairs if query.after is None or p[0] < query.after), reverse=True
        )
        hits = [(ExecutionHit(key, b""), execution) for key, execution in found[: query.limit]]
        return hits, self._node.read_ms

    def log_of(self, shard: int) -> list[Execution] | None:
        """Every node has every log, and speaks for those that it leads."""
        return self._node.logs[shard] if shard in self._node.led() else None


class Node:
    """One node: implements `ClusterPort`, and has the door's calls."""

    def __init__(self, name: str, nodes: "Nodes") -> None:
        self.name = name
        self.read_ms = NOW_MS
        self.scheduler = Sharded(self)
        self.forwarded: list[tuple[str, str]] = []
        self.request_bytes: list[int] = []
        self.answer_bytes: list[int] = []
        self.faults: list[TickwheelError] = []
        self._nodes = nodes
        self.logs = nodes.logs
        converter = Converter(TAKES_ALL, body_bytes_max=limits.BODY_BYTES_MAX)
        self.exchange = Exchange.make(self.scheduler, converter, self)

    async def call(self, method: str, request: Message) -> Any:
        """A call of a client of this node."""
        name = f"tickwheel.v1.JobService.{method}"
        data = request.SerializeToString()
        return await self.exchange.calls[name](request_class(name).FromString(data))

    def tick(self) -> int:
        """The order of things over all nodes."""
        return next(self._nodes.ticks)

    # --- ClusterPort ---

    @property
    def shard_count(self) -> int:
        return SHARDS

    def led(self) -> tuple[int, ...]:
        leaders = self._nodes.leaders
        return tuple(
            n for n, who in leaders.items() if who == self.name and n not in self._nodes.late
        )

    def leader_of(self, shard: int) -> str:
        leader = self._nodes.leaders[shard]
        if not leader:
            raise NotLeader("nobody leads", reason="LEADERLESS", retry_after_ms=200)
        return "" if leader == self.name else leader

    def others(self) -> tuple[str, ...]:
        return tuple(sorted(set(self._nodes.leaders.values()) - {"", self.name}))

    async def forward(self, node: str, method: str, request: bytes) -> bytes:
        """As between real nodes: errors travel as statuses."""
        self.forwarded.append((node, method.rpartition(".")[2]))
        self.request_bytes.append(len(request))
        await asyncio.sleep(0.001)
        try:
            if self._nodes[node].faults:
                raise self._nodes[node].faults.pop(0)
            answer = await self._nodes[node].exchange.answer(method, request)
        except TickwheelError as error:
            raise peer_status.decode(peer_status.encode(error)) from None
        self.answer_bytes.append(len(answer))
        return answer

    def topology(self) -> Topology:
        raise NotImplementedError

    def watch(self, after_revision: int) -> AsyncIterator[Topology]:
        raise NotImplementedError

    async def drain(self, node: str, *, undo: bool) -> NodeInfo:
        raise NotImplementedError

    async def move(self, shard: int, node: str, epoch: int) -> ShardInfo:
        raise NotImplementedError


class Nodes(dict[str, Node]):
    """A cluster. `leaders` may be changed at any time; shards in `late` are named but not served yet."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.leaders = {number: names[number % len(names)] for number in range(SHARDS)}
        self.late: set[int] = set()
        self.ticks = count()
        self.logs: dict[int, list[Execution]] = {number: [] for number in range(SHARDS)}
        for name in names:
            self[name] = Node(name, self)

    def later(self, seconds: float, **leaders: str) -> None:
        """Change leaders in a while: `later(2, s3="b")`."""
        found = {int(name[1:]): node for name, node in leaders.items()}
        asyncio.get_running_loop().call_later(seconds, self.leaders.update, found)

    async def fill(self, jobs: int) -> list[str]:
        """Make so many jobs over all shards, through the first node; their names in the order of the list."""
        first = next(iter(self.values()))
        for number in range(jobs):
            await first.call("CreateJob", create_of(f"n{number}"))
        return [f"{PARENT}/jobs/n{number}" for number in range(jobs)]


__all__ = ["PARENT", "SHARDS", "Node", "Nodes", "create_of", "good_job", "names_on", "run"]
