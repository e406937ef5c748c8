"""A restored directory: a stranger with the old content, from which nothing fires that must not."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.unit import shard_kit as kit

from tickwheel.server import codec
from tickwheel.server import restore as room
from tickwheel.server.errors import FailedPrecondition, ResourceExhausted
from tickwheel.server.identity import DataDirectory, check_shards, restored
from tickwheel.server.model import (
    MS_PER_DAY,
    Delivery,
    Execution,
    ExecutionKind,
    ExecutionState,
    JobRow,
    JobState,
    MisfirePolicy,
    Reason,
    Row,
    Status,
)
from tickwheel.server.query import Applied
from tickwheel.server.restore import EPOCH_JUMP, restore
from tickwheel.server.spec import encode_spec
from tickwheel.server.store import ShardStore, StoreOptions
from tickwheel.server.store import backup as backups
from tickwheel.server.store.backup import (
    MANIFEST,
    Backup,
    Part,
    count_namespaces,
    load_backup,
    part_of,
    shard_directory,
    write_manifest,
)
from tickwheel.server.store.snapshot import take
from tickwheel.server.table import Changes

NOW = 20_000 * MS_PER_DAY + 36_000_000
HOUR_MS = 3_600_000


def job(  # noqa: PLR0913 - keyword-only, each with a default
    name: str,
    due_ms: int,
    *,
    state: JobState = JobState.SCHEDULED,
    period_ms: int = 0,
    delivery: Delivery = Delivery.AT_LEAST_ONCE,
    misfire: MisfirePolicy = MisfirePolicy.LATEST,
    expire_after_ms: int = 0,
) -> JobRow:
    """A one-off, unless it has a period."""
    when = kit.every(period_ms, due_ms) if period_ms else kit.once(due_ms)
    message = kit.spec_message(when, misfire=misfire, expire_after_ms=expire_after_ms)
    message.delivery = int(delivery)  # type: ignore[assignment]  # equal numbers, held by a test
    armed_ms = 0 if state is JobState.PAUSED else due_ms
    status = Status(state, 1, NOW - HOUR_MS, NOW - HOUR_MS, due_ms, armed_ms)
    uid = name.encode().ljust(16, b"\0")[:16]
    return JobRow("default", name, uid, encode_spec(message), codec.encode_status(status), "")


def execution(job_row: Row, state: ExecutionState) -> bytes:
    return codec.encode_execution(
        Execution(
            job_row, bytes(16), "default", "once", ExecutionKind.OCCURRENCE, NOW - HOUR_MS, "",
            state, NOW - HOUR_MS, 0, 0, 0, 0, 0, Reason.NONE, 0, 0, (),
        )
    )  # fmt: skip


JOBS = {
    1: job("once", NOW - 1),
    2: job("once-expired", NOW - 10_000, expire_after_ms=5_000),
    3: job("once-ahead", NOW + HOUR_MS),
    4: job("every", NOW - HOUR_MS, period_ms=600_000),
    5: job("every-skips", NOW - 2 * HOUR_MS + 60_000, period_ms=600_000,
           misfire=MisfirePolicy.SKIP),
    6: job("at-most-once", NOW - 1, delivery=Delivery.AT_MOST_ONCE),
    7: job("at-most-once-ahead", NOW + 1, delivery=Delivery.AT_MOST_ONCE),
    8: job("paused", NOW - 1, state=JobState.PAUSED),
    9: job("completed", NOW - 1, state=JobState.COMPLETED),
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A backup of two shards: one of them has never seen a job."""
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(2):
        with closing(ShardStore.open(shards, number, StoreOptions())) as store:
            if number:
                continue
            live = {10: execution(1, ExecutionState.RETRYING)}
            store.flush(Changes(jobs=dict(JOBS), live=live), Applied(40, 3, 12, NOW - 9))
            ended = {
                10: execution(1, ExecutionState.SUCCEEDED),
                11: execution(1, ExecutionState.FAILED),
                12: execution(2, ExecutionState.SUCCEEDED),  # as after the snapshot's moment
            }
            store._history.write(ended)
    backup = tmp_path / "backup"
    parts: list[Part] = []
    for number in range(2):
        directory = shard_directory(backup, number)
        parts.append(part_of(directory, take(shards, number, directory), "cd"))
    counts = count_namespaces(backup, range(2))
    write_manifest(backup, Backup(2, NOW - 9, NOW - 8, "0.1", "ab", "cd", counts, tuple(parts)))
    return backup


def states(target: Path) -> dict[str, JobState]:
    with closing(ShardStore.open(target / "shards", 0, StoreOptions())) as store:
        found = store.jobs(range(1, 10))
        return {one.name: codec.decode_status(one.status).state for one in found.values()}


def test_what_fires_is_foreseen(source: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    report = restore(
        source, tmp_path / "new", NOW, told=lambda done, all_: told.append((done, all_))
    )
    assert (report.jobs, report.live, report.backup.start_ms) == (9, 1, NOW - 9)
    assert (report.fire_late, report.recurring_fire, report.given_up) == (1, 1, 2)
    assert (report.at_most_once_paused, report.paused) == (1, 0)
    assert told == [(1, 2), (2, 2)]
    found = states(tmp_path / "new")
    assert found.pop("at-most-once") is JobState.PAUSED
    assert found.pop("paused") is JobState.PAUSED
    assert found.pop("completed") is JobState.COMPLETED
    assert set(found.values()) == {JobState.SCHEDULED}


def test_the_directory_is_a_strangers(source: Path, tmp_path: Path) -> None:
    restore(source, tmp_path / "new", NOW)
    directory = DataDirectory(tmp_path / "new", shards=2)
    directory.close()
    assert directory.identity.store.hex() != load_backup(source).store
    with closing(ShardStore.open(tmp_path / "new" / "shards", 0, StoreOptions())) as store:
        assert store.applied == Applied(40, 3 + EPOCH_JUMP, 12, NOW - 9)
        assert store.execution(10) == execution(1, ExecutionState.RETRYING), "live wins"
        assert store.execution(11) is not None
        assert store.execution(12) is None, "its row will be given away again"
        assert [due.row for due in store.due(0, NOW, 99)] == [5, 4, 2, 1, 9]
    with closing(ShardStore.open(tmp_path / "new" / "shards", 1, StoreOptions())) as store:
        assert store.applied == Applied()
    assert [path.name for path in tmp_path.iterdir() if "restoring" in path.name] == []


def test_all_can_be_paused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    report = restore(source, tmp_path / "new", NOW, pause=True)
    assert (report.paused, report.fire_late, report.at_most_once_paused) == (7, 0, 0)
    found = states(tmp_path / "new")
    assert found.pop("completed") is JobState.COMPLETED
    assert set(found.values()) == {JobState.PAUSED}
    with closing(ShardStore.open(tmp_path / "new" / "shards", 0, StoreOptions())) as store:
        assert [due.row for due in store.due(0, 1 << 60, 99)] == [9]
        assert store.sizes().jobs == 9


def test_many_that_are_due_at_once_are_seen_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_PAGE", 1)
    report = restore(source, tmp_path / "new", NOW)
    assert (report.fire_late, report.recurring_fire, report.given_up) == (1, 1, 2)


# --- refused ---------------------------------------------------------------------------------


def test_a_directory_in_use_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "note").touch()
    with pytest.raises(FailedPrecondition) as caught:
        restore(source, tmp_path / "new", NOW)
    assert caught.value.reason == "DATA_DIR_NOT_EMPTY"


def lose_shard(source: Path) -> None:
    (shard_directory(source, 1) / "manifest.json").unlink()


def swap_shards(source: Path) -> None:
    shard_directory(source, 0).rename(source / "away")
    shard_directory(source, 1).rename(shard_directory(source, 0))
    (source / "away").rename(shard_directory(source, 1))


def flip(source: Path) -> None:
    path = shard_directory(source, 1) / "shard-0001.db"
    data = bytearray(path.read_bytes())
    data[3_000] ^= 1
    path.write_bytes(data)


def mix(source: Path) -> None:
    """A shard of another backup, whole in itself."""
    with closing(ShardStore.open(source, 1, StoreOptions())) as store:
        store.flush(Changes(jobs={1: JOBS[1]}), Applied(7, 3, 2, NOW - 9))
    for path in shard_directory(source, 1).iterdir():
        path.unlink()
    take(source, 1, shard_directory(source, 1))


@pytest.mark.parametrize(
    ("damage", "reason", "words"),
    [
        (lose_shard, "SNAPSHOT_DAMAGED", "shard-0001 has no manifest.json"),
        (swap_shards, "BACKUP_DAMAGED", "shard-0000/manifest.json is not the one"),
        (mix, "BACKUP_DAMAGED", "shard-0001/manifest.json is not the one"),
        (flip, "SNAPSHOT_DAMAGED", "shard-0001.db does not have the digest"),
    ],
)
def test_a_damaged_backup_leaves_nothing(
    source: Path, tmp_path: Path, damage: Callable[[Path], None], reason: str, words: str
) -> None:
    damage(source)
    with pytest.raises(FailedPrecondition, match=words) as caught:
        restore(source, tmp_path / "new", NOW)
    assert caught.value.reason == reason
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.restoring").exists()


def test_no_room_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_directory: Path, wanted_bytes: int) -> None:
        raise ResourceExhausted(f"no room for {wanted_bytes}", reason="SNAPSHOT_NO_ROOM")

    monkeypatch.setattr(room, "want_room", refuse)
    with pytest.raises(ResourceExhausted):
        restore(source, tmp_path / "new", NOW)
    assert not (tmp_path / "new.restoring").exists()


PART: dict[str, object] = {
    "shard": 0,
    "index": 1,
    "epoch": 1,
    "time_ms": 1,
    "size_bytes": 1,
    "node": "",
    "manifest_sha256": "",
}
GOOD: dict[str, object] = {
    "format": 2,
    "shards": 2,
    "start_ms": 1,
    "end_ms": 2,
    "version": "",
    "cluster": "",
    "store": "",
    "namespaces": {},
    "parts": [PART, {**PART, "shard": 1}],
}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "can't be read"),
        (b"[]", "can't be read"),
        (b"{}", "can't be read"),
        (json.dumps({**GOOD, "format": 3, "more": 1}).encode(), "has format 3"),
        (json.dumps({**GOOD, "more": 1}).encode(), "can't be read"),
        (json.dumps({**GOOD, "shards": 0}).encode(), "has 0 shards"),
        (json.dumps({**GOOD, "shards": "2"}).encode(), "has '2' shards"),
        (json.dumps({**GOOD, "parts": [{**PART, "more": 1}]}).encode(), "can't be read"),
        (json.dumps({**GOOD, "parts": [PART]}).encode(), "does not name each of 2 shards"),
        (json.dumps({**GOOD, "parts": [PART, PART]}).encode(), "does not name each of 2 shards"),
    ],
)
def test_what_is_no_backup_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(FailedPrecondition, match="never finished"):
        load_backup(tmp_path)
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(FailedPrecondition, match=words) as caught:
        load_backup(tmp_path)
    assert caught.value.reason == "BACKUP_DAMAGED"


def test_the_manifest_tells_whose_jobs_they_are(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_backup(source).namespaces == {"default": 9}
    found = load_backup(source).parts
    assert [(part.shard, part.index, part.epoch) for part in found] == [(0, 40, 3), (1, 0, 0)]
    monkeypatch.setattr(backups, "NAMESPACES_MAX", 0)
    assert count_namespaces(source, range(2)) == {"": 9}, "those that are not named"
    (shard_directory(source, 1) / "shard-0001.db").write_bytes(b"x" * 9_000)
    with pytest.raises(FailedPrecondition, match=r"shard-0001.db can't be read"):
        count_namespaces(source, range(2))


def test_a_restored_directory_may_begin_a_cluster_until_a_node_has_started_on_it(
    source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "new"
    assert restored(target) is None
    restore(source, target, NOW)
    found = restored(target)
    assert found is not None
    assert found.shards == 2
    check_shards(target, found, 2)
    with pytest.raises(FailedPrecondition, match="set shards = 2"):
        check_shards(target, found, 64)
    directory = DataDirectory(target, shards=2, cluster=found.cluster)
    assert (restored(target), directory.identity) == (found, found)
    directory.settle_in()
    directory.settle_in()
    directory.close()
    assert restored(target) is None


def test_the_backup_is_not_changed(source: Path, tmp_path: Path) -> None:
    def look() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in source.rglob("*") if path.is_file()}

    before = look()
    restore(source, tmp_path / "new", NOW)
    assert look() == before
    with closing(sqlite3.connect(tmp_path / "new" / "shards" / "shard-0000.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
