"""What SQLite does to a shard's store: crashes, full disks, readers in the way, foreign files."""

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.unit.store_samples import DAY_0, NOW, Changed, execution, execution_columns, job

from tickwheel.server.errors import StoreFailed
from tickwheel.server.model import MS_PER_DAY, ExecutionState, JobRow, JobState, Row
from tickwheel.server.placement import key_of
from tickwheel.server.query import Applied, ExecutionQuery, GroupBy, Grouping, JobQuery
from tickwheel.server.store import ShardStore, StoreOptions, sqlite
from tickwheel.server.store.threads import attempt

SHARD = 3
OPTIONS = StoreOptions(execution_columns)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ShardStore]:
    opened = ShardStore.open(tmp_path, SHARD, OPTIONS)
    yield opened
    opened.close()


def crashed(directory: Path, to: Path, *, lose_journals: bool = False) -> ShardStore:
    """Open what a process that dies now leaves behind; a power cut may take what was not synced."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    for path in directory.glob("*.db*"):
        if not path.name.endswith("-shm") and not (lose_journals and path.name.endswith("-wal")):
            shutil.copy(path, to / path.name)
    return ShardStore.open(to, SHARD, OPTIONS)


def test_content_survives_closing(tmp_path: Path) -> None:
    first = ShardStore.open(tmp_path, SHARD, OPTIONS)
    first.flush(Changed(jobs={1: job("a")}, live={2: execution(1, "a")}), Applied(5, 2, 3, NOW))
    first.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard-0003.db"]
    second = ShardStore.open(tmp_path, SHARD, OPTIONS)
    assert second.applied == Applied(5, 2, 3, NOW)
    assert second.durable == Applied()
    assert second.jobs([1]) == {1: job("a")}
    second.flush(Changed(jobs={3: job("b", namespace="other")}), Applied(6, 2, 4, NOW))
    assert second.find([("acme", "a"), ("other", "b")]) == {("acme", "a"): 1, ("other", "b"): 3}
    second.close()


def test_crash_keeps_what_was_flushed(store: ShardStore, tmp_path: Path) -> None:
    failed = execution(1, "a", state=ExecutionState.FAILED)
    store.flush(Changed(jobs={1: job("a")}), Applied(1))
    assert store.checkpoint()
    store.flush(Changed(jobs={3: job("b")}, ended={2: failed}), Applied(2))
    after = crashed(tmp_path, tmp_path / "copy")
    assert after.applied == Applied(2)
    assert after.jobs([1, 3]) == {1: job("a"), 3: job("b")}
    assert after.execution(2) == failed
    after.close()


def test_losing_the_journals_goes_back_to_the_checkpoint(store: ShardStore, tmp_path: Path) -> None:
    running, failed = execution(1, "a"), execution(1, "a", state=ExecutionState.FAILED)
    store.flush(Changed(jobs={1: job("a")}, live={2: running}), Applied(4, 1, 3, NOW))
    assert store.checkpoint()
    store.flush(
        Changed(jobs={1: job("a", generation=2), 3: job("b")}, ended={2: failed}), Applied(9)
    )
    after = crashed(tmp_path, tmp_path / "copy", lose_journals=True)
    assert after.applied == store.durable == Applied(4, 1, 3, NOW)
    assert after.jobs([1, 3]) == {1: job("a")}
    assert after.execution(2) == running
    assert after.count_jobs(JobQuery(), Grouping()) == {0: 1}
    # The log writes the rest again, to the same end.
    after.flush(
        Changed(jobs={1: job("a", generation=2), 3: job("b")}, ended={2: failed}), Applied(9)
    )
    assert after.jobs([1, 3]) == store.jobs([1, 3])
    assert after.list_executions(ExecutionQuery()) == store.list_executions(ExecutionQuery())
    after.close()


def test_torn_journal_is_one_of_the_flushes(store: ShardStore, tmp_path: Path) -> None:
    """Whatever prefix of the journal is left: the content is that of the `applied` beside it."""
    contents: dict[int, dict[Row, JobRow]] = {0: {}}
    for index in range(1, 6):
        store.flush(Changed(jobs={index: job(f"j{index}", body=bytes(3000))}), Applied(index))
        contents[index] = store.jobs(range(1, 7))
    whole = (tmp_path / "shard-0003.db-wal").stat().st_size
    seen: set[int] = set()
    for size in range(0, whole, 4096 + 999):
        copy = tmp_path / "copy"
        crashed(tmp_path, copy).close()
        for path in copy.iterdir():
            path.unlink()
        shutil.copy(tmp_path / "shard-0003.db", copy)
        journal = (tmp_path / "shard-0003.db-wal").read_bytes()[:size]
        (copy / "shard-0003.db-wal").write_bytes(journal)
        after = ShardStore.open(copy, SHARD, OPTIONS)
        assert after.jobs(range(1, 7)) == contents[after.applied.index]
        assert after.sizes().jobs == len(contents[after.applied.index])
        seen.add(after.applied.index)
        after.close()
    assert seen >= {0, 1, 2, 3, 4}


def test_history_written_but_main_not(store: ShardStore, tmp_path: Path) -> None:
    running, failed = execution(1, "a"), execution(1, "a", state=ExecutionState.FAILED)
    store.flush(Changed(jobs={1: job("a")}, live={2: running}), Applied(1))
    bad = job("b")._replace(spec=None)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.IntegrityError):
        store.flush(Changed(jobs={3: bad}, ended={2: failed}), Applied(2))
    for opened in (store, crashed(tmp_path, tmp_path / "copy")):
        assert opened.applied == Applied(1)
        assert opened.execution(2) == running
        assert [hit.data for hit in opened.list_executions(ExecutionQuery())] == [running]
        opened.flush(Changed(jobs={3: job("b")}, ended={2: failed}), Applied(2))
        assert opened.execution(2) == failed
        assert opened.live([2]) == {}
    opened.close()


def test_failed_flush_forgets_its_namespaces(store: ShardStore) -> None:
    bad = job("b", namespace="new")._replace(spec=None)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.IntegrityError):
        store.flush(Changed(jobs={1: bad}), Applied(1))
    store.flush(
        Changed(jobs={1: job("x", namespace="newer"), 2: job("y", namespace="new")}), Applied(1)
    )
    assert store.find([("new", "y"), ("newer", "x")]) == {("new", "y"): 2, ("newer", "x"): 1}


def test_failed_history_leaves_main_as_it_was(store: ShardStore) -> None:
    store.flush(Changed(ended={2: execution(1, "a", namespace="n")}), Applied(1))
    with pytest.raises(OverflowError):
        store.flush(Changed(jobs={3: job("b")}, ended={1 << 70: execution(1, "a")}), Applied(2))
    assert store.applied == Applied(1)
    assert store.jobs([3]) == {}
    store.flush(Changed(jobs={3: job("b")}, ended={4: execution(1, "a")}), Applied(2))
    assert [hit.key.row for hit in store.list_executions(ExecutionQuery(namespace="acme"))] == [4]


def test_full_disk_is_a_reason_of_its_own(store: ShardStore) -> None:
    store.flush(Changed(jobs={1: job("a")}), Applied(1))
    pages = store._writer().execute("PRAGMA page_count").fetchone()[0]
    store._writer().execute(f"PRAGMA max_page_count = {pages + 5}").fetchone()
    many = {row: job(f"j{row}", body=bytes(8000)) for row in range(2, 30)}
    result, error = attempt(lambda: store.flush(Changed(jobs=many), Applied(2)))
    assert result is None
    assert isinstance(error, StoreFailed)
    assert error.reason == "STORE_FULL"
    assert isinstance(error.__cause__, sqlite3.OperationalError)
    assert store.applied == Applied(1)
    assert store.jobs([1, 2]) == {1: job("a")}
    store._writer().execute("PRAGMA max_page_count = 100000").fetchone()
    store.flush(Changed(jobs=many), Applied(2))
    assert store.sizes().jobs == 29


def test_reader_in_the_way_delays_the_checkpoint(store: ShardStore) -> None:
    store.flush(Changed(jobs={1: job("a")}), Applied(1))
    reader = store._lister()
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM job").fetchall()
    store.flush(Changed(jobs={2: job("b")}), Applied(2))
    assert not store.checkpoint()
    assert store.durable == Applied()
    reader.execute("COMMIT")
    assert store.checkpoint()
    assert store.durable == Applied(2)


def test_reader_of_history_delays_the_checkpoint(store: ShardStore) -> None:
    failed = execution(1, "a", state=ExecutionState.FAILED)
    store.flush(Changed(ended={2: failed}), Applied(1))
    with store._history.reading(NOW // MS_PER_DAY) as reader:
        assert reader is not None
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM execution").fetchall()
        store.flush(Changed(ended={3: failed}), Applied(2))
        assert not store.checkpoint()
        assert store.durable == Applied()
    assert store.checkpoint()
    assert store.durable == Applied(2)


def test_another_format_is_refused(tmp_path: Path) -> None:
    ShardStore.open(tmp_path, SHARD, OPTIONS).close()
    db = sqlite3.connect(tmp_path / "shard-0003.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreFailed, match="format 99"):
        ShardStore.open(tmp_path, SHARD, OPTIONS)


def test_another_shards_file_is_refused(tmp_path: Path) -> None:
    first = ShardStore.open(tmp_path, SHARD, OPTIONS)
    first.flush(Changed(), Applied(1))
    first.close()
    (tmp_path / "shard-0003.db").rename(tmp_path / "shard-0004.db")
    with pytest.raises(StoreFailed, match="holds shard 3"):
        ShardStore.open(tmp_path, 4, OPTIONS)


def test_garbage_is_corruption(tmp_path: Path) -> None:
    (tmp_path / "shard-0003.db").write_bytes(b"this is no database" * 500)
    _, error = attempt(lambda: ShardStore.open(tmp_path, SHARD, OPTIONS))
    assert isinstance(error, StoreFailed)
    assert error.reason == "STORE_CORRUPT"


def test_garbage_in_history_is_corruption(store: ShardStore, tmp_path: Path) -> None:
    (tmp_path / f"shard-0003-day-{NOW // MS_PER_DAY}.db").write_bytes(b"no database" * 999)
    change = Changed(ended={2: execution(1, "a")})
    _, error = attempt(lambda: store.flush(change, Applied(1)))
    assert isinstance(error, StoreFailed)
    assert store.applied == Applied()


def test_large_flush(tmp_path: Path) -> None:
    """More rows than a statement takes, with a status, an end and a live execution for many of them."""
    store = ShardStore.open(tmp_path, SHARD, OPTIONS)
    jobs = {row: job(f"j{row}", due_ms=NOW + row) for row in range(1, 12_346)}
    paused = job("j", state=JobState.PAUSED, due_ms=0).status
    live = {row + 20_000: execution(row, f"j{row}", due_ms=NOW) for row in range(1, 3_000)}
    store.flush(Changed(jobs=jobs, live=live), Applied(1))
    assert store._write is None
    ended = {row: execution(1, "j1", state=ExecutionState.SUCCEEDED) for row in list(live)[:2_500]}
    statuses = dict.fromkeys(range(1, 6_001), paused)
    store.flush(
        Changed(statuses=statuses, ended=ended, drops=set(range(9_000, 10_000))), Applied(2)
    )
    expected = {
        row: job._replace(status=statuses.get(row, job.status)) for row, job in jobs.items()
    }
    rows = [row for row in jobs if not 9_000 <= row < 10_000]
    assert store.jobs(list(jobs)) == {row: expected[row] for row in rows}
    assert len(store.find([("acme", f"j{row}") for row in jobs])) == len(rows)
    assert len(store.due(0, 1 << 50, 100_000)) == len(rows) - 6_000 + 499
    counts = store.count_jobs(JobQuery(), Grouping(GroupBy.STATE))
    assert counts == {JobState.PAUSED: 6_000, JobState.SCHEDULED: len(rows) - 6_000}
    sizes = store.sizes()
    assert (sizes.jobs, sizes.live, sizes.history_days) == (len(rows), 499, 1)
    assert sizes.main_bytes > 1 << 20
    assert sizes.history_bytes > 1 << 16
    store.close()


def test_same_hash_is_not_the_same_name(store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def one(_namespace: str, _name: str) -> int:
        return 7

    def many(_namespace: str, names: Sequence[str]) -> list[int]:
        return [7] * len(names)

    monkeypatch.setattr("tickwheel.server.store.shard_store.key_of", one)
    monkeypatch.setattr("tickwheel.server.store.shard_store.keys_of", many)
    store.flush(Changed(jobs={1: job("a"), 2: job("b"), 3: job("c")}), Applied(1))
    assert store.find([("acme", "b"), ("acme", "x")]) == {("acme", "b"): 2}


def test_key_never_changes() -> None:
    assert key_of("acme", "report") == -4034586485906340013  # as `b2sum -l 64` has it


def test_expired_day_comes_back_when_written(store: ShardStore, tmp_path: Path) -> None:
    failed = execution(1, "a", create_ms=DAY_0, state=ExecutionState.FAILED)
    store.flush(Changed(ended={2: failed}), Applied(1))
    assert store.expire(DAY_0 // MS_PER_DAY + 1) == 1
    assert not list(tmp_path.glob("*-day-*"))
    assert store.execution(2) is None
    store.flush(Changed(ended={2: failed}), Applied(2))
    assert store.execution(2) == failed


def test_list_meets_a_day_that_just_went(store: ShardStore, tmp_path: Path) -> None:
    store.flush(Changed(ended={2: execution(1, "a")}), Applied(1))
    assert store.checkpoint()
    for path in tmp_path.glob("*-day-*"):
        path.unlink()
    assert store.list_executions(ExecutionQuery()) == []
    assert store.execution(2) is None


def test_hot_queries_use_their_indexes(store: ShardStore) -> None:
    """The scans that would grow with what waits: none of them may read the job table from end to end."""
    plans = {
        "due": "SELECT due_ms, row, generation FROM job WHERE due_ms >= 1 AND due_ms < 9"
        " AND (due_ms, generation, row) > (1, 0, 0) ORDER BY due_ms, generation, row LIMIT 5",
        "list": "SELECT row FROM job WHERE row >= 5 AND namespace = 1 ORDER BY row LIMIT 5",
        "name": "SELECT row FROM job WHERE key IN (SELECT value FROM json_each('[1]'))",
    }
    found = {
        what: " / ".join(row[3] for row in store._lister().execute(f"EXPLAIN QUERY PLAN {sql}"))
        for what, sql in plans.items()
    }
    assert "COVERING INDEX job_due" in found["due"]
    assert "INDEX job_namespace (namespace=? AND rowid>?)" in found["list"]
    assert "INDEX job_key" in found["name"]
    assert not any("TEMP B-TREE" in plan for plan in found.values())


def test_bulk_sizes_stay_below_the_limit() -> None:
    bulk = sqlite.Bulk("INSERT INTO t VALUES", 14)
    assert bulk.sizes(9_000) == [1024] * 8 + [256] * 3 + [16, 16, 4, 4]
    assert bulk.sizes(0) == []
    assert max(sqlite.Bulk("x", 14).sizes(100_000)) * 14 <= sqlite.VARIABLES_MAX


def test_a_large_flush_runs_its_largest_statement_some_times() -> None:
    bulk = sqlite.Bulk("INSERT INTO t VALUES", 14)
    assert bulk.sizes(70) == [64, 4, 1, 1]
    assert bulk.sizes(470) == [64] * 7 + [16, 4, 1, 1]
    assert bulk.sizes(1_030) == [256] * 4 + [4, 1, 1]


def test_mistakes_of_ours_stay_what_they_are() -> None:
    error = sqlite3.ProgrammingError("a mistake")
    assert sqlite.translate(error) is error


_FLUSHES_FOREVER = """
import sys
from pathlib import Path
from tests.unit.store_samples import Changed, execution, execution_columns, job
from tickwheel.server.query import Applied
from tickwheel.server.store import ShardStore, StoreOptions
store = ShardStore.open(Path(sys.argv[1]), 3, StoreOptions(execution_columns))
for index in range(1, 100_000):
    rows = range(index * 10, index * 10 + 10)
    ended = {row + 5_000_000: execution(row, f"j{row}") for row in rows}
    store.flush(Changed(jobs={row: job(f"j{row}") for row in rows}, ended=ended), Applied(index))
    if index % 7 == 0:
        assert store.checkpoint()
    print(index, flush=True)
"""


@pytest.mark.parametrize("flushes", [3, 20, 45])
def test_kill_9(tmp_path: Path, flushes: int) -> None:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", _FLUSHES_FOREVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=root,
        env={"PYTHONPATH": f"{root}:{root / 'src'}"},
    )
    assert process.stdout is not None
    with process, process.stdout:
        said = [int(process.stdout.readline()) for _ in range(flushes)]
        process.send_signal(signal.SIGKILL)
    store = ShardStore.open(tmp_path, SHARD, OPTIONS)
    index = store.applied.index
    assert index >= said[-1]
    assert store.sizes().jobs == index * 10
    assert store.jobs(range(1, 2_000_000, 99_991)).keys() <= set(range(10, index * 10 + 10))
    rows = range(index * 10, index * 10 + 10)
    assert all(store.execution(row + 5_000_000) for row in rows)
    store.close()
