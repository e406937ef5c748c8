"""The load of a chaos campaign: one service behind three addresses, any of which may be dead, and all of which are used.

The kinds of jobs and what is done to them are the crash campaign's (`Driver`). Calls here are on the clock, not as fast
as answers come: a cluster that stands still must not get fewer jobs for it.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

import grpc.aio
from bench import calls
from bench.checker import Job
from bench.node import Node, Sink
from tests.e2e.crash import Driver, Leg

from tickwheel.v1 import job_service_pb2 as js

T = TypeVar("T")
TRY_S = 4.0
UNDER_WAY_MAX = 400
BATCH = 5


class Turns:
    """Looks like a stub; each call, also one that was bound long ago, goes to the next node."""

    def __init__(self, apis: Sequence[calls.Api]) -> None:
        self._next = itertools.cycle(apis)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*request: Any, **options: Any) -> Any:
            return getattr(next(self._next).jobs, method)(*request, **options)

        return call


class AnyNode(calls.Api):
    """Each try of a call goes to the next node; a repeat carries the same `request_id`."""

    repeats: int

    def __init__(self, targets: Sequence[str]) -> None:
        super().__init__(targets[0])
        self._apis = [calls.Api(target) for target in targets]
        self.jobs = cast("Any", Turns(self._apis))

    async def close(self) -> None:
        """Close all channels."""
        await super().close()
        for api in self._apis:
            await api.close()

    async def insist(self, call: Callable[[], Awaitable[T]], within_s: float = 90.0) -> T:
        """See `calls.Api`; a node that is silent is left for another after a few seconds."""
        until = time.monotonic() + within_s
        last = ""
        while time.monotonic() < until:
            try:
                async with asyncio.timeout(TRY_S * 5 if until - time.monotonic() < 30 else TRY_S):
                    return await call()
            except TimeoutError:
                last = "no answer"
            except grpc.aio.AioRpcError as error:
                if error.code() not in calls.REPEATABLE:
                    raise
                last = f"{error.code().name} {error.details()}"
            self.repeats += 1
            await asyncio.sleep(calls.PAUSE_S)
        raise calls.GaveUp(last)


class Load(Driver):
    """Creates at a rate until told to stop."""

    def __init__(self, leg: Leg, nodes: Sequence[Node], sink: Sink) -> None:
        super().__init__(leg, nodes[0], sink)
        self._first = self.api
        self.api = AnyNode([node.target for node in nodes])
        self.rng = random.Random(f"load {leg.seed}")
        self.stopping = False
        self.dropped = 0
        self._under_way: set[asyncio.Task[None]] = set()
        self._disturbed: set[str] = set()

    async def begin(self) -> None:
        """The recurring jobs."""
        self.at_most_once = await self.api.takes_at_most_once()
        await self.create_recurring()

    async def flow(self) -> None:
        """One-offs, some of them moved or cancelled, until `stopping`; returns when every call was answered."""
        next_s = time.monotonic()
        while not self.stopping:
            next_s += BATCH / self.leg.rate
            await asyncio.sleep(max(next_s - time.monotonic(), 0))
            if len(self._under_way) >= UNDER_WAY_MAX:
                self.dropped += 1
                continue
            task = asyncio.create_task(self._some())
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        await asyncio.gather(*self._under_way)

    async def _some(self) -> None:
        batch = [self.make() for _ in range(BATCH)]
        await self.create([job for job, _ in batch], [request for _, request in batch])
        if self.rng.random() < 0.5:
            await asyncio.gather(*(self.disturb(job) for job in self.pick(batch)))

    async def create(self, jobs: Sequence[Job], requests: Sequence[js.CreateJobRequest]) -> None:
        """See `Driver`; what is refused for good is a fault of the cluster, and the campaign goes on."""
        try:
            await super().create(jobs, requests)
        except (grpc.aio.AioRpcError, AssertionError) as error:
            self.story.faults.append(f"create: {str(error)[:300]}")

    def pick(self, batch: Sequence[tuple[Job, js.CreateJobRequest]]) -> list[Job]:
        """See `Driver`; a job is disturbed once, so that the order of two operations is never in doubt."""
        picked = [job for job in super().pick(batch) if job.name not in self._disturbed]
        self._disturbed |= {job.name for job in picked}
        return picked

    async def end(self) -> None:
        """Close the channels."""
        await self._first.close()
        await self.api.close()
