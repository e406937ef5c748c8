"""Draft: a batch sees what it changed itself, over what was read; its effects are after-images."""

from random import Random

from tickwheel.server import codec
from tickwheel.server.draft import Draft, Rows, Stamp
from tickwheel.server.model import (
    Effects,
    Execution,
    ExecutionKind,
    ExecutionState,
    JobRow,
    JobState,
    Status,
)

NOW = 1_000
STATUS = Status(JobState.SCHEDULED, 1, 5, 5)
JOB = JobRow("acme", "a", b"u" * 16, b"spec", codec.encode_status(STATUS), "")
EXECUTION = Execution(
    1, b"u" * 16, "acme", "a", ExecutionKind.OCCURRENCE, 7, "", ExecutionState.RUNNING, 8
)


def draft(rows: Rows | None = None) -> Draft:
    stamp = Stamp(NOW, 2, 500)
    return Draft(rows or Rows(), stamp, next_row=10, rng=Random(1), flights={})


def known() -> Rows:
    data = codec.encode_execution(EXECUTION)
    return Rows({("acme", "a"): 1}, {1: JOB, 2: None}, {9: data, 8: None})


def test_it_begins_with_what_was_read() -> None:
    d = draft(known())
    assert d.now_ms == NOW
    assert (d.find("acme", "a"), d.find("acme", "b")) == (1, 0)
    assert d.job(1) == (JOB, STATUS)
    assert d.job(2) is None
    assert d.job(3) is None
    assert d.execution(9) == EXECUTION
    assert d.execution(8) is None
    assert list(d.flights(1)) == []
    assert d.effects() is None
    assert d.touched == set()


def test_a_new_job_is_found_and_logged_whole() -> None:
    d = draft()
    row = d.new_row()
    d.put_job(row, JOB._replace(status=b""), STATUS)
    assert (row, d.next_row) == (10, 11)
    assert d.find("acme", "a") == 10
    assert d.effects() == Effects(NOW, 11, [(10, JOB)], [], [], [], [])


def test_a_status_is_logged_alone_and_its_last_word_counts() -> None:
    d = draft(known())
    d.put_status(1, STATUS._replace(run=1))
    last = STATUS._replace(run=2)
    d.put_status(1, last)
    assert d.job(1) == (JOB, last)
    assert d.touched == {1}
    assert d.effects() == Effects(NOW, 10, [], [(1, codec.encode_status(last))], [], [], [])


def test_a_dropped_job_leaves_only_its_drop() -> None:
    d = draft(known())
    d.put_job(1, JOB, STATUS._replace(run=1))
    d.drop(1, JOB)
    assert d.job(1) is None
    assert d.find("acme", "a") == 0
    assert d.touched == {1}
    assert d.effects() == Effects(NOW, 10, [], [], [(1, "acme", "a")], [], [])


def test_an_execution_is_live_or_ended_never_both() -> None:
    d = draft(known())
    end = EXECUTION._replace(state=ExecutionState.FAILED)
    d.put_live(9, EXECUTION._replace(attempt=1))
    assert d.execution(9) == EXECUTION._replace(attempt=1)
    d.put_ended(9, end)
    assert d.execution(9) is None
    effects = d.effects()
    assert effects is not None
    assert (effects.live, effects.ended) == ([], [(9, codec.encode_execution(end))])
    d.put_live(9, EXECUTION)
    effects = d.effects()
    assert effects is not None
    assert (effects.live, effects.ended) == ([(9, codec.encode_execution(EXECUTION))], [])


def test_what_is_withdrawn_is_remembered() -> None:
    d = draft()
    d.withdraw(9)
    assert d.withdrawn == [9]


def test_a_job_that_is_made_and_changed_in_one_batch_is_logged_once_as_it_is_last() -> None:
    d = draft()
    row = d.create(JOB)
    assert (row, d.next_row, d.find("acme", "a"), d.touched) == (10, 11, 10, {10})
    assert d.job(row) == (JOB, STATUS)
    assert d.effects() == Effects(NOW, 11, [(10, JOB)], [], [], [], [])
    last = STATUS._replace(run=1)
    d.put_status(row, last)
    assert d.job(row) == (JOB, last)
    logged = JOB._replace(status=codec.encode_status(last))
    assert d.effects() == Effects(NOW, 11, [(10, logged)], [], [], [], [])
    d.put_job(row, JOB._replace(spec=b"other"), last)
    assert d.touched == {10}
    again = d.create(JOB)
    d.drop(again, JOB)
    effects = d.effects()
    assert effects is not None
    assert (effects.jobs, effects.drops) == (
        [(10, logged._replace(spec=b"other"))],
        [(11, "acme", "a")],
    )
