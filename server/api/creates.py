"""Floor 5. Making jobs, one or thousands: requests → commands → one call of the scheduler → a result each.

A batch is not atomic: each request has a status of its own, in its place. What is wrong with one is found before the
scheduler is asked, and costs the others nothing. Converting a thousand jobs takes the event loop some ten milliseconds,
so a batch yields to it now and then: firing must not wait for a bulk load.

Must never import: rooms below but `command`, `errors`; nothing of a transport.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from tickwheel.server.api import moved, names
from tickwheel.server.api.convert import Converter
from tickwheel.server.api.errors import to_status
from tickwheel.server.api.limits import BATCH_JOBS_MAX
from tickwheel.server.api.views import fill_handle, job_message
from tickwheel.server.command import Create, JobView, Reply, Scheduler
from tickwheel.server.errors import InvalidArgument, TickwheelError, Violation
from tickwheel.v1 import job_service_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

    Results = RepeatedCompositeFieldContainer[pb.BatchCreateJobsResult]

SLICE_JOBS: Final = 100
"""Jobs converted before others get their turn: about 2 ms."""


class Batches(Protocol):
    """Who carries batches of creates."""

    async def batch(
        self,
        parent: str,
        requests: Sequence[pb.CreateJobRequest],
        results: "Results",
        *,
        view: pb.BatchView.ValueType,
    ) -> None:
        """Add one result a request, in their order. Raises InvalidArgument for what concerns the whole batch."""
        ...


class Creator:
    """Turns create requests into commands, and carries them in batches."""

    def __init__(self, scheduler: Scheduler, converter: Converter) -> None:
        self._scheduler = scheduler
        self._converter = converter

    def command(self, namespace: str, request: pb.CreateJobRequest) -> Create:
        """The command of one request. Raises InvalidArgument."""
        job_id, request_id = request.job_id, request.request_id
        if request_id:
            names.check_request_id(request_id)
        fresh = False
        if job_id:
            names.check_job_id(job_id)
        elif request_id:
            job_id = names.generated_job_id(namespace, request_id)
        else:
            job_id = names.random_job_id()
            fresh = True
        kept = moved.take(request) if request.moved else None
        prepared = self._converter.prepare(request.job, self._scheduler.now_ms())
        return Create(namespace, job_id, prepared, fresh, request.validate_only, kept)

    async def batch(
        self,
        parent: str,
        requests: Sequence[pb.CreateJobRequest],
        results: "Results",
        *,
        view: pb.BatchView.ValueType,
    ) -> None:
        """Add one result a request, in their order. Raises InvalidArgument for what concerns the whole batch."""
        namespace = names.parse_namespace(parent)
        if not 0 < len(requests) <= BATCH_JOBS_MAX:
            text = f"must have 1 to {BATCH_JOBS_MAX:,} entries, not {len(requests):,}"
            raise InvalidArgument.of([Violation("requests", text, "BATCH_SIZE")])
        commands: list[Create] = []
        errors: dict[int, TickwheelError] = {}
        for position, request in enumerate(requests):
            if position % SLICE_JOBS == SLICE_JOBS - 1:
                await asyncio.sleep(0)
            try:
                if request.parent and request.parent != parent:
                    raise _other_parent(parent)
                commands.append(self.command(namespace, request))
            except TickwheelError as error:
                errors[position] = error
        replies = iter(await self._scheduler.call_many(commands) if commands else ())
        whole = view == pb.BATCH_VIEW_JOBS
        for position in range(len(requests)):
            reply = errors[position] if position in errors else next(replies)
            _fill(results.add(), reply, whole=whole)


def _other_parent(parent: str) -> InvalidArgument:
    text = f"must be empty or {parent}, as in the batch"
    return InvalidArgument.of([Violation("parent", text, "PARENT_MISMATCH")])


def _fill(result: pb.BatchCreateJobsResult, reply: Reply | TickwheelError, *, whole: bool) -> None:
    if not isinstance(reply, JobView):
        assert isinstance(reply, TickwheelError), "a create is answered with a job or an error"
        result.error.CopyFrom(to_status(reply))
    elif whole:
        result.job.CopyFrom(job_message(reply, full=False))
    else:
        fill_handle(result.handle, reply)
