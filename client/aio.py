"""The asynchronous client.

    async with AsyncClient("127.0.0.1:7070") as tickwheel:
        job = await tickwheel.create("https://example.com/hook", delay="90s", body=b"hello")

Every method raises a `TickwheelError` of the kind that `errors` draws, and takes `timeout_s`: the time for all tries
together. Creates that are awaited at the same time travel together (see `gather`). Use it on one event loop.
"""

import asyncio
import concurrent.futures
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Final, Literal, Self, Unpack

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from tickwheel.client import drafts
from tickwheel.client.core import Core, Page, items_of, new_request_id
from tickwheel.client.drafts import JobOptions, UpdateOptions
from tickwheel.client.errors import TickwheelError
from tickwheel.client.gather import Waiting
from tickwheel.client.runs import AsyncExecutions
from tickwheel.client.times import Span, from_timestamp, to_duration, to_timestamp
from tickwheel.client.values import (
    Cancelled,
    Counts,
    JobHandle,
    JobRef,
    Preview,
    Updated,
    Validation,
    cancelled_of,
    counts_of,
    preview_of,
    updated_of,
    validation_of,
)
from tickwheel.v1 import job_service_pb2 as pb
from tickwheel.v1.execution_pb2 import Execution
from tickwheel.v1.job_pb2 import JOB_VIEW_BASIC, JOB_VIEW_FULL, Job

WAITING_CREATES_MAX: Final = 50_000
LOAD_WINDOW: Final = 8_000

Grouping = Literal["state", "last_outcome", "label", "next_time"]


class PreviewOptions(drafts.ScheduleOptions, drafts.WindowOptions, total=False):
    """The schedule to look at, and what narrows it."""

    jitter: Span


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of the `index`-th request of a load: a handle, or an error."""

    index: int
    handle: JobHandle | None
    error: TickwheelError | None


def new_job(
    url: str, *, job_id: str = "", request_id: str = "", **options: Unpack[JobOptions]
) -> pb.CreateJobRequest:
    """What `create` would send, for `load`. InvalidArgument names the option that cannot be meant."""
    request = pb.CreateJobRequest(job_id=job_id, request_id=request_id or new_request_id())
    drafts.fill_draft(request.job, url, options)
    return request


def request_of(job: Job, job_id: str, request_id: str) -> pb.CreateJobRequest:
    return pb.CreateJobRequest(job_id=job_id, job=job, request_id=request_id or new_request_id())


class AsyncClient:
    """Jobs and their executions, in one namespace, from one event loop.

    `servers` is one address `host:port` or several (a list, or parted by commas): the others stand in when one is gone.
    In a cluster it learns who leads which shard after its first calls, and then sends what is about one job straight to
    the job's leader, at the address that the cluster's nodes tell; `follow=False` keeps it to `servers`.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = "127.0.0.1:7070",
        *,
        namespace: str = "default",
        timeout_s: float = 10.0,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        follow: bool = True,
    ) -> None:
        self._core = Core(
            servers,
            namespace=namespace,
            timeout_s=timeout_s,
            api_key=api_key,
            credentials=credentials,
            follow=follow,
        )
        self._room = asyncio.Semaphore(WAITING_CREATES_MAX)
        self.executions = AsyncExecutions(self._core)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; whoever still waits for an answer gets Unavailable (CLIENT_CLOSED)."""
        await self._core.close()

    async def create(
        self,
        url: str,
        *,
        job_id: str = "",
        request_id: str = "",
        timeout_s: float | None = None,
        **options: Unpack[JobOptions],
    ) -> JobHandle:
        """Make a job that requests `url`. Give exactly one of `at`, `delay`, `cron`, `every`.

        Repeating it with the same `request_id` or `job_id` and the same content gives the same job; other content is
        AlreadyExists.
        """
        request = new_job(url, job_id=job_id, request_id=request_id, **options)
        async with self._room:
            return await self._queue(request, timeout_s)

    async def create_job(
        self, job: Job, *, job_id: str = "", request_id: str = "", timeout_s: float | None = None
    ) -> JobHandle:
        """Make a job from its message: for worker targets, secrets, and whatever `create` has no word for."""
        request = request_of(job, job_id, request_id)
        async with self._room:
            return await self._queue(request, timeout_s)

    def _queue(
        self, request: pb.CreateJobRequest, timeout_s: float | None
    ) -> asyncio.Future[JobHandle]:
        loop = asyncio.get_running_loop()
        made: asyncio.Future[JobHandle] = loop.create_future()
        limit = self._core.timeout_s if timeout_s is None else timeout_s
        self._core.gatherer_on(loop).put(Waiting(request, made, loop.time() + limit))
        return made

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to `loop` from now on, before any thread asks."""
        self._core.gatherer_on(loop)

    def queue_threadsafe(
        self,
        request: pb.CreateJobRequest,
        made: concurrent.futures.Future[JobHandle],
        loop: asyncio.AbstractEventLoop,
        timeout_s: float | None,
    ) -> None:
        """Queue a create from another thread than that of this client's `loop`; `made` gets its end."""
        limit = self._core.timeout_s if timeout_s is None else timeout_s
        gatherer = self._core.gatherer_on(loop)
        gatherer.put_threadsafe(Waiting(request, made, loop.time() + limit))

    async def load(
        self, requests: Iterable[pb.CreateJobRequest], *, timeout_s: float | None = None
    ) -> AsyncIterator[Loaded]:
        """Make very many jobs (see `new_job`), 8,000 on their way at a time; the results come in order."""
        waiting: deque[tuple[int, asyncio.Future[JobHandle]]] = deque(maxlen=LOAD_WINDOW + 1)
        try:
            for index, request in enumerate(requests):
                waiting.append((index, self._queue(request, timeout_s)))
                if len(waiting) > LOAD_WINDOW or waiting[0][1].done():
                    yield await _loaded(*waiting.popleft())
            while waiting:
                yield await _loaded(*waiting.popleft())
        finally:
            for _, made in waiting:
                made.cancel()

    async def get(self, job: JobRef, *, basic: bool = False, timeout_s: float | None = None) -> Job:
        """Read a job, with every change that was answered before. `basic` leaves out bodies and header values."""
        view = JOB_VIEW_BASIC if basic else JOB_VIEW_FULL
        request = pb.GetJobRequest(name=self._core.job_name(job), view=view)
        return await self._core.call(
            lambda stub: stub.GetJob, request, timeout_s, about=request.name
        )

    def list(
        self,
        where: str = "",
        *,
        full: bool = False,
        consistent: bool = False,
        all_namespaces: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Job]:
        """Every job that `where` finds (AIP-160: `state = PAUSED AND labels.team = "a"`), oldest first."""
        pages = self.pages(
            where,
            full=full,
            consistent=consistent,
            all_namespaces=all_namespaces,
            timeout_s=timeout_s,
        )
        return items_of(pages)

    async def pages(  # noqa: PLR0913 - keywords
        self,
        where: str = "",
        *,
        page_size: int = 1_000,
        token: str = "",
        full: bool = False,
        consistent: bool = False,
        all_namespaces: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Page[Job]]:
        """As `list`, page by page; `token` goes on after an earlier page. At most 1 s old unless `consistent`."""
        request = pb.ListJobsRequest(
            parent=self._core.jobs_parent(all_namespaces=all_namespaces),
            page_size=page_size,
            page_token=token,
            filter=where,
            view=JOB_VIEW_FULL if full else JOB_VIEW_BASIC,
            consistent=consistent,
        )
        while True:
            answer = await self._core.call(lambda stub: stub.ListJobs, request, timeout_s)
            read_time = from_timestamp(answer.read_time)
            yield Page(tuple(answer.jobs), answer.next_page_token, read_time)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def count(  # noqa: PLR0913 - keywords
        self,
        where: str = "",
        *,
        group_by: Grouping | None = None,
        label_key: str = "",
        bucket: Span | None = None,
        consistent: bool = False,
        all_namespaces: bool = False,
        timeout_s: float | None = None,
    ) -> Counts:
        """Count jobs, in groups if asked to. `label` needs `label_key`; `next_time` takes a `bucket`'s width."""
        request = pb.CountJobsRequest(
            parent=self._core.jobs_parent(all_namespaces=all_namespaces),
            filter=where,
            label_key=label_key,
            consistent=consistent,
        )
        if group_by is not None:
            request.group_by = pb.CountGrouping.Value(f"COUNT_GROUPING_{group_by.upper()}")
        if bucket is not None:
            request.bucket.CopyFrom(to_duration(bucket))
        return counts_of(await self._core.call(lambda s: s.CountJobs, request, timeout_s))

    async def update(
        self,
        job: JobRef,
        *,
        etag: str = "",
        timeout_s: float | None = None,
        **options: Unpack[UpdateOptions],
    ) -> Updated:
        """Change what `options` name and nothing else. With an `etag` that is old: Aborted.

        A JSON body does not bring its content-type here: headers change only when `headers` are given.
        """
        message, mask = drafts.change(self._core.job_name(job), options)
        message.etag = etag
        return await self.update_job(message, mask, timeout_s=timeout_s)

    async def update_job(
        self,
        job: Job,
        mask: FieldMask | None = None,
        *,
        allow_missing: bool = False,
        timeout_s: float | None = None,
    ) -> Updated:
        """Change a job to its message: the fields of `mask`, or without one every field that is set."""
        request = pb.UpdateJobRequest(job=job, update_mask=mask, allow_missing=allow_missing)
        request.job.name = self._core.job_name(job)
        answer = await self._core.call(
            lambda stub: stub.UpdateJob,
            request,
            timeout_s,
            about=request.job.name,
            repeatable=False,
        )
        return updated_of(answer)

    async def delete(
        self,
        job: JobRef,
        *,
        etag: str = "",
        missing_ok: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        """Remove a job and its waiting executions; ended ones remain until their retention is over."""
        request = pb.DeleteJobRequest(
            name=self._core.job_name(job), etag=etag, allow_missing=missing_ok
        )
        repeatable = missing_ok and not etag
        await self._core.call(
            lambda stub: stub.DeleteJob,
            request,
            timeout_s,
            about=request.name,
            repeatable=repeatable,
        )

    async def pause(self, job: JobRef, *, etag: str = "", timeout_s: float | None = None) -> Job:
        """Stop firing until `resume`; retries wait too."""
        request = pb.PauseJobRequest(name=self._core.job_name(job), etag=etag)
        return await self._core.call(
            lambda stub: stub.PauseJob,
            request,
            timeout_s,
            about=request.name,
            repeatable=not etag,
        )

    async def resume(self, job: JobRef, *, etag: str = "", timeout_s: float | None = None) -> Job:
        """Fire again from now on. Also brings back a job that its target disabled."""
        request = pb.ResumeJobRequest(name=self._core.job_name(job), etag=etag)
        return await self._core.call(
            lambda stub: stub.ResumeJob,
            request,
            timeout_s,
            about=request.name,
            repeatable=not etag,
        )

    async def cancel(
        self, job: JobRef, *, etag: str = "", timeout_s: float | None = None
    ) -> Cancelled:
        """End a job for good; the answer says whether anything was on its way."""
        request = pb.CancelJobRequest(name=self._core.job_name(job), etag=etag)
        answer = await self._core.call(
            lambda stub: stub.CancelJob,
            request,
            timeout_s,
            about=request.name,
            repeatable=not etag,
        )
        return cancelled_of(answer)

    async def run(
        self, job: JobRef, *, request_id: str = "", timeout_s: float | None = None
    ) -> Execution:
        """Start one execution now, beside the schedule. Repeating a `request_id` gives the same execution."""
        request = pb.RunJobRequest(
            name=self._core.job_name(job), request_id=request_id or new_request_id()
        )
        return await self._core.call(
            lambda stub: stub.RunJob, request, timeout_s, about=request.name
        )

    async def preview(
        self,
        job: JobRef | None = None,
        *,
        count: int = 10,
        after: datetime | None = None,
        timeout_s: float | None = None,
        **options: Unpack[PreviewOptions],
    ) -> Preview:
        """The next occurrences of a job, or of the schedule that the options name, or of both together."""
        request = preview_request(self._core, job, options)
        request.count = count
        if after is not None:
            request.after_time.CopyFrom(to_timestamp(after))
        answer = await self._core.call(
            lambda stub: stub.PreviewSchedule, request, timeout_s, about=request.job
        )
        return preview_of(answer)

    async def validate(
        self,
        url: str,
        *,
        job_id: str = "",
        timeout_s: float | None = None,
        **options: Unpack[JobOptions],
    ) -> Validation:
        """Every criterion that `create` would hold against the job, met or not. Changes nothing."""
        job = drafts.draft(url, options)
        return await self.validate_job(job, job_id=job_id, timeout_s=timeout_s)

    async def validate_job(
        self, job: Job, *, job_id: str = "", timeout_s: float | None = None
    ) -> Validation:
        """As `validate`, for a message."""
        request = pb.ValidateJobRequest(parent=self._core.parent, job_id=job_id, job=job)
        about = f"{self._core.parent}/jobs/{job_id}" if job_id else ""
        answer = await self._core.call(
            lambda stub: stub.ValidateJob, request, timeout_s, about=about
        )
        return validation_of(answer)


async def _loaded(index: int, made: asyncio.Future[JobHandle]) -> Loaded:
    try:
        return Loaded(index, await made, None)
    except TickwheelError as error:
        return Loaded(index, None, error)


def preview_request(
    core: Core, job: JobRef | None, options: PreviewOptions
) -> pb.PreviewScheduleRequest:
    """What `preview` asks. InvalidArgument if the options make no schedule."""
    request = pb.PreviewScheduleRequest(parent=core.parent)
    if job is not None:
        request.job = core.job_name(job)
    try:
        if job is None or not drafts.ScheduleOptions.__annotations__.keys().isdisjoint(options):
            drafts.fill_schedule(request.schedule, options)
        if not drafts.WindowOptions.__annotations__.keys().isdisjoint(options):
            drafts.fill_window(request.window, options)
        if "jitter" in options:
            request.jitter.CopyFrom(to_duration(options["jitter"]))
    except (ValueError, TypeError) as error:
        raise drafts.refused(str(error)) from error
    return request
