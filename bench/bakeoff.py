"""Which engine holds the shards: SQLite as `server/store` uses it, against RocksDB through rocksdict.

    python bench/bakeoff.py sqlite   --rows 10000000 --directory /tmp/bakeoff
    python bench/bakeoff.py rocksdb  --rows 10000000 --directory /tmp/bakeoff

One engine a process, so that memory is its own. Rows are jobs of one namespace with ~420 bytes of content, in 64
shards, due at random within 30 days, with names in random order of hash; a shard is flushed in change sets of
`--flush-rows`, as the server does, beside a thread that keeps the interpreter busy half of the time (1 ms of work, 1 ms
of sleep). What is timed is flushing and checkpointing, not the making of rows. RocksDB gets its best case: no journal of
its own (the server's is enough), one database for all shards, Bloom filters, LZ4; "checkpoint" is a flush of its memory
table, and compaction goes on beside.

Figures go to stdout as JSON, one object a line. rocksdict is needed by this file only.
"""

import argparse
import json
import random
import resource
import shutil
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, Self

from tickwheel.server import codec
from tickwheel.server.model import MS_PER_DAY, JobRow, JobState, Ms, Row, Status
from tickwheel.server.placement import key_of
from tickwheel.server.query import Applied, GroupBy, Grouping, JobQuery
from tickwheel.server.store.shard_store import ShardStore, StoreOptions

SHARDS = 64
START_MS: Ms = 20_000 * MS_PER_DAY
SPAN_MS: Ms = 30 * MS_PER_DAY
MARKS = (1_000_000, 5_000_000, 10_000_000)
SPEC_BYTES = 230
UPDATES_PER_SHARD = 2_000
READ_BATCH = 1_000
READ_BATCHES = 50

Entry = tuple[Ms, Row, int]  # due_ms, row, generation


@dataclass
class ChangeSet:
    """A change set as `table` makes them."""

    jobs: dict[Row, JobRow] = field(default_factory=dict[Row, JobRow])
    statuses: dict[Row, bytes] = field(default_factory=dict[Row, bytes])
    drops: set[Row] = field(default_factory=set[Row])
    live: dict[Row, bytes] = field(default_factory=dict[Row, bytes])
    ended: dict[Row, bytes] = field(default_factory=dict[Row, bytes])


class Engine(Protocol):
    """What is compared."""

    def flush(self, shard: int, changes: ChangeSet, index: int) -> None:
        """Write a change set atomically."""
        ...

    def checkpoint(self) -> None:
        """Make durable all that was flushed."""
        ...

    def jobs(self, shard: int, rows: Sequence[Row]) -> int:
        """Read jobs by row; how many there were."""
        ...

    def find(self, shard: int, names: Sequence[tuple[str, str]]) -> int:
        """Look rows up by name; how many there were."""
        ...

    def due(self, shard: int, from_ms: Ms, until_ms: Ms, limit: int) -> Sequence[Entry]:
        """What falls due."""
        ...

    def page(self, shard: int) -> int:
        """One page of 100 paused jobs of the namespace; there are none, so all of them are looked at."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class Sqlite:
    """The server's own store."""

    def __init__(self, directory: Path) -> None:
        options = StoreOptions()
        self._stores = [ShardStore.open(directory, shard, options) for shard in range(SHARDS)]

    def flush(self, shard: int, changes: ChangeSet, index: int) -> None:
        self._stores[shard].flush(changes, Applied(index))

    def checkpoint(self) -> None:
        for store in self._stores:
            assert store.checkpoint(), "nobody reads"

    def jobs(self, shard: int, rows: Sequence[Row]) -> int:
        return len(self._stores[shard].jobs(rows))

    def find(self, shard: int, names: Sequence[tuple[str, str]]) -> int:
        return len(self._stores[shard].find(names))

    def due(self, shard: int, from_ms: Ms, until_ms: Ms, limit: int) -> Sequence[Entry]:
        return self._stores[shard].due(from_ms, until_ms, limit)

    def page(self, shard: int) -> int:
        query = JobQuery(namespace="acme", states=(JobState.PAUSED,), name_prefix="job")
        return len(self._stores[shard].list_jobs(query))

    def count(self) -> int:
        grouping = Grouping(GroupBy.STATE)
        counted = (store.count_jobs(JobQuery(), grouping) for store in self._stores)
        return sum(sum(counts.values()) for counts in counted)

    def close(self) -> None:
        for store in self._stores:
            store.close()


_ROW = struct.Struct(">cHQ")  # kind, shard, row
_KEY = struct.Struct(">cHqQ")  # kind, shard, hash or due, row
_HEAD = struct.Struct("<HHH")


class Rocks:
    """RocksDB, laid out as it likes: `j` identity and spec, `t` status, `k` name → row, `d` due → row, `a` applied.

    A new status has to delete the old entry of `d`, so it reads the old status first.
    """

    def __init__(self, directory: Path) -> None:
        # Of this comparison only, and its stubs disagree with it.
        self._rd: Any = import_module("rocksdict")
        rd = self._rd
        table = rd.BlockBasedOptions()
        table.set_block_cache(rd.Cache(64 << 20))
        table.set_bloom_filter(10, block_based=False)
        table.set_cache_index_and_filter_blocks(True)
        options = rd.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_block_based_table_factory(table)
        options.set_write_buffer_size(64 << 20)
        options.set_max_background_jobs(2)
        options.set_compression_type(rd.DBCompressionType.lz4())
        self._db: Any = rd.Rdict(str(directory / "rocks"), options)
        self._no_journal: Any = rd.WriteOptions()
        self._no_journal.disable_wal = True

    def flush(self, shard: int, changes: ChangeSet, index: int) -> None:
        batch = self._rd.WriteBatch(raw_mode=True)
        put = batch.put
        for row, job in changes.jobs.items():
            head = _HEAD.pack(len(job.namespace), len(job.name), len(job.labels))
            text = f"{job.namespace}{job.name}{job.labels}".encode()
            put(_ROW.pack(b"j", shard, row), head + text + job.uid + job.spec)
            put(_KEY.pack(b"k", shard, key_of(job.namespace, job.name), row), b"")
            self._put_status(put, shard, row, job.status)
        if changes.statuses:
            rows = list(changes.statuses)
            olds = self._db.get([_ROW.pack(b"t", shard, row) for row in rows])
            for row, old in zip(rows, olds, strict=True):
                batch.delete(_KEY.pack(b"d", shard, codec.status_due_ms(old), row))
                self._put_status(put, shard, row, changes.statuses[row])
        put(_ROW.pack(b"a", shard, 0), index.to_bytes(8, "big"))
        self._db.write(batch, self._no_journal)

    @staticmethod
    def _put_status(put: Any, shard: int, row: Row, status: bytes) -> None:
        columns = codec.status_columns(status)
        put(_ROW.pack(b"t", shard, row), status)
        if columns[0] == JobState.SCHEDULED:
            put(_KEY.pack(b"d", shard, columns[4], row), columns[2].to_bytes(4, "big"))

    def checkpoint(self) -> None:
        self._db.flush()

    def jobs(self, shard: int, rows: Sequence[Row]) -> int:
        found = self._db.get([_ROW.pack(b"j", shard, row) for row in rows])
        statuses = self._db.get([_ROW.pack(b"t", shard, row) for row in rows])
        return sum(1 for job, status in zip(found, statuses, strict=True) if job and status)

    def find(self, shard: int, names: Sequence[tuple[str, str]]) -> int:
        iterator = self._db.iter(self._rd.ReadOptions())
        found = 0
        for name in names:
            key = key_of(*name)
            iterator.seek(_KEY.pack(b"k", shard, key, 0))
            found += iterator.valid() and iterator.key()[:11] == _KEY.pack(b"k", shard, key, 0)[:11]
        return found

    def due(self, shard: int, from_ms: Ms, until_ms: Ms, limit: int) -> Sequence[Entry]:
        until = _KEY.pack(b"d", shard, until_ms, 0)
        found: list[Entry] = []
        for key, value in self._db.items(from_key=_KEY.pack(b"d", shard, from_ms, 0)):
            if key >= until or len(found) == limit:
                break
            _kind, _shard, due_ms, row = _KEY.unpack(key)
            found.append((due_ms, row, int.from_bytes(value, "big")))
        return found

    def page(self, shard: int) -> int:
        found = 0
        for key, status in self._db.items(from_key=_ROW.pack(b"t", shard, 0)):
            if key[:3] != _ROW.pack(b"t", shard, 0)[:3]:
                break
            found += codec.status_columns(status)[0] == JobState.PAUSED
        return found

    def compact(self) -> None:
        self._db.compact_range(None, None)

    def close(self) -> None:
        self._db.close()


class Work:
    """Rows as the scheduler would make them, and which there are."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._specs = [self._random.randbytes(SPEC_BYTES) for _ in range(4096)]
        self.next_rows = [1] * SHARDS

    def name(self, shard: int, row: Row) -> str:
        return f"job-{row * SHARDS + shard:012d}"

    def status(self, row: Row, generation: int, state: JobState = JobState.SCHEDULED) -> bytes:
        scheduled = state == JobState.SCHEDULED
        due_ms = START_MS + self._random.randrange(SPAN_MS) if scheduled else 0
        now_ms = START_MS + row
        return codec.encode_status(Status(state, generation, now_ms, now_ms, due_ms, due_ms))

    def creates(self, shard: int, count: int) -> ChangeSet:
        first = self.next_rows[shard]
        self.next_rows[shard] = first + count
        return ChangeSet(jobs={row: self._job(shard, row) for row in range(first, first + count)})

    def _job(self, shard: int, row: Row) -> JobRow:
        uid = (START_MS + row).to_bytes(6, "big") + self._random.randbytes(10)
        spec = self._specs[self._random.randrange(4096)]
        return JobRow("acme", self.name(shard, row), uid, spec, self.status(row, 1))

    def updates(self, shard: int, count: int) -> ChangeSet:
        rows = self._random.sample(range(1, self.next_rows[shard]), count)
        return ChangeSet(statuses={row: self.status(row, 2) for row in rows})

    def some_rows(self, count: int) -> tuple[int, list[Row]]:
        shard = self._random.randrange(SHARDS)
        return shard, self._random.sample(range(1, self.next_rows[shard]), count)


class Busy:
    """A thread that wants the interpreter half of the time."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            end = time.perf_counter() + 0.001
            while time.perf_counter() < end:
                pass
            time.sleep(0.001)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


class Stopwatch:
    """Seconds spent inside."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._start


def report(what: str, **figures: float) -> None:
    """One line of JSON."""
    rounded = {key: round(value, 3) for key, value in figures.items()}
    print(json.dumps({"what": what, **rounded}), flush=True)


def rss_mib() -> float:
    """Resident memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def disk_mib(directory: Path) -> float:
    """Bytes of all files."""
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file()) / (1 << 20)


def rounds(total: int, flush_rows: int) -> Iterator[int]:
    """Rows a shard in each round of flushes, so that rounds end at the marks."""
    done = 0
    for mark in (*[m for m in MARKS if m < total], total):
        while done < mark:
            rows = min(flush_rows, -(-(mark - done) // SHARDS))
            yield rows
            done += rows * SHARDS


def load(engine: Engine, work: Work, directory: Path, args: argparse.Namespace) -> None:
    """Fill it, round by round; a line at each mark."""
    end = time.perf_counter() + args.budget_s
    busy = Busy()
    flushing, checkpointing = Stopwatch(), Stopwatch()
    done, segment, index, slowest = 0, 0, 0, 0.0
    for number, rows in enumerate(rounds(args.rows, args.flush_rows)):
        for shard in range(SHARDS):
            changes = work.creates(shard, rows)
            index += 1
            before = flushing.seconds
            with flushing:
                engine.flush(shard, changes, index)
            slowest = max(slowest, flushing.seconds - before)
        done += rows * SHARDS
        segment += rows * SHARDS
        over = time.perf_counter() > end
        at_mark = done >= args.rows or any(m <= done < m + rows * SHARDS for m in MARKS) or over
        if at_mark or number % args.checkpoint_rounds == 0:
            with checkpointing:
                engine.checkpoint()
        if at_mark:
            spent = flushing.seconds + checkpointing.seconds
            report("load", rows=done, rows_per_s=segment / spent, flush_s=flushing.seconds,
                   checkpoint_s=checkpointing.seconds, slowest_flush_s=slowest,
                   disk_mib=disk_mib(directory), rss_mib=rss_mib())  # fmt: skip
            flushing, checkpointing, segment, slowest = Stopwatch(), Stopwatch(), 0, 0.0
        if over:
            break
    busy.stop()


def update(engine: Engine, work: Work) -> None:
    """New due times for random jobs: the worst that can happen to the index of due times."""
    busy = Busy()
    updating, updated = Stopwatch(), 0
    for shard in range(SHARDS):
        changes = work.updates(shard, min(UPDATES_PER_SHARD, work.next_rows[shard] // 2))
        updated += len(changes.statuses)
        with updating:
            engine.flush(shard, changes, 1 << 40)
    with updating:
        engine.checkpoint()
    busy.stop()
    report("random statuses, checkpoint in", rows_per_s=updated / updating.seconds)


def fire(engine: Engine, work: Work) -> None:
    """What falls due first ends, in the order of time, as one-off jobs do."""
    busy = Busy()
    firing, fired = Stopwatch(), 0
    for shard in range(SHARDS):
        entries = engine.due(shard, START_MS, START_MS + SPAN_MS, UPDATES_PER_SHARD)
        ended = {row: work.status(row, 1, JobState.COMPLETED) for _due_ms, row, _number in entries}
        fired += len(ended)
        with firing:
            engine.flush(shard, ChangeSet(statuses=ended), 1 << 41)
    with firing:
        engine.checkpoint()
    busy.stop()
    report("statuses in the order of due, checkpoint in", rows_per_s=fired / firing.seconds)


def read(engine: Engine, work: Work) -> None:
    """Point reads of random rows in batches, each set twice: what the page cache is worth."""
    for what in ("jobs by row", "rows by name"):
        batches = [work.some_rows(READ_BATCH) for _ in range(READ_BATCHES)]
        for turn in ("first time", "again"):
            reading = Stopwatch()
            for shard, rows in batches:
                names = [("acme", work.name(shard, row)) for row in rows]
                by_row = what == "jobs by row"
                with reading:
                    found = engine.jobs(shard, rows) if by_row else engine.find(shard, names)
                assert found == READ_BATCH, f"{found} of {READ_BATCH} {what}"
            report(f"{what}, {turn}", per_s=READ_BATCH * READ_BATCHES / reading.seconds)


def scan(engine: Engine, work: Work) -> None:
    """Windows of the due index, and a list that has to look at every job."""
    for minutes in (15, 1440):
        scanning, entries = Stopwatch(), 0
        for shard in range(SHARDS):
            with scanning:
                until_ms = START_MS + MS_PER_DAY + minutes * 60_000
                entries += len(engine.due(shard, START_MS + MS_PER_DAY, until_ms, 1 << 30))
        report(f"due within {minutes} min", entries=entries, per_s=entries / scanning.seconds,
               seconds=scanning.seconds)  # fmt: skip
    paging = Stopwatch()
    with paging:
        for shard in range(SHARDS):
            assert engine.page(shard) == 0, "none is paused"
    jobs = sum(work.next_rows) - SHARDS
    report("look at every job for a list", seconds=paging.seconds, per_s=jobs / paging.seconds)


def restart(open_engine: type[Sqlite] | type[Rocks], directory: Path) -> None:
    """Open (files in the page cache) and read what is due within 10 s."""
    opening = Stopwatch()
    with opening:
        engine = open_engine(directory)
        first = sum(
            len(engine.due(shard, START_MS + MS_PER_DAY, START_MS + MS_PER_DAY + 10_000, 100_000))
            for shard in range(SHARDS)
        )
    report("restart and first 10 s", seconds=opening.seconds, entries=first)
    engine.close()


def main() -> None:
    """Run one engine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("engine", choices=["sqlite", "rocksdb"])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--flush-rows", type=int, default=4_000, help="of a shard, at once")
    parser.add_argument("--checkpoint-rounds", type=int, default=4)
    parser.add_argument("--budget-s", type=float, default=600.0, help="for loading")
    parser.add_argument("--directory", type=Path, required=True)
    args = parser.parse_args()
    directory = args.directory / args.engine
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    kind = Sqlite if args.engine == "sqlite" else Rocks
    engine, work = kind(directory), Work(seed=1)
    report("empty", rss_mib=rss_mib())
    load(engine, work, directory, args)
    read(engine, work)
    scan(engine, work)
    update(engine, work)
    fire(engine, work)
    if isinstance(engine, Sqlite):
        counting = Stopwatch()
        with counting:
            counted = engine.count()
        report("count by state", jobs=counted, seconds=counting.seconds)
    else:
        compacting = Stopwatch()
        with compacting:
            engine.compact()
        report("compact all", seconds=compacting.seconds, disk_mib=disk_mib(directory))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report("memory", rss_mib=rss_mib(), rss_peak_mib=peak)
    closing = Stopwatch()
    with closing:
        engine.close()
    report("closed", seconds=closing.seconds, disk_mib=disk_mib(directory))
    restart(kind, directory)
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
