"""Decide: what users ask for, one story a test: creating, changing, pausing, running by hand."""

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
    Create,
    Delete,
    Expire,
    JobView,
    Pause,
    Redrive,
    Resume,
    Run,
    etag,
)
from tickwheel.server.decide import REQUESTS_MAX
from tickwheel.server.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from tickwheel.server.fire import Outcome, OutcomeKind
from tickwheel.server.making import PAST_GRACE_MS
from tickwheel.server.model import (
    ExecutionKind,
    ExecutionState,
    JobState,
    OverlapPolicy,
    Reason,
)
from tickwheel.server.steps import LIVE_MAX

BEFORE = Cancellation.BEFORE_DISPATCH
ALREADY = Cancellation.ALREADY_DISPATCHED


@pytest.fixture
def bench() -> Bench:
    return Bench()


def states(bench: Bench) -> list[ExecutionState]:
    return [execution.state for execution in bench.ended()]


def cancel(bench: Bench, name: str = "a") -> tuple[Cancellation, int]:
    reply = bench.changed(Cancel(NAMESPACE, name))
    assert reply.view.status.state == JobState.CANCELLED
    return reply.cancellation, reply.attempt


def dead_letter(bench: Bench, outcome: Outcome | None = None) -> Redrive:
    """A job `a` whose only execution failed for good; the command that would redrive it."""
    bench.create("a", once(NOW + HOUR))
    fire = bench.fire_one(HOUR)
    bench.answer(fire, outcome or failed(OutcomeKind.FAIL, 400))
    return Redrive(NAMESPACE, "a", fire.execution_row, "again")


# --- create ----------------------------------------------------------------------------------


def test_a_created_job_knows_its_next_time(bench: Bench) -> None:
    view = bench.create("a", every(HOUR))
    assert view.job.uid[:6] == NOW.to_bytes(6, "big")
    assert (view.status.next_ms, view.status.due_ms) == (NOW + HOUR, NOW + HOUR)
    assert bench.status("a") == view.status


def test_the_same_create_is_the_same_job(bench: Bench) -> None:
    first = bench.create("a", every(HOUR))
    bench.flush()
    again = bench.create("a", every(HOUR))
    assert (again.row, again.job.uid) == (first.row, first.job.uid)
    assert bench.index == 1


def test_the_same_create_twice_in_one_batch_is_one_job(bench: Bench) -> None:
    one, two = bench.batch(creation("a", every(HOUR)), creation("a", every(HOUR)))
    assert isinstance(one, JobView)
    assert isinstance(two, JobView)
    assert one.row == two.row


def test_other_content_under_the_name_is_refused(bench: Bench) -> None:
    uid = bench.create("a", every(HOUR)).job.uid.hex()
    with pytest.raises(AlreadyExists) as refusal:
        bench.create("a", every(MINUTE))
    assert refusal.value.metadata["uid"] == uid


def test_a_repeated_create_is_answered_although_its_time_has_passed(bench: Bench) -> None:
    first = bench.create("a", once(NOW + SECOND))
    bench.answer(bench.fire_one(SECOND))
    bench.now_ms += HOUR
    assert bench.create("a", once(NOW + SECOND)).job.uid == first.job.uid


def test_a_one_off_of_the_past_is_refused_beyond_the_grace(bench: Bench) -> None:
    bench.create("late", once(NOW - PAST_GRACE_MS))
    with pytest.raises(InvalidArgument) as refusal:
        bench.create("too-late", once(NOW - PAST_GRACE_MS - 1))
    assert refusal.value.reason == "PAST_TIME"
    with pytest.raises(NotFound):
        bench.call(Pause(NAMESPACE, "too-late"))
    assert [fire.job for fire in bench.tick()] == ["late"]


def test_a_one_off_of_the_past_fires_at_once_if_that_is_welcome(bench: Bench) -> None:
    bench.create("a", once(NOW - DAY), past_ok=True)
    (fire,) = bench.tick()
    assert (fire.scheduled_ms, fire.late) == (NOW - DAY, True)


def test_a_schedule_without_a_future_is_refused(bench: Bench) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        bench.create("a", every(HOUR), end_ms=NOW + MINUTE)
    assert refusal.value.reason == "NEVER_FIRES"


def test_a_create_that_only_validates_changes_nothing(bench: Bench) -> None:
    view = bench.view(creation("a", every(HOUR), validate_only=True))
    assert (view.row, view.status.next_ms) == (0, NOW + HOUR)
    assert bench.index == 0


def test_a_fresh_name_needs_no_look_up(bench: Bench) -> None:
    prepared = creation("a", every(HOUR)).prepared
    assert bench.view(Create(NAMESPACE, "r-1", prepared, fresh=True)).row == 1


def test_jitter_moves_the_due_time_the_same_way_each_time(bench: Bench) -> None:
    status = bench.create("a", every(HOUR), jitter_ms=10 * MINUTE).status
    assert status.next_ms == NOW + HOUR
    assert 0 < status.due_ms - status.next_ms <= 10 * MINUTE
    assert bench.tick(HOUR) == []
    bench.answer(bench.fire_one(status.due_ms - bench.now_ms))
    later = bench.status("a")
    assert later.next_ms == NOW + 2 * HOUR
    assert 0 <= later.due_ms - later.next_ms <= 10 * MINUTE
    assert later.due_ms - later.next_ms != status.due_ms - status.next_ms


# --- update ----------------------------------------------------------------------------------


def test_an_update_that_keeps_the_schedule_keeps_the_next_time(bench: Bench) -> None:
    before = bench.create("a", every(HOUR)).status
    reply = bench.changed(change("a", every(HOUR), url="http://127.0.0.1/other"))
    assert (reply.cancellation, reply.attempt) == (BEFORE, 0)
    assert reply.view.status == before._replace(generation=2)
    assert bench.fire_one(HOUR).target.url == "http://127.0.0.1/other"


def test_an_update_that_says_nothing_new_changes_nothing(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    first = bench.changed(change("a", every(MINUTE)))
    index = bench.index
    again = bench.changed(change("a", every(MINUTE)))
    assert (again.view.status, again.cancellation) == (first.view.status, BEFORE)
    assert bench.index == index


def test_an_update_with_another_schedule_plans_anew(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    status = bench.changed(change("a", every(MINUTE))).view.status
    assert (status.next_ms, status.due_ms) == (NOW + MINUTE, NOW + MINUTE)
    assert [fire.scheduled_ms for fire in bench.tick(MINUTE)] == [NOW + MINUTE]
    assert bench.tick(HOUR - 2 * MINUTE) == []


def test_an_update_that_only_validates_changes_nothing(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.tick(HOUR)
    before = bench.status("a")
    reply = bench.changed(change("a", every(MINUTE), validate_only=True))
    assert reply.view.status.generation == 2
    assert bench.status("a") == before
    assert bench.shard.may_send(bench.outbox[0])


def test_an_update_takes_back_the_occurrence_that_was_not_sent(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    (fire,) = bench.tick(HOUR)
    reply = bench.changed(change("a", every(DAY)))
    assert (reply.cancellation, reply.attempt) == (BEFORE, 0)
    assert not bench.shard.may_send(fire)
    bench.give_back(fire)
    (ended,) = bench.ended()
    assert (ended.state, ended.reason) == (ExecutionState.CANCELLED, Reason.JOB_CANCELLED)
    assert bench.status("a").live == ()
    assert bench.tick(HOUR) == []


def test_an_update_leaves_alone_what_was_sent(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    fire = bench.fire_one(HOUR)
    reply = bench.changed(change("a", every(DAY)))
    assert (reply.cancellation, reply.attempt) == (ALREADY, 1)
    assert bench.status("a").live == (fire.execution_row,)
    bench.answer(fire)
    assert states(bench) == [ExecutionState.SUCCEEDED]


def test_a_one_off_can_be_moved_and_a_completed_one_made_to_fire_again(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR))
    bench.changed(change("a", once(NOW + MINUTE)))
    bench.answer(bench.fire_one(MINUTE))
    assert bench.status("a").state == JobState.COMPLETED
    with pytest.raises(InvalidArgument) as refusal:
        bench.call(change("a", once(NOW + SECOND)))
    assert refusal.value.reason == "NEVER_FIRES"
    bench.changed(change("a", once(NOW + DAY)))
    assert bench.status("a").state == JobState.SCHEDULED
    assert bench.fire_one(DAY).scheduled_ms == NOW + DAY


def test_a_new_schedule_that_never_fires_is_refused(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    with pytest.raises(InvalidArgument):
        bench.call(change("a", every(HOUR), end_ms=NOW + MINUTE))
    assert bench.status("a").generation == 1


def test_another_jitter_moves_the_due_time_and_nothing_else(bench: Bench) -> None:
    before = bench.create("a", every(HOUR)).status
    status = bench.changed(change("a", every(HOUR), jitter_ms=MINUTE)).view.status
    assert status._replace(due_ms=before.due_ms) == before._replace(generation=2)
    assert 0 < status.due_ms - status.next_ms <= MINUTE


def test_another_jitter_does_not_wake_a_completed_job(bench: Bench) -> None:
    bench.create("a", every(HOUR), max_executions=1)
    bench.answer(bench.fire_one(HOUR))
    before = bench.status("a")
    status = bench.changed(change("a", every(HOUR), max_executions=1, jitter_ms=5)).view.status
    assert status == before._replace(generation=2)


def test_a_new_schedule_gives_up_the_occurrence_that_waited(bench: Bench) -> None:
    buffer = OverlapPolicy.BUFFER_ONE
    bench.create("a", every(HOUR), overlap=buffer)
    bench.fire_one(HOUR)
    bench.tick(HOUR)
    assert bench.status("a").buffered_ms == NOW + 2 * HOUR
    bench.changed(change("a", every(DAY), overlap=buffer))
    (ended,) = bench.ended()
    assert (ended.scheduled_ms, ended.state) == (NOW + 2 * HOUR, ExecutionState.CANCELLED)
    assert bench.status("a").buffered_ms == 0


def test_a_cancelled_job_cannot_be_updated(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    cancel(bench)
    with pytest.raises(FailedPrecondition) as refusal:
        bench.call(change("a", every(DAY)))
    assert refusal.value.metadata["state"] == "CANCELLED"


def test_a_paused_job_that_is_updated_stays_paused(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.call(Pause(NAMESPACE, "a"))
    status = bench.changed(change("a", every(MINUTE))).view.status
    assert (status.state, status.next_ms, status.due_ms) == (JobState.PAUSED, NOW + MINUTE, 0)
    bench.call(Resume(NAMESPACE, "a"))
    assert len(bench.tick(MINUTE)) == 1


# --- etags -----------------------------------------------------------------------------------


def test_a_job_made_anew_under_an_old_name_has_an_etag_of_its_own(bench: Bench) -> None:
    old = etag(bench.create("a", every(HOUR)).status)
    bench.call(Delete(NAMESPACE, "a"))
    bench.tick(1)
    bench.create("a", every(DAY))
    with pytest.raises(Aborted):
        bench.call(Delete(NAMESPACE, "a", old))


def test_an_etag_that_no_longer_matches_aborts(bench: Bench) -> None:
    old = etag(bench.create("a", every(HOUR)).status)
    new = etag(bench.changed(change("a", every(MINUTE), etag=old)).view.status)
    for command in (
        Pause(NAMESPACE, "a", old),
        Resume(NAMESPACE, "a", old),
        Cancel(NAMESPACE, "a", old),
        Delete(NAMESPACE, "a", old),
        change("a", every(DAY), etag=old),
    ):
        with pytest.raises(Aborted) as refusal:
            bench.call(command)
        assert refusal.value.metadata == {"etag": new, "wanted": old}
    bench.call(Delete(NAMESPACE, "a", new))


# --- pause and resume ------------------------------------------------------------------------


def test_what_fell_due_during_a_pause_is_one_record(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.call(Pause(NAMESPACE, "a"))
    assert bench.tick(5 * HOUR + MINUTE) == []
    status = bench.view(Resume(NAMESPACE, "a")).status
    (record,) = bench.ended()
    assert (record.state, record.reason) == (ExecutionState.SKIPPED, Reason.PAUSED)
    assert (record.scheduled_ms, record.last_ms) == (NOW + HOUR, NOW + 5 * HOUR)
    assert (record.length, status.skipped) == (5, 5)
    assert status.next_ms == NOW + 6 * HOUR
    assert bench.fire_one(HOUR).scheduled_ms == NOW + 6 * HOUR


def test_a_short_pause_leaves_no_trace(bench: Bench) -> None:
    before = bench.create("a", every(HOUR)).status
    bench.call(Pause(NAMESPACE, "a"))
    assert bench.status("a").due_ms == 0
    assert bench.view(Resume(NAMESPACE, "a")).status == before
    assert len(bench.tick(HOUR)) == 1
    assert bench.ended() == []


def test_a_one_off_that_fell_due_during_a_pause_fires_when_resumed(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR))
    bench.call(Pause(NAMESPACE, "a"))
    bench.tick(DAY)
    bench.call(Resume(NAMESPACE, "a"))
    assert bench.fire_one().scheduled_ms == NOW + HOUR


def test_pausing_twice_and_resuming_twice_is_no_error(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    for command in (Pause, Resume):
        first = bench.view(command(NAMESPACE, "a"))
        index = bench.index
        assert bench.view(command(NAMESPACE, "a")).status == first.status
        assert bench.index == index


def test_only_a_scheduled_job_is_paused_and_only_a_stopped_one_resumed(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    cancel(bench)
    for command in (Pause(NAMESPACE, "a"), Resume(NAMESPACE, "a")):
        with pytest.raises(FailedPrecondition) as refusal:
            bench.call(command)
        assert refusal.value.reason == "JOB_STATE"


def test_a_retry_waits_for_the_end_of_the_pause(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.answer(bench.fire_one(HOUR), failed())
    bench.call(Pause(NAMESPACE, "a"))
    assert bench.tick(MINUTE) == []
    bench.call(Resume(NAMESPACE, "a"))
    assert bench.fire_one().attempt == 2


def test_resuming_a_job_with_nothing_left_completes_it(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR))
    fire = bench.fire_one(HOUR)
    bench.call(Pause(NAMESPACE, "a"))
    bench.answer(fire)
    assert bench.status("a").state == JobState.PAUSED
    assert bench.view(Resume(NAMESPACE, "a")).status.state == JobState.COMPLETED


# --- run and redrive -------------------------------------------------------------------------


def test_a_run_by_hand_is_remembered_by_its_request(bench: Bench) -> None:
    bench.create("a", every(DAY))
    first = bench.view(Run(NAMESPACE, "a", "r1"))
    assert bench.view(Run(NAMESPACE, "a", "r1")).status == first.status
    bench.view(Run(NAMESPACE, "a", "r2"))
    fires = bench.tick()
    uid = first.job.uid.hex()
    assert [fire.id for fire in fires] == [f"{uid}:r:r1", f"{uid}:r:r2"]
    for fire in fires:
        bench.answer(fire)
    assert bench.view(Run(NAMESPACE, "a", "r1")).status.live == ()
    assert {e.kind for e in bench.ended()} == {ExecutionKind.MANUAL}
    assert bench.status("a").next_ms == first.status.next_ms


def test_only_the_last_requests_are_remembered(bench: Bench) -> None:
    bench.create("a", every(DAY))
    for number in range(REQUESTS_MAX + 1):
        bench.call(Run(NAMESPACE, "a", f"r{number}"))
    requests = bench.status("a").requests
    assert len(requests) == REQUESTS_MAX
    bench.call(Run(NAMESPACE, "a", "r1"))
    assert bench.status("a").requests == requests
    bench.call(Run(NAMESPACE, "a", "r0"))
    assert bench.status("a").requests != requests


def test_a_paused_job_runs_by_hand(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.call(Pause(NAMESPACE, "a"))
    bench.call(Run(NAMESPACE, "a", "r"))
    bench.answer(bench.fire_one())
    assert states(bench) == [ExecutionState.SUCCEEDED]


def test_a_cancelled_job_is_not_run_by_hand(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    cancel(bench)
    with pytest.raises(FailedPrecondition):
        bench.call(Run(NAMESPACE, "a", "r"))


def test_a_job_has_so_many_live_executions_at_most(bench: Bench) -> None:
    bench.create("a", every(DAY))
    for number in range(LIVE_MAX):
        bench.call(Run(NAMESPACE, "a", f"r{number}"))
    with pytest.raises(ResourceExhausted) as refusal:
        bench.call(Run(NAMESPACE, "a", "one-more"))
    assert refusal.value.retry_after_ms == 1_000


def test_a_dead_letter_gets_a_new_budget_under_the_same_id(bench: Bench) -> None:
    redrive = dead_letter(bench)
    (letter,) = bench.ended()
    assert bench.status("a").state == JobState.COMPLETED
    bench.call(redrive)
    assert bench.ended() == []
    fire = bench.fire_one()
    assert (fire.id, fire.attempt) == (letter.id, 2)
    for attempt in (2, 3, 4):
        bench.answer(fire, failed())
        if attempt < 4:
            fire = bench.fire_one(HOUR)
    (ended,) = bench.ended()
    assert (ended.reason, ended.attempt, ended.base) == (Reason.ATTEMPTS_EXHAUSTED, 4, 1)
    assert [a.number for a in ended.attempts] == [1, 2, 3, 4]


def test_a_redrive_is_remembered_and_one_at_a_time(bench: Bench) -> None:
    redrive = dead_letter(bench)
    bench.call(redrive)
    index = bench.index
    bench.call(redrive)
    bench.call(redrive._replace(request_id="other"))
    assert bench.index == index
    bench.answer(bench.fire_one())
    bench.call(redrive)
    assert bench.tick() == []


@pytest.mark.parametrize("flushed", [False, True])
def test_a_redrive_goes_on_from_what_the_execution_is_now(bench: Bench, flushed: bool) -> None:
    """Somebody else had it sent again since it was looked up: no attempt has a number that another one had."""
    redrive = dead_letter(bench)
    bench.call(redrive._replace(request_id="other"))
    bench.answer(bench.fire_one(), failed(OutcomeKind.FAIL, 400))
    if flushed:
        bench.flush()
    bench.call(redrive)
    assert bench.fire_one().attempt == 3


def test_what_retention_took_is_not_redriven(bench: Bench) -> None:
    redrive = dead_letter(bench)
    with pytest.raises(NotFound, match="past its retention"):
        bench.call(redrive._replace(row=redrive.row + 1000))


def test_only_failed_executions_are_redriven(bench: Bench) -> None:
    redrive = dead_letter(bench, succeeded())
    with pytest.raises(FailedPrecondition) as refusal:
        bench.call(redrive)
    assert refusal.value.reason == "EXECUTION_NOT_FAILED"


def test_nothing_of_a_cancelled_job_is_redriven(bench: Bench) -> None:
    redrive = dead_letter(bench)
    bench.call(Run(NAMESPACE, "a", "r"))
    cancel(bench)
    with pytest.raises(FailedPrecondition, match="resume it before"):
        bench.call(redrive)


def test_an_execution_of_a_deleted_job_is_not_its_namesakes(bench: Bench) -> None:
    redrive = dead_letter(bench)
    bench.call(Delete(NAMESPACE, "a"))
    bench.create("a", every(HOUR))
    with pytest.raises(NotFound) as refusal:
        bench.call(redrive)
    assert refusal.value.reason == "EXECUTION_NOT_FOUND"


def test_a_redriven_job_with_too_many_live_executions_waits(bench: Bench) -> None:
    redrive = dead_letter(bench)
    for number in range(LIVE_MAX):
        bench.call(Run(NAMESPACE, "a", f"r{number}"))
    with pytest.raises(ResourceExhausted):
        bench.call(redrive)


# --- refusals leave no trace -----------------------------------------------------------------


def test_a_refusal_in_a_batch_does_not_touch_its_neighbours(bench: Bench) -> None:
    created, refused, other = bench.batch(
        creation("a", every(HOUR)), Pause(NAMESPACE, "nobody"), creation("b", every(HOUR))
    )
    assert isinstance(created, JobView)
    assert isinstance(refused, NotFound)
    assert isinstance(other, JobView)
    assert bench.shard.held == set()


def test_a_change_of_a_job_keeps_its_retention_when_it_is_disabled(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.answer(bench.fire_one(HOUR), failed(OutcomeKind.DISABLE, 410))
    due_ms = bench.status("a").due_ms
    status = bench.changed(change("a", every(MINUTE))).view.status
    assert (status.state, status.due_ms) == (JobState.DISABLED, due_ms)
    bench.tick(2 * DAY)
    with pytest.raises(NotFound):
        bench.call(Pause(NAMESPACE, "a"))


def test_an_expiry_that_comes_too_late_changes_nothing(bench: Bench) -> None:
    view = bench.create("a", every(HOUR))
    bench.batch(Expire(view.row, view.status.due_ms), Expire(99, 1))
    assert bench.status("a") == view.status
