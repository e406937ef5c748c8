"""Floor 5. A shard's whole state from one node to another, when the log no longer reaches back far enough.

    leader     SnapshotWanted(peer) ──► "node/TakeSnapshot" ──► peer
    peer       fetch into a directory beside the stores ──► verify ──► close the store ──► install ──► open
               ──► replica.snapshot_installed: SNAPSHOT_BASE in the journal, Appends go on behind it
    leader     open_snapshot: flush, copy at an index, hand out in chunks, remove

Must never import: the doors.
"""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from tickwheel.server.cluster.host import Host
from tickwheel.server.cluster.peer_port import Peers, SnapshotFile
from tickwheel.server.errors import FailedPrecondition, Fatal, TickwheelError
from tickwheel.server.keeper import Keeper
from tickwheel.server.logs import get_logger
from tickwheel.server.message import NodeId
from tickwheel.server.runner import Runner
from tickwheel.server.slot import Slot
from tickwheel.server.store.install import install, stage
from tickwheel.server.store.snapshot import Snapshot, in_turns, take, verifying

log = get_logger(__name__)

TAKE_SNAPSHOT: Final = "node/TakeSnapshot"
SHIPPED: Final = "shipped-"
"""Directories beside the stores with copies for peers; what a crash leaves of them is removed at the next start."""

ASK_S: Final = 5.0
AT_A_TIME: Final = 2


class Shipped:
    """A copy that is being read by a peer. Implements `SnapshotFiles`."""

    def __init__(self, directory: Path, snapshot: Snapshot, runner: Runner) -> None:
        self._directory = directory
        self._snapshot = snapshot
        self._runner = runner

    @property
    def manifest(self) -> bytes:
        """What the store says of it."""
        return self._snapshot.to_json()

    @property
    def files(self) -> Sequence[SnapshotFile]:
        """Its files, the main one first."""
        return [SnapshotFile(f.name, f.size_bytes, f.sha256) for f in self._snapshot.files]

    async def read(self, number: int, offset: int, size: int) -> bytes:
        """A piece of a file."""
        path = self._directory / self._snapshot.files[number].name
        return await self._runner.store.query(partial(_read, path, offset, size))

    def close(self) -> None:
        """The peer has it, or went away."""
        self._runner.store.query(partial(shutil.rmtree, self._directory, ignore_errors=True))


class Copies:
    """Copies of shards, out and in."""

    def __init__(
        self, shards: Path, slots: dict[int, Slot], runner: Runner, keeper: Keeper, host: Host,
        *, reopen: Callable[[int], Slot],
    ) -> None:  # fmt: skip
        self._shards = shards
        self._slots = slots
        self._runner = runner
        self._keeper = keeper
        self._host = host
        self._reopen = reopen
        self._taking: set[int] = set()
        self._shipped = 0
        self.peers: Peers

    # --- out ---

    async def open(self, shard: int) -> Shipped:
        """A copy of a shard that this node leads, for a peer. Raises FailedPrecondition, ResourceExhausted."""
        if not self._host.serves(shard):
            raise FailedPrecondition(f"this node does not lead shard {shard}", reason="NOT_LEADER")
        await self._keeper.flush()
        self._shipped += 1
        directory = self._shards / f"{SHIPPED}{shard:04d}-{self._shipped}"
        snapshot = await self._runner.store.query(partial(take, self._shards, shard, directory))
        log.info("snapshot taken", extra={"shard": shard, "index": snapshot.index})
        return Shipped(directory, snapshot, self._runner)

    async def offer(self, shard: int, peer: NodeId) -> None:
        """Tell a peer that it has to take a copy. It is told again as long as it lacks one."""
        try:
            await self.peers.forward(peer, TAKE_SNAPSHOT, str(shard).encode(), ASK_S)
        except TickwheelError as error:
            log.warning("offering a snapshot: %s", error, extra={"shard": shard, "peer": peer})

    # --- in ---

    def take(self, shard: int, leader: NodeId) -> None:
        """The leader of a shard says that this node is too far behind."""
        room = len(self._taking) < AT_A_TIME
        if room and shard not in self._taking and shard in self._slots:
            self._taking.add(shard)
            self._runner.spawn(self._take(shard, leader))

    async def _take(self, shard: int, leader: NodeId) -> None:
        query = self._runner.store.query
        try:
            directory = await query(partial(stage, self._shards, shard))
            manifest = await self.peers.fetch_snapshot(leader, shard, directory)
            snapshot = Snapshot.from_json(manifest)
            await in_turns(query, verifying(directory, snapshot))
            await self._put(shard, directory, snapshot)
        except Fatal:
            raise
        except (TickwheelError, OSError) as error:
            log.warning("taking a snapshot: %s", error, extra={"shard": shard, "leader": leader})
        finally:
            self._taking.discard(shard)

    async def _put(self, shard: int, directory: Path, snapshot: Snapshot) -> None:
        """Let the copy take the store's place. Nothing is applied meanwhile."""
        replica = self._host.replicas[shard]
        if snapshot.shard != shard or not replica.installing(snapshot.index):
            return
        slot = self._slots.pop(shard)
        slot.retired = True
        self._runner.table_bytes -= slot.shard.table.bytes_held
        try:
            await self._runner.store.flush(partial(self._swap, slot, directory, snapshot))
        except (TickwheelError, OSError):
            replica.install_failed()
            self._slots[shard] = self._reopen(shard)
            raise
        self._slots[shard] = self._reopen(shard)
        replica.snapshot_installed(snapshot.index, snapshot.epoch)
        self._host.poke(shard)
        log.info("snapshot installed", extra={"shard": shard, "index": snapshot.index})

    def _swap(self, slot: Slot, directory: Path, snapshot: Snapshot) -> None:
        """In the store's thread."""
        slot.store.close()
        install(directory, self._shards, snapshot)


def _read(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
