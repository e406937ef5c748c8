"""Floor 5. Lists and counts over all shards, whoever leads them: every leader answers for its own, one merges.

    ListJobs ──► this node's part + "scatter/ListJobs" of every other leader ──► merged by key, cut ──► a page

A part says which shards it speaks for. If one is missing, because it is between two leaders, all are asked again: a list
is whole or an error; so is a shard that changes hands while it is asked, or that two speak for: it might be counted twice.
A part has about as many bytes as a page may have, so that it fits into a message. A page token is a place in the order of the whole list, so it holds whoever leads what by then.

Must never import: rooms below but `command`, `errors`, `topology`.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from tickwheel.internal.v1.scatter_pb2 import ScatterPart
from tickwheel.server.api import limits
from tickwheel.server.api.lists import Item, Lists, Part, check_groups, executions_page, jobs_page
from tickwheel.server.api.messages import read_message, request_class, unknown_method
from tickwheel.server.api.route import AGAIN_S, NOT_TAKEN, PATIENCE_S
from tickwheel.server.api.times import timestamp
from tickwheel.server.errors import NotLeader, TickwheelError
from tickwheel.server.query import Key
from tickwheel.server.topology import SCATTER, ClusterPort
from tickwheel.v1 import execution_pb2, job_pb2
from tickwheel.v1 import job_service_pb2 as pb

GroupKey = tuple[str, int, int, int]

RUSH: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})
"""Of a list nothing remains, so an answer that did not come may be asked for again."""


class Gather:
    """Asks all leaders. `lists` answers for this node."""

    def __init__(self, cluster: ClusterPort, lists: Lists) -> None:
        self._cluster = cluster
        self._lists = lists
        self._local: dict[str, Callable[[Any], Awaitable[ScatterPart]]] = {
            "ListJobs": self._jobs_here,
            "ListExecutions": self._executions_here,
            "CountJobs": self._counts_here,
        }

    # --- the calls ---

    async def list_jobs(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        """A page of jobs of all shards."""
        if self._leads_all():
            whole = await self._lists.list_jobs(request)
            if self._leads_all():
                return whole
        parts = await self._parts("ListJobs", request)
        return jobs_page(request, [_part(part, job_pb2.Job) for part in parts])

    async def list_executions(self, request: pb.ListExecutionsRequest) -> pb.ListExecutionsResponse:
        """A page of executions of all jobs of a namespace; those of one job are on one shard, and not for here."""
        if self._leads_all():
            whole = await self._lists.list_executions(request)
            if self._leads_all():
                return whole
        parts = await self._parts("ListExecutions", request)
        return executions_page(request, [_part(part, execution_pb2.Execution) for part in parts])

    async def count_jobs(self, request: pb.CountJobsRequest) -> pb.CountJobsResponse:
        """Counts over all shards."""
        if self._leads_all():
            whole = await self._lists.count_jobs(request)
            if self._leads_all():
                return whole
        parts = await self._parts("CountJobs", request)
        counts = [pb.CountJobsResponse.FromString(part.counts) for part in parts]
        return _sum(counts, min(part.read_ms for part in parts))

    async def answer(self, method: str, request: bytes) -> bytes:
        """This node's part, for another node: `scatter/ListJobs` and its like. Raises Unimplemented, InvalidArgument."""
        name = method.removeprefix(SCATTER)
        if name not in self._local:
            raise unknown_method(method)
        part = await self._here(name, read_message(request_class(name), request))
        return part.SerializeToString()

    # --- asking all ---

    async def _parts(self, name: str, request: Any) -> list[ScatterPart]:
        """The parts of all leaders, no shard missing. Raises NotLeader when one stays away."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + PATIENCE_S
        while True:
            try:
                parts = await self._ask_all(name, request)
                wrong = self._not_once(parts)
                if not wrong:
                    return parts
                error: TickwheelError = NotLeader(
                    f"shards {wrong[:8]} have no leader at this moment, or are changing it",
                    reason="LEADERLESS",
                    retry_after_ms=round(1000 * AGAIN_S),
                )
            except TickwheelError as failed:
                if failed.reason not in NOT_TAKEN and failed.code not in RUSH:
                    raise
                error = failed
            if loop.time() > until_s:
                raise error
            await asyncio.sleep(AGAIN_S)

    async def _ask_all(self, name: str, request: Any) -> list[ScatterPart]:
        data = request.SerializeToString()
        here, *answers = await asyncio.gather(
            self._here(name, request),
            *(self._cluster.forward(n, SCATTER + name, data) for n in self._cluster.others()),
            return_exceptions=True,
        )
        for answer in (here, *answers):
            if isinstance(answer, BaseException):
                raise answer
        return [here, *(ScatterPart.FromString(answer) for answer in answers)]  # type: ignore[list-item,arg-type]

    def _not_once(self, parts: Sequence[ScatterPart]) -> list[int]:
        """Shards that not exactly one part speaks for."""
        spoken = Counter(shard for part in parts for shard in part.shards)
        return [shard for shard in range(self._cluster.shard_count) if spoken[shard] != 1]

    def _leads_all(self) -> bool:
        return len(self._cluster.led()) == self._cluster.shard_count

    async def _here(self, name: str, request: Any) -> ScatterPart:
        """This node's part, for the shards that it led before and after it looked. Raises NotLeader."""
        before = set(self._cluster.led())
        part = await self._local[name](request)
        if before != set(self._cluster.led()):
            raise NotLeader("shards came or went while they were looked at; ask again")
        part.shards.extend(sorted(before))
        return part

    async def _jobs_here(self, request: pb.ListJobsRequest) -> ScatterPart:
        return _scatter(await self._lists.jobs_part(request))

    async def _executions_here(self, request: pb.ListExecutionsRequest) -> ScatterPart:
        return _scatter(await self._lists.executions_part(request))

    async def _counts_here(self, request: pb.CountJobsRequest) -> ScatterPart:
        counts = await self._lists.count_jobs(request)
        read_ms = counts.read_time.ToMilliseconds()
        return ScatterPart(counts=counts.SerializeToString(), read_ms=read_ms)


def _scatter(part: Part) -> ScatterPart:
    """As a message, and not more of it than a page could show: whoever merges ends the page there at the latest."""
    scattered = ScatterPart(read_ms=part.read_ms)
    size_bytes = 0
    for item in part.items:
        if scattered.items and size_bytes > limits.PAGE_BYTES_MAX:
            break
        data = item.message.SerializeToString()
        size_bytes += len(data)
        scattered.items.add(
            create_ms=item.key.create_ms, row=item.key.row, shard=item.key.shard, message=data
        )
    return scattered


def _part(part: ScatterPart, kind: type[Any]) -> Part:
    items = [
        Item(Key(item.create_ms, item.row, item.shard), kind.FromString(item.message))
        for item in part.items
    ]
    return Part(items, part.read_ms)


def _sum(counts: Sequence[pb.CountJobsResponse], read_ms: int) -> pb.CountJobsResponse:
    """The groups of all parts, added up, in the order of their keys. Raises InvalidArgument when they are too many."""
    groups: dict[GroupKey, pb.JobCount] = {}
    for part in counts:
        for group in part.counts:
            found = groups.setdefault(_group_key(group), group)
            if found is not group:
                found.count += group.count
    check_groups(len(groups))
    return pb.CountJobsResponse(
        read_time=timestamp(read_ms),
        total_count=sum(part.total_count for part in counts),
        counts=[group for _, group in sorted(groups.items())],
    )


def _group_key(group: pb.JobCount) -> GroupKey:
    """Of the fields one is set at most; numbers and texts are never in one answer."""
    return (
        group.label_value, group.state, group.last_outcome,
        group.bucket_time.ToMilliseconds(),
    )  # fmt: skip
