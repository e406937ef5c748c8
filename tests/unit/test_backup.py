"""Making a backup step by step: what it leaves when it ends early is nothing, and only one is made at a time."""

import asyncio
import errno
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.store_samples import NOW, Changed, execution_columns, job

from tickwheel.server import backup as room
from tickwheel.server.api.admin import create_backup
from tickwheel.server.backup import BACKUP_POINT, Backups, Leaders, Origin, Progress
from tickwheel.server.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotLeader,
    ResourceExhausted,
    TickwheelError,
    Unavailable,
)
from tickwheel.server.query import Applied
from tickwheel.server.store import InlineStore, ShardStore, StoreOptions
from tickwheel.server.store.backup import load_backup, shard_directory
from tickwheel.server.store.snapshot import load_manifest, take, verify
from tickwheel.v1 import admin_service_pb2 as pb

SHARDS = 3


class FakeKeeper:
    """Counts flushes."""

    config = SimpleNamespace(shards=SHARDS)
    flushes = 0

    async def flush_for_reading(self) -> int:
        self.flushes += 1
        await asyncio.sleep(0)
        return NOW


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    path = tmp_path / "shards"
    path.mkdir()
    for number in range(SHARDS):
        with closing(ShardStore.open(path, number, StoreOptions(execution_columns))) as store:
            store.flush(Changed(jobs={1: job(f"j{number}")}), Applied(number + 1, 1, 2, NOW))
    return path


class FakeSlot:
    """A shard that is led, and that the store knows up to `flushed`."""

    def __init__(self, applied: int, flushed: int | None = None) -> None:
        self.applied = applied
        index = applied if flushed is None else flushed
        self.store = SimpleNamespace(applied=SimpleNamespace(index=index))


def yes(_shard: int) -> bool:
    return True


def no(_shard: int) -> bool:
    return False


def backups(
    root: Path | None, shards: Path, leader_of: Callable[[int], str] = lambda _: "",
    peers: "FakePeers | None" = None,
) -> Backups:  # fmt: skip
    clock = iter(range(NOW, NOW + 100))
    runner = SimpleNamespace(
        store=InlineStore(asyncio.get_running_loop()),
        slots={number: FakeSlot(number + 1) for number in range(SHARDS)},
        clock=SimpleNamespace(now_ms=lambda: next(clock)),
        may_act=yes,
    )
    return Backups(
        root, shards, Origin("ab", "cd", "0.1"), runner=cast("Any", runner),
        keeper=cast("Any", FakeKeeper()), leaders=Leaders(leader_of, cast("Any", peers)),
    )  # fmt: skip


async def finish(steps: AsyncGenerator[Progress, None]) -> list[Progress]:
    return [step async for step in steps]


async def test_it_is_whole_when_it_has_its_name(shards: Path, tmp_path: Path) -> None:
    root = tmp_path / "deep" / "backups"
    steps = await finish(backups(root, shards).create("one"))
    assert [step.done_count for step in steps] == [0, 1, 2, 3]
    assert [step.complete for step in steps] == [False, False, False, True]
    assert {(step.directory, step.shard_count) for step in steps} == {(str(root / "one"), 3)}
    found = load_backup(root / "one")
    assert (found.shards, found.start_ms, found.end_ms) == (3, NOW, NOW + 1)
    assert (found.version, found.cluster, found.store) == ("0.1", "ab", "cd")
    size_bytes = 0
    for number in range(SHARDS):
        snapshot = load_manifest(shard_directory(root / "one", number))
        verify(shard_directory(root / "one", number), snapshot)
        assert snapshot.index == number + 1
        size_bytes += snapshot.size_bytes
    assert steps[-1].size_bytes == size_bytes
    assert names(root) == ["one"]


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


async def test_a_caller_who_goes_leaves_nothing(shards: Path, tmp_path: Path) -> None:
    maker = backups(tmp_path / "backups", shards)
    async with aclosing(maker.create("one")) as steps:
        async for step in steps:
            if step.done_count == 2:
                break
    assert names(tmp_path / "backups") == []
    (tmp_path / "backups" / ".one.partial" / "of a crash").mkdir(parents=True)
    await finish(maker.create("one"))
    assert names(tmp_path / "backups") == ["one"]


async def test_one_at_a_time(shards: Path, tmp_path: Path) -> None:
    maker = backups(tmp_path / "backups", shards)
    async with aclosing(maker.create("one")) as steps:
        await anext(steps)
        with pytest.raises(FailedPrecondition) as caught:
            await finish(maker.create("two"))
        assert caught.value.reason == "BACKUP_UNDER_WAY"
        await finish(steps)
    with pytest.raises(AlreadyExists):
        await finish(maker.create("one"))
    maker._runner.clock = cast("Any", SimpleNamespace(now_ms=lambda: NOW))
    done = await finish(maker.create(""))
    assert Path(done[-1].directory).name == "backup-20241004-100000"
    assert names(tmp_path / "backups") == ["backup-20241004-100000", "one"]


async def test_no_place_no_room_no_disk(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FailedPrecondition, match="--backup-dir"):
        await finish(backups(None, shards).create("one"))
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match="no backup was made"):
        await finish(backups(tmp_path / "file", shards).create("one"))

    def full(*_: object) -> None:
        raise ResourceExhausted("full", reason="SNAPSHOT_NO_ROOM")

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for name, failing, kind in (
        ("want_room", full, ResourceExhausted),
        ("take", full, ResourceExhausted),
        ("write_manifest", broken, FailedPrecondition),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(room, name, failing)
            with pytest.raises(kind):
                await finish(backups(tmp_path / "backups", shards).create("one"))
        assert names(tmp_path / "backups") == []


# --- of a cluster ---------------------------------------------------------------------------


class FakePeers:
    """Nodes that lead shards: each has a `Backups` to be asked, and the files of its shards."""

    def __init__(self) -> None:
        self.nodes: dict[str, tuple[Backups, Path]] = {}
        self.failures: list[TickwheelError] = []
        self.fetched: list[tuple[str, int]] = []
        self.send: Callable[[Path, int, Path], bytes] = lambda files, shard, to: take(
            files, shard, to
        ).to_json()  # refuses a directory in which an earlier try left something

    async def forward(self, node: str, method: str, request: bytes, _timeout_s: float) -> bytes:
        assert method == BACKUP_POINT
        if self.failures:
            raise self.failures.pop(0)
        return await self.nodes[node][0].answer(request)

    async def fetch_snapshot(self, node: str, shard: int, directory: Path) -> bytes:
        self.fetched.append((node, shard))
        return self.send(self.nodes[node][1], shard, directory)


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """The files of another node, whose copies are ahead."""
    path = tmp_path / "others"
    path.mkdir()
    for number in range(SHARDS):
        with closing(ShardStore.open(path, number, StoreOptions(execution_columns))) as store:
            store.flush(Changed(jobs={1: job(f"o{number}")}), Applied(number + 9, 2, 2, NOW))
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "AGAIN_S", 0.0)
    monkeypatch.setattr(room, "PATIENCE_S", 0.05)


def two_nodes(
    shards: Path, others: Path, leader_of: Callable[[int], str]
) -> tuple[Backups, FakePeers]:
    peers = FakePeers()
    peers.nodes["n2"] = backups(None, others), others
    return backups(others.with_name("backups"), shards, leader_of, peers), peers


async def test_each_shard_is_taken_from_its_leader(shards: Path, others: Path) -> None:
    maker, peers = two_nodes(shards, others, lambda shard: "n2" if shard == 1 else "")
    await finish(maker.create("one"))
    found = load_backup(others.with_name("backups") / "one")
    assert [(part.node, part.index, part.epoch) for part in found.parts] == [
        ("cd", 1, 1), ("n2", 10, 2), ("cd", 3, 1),
    ]  # fmt: skip
    assert peers.fetched == [("n2", 1)]
    assert found.namespaces == {"acme": 3}


@pytest.mark.usefixtures("quick")
async def test_a_shard_that_moves_is_taken_from_who_has_all_of_it(
    shards: Path, others: Path
) -> None:
    """Asked: the other. When it is to be copied this node leads it, flushed or not."""
    asked: list[int] = []

    def leader_of(shard: int) -> str:
        asked.append(shard)
        return "n2" if shard == 1 and asked.count(1) == 1 else ""

    maker, peers = two_nodes(shards, others, leader_of)
    peers.nodes["n2"][0]._runner.slots[1].applied = 2
    maker._runner.slots[1] = cast("Any", FakeSlot(2, flushed=1))
    await finish(maker.create("one"))
    assert cast("Any", maker._keeper).flushes == 2
    peers.nodes["n2"][0]._runner.slots[1].applied = 5  # beyond what this node's files have
    asked.clear()
    with pytest.raises(
        Unavailable, match=r"shard 1 could not be copied: .* up to entry 2 came, 5"
    ) as caught:
        await finish(maker.create("two"))
    assert (caught.value.reason, caught.value.metadata) == ("BACKUP_SHARD_MISSING", {"shard": "1"})
    assert names(others.with_name("backups")) == ["one"]


@pytest.mark.usefixtures("quick")
async def test_a_copy_for_another_shard_is_none(shards: Path, others: Path) -> None:
    maker, peers = two_nodes(shards, others, lambda shard: "n2" if shard == 1 else "")

    peers.send = lambda files, _shard, to: take(files, 2, to).to_json()
    with pytest.raises(Unavailable, match="a copy of shard 2"):
        await finish(maker.create("one"))


@pytest.mark.usefixtures("quick")
async def test_without_a_leader_there_is_no_backup(shards: Path, others: Path) -> None:
    """What passes is waited for, and what does not pass is told with the shard."""
    maker, peers = two_nodes(shards, others, lambda shard: "n2" if shard == 1 else "")
    passing = [
        NotLeader("not here"),
        FailedPrecondition("not now", reason="PEER_REFUSED"),
        DeadlineExceeded("no answer"),
    ]
    peers.failures = [*passing]
    await finish(maker.create("one"))
    assert peers.failures == []
    peers.failures = [FailedPrecondition("no SQLite", reason="SNAPSHOT_FAILED")]
    with pytest.raises(FailedPrecondition, match="no SQLite"):
        await finish(maker.create("two"))
    no_slots: dict[int, FakeSlot] = {}
    for name, value in (("slots", no_slots), ("may_act", no)):
        maker, peers = two_nodes(shards, others, lambda shard: "n2" if shard == 1 else "")
        setattr(peers.nodes["n2"][0]._runner, name, value)
        with pytest.raises(
            Unavailable, match="shard 1 could not be copied: no node is sure"
        ) as caught:
            await finish(maker.create("two"))
        assert caught.value.reason == "BACKUP_SHARD_MISSING"
    assert names(others.with_name("backups")) == ["one"]


async def test_a_full_disk_under_what_comes_in_is_told(shards: Path, others: Path) -> None:
    maker, peers = two_nodes(shards, others, lambda _: "n2")

    def full(_files: Path, _shard: int, to: Path) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device", str(to))

    peers.send = full
    with pytest.raises(ResourceExhausted) as caught:
        await finish(maker.create("one"))
    assert caught.value.reason == "SNAPSHOT_NO_ROOM"
    assert names(others.with_name("backups")) == []


# --- the door -------------------------------------------------------------------------------


class Exchange:
    """Keeps what is written; fails at one of them."""

    def __init__(self, fails_at: int = 100) -> None:
        self.messages: list[pb.CreateBackupResponse] = []
        self._fails_at = fails_at

    async def write(self, message: pb.CreateBackupResponse, /) -> None:
        self.messages.append(message)
        if len(self.messages) > self._fails_at:
            raise asyncio.CancelledError


async def test_the_door_tells_each_step(shards: Path, tmp_path: Path) -> None:
    maker = backups(tmp_path / "backups", shards)
    exchange = Exchange()
    await create_backup(maker, pb.CreateBackupRequest(backup_id="one"), exchange)
    assert [message.done_count for message in exchange.messages] == [0, 1, 2, 3]
    last = exchange.messages[-1]
    assert (last.complete, last.shard_count, last.size_bytes > 0) == (True, 3, True)
    assert last.directory.endswith("/backups/one")
    with pytest.raises(asyncio.CancelledError):
        await create_backup(maker, pb.CreateBackupRequest(backup_id="two"), Exchange(fails_at=1))
    assert names(tmp_path / "backups") == ["one"]
    for bad in ("../up", "a/b", ".hidden", "Big", "x" * 129):
        with pytest.raises(InvalidArgument) as caught:
            await create_backup(maker, pb.CreateBackupRequest(backup_id=bad), exchange)
        assert caught.value.reason == "BACKUP_ID_INVALID"
