"""Shard: what is held, parked and on its way; the gate; the wheel's window; replay."""

from random import Random

import pytest
from tests.unit.shard_kit import (
    CACHE_BYTES,
    DAY,
    HOUR,
    MINUTE,
    NAMESPACE,
    NOW,
    SECOND,
    SHARD,
    Bench,
    change,
    creation,
    every,
    failed,
    once,
)

from tickwheel.server import codec
from tickwheel.server.command import Cancel, Cancellation, Delete, Ended, Pause, Resume, Run
from tickwheel.server.draft import Rows
from tickwheel.server.fire import OutcomeKind, TargetKey
from tickwheel.server.model import ExecutionState, JobRow, JobState, MisfirePolicy, OverlapPolicy
from tickwheel.server.shard import LATE_MS, Shard
from tickwheel.server.table import Table

KEY: TargetKey = ("http", "127.0.0.1", 80)


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- held, from decide to settle -------------------------------------------------------------


def test_a_batch_is_applied_before_the_next_is_decided(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    pending = bench.begin(Pause(NAMESPACE, "a"))
    with pytest.raises(AssertionError, match="no second batch"):
        bench.begin(Resume(NAMESPACE, "a"))
    bench.commit(pending)
    bench.begin(Resume(NAMESPACE, "a"))


def test_what_falls_due_while_its_job_is_held_waits_and_sees_the_change(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    pending = bench.begin(Cancel(NAMESPACE, "a"))
    assert bench.tick(HOUR, log=False) == []
    assert bench.leading == []
    bench.commit(pending)
    assert bench.tick() == []
    assert bench.status("a").state == JobState.CANCELLED


def test_what_falls_due_while_its_job_is_held_fires_after_a_harmless_change(bench: Bench) -> None:
    row = bench.create("a", every(HOUR), overlap=OverlapPolicy.ALLOW_ALL).row
    pending = bench.begin(Run(NAMESPACE, "a", "r"))
    assert bench.shard.held == {row}
    assert bench.tick(HOUR, log=False) == []
    bench.commit(pending)
    assert bench.shard.held == set()
    fires = bench.tick()
    assert sorted(fire.scheduled_ms for fire in fires) == [NOW, NOW + HOUR]


def test_other_jobs_fire_while_one_is_held(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.create("b", every(HOUR))
    pending = bench.begin(Pause(NAMESPACE, "a"))
    assert [fire.job for fire in bench.tick(HOUR, log=False)] == ["b"]
    bench.commit(pending)


def test_a_retry_waits_while_its_job_is_held(bench: Bench) -> None:
    bench.create("a", once(NOW))
    bench.answer(bench.fire_one(), failed())
    pending = bench.begin(Pause(NAMESPACE, "a"))
    assert bench.tick(SECOND, log=False) == []
    bench.commit(pending)
    assert bench.tick() == []
    pending = bench.begin(Resume(NAMESPACE, "a"))
    assert bench.tick(SECOND, log=False) == []
    bench.commit(pending)
    assert bench.fire_one().attempt == 2


def test_the_gate_is_not_asked_while_the_job_is_held(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    (fire,) = bench.tick(HOUR)
    pending = bench.begin(Run(NAMESPACE, "a", "r"))
    with pytest.raises(AssertionError, match="the gate waits"):
        bench.shard.may_send(fire)
    bench.commit(pending)
    assert bench.shard.may_send(fire)


def test_a_batch_that_changes_nothing_holds_nothing(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    pending = bench.begin(Resume(NAMESPACE, "a"))
    assert pending.batch.effects is None
    assert bench.shard.held == set()


# --- between firing and logging --------------------------------------------------------------


def test_an_occurrence_fires_once_although_its_due_is_not_logged_yet(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    (fire,) = bench.tick(HOUR, log=False)
    bench.shard.load([(fire.due_ms, fire.job_row, 1)])
    assert bench.tick(SECOND, log=False) == []
    assert len(bench.leading) == 1
    assert bench.tick() == []
    assert bench.status("a").run == 1


def test_an_entry_that_comes_twice_fires_once(bench: Bench) -> None:
    row = bench.create("a", every(HOUR)).row
    bench.shard.load([(NOW + HOUR, row, 1)] * 3)
    assert len(bench.tick(HOUR)) == 1
    bench.shard.load([(bench.now_ms, bench.outbox[0].execution_row, -1)])
    assert bench.tick() == []


def test_a_cancel_decided_with_the_due_that_fired_before_it_knows_the_request(
    bench: Bench,
) -> None:
    """The order of the runner: what fires while a batch reads its rows joins that batch."""
    bench.create("a", every(HOUR))
    (fire,) = bench.tick(HOUR, log=False)
    assert bench.shard.may_send(fire)
    reply = bench.changed(Cancel(NAMESPACE, "a"))
    assert (reply.cancellation, reply.attempt) == (Cancellation.ALREADY_DISPATCHED, 1)
    bench.answer(fire)
    assert [e.state for e in bench.ended()] == [ExecutionState.SUCCEEDED]


def test_a_due_and_its_end_can_share_a_batch(bench: Bench) -> None:
    bench.create("a", once(NOW))
    (fire,) = bench.tick(log=False)
    bench.shard.may_send(fire)
    bench.answer(fire)
    assert [e.state for e in bench.ended()] == [ExecutionState.SUCCEEDED]
    assert bench.status("a").state == JobState.COMPLETED


# --- flights ---------------------------------------------------------------------------------


def test_the_gate_knows_only_what_is_on_its_way_under_this_epoch(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    (fire,) = bench.tick(HOUR)
    assert not bench.shard.may_send(fire._replace(epoch=0))
    assert not bench.shard.may_send(fire._replace(execution_row=99))
    assert bench.shard.may_send(fire)
    bench.answer(fire)
    assert not bench.shard.may_send(fire)


def test_a_pause_holds_back_what_was_not_sent_and_a_resume_lets_it_go(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    (fire,) = bench.tick(HOUR)
    bench.call(Pause(NAMESPACE, "a"))
    assert not bench.shard.may_send(fire)
    bench.give_back(fire)
    assert bench.tick(MINUTE) == []
    bench.call(Resume(NAMESPACE, "a"))
    again = bench.fire_one()
    assert (again.id, again.attempt) == (fire.id, 1)
    bench.answer(again)
    assert [e.state for e in bench.ended()] == [ExecutionState.SUCCEEDED]


def test_a_pause_that_ends_in_time_is_not_noticed(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    (fire,) = bench.tick(HOUR)
    bench.call(Pause(NAMESPACE, "a"))
    bench.call(Resume(NAMESPACE, "a"))
    assert bench.shard.may_send(fire)
    assert bench.tick() == []


def test_a_pause_does_not_hold_back_what_runs_by_hand(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.call(Run(NAMESPACE, "a", "r"))
    (fire,) = bench.tick()
    bench.call(Pause(NAMESPACE, "a"))
    assert bench.shard.may_send(fire)


def test_a_new_spec_takes_back_what_was_not_sent_and_sends_it_anew(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    (old,) = bench.tick(HOUR)
    bench.call(change("a", every(HOUR), url="http://127.0.0.1/new"))
    assert not bench.shard.may_send(old)
    bench.give_back(old)
    new = bench.fire_one()
    assert (new.id, new.attempt, new.generation) == (old.id, 1, 2)
    assert new.target.url == "http://127.0.0.1/new"


def test_what_was_withdrawn_is_not_due_again(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    (fire,) = bench.tick(HOUR)
    bench.call(Cancel(NAMESPACE, "a"))
    assert not bench.shard.may_send(fire)
    bench.give_back(fire)
    assert bench.shard.flights == {}
    assert bench.tick(HOUR) == []


def test_landing_twice_is_harmless(bench: Bench) -> None:
    bench.create("a", every(HOUR), overlap=OverlapPolicy.ALLOW_ALL)
    one, two = bench.fire_one(HOUR), bench.fire_one(HOUR)
    assert bench.shard.running(one.job_row) == 2
    bench.answer(one)
    bench.shard.landed(one, withdrawn=True)
    assert bench.shard.running(one.job_row) == 1
    bench.answer(two)
    assert bench.shard.running(one.job_row) == 0


def test_an_end_that_changes_nothing_lands_all_the_same(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    fire = bench.fire_one(HOUR)
    bench.call(Delete(NAMESPACE, "a"))
    assert bench.shard.flights
    pending = bench.begin(Ended(fire, failed()))
    assert pending.batch.effects is None
    assert bench.shard.flights == {}


# --- catching up one after the other ---------------------------------------------------------


def caught_up_one_by_one(bench: Bench) -> None:
    """Three occurrences are due; the first is on its way; the others wait for its end."""
    bench.create("a", every(HOUR), misfire=MisfirePolicy.ALL)
    bench.crash(3 * HOUR)
    bench.fire_one()
    assert bench.tick() == []


def test_a_change_of_the_job_looks_at_what_waits_again(bench: Bench) -> None:
    caught_up_one_by_one(bench)
    bench.call(change("a", every(HOUR), misfire=MisfirePolicy.LATEST))
    assert bench.tick() == []
    assert bench.status("a").skipped == 2


def test_a_pause_stops_the_catching_up(bench: Bench) -> None:
    caught_up_one_by_one(bench)
    bench.call(Pause(NAMESPACE, "a"))
    bench.answer(bench.outbox[0])
    assert bench.tick() == []
    bench.call(Resume(NAMESPACE, "a"))
    assert bench.status("a").skipped == 2
    assert bench.fire_one(HOUR).scheduled_ms == NOW + 4 * HOUR


def test_a_deleted_job_awaits_nothing(bench: Bench) -> None:
    caught_up_one_by_one(bench)
    assert bench.shard._awaiting
    bench.call(Delete(NAMESPACE, "a"))
    assert not bench.shard._awaiting


# --- the wheel's window, and rows that are not in memory -------------------------------------


def test_what_is_beyond_the_window_waits_for_it(bench: Bench) -> None:
    bench.shard.shrink(NOW + MINUTE)
    bench.create("soon", once(NOW + MINUTE - 1))
    bench.create("later", once(NOW + HOUR))
    bench.flush()
    bench.create("unflushed", once(NOW + HOUR))
    assert [fire.job for fire in bench.tick(2 * HOUR)] == ["soon"]
    from_ms = bench.shard.widen(bench.now_ms + HOUR)
    assert from_ms == NOW + MINUTE
    bench.shard.load(bench.store.due(from_ms, bench.now_ms + HOUR, 100))
    assert {fire.job for fire in bench.tick()} == {"later", "unflushed"}


def test_a_window_never_moves_back_by_widening(bench: Bench) -> None:
    end_ms = bench.shard.horizon_ms
    assert bench.shard.widen(end_ms - DAY) == end_ms
    assert bench.shard.horizon_ms == end_ms


def test_a_retry_beyond_the_window_is_taken_in_from_memory(bench: Bench) -> None:
    bench.create("a", once(NOW))
    fire = bench.fire_one()
    bench.shard.shrink(NOW + MINUTE)
    bench.answer(fire, failed(retry_after_ms=HOUR))
    assert bench.tick(HOUR) == []
    bench.shard.widen(NOW + 2 * HOUR)
    assert bench.fire_one().attempt == 2


def test_shrinking_drops_what_is_due_later(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR))
    assert len(bench.shard.wheel) == 1
    bench.shard.shrink(NOW + HOUR)
    assert len(bench.shard.wheel) == 0


@pytest.mark.parametrize("keep_ms", [0, DAY])
def test_rows_that_were_flushed_are_read_before_they_fire(bench: Bench, keep_ms: int) -> None:
    bench.create("a", every(HOUR))
    bench.flush(keep_ms)
    fire = bench.fire_one(HOUR)
    bench.flush(keep_ms)
    bench.answer(fire, failed())
    bench.flush(keep_ms)
    assert bench.fire_one(SECOND).attempt == 2


def test_entries_without_a_row_in_memory_are_cold(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.answer(bench.fire_one(HOUR), failed())
    bench.flush()
    fired = bench.shard.fire(bench.now_ms + SECOND, 10)
    (entry,) = fired.cold
    assert entry[2] == -2
    execution = bench.store.live([entry[1]])
    bench.shard.table.admit([], execution.items())
    bench.shard.load([entry])
    fired = bench.shard.fire(bench.now_ms + SECOND, 10)
    assert fired.cold == [entry], "its job is not in memory yet"


def test_a_status_without_its_job_is_cold(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.flush()
    bench.call(Pause(NAMESPACE, "a"))
    bench.call(Resume(NAMESPACE, "a"))
    assert len(bench.shard.fire(NOW + HOUR, 1).cold) == 1


def test_leftovers_of_what_is_gone_are_dropped(bench: Bench) -> None:
    row = bench.create("a", every(HOUR)).row
    bench.call(Run(NAMESPACE, "a", "r"))
    (live_row,) = bench.status("a").live
    bench.shard.load([(NOW, live_row, -5), (NOW - 1, live_row, -1)])
    bench.call(Delete(NAMESPACE, "a"))
    fired = bench.shard.fire(NOW + DAY, 10)
    assert (fired.fires, fired.commands, fired.cold) == ([], [], [])
    bench.shard.load([(NOW, row, 1), (NOW, 77, -1)])
    assert bench.tick() == []


def test_an_execution_whose_job_is_gone_is_dropped(bench: Bench) -> None:
    """An entry of the store may outlive its job in memory by a moment."""
    bench.create("a", every(HOUR))
    bench.call(Run(NAMESPACE, "a", "r"))
    (live_row,) = bench.status("a").live
    data = bench.shard.table.execution(live_row)
    assert isinstance(data, bytes)
    bench.call(Delete(NAMESPACE, "a"))
    bench.shard.table.put_live(live_row, data)
    fired = bench.shard.fire(NOW, 10)
    assert (fired.fires, fired.cold) == ([], [])


def test_an_entry_of_an_older_due_time_is_stale(bench: Bench) -> None:
    row = bench.create("a", every(HOUR)).row
    bench.call(Run(NAMESPACE, "a", "r"))
    (live_row,) = bench.status("a").live
    bench.shard.load([(NOW - 5, row, 1), (NOW - 5, live_row, -1), (NOW + HOUR, row, 9)])
    assert [fire.execution_row for fire in bench.tick()] == [live_row]


# --- firing ----------------------------------------------------------------------------------


def test_a_burst_is_fired_in_slices(bench: Bench) -> None:
    bench.batch(*(creation(f"j{n}", once(NOW + SECOND)) for n in range(5)))
    sizes = [len(bench.shard.fire(NOW + SECOND, 2).fires) for _ in range(4)]
    assert sizes == [2, 2, 1, 0]


def test_nothing_fires_early(bench: Bench) -> None:
    bench.create("a", once(NOW + SECOND))
    assert bench.tick(SECOND - 1) == []
    assert len(bench.tick(1)) == 1


@pytest.mark.parametrize(("late_ms", "late"), [(LATE_MS, False), (LATE_MS + 1, True)])
def test_what_is_late_says_so(bench: Bench, late_ms: int, *, late: bool) -> None:
    bench.create("a", once(NOW + SECOND))
    bench.create("b", once(NOW + SECOND))
    bench.call(Run(NAMESPACE, "b", "r"))
    bench.now_ms += SECOND + late_ms
    fires = {fire.id.count(":r:"): fire for fire in bench.tick()}
    assert fires[0].late == late


def test_the_stamped_time_never_goes_back(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.now_ms -= HOUR
    assert bench.create("b", every(HOUR)).status.create_ms == NOW


# --- replay ----------------------------------------------------------------------------------


def test_a_replica_that_applies_the_log_is_equal(bench: Bench) -> None:
    bench.create("a", every(HOUR), overlap=OverlapPolicy.BUFFER_ONE)
    bench.create("b", once(NOW + HOUR))
    bench.tick(HOUR)
    bench.tick(HOUR)
    for fire in list(bench.outbox):
        bench.answer(fire, failed(OutcomeKind.FAIL, 400))
    bench.call(Delete(NAMESPACE, "b"))
    replica = Shard(SHARD, 9, start_ms=NOW, next_row=1, table=Table(CACHE_BYTES), rng=Random(99))
    for effects in bench.log:
        replica.apply(effects)
    assert replica.table.active == bench.shard.table.active
    assert (replica.next_row, replica.last_ms) == (bench.shard.next_row, bench.shard.last_ms)
    assert len(replica.wheel) == 0


def test_a_view_tells_what_is_on_its_way(bench: Bench) -> None:
    row = bench.create("a", every(HOUR)).row
    bench.fire_one(HOUR)
    job = bench.shard.table.job(row)
    assert isinstance(job, JobRow)
    view = bench.shard.view(row, job)
    assert (view.running, view.status) == (1, codec.decode_status(job.status))


def test_reading_is_asked_of_the_table(bench: Bench) -> None:
    rows = Rows()
    assert bench.shard.collect([Pause(NAMESPACE, "a")], rows).names == [(NAMESPACE, "a")]


# --- crowded targets -------------------------------------------------------------------------


def test_what_finds_no_place_is_put_off_as_if_it_were_not_due(bench: Bench) -> None:
    full, free = "http://127.0.0.1/full", "http://127.0.0.1/free"
    rows = [
        bench.create(name, once(NOW + HOUR), url=url).row
        for name, url in (("a", full), ("b", free), ("c", full))
    ]
    bench.now_ms += HOUR
    asked: list[str] = []

    def crowded(url: str) -> TargetKey | None:
        asked.append(url)
        return KEY if url == full else None

    fired = bench.shard.fire(bench.now_ms, 16, crowded)
    assert asked == [full, free, full], "a place that is kept is used"
    assert (fired.entries, len(fired.fires), len(fired.commands)) == (3, 1, 1)
    entries = [(NOW + HOUR, row, 1) for row in (rows[0], rows[2])]
    assert fired.crowded == [(KEY, entry) for entry in entries]
    assert bench.tick() == [], "it does not come back by itself"
    bench.shard.load(entries)
    assert [fire.job for fire in bench.tick()] == ["a", "c"]


def test_a_retry_is_put_off_too(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR))
    bench.answer(bench.fire_one(HOUR), failed())
    bench.now_ms += HOUR
    fired = bench.shard.fire(bench.now_ms, 16, lambda _url: KEY)
    ((key, entry),) = fired.crowded
    assert (key, entry[2], fired.fires) == (KEY, -2, [])
    bench.shard.load([entry])
    assert [fire.attempt for fire in bench.tick()] == [2]


def test_what_was_put_off_and_changed_meanwhile_does_not_fire(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR))
    bench.now_ms += HOUR
    fired = bench.shard.fire(bench.now_ms, 16, lambda _url: KEY)
    reply = bench.changed(Cancel(NAMESPACE, "a"))
    assert reply.cancellation == Cancellation.BEFORE_DISPATCH
    bench.shard.load([entry for _, entry in fired.crowded])
    assert bench.tick() == []


# --- one leadership after the other ----------------------------------------------------------


def leads_again(bench: Bench, by_ms: int = 0) -> None:
    """The shard is given up, and led again on the same node, from what is applied."""
    bench.shard.resign()
    bench.outbox.clear()
    bench.leading.clear()
    bench.now_ms += by_ms
    bench.shard.lead(bench.shard.epoch + 1, bench.now_ms)
    bench.shard.widen(bench.now_ms + DAY)


def test_nothing_is_due_or_may_be_sent_once_the_shard_was_given_up(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.create("b", once(NOW + 2 * HOUR))
    (fire,) = bench.tick(HOUR)
    bench.shard.resign()
    assert not bench.shard.may_send(fire)
    assert bench.tick(DAY) == []
    assert (bench.shard.wheel.next_ms(), bench.shard.running(fire.job_row)) == (None, 0)


def test_what_a_follower_applies_stays_out_of_its_wheel(bench: Bench) -> None:
    effects = bench.begin(creation("a", once(NOW + HOUR))).batch.effects
    assert effects is not None
    bench.shard.resign()
    bench.shard.apply(effects)
    assert len(bench.shard.wheel) == 0
    bench.shard.lead(2, NOW)
    bench.shard.widen(NOW + DAY)
    assert [fire.job for fire in bench.tick(HOUR)] == ["a"]


def test_a_request_of_the_former_leadership_goes_out_again_with_its_id(bench: Bench) -> None:
    bench.create("a", once(NOW + HOUR))
    former = bench.fire_one(HOUR)
    leads_again(bench, SECOND)
    fire = bench.fire_one()
    assert (fire.id, fire.attempt, fire.epoch) == (former.id, former.attempt, former.epoch + 1)
    assert not bench.shard.may_send(former)
    bench.answer(fire)
    assert [e.state for e in bench.ended()] == [ExecutionState.SUCCEEDED]


def test_what_was_decided_and_never_committed_holds_nothing_later(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    bench.begin(Cancel(NAMESPACE, "a"))
    assert bench.tick(HOUR, log=False) == [], "it waits for the batch"
    leads_again(bench)
    assert bench.status("a").state == JobState.SCHEDULED
    assert [fire.job for fire in bench.tick()] == ["a"]


def test_a_due_that_was_never_logged_falls_due_again(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    (former,) = bench.tick(HOUR, log=False)
    leads_again(bench)
    fire = bench.fire_one()
    assert (fire.id, fire.attempt) == (former.id, 1)
    bench.answer(fire)
    assert bench.status("a").due_ms == NOW + 2 * HOUR


def test_the_next_leadership_goes_on_catching_up(bench: Bench) -> None:
    caught_up_one_by_one(bench)
    leads_again(bench)
    bench.answer(bench.fire_one())
    assert bench.fire_one().scheduled_ms == NOW + 2 * HOUR


def test_a_leadership_does_not_begin_before_what_is_applied(bench: Bench) -> None:
    bench.create("a", every(HOUR))
    leads_again(bench, -MINUTE)
    assert bench.shard.start_ms == NOW
