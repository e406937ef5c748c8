"""The client for ordinary programs: each call waits for its answer.

    with Client("127.0.0.1:7070") as tickwheel:
        job = tickwheel.create("https://example.com/hook", delay="90s", body=b"hello")

It runs an `AsyncClient` on the event loop of one background thread, and may be shared by any number of threads:
creates that several of them make at the same time travel together. Do not carry one over a fork.
"""

import asyncio
import concurrent.futures
import threading
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from tickwheel.client import drafts
from tickwheel.client.aio import (
    LOAD_WINDOW,
    AsyncClient,
    Grouping,
    Loaded,
    PreviewOptions,
    request_of,
)
from tickwheel.client.core import Page
from tickwheel.client.drafts import JobOptions, UpdateOptions
from tickwheel.client.errors import TickwheelError
from tickwheel.client.gather import closed
from tickwheel.client.runs import WATCH_PATIENCE_S, AsyncExecutions
from tickwheel.client.times import Span
from tickwheel.client.values import (
    ANY,
    Cancelled,
    Change,
    Counts,
    JobHandle,
    JobRef,
    Preview,
    Updated,
    Validation,
)
from tickwheel.v1 import job_service_pb2 as pb
from tickwheel.v1.execution_pb2 import Execution
from tickwheel.v1.job_pb2 import Job

Result = TypeVar("Result")


class Loop:
    """An event loop on a thread of its own, and the way to it from other threads."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._turn, name="tickwheel-client", daemon=True)
        self._thread.start()

    def _turn(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do `work` there and wait for it; if the wait is interrupted, so is the work."""
        if self.loop.is_closed():
            work.close()
            raise closed()
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, source: AsyncIterator[Result]) -> Iterator[Result]:
        """The items of an asynchronous iterator, each fetched when it is asked for."""
        while True:
            try:
                yield self.run(_next(source))
            except StopAsyncIteration:
                return

    def abandon(self, source: AsyncGenerator[Any]) -> None:
        """Nobody wants more of it. Not waited for: it may be the garbage collector, in any thread, that finds out."""
        if not self.loop.is_closed():
            asyncio.run_coroutine_threadsafe(source.aclose(), self.loop)

    def stop(self) -> None:
        """End the loop and its thread."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()


async def _next(source: AsyncIterator[Result]) -> Result:
    return await anext(source)


class Client:
    """Jobs and their executions, in one namespace; see `AsyncClient`, whose methods these are.

    `servers` is one address `host:port` or several (a list, or parted by commas): the others stand in when one is gone.
    In a cluster it learns who leads which shard after its first calls, and then sends what is about one job straight to
    the job's leader, at the address that the cluster's nodes tell; `follow=False` keeps it to `servers`.
    `timeout_s` is the time that a call may take, all its tries together; each call can have its own.
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
        self._async = AsyncClient(
            servers,
            namespace=namespace,
            timeout_s=timeout_s,
            api_key=api_key,
            credentials=credentials,
            follow=follow,
        )
        self._loop = Loop()
        self._async.bind(self._loop.loop)
        self.executions = Executions(self._loop, self._async.executions)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread; whoever still waits gets Unavailable (CLIENT_CLOSED)."""
        if not self._loop.loop.is_closed():
            self._loop.run(self._async.close())
            self._loop.stop()

    def create(
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
        return self.create_job(
            drafts.draft(url, options), job_id=job_id, request_id=request_id, timeout_s=timeout_s
        )

    def create_job(
        self, job: Job, *, job_id: str = "", request_id: str = "", timeout_s: float | None = None
    ) -> JobHandle:
        """Make a job from its message: for worker targets, secrets, and whatever `create` has no word for."""
        made = self._queue(request_of(job, job_id, request_id), timeout_s)
        try:
            return made.result()
        except BaseException:
            made.cancel()
            raise

    def _queue(
        self, request: pb.CreateJobRequest, timeout_s: float | None
    ) -> concurrent.futures.Future[JobHandle]:
        if self._loop.loop.is_closed():
            raise closed()
        made: concurrent.futures.Future[JobHandle] = concurrent.futures.Future()
        self._async.queue_threadsafe(request, made, self._loop.loop, timeout_s)
        return made

    def load(
        self, requests: Iterable[pb.CreateJobRequest], *, timeout_s: float | None = None
    ) -> Iterator[Loaded]:
        """Make very many jobs (see `new_job`), 8,000 on their way at a time; the results come in order."""
        waiting: deque[tuple[int, concurrent.futures.Future[JobHandle]]] = deque(
            maxlen=LOAD_WINDOW + 1
        )
        try:
            for index, request in enumerate(requests):
                waiting.append((index, self._queue(request, timeout_s)))
                if len(waiting) > LOAD_WINDOW or waiting[0][1].done():
                    yield _loaded(*waiting.popleft())
            while waiting:
                yield _loaded(*waiting.popleft())
        finally:
            for _, made in waiting:
                made.cancel()

    def get(self, job: JobRef, *, basic: bool = False, timeout_s: float | None = None) -> Job:
        """Read a job, with every change that was answered before. `basic` leaves out bodies and header values."""
        return self._loop.run(self._async.get(job, basic=basic, timeout_s=timeout_s))

    def list(
        self,
        where: str = "",
        *,
        full: bool = False,
        consistent: bool = False,
        all_namespaces: bool = False,
        timeout_s: float | None = None,
    ) -> Iterator[Job]:
        """Every job that `where` finds (AIP-160: `state = PAUSED AND labels.team = "a"`), oldest first."""
        for page in self.pages(
            where,
            full=full,
            consistent=consistent,
            all_namespaces=all_namespaces,
            timeout_s=timeout_s,
        ):
            yield from page.items

    def pages(  # noqa: PLR0913 - keywords
        self,
        where: str = "",
        *,
        page_size: int = 1_000,
        token: str = "",
        full: bool = False,
        consistent: bool = False,
        all_namespaces: bool = False,
        timeout_s: float | None = None,
    ) -> Iterator[Page[Job]]:
        """As `list`, page by page; `token` goes on after an earlier page. At most 1 s old unless `consistent`."""
        pages = self._async.pages(
            where,
            page_size=page_size,
            token=token,
            full=full,
            consistent=consistent,
            all_namespaces=all_namespaces,
            timeout_s=timeout_s,
        )
        return self._loop.iterate(pages)

    def count(  # noqa: PLR0913 - keywords
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
        counting = self._async.count(
            where,
            group_by=group_by,
            label_key=label_key,
            bucket=bucket,
            consistent=consistent,
            all_namespaces=all_namespaces,
            timeout_s=timeout_s,
        )
        return self._loop.run(counting)

    def update(
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
        return self._loop.run(self._async.update(job, etag=etag, timeout_s=timeout_s, **options))

    def update_job(
        self,
        job: Job,
        mask: FieldMask | None = None,
        *,
        allow_missing: bool = False,
        timeout_s: float | None = None,
    ) -> Updated:
        """Change a job to its message: the fields of `mask`, or without one every field that is set."""
        changing = self._async.update_job(
            job, mask, allow_missing=allow_missing, timeout_s=timeout_s
        )
        return self._loop.run(changing)

    def delete(
        self,
        job: JobRef,
        *,
        etag: str = "",
        missing_ok: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        """Remove a job and its waiting executions; ended ones remain until their retention is over."""
        self._loop.run(
            self._async.delete(job, etag=etag, missing_ok=missing_ok, timeout_s=timeout_s)
        )

    def pause(self, job: JobRef, *, etag: str = "", timeout_s: float | None = None) -> Job:
        """Stop firing until `resume`; retries wait too."""
        return self._loop.run(self._async.pause(job, etag=etag, timeout_s=timeout_s))

    def resume(self, job: JobRef, *, etag: str = "", timeout_s: float | None = None) -> Job:
        """Fire again from now on. Also brings back a job that its target disabled."""
        return self._loop.run(self._async.resume(job, etag=etag, timeout_s=timeout_s))

    def cancel(self, job: JobRef, *, etag: str = "", timeout_s: float | None = None) -> Cancelled:
        """End a job for good; the answer says whether anything was on its way."""
        return self._loop.run(self._async.cancel(job, etag=etag, timeout_s=timeout_s))

    def run(
        self, job: JobRef, *, request_id: str = "", timeout_s: float | None = None
    ) -> Execution:
        """Start one execution now, beside the schedule. Repeating a `request_id` gives the same execution."""
        return self._loop.run(self._async.run(job, request_id=request_id, timeout_s=timeout_s))

    def preview(
        self,
        job: JobRef | None = None,
        *,
        count: int = 10,
        after: datetime | None = None,
        timeout_s: float | None = None,
        **options: Unpack[PreviewOptions],
    ) -> Preview:
        """The next occurrences of a job, or of the schedule that the options name, or of both together."""
        looking = self._async.preview(job, count=count, after=after, timeout_s=timeout_s, **options)
        return self._loop.run(looking)

    def validate(
        self,
        url: str,
        *,
        job_id: str = "",
        timeout_s: float | None = None,
        **options: Unpack[JobOptions],
    ) -> Validation:
        """Every criterion that `create` would hold against the job, met or not. Changes nothing."""
        job = drafts.draft(url, options)
        return self.validate_job(job, job_id=job_id, timeout_s=timeout_s)

    def validate_job(
        self, job: Job, *, job_id: str = "", timeout_s: float | None = None
    ) -> Validation:
        """As `validate`, for a message."""
        return self._loop.run(self._async.validate_job(job, job_id=job_id, timeout_s=timeout_s))


class Executions:
    """What became of occurrences, and another try for those that failed: `client.executions`."""

    def __init__(self, loop: Loop, executions: AsyncExecutions) -> None:
        self._loop = loop
        self._async = executions

    def list(
        self,
        job: JobRef = ANY,
        where: str = "",
        *,
        consistent: bool = False,
        timeout_s: float | None = None,
    ) -> Iterator[Execution]:
        """Executions of a job, or of all jobs, those made last first. `where`: `state = FAILED`, for example."""
        for page in self.pages(job, where, consistent=consistent, timeout_s=timeout_s):
            yield from page.items

    def pages(
        self,
        job: JobRef = ANY,
        where: str = "",
        *,
        page_size: int = 1_000,
        token: str = "",
        consistent: bool = False,
        timeout_s: float | None = None,
    ) -> Iterator[Page[Execution]]:
        """As `list`, page by page; `token` goes on after an earlier page. At most 1 s old unless `consistent`."""
        pages = self._async.pages(
            job,
            where,
            page_size=page_size,
            token=token,
            consistent=consistent,
            timeout_s=timeout_s,
        )
        return self._loop.iterate(pages)

    def watch(
        self,
        job: JobRef = ANY,
        where: str = "",
        *,
        token: str = "",
        pulse: bool = False,
        patience_s: float = WATCH_PATIENCE_S,
    ) -> Generator[Change]:
        """Executions of a job, or of all jobs, as they change: from now on, or from after an earlier change's `token`.

        Each change comes at least once, and an end is never left out: a break, a restart and a fail-over are gone over
        by themselves, until `patience_s` have passed without a server. With `pulse` there is a first `Change` without
        an execution as soon as the watch has begun, and one whenever nothing happened for 15 s. Aborted
        (RESUME_TOKEN_EXPIRED): the server does not remember as far back; list the executions, then watch anew.
        """
        changes = self._async.watch(job, where, token=token, pulse=pulse, patience_s=patience_s)
        try:
            yield from self._loop.iterate(changes)
        finally:
            self._loop.abandon(changes)

    def get(
        self, execution: str, *, job: JobRef | None = None, timeout_s: float | None = None
    ) -> Execution:
        """Read an execution with all its attempts, by its whole name, or by its own part and its job."""
        return self._loop.run(self._async.get(execution, job=job, timeout_s=timeout_s))

    def retry(
        self,
        execution: str,
        *,
        job: JobRef | None = None,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> Execution:
        """Give a FAILED or UNKNOWN execution a new budget of attempts, under its old id."""
        return self._loop.run(
            self._async.retry(execution, job=job, request_id=request_id, timeout_s=timeout_s)
        )


def _loaded(index: int, made: concurrent.futures.Future[JobHandle]) -> Loaded:
    try:
        return Loaded(index, made.result(), None)
    except TickwheelError as error:
        return Loaded(index, None, error)
