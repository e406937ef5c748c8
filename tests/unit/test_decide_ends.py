"""Decide, the ends of a job: cancel and its races, delete, and executions that are not where their job says."""

import pytest
from tests.unit.shard_kit import (
    DAY,
    HOUR,
    MINUTE,
    NAMESPACE,
    NOW,
    SECOND,
    Bench,
    change,
    creation,
    every,
    failed,
    once,
    succeeded,
)

from tickwheel.server.command import (
    Cancel,
    Cancellation,
    Delete,
    JobView,
    Pause,
    Resume,
    Run,
)
from tickwheel.server.errors import (
    FailedPrecondition,
    NotFound,
)
from tickwheel.server.fire import OutcomeKind
from tickwheel.server.model import (
    ExecutionState,
    JobState,
    OverlapPolicy,
    Reason,
)

BEFORE = Cancellation.BEFORE_DISPATCH
ALREADY = Cancellation.ALREADY_DISPATCHED
UNKNOWN = Cancellation.DISPATCH_UNKNOWN


@pytest.fixture
def bench() -> Bench:
    return Bench()


def states(bench: Bench) -> list[ExecutionState]:
    return [execution.state for execution in bench.ended()]


def cancel(bench: Bench, name: str = "a") -> tuple[Cancellation, int]:
    reply = bench.changed(Cancel(NAMESPACE, name))
    assert reply.view.status.state == JobState.CANCELLED
    return reply.cancellation, reply.attempt


# --- cancel ----------------------------------------------------------------------------------


def test_cancelled_before_it_was_due(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    assert cancel(bench) == (BEFORE, 0)
    status = bench.status("a")
    assert (status.next_ms, status.due_ms) == (0, NOW + DAY)
    assert bench.tick(HOUR) == []


def test_cancelled_when_due_but_not_sent(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    (fire,) = bench.tick(HOUR)
    assert cancel(bench) == (BEFORE, 0)
    assert not bench.shard.may_send(fire)
    assert states(bench) == [ExecutionState.CANCELLED]
    bench.give_back(fire)
    assert bench.tick(MINUTE) == []


def test_cancelled_in_the_batch_that_logs_the_occurrence(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    (fire,) = bench.tick(HOUR, log=False)
    assert cancel(bench) == (BEFORE, 0)
    assert not bench.shard.may_send(fire)
    assert states(bench) == [ExecutionState.CANCELLED]


def test_cancelled_when_sent(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    fire = bench.fire_one(HOUR)
    assert cancel(bench) == (ALREADY, 1)
    assert bench.ended() == []
    assert cancel(bench) == (ALREADY, 1)
    bench.flush()
    bench.answer(fire, failed())
    assert cancel(bench) == (ALREADY, 1), "a repeated cancel is answered as the first was"
    (ended,) = bench.ended()
    assert (ended.state, ended.reason) == (ExecutionState.CANCELLED, Reason.JOB_CANCELLED)
    assert ended.attempts[0].status == 500
    assert bench.tick(HOUR) == []


def test_a_cancelled_job_still_counts_the_success_of_what_was_sent(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    fire = bench.fire_one(HOUR)
    cancel(bench)
    bench.answer(fire, succeeded())
    assert states(bench) == [ExecutionState.SUCCEEDED]
    assert bench.status("a").state == JobState.CANCELLED


def test_a_cancelled_job_stays_cancelled_when_the_target_is_gone(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    fire = bench.fire_one(HOUR)
    cancel(bench)
    bench.answer(fire, failed(OutcomeKind.DISABLE, 410))
    assert bench.status("a").state == JobState.CANCELLED
    assert states(bench) == [ExecutionState.CANCELLED]


def test_a_one_off_that_was_sent_is_not_cancelled_before(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR))
    bench.answer(bench.fire_one(HOUR), failed(OutcomeKind.DISABLE, 410))
    assert bench.status("a").state == JobState.DISABLED
    assert cancel(bench) == (ALREADY, 0)


def test_a_one_off_that_was_sent_is_not_moved_before(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR))
    bench.answer(bench.fire_one(HOUR), succeeded())
    reply = bench.changed(change("a", once(NOW + DAY)))
    assert (reply.cancellation, reply.attempt) == (ALREADY, 0)
    reply = bench.changed(change("a", once(NOW + 2 * DAY)))  # the one of the new time was not
    assert (reply.cancellation, reply.attempt) == (BEFORE, 0)


def test_a_one_off_that_was_missed_was_never_sent(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR), expire_after_ms=SECOND)
    assert bench.tick(DAY) == []
    assert states(bench) == [ExecutionState.MISSED]
    assert bench.changed(change("a", once(NOW + 3 * DAY))).cancellation == BEFORE


def test_cancelled_while_a_retry_waits(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.answer(bench.fire_one(HOUR), failed())
    assert cancel(bench) == (ALREADY, 1)
    assert states(bench) == [ExecutionState.CANCELLED]
    assert bench.tick(HOUR) == []


def test_after_a_fail_over_an_occurrence_that_was_due_before_is_unknown(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.tick(HOUR, log=False)
    bench.crash(SECOND)
    assert cancel(bench) == (UNKNOWN, 0)


def test_after_a_fail_over_an_execution_without_an_outcome_is_unknown(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.tick(HOUR)
    bench.crash(SECOND)
    assert cancel(bench) == (UNKNOWN, 0)


def test_after_a_fail_over_what_is_due_again_but_not_sent_is_still_unknown(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.fire_one(HOUR)
    bench.crash(SECOND)
    assert len(bench.tick()) == 1
    assert cancel(bench) == (UNKNOWN, 0)


@pytest.mark.parametrize("log", [True, False])
def test_after_a_fail_over_what_only_the_successor_logged_is_still_unknown(
    bench: Bench, *, log: bool
) -> None:
    """The leader before died between sending and logging; this one fires it again, and is asked to cancel."""
    bench.create("a", every(HOUR))
    bench.tick(HOUR, log=False)
    bench.crash(SECOND)
    bench.now_ms += SECOND
    assert len(bench.tick(log=log)) == 1
    assert cancel(bench) == (UNKNOWN, 0)


def test_after_a_fail_over_what_this_leader_sent_is_known(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.tick(HOUR)
    bench.crash(SECOND)
    bench.fire_one()
    assert cancel(bench) == (ALREADY, 1)


def test_a_job_made_under_this_leader_was_never_sent_under_another(bench: Bench) -> None:
    bench.now_ms += SECOND
    bench.create("a", once(NOW - DAY), past_ok=True)
    assert cancel(bench) == (BEFORE, 0)


def test_nothing_is_left_to_cancel_of_a_completed_job(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR))
    bench.answer(bench.fire_one(HOUR))
    with pytest.raises(FailedPrecondition):
        bench.call(Cancel(NAMESPACE, "a"))


def test_a_completed_job_that_runs_by_hand_can_be_cancelled(bench: Bench) -> None:
    """The run is taken back; but the one-off's own occurrence arrived, so the answer can't be that nothing did."""
    bench.create("a", once(NOW + HOUR))
    bench.answer(bench.fire_one(HOUR))
    bench.call(Run(NAMESPACE, "a", "r"))
    assert cancel(bench) == (ALREADY, 0)
    assert states(bench) == [ExecutionState.SUCCEEDED, ExecutionState.CANCELLED]
    assert bench.tick() == []


def test_a_cancel_gives_up_the_occurrence_that_waited(bench: Bench) -> None:
    bench.create("a", every(HOUR), overlap=OverlapPolicy.BUFFER_ONE)
    fire = bench.fire_one(HOUR)
    bench.tick(HOUR)
    assert cancel(bench) == (ALREADY, 1)
    (ended,) = bench.ended()
    assert (ended.scheduled_ms, ended.reason) == (NOW + 2 * HOUR, Reason.JOB_CANCELLED)
    bench.answer(fire)
    assert bench.tick(HOUR) == []


# --- delete ----------------------------------------------------------------------------------


def test_a_deleted_job_is_gone_and_its_executions_end(bench: Bench) -> None:
    bench.create("a", every(HOUR), overlap=OverlapPolicy.BUFFER_ONE)
    fire = bench.fire_one(HOUR)
    bench.tick(HOUR)
    bench.call(Run(NAMESPACE, "a", "r"))
    assert bench.call(Delete(NAMESPACE, "a")) is None
    assert [(e.state, e.reason) for e in bench.ended()] == [
        (ExecutionState.CANCELLED, Reason.JOB_DELETED)
    ] * 3
    assert bench.live() == {}
    with pytest.raises(NotFound) as refusal:
        bench.call(Delete(NAMESPACE, "a"))
    assert refusal.value.reason == "JOB_NOT_FOUND"
    bench.answer(fire)
    assert len(bench.ended()) == 3
    assert bench.tick(DAY) == []


def test_a_deleted_name_begins_anew(bench: Bench) -> None:
    first = bench.create("a", every(HOUR))
    deleted, created = bench.batch(Delete(NAMESPACE, "a"), creation("a", every(MINUTE)))
    assert deleted is None
    assert isinstance(created, JobView)
    assert created.row != first.row
    assert created.job.uid != first.job.uid
    assert [fire.job_row for fire in bench.tick(MINUTE)] == [created.row]


# --- a status that names an execution which is not there ------------------------------------


def with_a_live_row_that_leads_nowhere(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.call(Run(NAMESPACE, "a", "r"))
    (live_row,) = bench.status("a").live
    bench.shard.table.put_ended(live_row, b"lost")


def test_a_cancel_lets_go_of_a_live_row_that_leads_nowhere(bench: Bench) -> None:
    with_a_live_row_that_leads_nowhere(bench)
    assert cancel(bench) == (BEFORE, 0)
    assert bench.status("a").live == ()


def test_a_resume_passes_over_a_live_row_that_leads_nowhere(bench: Bench) -> None:
    with_a_live_row_that_leads_nowhere(bench)
    bench.call(Pause(NAMESPACE, "a"))
    assert bench.view(Resume(NAMESPACE, "a")).status.state == JobState.SCHEDULED
    assert bench.tick() == []


def test_a_run_that_ended_does_not_make_a_one_off_sent(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR))
    bench.call(Run(NAMESPACE, "a", "r"))
    bench.answer(bench.fire_one())
    bench.tick(HOUR)
    assert cancel(bench) == (BEFORE, 0)
