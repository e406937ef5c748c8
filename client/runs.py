"""Executions, asynchronously: `client.executions`."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

from tickwheel.client.core import Core, Page, items_of, new_request_id
from tickwheel.client.times import from_timestamp
from tickwheel.client.values import ANY, Change, JobRef, change_of
from tickwheel.v1 import job_service_pb2 as pb
from tickwheel.v1.execution_pb2 import Execution

WATCH_PATIENCE_S: Final = 60.0
"""As long as a token is valid for sure."""

SILENCE_S: Final = 45.0
"""Three pulses of the server's missing: the way to it is broken."""


class AsyncExecutions:
    """What became of occurrences, and another try for those that failed."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def list(
        self,
        job: JobRef = ANY,
        where: str = "",
        *,
        consistent: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Execution]:
        """Executions of a job, or of all jobs, those made last first. `where`: `state = FAILED`, for example."""
        return items_of(self.pages(job, where, consistent=consistent, timeout_s=timeout_s))

    async def pages(
        self,
        job: JobRef = ANY,
        where: str = "",
        *,
        page_size: int = 1_000,
        token: str = "",
        consistent: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Page[Execution]]:
        """As `list`, page by page; `token` goes on after an earlier page. At most 1 s old unless `consistent`."""
        request = pb.ListExecutionsRequest(
            parent=self._core.job_name(job),
            page_size=page_size,
            page_token=token,
            filter=where,
            consistent=consistent,
        )
        while True:
            answer = await self._core.call(
                lambda stub: stub.ListExecutions, request, timeout_s, about=request.parent
            )
            read_time = from_timestamp(answer.read_time)
            yield Page(tuple(answer.executions), answer.next_page_token, read_time)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def watch(
        self,
        job: JobRef = ANY,
        where: str = "",
        *,
        token: str = "",
        pulse: bool = False,
        patience_s: float = WATCH_PATIENCE_S,
    ) -> AsyncGenerator[Change]:
        """Executions of a job, or of all jobs, as they change: from now on, or from after an earlier change's `token`.

        Each change comes at least once, and an end is never left out: a break, a restart and a fail-over are gone over
        by themselves, until `patience_s` have passed without a server. With `pulse` there is a first `Change` without
        an execution as soon as the watch has begun, and one whenever nothing happened for 15 s. Aborted
        (RESUME_TOKEN_EXPIRED): the server does not remember as far back; list the executions, then watch anew.
        """
        request = pb.WatchExecutionsRequest(
            parent=self._core.job_name(job), filter=where, resume_token=token
        )
        messages = self._core.links.watch(
            lambda stub: stub.WatchExecutions, request, patience_s=patience_s, silence_s=SILENCE_S
        )
        async with aclosing(messages):
            async for message in messages:
                request.resume_token = message.resume_token
                if pulse or message.HasField("execution"):
                    yield change_of(message)

    async def get(
        self, execution: str, *, job: JobRef | None = None, timeout_s: float | None = None
    ) -> Execution:
        """Read an execution with all its attempts, by its whole name, or by its own part and its job."""
        name = self._core.execution_name(execution, job)
        request = pb.GetExecutionRequest(name=name)
        return await self._core.call(
            lambda stub: stub.GetExecution, request, timeout_s, about=request.name
        )

    async def retry(
        self,
        execution: str,
        *,
        job: JobRef | None = None,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> Execution:
        """Give a FAILED or UNKNOWN execution a new budget of attempts, under its old id."""
        request = pb.RetryExecutionRequest(
            name=self._core.execution_name(execution, job),
            request_id=request_id or new_request_id(),
        )
        return await self._core.call(
            lambda stub: stub.RetryExecution, request, timeout_s, about=request.name
        )
