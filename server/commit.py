"""Floor 3. The port through which the runner's batches become committed, and its simplest form: this disk alone.

    runner ──append──► Commits ──► journal (fsync)                       `OwnDisk`: the quorum is one of one
                          │   └──► voters (fsync)                        `cluster.host`: the quorum is a majority
       done(places, None) ◄──┘     committed: apply now, in this call
       done(places, error)         whether it is in the log is not known; a repeat with the same request_id tells

`may_act` is the right to fire and to read: embedded, it is the lock on the data directory; in a cluster, a quorum lease.

Must never import: `runner`, `store`, `shard`, the doors.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from tickwheel.server.errors import TickwheelError, Unavailable
from tickwheel.server.record import Record, RecordType
from tickwheel.server.wal import Wal


class Proposal(NamedTuple):
    """One shard's batch of effects, as bytes, to go behind everything that the shard's log holds."""

    shard: int
    epoch: int
    payload: bytes


Done = Callable[[Sequence[int], TickwheelError | None], None]
"""Called on the loop with the places of the proposals (from 0) that are decided now: committed, or with an error.

Each place is called once, each shard's in order. What is committed must be applied before the call returns.
"""


class Commits(Protocol):
    """What the runner knows of the log."""

    @property
    def space_low(self) -> bool:
        """True while creates have to be refused."""
        ...

    @property
    def record_bytes_max(self) -> int:
        """The longest payload that a batch may have."""
        ...

    @property
    def waiting_bytes(self) -> int:
        """What waits for the disk."""
        ...

    def append(self, proposals: Sequence[Proposal], done: Done) -> Sequence[int]:
        """Append one batch a shard; the indexes that they got. Raises TickwheelError, and then nothing was appended."""
        ...

    def may_act(self, shard: int) -> bool:
        """True while this node has the right to fire for the shard and to answer for it."""
        ...


class OwnDisk:
    """Committed is what this node's journal has fsynced. `ends` is the last index of each shard's log."""

    def __init__(
        self, wal: Wal, ends: dict[int, int], on_fatal: Callable[[BaseException], None]
    ) -> None:
        self._wal = wal
        self._ends = ends
        self._on_fatal = on_fatal

    @property
    def space_low(self) -> bool:
        """True while creates have to be refused."""
        return self._wal.space_low

    @property
    def record_bytes_max(self) -> int:
        """The longest payload that a batch may have."""
        return self._wal.record_bytes_max

    @property
    def waiting_bytes(self) -> int:
        """What waits for the disk."""
        return self._wal.waiting_bytes

    def append(self, proposals: Sequence[Proposal], done: Done) -> Sequence[int]:
        """One write and one fsync for all of them."""
        ends = self._ends
        indexes = [ends[shard] + 1 for shard, _, _ in proposals]
        future = self._wal.submit(
            [
                Record(RecordType.ENTRY, shard, epoch, index, payload)
                for (shard, epoch, payload), index in zip(proposals, indexes, strict=True)
            ]
        )
        for (shard, _, _), index in zip(proposals, indexes, strict=True):
            ends[shard] = index
        future.add_done_callback(lambda done_future: self._decided(done_future, indexes, done))
        return indexes

    def _decided(self, future: "asyncio.Future[None]", indexes: Sequence[int], done: Done) -> None:
        """After an error nothing more may be decided: whether the batch is in the log is for recovery to tell."""
        if future.cancelled():
            return
        error = future.exception()
        places = range(len(indexes))
        try:
            if error is None:
                done(places, None)
            else:
                done(places, Unavailable("the node is stopping", reason="NODE_STOPPING"))
        except Exception as fault:  # noqa: BLE001 - an error nobody foresaw stops the node, not a part of it
            error = error or fault
        if error is not None:
            self._on_fatal(error)

    def may_act(self, shard: int) -> bool:
        """Hold the lock on the data directory: the one right that there is."""
        return shard in self._ends
