"""Floor 5. What the scheduler answers → messages of the API.

BASIC leaves out bodies and the values of headers: they may be large, and secret. The stored spec holds all that the
user said, with every default, so a read is the spec with identity and state added.

Must never import: rooms below but `codec`, `command`, `model`, `spec`.
"""

from typing import Final, cast

from tickwheel.server.api.names import execution_name, job_name
from tickwheel.server.api.times import NANOS_PER_MS, set_ms, timestamp
from tickwheel.server.codec import decode_status, status_columns
from tickwheel.server.command import JobView, Reply, etag
from tickwheel.server.model import (
    Attempt,
    Execution,
    ExecutionKind,
    JobParts,
    JobRow,
    JobState,
    Status,
)
from tickwheel.server.spec import parse_spec
from tickwheel.v1 import execution_pb2, job_pb2, target_pb2
from tickwheel.v1 import job_service_pb2 as pb

_WAITING: Final = frozenset([JobState.SCHEDULED, JobState.PAUSED])


def job_message(view: JobView, *, full: bool) -> job_pb2.Job:
    """The job as a read shows it."""
    job, status = view.job, view.status
    message = parse_spec(job.spec)
    if not full:
        _hide(message.http_target)
    message.name = job_name(job.namespace, job.name)
    message.uid = job.uid.hex()
    message.etag = etag(status)
    message.generation = status.generation
    message.state = int(status.state)  # type: ignore[assignment]  # equal numbers, held by a test
    message.last_outcome = status.last_outcome  # type: ignore[assignment]
    if full:
        message.origin = status.origin
    message.running_count = view.running
    message.started_count = status.run
    message.succeeded_count = status.succeeded
    message.failed_count = status.failed
    message.skipped_count = status.skipped
    set_ms(message.create_time, status.create_ms)
    set_ms(message.update_time, status.update_ms)
    if status.last_ms:
        set_ms(message.last_time, status.last_ms)
    if _shown_next_ms(status):
        set_ms(message.next_time, status.next_ms)
    return message


def view_of(reply: Reply) -> JobView:
    """The job that a call answers with; it may have been made in a run of many."""
    if isinstance(reply, JobView):
        return reply
    job = JobRow(*cast("JobParts", reply))
    return JobView(0, job, decode_status(job.status))


def fill_handle(handle: pb.JobHandle, reply: Reply) -> None:
    """The least that a maker of jobs wants to know. Written without a call more than it takes: one a job of a load."""
    if isinstance(reply, JobView):
        _, (namespace, name, uid, *_), status, _ = reply
        next_ms = _shown_next_ms(status)
    else:
        namespace, name, uid, _, stored, _ = cast("JobParts", reply)
        next_ms = status_columns(stored)[3]
    handle.name = f"namespaces/{namespace}/jobs/{name}"
    handle.uid = uid.hex()
    if next_ms:
        seconds, ms = divmod(next_ms, 1_000)
        time = handle.next_time
        time.seconds = seconds
        time.nanos = ms * NANOS_PER_MS


def execution_message(
    execution: Execution, *, last_attempt_only: bool = False
) -> execution_pb2.Execution:
    """The execution as a read shows it."""
    message = execution_pb2.Execution(
        name=execution_name(execution.namespace, execution.job, execution.id),
        job_uid=execution.uid.hex(),
        kind=int(execution.kind),  # type: ignore[arg-type]  # equal numbers, held by a test
        state=int(execution.state),  # type: ignore[arg-type]
        reason=int(execution.reason),  # type: ignore[arg-type]
        attempt_count=execution.attempt,
        scheduled_time=timestamp(execution.scheduled_ms),
        create_time=timestamp(execution.create_ms),
    )
    if execution.first_attempt_ms:
        message.start_time.CopyFrom(timestamp(execution.first_attempt_ms))
    if execution.end_ms:
        message.end_time.CopyFrom(timestamp(execution.end_ms))
    elif execution.due_ms:
        message.next_attempt_time.CopyFrom(timestamp(execution.due_ms))
    if execution.kind == ExecutionKind.MANUAL:
        message.request_id = execution.request_id
    if execution.last_ms:
        message.skip_run.first_time.CopyFrom(timestamp(execution.scheduled_ms))
        message.skip_run.last_time.CopyFrom(timestamp(execution.last_ms))
        message.skip_run.count = execution.length
        message.skip_run.reason = int(execution.reason)  # type: ignore[assignment]
    attempts = execution.attempts[-1:] if last_attempt_only else execution.attempts
    message.attempts.extend(_attempt_message(attempt) for attempt in attempts)
    return message


def _attempt_message(attempt: Attempt) -> execution_pb2.Attempt:
    return execution_pb2.Attempt(
        number=attempt.number,
        epoch=attempt.epoch,
        generation=attempt.generation,
        start_time=timestamp(attempt.start_ms),
        end_time=timestamp(attempt.end_ms),
        http_status=attempt.status,
        error=attempt.error,
        response_body=attempt.body,
    )


def _shown_next_ms(status: Status) -> int:
    """The next scheduled time of a job that may still reach it, else 0."""
    return status.next_ms if status.state in _WAITING else 0


def _hide(target: target_pb2.HttpTarget) -> None:
    """Every stored job has an HTTP target: other fields that could hold secrets are not supported yet."""
    target.ClearField("body")
    for header in target.headers:
        header.ClearField("content")
