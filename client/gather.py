"""Creates that wait at the same time travel together.

    create ─┐                 ┌─ call 1 (up to 1,000 creates, 1 MiB) ─┐
    create ─┼─► waiting ──────┼─ call 2                               ├─► each create its own result or error
    create ─┘   (in order)    └─ … at most 4 under way ───────────────┘

While no call is under way a create leaves at once, with those that came in the same turn of the loop. A further call
leaves when at least half as many wait as are under way: one beside one, but not two beside 60, for a call costs both
sides as much as ten creates. The others wait for an answer, 20 ms at most while a call is free, so batches grow with
load. A create whose item failed in a way that a repeat mends goes back into the queue until its deadline; its request_id
makes that safe.

Where the leaders of the shards are known (`follow`), a call is one to each leader, side by side, and nobody has to part
the batch and pass it on. Their answers are told together, unless one of them takes long: who was answered makes the next
creates, and these are to travel together again; and a further call is worth it for as many more creates. (A queue for
each leader was tried: batches became small, and the nodes' CPU a create twice as much.)

Runs on one event loop. `put` alone may be called from other threads, through `put_threadsafe`.
"""

import asyncio
import concurrent.futures
from collections import deque
from collections.abc import Callable
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
TOGETHER_S: Final = (0.25, 1.0)
"""What one leader answered waits for the others as long again as it took itself, within these bounds."""

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
    """Gathers creates of one namespace into BatchCreateJobs."""

    def __init__(self, links: Links, namespace: str, loop: asyncio.AbstractEventLoop) -> None:
        self._links = links
        self._namespace = namespace
        self._parent = f"namespaces/{namespace}"
        self._loop = loop
        self._waiting: deque[Waiting] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._carried = 0
        self._width = 1  # calls that the last batch was: one a leader
        self._patience: asyncio.TimerHandle | None = None
        self._impatient = False
        self._pausing: dict[int, Waiting] = {}
        self._woken = False

    def put(self, item: Waiting) -> None:
        """Queue a create; it leaves at the end of this turn of the loop if a call is free."""
        self._waiting.append(item)
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._send)

    def put_threadsafe(self, item: Waiting) -> None:
        """`put` from another thread; the loop is woken once for all that came meanwhile."""
        self._waiting.append(item)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._send)

    def _send(self) -> None:
        self._woken = False
        while self._waiting and len(self._calls) < CALLS_MAX:
            worth = min(self._carried * WORTH_A_CALL * self._width, BATCH_JOBS_MAX)
            if len(self._waiting) < worth and not self._impatient:
                self._held_back()
                return
            self._start(self._take())

    def _start(self, batch: list[Waiting]) -> None:
        if not batch:
            return
        self._carried += len(batch)
        call = self._loop.create_task(self._carry(batch))
        self._calls.add(call)
        call.add_done_callback(partial(self._ended, batch=batch))

    def _ended(self, call: asyncio.Task[None], *, batch: list[Waiting]) -> None:
        self._calls.discard(call)
        self._carried -= len(batch)
        if call.cancelled():  # maybe before it began
            _refuse_all(batch)
        if self._waiting:
            self._send()

    def _held_back(self) -> None:
        """Too few wait for a call of their own: they are not to wait long for one that takes long."""
        if self._patience is None:
            self._patience = self._loop.call_later(HELD_BACK_S_MAX, self._run_out)

    def _run_out(self) -> None:
        self._patience, self._impatient = None, True
        self._send()
        self._impatient = False

    def _take(self) -> list[Waiting]:
        """The oldest creates that fit into one call; those whose time is over are refused on the way."""
        batch: list[Waiting] = []
        size, now = 0, self._loop.time()
        while self._waiting and len(batch) < BATCH_JOBS_MAX:
            item = self._waiting[0]
            if item.made.done() or item.deadline <= now:
                self._waiting.popleft().refuse(_late())
                continue
            size += item.request.ByteSize()
            if batch and size > BATCH_BYTES_MAX:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _carry(self, batch: list[Waiting]) -> None:
        try:
            await self._carry_parts(self._by_leader(batch))
        except BaseException:  # the client is closing, or this file has a fault
            _refuse_all(batch)  # nobody may wait for ever
            raise

    async def _carry_parts(self, parts: dict[str, list[Waiting]]) -> None:
        """One call to each leader, and what came of them: together, but for those that take long."""
        if len(parts) == 1:
            ((leader, items),) = parts.items()
            (await self._part(leader, items))()
            return
        sent = [self._loop.create_task(self._part(*part)) for part in parts.items()]
        low_s, high_s = TOGETHER_S
        begin_s = self._loop.time()
        try:
            await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
            again_s = min(max(self._loop.time() - begin_s, low_s), high_s)
            ended, late = await asyncio.wait(sent, timeout=again_s)
            for part in ended:
                part.result()()
            for tell in asyncio.as_completed(late):
                (await tell)()
        finally:
            for part in sent:
                part.cancel()
            await asyncio.gather(*sent, return_exceptions=True)

    def _by_leader(self, batch: list[Waiting]) -> dict[str, list[Waiting]]:
        """The creates that each leader gets; those whose leader is not known go to any node."""
        if not self._links.follows:
            self._width = 1
            return {"": batch}
        parts: dict[str, list[Waiting]] = {}
        for item in batch:
            leader = self._links.leader_of(key_of_create(self._namespace, item.request))
            parts.setdefault(leader, []).append(item)
        self._width = len(parts)
        return parts

    async def _part(self, leader: str, batch: list[Waiting]) -> Callable[[], None]:
        """One call; what tells those who wait for it how it ended."""
        deadline = min(item.deadline for item in batch)
        request = pb.BatchCreateJobsRequest(
            parent=self._parent, requests=[item.request for item in batch]
        )
        try:
            answer = await self._links.call(
                lambda stub: stub.BatchCreateJobs,
                request,
                timeout_s=max(deadline - self._loop.time(), 0.001),
                leader=leader,
                count=len(batch),
            )
        except TickwheelError as error:
            return partial(self._failed, batch, error)
        return partial(self._answered, batch, answer)

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
                self._again_or_refuse(item, from_status(result.error))

    def _failed(self, batch: list[Waiting], error: TickwheelError) -> None:
        """The whole call failed: its deadline was the oldest create's, so the younger ones may have time left."""
        for item in batch:
            if isinstance(error, DeadlineExceeded) and item.deadline > self._loop.time():
                self.put(item)
            else:
                self._again_or_refuse(item, error)

    def _again_or_refuse(self, item: Waiting, error: TickwheelError) -> None:
        if not may_repeat(error, repeatable=True):
            item.refuse(error)
            return
        item.failures += 1
        pause_s = self._links.pause_s(error, item.failures)
        if self._loop.time() + pause_s >= item.deadline:
            item.refuse(error)
        else:
            self._pausing[id(item)] = item
            self._loop.call_later(pause_s, self._rested, item)

    def _rested(self, item: Waiting) -> None:
        if self._pausing.pop(id(item), None) is not None:
            self.put(item)

    async def close(self) -> None:
        """End the calls under way; every create that still waits is refused."""
        if self._patience is not None:
            self._patience.cancel()
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        for item in (*self._waiting, *self._pausing.values()):
            item.refuse(closed())
        self._waiting.clear()
        self._pausing.clear()


def closed() -> Unavailable:
    """What those get who still wait when the client is closed."""
    text = "the client was closed; whether this was done is unknown"
    return Unavailable(text, reason="CLIENT_CLOSED")


def _refuse_all(batch: list[Waiting]) -> None:
    for item in batch:
        item.refuse(closed())


def _late() -> DeadlineExceeded:
    text = "the time was over before it could be sent: more creates wait than the server takes"
    return DeadlineExceeded(text, reason="NOT_SENT")
