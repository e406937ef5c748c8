"""Floor 5. JobService, without its transport: one coroutine a method, message in, message out, errors raised.

gRPC (`grpc.py`) wraps them, and REST would: what a method means is said here once. The order inside each is always the
same: names and tokens, then content, then the scheduler.

Must never import: rooms below but `command`, `errors`, `model`, `query`; nothing of a transport.
"""

from collections.abc import Callable
from functools import partial

from google.protobuf.empty_pb2 import Empty

from tickwheel.internal.v1.unread_pb2 import UnreadBatch
from tickwheel.server.api import names
from tickwheel.server.api.convert import SPEC_FIELDS, Converter
from tickwheel.server.api.creates import Batches, Creator
from tickwheel.server.api.mask import usable_paths
from tickwheel.server.api.views import execution_message, job_message, view_of
from tickwheel.server.command import (
    Cancel,
    ChangeReply,
    Create,
    Delete,
    JobView,
    Pause,
    Prepared,
    Redrive,
    Resume,
    Run,
    Scheduler,
    Update,
)
from tickwheel.server.errors import NotFound
from tickwheel.server.model import Execution, Row
from tickwheel.v1 import execution_pb2, job_pb2
from tickwheel.v1 import job_service_pb2 as pb


class Jobs:
    """Point calls: one job or one execution each."""

    def __init__(
        self, scheduler: Scheduler, converter: Converter, batches: Batches | None = None
    ) -> None:
        self._scheduler = scheduler
        self._converter = converter
        self._creator = Creator(scheduler, converter)
        self._batches = batches or self._creator

    # --- make and read ---

    async def create_job(self, request: pb.CreateJobRequest) -> job_pb2.Job:
        """Make a job."""
        namespace = names.parse_namespace(request.parent)
        command = self._creator.command(namespace, request, self._scheduler.now_ms())
        return job_message(view_of(await self._scheduler.call(command)), full=True)

    async def batch_create_jobs(self, request: UnreadBatch) -> pb.BatchCreateJobsResponse:
        """Make up to a thousand jobs."""
        response = pb.BatchCreateJobsResponse()
        await self._batches.batch(
            request.parent, request.requests, response.results, view=request.view
        )
        return response

    async def get_job(self, request: pb.GetJobRequest) -> job_pb2.Job:
        """Read a job."""
        view = await self._scheduler.get_job(*names.parse_job(request.name))
        return job_message(view, full=request.view != job_pb2.JOB_VIEW_BASIC)

    # --- change ---

    async def update_job(self, request: pb.UpdateJobRequest) -> pb.UpdateJobResponse:
        """Change a job's specification, or make the job if that is wanted."""
        namespace, name = names.parse_job(request.job.name, "job.name")
        change = request.job
        paths = usable_paths(request.update_mask.paths, change, SPEC_FIELDS)
        merge = partial(self._merge, change=change, paths=paths, now_ms=self._scheduler.now_ms())
        try:
            reply = await self._scheduler.call(
                Update(namespace, name, change.etag, merge, request.validate_only)
            )
        except NotFound:
            if not request.allow_missing:
                raise
            return await self._create_missing(namespace, name, request)
        assert isinstance(reply, ChangeReply)
        return pb.UpdateJobResponse(
            job=job_message(reply.view, full=True),
            cancellation=int(reply.cancellation),  # type: ignore[arg-type]  # equal numbers
            attempt=reply.attempt,
        )

    def _merge(
        self, stored: bytes, *, change: job_pb2.Job, paths: list[str], now_ms: int
    ) -> Prepared:
        return self._converter.merge(stored, change, paths, now_ms)

    async def _create_missing(
        self, namespace: str, name: str, request: pb.UpdateJobRequest
    ) -> pb.UpdateJobResponse:
        prepared = self._converter.prepare(request.job, self._scheduler.now_ms())
        command = Create(namespace, name, prepared, validate_only=request.validate_only)
        view = view_of(await self._scheduler.call(command))
        return pb.UpdateJobResponse(job=job_message(view, full=True))

    async def delete_job(self, request: pb.DeleteJobRequest) -> Empty:
        """Remove a job."""
        try:
            await self._scheduler.call(Delete(*names.parse_job(request.name), request.etag))
        except NotFound:
            if not request.allow_missing:
                raise
        return Empty()

    async def pause_job(self, request: pb.PauseJobRequest) -> job_pb2.Job:
        """Stop firing."""
        return await self._changed(Pause, request)

    async def resume_job(self, request: pb.ResumeJobRequest) -> job_pb2.Job:
        """Fire again."""
        return await self._changed(Resume, request)

    async def _changed(
        self,
        make: Callable[[str, str, str], Pause | Resume],
        request: pb.PauseJobRequest | pb.ResumeJobRequest,
    ) -> job_pb2.Job:
        namespace, name = names.parse_job(request.name)
        view = await self._scheduler.call(make(namespace, name, request.etag))
        assert isinstance(view, JobView)
        return job_message(view, full=True)

    async def cancel_job(self, request: pb.CancelJobRequest) -> pb.CancelJobResponse:
        """End a job for good."""
        reply = await self._scheduler.call(Cancel(*names.parse_job(request.name), request.etag))
        assert isinstance(reply, ChangeReply)
        return pb.CancelJobResponse(
            job=job_message(reply.view, full=True),
            cancellation=int(reply.cancellation),  # type: ignore[arg-type]  # equal numbers
            attempt=reply.attempt,
        )

    # --- executions ---

    async def run_job(self, request: pb.RunJobRequest) -> execution_pb2.Execution:
        """Start one execution now."""
        namespace, name = names.parse_job(request.name)
        names.check_request_id(request.request_id)
        request_id = request.request_id or names.random_request_id()
        view = await self._scheduler.call(Run(namespace, name, request_id))
        assert isinstance(view, JobView)
        execution_id = f"{view.job.uid.hex()}:r:{request_id}"
        _, execution = await self._scheduler.get_execution(namespace, name, execution_id)
        return execution_message(execution)

    async def get_execution(self, request: pb.GetExecutionRequest) -> execution_pb2.Execution:
        """Read an execution."""
        _, execution = await self._execution(request.name)
        return execution_message(execution)

    async def retry_execution(self, request: pb.RetryExecutionRequest) -> execution_pb2.Execution:
        """Give an ended execution a new budget of attempts."""
        namespace, name, execution_id = names.parse_execution(request.name)
        names.check_request_id(request.request_id)
        request_id = request.request_id or names.random_request_id()
        row, _ = await self._scheduler.get_execution(namespace, name, execution_id)
        await self._scheduler.call(Redrive(namespace, name, row, request_id))
        _, execution = await self._scheduler.get_execution(namespace, name, execution_id)
        return execution_message(execution)

    async def _execution(self, name: str) -> tuple[Row, Execution]:
        return await self._scheduler.get_execution(*names.parse_execution(name))
