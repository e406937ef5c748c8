"""Floor 4. A backup of a node that runs: a snapshot of each shard, one after the other, into a directory of its own.

    flush ─► shard 0 ─► shard 1 ─► … ─► backup.json ─► .nightly.partial is renamed to nightly

Copying is done in the lists' thread, one shard at a time: lists wait while a shard is copied (some 3 s a GB), nothing
else does. One backup at a time. What ends early, by an error or because the caller went away, leaves nothing; what a
crash left is removed when the name is used again.

The directory lies below a root that the operator configured: a caller chooses a name, never a path.

Must never import: the doors, `node`.
"""

import shutil
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from tickwheel.server.errors import AlreadyExists, FailedPrecondition
from tickwheel.server.files import sync_directory
from tickwheel.server.keeper import Keeper
from tickwheel.server.logs import get_logger
from tickwheel.server.runner import Runner
from tickwheel.server.store.backup import Backup, shard_directory, write_manifest
from tickwheel.server.store.snapshot import files_bytes, take, want_room

log = get_logger(__name__)

PARTIAL: Final = ".{}.partial"
"""Where a backup is made. It begins with a dot, which no name of a backup does."""


class Progress(NamedTuple):
    """How far a backup is. `complete`: it is whole and durable."""

    directory: str
    shard_count: int
    done_count: int
    size_bytes: int
    complete: bool = False


class Origin(NamedTuple):
    """Whose backup it will be: ids in hexadecimal, and the program's version."""

    cluster: str
    store: str
    version: str


class Backups:
    """Makes backups of one node. `root` None: the operator named no place for them."""

    def __init__(
        self, root: Path | None, shards: Path, origin: Origin, *, runner: Runner, keeper: Keeper
    ) -> None:
        self._root = root
        self._shards = shards
        self._origin = origin
        self._runner = runner
        self._keeper = keeper
        self._under_way = False

    async def create(self, name: str) -> AsyncGenerator[Progress, None]:
        """Make the backup `name` (a name of a job's form, "" for one of the time); a word after each shard.

        Everything answered before the call is in it. Raises FailedPrecondition (BACKUP_DIR_UNSET, BACKUP_UNDER_WAY,
        BACKUP_PARTIAL, SNAPSHOT_FAILED), AlreadyExists, ResourceExhausted (SNAPSHOT_NO_ROOM), Unavailable while the disk is full.
        """
        if self._root is None:
            raise FailedPrecondition(
                "this node has no directory for backups: start it with --backup-dir DIR",
                reason="BACKUP_DIR_UNSET",
            )
        if self._under_way:
            raise FailedPrecondition("a backup is under way", reason="BACKUP_UNDER_WAY")
        self._under_way = True
        place = self._root / (name or _name_of(self._runner.clock.now_ms()))
        draft = place.with_name(PARTIAL.format(place.name))
        query = self._runner.store.query
        try:
            await query(partial(_begin, place, draft))
            try:
                async for progress in self._copy(place, draft):
                    yield progress
            finally:
                await query(partial(shutil.rmtree, draft, ignore_errors=True))
        finally:
            self._under_way = False

    async def _copy(self, place: Path, draft: Path) -> AsyncGenerator[Progress, None]:
        runner, query = self._runner, self._runner.store.query
        start_ms = await self._keeper.flush_for_reading()
        numbers = sorted(runner.slots)
        if len(numbers) < self._keeper.config.shards:
            raise FailedPrecondition(
                f"this node holds {len(numbers)} of {self._keeper.config.shards} shards; a backup needs all of them",
                reason="BACKUP_PARTIAL",
            )
        await query(partial(_want_room_for_all, self._shards, numbers, draft))
        size_bytes = 0
        for done, number in enumerate(numbers):
            yield Progress(str(place), len(numbers), done, size_bytes)
            snapshot = await query(
                partial(take, self._shards, number, shard_directory(draft, number))
            )
            size_bytes += snapshot.size_bytes
        now_ms = runner.clock.now_ms()
        cluster, store, version = self._origin
        backup = Backup(len(numbers), start_ms, now_ms, version, cluster, store)
        await query(partial(_finish, place, draft, backup))
        log.info("backup made", extra={"directory": str(place), "size_bytes": size_bytes})
        yield Progress(str(place), len(numbers), len(numbers), size_bytes, complete=True)


def _name_of(now_ms: int) -> str:
    return datetime.fromtimestamp(now_ms / 1000, UTC).strftime("backup-%Y%m%d-%H%M%S")


def _begin(place: Path, draft: Path) -> None:
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if place.exists():
            raise AlreadyExists(f"there is a backup {place} already", reason="BACKUP_EXISTS")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
    except OSError as error:
        raise _failed(draft, error) from error


def _want_room_for_all(shards: Path, numbers: list[int], draft: Path) -> None:
    want_room(draft, sum(files_bytes(shards, number) for number in numbers))


def _finish(place: Path, draft: Path, backup: Backup) -> None:
    try:
        write_manifest(draft, backup)
        sync_directory(draft)
        draft.rename(place)
        sync_directory(place.parent)
    except OSError as error:
        raise _failed(draft, error) from error


def _failed(draft: Path, error: OSError) -> FailedPrecondition:
    return FailedPrecondition(f"no backup was made: {draft}: {error}", reason="SNAPSHOT_FAILED")
