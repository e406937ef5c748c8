"""Floor 2, pure. What the leader tells itself: an occurrence fell due, an attempt ended, a retention is over.

    PENDING ─► RUNNING ──2xx──► SUCCEEDED
                  │ ╰──may be retried──► RETRYING ──(due again)──► RUNNING
                  ╰──refused, or no attempt left──► FAILED (a dead letter until it is retried by hand or forgotten)

Must never import: any driver, `store`, `table`, `wheel`; no I/O, no clock; chance comes from the draft's `Random`.
"""

from tickwheel.server import retry, schedule
from tickwheel.server.command import (
    Abandon,
    Due,
    Ended,
    Expire,
)
from tickwheel.server.draft import Draft
from tickwheel.server.fire import Fire, Outcome, OutcomeKind
from tickwheel.server.model import (
    Attempt,
    Execution,
    ExecutionKind,
    ExecutionState,
    JobRow,
    JobState,
    Ms,
    Reason,
    Row,
    Spec,
    Status,
)
from tickwheel.server.spec import decode_spec
from tickwheel.server.steps import arm_ms, end_buffered, end_live, record_missed, settle

ATTEMPTS_KEPT_MAX = 100
"""Attempts that an execution's record keeps, the newest."""

BODIES_KEPT_MAX = 3
"""Of these, how many keep what the target answered."""


def due(draft: Draft, command: Due) -> None:
    found = draft.job(command.job_row)
    if found is None:
        return
    job, status = found
    if status.state != JobState.SCHEDULED or status.due_ms != command.due_ms:
        _not_wanted(draft, command, job, status)
        return
    spec = draft.spec(command.job_row, job, status)
    if command.missed is not None:
        status = record_missed(draft, command.job_row, job, status, command.missed)
    started = command.fired_ms or command.buffered_ms
    next_ms = _next_after(status, spec, command)
    live = status.live
    if command.fired_ms:
        _put_fired(draft, command, job)
        live = (*live, command.execution_row)
    status = status._replace(
        next_ms=next_ms,
        due_ms=arm_ms(status.state, next_ms, job.uid, spec),
        run=status.run + bool(started),
        last_ms=started or status.last_ms,
        buffered_ms=command.buffered_ms or status.buffered_ms,
        skip=None if started else status.skip,
        live=live,
    )
    draft.put_status(command.job_row, settle(status, spec, draft.now_ms))


def _put_fired(draft: Draft, command: Due, job: JobRow) -> None:
    execution = Execution(
        command.job_row, job.uid, job.namespace, job.name, ExecutionKind.OCCURRENCE, command.fired_ms, "",
        ExecutionState.RUNNING, draft.now_ms, due_ms=command.due_ms,
    )  # fmt: skip
    draft.put_live(command.execution_row, execution)


def _not_wanted(draft: Draft, command: Due, job: JobRow, status: Status) -> None:
    """The target said "no more" in this very batch: what was fired meanwhile is kept back, or on record if it has left."""
    fired = [
        f for f in draft.flights(command.job_row) if f.fire.execution_row == command.execution_row
    ]
    if not any(flight.sent for flight in fired):
        draft.withdraw(command.execution_row)
        return
    _put_fired(draft, command, job)
    spec = draft.spec(command.job_row, job, status)
    status = status._replace(
        next_ms=_next_after(status, spec, command),
        run=status.run + 1,
        last_ms=command.fired_ms,
        live=(*status.live, command.execution_row),
    )
    draft.put_status(command.job_row, status)


def _next_after(status: Status, spec: Spec, command: Due) -> Ms:
    run = status.run + bool(command.fired_ms or command.buffered_ms)
    if spec.max_executions and run >= spec.max_executions:
        return 0
    missed_ms = command.missed.last_ms if command.missed else 0
    handled_ms = max(command.fired_ms, command.buffered_ms, missed_ms)
    return schedule.compile(spec.schedule, spec.window).next_after(handled_ms) or 0


def expire(draft: Draft, command: Expire) -> None:
    found = draft.job(command.job_row)
    if found is None:
        return
    job, status = found
    if status.state == JobState.SCHEDULED or status.due_ms != command.due_ms:
        return
    if status.live:
        spec = decode_spec(job.spec)
        draft.put_status(command.job_row, status._replace(due_ms=draft.now_ms + spec.retention_ms))
        return
    draft.drop(command.job_row, job)


def abandon(draft: Draft, command: Abandon) -> None:
    """End what was on its way when an earlier leader died, after the user or the target had said: no more."""
    execution = draft.execution(command.execution_row)
    found = draft.job(command.job_row)
    if execution is None or found is None:
        return
    _, status = found
    state, reason = ExecutionState.CANCELLED, Reason.JOB_CANCELLED
    if status.state == JobState.DISABLED:
        state, reason = ExecutionState.FAILED, Reason.JOB_DISABLED
    elif status.state != JobState.CANCELLED:  # resumed meanwhile: due again
        draft.put_live(command.execution_row, execution)
        return
    execution = execution._replace(state=state, reason=reason, due_ms=0, end_ms=draft.now_ms)
    draft.put_ended(command.execution_row, execution)
    draft.put_status(command.job_row, _count_end(status, command.execution_row, state))


def ended(draft: Draft, command: Ended) -> None:
    """An attempt's outcome. A late one of an execution that a cancel or a delete ended changes nothing."""
    fire, outcome = command.fire, command.outcome
    execution = draft.execution(fire.execution_row)
    found = draft.job(fire.job_row)
    if execution is None or found is None:
        return
    job, status = found
    spec = draft.spec(fire.job_row, job, status)
    first_attempt_ms = execution.first_attempt_ms or outcome.start_ms
    state, reason, due_ms = _judge(draft, spec, status, command, execution.base, first_attempt_ms)
    retrying = state == ExecutionState.RETRYING
    execution = execution._replace(
        state=state,
        due_ms=due_ms,
        end_ms=execution.end_ms if retrying else draft.now_ms,
        attempt=fire.attempt,
        first_attempt_ms=first_attempt_ms,
        reason=execution.reason if retrying else reason,
        attempts=_attempts_with(execution.attempts, fire, outcome),
    )
    if retrying:
        draft.put_live(fire.execution_row, execution)
        return
    draft.put_ended(fire.execution_row, execution)
    status = _count_end(status, fire.execution_row, state)
    if outcome.kind == OutcomeKind.DISABLE and status.state != JobState.CANCELLED:
        status = _disable(draft, fire.job_row, job, status, spec)
    status = _start_buffered(draft, fire.job_row, job, status)
    draft.put_status(fire.job_row, settle(status, spec, draft.now_ms))


def _attempts_with(
    attempts: tuple[Attempt, ...], fire: Fire, outcome: Outcome
) -> tuple[Attempt, ...]:
    attempt = Attempt(
        fire.attempt, fire.epoch, fire.generation, outcome.start_ms, outcome.end_ms,
        outcome.status, outcome.error, outcome.body,
    )  # fmt: skip
    if not attempts:
        return (attempt,)
    earlier = attempts[-ATTEMPTS_KEPT_MAX + 1 :]
    if len(earlier) >= BODIES_KEPT_MAX:
        old = len(earlier) - BODIES_KEPT_MAX + 1
        earlier = (*(a._replace(body=b"") for a in earlier[:old]), *earlier[old:])
    return (*earlier, attempt)


def _judge(
    draft: Draft, spec: Spec, status: Status, command: Ended, base: int, first_attempt_ms: Ms
) -> tuple[ExecutionState, Reason, Ms]:
    """The execution's state after this outcome, why, and when the next attempt is due."""
    outcome = command.outcome
    if outcome.kind == OutcomeKind.SUCCEEDED:
        return ExecutionState.SUCCEEDED, Reason.NONE, 0
    if status.state == JobState.CANCELLED:
        return ExecutionState.CANCELLED, Reason.JOB_CANCELLED, 0
    if outcome.kind == OutcomeKind.DISABLE or status.state == JobState.DISABLED:
        return ExecutionState.FAILED, Reason.JOB_DISABLED, 0
    if outcome.kind == OutcomeKind.FAIL:
        return ExecutionState.FAILED, Reason.TARGET_REFUSED_RETRY, 0
    following = retry.next_attempt_ms(
        spec.retry,
        attempt=command.fire.attempt - base,
        first_attempt_ms=first_attempt_ms,
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


def _disable(draft: Draft, row: Row, job: JobRow, status: Status, spec: Spec) -> Status:
    status = end_live(draft, row, status, Reason.JOB_DISABLED, sent_too=False)
    status = end_buffered(draft, row, job, status, Reason.JOB_DISABLED)
    return status._replace(
        state=JobState.DISABLED,
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
