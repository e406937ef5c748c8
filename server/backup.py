"""Floor 4. A backup of a node or of a cluster that runs: a snapshot of each shard, one after the other, into a directory.

    each shard's leader: how far are you? ─► shard 0 ─► shard 1 ─► … ─► backup.json ─► .nightly.partial becomes nightly
                                            │
                        led here: flush, copy through SQLite
                        led elsewhere: that leader takes a snapshot, and sends it as it does to a replica

Everything answered before the call is in it: a leader says, while it surely is the leader, which entry it has applied, and
a copy that does not reach so far is none. After that it does not matter whose copy it is; if the shard moves, the next
leader is asked for its own. A node that runs alone leads all shards.

Copying is done in the lists' thread, one shard at a time: lists wait while a shard is copied (some 3 s a GB), nothing
else does. One backup at a time. What ends early, by an error or because the caller went away, leaves nothing; what a
crash left is removed when the name is used again.

The directory lies on the machine of the node that was asked, below a root that the operator configured: a caller chooses a
name, never a path.

Must never import: the doors, `node`.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from tickwheel.server.cluster.peer_port import Peers
from tickwheel.server.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    NotLeader,
    TickwheelError,
    Unavailable,
)
from tickwheel.server.files import sync_directory
from tickwheel.server.keeper import Keeper
from tickwheel.server.logs import get_logger
from tickwheel.server.message import NodeId
from tickwheel.server.runner import Runner
from tickwheel.server.slot import Slot
from tickwheel.server.store.backup import (
    Backup,
    Part,
    count_namespaces,
    part_of,
    shard_directory,
    write_manifest,
)
from tickwheel.server.store.snapshot import Snapshot, files_bytes, reported, take, want_room

log = get_logger(__name__)

T = TypeVar("T")

PARTIAL: Final = ".{}.partial"
"""Where a backup is made. It begins with a dot, which no name of a backup does."""

BACKUP_POINT: Final = "node/BackupPoint"
ASK_S: Final = 30.0
"""The leader's lists' thread, which looks at its files, may be copying a large shard."""

PATIENCE_S: Final = 15.0
"""How long a shard may be without a leader, or its copy not come: longer than a fail-over takes."""

AGAIN_S: Final = 0.2
PASSING: Final = frozenset({"PEER_REFUSED"})
"""Refusals of another node that may end: it does not lead the shard any more, or not yet."""


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


@dataclass(frozen=True, slots=True)
class Point:
    """The entry of a shard's log that a copy of it has to reach, and about how large it will be."""

    index: int
    size_bytes: int


class Leaders(NamedTuple):
    """Who leads a shard ("" is this node; raises NotLeader), and how the others are reached: None for a node alone."""

    leader_of: Callable[[int], NodeId]
    peers: Peers | None


class Backups:
    """Makes backups. `root` None: the operator named no place for them."""

    def __init__(
        self, root: Path | None, shards: Path, origin: Origin, *, runner: Runner, keeper: Keeper,
        leaders: Leaders,
    ) -> None:  # fmt: skip
        self._root = root
        self._shards = shards
        self._origin = origin
        self._runner = runner
        self._keeper = keeper
        self._leaders = leaders
        self._under_way = False

    async def create(self, name: str) -> AsyncGenerator[Progress, None]:
        """Make the backup `name` (a name of a job's form, "" for one of the time); a word before each shard.

        Raises FailedPrecondition (BACKUP_DIR_UNSET, BACKUP_UNDER_WAY, SNAPSHOT_FAILED), AlreadyExists,
        ResourceExhausted (SNAPSHOT_NO_ROOM), Unavailable (BACKUP_SHARD_MISSING: a shard has no leader; a full disk).
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
        start_ms = runner.clock.now_ms()
        shards = range(self._keeper.config.shards)
        points = [await _patiently(shard, partial(self._point, shard)) for shard in shards]
        await self._keeper.flush_for_reading()
        await query(partial(want_room, draft, sum(point.size_bytes for point in points)))
        parts: list[Part] = []
        size_bytes = 0
        for shard, point in enumerate(points):
            yield Progress(str(place), len(shards), shard, size_bytes)
            copy = partial(self._take, shard, point, shard_directory(draft, shard))
            parts.append(await _patiently(shard, copy))
            size_bytes += parts[-1].size_bytes
        await query(partial(self._finish, place, draft, start_ms, parts))
        log.info("backup made", extra={"directory": str(place), "size_bytes": size_bytes})
        yield Progress(str(place), len(shards), len(shards), size_bytes, complete=True)

    # --- one shard ---

    async def _point(self, shard: int) -> Point:
        leader, peers = self._leaders.leader_of(shard), self._leaders.peers
        if not leader or peers is None:
            return await self._point_here(shard)
        answer = await peers.forward(leader, BACKUP_POINT, str(shard).encode(), ASK_S)
        return Point(*json.loads(answer))

    async def answer(self, request: bytes) -> bytes:
        """What another node asks for its backup: the point of a shard that this one leads. Raises NotLeader."""
        return json.dumps(astuple(await self._point_here(int(request)))).encode()

    async def _point_here(self, shard: int) -> Point:
        index = self._led(shard).applied
        return Point(
            index, await self._runner.store.query(partial(files_bytes, self._shards, shard))
        )

    def _led(self, shard: int) -> Slot:
        """The shard, if nobody else can have answered for it up to now."""
        slot = self._runner.slots.get(shard)
        if slot is None or not self._runner.may_act(shard):
            raise NotLeader("no node is sure to lead it at this moment")
        return slot

    async def _take(self, shard: int, point: Point, directory: Path) -> Part:
        """Copy a shard into the directory; what an earlier try left there goes."""
        query = self._runner.store.query
        leader, peers = self._leaders.leader_of(shard), self._leaders.peers
        await query(partial(shutil.rmtree, directory, ignore_errors=True))
        try:
            if leader and peers is not None:
                manifest = await peers.fetch_snapshot(leader, shard, directory)
                snapshot = Snapshot.from_json(manifest)
            else:
                snapshot = await self._take_here(shard, point, directory)
            if snapshot.shard != shard or snapshot.index < point.index:
                raise Unavailable(
                    f"a copy of shard {snapshot.shard} up to entry {snapshot.index} came, {point.index} was wanted",
                    reason="BACKUP_COPY_OLD",
                )
            return await query(partial(part_of, directory, snapshot, leader or self._origin.store))
        except OSError as error:
            raise reported(error, directory) from error

    async def _take_here(self, shard: int, point: Point, directory: Path) -> Snapshot:
        if self._led(shard).store.applied.index < point.index:
            await self._keeper.flush_for_reading()  # it came here meanwhile
        return await self._runner.store.query(partial(take, self._shards, shard, directory))

    # --- the whole ---

    def _finish(self, place: Path, draft: Path, start_ms: int, parts: Sequence[Part]) -> None:
        """In the store's thread."""
        cluster, store, version = self._origin
        namespaces = count_namespaces(draft, range(len(parts)))
        end_ms = self._runner.clock.now_ms()
        backup = Backup(
            len(parts), start_ms, end_ms, version, cluster, store, namespaces, tuple(parts)
        )
        try:
            write_manifest(draft, backup)
            sync_directory(draft)
            draft.rename(place)
            sync_directory(place.parent)
        except OSError as error:
            raise _failed(draft, error) from error


async def _patiently(shard: int, work: Callable[[], Awaitable[T]]) -> T:
    """Do it again while it fails for what may pass. Raises Unavailable (BACKUP_SHARD_MISSING) when that takes too long."""
    until_s = 0.0
    now_s = asyncio.get_running_loop().time
    while True:
        try:
            return await work()
        except TickwheelError as error:
            if (
                not isinstance(error, Unavailable | DeadlineExceeded)
                and error.reason not in PASSING
            ):
                raise
            until_s = until_s or now_s() + PATIENCE_S
            if now_s() > until_s:
                raise Unavailable(
                    f"no backup was made, for shard {shard} could not be copied: {error.message}; try again when "
                    "`tickwheel cluster status` shows a leader for every shard",
                    reason="BACKUP_SHARD_MISSING",
                    metadata={"shard": str(shard)},
                ) from error
        await asyncio.sleep(AGAIN_S)


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


def _failed(draft: Path, error: OSError) -> FailedPrecondition:
    return FailedPrecondition(f"no backup was made: {draft}: {error}", reason="SNAPSHOT_FAILED")
