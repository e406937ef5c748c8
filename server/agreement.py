"""Floor 5. Do the replicas of a shard hold the same? Equal applied index must mean equal state (guarantee I11).

One shard at a time, round and round: the leader hashes its store, asks each voter for the hash of theirs, and compares
those that are at the same index; a busy shard's rarely are, an idle one's always. Two that differ are never mended by
themselves: somebody has to look which one is right.

Must never import: the doors.
"""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tickwheel.server.cluster.host import Host
from tickwheel.server.cluster.peer_port import Peers
from tickwheel.server.errors import TickwheelError, Unavailable
from tickwheel.server.keeper import Keeper
from tickwheel.server.logs import get_logger
from tickwheel.server.message import NodeId
from tickwheel.server.runner import Runner
from tickwheel.server.slot import Slot
from tickwheel.server.store.compare import StateHash
from tickwheel.server.store.snapshot import Slices, in_turns

log = get_logger(__name__)

Hashing = Callable[[int], Slices[StateHash]]
"""Hashes the store of a shard, in slices."""

STATE_HASH: Final = "node/StateHash"
PAUSE_S: Final = 5.0
"""Between two shards; hashing a million jobs takes some 2.5 s of CPU, in slices."""

ASK_S: Final = 60.0


class Agreement:
    """Compares the stores of the shards that this node leads with those of their voters."""

    def __init__(
        self, hashing: Hashing, slots: dict[int, Slot], runner: Runner, keeper: Keeper, host: Host
    ) -> None:
        self.compared = self.differing = 0
        self._hashing = hashing
        self._slots = slots
        self._runner = runner
        self._keeper = keeper
        self._host = host
        self._stop = asyncio.Event()

    async def run(self, peers: Peers) -> None:
        """Until `stop`."""
        while not self._stop.is_set():
            await asyncio.sleep(PAUSE_S)  # a node may hold no shard at all
            for number in sorted(self._slots):
                if self._host.serves(number):
                    await self.compare(number, peers)
                    await asyncio.sleep(PAUSE_S)
                if self._stop.is_set():
                    return

    def stop(self) -> None:
        """Compare nothing any more."""
        self._stop.set()

    async def compare(self, number: int, peers: Peers) -> None:
        """Compare one shard. What can't be read or reached is left for the next round."""
        try:
            mine = await self._hash(number)
            configs = self._host.replicas[number].configs
            for voter in dict.fromkeys(v for voters in configs for v in voters):
                if voter != self._host.me and peers.connected(voter):
                    answer = await peers.forward(voter, STATE_HASH, str(number).encode(), ASK_S)
                    self._judge(number, voter, mine, _hash_of(answer))
        except TickwheelError as error:
            log.debug("comparing replicas: %s", error, extra={"shard": number})

    async def answer(self, number: int) -> bytes:
        """This node's hash of a shard, for its leader."""
        found = await self._hash(number)
        numbers = [found.index, found.epoch, found.jobs, found.live]
        return json.dumps([*numbers, found.digest.hex()]).encode()

    async def _hash(self, number: int) -> StateHash:
        """Raises Unavailable: a voter may have no store of the shard yet, or be taking a copy of it."""
        if number in self._slots:
            await self._keeper.flush()
            with suppress(FileNotFoundError):
                return await in_turns(self._runner.store.query, self._hashing(number))
        raise Unavailable(f"no store of shard {number} is here now", reason="NO_STORE")

    def _judge(self, number: int, voter: NodeId, mine: StateHash, theirs: StateHash) -> None:
        if mine.index != theirs.index:
            return
        self.compared += 1
        if mine != theirs:
            self.differing += 1
            log.critical(
                "two replicas of a shard differ at the same index",
                extra={"shard": number, "index": mine.index, "voter": voter},
            )


def _hash_of(answer: bytes) -> StateHash:
    index, epoch, jobs, live, digest = json.loads(answer)
    return StateHash(index, epoch, jobs, live, bytes.fromhex(digest))
