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
from typing import Any

from tickwheel.server import codec, retry, schedule
from tickwheel.server.command import (
    Cancel,
    Cancellation,
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
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    TickwheelError,
    Violation,
)
from tickwheel.server.fire import Outcome, OutcomeKind
from tickwheel.server.model import (
    Attempt,
    Execution,
    ExecutionKind,
    ExecutionState,
    JobRow,
    JobState,
    Ms,
    Once,
    Reason,
    Row,
    SkipRun,
    Spec,
    Status,
)

PAST_GRACE_MS = 60_000
"""A one-off may be this late when it is created, unless the request says that the past is welcome."""

LIVE_MAX = 256
"""Executions of one job that have not ended; the next occurrence is given up with LIVE_LIMIT."""

REQUESTS_MAX = 64
"""How many request_ids of Run and Redrive a job remembers."""

_MISSED_STATES = {
    Reason.OVERLAP: ExecutionState.SKIPPED,
    Reason.PAUSED: ExecutionState.SKIPPED,
    Reason.LIVE_LIMIT: ExecutionState.SKIPPED,
}


def decide(draft: Draft, commands: Sequence[Command]) -> list[Reply | TickwheelError]:
    """Run the commands in order over the draft. One answer each; an error instance stands for a refusal."""
    return [_decide_one(draft, command) for command in commands]


def _decide_one(draft: Draft, command: Command) -> Reply | TickwheelError:
    try:
        return HANDLERS[type(command)](draft, command)
    except TickwheelError as error:
        return error


# --- users' commands -------------------------------------------------------------------------------------------------


def _create(draft: Draft, command: Create) -> JobView:
    prepared = command.prepared
    row = 0 if command.fresh else draft.find(command.namespace, command.name)
    if row:
        return _created_before(draft, row, command)
    uid = (draft.now_ms << 80 | draft.rng.getrandbits(80)).to_bytes(16, "big")
    first_ms = _first_occurrence(draft, command)
    due_ms = first_ms + schedule.jitter(uid, first_ms, prepared.jitter_ms)
    status = Status(
        JobState.SCHEDULED, 1, draft.now_ms, draft.now_ms, first_ms, due_ms, origin=prepared.digest
    )
    job = JobRow(command.namespace, command.name, uid, prepared.spec, b"", prepared.labels)
    if command.validate_only:
        return JobView(0, job, status)
    row = draft.new_row()
    draft.put_job(row, job, status)
    return JobView(row, job, status)


def _created_before(draft: Draft, row: Row, command: Create) -> JobView:
    job, status = _known(draft, row, command)
    if status.origin != command.prepared.digest:
        raise AlreadyExists(
            f"job {command.name!r} exists with other content; choose another job_id, or update it",
            metadata={"job": command.name, "namespace": command.namespace, "uid": job.uid.hex()},
        )
    return _view(draft, row, job, status)


def _first_occurrence(draft: Draft, command: Create) -> Ms:
    prepared = command.prepared
    first_ms = prepared.plan.next_after(0 if prepared.once else draft.now_ms)
    if first_ms is None:
        raise InvalidArgument.of(
            [
                Violation(
                    "job.schedule",
                    "no occurrence lies ahead; check end_time and excluded_times",
                    "NEVER_FIRES",
                )
            ]
        )
    if prepared.once and not prepared.past_ok and first_ms < draft.now_ms - PAST_GRACE_MS:
        late_s = (draft.now_ms - first_ms) // 1000
        raise InvalidArgument.of(
            [
                Violation(
                    "job.schedule.once",
                    f"its time passed {late_s} s ago; give a later time, or say past_policy = FIRE_NOW",
                    "PAST_TIME",
                )
            ]
        )
    return first_ms


def _update(draft: Draft, command: Update) -> ChangeReply:
    row, job, status = _named(draft, command)
    _check_etag(status, command.etag)
    if status.state == JobState.CANCELLED:
        raise _wrong_state(job, status, "a cancelled job can't be updated; create a new one")
    prepared = command.merge(job.spec)
    before, after = codec.decode_spec(job.spec), codec.decode_spec(prepared.spec)
    rescheduled = (before.schedule, before.window) != (after.schedule, after.window)
    cancellation, attempt = _race(draft, status, row)
    if rescheduled or before.jitter_ms != after.jitter_ms:
        status = _reschedule(draft, job, status, after)
    status = status._replace(generation=status.generation + 1, update_ms=draft.now_ms)
    job = job._replace(spec=prepared.spec, labels=prepared.labels)
    if not command.validate_only:
        if rescheduled:
            status = _cancel_unsent(draft, row, status)
        draft.put_job(row, job, _settle(status, after, draft.now_ms))
    return ChangeReply(_view(draft, row, job, status), cancellation, attempt)


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
    return _armed(status._replace(state=state, next_ms=next_ms, buffered_ms=0), job.uid, spec)


def _delete(draft: Draft, command: Delete) -> None:
    row, job, status = _named(draft, command)
    _check_etag(status, command.etag)
    _end_live(draft, row, status, Reason.JOB_DELETED, sent_too=True)
    draft.drop(row, job)


def _pause(draft: Draft, command: Pause) -> JobView:
    row, job, status = _named(draft, command)
    _check_etag(status, command.etag)
    if status.state == JobState.PAUSED:
        return _view(draft, row, job, status)
    if status.state != JobState.SCHEDULED:
        raise _wrong_state(job, status, "only a SCHEDULED job can be paused")
    status = status._replace(state=JobState.PAUSED, due_ms=0, update_ms=draft.now_ms)
    draft.put_status(row, status)
    return _view(draft, row, job, status)


def _resume(draft: Draft, command: Resume) -> JobView:
    row, job, status = _named(draft, command)
    _check_etag(status, command.etag)
    if status.state == JobState.SCHEDULED:
        return _view(draft, row, job, status)
    if status.state not in {JobState.PAUSED, JobState.DISABLED}:
        raise _wrong_state(job, status, "only a PAUSED or DISABLED job can be resumed")
    spec = codec.decode_spec(job.spec)
    status = status._replace(state=JobState.SCHEDULED, update_ms=draft.now_ms)
    status = _skip_paused(draft, row, job, status, spec)
    status = _settle(_armed(status, job.uid, spec), spec, draft.now_ms)
    draft.put_status(row, status)
    for live in status.live:
        execution = draft.execution(live)
        if execution is not None:
            draft.put_live(live, execution)
    return _view(draft, row, job, status)


def _skip_paused(draft: Draft, row: Row, job: JobRow, status: Status, spec: Spec) -> Status:
    """What a recurring job would have done while it was paused becomes one record."""
    if isinstance(spec.schedule, Once) or not 0 < status.next_ms <= draft.now_ms:
        return status
    plan = schedule.compile(spec.schedule, spec.window)
    last_ms = plan.prev_at_or_before(draft.now_ms) or status.next_ms
    count = plan.count_between(status.next_ms - 1, last_ms, 10_000_000)
    missed = Missed(status.next_ms, last_ms, max(count, 1), Reason.PAUSED)
    status = _record_missed(draft, row, job, status, missed)
    return status._replace(next_ms=plan.next_after(last_ms) or 0)


def _cancel(draft: Draft, command: Cancel) -> ChangeReply:
    row, job, status = _named(draft, command)
    _check_etag(status, command.etag)
    cancellation, attempt = _race(draft, status, row)
    if status.state == JobState.CANCELLED:
        return ChangeReply(_view(draft, row, job, status), cancellation, attempt)
    if status.state == JobState.COMPLETED and not status.live:
        raise _wrong_state(job, status, "it is over; nothing is left to cancel")
    spec = codec.decode_spec(job.spec)
    status = _end_live(draft, row, status, Reason.JOB_CANCELLED, sent_too=False)
    status = status._replace(
        state=JobState.CANCELLED,
        next_ms=0,
        buffered_ms=0,
        due_ms=draft.now_ms + spec.retention_ms,
        update_ms=draft.now_ms,
    )
    draft.put_status(row, status)
    return ChangeReply(_view(draft, row, job, status), cancellation, attempt)


def _run(draft: Draft, command: Run) -> JobView:
    row, job, status = _named(draft, command)
    digest = _request_digest("run", command.request_id)
    if any(known == digest for known, _ in status.requests):
        return _view(draft, row, job, status)
    if status.state in {JobState.CANCELLED, JobState.DISABLED}:
        raise _wrong_state(job, status, "a job in this state can't be run")
    _check_live_room(status)
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
        return _view(draft, row, job, status)
    if status.state in {JobState.CANCELLED, JobState.DISABLED}:
        raise _wrong_state(job, status, "resume it before its executions are retried")
    if command.ended.state not in {ExecutionState.FAILED, ExecutionState.UNKNOWN}:
        raise FailedPrecondition(
            f"execution {command.ended.id} is {command.ended.state.name}; only FAILED and UNKNOWN ones can be retried",
            reason="EXECUTION_NOT_FAILED",
            metadata={"execution": command.ended.id, "state": command.ended.state.name},
        )
    _check_live_room(status)
    execution = command.ended._replace(
        state=ExecutionState.PENDING, due_ms=draft.now_ms, end_ms=0, base=command.ended.attempt,
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
    return _view(draft, row, job, status)


# --- the leader's own commands ---------------------------------------------------------------------------------------


def _due(draft: Draft, command: Due) -> None:
    found = draft.job(command.job_row)
    if found is None:
        return
    job, status = found
    if status.state != JobState.SCHEDULED or status.due_ms != command.due_ms:
        return
    spec = codec.decode_spec(job.spec)
    if command.missed is not None:
        status = _record_missed(draft, command.job_row, job, status, command.missed)
    started = command.fired_ms or command.buffered_ms
    status = status._replace(
        next_ms=_next_after(status, spec, command),
        run=status.run + bool(started),
        last_ms=started or status.last_ms,
        buffered_ms=command.buffered_ms or status.buffered_ms,
        skip=None if started else status.skip,
    )
    if command.fired_ms:
        execution = Execution(
            command.job_row, job.uid, job.namespace, job.name, ExecutionKind.OCCURRENCE, command.fired_ms, "",
            ExecutionState.RUNNING, draft.now_ms, due_ms=command.due_ms,
        )  # fmt: skip
        draft.put_live(command.execution_row, execution)
        status = status._replace(live=(*status.live, command.execution_row))
    status = _settle(_armed(status, job.uid, spec), spec, draft.now_ms)
    draft.put_status(command.job_row, status)


def _next_after(status: Status, spec: Spec, command: Due) -> Ms:
    run = status.run + bool(command.fired_ms or command.buffered_ms)
    if spec.max_executions and run >= spec.max_executions:
        return 0
    missed_ms = command.missed.last_ms if command.missed else 0
    handled_ms = max(command.fired_ms, command.buffered_ms, missed_ms)
    return schedule.compile(spec.schedule, spec.window).next_after(handled_ms) or 0


def _expire(draft: Draft, command: Expire) -> None:
    found = draft.job(command.job_row)
    if found is None:
        return
    job, status = found
    if status.state == JobState.SCHEDULED or status.due_ms != command.due_ms:
        return
    if status.live:
        spec = codec.decode_spec(job.spec)
        draft.put_status(command.job_row, status._replace(due_ms=draft.now_ms + spec.retention_ms))
        return
    draft.drop(command.job_row, job)


def _ended(draft: Draft, command: Ended) -> None:
    """An attempt's outcome. A late one of an execution that a cancel or a delete ended changes nothing."""
    fire, outcome = command.fire, command.outcome
    execution = draft.execution(fire.execution_row)
    found = draft.job(fire.job_row)
    if execution is None or found is None:
        return
    job, status = found
    spec = codec.decode_spec(job.spec)
    execution = _with_attempt(execution, command)
    state, reason, due_ms = _judge(draft, spec, status, execution, outcome)
    if state == ExecutionState.RETRYING:
        draft.put_live(fire.execution_row, execution._replace(state=state, due_ms=due_ms))
        return
    execution = execution._replace(state=state, reason=reason, due_ms=0, end_ms=draft.now_ms)
    draft.put_ended(fire.execution_row, execution)
    status = _count_end(status, fire.execution_row, state)
    if outcome.kind == OutcomeKind.DISABLE:
        status = _disable(draft, fire.job_row, status, spec)
    status = _start_buffered(draft, fire.job_row, job, status)
    draft.put_status(fire.job_row, _settle(status, spec, draft.now_ms))


def _with_attempt(execution: Execution, command: Ended) -> Execution:
    fire, outcome = command.fire, command.outcome
    attempt = Attempt(
        fire.attempt, fire.epoch, fire.generation, outcome.start_ms, outcome.end_ms,
        outcome.status, outcome.error, outcome.body,
    )  # fmt: skip
    return execution._replace(
        attempt=fire.attempt,
        first_attempt_ms=execution.first_attempt_ms or outcome.start_ms,
        attempts=(*execution.attempts, attempt),
    )


def _judge(
    draft: Draft, spec: Spec, status: Status, execution: Execution, outcome: Outcome
) -> tuple[ExecutionState, Reason, Ms]:
    """The execution's state after this outcome, why, and when the next attempt is due."""
    if outcome.kind == OutcomeKind.SUCCEEDED:
        return ExecutionState.SUCCEEDED, Reason.NONE, 0
    if status.state == JobState.CANCELLED:
        return ExecutionState.CANCELLED, Reason.JOB_CANCELLED, 0
    if outcome.kind == OutcomeKind.DISABLE:
        return ExecutionState.FAILED, Reason.JOB_DISABLED, 0
    if outcome.kind == OutcomeKind.FAIL:
        return ExecutionState.FAILED, Reason.TARGET_REFUSED_RETRY, 0
    following = retry.next_attempt_ms(
        spec.retry,
        attempt=execution.attempt - execution.base,
        first_attempt_ms=execution.first_attempt_ms,
        now_ms=draft.now_ms,
        retry_after_ms=outcome.retry_after_ms,
        rng=draft.rng,
    )
    if isinstance(following, Reason):
        return ExecutionState.FAILED, following, 0
    return ExecutionState.RETRYING, Reason.NONE, following


def _count_end(status: Status, live_row: Row, state: ExecutionState) -> Status:
    return status._replace(
        live=tuple(row for row in status.live if row != live_row),
        last_outcome=int(state),
        succeeded=status.succeeded + (state == ExecutionState.SUCCEEDED),
        failed=status.failed + (state == ExecutionState.FAILED),
    )


def _disable(draft: Draft, row: Row, status: Status, spec: Spec) -> Status:
    status = _end_live(draft, row, status, Reason.JOB_DISABLED, sent_too=False)
    return status._replace(
        state=JobState.DISABLED,
        buffered_ms=0,
        due_ms=draft.now_ms + spec.retention_ms,
        update_ms=draft.now_ms,
    )


def _start_buffered(draft: Draft, row: Row, job: JobRow, status: Status) -> Status:
    if not status.buffered_ms or status.live:
        return status
    live_row = draft.new_row()
    execution = Execution(
        row, job.uid, job.namespace, job.name, ExecutionKind.OCCURRENCE, status.buffered_ms, "",
        ExecutionState.PENDING, draft.now_ms, due_ms=draft.now_ms,
    )  # fmt: skip
    draft.put_live(live_row, execution)
    return status._replace(buffered_ms=0, live=(live_row,))


# --- shared steps ----------------------------------------------------------------------------------------------------


def _armed(status: Status, uid: bytes, spec: Spec) -> Status:
    """`due_ms` from `next_ms` and the job's jitter. A job that is not SCHEDULED keeps no due time here."""
    if status.state != JobState.SCHEDULED or not status.next_ms:
        return status._replace(due_ms=0)
    due_ms = status.next_ms + schedule.jitter(uid, status.next_ms, spec.jitter_ms)
    return status._replace(due_ms=due_ms)


def _settle(status: Status, spec: Spec, now_ms: Ms) -> Status:
    """COMPLETED once nothing is left to happen; its due time is then the end of its retention."""
    if status.state != JobState.SCHEDULED or status.next_ms or status.live or status.buffered_ms:
        return status
    return status._replace(
        state=JobState.COMPLETED, due_ms=now_ms + spec.retention_ms, update_ms=now_ms
    )


def _record_missed(draft: Draft, row: Row, job: JobRow, status: Status, missed: Missed) -> Status:
    """One record for consecutive occurrences given up for one reason; the next such one lengthens it."""
    run = status.skip
    if run is not None and run.reason == missed.reason:
        run = run._replace(last_ms=missed.last_ms, length=run.length + missed.length)
    else:
        run = SkipRun(
            draft.new_row(),
            draft.now_ms,
            missed.first_ms,
            missed.last_ms,
            missed.length,
            missed.reason,
        )
    state = _MISSED_STATES.get(run.reason, ExecutionState.MISSED)
    record = Execution(
        row, job.uid, job.namespace, job.name, ExecutionKind.OCCURRENCE, run.first_ms, "", state, run.create_ms,
        end_ms=draft.now_ms, reason=run.reason, last_ms=run.last_ms, length=run.length,
    )  # fmt: skip
    draft.put_ended(run.row, record)
    return status._replace(
        skip=run,
        skipped=status.skipped + missed.length,
        last_outcome=int(state),
        update_ms=draft.now_ms,
    )


def _race(draft: Draft, status: Status, row: Row) -> tuple[Cancellation, int]:
    """What became of the request this change races with."""
    attempts = [flight.fire.attempt for flight in draft.flights(row) if flight.sent]
    held = {flight.fire.execution_row for flight in draft.flights(row)}
    unknown = 0 < status.due_ms <= draft.stamp.start_ms and status.state == JobState.SCHEDULED
    for live_row in status.live:
        execution = draft.execution(live_row)
        if execution is None:
            continue
        if execution.attempt > execution.base:
            attempts.append(execution.attempt)
        elif live_row not in held and execution.create_ms <= draft.stamp.start_ms:
            unknown = True
    if attempts:
        return Cancellation.ALREADY_DISPATCHED, max(attempts)
    return (Cancellation.DISPATCH_UNKNOWN if unknown else Cancellation.BEFORE_DISPATCH), 0


def _end_live(draft: Draft, row: Row, status: Status, reason: Reason, *, sent_too: bool) -> Status:
    """End the job's live executions as CANCELLED; those already sent only if `sent_too`, else their outcome tells."""
    sent = {flight.fire.execution_row for flight in draft.flights(row) if flight.sent}
    kept: list[Row] = []
    for live_row in status.live:
        execution = draft.execution(live_row)
        if execution is None:
            continue
        if live_row in sent and not sent_too:
            kept.append(live_row)
            continue
        draft.withdraw(live_row)
        ended = execution._replace(
            state=ExecutionState.CANCELLED, reason=reason, due_ms=0, end_ms=draft.now_ms
        )
        draft.put_ended(live_row, ended)
    return status._replace(live=tuple(kept))


def _cancel_unsent(draft: Draft, row: Row, status: Status) -> Status:
    """A new schedule takes back the occurrence of the old one that was due but not yet sent."""
    unsent = {flight.fire.execution_row for flight in draft.flights(row) if not flight.sent}
    if not unsent:
        return status
    kept = tuple(live for live in status.live if live not in unsent)
    _end_live(draft, row, status._replace(live=tuple(unsent)), Reason.JOB_CANCELLED, sent_too=False)
    return status._replace(live=kept)


def _named(draft: Draft, command: NamedCommand) -> tuple[Row, JobRow, Status]:
    row = draft.find(command.namespace, command.name)
    job, status = _known(draft, row, command)
    return row, job, status


def _known(draft: Draft, row: Row, command: NamedCommand) -> tuple[JobRow, Status]:
    found = draft.job(row) if row else None
    if found is None:
        raise NotFound(
            f"no job {command.name!r} in namespace {command.namespace!r}",
            reason="JOB_NOT_FOUND",
            metadata={"job": command.name, "namespace": command.namespace},
        )
    return found


def _view(draft: Draft, row: Row, job: JobRow, status: Status) -> JobView:
    return JobView(row, job, status, sum(flight.sent for flight in draft.flights(row)))


def _check_etag(status: Status, wanted: str) -> None:
    current = etag(status)
    if wanted and wanted != current:
        raise Aborted(
            f"the job has changed: its etag is {current}, not {wanted}; get it again and repeat",
            metadata={"etag": current, "wanted": wanted},
        )


def _check_live_room(status: Status) -> None:
    if len(status.live) >= LIVE_MAX:
        raise ResourceExhausted(
            f"the job has {LIVE_MAX} executions that have not ended; wait for some of them",
            reason="LIVE_EXECUTIONS_FULL",
            metadata={"live_max": str(LIVE_MAX)},
            retry_after_ms=1_000,
        )


def _wrong_state(job: JobRow, status: Status, remedy: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"job {job.name!r} is {status.state.name}: {remedy}",
        reason="JOB_STATE",
        metadata={"job": job.name, "state": status.state.name},
    )


def _request_digest(verb: str, request_id: str) -> bytes:
    return blake2b(f"{verb}:{request_id}".encode(), digest_size=16).digest()


HANDLERS: dict[type, Callable[[Draft, Any], Reply]] = {
    Create: _create,
    Update: _update,
    Delete: _delete,
    Pause: _pause,
    Resume: _resume,
    Cancel: _cancel,
    Run: _run,
    Redrive: _redrive,
    Due: _due,
    Expire: _expire,
    Ended: _ended,
}
