"""Floor 5. Making jobs, one or thousands: requests → commands → one call of the scheduler → a result each.

A batch is not atomic: each request has a status of its own, in its place. What is wrong with one is found before the
scheduler is asked, and costs the others nothing. Converting a thousand jobs takes the event loop some ten milliseconds,
so a batch yields to it now and then: firing must not wait for a bulk load.

Must never import: rooms below but `command`, `errors`, `model`; nothing of a transport.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from tickwheel.internal.v1.unread_pb2 import UnreadCreate
from tickwheel.server.api import moved, names
from tickwheel.server.api.convert import Converter
from tickwheel.server.api.errors import to_status
from tickwheel.server.api.limits import BATCH_JOBS_MAX
from tickwheel.server.api.messages import read_message
from tickwheel.server.api.views import fill_handle, job_message, view_of
from tickwheel.server.command import Create, Reply, Scheduler
from tickwheel.server.errors import InvalidArgument, TickwheelError, Violation
from tickwheel.server.model import Ms
from tickwheel.v1 import job_service_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

    Results = RepeatedCompositeFieldContainer[pb.BatchCreateJobsResult]

SLICE_JOBS: Final = 100
"""Jobs converted before others get their turn: half a millisecond, or 2 if each must be examined."""


class Batches(Protocol):
    """Who carries batches of creates."""

    async def batch(
        self,
        parent: str,
        requests: Sequence[UnreadCreate],
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

    def command(self, namespace: str, request: pb.CreateJobRequest, now_ms: Ms) -> Create:
        """The command of one request. Raises InvalidArgument."""
        job_id, fresh = _job_id(namespace, request.job_id, request.request_id)
        kept = moved.take(request) if request.moved else None
        prepared = self._converter.prepare(request.job, now_ms)
        return Create(namespace, job_id, prepared, fresh, request.validate_only, kept)

    def _command(self, namespace: str, request: UnreadCreate, now_ms: Ms) -> Create:
        """Likewise, of one whose job is not read yet."""
        if request.moved:
            read = read_message(pb.CreateJobRequest, request.SerializeToString())
            return self.command(namespace, read, now_ms)
        job_id, fresh = _job_id(namespace, request.job_id, request.request_id)
        prepared = self._converter.prepare_bytes(request.job, now_ms)
        return Create(namespace, job_id, prepared, fresh, request.validate_only)

    async def batch(
        self,
        parent: str,
        requests: Sequence[UnreadCreate],
        results: "Results",
        *,
        view: pb.BatchView.ValueType,
    ) -> None:
        """Add one result a request, in their order. Raises InvalidArgument for what concerns the whole batch."""
        namespace = names.parse_namespace(parent)
        check_size(requests)
        commands: list[Create] = []
        errors: dict[int, TickwheelError] = {}
        now_ms = self._scheduler.now_ms()
        for position, request in enumerate(requests):
            if position % SLICE_JOBS == SLICE_JOBS - 1:
                await asyncio.sleep(0)
                now_ms = self._scheduler.now_ms()
            try:
                if request.parent not in ("", parent):
                    raise _other_parent(parent)
                commands.append(self._command(namespace, request, now_ms))
            except TickwheelError as error:
                errors[position] = error
        replies = await self._scheduler.call_many(commands) if commands else []
        add, whole = results.add, view == pb.BATCH_VIEW_JOBS
        for reply in _in_place(replies, errors, len(requests)) if errors else replies:
            if isinstance(reply, TickwheelError):
                add().error.CopyFrom(to_status(reply))
            elif whole:
                add().job.CopyFrom(job_message(view_of(reply), full=False))
            else:
                fill_handle(add().handle, reply)


def _job_id(namespace: str, job_id: str, request_id: str) -> tuple[str, bool]:
    """The job's part of its name, and whether it was drawn just now. Raises InvalidArgument."""
    if request_id:
        names.check_request_id(request_id)
    if job_id:
        names.check_job_id(job_id)
        return job_id, False
    if request_id:
        return names.generated_job_id(namespace, request_id), False
    return names.random_job_id(), True


def check_size(requests: Sequence[UnreadCreate]) -> None:
    """Raise InvalidArgument for a batch that is empty or too long."""
    if not 0 < len(requests) <= BATCH_JOBS_MAX:
        text = f"must have 1 to {BATCH_JOBS_MAX:,} entries, not {len(requests):,}"
        raise InvalidArgument.of([Violation("requests", text, "BATCH_SIZE")])


def _in_place(
    replies: Sequence[Reply | TickwheelError], errors: Mapping[int, TickwheelError], count: int
) -> Iterator[Reply | TickwheelError]:
    """The scheduler's replies, and between them, each in its place, the errors of what it was not asked."""
    following = iter(replies)
    return (errors[at] if at in errors else next(following) for at in range(count))


def _other_parent(parent: str) -> InvalidArgument:
    text = f"must be empty or {parent}, as in the batch"
    return InvalidArgument.of([Violation("parent", text, "PARENT_MISMATCH")])
