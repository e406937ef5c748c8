"""Floor 2, pure. One function a command: what it changes (in the draft) and what it answers, or why it is refused.

    SCHEDULED ──pause──► PAUSED ──resume──► SCHEDULED          any of them ──delete──► gone
        │  ╲──cancel──► CANCELLED     (410 from the target) ──► DISABLED ──resume──► SCHEDULED
        ╰──no occurrence and no execution left──► COMPLETED    (a finished job is forgotten after its retention)

Everything that replay must not decide again is stamped here: ids, times, the next occurrence, the next attempt.
A handler that refuses (raises an error of `errors`) has changed nothing.

Must never import: any driver, `store`, `table`, `wheel`; no I/O, no clock; chance comes from the draft's `Random`.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Any, cast

from tickwheel.server import making, progress, schedule
from tickwheel.server.command import (
    Abandon,
    Cancel,
    ChangeReply,
    Command,
    Create,
    Delete,
    Due,
    Ended,
    Expire,
    JobView,
    Missed,
    NamedCommand,
    Pause,
    Redrive,
    Reply,
    Resume,
    Run,
    Update,
    etag,
)
from tickwheel.server.draft import Draft
from tickwheel.server.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    TickwheelError,
    Violation,
)
from tickwheel.server.model import (
    Execution,
    ExecutionKind,
    ExecutionState,
    JobRow,
    JobState,
    Once,
    Reason,
    Row,
    Spec,
    Status,
)
from tickwheel.server.spec import decode_spec
from tickwheel.server.steps import (
    armed,
    cancel_unsent,
    check_live_room,
    end_buffered,
    end_live,
    known_job,
    pack_answer,
    race,
    record_missed,
    settle,
    unpack_answer,
    view_of,
    wrong_state,
)

REQUESTS_MAX = 64
"""How many request_ids of Run and Redrive a job remembers."""


def decide(draft: Draft, commands: Sequence[Command]) -> list[Reply | TickwheelError]:
    """Run the commands in order over the draft. One answer each; an error instance stands for a refusal."""
    replies: list[Reply | TickwheelError] = []
    for kind, of_kind in groupby(commands, type):
        run = list(of_kind)
        made = making.create_all(draft, cast("list[Create]", run)) if kind is Create else None
        replies += [_one(draft, command) for command in run] if made is None else made
    return replies


def _one(draft: Draft, command: Command) -> Reply | TickwheelError:
    try:
        return HANDLERS[type(command)](draft, command)
    except TickwheelError as error:
        return error


def _update(draft: Draft, command: Update) -> ChangeReply:
    row, job, status = _named(draft, command)
    _check_etag(status, command.etag)
    if status.state == JobState.CANCELLED:
        raise wrong_state(job, status, "a cancelled job can't be updated; create a new one")
    prepared = command.merge(job.spec)
    before, after = decode_spec(job.spec), decode_spec(prepared.spec)
    cancellation, attempt = race(draft, status, row, once=isinstance(before.schedule, Once))
    if prepared.spec == job.spec:  # repeated, or nothing new: no new generation
        return ChangeReply(view_of(draft, row, job, status), cancellation, attempt)
    rescheduled = (before.schedule, before.window) != (after.schedule, after.window)
    if rescheduled:
        status = _reschedule(draft, job, status, after)
    elif before.jitter_ms != after.jitter_ms and status.state == JobState.SCHEDULED:
        status = armed(status, job.uid, after)
    status = status._replace(generation=status.generation + 1, update_ms=draft.now_ms)
    job = job._replace(spec=prepared.spec, labels=prepared.labels)
    if not command.validate_only:
        if rescheduled:
            status = cancel_unsent(draft, row, status)
            status = end_buffered(draft, row, job, status, Reason.JOB_CANCELLED)
        draft.put_job(row, job, settle(status, after, draft.now_ms))
    return ChangeReply(view_of(draft, row, job, status), cancellation, attempt)


def _reschedule(draft: Draft, job: JobRow, status: Status, spec: Spec) -> Status:
    """The status under a new schedule: never again an occurrence that was already handled."""
    plan = schedule.compile(spec.schedule, spec.window)
    once = isinstance(spec.schedule, Once)
    next_ms = plan.next_after(0 if once else max(draft.now_ms, status.last_ms))
    if next_ms is None or (once and next_ms <= status.last_ms):
        raise InvalidArgument.of(
            [
                Violation(
                    "job.schedule",
                    "the new schedule has no occurrence that lies ahead",
                    "NEVER_FIRES",
                )
            ]
        )
    state = JobState.SCHEDULED if status.state == JobState.COMPLETED else status.state
    status = status._replace(state=state, next_ms=next_ms)
    return armed(status, job.uid, spec) if state == JobState.SCHEDULED else status


def _delete(draft: Draft, command: Delete) -> None:
    row, job, status = _named(draft, command)
    _check_etag(status, command.etag)
    end_live(draft, row, status, Reason.JOB_DELETED, sent_too=True)
    end_buffered(draft, row, job, status, Reason.JOB_DELETED)
    draft.drop(row, job)


def _pause(draft: Draft, command: Pause) -> JobView:
    row, job, status = _named(draft, command)
    _check_etag(status, command.etag)
    if status.state == JobState.PAUSED:
        return view_of(draft, row, job, status)
    if status.state != JobState.SCHEDULED:
        raise wrong_state(job, status, "only a SCHEDULED job can be paused")
    status = status._replace(state=JobState.PAUSED, due_ms=0, update_ms=draft.now_ms)
    draft.put_status(row, status)
    return view_of(draft, row, job, status)


def _resume(draft: Draft, command: Resume) -> JobView:
    row, job, status = _named(draft, command)
    _check_etag(status, command.etag)
    if status.state == JobState.SCHEDULED:
        return view_of(draft, row, job, status)
    if status.state not in {JobState.PAUSED, JobState.DISABLED}:
        raise wrong_state(job, status, "only a PAUSED or DISABLED job can be resumed")
    spec = decode_spec(job.spec)
    status = status._replace(state=JobState.SCHEDULED, update_ms=draft.now_ms)
    status = _skip_paused(draft, row, job, status, spec)
    status = settle(armed(status, job.uid, spec), spec, draft.now_ms)
    draft.put_status(row, status)
    for live in status.live:
        execution = draft.execution(live)
        if execution is not None:
            draft.put_live(live, execution)
    return view_of(draft, row, job, status)


def _skip_paused(draft: Draft, row: Row, job: JobRow, status: Status, spec: Spec) -> Status:
    """What a recurring job would have done while it was paused becomes one record."""
    if isinstance(spec.schedule, Once) or not 0 < status.next_ms <= draft.now_ms:
        return status
    plan = schedule.compile(spec.schedule, spec.window)
    last_ms = plan.prev_at_or_before(draft.now_ms) or status.next_ms
    count = plan.count_between(status.next_ms - 1, last_ms, 10_000_000)
    missed = Missed(status.next_ms, last_ms, max(count, 1), Reason.PAUSED)
    status = record_missed(draft, row, job, status, missed)
    return status._replace(next_ms=plan.next_after(last_ms) or 0)


def _cancel(draft: Draft, command: Cancel) -> ChangeReply:
    row, job, status = _named(draft, command)
    _check_etag(status, command.etag)
    if status.state == JobState.CANCELLED:
        return ChangeReply(view_of(draft, row, job, status), *unpack_answer(status.cancel))
    spec = decode_spec(job.spec)
    cancellation, attempt = race(draft, status, row, once=isinstance(spec.schedule, Once))
    if status.state == JobState.COMPLETED and not status.live:
        raise wrong_state(job, status, "it is over; nothing is left to cancel")
    status = end_live(draft, row, status, Reason.JOB_CANCELLED, sent_too=False)
    status = end_buffered(draft, row, job, status, Reason.JOB_CANCELLED)
    status = status._replace(
        state=JobState.CANCELLED,
        next_ms=0,
        due_ms=draft.now_ms + spec.retention_ms,
        update_ms=draft.now_ms,
        cancel=pack_answer(cancellation, attempt),
    )
    draft.put_status(row, status)
    return ChangeReply(view_of(draft, row, job, status), cancellation, attempt)


def _run(draft: Draft, command: Run) -> JobView:
    row, job, status = _named(draft, command)
    digest = _request_digest("run", command.request_id)
    if any(known == digest for known, _ in status.requests):
        return view_of(draft, row, job, status)
    if status.state in {JobState.CANCELLED, JobState.DISABLED}:
        raise wrong_state(job, status, "a job in this state can't be run")
    check_live_room(status)
    live_row = draft.new_row()
    execution = Execution(
        row, job.uid, job.namespace, job.name, ExecutionKind.MANUAL, draft.now_ms, command.request_id,
        ExecutionState.PENDING, draft.now_ms, due_ms=draft.now_ms,
    )  # fmt: skip
    return _start_manual(draft, row, job, status, (digest, live_row, execution))


def _redrive(draft: Draft, command: Redrive) -> JobView:
    row, job, status = _named(draft, command)
    digest = _request_digest("redrive", command.request_id)
    repeated = any(known == digest for known, _ in status.requests)
    if repeated or command.row in status.live:
        return view_of(draft, row, job, status)
    if status.state in {JobState.CANCELLED, JobState.DISABLED}:
        raise wrong_state(job, status, "resume it before its executions are retried")
    ended = draft.letter(command.row)
    if ended is None or ended.uid != job.uid:
        raise NotFound(
            f"the execution is past its retention, or of an earlier job of the name {job.name!r}, which was deleted",
            reason="EXECUTION_NOT_FOUND",
            metadata={"job": job.name, "uid": job.uid.hex()},
        )
    if ended.state not in {ExecutionState.FAILED, ExecutionState.UNKNOWN}:
        raise FailedPrecondition(
            f"execution {ended.id} is {ended.state.name}; only FAILED and UNKNOWN ones can be retried",
            reason="EXECUTION_NOT_FAILED",
            metadata={"execution": ended.id, "state": ended.state.name},
        )
    check_live_room(status)
    execution = ended._replace(
        state=ExecutionState.PENDING, due_ms=draft.now_ms, end_ms=0, base=ended.attempt,
        first_attempt_ms=0, reason=Reason.NONE,
    )  # fmt: skip
    return _start_manual(draft, row, job, status, (digest, command.row, execution))


def _start_manual(
    draft: Draft, row: Row, job: JobRow, status: Status, start: tuple[bytes, Row, Execution]
) -> JobView:
    digest, live_row, execution = start
    draft.put_live(live_row, execution)
    requests = (*status.requests, (digest, live_row))[-REQUESTS_MAX:]
    status = status._replace(live=(*status.live, live_row), requests=requests)
    draft.put_status(row, status)
    return view_of(draft, row, job, status)


def _named(draft: Draft, command: NamedCommand) -> tuple[Row, JobRow, Status]:
    row = draft.find(command.namespace, command.name)
    job, status = known_job(draft, row, command)
    return row, job, status


def _check_etag(status: Status, wanted: str) -> None:
    current = etag(status)
    if wanted and wanted != current:
        raise Aborted(
            f"the job has changed: its etag is {current}, not {wanted}; get it again and repeat",
            metadata={"etag": current, "wanted": wanted},
        )


def _request_digest(verb: str, request_id: str) -> bytes:
    return blake2b(f"{verb}:{request_id}".encode(), digest_size=16).digest()


HANDLERS: dict[type, Callable[[Draft, Any], Reply]] = {
    Create: making.create,
    Update: _update,
    Delete: _delete,
    Pause: _pause,
    Resume: _resume,
    Cancel: _cancel,
    Run: _run,
    Redrive: _redrive,
    Due: progress.due,
    Expire: progress.expire,
    Abandon: progress.abandon,
    Ended: progress.ended,
}
