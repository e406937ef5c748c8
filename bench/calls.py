"""A thin async caller on the raw stubs: builds messages, repeats what is safe to repeat, and nothing else.

It is not the client library on purpose: a judge should not share its subject's way of retrying and gathering. Every
repeat carries the same `request_id`, so one intention stays one job however often the node dies in between.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from bench.checker import Excuse, Operation
from tickwheel.v1 import job_service_pb2 as js
from tickwheel.v1 import schedule_pb2, target_pb2
from tickwheel.v1.execution_pb2 import Execution
from tickwheel.v1.job_pb2 import DELIVERY_AT_MOST_ONCE, Job
from tickwheel.v1.job_service_pb2_grpc import JobServiceStub

PARENT = "namespaces/default"
PAUSE_S = 0.05
CALL_S = 10.0
LIST_S = 60.0
PAGE = 1_000
REPEATABLE = frozenset(
    (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED,
     grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)
)  # fmt: skip
_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 250),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
]

T = TypeVar("T")


def now_ms() -> int:
    """Wall time; the sink runs on the same clock."""
    return time.time_ns() // 1_000_000


def stamp(ms: int) -> Timestamp:
    """UTC ms as a message."""
    return Timestamp(seconds=ms // 1_000, nanos=ms % 1_000 * 1_000_000)


def to_ms(time_: Timestamp) -> int:
    """A message as UTC ms."""
    return time_.seconds * 1_000 + time_.nanos // 1_000_000


def span(ms: int) -> Duration:
    """ms as a message."""
    return Duration(seconds=ms // 1_000, nanos=ms % 1_000 * 1_000_000)


def once(url: str, due_ms: int, *, body: bytes = b"", at_most_once: bool = False) -> Job:
    """A job with one occurrence, which fires at once if its time has passed, and retries soon and often."""
    schedule = schedule_pb2.Once(
        scheduled_time=stamp(due_ms), past_policy=schedule_pb2.PAST_POLICY_FIRE_NOW
    )
    return _job(schedule_pb2.Schedule(once=schedule), url, body, at_most_once)


def every(url: str, period_ms: int, anchor_ms: int, *, body: bytes = b"") -> Job:
    """A recurring job whose first occurrence is the anchor."""
    job = _job(
        schedule_pb2.Schedule(
            every=schedule_pb2.Every(period=span(period_ms), anchor_time=stamp(anchor_ms))
        ),
        url,
        body,
    )
    job.window.start_time.CopyFrom(stamp(anchor_ms))
    return job


def cron(url: str, expression: str, *, body: bytes = b"") -> Job:
    """A recurring job of a six-field expression (seconds first), UTC."""
    schedule = schedule_pb2.Cron(
        expression=expression, dialect=schedule_pb2.CRON_DIALECT_SECONDS_FIRST
    )
    return _job(schedule_pb2.Schedule(cron=schedule), url, body)


def _job(schedule: schedule_pb2.Schedule, url: str, body: bytes, at_most_once: bool = False) -> Job:
    job = Job(
        schedule=schedule,
        http_target=target_pb2.HttpTarget(url=url, body=body),
        retry_policy=target_pb2.RetryPolicy(
            max_attempts=50, min_backoff=span(100), max_backoff=span(1_000)
        ),
    )
    if at_most_once:
        job.delivery = DELIVERY_AT_MOST_ONCE
    return job


def request(name: str, job: Job) -> js.CreateJobRequest:
    """A creation under a name, safe to repeat."""
    return js.CreateJobRequest(parent=PARENT, job_id=name, job=job, request_id="c." + name)


def full_name(name: str) -> str:
    """The resource name of a job of the namespace that all of this uses."""
    return f"{PARENT}/jobs/{name}"


def operation(kind: str, sent_ms: int, answer: str, due_ms: int = 0) -> Operation:
    """What the judge must know of a cancel or update that was just answered."""
    return Operation(kind, sent_ms, now_ms(), answer, due_ms)


class GaveUp(Exception):
    """A call was repeated until its time was over; its outcome is unknown."""


class Api:
    """One channel to one node."""

    def __init__(self, target: str) -> None:
        self.channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self.jobs = JobServiceStub(self.channel)
        self.repeats = 0

    async def close(self) -> None:
        """Close the channel."""
        await self.channel.close()

    async def insist(self, call: Callable[[], Awaitable[T]], within_s: float = 60.0) -> T:
        """Repeat a call until it has a definite answer. Raises GaveUp, or the definite error."""
        until = time.monotonic() + within_s
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() not in REPEATABLE:
                    raise
                self.repeats += 1
                if time.monotonic() > until:
                    raise GaveUp(str(error)) from error
            await asyncio.sleep(PAUSE_S)

    async def create(self, name: str, job: Job) -> Job:
        """Make one job."""
        return await self.insist(lambda: self.jobs.CreateJob(request(name, job), timeout=CALL_S))

    async def create_many(
        self, requests: Sequence[js.CreateJobRequest], within_s: float = 60.0
    ) -> list[str]:
        """Make up to 1,000 jobs; the uid of each. Items that were refused for now are repeated. Raises GaveUp."""
        until = time.monotonic() + within_s
        uids = [""] * len(requests)
        open_: list[int] = list(range(len(requests)))
        while open_:
            batch = js.BatchCreateJobsRequest(parent=PARENT, requests=[requests[i] for i in open_])
            answer = await self.insist(
                partial(self.jobs.BatchCreateJobs, batch, timeout=CALL_S), within_s
            )
            left: list[int] = []
            for i, result in zip(open_, answer.results, strict=True):
                if result.HasField("handle"):
                    uids[i] = result.handle.uid
                else:
                    self._check_repeatable(result.error.code, result.error.message)
                    left.append(i)
            if left:
                self.repeats += 1
                if time.monotonic() > until:
                    raise GaveUp(f"{len(left)} items of a batch are refused")
                await asyncio.sleep(PAUSE_S)
            open_ = left
        return uids

    @staticmethod
    def _check_repeatable(code: int, message: str) -> None:
        if code not in {status.value[0] for status in REPEATABLE}:
            raise AssertionError(f"an item of a batch was refused for good: {code} {message}")

    async def cancel(self, name: str) -> str:
        """Cancel; the answer's name (`CANCELLED_BEFORE_DISPATCH`, ...), or COMPLETED."""
        try:
            answer = await self.insist(
                lambda: self.jobs.CancelJob(
                    js.CancelJobRequest(name=full_name(name)), timeout=CALL_S
                )
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                return "COMPLETED"
            raise
        return cancellation(answer.cancellation)

    async def move(self, name: str, due_ms: int) -> str:
        """Give a one-off another time; the answer's name, or COMPLETED."""
        job = once("", due_ms)
        job.ClearField("retry_policy")
        job.ClearField("http_target")
        job.name = full_name(name)
        mask = FieldMask(paths=["schedule"])
        try:
            answer = await self.insist(
                lambda: self.jobs.UpdateJob(
                    js.UpdateJobRequest(job=job, update_mask=mask), timeout=CALL_S
                )
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                return "COMPLETED"
            raise
        return cancellation(answer.cancellation)

    async def get(self, name: str) -> Job:
        """Read one job."""
        return await self.insist(
            lambda: self.jobs.GetJob(js.GetJobRequest(name=full_name(name)), timeout=CALL_S)
        )

    async def takes_at_most_once(self) -> bool:
        """Whether this version honours AT_MOST_ONCE (one that does not refuses it)."""
        job = once("http://127.0.0.1/", now_ms() + 60_000, at_most_once=True)
        ask = js.CreateJobRequest(parent=PARENT, job_id="trial", job=job, validate_only=True)
        try:
            await self.insist(lambda: self.jobs.CreateJob(ask, timeout=CALL_S))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                return False
            raise
        return True

    async def count(self) -> int:
        """How many jobs there are, consistent."""
        ask = js.CountJobsRequest(parent=PARENT, consistent=True)
        answer = await self.insist(lambda: self.jobs.CountJobs(ask, timeout=LIST_S))
        return sum(group.count for group in answer.counts)

    async def executions(self, name: str = "-", filter_: str = "") -> AsyncIterator[Execution]:
        """All executions of a job (or of all), consistent."""
        token = ""
        while True:
            page = js.ListExecutionsRequest(
                parent=full_name(name), page_size=PAGE, page_token=token, filter=filter_,
                consistent=True,
            )  # fmt: skip
            answer = await self.insist(partial(self.jobs.ListExecutions, page, timeout=LIST_S))
            for execution in answer.executions:
                yield execution
            token = answer.next_page_token
            if not token:
                return

    async def excuses(self) -> list[Excuse]:
        """What was not attempted, or may have been and nobody saw the end, on the server's own record."""
        found: list[Excuse] = []
        for state in ("SKIPPED", "MISSED", "UNKNOWN"):
            async for one in self.executions(filter_=f"state = {state}"):
                first = last = to_ms(one.scheduled_time)
                if one.HasField("skip_run"):
                    first, last = to_ms(one.skip_run.first_time), to_ms(one.skip_run.last_time)
                found.append(Excuse(one.job_uid, first, last, state))
        return found


def cancellation(value: int) -> str:
    """The short name of an answer to a cancel or an update."""
    return js.Cancellation.Name(js.Cancellation.ValueType(value)).removeprefix("CANCELLATION_")
