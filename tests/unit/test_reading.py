"""Reading: names, then jobs, then executions; what the table knows is not asked for; what it half knows is merged."""

from tests.unit.shard_kit import HOUR, NAMESPACE, NOW, Bench, creation, every, failed, once

from tickwheel.server import codec
from tickwheel.server.command import (
    Cancel,
    Command,
    Create,
    Delete,
    Due,
    Ended,
    Expire,
    Get,
    Pause,
    Redrive,
    Resume,
    Run,
)
from tickwheel.server.draft import Rows
from tickwheel.server.fire import OutcomeKind
from tickwheel.server.model import ExecutionState
from tickwheel.server.reading import Found, Wants, collect, merge
from tickwheel.server.table import Table

NOTHING = Found({}, {}, {})


def rounds(bench: Bench, *commands: Command) -> list[tuple[int, int, int]]:
    """How many names, jobs and executions each round of reading asked for."""
    rows, asked = Rows(), list[tuple[int, int, int]]()
    while wants := collect(bench.shard.table, commands, rows):
        asked.append((len(wants.names), len(wants.jobs), len(wants.live)))
        store = bench.store
        found = Found(store.find(wants.names), store.jobs(wants.jobs), store.live(wants.live))
        merge(rows, wants, found)
    return asked


def with_a_running_job() -> Bench:
    bench = Bench()
    bench.create("a", every(HOUR))
    bench.fire_one(HOUR)
    return bench


def test_what_the_table_knows_is_not_read() -> None:
    bench = with_a_running_job()
    assert rounds(bench, Cancel(NAMESPACE, "a"), Get(NAMESPACE, "a")) == []


def test_after_a_flush_it_takes_a_round_for_each_step() -> None:
    bench = with_a_running_job()
    bench.flush()
    for deep in (Cancel(NAMESPACE, "a"), Delete(NAMESPACE, "a"), Resume(NAMESPACE, "a")):
        assert rounds(bench, deep) == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    for plain in (Pause(NAMESPACE, "a"), Run(NAMESPACE, "a", "r"), Get(NAMESPACE, "a")):
        assert rounds(bench, plain) == [(1, 0, 0), (0, 1, 0)]


def test_an_unknown_name_takes_one_round() -> None:
    assert rounds(Bench(), Get(NAMESPACE, "nobody")) == [(1, 0, 0)]


def test_a_dropped_name_takes_none() -> None:
    bench = Bench()
    bench.create("a", every(HOUR))
    bench.call(Delete(NAMESPACE, "a"))
    assert rounds(bench, Get(NAMESPACE, "a")) == []


def test_a_fresh_name_is_not_looked_up() -> None:
    prepared = creation("a", every(HOUR)).prepared
    assert rounds(Bench(), Create(NAMESPACE, "a", prepared, fresh=True)) == []
    assert rounds(Bench(), Create(NAMESPACE, "a", prepared)) == [(1, 0, 0)]


def test_leaders_commands_name_rows() -> None:
    bench = with_a_running_job()
    bench.flush()
    job_row = bench.row("a")
    due, expire = Due(job_row, NOW, NOW, 99), Expire(job_row, NOW)
    assert rounds(bench, due) == [(0, 1, 0)]
    assert rounds(bench, expire) == [(0, 1, 0)]
    (fire,) = bench.outbox
    assert rounds(bench, Ended(fire, failed())) == [(0, 1, 1)]


def test_a_disabling_end_reads_the_other_executions_too() -> None:
    bench = with_a_running_job()
    bench.call(Run(NAMESPACE, "a", "r"))
    bench.flush()
    (fire,) = bench.outbox
    disable = Ended(fire, failed(OutcomeKind.DISABLE, 410))
    assert rounds(bench, disable) == [(0, 1, 1), (0, 0, 1)]


def test_an_execution_that_begins_in_the_same_batch_is_not_looked_up() -> None:
    bench = Bench()
    bench.create("a", once(NOW + HOUR))
    (fire,) = bench.tick(HOUR, log=False)
    bench.flush()
    batch = [*bench.leading, Ended(fire, failed())]
    assert [live for _, _, live in rounds(bench, *batch)] == [0]


def test_of_several_ends_only_what_does_not_begin_in_their_batch_is_looked_up() -> None:
    bench = Bench()
    for name, by_ms in (("before", HOUR), ("one", 2 * HOUR), ("two", 2 * HOUR)):
        bench.create(name, once(NOW + by_ms))
    bench.fire_one(HOUR)
    bench.tick(HOUR, log=False)
    bench.flush()
    batch = [*bench.leading, *(Ended(fire, failed()) for fire in bench.outbox)]
    assert len(batch) == 2 + 3
    assert [live for _, _, live in rounds(bench, *batch)] == [1]


def test_a_status_known_here_stands_over_the_job_read_there() -> None:
    bench = Bench()
    bench.create("a", every(HOUR))
    bench.flush()
    bench.call(Pause(NAMESPACE, "a"))
    row = bench.row("a")
    rows = bench.read([Get(NAMESPACE, "a")])
    job = rows.jobs[row]
    assert job is not None
    assert codec.decode_status(job.status) == bench.status("a")
    assert rounds(bench, Get(NAMESPACE, "a")) == [(1, 0, 0), (0, 1, 0)]


def test_what_is_gone_is_not_asked_for_again() -> None:
    bench = with_a_running_job()
    (fire,) = bench.outbox
    bench.call(Delete(NAMESPACE, "a"))
    rows = Rows()
    wants = collect(bench.shard.table, [Ended(fire, failed()), Expire(fire.job_row, 1)], rows)
    assert not wants
    assert rows.live == {fire.execution_row: None}
    assert rows.jobs == {fire.job_row: None}


def test_what_the_store_does_not_have_does_not_exist() -> None:
    rows, wants = Rows(), Wants()
    wants.names, wants.jobs, wants.live = [("n", "a")], [1], [2]
    assert not merge(rows, wants, NOTHING)
    assert (rows.names, rows.jobs, rows.live) == ({("n", "a"): 0}, {1: None}, {2: None})
    ended = bench_end()
    assert not collect(Table(0), [ended], rows_for(ended))


def bench_end() -> Ended:
    bench = with_a_running_job()
    return Ended(bench.outbox[0], failed())


def rows_for(ended: Ended) -> Rows:
    """As if the store had answered that neither exists."""
    return Rows(jobs={ended.fire.job_row: None}, live={ended.fire.execution_row: None})


def test_a_redrive_reads_the_job() -> None:
    bench = with_a_running_job()
    (fire,) = bench.outbox
    bench.answer(fire, failed(OutcomeKind.FAIL, 400))
    (ended,) = bench.ended()
    assert ended.state == ExecutionState.FAILED
    redrive = Redrive(NAMESPACE, "a", fire.execution_row, "r")
    assert not collect(bench.shard.table, [redrive], Rows())
    bench.flush()
    wants = collect(bench.shard.table, [redrive], Rows())
    assert (wants.names, wants.ended) == ([(NAMESPACE, "a")], [fire.execution_row])
