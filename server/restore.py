"""Floor 4. A backup becomes a fresh data directory, of a store that nobody knows.

    nightly/shard-0007/*  ──verify──► copy ──► data.restoring/shards/*  ──adjust──► data.restoring is renamed to data

Of a node or of a cluster, onto a node that runs alone or is the first of a new cluster: the backup and the directory
are the same. The directory is marked (`identity`), so that a node that starts on it with an etcd makes a cluster of it.

Adjusting, so that what starts from it is right:
- the epoch is raised by EPOCH_JUMP: the original went on from the backup's epoch, and targets that compare
  `Tickwheel-Epoch` would refuse a restored node which counted from there;
- ended executions whose rows were given away after the snapshot's moment go: the rows will be given away again;
- every SCHEDULED job is paused, if that is wanted; and, wanted or not, each AT_MOST_ONCE job that was due since the
  backup, for nobody knows whether it was sent meanwhile.

What a restored node fires follows from the jobs as they were: what fell due since the backup counts as missed while
down. The report says how much that is. Guarantees I5 to I8 do not hold over a restore.

Must never import: the doors, `node`.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tickwheel.server import codec, schedule
from tickwheel.server.errors import FailedPrecondition
from tickwheel.server.files import sync_directory
from tickwheel.server.identity import DataDirectory, mark_restored
from tickwheel.server.misfire import resolve
from tickwheel.server.model import Delivery, JobRow, JobState, Ms, Once, Row, Spec, Status
from tickwheel.server.spec import decode_spec
from tickwheel.server.store import ShardStore, StoreOptions
from tickwheel.server.store.backup import Backup, load_backup, load_part, shard_directory
from tickwheel.server.store.snapshot import Snapshot, main_name, verify, want_room
from tickwheel.server.table import Changes

EPOCH_JUMP: Final = 1 << 20
"""More starts than any node has had between a backup and its restore; 2^44 restores fit."""
_PAGE: Final = 10_000
_FOREVER_MS: Final = 1 << 60

Told = Callable[[int, int], None]
"""Told (shards done, shards in all)."""


@dataclass(slots=True)
class Restored:
    """What was restored, and what its first start will do."""

    backup: Backup
    jobs: int = 0
    live: int = 0
    fire_late: int = 0
    recurring_fire: int = 0
    given_up: int = 0
    paused: int = 0
    at_most_once_paused: int = 0
    size_bytes: int = field(default=0)


def restore(
    source: Path, target: Path, now_ms: Ms, *, pause: bool = False, told: Told = lambda _a, _b: None
) -> Restored:
    """Make the data directory `target`, which is empty or not there, from the backup `source`. The source is read only.

    Raises FailedPrecondition (BACKUP_DAMAGED, SNAPSHOT_DAMAGED, DATA_DIR_NOT_EMPTY), ResourceExhausted
    (SNAPSHOT_NO_ROOM), OSError. Then there is no `target`, and the next restore removes what is left beside it.
    """
    backup = load_backup(source)
    snapshots = [load_part(source, part) for part in backup.parts]
    if target.exists() and any(target.iterdir()):
        raise FailedPrecondition(
            f"{target} is not empty: restore into a new directory, and start the node on that",
            reason="DATA_DIR_NOT_EMPTY",
        )
    draft = target.with_name(target.name + ".restoring")
    shutil.rmtree(draft, ignore_errors=True)
    directory = DataDirectory(draft, shards=backup.shards)
    try:
        report = Restored(backup, size_bytes=sum(snapshot.size_bytes for snapshot in snapshots))
        want_room(draft, report.size_bytes)
        for snapshot in snapshots:
            _restore_shard(shard_directory(source, snapshot.shard), draft / "shards", snapshot)
            _look_through(draft / "shards", snapshot, report, now_ms, pause=pause)
            told(snapshot.shard + 1, backup.shards)
        mark_restored(draft)
        _sync_all(draft / "shards")
        draft.rename(target)
        sync_directory(target.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    finally:
        directory.close()
    return report


def _restore_shard(source: Path, shards: Path, snapshot: Snapshot) -> None:
    verify(source, snapshot)
    for file in snapshot.files:
        shutil.copyfile(source / file.name, shards / file.name)
        os.chmod(shards / file.name, 0o600)  # noqa: PTH101
    with _plain(shards / main_name(snapshot.shard)) as db:
        db.execute("UPDATE applied SET epoch = epoch + ?", (EPOCH_JUMP,))
    for file in snapshot.files[1:]:
        with _plain(shards / file.name) as db:
            db.execute("DELETE FROM execution WHERE row >= ?", (snapshot.next_row,))


@contextmanager
def _plain(path: Path) -> Generator[sqlite3.Connection, None, None]:
    """A connection without a journal of its own: the whole directory counts, or nothing of it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = DELETE").fetchone()
        db.execute("PRAGMA synchronous = OFF")
        yield db


def _sync_all(shards: Path) -> None:
    for path in sorted(shards.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(shards)
    sync_directory(shards.parent)


# --- what the first start will do ------------------------------------------------------------


def _look_through(
    shards: Path, snapshot: Snapshot, report: Restored, now_ms: Ms, *, pause: bool
) -> None:
    """Count what is due by now, and pause what must not, or shall not, fire."""
    with closing(ShardStore.open(shards, snapshot.shard, StoreOptions())) as store:
        sizes = store.sizes()
        report.jobs += sizes.jobs
        report.live += sizes.live
        statuses: dict[Row, bytes] = {}
        for row, job, status in _waiting(store, _FOREVER_MS if pause else now_ms + 1):
            spec = decode_spec(job.spec)
            overdue = status.due_ms <= now_ms
            once_at_most = overdue and spec.delivery == Delivery.AT_MOST_ONCE
            if pause or once_at_most:
                paused = status._replace(state=JobState.PAUSED, due_ms=0)
                statuses[row] = codec.encode_status(paused)
                report.at_most_once_paused += once_at_most and not pause
                report.paused += pause
            elif overdue:
                _foresee(report, spec, status, now_ms)
        if statuses:
            store.flush(Changes(statuses=statuses), store.applied)


def _waiting(store: ShardStore, until_ms: Ms) -> Iterator[tuple[Row, JobRow, Status]]:
    """The SCHEDULED jobs that are due before."""
    after = None
    while entries := store.due(0, until_ms, _PAGE, after):
        jobs = store.jobs([entry.row for entry in entries if entry.number > 0])
        for row, job in jobs.items():
            status = codec.decode_status(job.status)
            if status.state == JobState.SCHEDULED:
                yield row, job, status
        after = entries[-1]


def _foresee(report: Restored, spec: Spec, status: Status, now_ms: Ms) -> None:
    """What the misfire policy will say of a job that is overdue."""
    if not status.next_ms:
        return  # it waits for the end of an execution
    plan = schedule.compile(spec.schedule, spec.window)
    verdict = resolve(spec, plan, min(status.next_ms, now_ms), now_ms)
    if verdict.fire_ms and isinstance(spec.schedule, Once):
        report.fire_late += 1
    elif verdict.fire_ms:
        report.recurring_fire += 1
    else:
        report.given_up += 1
