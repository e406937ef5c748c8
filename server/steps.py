"""Floor 2, pure. Steps that users' commands (`decide`) and the leader's own (`progress`) share.

Each takes the draft and a status and gives the status that follows; what else it changes goes into the draft.

Must never import: any driver, `store`, `table`, `wheel`; no I/O, no clock.
"""

from tickwheel.server import schedule
from tickwheel.server.command import (
    Cancellation,
    JobView,
    Missed,
    NamedCommand,
)
from tickwheel.server.draft import Draft
from tickwheel.server.errors import (
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
)
from tickwheel.server.model import (
    Execution,
    ExecutionKind,
    ExecutionState,
    JobRow,
    JobState,
    Ms,
    Reason,
    Row,
    SkipRun,
    Spec,
    Status,
)

LIVE_MAX = 256
"""Executions of one job that have not ended; the next occurrence is given up with LIVE_LIMIT."""

_MISSED_STATES = {
    Reason.OVERLAP: ExecutionState.SKIPPED,
    Reason.PAUSED: ExecutionState.SKIPPED,
    Reason.LIVE_LIMIT: ExecutionState.SKIPPED,
}


def armed(status: Status, uid: bytes, spec: Spec) -> Status:
    """`due_ms` from `next_ms` and the job's jitter. A job that is not SCHEDULED keeps no due time here."""
    return status._replace(due_ms=arm_ms(status.state, status.next_ms, uid, spec))


def arm_ms(state: JobState, next_ms: Ms, uid: bytes, spec: Spec) -> Ms:
    """When an occurrence fires: its jitter later, never if the job is not SCHEDULED or there is none."""
    if state != JobState.SCHEDULED or not next_ms:
        return 0
    return next_ms + schedule.jitter(uid, next_ms, spec.jitter_ms)


def settle(status: Status, spec: Spec, now_ms: Ms) -> Status:
    """COMPLETED once nothing is left to happen; its due time is then the end of its retention."""
    if status.state != JobState.SCHEDULED or status.next_ms or status.live or status.buffered_ms:
        return status
    return status._replace(
        state=JobState.COMPLETED, due_ms=now_ms + spec.retention_ms, update_ms=now_ms
    )


def record_missed(draft: Draft, row: Row, job: JobRow, status: Status, missed: Missed) -> Status:
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


def race(draft: Draft, status: Status, row: Row, *, once: bool) -> tuple[Cancellation, int]:
    """What became of the request this change races with. A one-off has but one: after it was sent, none is before it."""
    attempts = [flight.fire.attempt for flight in draft.flights(row) if flight.sent]
    start_ms = draft.stamp.start_ms
    due_before = 0 < status.due_ms <= start_ms and status.create_ms <= start_ms
    unknown = due_before and status.state == JobState.SCHEDULED
    ahead = bool(status.next_ms)
    for live_row in status.live:
        execution = draft.execution(live_row)
        if execution is None:
            continue
        ahead = ahead or (execution.kind == ExecutionKind.OCCURRENCE and not execution.attempt)
        if execution.attempt > execution.base:
            attempts.append(execution.attempt)
        elif execution.create_ms <= start_ms or (
            0 < execution.due_ms <= start_ms and status.create_ms <= start_ms
        ):
            unknown = True  # the leader before may have sent it, though we alone have it in the log
    if attempts:
        return Cancellation.ALREADY_DISPATCHED, max(attempts)
    if once and not ahead and status.succeeded + status.failed:
        return Cancellation.ALREADY_DISPATCHED, 0
    return (Cancellation.DISPATCH_UNKNOWN if unknown else Cancellation.BEFORE_DISPATCH), 0


def end_live(draft: Draft, row: Row, status: Status, reason: Reason, *, sent_too: bool) -> Status:
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


def end_buffered(draft: Draft, row: Row, job: JobRow, status: Status, reason: Reason) -> Status:
    """Give up the occurrence that waited for the live one; like those, it ends as CANCELLED."""
    if not status.buffered_ms:
        return status
    ended = Execution(
        row, job.uid, job.namespace, job.name, ExecutionKind.OCCURRENCE, status.buffered_ms, "",
        ExecutionState.CANCELLED, draft.now_ms, end_ms=draft.now_ms, reason=reason,
    )  # fmt: skip
    draft.put_ended(draft.new_row(), ended)
    return status._replace(buffered_ms=0)


def cancel_unsent(draft: Draft, row: Row, status: Status) -> Status:
    """A new schedule takes back the occurrence of the old one that was due but not yet sent."""
    unsent = {flight.fire.execution_row for flight in draft.flights(row) if not flight.sent}
    if not unsent:
        return status
    kept = tuple(live for live in status.live if live not in unsent)
    end_live(draft, row, status._replace(live=tuple(unsent)), Reason.JOB_CANCELLED, sent_too=False)
    return status._replace(live=kept)


def known_job(draft: Draft, row: Row, command: NamedCommand) -> tuple[JobRow, Status]:
    found = draft.job(row) if row else None
    if found is None:
        raise NotFound(
            f"no job {command.name!r} in namespace {command.namespace!r}",
            reason="JOB_NOT_FOUND",
            metadata={"job": command.name, "namespace": command.namespace},
        )
    return found


def view_of(draft: Draft, row: Row, job: JobRow, status: Status) -> JobView:
    return JobView(row, job, status, sum(flight.sent for flight in draft.flights(row)))


def check_live_room(status: Status) -> None:
    if len(status.live) >= LIVE_MAX:
        raise ResourceExhausted(
            f"the job has {LIVE_MAX} executions that have not ended; wait for some of them",
            reason="LIVE_EXECUTIONS_FULL",
            metadata={"live_max": str(LIVE_MAX)},
            retry_after_ms=1_000,
        )


def wrong_state(job: JobRow, status: Status, remedy: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"job {job.name!r} is {status.state.name}: {remedy}",
        reason="JOB_STATE",
        metadata={"job": job.name, "state": status.state.name},
    )


def pack_answer(cancellation: Cancellation, attempt: int) -> int:
    """A cancel's answer as one number, so that repeating the cancel, even after a crash, is answered the same."""
    return attempt << 2 | cancellation


def unpack_answer(answer: int) -> tuple[Cancellation, int]:
    """The inverse of `pack_answer`."""
    return Cancellation(answer & 3), answer >> 2
