"""Floor 5. A shard's whole state from one node to another, when the log no longer reaches back far enough.

    leader     SnapshotWanted(peer) ──► "node/TakeSnapshot" ──► peer
    peer       fetch into a directory beside the stores ──► verify ──► close the store ──► install ──► open
               ──► replica.snapshot_installed: SNAPSHOT_BASE in the journal, Appends go on behind it
    leader     open_snapshot: flush, copy at an index, hand out in chunks, remove

Must never import: the doors.
"""

import asyncio
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from tickwheel.server.cluster.host import Host
from tickwheel.server.cluster.peer_port import Peers, SnapshotFile
from tickwheel.server.errors import FailedPrecondition, Fatal, TickwheelError, Unavailable
from tickwheel.server.keeper import Keeper
from tickwheel.server.logs import get_logger
from tickwheel.server.message import NodeId
from tickwheel.server.runner import Runner
from tickwheel.server.slot import Slot
from tickwheel.server.store.compare import StateHash, hashing
from tickwheel.server.store.install import install, stage
from tickwheel.server.store.snapshot import Slices, Snapshot, in_turns, take, verifying

log = get_logger(__name__)

TAKE_SNAPSHOT: Final = "node/TakeSnapshot"
SHIPPED: Final = "shipped-"
"""Directories beside the stores with copies for peers; what a crash leaves of them is removed at the next start."""

ASK_S: Final = 5.0
OFFER_AGAIN_S: Final = 1.0
"""A peer that could not be told that it has to take a copy is asked again where it is."""

AT_A_TIME: Final = 2
AGAIN_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
"""What failed is taken anew after these pauses; then the leader's next offer has to come, which takes half a minute."""


class Copy(Protocol):
    """A copy of a shard as of one entry, that does not change until it is removed. Called in the store's thread."""

    @property
    def snapshot(self) -> Snapshot:
        """What it is of, and its files."""
        ...

    def read(self, number: int, offset: int, size: int) -> bytes:
        """A piece of a file. Raises OSError."""
        ...

    def remove(self) -> None:
        """Nobody reads it any more."""
        ...


class Shelves(Protocol):
    """Where copies are made and put in place. Called in the store's thread; raises FailedPrecondition, OSError."""

    def take(self, shard: int) -> Copy:
        """Copy a shard whose store is open."""
        ...

    def stage(self, shard: int) -> Path:
        """An empty directory for a copy that comes in."""
        ...

    def verifying(self, directory: Path, snapshot: Snapshot) -> Slices[None]:
        """Is it whole, and what it says it is?"""
        ...

    def hashing(self, shard: int) -> Slices[StateHash]:
        """What of a shard must be equal on every replica that is at the same entry."""
        ...

    def install(self, directory: Path, snapshot: Snapshot) -> None:
        """Let it take the place of a store that is closed, as a whole or not at all."""
        ...


class FileCopy:
    """A directory of files."""

    def __init__(self, directory: Path, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._directory = directory

    def read(self, number: int, offset: int, size: int) -> bytes:
        """A piece of a file."""
        with (self._directory / self.snapshot.files[number].name).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def remove(self) -> None:
        """Delete it."""
        shutil.rmtree(self._directory, ignore_errors=True)


class FileShelves:
    """The directory of the shards' stores."""

    def __init__(self, shards: Path) -> None:
        self._shards = shards
        self._taken = 0

    def take(self, shard: int) -> FileCopy:
        """Copy a shard through SQLite."""
        self._taken += 1
        directory = self._shards / f"{SHIPPED}{shard:04d}-{self._taken}"
        return FileCopy(directory, take(self._shards, shard, directory))

    def stage(self, shard: int) -> Path:
        """Beside the stores."""
        return stage(self._shards, shard)

    def verifying(self, directory: Path, snapshot: Snapshot) -> Slices[None]:
        """Digests, and SQLite's own checks."""
        return verifying(directory, snapshot)

    def hashing(self, shard: int) -> Slices[StateHash]:
        """In the order of rows."""
        return hashing(self._shards, shard)

    def install(self, directory: Path, snapshot: Snapshot) -> None:
        """By one rename."""
        install(directory, self._shards, snapshot)


class Shipped:
    """A copy that is being read by a peer. Implements `SnapshotFiles`."""

    def __init__(self, copy: Copy, runner: Runner) -> None:
        self._copy = copy
        self._runner = runner

    @property
    def manifest(self) -> bytes:
        """What the store says of it."""
        return self._copy.snapshot.to_json()

    @property
    def files(self) -> Sequence[SnapshotFile]:
        """Its files, the main one first."""
        return [SnapshotFile(f.name, f.size_bytes, f.sha256) for f in self._copy.snapshot.files]

    async def read(self, number: int, offset: int, size: int) -> bytes:
        """A piece of a file."""
        return await self._runner.store.query(partial(self._copy.read, number, offset, size))

    def close(self) -> None:
        """The peer has it, or went away."""
        self._runner.store.query(self._copy.remove)


class Copies:
    """Copies of shards, out and in."""

    def __init__(
        self, shelves: Shelves, slots: dict[int, Slot], runner: Runner, keeper: Keeper, host: Host,
        *, reopen: Callable[[int], Slot],
    ) -> None:  # fmt: skip
        self._shelves = shelves
        self._slots = slots
        self._runner = runner
        self._keeper = keeper
        self._host = host
        self._reopen = reopen
        self._taking: dict[int, NodeId] = {}  # bounded: by AT_A_TIME
        self._offered: dict[int, NodeId] = {}  # bounded: by the number of shards
        self._fetching: set[asyncio.Future[bytes]] = set()  # bounded: by AT_A_TIME
        self._failures: dict[int, int] = {}  # bounded: likewise
        self._stopped = False
        self.peers: Peers

    # --- out ---

    async def open(self, shard: int) -> Shipped:
        """A copy of a shard for a peer, which may be the one whose ack this leader needs to begin at all.

        Raises FailedPrecondition, ResourceExhausted.
        """
        replica = self._host.replicas.get(shard)
        if replica is None or not replica.configs:
            raise FailedPrecondition(f"this node does not lead shard {shard}", reason="NOT_LEADER")
        await self._keeper.flush()
        copy = await self._runner.store.query(partial(self._shelves.take, shard))
        log.info("snapshot taken", extra={"shard": shard, "index": copy.snapshot.index})
        return Shipped(copy, self._runner)

    async def offer(self, shard: int, peer: NodeId) -> None:
        """Tell a peer that it has to take a copy. It is told again as long as it lacks one."""
        try:
            await self.peers.forward(peer, TAKE_SNAPSHOT, str(shard).encode(), ASK_S)
        except TickwheelError as error:
            log.warning("offering a snapshot: %s", error, extra={"shard": shard, "peer": peer})
            await asyncio.sleep(OFFER_AGAIN_S)
            self._host.replicas[shard].not_offered(peer)
            self._host.poke(shard)

    # --- in ---

    def take(self, shard: int, leader: NodeId) -> None:
        """The leader of a shard says that this node is too far behind.

        What another leader offers is kept while a copy of a former one is under way, which may be too old, or never come:
        it would be offered again only after half a minute.

        Raises Unavailable if this node does not know yet that it holds the shard, as one that etcd can't reach: the
        leader offers it again then.
        """
        if shard not in self._slots and shard not in self._taking:
            raise Unavailable(f"this node does not hold shard {shard} yet", reason="NOT_HELD")
        self._failures.pop(shard, None)
        if self._taking.get(shard) != leader:
            self._queue(shard, leader)

    def _queue(self, shard: int, leader: NodeId) -> None:
        if not self._stopped:
            self._offered[shard] = leader
            self._take_next()

    def stop(self) -> None:
        """Begin no more, and let go what would take long: the node is stopping."""
        self._stopped = True
        self._offered.clear()
        for fetching in self._fetching:
            fetching.cancel()

    def _take_next(self) -> None:
        """A few at a time; the others wait here, for they are offered again only after half a minute."""
        for shard in [shard for shard in self._offered if shard not in self._taking]:
            if len(self._taking) >= AT_A_TIME:
                return
            self._taking[shard] = leader = self._offered.pop(shard)
            self._runner.spawn(self._take(shard, leader))

    async def _take(self, shard: int, leader: NodeId) -> None:
        query = self._runner.store.query
        try:
            directory = await query(partial(self._shelves.stage, shard))
            manifest = await self._fetch(shard, leader, directory)
            snapshot = Snapshot.from_json(manifest)
            await in_turns(query, self._shelves.verifying(directory, snapshot))
            await self._put(shard, directory, snapshot, leader)
            self._failures.pop(shard, None)
        except Fatal:
            raise
        except (TickwheelError, OSError) as error:
            log.warning("taking a snapshot: %s", error, extra={"shard": shard, "leader": leader})
            self._take_later(shard, leader, error)
        finally:
            del self._taking[shard]
            self._take_next()

    async def _fetch(self, shard: int, leader: NodeId, directory: Path) -> bytes:
        """Raises Unavailable if the node stops meanwhile: a copy may take hours, or its leader may have fallen silent."""
        fetching = asyncio.ensure_future(self.peers.fetch_snapshot(leader, shard, directory))
        self._fetching.add(fetching)
        try:
            return await fetching
        except asyncio.CancelledError:
            if not self._stopped:
                raise
            raise Unavailable("this node is stopping", reason="STOPPING") from None
        finally:
            self._fetching.discard(fetching)

    def _take_later(self, shard: int, leader: NodeId, error: Exception) -> None:
        """Try again, unless the one that was asked leads no more: then the next leader has its own offer to make."""
        failures = self._failures.get(shard, 0)
        gone = isinstance(error, TickwheelError) and error.reason == "NOT_LEADER"
        if gone or self._stopped or shard in self._offered or failures == len(AGAIN_S):
            return
        self._failures[shard] = failures + 1
        loop = asyncio.get_running_loop()
        loop.call_later(AGAIN_S[failures], self._take_again, shard, leader)

    def _take_again(self, shard: int, leader: NodeId) -> None:
        """Unless it was offered anew meanwhile."""
        if shard in self._slots and shard not in self._taking and shard not in self._offered:
            self._queue(shard, leader)

    async def _put(self, shard: int, directory: Path, snapshot: Snapshot, leader: NodeId) -> None:
        """Let the copy take the store's place. Nothing is applied meanwhile."""
        replica = self._host.replicas[shard]
        if snapshot.shard != shard or not replica.installing(snapshot.index):
            return
        slot = self._slots.pop(shard)
        slot.retired = True
        slot.feed.reset(slot.applied)
        self._runner.table_bytes -= slot.shard.table.bytes_held
        try:
            await self._runner.store.flush(partial(self._swap, slot, directory, snapshot))
        except (TickwheelError, OSError):
            replica.install_failed()
            self._slots[shard] = self._reopen(shard)
            raise
        self._slots[shard] = self._reopen(shard)
        replica.snapshot_installed(snapshot.index, snapshot.epoch, leader)
        self._host.poke(shard)
        log.info("snapshot installed", extra={"shard": shard, "index": snapshot.index})

    def _swap(self, slot: Slot, directory: Path, snapshot: Snapshot) -> None:
        """In the store's thread."""
        slot.store.close()
        self._shelves.install(directory, snapshot)
