"""Floor 5. Any node answers any call: one that another node has to answer is forwarded to it, once and never further.

    a job's call      name ──► shard ──► leader: here, or forward the request as it came
    BatchCreateJobs   requests by leader ──► a sub-batch each ──► results in their places
    lists, counts     every node that leads something answers for its shards ──► `gather`

While a shard is between two leaders a call waits for the next one, up to `PATIENCE_S`: nothing was done for it yet. Once
it was handed to a leader, only an answer that says NOT_LEADER, or that the leader was not reached, lets it be tried again.

Must never import: rooms below but `command`, `errors`, `placement`, `topology`.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo

from tickwheel.internal.v1.unread_pb2 import UnreadBatch, UnreadCreate
from tickwheel.server.api import names
from tickwheel.server.api.creates import Creator, check_size
from tickwheel.server.api.errors import to_status
from tickwheel.server.api.messages import (
    BATCH,
    SERVICE,
    read_message,
    request_class,
    response_class,
    unknown_method,
)
from tickwheel.server.errors import NotLeader, TickwheelError
from tickwheel.server.placement import shard_of
from tickwheel.server.topology import ClusterPort, NodeName
from tickwheel.v1 import job_service_pb2 as pb

if TYPE_CHECKING:
    from tickwheel.server.api.creates import Results

T = TypeVar("T")
M = TypeVar("M", bound=Message)
Call = Callable[[Any], Awaitable[Message]]
JobName = tuple[str, str]

PATIENCE_S: Final = 8.0
"""Longer than a fail-over takes."""

AGAIN_S: Final = 0.05
NOT_TAKEN: Final = frozenset({"NOT_LEADER", "LEADERLESS", "PEER_UNREACHABLE", "PEER_REFUSED"})
"""Reasons that say that nothing was done, because whoever was asked does not lead the shard, or never heard of it."""

SHARE_BYTES_MAX: Final = 4 << 20
"""Of one message with creates for another node, but for the last one in it: between nodes a message may have 8 MiB."""

CHANGED: Final = frozenset(SERVICE + name for name in ("CreateJob", "UpdateJob", "ValidateJob"))
"""Calls that write defaults and times into the request when they begin; if the shard was lost by then, the next leader
has to get what the client sent."""


def _by_name(request: Any) -> JobName:
    return names.parse_job(request.name)


def _by_parent(request: pb.CreateJobRequest) -> JobName:
    namespace = names.parse_namespace(request.parent)
    return namespace, job_id_of(namespace, request)


def job_id_of(namespace: str, request: pb.CreateJobRequest | UnreadCreate) -> str:
    """The job that a create will make. A name drawn here is written into the request: it decides the shard."""
    if not request.job_id and not request.request_id:
        request.job_id = names.random_job_id()
    return request.job_id or names.generated_job_id(namespace, request.request_id)


def _by_trial(request: pb.ValidateJobRequest) -> JobName:
    """A trial is a create that changes nothing, so the shard's leader has to say what it would do."""
    namespace = names.parse_namespace(request.parent)
    request.job_id = request.job_id or names.random_job_id()
    return namespace, request.job_id


_KEYS: Final[dict[str, Callable[[Any], JobName]]] = {
    "CreateJob": _by_parent,
    "ValidateJob": _by_trial,
    "PreviewSchedule": lambda request: (
        names.parse_job(request.job, "job") if request.job else ("", "")
    ),
    "GetJob": _by_name,
    "UpdateJob": lambda request: names.parse_job(request.job.name, "job.name"),
    "DeleteJob": _by_name,
    "PauseJob": _by_name,
    "ResumeJob": _by_name,
    "CancelJob": _by_name,
    "RunJob": _by_name,
    "ListExecutions": lambda request: names.parse_jobs(request.parent),
    "GetExecution": lambda request: names.parse_execution(request.name)[:2],
    "RetryExecution": lambda request: names.parse_execution(request.name)[:2],
}


class Router:
    """Sends calls where they are answered. `table` holds the calls as this node answers them itself."""

    def __init__(self, cluster: ClusterPort, creator: Creator, table: dict[str, Call]) -> None:
        self._cluster = cluster
        self._creator = creator
        self._table = table

    def routed(self, method: str, call: Call) -> Call:
        """The call, answered by whoever leads the job's shard."""
        key = _KEYS.get(method.removeprefix(SERVICE))
        if key is None:
            return call

        async def route(request: Message) -> Message:
            namespace, job = key(request)
            if not job:
                return await call(
                    request
                )  # of all jobs, and asks all leaders by itself; or of none
            shard = shard_of(namespace, job, self._cluster.shard_count)
            return await patiently(lambda: self._ask(shard, method, request))

        return route

    async def _ask(self, shard: int, method: str, request: Message) -> Message:
        leader = self._cluster.leader_of(shard)
        if not leader:
            return await self._table[method](_copy(request) if method in CHANGED else request)
        answer = await self._cluster.forward(leader, method, request.SerializeToString())
        response: Message = response_class(method).FromString(answer)
        return response

    async def answer(self, method: str, request: bytes) -> bytes:
        """Answer what another node forwarded: here or not at all. Raises NotLeader, Unimplemented, InvalidArgument."""
        call = self._table.get(method)
        if call is None:
            raise unknown_method(method)
        response = await call(read_message(request_class(method), request))
        return response.SerializeToString()

    # --- batches ---

    async def batch(
        self,
        parent: str,
        requests: Sequence[UnreadCreate],
        results: "Results",
        *,
        view: pb.BatchView.ValueType,
    ) -> None:
        """As `Creator.batch`, over all leaders. What no leader took in time has that error, each in its place."""
        if len(self._cluster.led()) == self._cluster.shard_count:
            await self._creator.batch(parent, requests, results, view=view)
            return
        namespace = names.parse_namespace(parent)
        check_size(requests)
        found: list[pb.BatchCreateJobsResult | None] = [None] * len(requests)
        left = list(range(len(requests)))
        until_s = asyncio.get_running_loop().time() + PATIENCE_S
        while left:
            await self._round(parent, namespace, requests, left, found, view)
            late = asyncio.get_running_loop().time() > until_s
            left = [] if late else [place for place in left if _not_taken(found[place])]
            if left:
                await asyncio.sleep(AGAIN_S)
        results.extend(result for result in found if result is not None)

    async def _round(
        self,
        parent: str,
        namespace: str,
        requests: Sequence[UnreadCreate],
        left: list[int],
        found: list[pb.BatchCreateJobsResult | None],
        view: pb.BatchView.ValueType,
    ) -> None:
        """Ask each leader once for what is left."""
        by_leader: defaultdict[NodeName | None, list[int]] = defaultdict(list)
        for place in left:
            job = job_id_of(namespace, requests[place])
            by_leader[self._leader(shard_of(namespace, job, self._cluster.shard_count))].append(
                place
            )
        for place in by_leader.pop(None, []):
            found[place] = _failed(_leaderless())
        shares = [
            (leader, share)
            for leader, places in by_leader.items()
            for share in (_shares(requests, places) if leader else [places])
        ]
        answers = await asyncio.gather(
            *(
                self._part(leader, parent, [requests[place] for place in places], view)
                for leader, places in shares
            )
        )
        for (_, places), answer in zip(shares, answers, strict=True):
            for place, result in zip(places, answer, strict=True):
                found[place] = result

    def _leader(self, shard: int) -> NodeName | None:
        try:
            return self._cluster.leader_of(shard)
        except NotLeader:
            return None

    async def _part(
        self,
        leader: NodeName | None,
        parent: str,
        requests: list[UnreadCreate],
        view: pb.BatchView.ValueType,
    ) -> Sequence[pb.BatchCreateJobsResult]:
        """One leader's share. An error of the whole share is the error of each in it."""
        response = pb.BatchCreateJobsResponse()
        try:
            if not leader:
                await self._creator.batch(parent, requests, response.results, view=view)
            else:
                request = UnreadBatch(parent=parent, requests=requests, view=view)
                answer = await self._cluster.forward(leader, BATCH, request.SerializeToString())
                response = pb.BatchCreateJobsResponse.FromString(answer)
        except TickwheelError as error:
            return [_failed(error) for _ in requests]
        return response.results


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again while nobody leads; raises what came last."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + PATIENCE_S
    while True:
        try:
            return await ask()
        except TickwheelError as error:
            if error.reason not in NOT_TAKEN or loop.time() > until_s:
                raise
        await asyncio.sleep(AGAIN_S)


def _copy(message: M) -> M:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def _shares(requests: Sequence[UnreadCreate], places: list[int]) -> list[list[int]]:
    """The places of one leader, in as many messages as their bytes need."""
    shares: list[list[int]] = [[]]
    size_bytes = 0
    for place in places:
        if size_bytes > SHARE_BYTES_MAX:
            shares.append([])
            size_bytes = 0
        shares[-1].append(place)
        size_bytes += requests[place].ByteSize()
    return shares


def _leaderless() -> NotLeader:
    return NotLeader("the job's shard has no leader at this moment", reason="LEADERLESS")


def _failed(error: TickwheelError) -> pb.BatchCreateJobsResult:
    return pb.BatchCreateJobsResult(error=to_status(error))


def _not_taken(result: pb.BatchCreateJobsResult | None) -> bool:
    """True for a result that says that nothing was done because nobody led."""
    if result is None:
        return True
    if result.WhichOneof("result") != "error" or result.error.code != Code.UNAVAILABLE:
        return False
    info = ErrorInfo()
    return result.error.details[0].Unpack(info) and info.reason in NOT_TAKEN
