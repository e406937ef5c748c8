"""Creates that wait at the same time travel together.

    create ─┐                 ┌─ call 1 (up to 1,000 creates, 1 MiB) ─┐
    create ─┼─► waiting ──────┼─ call 2                               ├─► each create its own result or error
    create ─┘   (in order)    └─ … at most 4 under way ───────────────┘

While no call is under way a create leaves at once, with those that came in the same turn of the loop. A further call
leaves when at least half as many wait as are under way: one beside one, but not two beside 60, for a call costs both
sides as much as ten creates. The others wait for an answer, 20 ms at most while a call is free, so batches grow with
load. A create whose item failed in a way that a repeat mends goes back into the queue until its deadline; its request_id
makes that safe.

Where the leaders of the shards are known (`follow`), each leader has such a lane of its own, and what has none goes to
any node by another: nobody has to part a batch and pass it on.

Runs on one event loop. `put` alone may be called from other threads, through `put_threadsafe`.
"""

import asyncio
import concurrent.futures
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Final

from tickwheel.client.channel import Links, may_repeat
from tickwheel.client.errors import (
    DeadlineExceeded,
    InternalError,
    TickwheelError,
    Unavailable,
    from_status,
)
from tickwheel.client.shards import key_of_create
from tickwheel.client.values import JobHandle, handle_of
from tickwheel.v1 import job_service_pb2 as pb

CALLS_MAX: Final = 4
WORTH_A_CALL: Final = 0.5
"""Creates that wait, in proportion to those under way: with fewer no further call leaves yet."""
HELD_BACK_S_MAX: Final = 0.02
"""How long they wait for more of them at most, while a call is free."""
BATCH_JOBS_MAX: Final = 1_000
BATCH_BYTES_MAX: Final = 1024 * 1024

Made = asyncio.Future[JobHandle] | concurrent.futures.Future[JobHandle]


@dataclass(slots=True)
class Waiting:
    """One create: what to send, who waits, until when (the loop's time), how often it failed."""

    request: pb.CreateJobRequest
    made: Made
    deadline: float
    failures: int = 0

    def resolve(self, handle: JobHandle) -> None:
        if not self.made.done():
            self.made.set_result(handle)

    def refuse(self, error: TickwheelError) -> None:
        if not self.made.done():
            self.made.set_exception(error)


class Gatherer:
    """Gathers creates of one namespace into BatchCreateJobs, by leader where the leaders are known."""

    def __init__(self, links: Links, namespace: str, loop: asyncio.AbstractEventLoop) -> None:
        self.parent = f"namespaces/{namespace}"
        self.links = links
        self.loop = loop
        self._namespace = namespace
        self._arrived: deque[Waiting] = deque()
        self._lanes: dict[str, Lane] = {}  # bounded: by the leaders of the map, and any node
        self._pausing: dict[int, Waiting] = {}
        self._woken = False

    def put(self, item: Waiting) -> None:
        """Queue a create; it leaves at the end of this turn of the loop if a call is free."""
        self._arrived.append(item)
        if not self._woken:
            self._woken = True
            self.loop.call_soon(self._send)

    def put_threadsafe(self, item: Waiting) -> None:
        """`put` from another thread; the loop is woken once for all that came meanwhile."""
        self._arrived.append(item)
        if not self._woken:
            self._woken = True
            self.loop.call_soon_threadsafe(self._send)

    def _send(self) -> None:
        """Sort what arrived, then let every lane send what is worth a call."""
        self._woken = False
        while self._arrived:
            item = self._arrived.popleft()
            self._lane(self._leader_of(item)).waiting.append(item)
        for leader, lane in list(self._lanes.items()):
            if lane.waiting:
                lane.send()
            elif lane.idle and leader:
                del self._lanes[leader]

    def _leader_of(self, item: Waiting) -> str:
        if not self.links.follows:
            return ""
        return self.links.leader_of(key_of_create(self._namespace, item.request))

    def _lane(self, leader: str) -> "Lane":
        lane = self._lanes.get(leader)
        if lane is None:
            lane = self._lanes[leader] = Lane(self, leader)
        return lane

    def again_or_refuse(self, item: Waiting, error: TickwheelError) -> None:
        """Queue a create that failed once more, after a pause, if that may help and its time is not over."""
        if not may_repeat(error, repeatable=True):
            item.refuse(error)
            return
        item.failures += 1
        pause_s = self.links.pause_s(error, item.failures)
        if self.loop.time() + pause_s >= item.deadline:
            item.refuse(error)
        else:
            self._pausing[id(item)] = item
            self.loop.call_later(pause_s, self._rested, item)

    def _rested(self, item: Waiting) -> None:
        if self._pausing.pop(id(item), None) is not None:
            self.put(item)

    async def close(self) -> None:
        """End the calls under way; every create that still waits is refused."""
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))
        for item in (*self._arrived, *self._pausing.values()):
            item.refuse(closed())
        self._arrived.clear()
        self._pausing.clear()


class Lane:
    """The creates of one leader's shards, or, without one, of any."""

    def __init__(self, gatherer: Gatherer, leader: str) -> None:
        self.waiting: deque[Waiting] = deque()
        self._gatherer = gatherer
        self._links = gatherer.links
        self._loop = gatherer.loop
        self._leader = leader
        self._calls: set[asyncio.Task[None]] = set()
        self._carried = 0
        self._patience: asyncio.TimerHandle | None = None
        self._impatient = False

    @property
    def idle(self) -> bool:
        """True while nothing is under way."""
        return not self._calls and not self.waiting

    def send(self) -> None:
        """Begin as many calls as are free and worth it."""
        while self.waiting and len(self._calls) < CALLS_MAX:
            worth = min(self._carried * WORTH_A_CALL, BATCH_JOBS_MAX)
            if len(self.waiting) < worth and not self._impatient:
                self._held_back()
                return
            self._start(self._take())

    def _start(self, batch: list[Waiting]) -> None:
        if not batch:
            return
        self._carried += len(batch)
        call = self._loop.create_task(self._carry(batch))
        self._calls.add(call)
        call.add_done_callback(partial(self._ended, count=len(batch)))

    def _ended(self, call: asyncio.Task[None], *, count: int) -> None:
        self._calls.discard(call)
        self._carried -= count
        if self.waiting:
            self.send()

    def _held_back(self) -> None:
        """Too few wait for a call of their own: they are not to wait long for one that takes long."""
        if self._patience is None:
            self._patience = self._loop.call_later(HELD_BACK_S_MAX, self._run_out)

    def _run_out(self) -> None:
        self._patience, self._impatient = None, True
        self.send()
        self._impatient = False

    def _take(self) -> list[Waiting]:
        """The oldest creates that fit into one call; those whose time is over are refused on the way."""
        batch: list[Waiting] = []
        size, now = 0, self._loop.time()
        while self.waiting and len(batch) < BATCH_JOBS_MAX:
            item = self.waiting[0]
            if item.made.done() or item.deadline <= now:
                self.waiting.popleft().refuse(_late())
                continue
            size += item.request.ByteSize()
            if batch and size > BATCH_BYTES_MAX:
                break
            batch.append(self.waiting.popleft())
        return batch

    async def _carry(self, batch: list[Waiting]) -> None:
        deadline = min(item.deadline for item in batch)
        request = pb.BatchCreateJobsRequest(
            parent=self._gatherer.parent, requests=[item.request for item in batch]
        )
        try:
            answer = await self._links.call(
                lambda stub: stub.BatchCreateJobs,
                request,
                timeout_s=max(deadline - self._loop.time(), 0.001),
                leader=self._leader,
                count=len(batch),
            )
        except TickwheelError as error:
            self._failed(batch, error)
        except (
            BaseException
        ):  # the client is closing, or this file has a fault: nobody may wait for ever
            for item in batch:
                item.refuse(closed())
            raise
        else:
            self._answered(batch, answer)

    def _answered(self, batch: list[Waiting], answer: pb.BatchCreateJobsResponse) -> None:
        if len(answer.results) != len(batch):
            fault = InternalError("the server did not answer each create", reason="BAD_ANSWER")
            self._failed(batch, fault)
            return
        for item, result in zip(batch, answer.results, strict=True):
            kind = result.WhichOneof("result")
            if kind == "handle":
                item.resolve(handle_of(result.handle))
            elif kind == "job":
                item.resolve(handle_of(result.job))
            else:
                self._gatherer.again_or_refuse(item, from_status(result.error))

    def _failed(self, batch: list[Waiting], error: TickwheelError) -> None:
        """The whole call failed: its deadline was the oldest create's, so the younger ones may have time left."""
        for item in batch:
            if isinstance(error, DeadlineExceeded) and item.deadline > self._loop.time():
                self._gatherer.put(item)
            else:
                self._gatherer.again_or_refuse(item, error)

    async def close(self) -> None:
        """End the calls under way; every create that still waits is refused."""
        if self._patience is not None:
            self._patience.cancel()
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        for item in self.waiting:
            item.refuse(closed())
        self.waiting.clear()


def closed() -> Unavailable:
    """What those get who still wait when the client is closed."""
    text = "the client was closed; whether this was done is unknown"
    return Unavailable(text, reason="CLIENT_CLOSED")


def _late() -> DeadlineExceeded:
    text = "the time was over before it could be sent: more creates wait than the server takes"
    return DeadlineExceeded(text, reason="NOT_SENT")
