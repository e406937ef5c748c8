"""Floor 2, pure. A candidate: it won the record, and now has to learn everything that may be committed.

    FENCING ── Qf promises are on disk, its own among them ──► FETCHING ── its log is the best one's ──► (lead)
       │ ask again every retry_ms, or when a voter's hold ends      │ ask again every retry_ms
       ╰──────────────── no progress for give_up_ms ────────────────╯──► FenceFailed

The best log is the one with the highest (last epoch, last index). Any Qf voters have one among them that took part in
the commit of each committed entry; of their logs the best has them all.

Must never import: any driver, `replica`; no I/O, no clock.
"""

from typing import NamedTuple

from tickwheel.server.log import Log
from tickwheel.server.message import Fence, Fetch, Message, NodeId
from tickwheel.server.quorum import fence_quorum
from tickwheel.server.turn import Leadership, Mark, ReplicaOptions

Sends = list[tuple[NodeId, Message]]


class Cursor(NamedTuple):
    """Up to here, (index, epoch), our log may agree with the best one; `sure`: it does."""

    index: int  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    epoch: int
    sure: bool


class Takeover:
    """What a candidate has heard so far."""

    def __init__(
        self, shard: int, me: NodeId, record: Leadership, options: ReplicaOptions, now_ms: int
    ) -> None:
        assert me in record.voters, "only a voter takes a shard over"
        self.record = record
        self.best: NodeId = ""
        self.granted_mark: int | None = None
        """The output with our own promise; None as long as our own hold does not permit it."""
        self._shard = shard
        self._me = me
        self._options = options
        self._ends: dict[NodeId, tuple[int, int]] = {}
        self._ask_ms = {voter: now_ms for voter in record.voters if voter != me}
        self._cursor = Cursor(0, 0, sure=False)
        self._fetch_ms = 0
        self._moved_ms = now_ms

    @property
    def epoch(self) -> int:
        """The epoch that we are to lead."""
        return self.record.epoch

    def overdue(self, now_ms: int) -> bool:
        """True when nothing got on for too long."""
        return now_ms - self._moved_ms >= self._options.give_up_ms

    # --- fencing ---

    def granted(self, mark: Mark) -> bool:
        """True if our own promise is on disk with the Output of that mark."""
        return self.granted_mark is not None and self.granted_mark <= mark

    def asks(self, now_ms: int) -> Sends:
        """The fences and fetches that are due."""
        if self.best:
            return self._fetch_again(now_ms)
        sends: Sends = []
        for voter, due_ms in self._ask_ms.items():
            if voter not in self._ends and now_ms >= due_ms:
                self._ask_ms[voter] = now_ms + self._options.retry_ms
                sends.append((voter, Fence(self._shard, self.epoch, self.record.released)))
        return sends

    def refused(self, voter: NodeId, wait_ms: int, now_ms: int) -> None:
        """The voter's hold lasts that much longer."""
        if voter in self._ask_ms:
            self._ask_ms[voter] = now_ms + max(wait_ms, 1)

    def fenced(self, voter: NodeId, last: tuple[int, int], now_ms: int) -> bool:
        """The voter's promise is on disk, its log ends at (epoch, index). True if there are enough now."""
        if self.best or voter not in self.record.voters:
            return False
        self._ends[voter] = last
        self._moved_ms = now_ms
        if self._me not in self._ends or len(self._ends) < fence_quorum(len(self.record.voters)):
            return False
        self.best = max(sorted(self._ends), key=self._rank)
        return True

    def _rank(self, voter: NodeId) -> tuple[int, int, bool]:
        epoch, index = self._ends[voter]
        return epoch, index, voter == self._me

    # --- fetching ---

    @property
    def target(self) -> tuple[int, int]:
        """Where the best log ends, as (epoch, index)."""
        return self._ends[self.best]

    def fetch(self, log: Log, now_ms: int) -> Sends:
        """Ask the best for what follows the end of our log, or where that may still agree."""
        self._cursor = Cursor(log.last_index, log.last_epoch, sure=False)
        return self._ask(now_ms)

    def expects(self, prev_index: int) -> bool:
        """True if entries behind that index answer what was asked last."""
        index, _, sure = self._cursor
        return prev_index == index or (prev_index < index and not sure)

    def step_back(self, log: Log, prev_index: int, prev_epoch: int, now_ms: int) -> Sends:
        """Our log does not have what the best's entries follow: ask where it may."""
        index = log.may_agree(prev_index, prev_epoch)
        assert index is not None, "what is below the base agrees"
        assert index < self._cursor.index, "every step goes back"
        self._cursor = Cursor(index, log.epoch_at(index), sure=False)
        return self._ask(now_ms)

    def got_on(self, log: Log, index: int, now_ms: int) -> Sends:
        """Our log agrees up to an index now: ask for more."""
        self._moved_ms = now_ms
        if self._cursor == (index, log.epoch_at(index), True):
            return []
        self._cursor = Cursor(index, log.epoch_at(index), sure=True)
        return self._ask(now_ms)

    def _ask(self, now_ms: int) -> Sends:
        self._fetch_ms = now_ms + self._options.retry_ms
        index, epoch, _ = self._cursor
        return [(self.best, Fetch(self._shard, self.epoch, index, epoch))]

    def _fetch_again(self, now_ms: int) -> Sends:
        return self._ask(now_ms) if now_ms >= self._fetch_ms else []
