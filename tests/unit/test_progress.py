"""Progress: what falls due, how attempts end, retries, overlap, misses in a row, completion and being forgotten."""

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
    cron,
    every,
    failed,
    once,
)

from tickwheel.server.command import Abandon, Cancel, Delete, Due, Ended, Expire, Pause, Resume, Run
from tickwheel.server.fire import Fire, Outcome, OutcomeKind
from tickwheel.server.model import (
    Execution,
    ExecutionState,
    JobState,
    MisfirePolicy,
    OverlapPolicy,
    Reason,
)
from tickwheel.server.progress import ATTEMPTS_KEPT_MAX, BODIES_KEPT_MAX
from tickwheel.server.steps import LIVE_MAX

BUFFER_ONE, ALLOW_ALL = OverlapPolicy.BUFFER_ONE, OverlapPolicy.ALLOW_ALL
DISABLE = OutcomeKind.DISABLE


@pytest.fixture
def bench() -> Bench:
    return Bench()


def gone(bench: Bench) -> list[tuple[Reason, int, int, int]]:
    """The records of what was not attempted: (reason, first, last, count), in hours since the beginning."""
    return [
        (e.reason, (e.scheduled_ms - NOW) // HOUR, (e.last_ms - NOW) // HOUR, e.length)
        for e in bench.ended()
        if e.state in {ExecutionState.SKIPPED, ExecutionState.MISSED}
    ]


def the_end(bench: Bench) -> Execution:
    (ended,) = bench.ended()
    return ended


# --- one attempt after the other -------------------------------------------------------------


def test_a_success_is_recorded_and_counted(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    fire = bench.fire_one(HOUR)
    status = bench.status("a")
    assert (status.run, status.last_ms, status.live) == (1, NOW + HOUR, (fire.execution_row,))
    assert bench.shard.running(fire.job_row) == 1
    bench.answer(fire)
    assert bench.shard.running(fire.job_row) == 0
    ended = the_end(bench)
    assert (ended.state, ended.attempt, ended.end_ms) == (ExecutionState.SUCCEEDED, 1, NOW + HOUR)
    status = bench.status("a")
    assert (status.succeeded, status.failed, status.live) == (1, 0, ())
    assert status.last_outcome == ExecutionState.SUCCEEDED
    assert status.next_ms == NOW + 2 * HOUR


def test_a_failure_is_retried_after_a_pause_until_the_budget_is_used_up(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR), max_attempts=3)
    fire = bench.fire_one(HOUR)
    identity = fire.id
    for attempt in (1, 2):
        bench.answer(fire, failed())
        (live,) = bench.live().values()
        assert (live.state, live.attempt) == (ExecutionState.RETRYING, attempt)
        pause_ms = live.due_ms - bench.now_ms
        assert 100 <= pause_ms <= SECOND << (attempt - 1)
        assert bench.tick(pause_ms - 1) == []
        fire = bench.fire_one(1)
        assert (fire.id, fire.attempt) == (identity, attempt + 1)
    bench.answer(fire, failed())
    ended = the_end(bench)
    assert (ended.state, ended.reason) == (ExecutionState.FAILED, Reason.ATTEMPTS_EXHAUSTED)
    assert [a.number for a in ended.attempts] == [1, 2, 3]
    status = bench.status("a")
    assert (status.state, status.failed) == (JobState.COMPLETED, 1)
    assert status.last_outcome == ExecutionState.FAILED


def test_the_pause_is_at_least_what_the_target_asked_for(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR))
    bench.answer(bench.fire_one(HOUR), failed(retry_after_ms=10 * MINUTE))
    assert bench.tick(10 * MINUTE - 1) == []
    assert bench.fire_one(1).attempt == 2


def test_retries_end_with_their_duration(bench: Bench) -> None:
    bench.create("a", once(NOW), max_retry_duration_ms=MINUTE)
    bench.answer(bench.fire_one(), failed(retry_after_ms=2 * MINUTE))
    assert the_end(bench).reason == Reason.RETRY_DURATION_EXHAUSTED


def test_a_target_may_refuse_to_be_asked_again(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR))
    bench.answer(bench.fire_one(HOUR), failed(OutcomeKind.FAIL, 400))
    ended = the_end(bench)
    assert (ended.state, ended.reason) == (ExecutionState.FAILED, Reason.TARGET_REFUSED_RETRY)


def test_a_retry_uses_the_spec_that_is_current(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.answer(bench.fire_one(HOUR), failed())
    bench.call(change("a", every(HOUR), url="http://127.0.0.1/other"))
    fire = bench.fire_one(SECOND)
    assert (fire.target.url, fire.generation, fire.attempt) == ("http://127.0.0.1/other", 2, 2)
    bench.answer(fire)
    assert [a.generation for a in the_end(bench).attempts] == [1, 2]


def test_only_the_newest_attempts_are_kept_and_fewer_of_their_bodies(bench: Bench) -> None:
    total = ATTEMPTS_KEPT_MAX + 5
    bench.create("a", once(NOW), max_attempts=total)
    for _ in range(total):
        bench.answer(bench.fire_one(HOUR), failed())
    attempts = the_end(bench).attempts
    assert [a.number for a in attempts] == list(range(6, total + 1))
    assert [a.number for a in attempts if a.body] == list(
        range(total + 1 - BODIES_KEPT_MAX, total + 1)
    )


def test_an_outcome_of_what_ended_already_changes_nothing(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    fire = bench.fire_one(HOUR)
    bench.answer(fire)
    index = bench.index
    bench.batch(Ended(fire, failed()))
    bench.call(Delete(NAMESPACE, "a"))
    bench.batch(Ended(fire, failed()))
    assert bench.index == index + 1


def test_after_a_crash_what_has_no_outcome_is_sent_again_under_its_id(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR))
    first = bench.fire_one(HOUR)
    bench.crash(MINUTE)
    again = bench.fire_one()
    assert (again.id, again.attempt, again.epoch) == (first.id, 1, 2)
    assert again.late
    bench.answer(again)
    assert bench.status("a").state == JobState.COMPLETED


def test_an_occurrence_that_was_never_logged_has_the_same_id_under_the_next_leader(
    bench: Bench,
) -> None:
    bench.create("a", every(HOUR))
    (first,) = bench.tick(HOUR, log=False)
    bench.flush()
    bench.crash(MINUTE)
    assert bench.fire_one().id == first.id


# --- disabled --------------------------------------------------------------------------------


def test_a_target_that_is_gone_disables_the_job(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.answer(bench.fire_one(HOUR), failed(DISABLE, 410))
    ended = the_end(bench)
    assert (ended.state, ended.reason) == (ExecutionState.FAILED, Reason.JOB_DISABLED)
    assert bench.status("a").state == JobState.DISABLED
    assert bench.tick(5 * HOUR) == []
    status = bench.view(Resume(NAMESPACE, "a")).status
    assert (status.state, status.next_ms) == (JobState.SCHEDULED, NOW + 7 * HOUR)
    assert len(bench.tick(HOUR)) == 1


def test_a_disabled_job_ends_what_waits_and_retries_nothing(bench: Bench) -> None:
    bench.create("a", every(HOUR), overlap=ALLOW_ALL)
    one, two = bench.fire_one(HOUR), bench.fire_one(HOUR)
    (waiting,) = bench.tick(HOUR)
    bench.answer(one, failed(DISABLE, 410))
    assert not bench.shard.may_send(waiting)
    bench.give_back(waiting)
    bench.answer(two, failed())
    assert [(e.state, e.reason) for e in bench.ended()] == [
        (ExecutionState.FAILED, Reason.JOB_DISABLED),
        (ExecutionState.FAILED, Reason.JOB_DISABLED),
        (ExecutionState.CANCELLED, Reason.JOB_DISABLED),
    ]
    assert bench.status("a").live == ()
    assert bench.tick(HOUR) == []


def test_a_disabled_job_gives_up_the_occurrence_that_waited(bench: Bench) -> None:
    bench.create("a", every(HOUR), overlap=BUFFER_ONE)
    fire = bench.fire_one(HOUR)
    bench.tick(HOUR)
    bench.answer(fire, failed(DISABLE, 410))
    assert [e.scheduled_ms for e in bench.ended()] == [NOW + HOUR, NOW + 2 * HOUR]
    assert bench.ended()[1].reason == Reason.JOB_DISABLED
    assert bench.live() == {}


def both_in_one_batch(bench: Bench) -> tuple[Fire, Ended]:
    """The target answers 410 to one occurrence, and before that is logged the next one falls due and is fired."""
    bench.create("a", every(HOUR), overlap=ALLOW_ALL)
    first = bench.fire_one(HOUR)
    bench.outbox.remove(first)
    bench.leading.append(Ended(first, failed(DISABLE, 410)))
    (second,) = bench.tick(HOUR, log=False)
    ended, due = bench.leading
    assert isinstance(ended, Ended)
    assert isinstance(due, Due)
    return second, ended


def test_what_was_fired_when_the_target_said_no_more_stays_unsent(bench: Bench) -> None:
    """It is not on record, so it may be due again; then it must not have left before."""
    second, _ = both_in_one_batch(bench)
    bench.batch()
    assert bench.status("a").state == JobState.DISABLED
    assert not bench.shard.may_send(second)
    bench.give_back(second)
    bench.call(Resume(NAMESPACE, "a"))
    assert second.id not in {fire.id for fire in bench.tick()}, (
        "what fell due while it was disabled is skipped"
    )
    assert bench.fire_one(HOUR).scheduled_ms == NOW + 3 * HOUR


def test_what_had_left_when_the_target_said_no_more_is_on_record(bench: Bench) -> None:
    second, _ = both_in_one_batch(bench)
    assert bench.shard.may_send(second)
    bench.batch()
    status = bench.status("a")
    assert (status.state, status.next_ms, status.run) == (JobState.DISABLED, NOW + 3 * HOUR, 2)
    assert status.live == (second.execution_row,)
    bench.answer(second)
    assert [(e.scheduled_ms - NOW) // HOUR for e in bench.ended()] == [1, 2]
    bench.call(Resume(NAMESPACE, "a"))
    assert bench.tick() == []
    assert bench.fire_one(HOUR).scheduled_ms == NOW + 3 * HOUR


# --- a new leader meets what its job no longer wants -----------------------------------------


def sent_by_a_leader_that_died(bench: Bench) -> None:
    bench.create("a", every(HOUR), overlap=ALLOW_ALL)
    bench.fire_one(HOUR)


def test_a_new_leader_sends_nothing_more_of_a_cancelled_job(bench: Bench) -> None:
    sent_by_a_leader_that_died(bench)
    bench.call(Cancel(NAMESPACE, "a"))
    bench.crash(SECOND)
    assert bench.tick() == []
    ended = the_end(bench)
    assert (ended.state, ended.reason) == (ExecutionState.CANCELLED, Reason.JOB_CANCELLED)
    assert bench.status("a").live == ()


def test_a_new_leader_sends_nothing_more_of_a_disabled_job(bench: Bench) -> None:
    sent_by_a_leader_that_died(bench)
    bench.answer(bench.fire_one(HOUR), failed(DISABLE, 410))
    bench.crash(SECOND)
    assert bench.tick() == []
    assert [(e.state, e.reason) for e in bench.ended()] == [
        (ExecutionState.FAILED, Reason.JOB_DISABLED)
    ] * 2
    assert bench.status("a").failed == 2


def test_what_is_abandoned_too_late_goes_on(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    fire = bench.fire_one(HOUR)
    bench.crash(SECOND)
    bench.batch(Abandon(fire.job_row, fire.execution_row))
    assert bench.fire_one().id == fire.id
    bench.answer(bench.outbox[0])
    index = bench.index
    bench.batch(Abandon(fire.job_row, fire.execution_row), Abandon(99, fire.execution_row))
    assert bench.index == index


# --- overlap ---------------------------------------------------------------------------------


def test_skip_gives_up_what_falls_due_meanwhile_as_one_record(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    fire = bench.fire_one(HOUR)
    for _ in range(3):
        assert bench.tick(HOUR) == []
    assert gone(bench) == [(Reason.OVERLAP, 2, 4, 3)]
    assert bench.status("a").skipped == 3
    bench.answer(fire)
    bench.answer(bench.fire_one(HOUR))
    fire = bench.fire_one(HOUR)
    bench.tick(HOUR)
    assert gone(bench) == [(Reason.OVERLAP, 2, 4, 3), (Reason.OVERLAP, 7, 7, 1)]


def test_a_retry_counts_as_running(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.answer(bench.fire_one(HOUR), failed(retry_after_ms=HOUR))
    bench.tick(HOUR - 1)
    assert [fire.attempt for fire in bench.tick(1)] == [2]
    assert gone(bench) == [(Reason.OVERLAP, 2, 2, 1)]


def test_buffer_one_keeps_one_and_gives_up_the_others(bench: Bench) -> None:
    bench.create("a", every(HOUR), overlap=BUFFER_ONE)
    fire = bench.fire_one(HOUR)
    for _ in range(3):
        assert bench.tick(HOUR) == []
    assert bench.status("a").buffered_ms == NOW + 2 * HOUR
    assert gone(bench) == [(Reason.OVERLAP, 3, 4, 2)]
    bench.answer(fire)
    buffered = bench.fire_one()
    assert buffered.scheduled_ms == NOW + 2 * HOUR
    assert bench.status("a").buffered_ms == 0
    bench.answer(buffered)
    assert bench.status("a").run == 2


def test_allow_all_lets_them_overlap(bench: Bench) -> None:
    bench.create("a", every(HOUR), overlap=ALLOW_ALL)
    for _ in range(3):
        bench.fire_one(HOUR)
    assert len(bench.status("a").live) == 3
    assert gone(bench) == []


def test_too_many_live_executions_give_up_the_next(bench: Bench) -> None:
    bench.create("a", every(HOUR), overlap=ALLOW_ALL)
    for number in range(LIVE_MAX):
        bench.call(Run(NAMESPACE, "a", f"r{number}"))
    bench.tick()
    assert bench.tick(HOUR) == []
    assert gone(bench) == [(Reason.LIVE_LIMIT, 1, 1, 1)]


# --- after an outage -------------------------------------------------------------------------


def down(bench: Bench, hours: int) -> None:
    """Nobody leads for some hours, from half past."""
    bench.now_ms += HOUR // 2
    bench.crash(hours * HOUR)


def test_latest_fires_the_last_one(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    down(bench, 4)
    fire = bench.fire_one()
    assert (fire.scheduled_ms, fire.late) == (NOW + 4 * HOUR, True)
    assert gone(bench) == [(Reason.MISFIRE_POLICY, 1, 3, 3)]
    assert bench.status("a").next_ms == NOW + 5 * HOUR


def test_all_fires_one_after_the_other_when_they_may_not_overlap(bench: Bench) -> None:
    bench.create("a", every(HOUR), misfire=MisfirePolicy.ALL)
    down(bench, 3)
    for hour in (1, 2, 3):
        fire = bench.fire_one()
        assert fire.scheduled_ms == NOW + hour * HOUR
        assert bench.tick() == []
        bench.answer(fire)
    assert bench.tick() == []
    assert gone(bench) == []
    assert bench.status("a").next_ms == NOW + 4 * HOUR


def test_all_fires_at_once_when_they_may_overlap(bench: Bench) -> None:
    bench.create("a", cron("0 * * * *"), misfire=MisfirePolicy.ALL, overlap=ALLOW_ALL)
    down(bench, 3)
    assert [f.scheduled_ms - NOW for f in bench.tick()] == [HOUR, 2 * HOUR, 3 * HOUR]


def test_all_with_a_maximum_gives_up_the_oldest(bench: Bench) -> None:
    bench.create("a", every(HOUR), misfire=MisfirePolicy.ALL, misfire_max=2, overlap=ALLOW_ALL)
    down(bench, 4)
    assert [f.scheduled_ms - NOW for f in bench.tick()] == [3 * HOUR, 4 * HOUR]
    assert gone(bench) == [(Reason.MISFIRE_POLICY, 1, 2, 2)]


def test_skip_gives_up_all(bench: Bench) -> None:
    bench.create("a", every(HOUR), misfire=MisfirePolicy.SKIP)
    down(bench, 3)
    assert bench.tick() == []
    assert gone(bench) == [(Reason.MISFIRE_POLICY, 1, 3, 3)]
    assert len(bench.tick(HOUR // 2)) == 1


def test_the_catchup_window_comes_first(bench: Bench) -> None:
    window_ms = 90 * MINUTE
    policy = MisfirePolicy.ALL
    bench.create("a", every(HOUR), misfire=policy, catchup_window_ms=window_ms, overlap=ALLOW_ALL)
    down(bench, 4)
    assert [f.scheduled_ms - NOW for f in bench.tick()] == [3 * HOUR, 4 * HOUR]
    assert gone(bench) == [(Reason.CATCHUP_WINDOW, 1, 2, 2)]


def test_a_miss_before_an_overlap_is_counted_with_it(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.call(Run(NAMESPACE, "a", "long"))
    bench.fire_one()
    bench.now_ms += 3 * HOUR
    bench.tick()
    assert gone(bench) == [(Reason.OVERLAP, 1, 3, 3)]


def test_a_one_off_expires(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR), expire_after_ms=HOUR)
    down(bench, 3)
    assert bench.tick() == []
    ended = the_end(bench)
    assert (ended.state, ended.reason) == (ExecutionState.MISSED, Reason.EXPIRED)
    status = bench.status("a")
    assert (status.state, status.last_outcome) == (JobState.COMPLETED, ExecutionState.MISSED)


# --- completion and retention ----------------------------------------------------------------


def test_a_job_completes_after_its_last_execution(bench: Bench) -> None:
    bench.create("a", every(HOUR), max_executions=2)
    bench.answer(bench.fire_one(HOUR))
    fire = bench.fire_one(HOUR)
    assert bench.status("a").state == JobState.SCHEDULED
    assert bench.status("a").next_ms == 0
    bench.answer(fire)
    status = bench.status("a")
    assert (status.state, status.run) == (JobState.COMPLETED, 2)
    assert status.due_ms == bench.now_ms + DAY
    assert bench.tick(5 * HOUR) == []


def test_a_schedule_that_ends_completes_the_job(bench: Bench) -> None:
    bench.create("a", every(HOUR), end_ms=NOW + HOUR)
    bench.answer(bench.fire_one(HOUR))
    assert bench.status("a").state == JobState.COMPLETED


def test_a_buffered_occurrence_counts_and_keeps_the_job_open(bench: Bench) -> None:
    bench.create("a", every(HOUR), overlap=BUFFER_ONE, max_executions=2)
    fire = bench.fire_one(HOUR)
    bench.tick(HOUR)
    assert bench.status("a").next_ms == 0
    bench.answer(fire)
    assert bench.status("a").state == JobState.SCHEDULED
    bench.answer(bench.fire_one())
    assert (bench.status("a").state, bench.status("a").run) == (JobState.COMPLETED, 2)


@pytest.mark.parametrize("flush", [False, True])
def test_a_finished_job_is_forgotten_after_its_retention(bench: Bench, *, flush: bool) -> None:
    bench.create("a", once(NOW + HOUR))
    bench.answer(bench.fire_one(HOUR))
    if flush:
        bench.flush()
    bench.tick(DAY - 1)
    assert bench.row("a")
    bench.tick(1)
    assert bench.row("a") == 0


def test_retention_waits_for_a_run_by_hand(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR))
    bench.answer(bench.fire_one(HOUR))
    bench.call(Run(NAMESPACE, "a", "r"))
    fire = bench.fire_one()
    bench.tick(DAY)
    assert bench.status("a").due_ms == bench.now_ms + DAY
    bench.answer(fire)
    bench.tick(DAY)
    assert bench.row("a") == 0


def test_a_cancelled_job_is_forgotten_too(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.call(Cancel(NAMESPACE, "a"))
    bench.tick(DAY)
    assert bench.row("a") == 0


# --- what comes too late ---------------------------------------------------------------------


def test_a_due_that_no_longer_holds_changes_nothing(bench: Bench) -> None:
    row = bench.create("a", every(HOUR)).row
    before = bench.status("a")
    bench.batch(Due(row, NOW + MINUTE, NOW + MINUTE, 50), Due(99, NOW, NOW, 51))
    assert bench.status("a") == before
    bench.call(Pause(NAMESPACE, "a"))
    bench.batch(Due(row, NOW + HOUR, NOW + HOUR, 50))
    assert bench.status("a").state == JobState.PAUSED
    assert bench.live() == {}


def test_an_expiry_that_no_longer_holds_changes_nothing(bench: Bench) -> None:
    row = bench.create("a", every(HOUR)).row
    bench.call(Cancel(NAMESPACE, "a"))
    due_ms = bench.status("a").due_ms
    bench.batch(Expire(row, due_ms - 1), Expire(99, due_ms))
    assert bench.row("a") == row


def test_an_outcome_knows_when_the_first_attempt_began(bench: Bench) -> None:
    bench.create("a", once(NOW))
    fire = bench.fire_one()
    bench.answer(fire, Outcome(OutcomeKind.RETRY, 0, "TIMEOUT", b"", NOW + 7, NOW + 9))
    (live,) = bench.live().values()
    assert live.first_attempt_ms == NOW + 7
    assert (live.attempts[0].error, live.attempts[0].start_ms) == ("TIMEOUT", NOW + 7)
