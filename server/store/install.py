"""Floor 3. A snapshot takes the place of a shard's files, or nothing does, whatever moment the process dies at.

    shards/shard-0007.new/      files that come in                                   the old store stands
    shards/shard-0007.ready/    one rename later: the same, whole and synced         the new store stands
        then, as often as it takes:   what is not of the snapshot goes (old days, old journals) ─► sync
                                      days, then the main file, are renamed out of .ready ─► sync
                                      .ready goes ─► sync

The rename of the directory is the whole decision. Before it nothing of the old store was touched; behind it `settle`,
at the next start, before any store is opened, goes on where the process died. An old `-wal` is gone, durably, before a
new main file stands beside it: SQLite would write the one into the other.

Dropping a shard is the same with a snapshot of no files.

Whoever calls has closed the shard's store and opens it afterwards; a cluster journals SNAPSHOT_BASE then. A store whose
applied index lies beyond the journal's is its own base, so a crash between the two needs no third state.

Must never import: rooms of floor 3 or higher but this package's and `files`; no threads, no clock.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Final, Protocol

from tickwheel.server.errors import FailedPrecondition
from tickwheel.server.files import sync_directory
from tickwheel.server.store.snapshot import (
    MANIFEST,
    Snapshot,
    damaged,
    load_manifest,
    shard_of_file,
)

_STAGE: Final = re.compile(r"shard-([0-9]{4,5})\.(new|ready)")
_SIDES: Final = ("-wal", "-shm", "-journal")


class Disk(Protocol):
    """What changes names on a disk, so that a test can stop between any two steps."""

    def write(self, path: Path, data: bytes) -> None:
        """A new small file, with its bytes durable."""
        ...

    def sync_file(self, path: Path) -> None:
        """Make a file's bytes durable."""
        ...

    def sync(self, directory: Path) -> None:
        """Make the names in a directory durable."""
        ...

    def rename(self, path: Path, to: Path) -> None:
        """Rename a file over another, or a directory to a free name."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is not there is none."""
        ...

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        ...


class OsDisk:
    """The host's."""

    def write(self, path: Path, data: bytes) -> None:
        """A new small file, with its bytes durable."""
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def sync_file(self, path: Path) -> None:
        """Make a file's bytes durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync(self, directory: Path) -> None:
        """Make the names in a directory durable."""
        sync_directory(directory)

    def rename(self, path: Path, to: Path) -> None:
        """Rename a file over another, or a directory to a free name."""
        path.rename(to)

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is not there is none."""
        path.unlink(missing_ok=True)

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        path.rmdir()


OS_DISK: Final = OsDisk()


def stage(store: Path, shard: int) -> Path:
    """An empty directory for the files of a snapshot that comes in, beside the stores. What was in it is gone."""
    path = _stage(store, shard, "new")
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(mode=0o700)
    return path


def install(directory: Path, store: Path, snapshot: Snapshot, disk: Disk = OS_DISK) -> None:
    """Put the verified snapshot in `directory` in the place of its shard's files in `store`; `directory` is used up.

    Both lie on one file system (`stage` gives such a directory). The shard's store is closed. Raises
    FailedPrecondition when a file is missing; any other error leaves the old store, or what `settle` makes whole.
    """
    snapshot.check()
    if not snapshot.files:
        raise damaged("it has no files")
    _replace(directory, store, snapshot, disk)


def drop(store: Path, shard: int, disk: Disk = OS_DISK) -> None:
    """Remove all files of a shard that this node does not hold any more. Its store is closed."""
    _replace(stage(store, shard), store, Snapshot(shard, 0, 0, 1, 0, ()), disk)


def settle(store: Path, disk: Disk = OS_DISK) -> list[str]:
    """At every start, before a store is opened: finish what was decided, forget what was not. One line for each."""
    lines: list[str] = []
    for path in sorted(store.iterdir()):
        found = _STAGE.fullmatch(path.name)
        if found is None:
            continue
        if found[2] == "new":
            shutil.rmtree(path)
            disk.sync(store)
            lines.append(f"{path.name}: removed, it was never finished")
        else:
            _finish(path, store, int(found[1]), disk)
            lines.append(f"{path.name}: its files have taken their places")
    return lines


def _replace(directory: Path, store: Path, snapshot: Snapshot, disk: Disk) -> None:
    ready = _stage(store, snapshot.shard, "ready")
    if ready.exists():
        _finish(ready, store, snapshot.shard, disk)
    for file in snapshot.files:
        path = directory / file.name
        if not path.is_file() or path.stat().st_size != file.size_bytes:
            raise damaged(f"{file.name} is missing, or not {file.size_bytes:,} bytes long")
        disk.sync_file(path)
    disk.write(directory / MANIFEST, snapshot.to_json())
    disk.sync(directory)
    disk.rename(directory, ready)
    disk.sync(store)  # decided
    _finish(ready, store, snapshot.shard, disk)


def _finish(ready: Path, store: Path, shard: int, disk: Disk) -> None:
    """Go on from wherever this ended before. Nobody has the shard's files open."""
    left = {path.name for path in ready.iterdir()}
    if MANIFEST in left:
        snapshot = load_manifest(ready)
        if snapshot.shard != shard:
            raise damaged(f"{ready.name} holds shard {snapshot.shard}")
        _clear(store, snapshot, left, disk)
        for file in reversed(snapshot.files):  # the days first, the main file last
            if file.name in left:
                disk.rename(ready / file.name, store / file.name)
        disk.sync(store)
        disk.sync(ready)
        for name in sorted(left - {file.name for file in snapshot.files} - {MANIFEST}):
            disk.unlink(ready / name)
        disk.unlink(ready / MANIFEST)
    elif left:
        raise FailedPrecondition(
            f"{ready} holds files and no {MANIFEST}: a hand was here; remove it, and the shard is as it was",
            reason="SNAPSHOT_DAMAGED",
        )
    disk.rmdir(ready)
    disk.sync(store)


def _clear(store: Path, snapshot: Snapshot, left: set[str], disk: Disk) -> None:
    """Remove the shard's files but those that were renamed into place already."""
    placed = {file.name for file in snapshot.files} - left
    for path in sorted(store.iterdir()):
        if _shard_of(path.name) == snapshot.shard and path.name not in placed:
            disk.unlink(path)
    disk.sync(store)


def _shard_of(name: str) -> int | None:
    """As `shard_of_file`, with SQLite's side files."""
    for side in _SIDES:
        name = name.removesuffix(side)
    return shard_of_file(name)


def _stage(store: Path, shard: int, kind: str) -> Path:
    return store / f"shard-{shard:04d}.{kind}"
