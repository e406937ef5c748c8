"""The judge finds each kind of planted fault, and finds nothing in a clean history."""

from bench.checker import (
    Change,
    Excuse,
    History,
    Job,
    Operation,
    Outage,
    Report,
    check,
    scheduled_ms,
)
from bench.sink import Arrival

UID = "0123456789abcdef" * 2
OTHER = "fedcba9876543210" * 2
DUE = 1_700_000_000_000
HORIZON = DUE + 60_000
CANCELLED = "CANCELLED_BEFORE_DISPATCH"


def arrival(  # noqa: PLR0913 — options by keyword, one a field
    at_ms: float = DUE + 1,
    due: int = DUE,
    *,
    uid: str = UID,
    job: str = "a",
    attempt: int = 1,
    epoch: int = 1,
    status: int = 200,
    delay_ms: int = 0,
    id_: str = "",
) -> Arrival:
    return Arrival(
        id_ or f"{uid}-{due}", f"namespaces/default/jobs/{job}", str(due), attempt, epoch,
        round(at_ms * 1_000), "/ok", "POST", status, delay_ms, 0,
    )  # fmt: skip


def judge(
    *arrivals: Arrival,
    job: Job | None = None,
    jobs: list[Job] | None = None,
    excuses: tuple[Excuse, ...] = (),
    kills: tuple[int, ...] = (),
) -> Report:
    known = jobs if jobs is not None else [job or Job("a", UID, DUE)]
    outages = [Outage(kill, kill + 500) for kill in kills]
    return check(History(known, arrivals, HORIZON, excuses, outages))


def found(report: Report) -> dict[str, int]:
    return {kind: count for kind, count in report.counts.items() if count}


def test_a_clean_history_passes() -> None:
    report = judge(arrival())
    assert report.clean
    assert (report.acknowledged, report.expected, report.executions) == (1, 1, 1)
    assert 0.9 < report.summary()["lag_ms"]["max"] < 1.1


def test_a_loss_is_found() -> None:
    assert found(judge()) == {"lost": 1}


def test_what_is_due_after_the_horizon_is_not_lost() -> None:
    assert judge(job=Job("a", UID, HORIZON + 1)).clean


def test_an_unacknowledged_creation_promises_nothing_and_may_fire() -> None:
    unanswered = Job("a", "", DUE)
    assert judge(job=unanswered).clean
    assert judge(arrival(), job=unanswered).clean


def test_an_early_arrival_is_found_to_the_microsecond() -> None:
    assert judge(arrival(DUE)).clean
    assert found(judge(arrival(DUE - 0.001))) == {"early": 1}


def test_an_arrival_for_nobody_is_found() -> None:
    assert found(judge(arrival(), arrival(uid=OTHER, job="b"))) == {"stranger": 1}


def test_an_arrival_at_a_time_the_schedule_does_not_name_is_found() -> None:
    assert found(judge(arrival(), arrival(DUE + 9, due=DUE + 7))) == {"stranger": 1}


def test_a_job_created_twice_under_one_name_is_found() -> None:
    """I9: the caller repeated one creation, and both the first and the second answer live."""
    jobs = [Job("a", "", DUE)]
    assert found(judge(arrival(), arrival(uid=OTHER), jobs=jobs)) == {"second_job": 1}


# --- twice -----------------------------------------------------------------------------------


def test_a_duplicate_is_found() -> None:
    again = arrival(DUE + 50, attempt=2)
    assert found(judge(arrival(), again)) == {"duplicate": 1}


def test_the_same_attempt_of_the_same_epoch_is_found() -> None:
    assert found(judge(arrival(), arrival(DUE + 50))) == {"duplicate": 1, "repeated": 1}


def test_a_retry_is_no_duplicate() -> None:
    report = judge(arrival(status=503), arrival(DUE + 50, attempt=2))
    assert report.clean
    assert report.retries == 1


def test_a_duplicate_that_a_kill_explains_is_counted_apart() -> None:
    report = judge(arrival(), arrival(DUE + 700, epoch=2), kills=(DUE + 5,))
    assert report.clean
    assert report.at_kill == 1


def test_what_an_outage_delays_is_measured_apart() -> None:
    summary = judge(arrival(DUE + 700), kills=(DUE - 5,)).summary()
    assert summary["outage_lag_ms"]["count"] == 1
    assert summary["lag_ms"] == {"count": 0}


def test_a_duplicate_long_after_its_outcome_is_not_explained_by_a_later_kill() -> None:
    report = judge(arrival(), arrival(DUE + 9_000, epoch=2), kills=(DUE + 5_000,))
    assert found(report) == {"duplicate": 1}


def test_a_slow_answer_is_in_flight_until_it_is_given() -> None:
    slow = arrival(delay_ms=5_000)
    assert judge(slow, arrival(DUE + 6_000, epoch=2), kills=(DUE + 4_000,)).clean


def test_at_most_once_is_broken_even_by_a_kill() -> None:
    job = Job("a", UID, DUE, at_most_once=True)
    report = judge(arrival(), arrival(DUE + 700, epoch=2), job=job, kills=(DUE + 5,))
    assert found(report) == {"at_most_once": 1}


def test_an_id_shared_by_two_occurrences_is_found() -> None:
    job = Job("a", UID, DUE, period_ms=1_000)
    one = f"{UID}-{DUE}"
    arrivals = [arrival(DUE + 1_000 * k + 1, DUE + 1_000 * k) for k in range(2, 61)]
    report = judge(
        arrival(id_=one, status=503), arrival(DUE + 1_001, DUE + 1_000, id_=one, attempt=2),
        *arrivals, job=job,
    )  # fmt: skip
    assert found(report) == {"shared_id": 1}


def test_an_occurrence_with_two_ids_is_found() -> None:
    assert found(judge(arrival(), arrival(DUE + 2, id_=UID + "-x"))) == {"two_ids": 1}


def test_an_epoch_that_goes_back_is_found() -> None:
    report = judge(arrival(status=503, epoch=2), arrival(DUE + 50, attempt=2, epoch=1))
    assert found(report) == {"epoch_back": 1}


# --- taken back ------------------------------------------------------------------------------


def test_a_cancelled_job_may_not_arrive() -> None:
    job = Job("a", UID, DUE, operations=[Operation("cancel", DUE - 90, DUE - 80, CANCELLED)])
    assert judge(job=job).clean
    assert found(judge(arrival(), job=job)) == {"after_cancel": 1}


def test_a_cancel_that_lies_about_a_request_already_sent_is_found() -> None:
    job = Job("a", UID, DUE, operations=[Operation("cancel", DUE + 2, DUE + 9, CANCELLED)])
    assert found(judge(arrival(), job=job)) == {"after_cancel": 1}


def test_a_cancel_of_a_one_off_that_was_moved_after_it_was_sent_is_true() -> None:
    cancel = Operation("cancel", DUE + 2, DUE + 90, CANCELLED)
    moved = Operation("update", DUE + 3, DUE + 80, "ALREADY_DISPATCHED", DUE + 5_000)
    assert judge(arrival(), job=Job("a", UID, DUE, operations=[cancel, moved])).clean
    for other in (moved._replace(answer=CANCELLED), moved._replace(sent_ms=DUE + 91)):
        job = Job("a", UID, DUE, operations=[cancel, other])
        assert "after_cancel" in found(judge(arrival(), job=job))


def test_a_cancel_between_two_attempts_is_true() -> None:
    job = Job("a", UID, DUE, operations=[Operation("cancel", DUE + 2, DUE + 9, CANCELLED)])
    assert judge(arrival(status=503), job=job).clean
    report = judge(arrival(status=503), arrival(DUE + 20, attempt=2), job=job)
    assert found(report) == {"after_cancel": 1}


def test_a_cancel_that_came_too_late_takes_nothing_back() -> None:
    for answer in ("ALREADY_DISPATCHED", "COMPLETED"):
        job = Job("a", UID, DUE, operations=[Operation("cancel", DUE - 1, DUE + 1, answer)])
        assert judge(arrival(), job=job).clean
        assert found(judge(job=job)) == {"lost": 1}


def test_a_cancel_of_unknown_outcome_allows_both() -> None:
    job = Job("a", UID, DUE, operations=[Operation("cancel", DUE - 90)])
    assert judge(job=job).clean
    assert judge(arrival(), job=job).clean


def test_a_recurring_job_stops_at_the_cancel() -> None:
    stop = Operation("cancel", DUE + 1_500, DUE + 1_600, CANCELLED)
    job = Job("a", UID, DUE, period_ms=1_000, operations=[stop])
    before = [arrival(DUE + 1), arrival(DUE + 1_001, DUE + 1_000)]
    assert judge(*before, job=job).clean
    after = arrival(DUE + 2_001, DUE + 2_000)
    assert found(judge(*before, after, job=job)) == {"after_cancel": 1}


def test_an_update_moves_the_promise() -> None:
    moved = Operation("update", DUE - 90, DUE - 80, CANCELLED, DUE + 5_000)
    job = Job("a", UID, DUE, operations=[moved])
    there = arrival(DUE + 5_001, DUE + 5_000)
    assert judge(there, job=job).clean
    assert found(judge(job=job)) == {"lost": 1}
    assert found(judge(arrival(), there, job=job)) == {"after_cancel": 1}


def test_a_cancel_at_the_same_time_may_take_back_what_an_update_put_off() -> None:
    moved = Operation("update", DUE + 3, DUE + 80, "ALREADY_DISPATCHED", DUE + 500)
    cancel = Operation("cancel", DUE + 3, DUE + 80, "ALREADY_DISPATCHED")
    assert judge(arrival(), job=Job("a", UID, DUE, operations=[moved, cancel])).clean
    before = cancel._replace(sent_ms=DUE - 90, answered_ms=DUE - 80)
    for other in (before, cancel._replace(answer="COMPLETED")):
        job = Job("a", UID, DUE, operations=[moved, other])
        assert found(judge(arrival(), job=job)) == {"lost": 1}


def test_of_two_updates_at_the_same_time_either_may_be_the_last() -> None:
    """Both are sent when the node is dead; it meets them in whichever order, after its recovery."""
    moves = [
        Operation("update", DUE - 90, DUE + 80, CANCELLED, DUE + 3_000),
        Operation("update", DUE - 90, DUE + 80, "ALREADY_DISPATCHED", DUE + 2_000),
    ]
    job = Job("a", UID, DUE, operations=moves)
    for after in (2_000, 3_000):
        assert judge(arrival(DUE + after + 1, DUE + after), job=job).clean
    assert found(judge(arrival(), job=job)) == {"lost": 1}
    then = Operation("update", DUE + 81, DUE + 90, CANCELLED, DUE + 4_000)
    late = Job("a", UID, DUE, operations=[*moves, then])
    assert found(judge(arrival(DUE + 2_001, DUE + 2_000), job=late))["lost"] == 1
    assert judge(arrival(DUE + 4_001, DUE + 4_000), job=late).clean
    beyond = moves[0]._replace(due_ms=HORIZON + 1)
    assert judge(job=Job("a", UID, DUE, operations=[beyond, moves[1]])).clean


def test_an_update_of_unknown_outcome_allows_either_time() -> None:
    job = Job("a", UID, DUE, operations=[Operation("update", DUE - 90, due_ms=DUE + 5_000)])
    assert judge(arrival(), job=job).clean
    assert judge(arrival(DUE + 5_001, DUE + 5_000), job=job).clean


# --- recurring, and what the server recorded ---------------------------------------------------


def test_each_occurrence_of_a_recurring_job_is_expected() -> None:
    job = Job("a", UID, DUE, period_ms=20_000)
    due = [DUE + 20_000 * k for k in range(4)]
    assert judge(*(arrival(t + 1, t) for t in due), job=job).clean
    report = judge(*(arrival(t + 1, t) for t in due[:1] + due[2:]), job=job)
    assert found(report) == {"lost": 1}
    assert str(due[1]) in report.examples["lost"][0]


def test_a_recorded_miss_excuses_its_occurrences_only() -> None:
    job = Job("a", UID, DUE, period_ms=20_000)
    record = Excuse(UID, DUE + 1, DUE + 40_000, "MISFIRE_POLICY")
    report = judge(arrival(), arrival(DUE + 60_001, DUE + 60_000), job=job, excuses=(record,))
    assert report.clean
    assert report.excused == 2
    short = record._replace(last_ms=DUE + 39_999)
    assert found(judge(arrival(), arrival(DUE + 60_001, DUE + 60_000), job=job, excuses=(short,)))


def test_no_record_excuses_a_one_off_unless_it_may_be_sent_once_only() -> None:
    record = Excuse(UID, DUE, DUE, "UNKNOWN")
    assert found(judge(excuses=(record,))) == {"lost": 1}
    assert judge(job=Job("a", UID, DUE, at_most_once=True), excuses=(record,)).clean


def test_scheduled_times_are_read_in_both_forms() -> None:
    plain = arrival()
    assert scheduled_ms(plain) == DUE
    assert scheduled_ms(plain._replace(scheduled="2023-11-14T22:13:20.000Z")) == DUE
    assert scheduled_ms(plain._replace(scheduled="soon")) == -1


def test_a_job_that_was_moved_twice_may_arrive_at_its_last_time_only() -> None:
    moves = [
        Operation("update", 100, 110, CANCELLED, due_ms=DUE + 1_000),
        Operation("update", 200, 210, CANCELLED, due_ms=DUE + 2_000),
    ]
    job = Job("a", UID, due_ms=DUE, operations=moves)
    last, first = (arrival(DUE + after + 1, DUE + after) for after in (2_000, 1_000))
    assert judge(last, job=job).counts["after_cancel"] == 0
    assert judge(first, last, job=job).counts["after_cancel"] == 1


# --- a cluster: changes of leader ---

FAULT = Change(DUE, DUE + 4_000, "kill_leader")


def judge_cluster(*arrivals: Arrival, job: Job | None = None, fault: Change = FAULT) -> Report:
    return check(History([job or Job("a", UID, DUE)], arrivals, HORIZON, changes=[fault]))


def test_a_successor_may_send_again_what_was_under_way() -> None:
    report = judge_cluster(arrival(DUE + 1, epoch=3), arrival(DUE + 2_000, epoch=4))
    assert report.clean
    assert (report.at_kill, report.at_change) == (1, {"kill_leader": 1})


def test_a_second_request_of_the_same_leader_is_a_duplicate_even_in_a_fault() -> None:
    first, second = arrival(DUE + 1, epoch=3), arrival(DUE + 2_000, epoch=3, attempt=2)
    assert found(judge_cluster(first, second)) == {"duplicate": 1}


def test_a_second_request_of_another_leader_outside_every_fault_is_a_duplicate() -> None:
    fault = Change(DUE + 20_000, DUE + 24_000, "kill_leader")
    first, second = arrival(DUE + 1, epoch=3), arrival(DUE + 22_000, epoch=4)
    assert found(judge_cluster(first, second, fault=fault)) == {"duplicate": 1}
    over = Change(DUE - 9_000, DUE - 5_000, "kill_leader")
    second = arrival(DUE + 900, epoch=4)
    assert found(judge_cluster(first, second, fault=over)) == {"duplicate": 1}


def test_an_answer_of_long_ago_is_no_excuse() -> None:
    """The first was answered more than the grace before the fault: its outcome was in the log."""
    fault = Change(DUE + 3_000, DUE + 6_000, "pause")
    first, second = arrival(DUE + 1, epoch=3), arrival(DUE + 5_000, epoch=4)
    assert found(judge_cluster(first, second, fault=fault)) == {"duplicate": 1}


def test_a_refused_request_is_retried_not_doubled() -> None:
    report = judge_cluster(arrival(DUE + 1, epoch=3, status=503), arrival(DUE + 2_000, epoch=4))
    assert report.clean
    assert (report.retries, report.at_kill) == (1, 0)


def test_no_fault_excuses_a_loss_an_early_request_or_one_after_a_cancel() -> None:
    assert found(judge_cluster()) == {"lost": 1}
    assert found(judge_cluster(arrival(DUE - 0.002))) == {"early": 1}
    gone = Job("a", UID, DUE, operations=[Operation("cancel", DUE - 100, DUE - 50, CANCELLED)])
    assert found(judge_cluster(arrival(DUE + 1_000, epoch=4), job=gone)) == {"after_cancel": 1}


def test_a_deposed_leader_that_speaks_up_is_found() -> None:
    late = judge_cluster(
        arrival(DUE + 2_000, epoch=4, status=503), arrival(DUE + 3_000, epoch=3, attempt=2)
    )
    assert found(late) == {"epoch_back": 1}


def test_what_a_fault_made_late_is_counted_apart() -> None:
    report = judge_cluster(arrival(DUE + 3_000, epoch=4))
    assert report.lag_us.ms()["count"] == 0
    assert report.outage_lag_us.ms()["count"] == 1
