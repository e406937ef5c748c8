"""Floor 1, pure. What happened to executions lately: a bounded memory of the end of each shard's log, for watches.

    log       ··· 7   8   9  10  11  12  13  14           each applied batch is told once, in order
    feed                  9          12      14           only those that changed executions take room
    floor 8   everything after entry 8 is known: a watch that stands at 8 or behind it goes on; one at 7 has to list

An index of the log means the same on every replica. So each keeps a feed, the leader's and the followers', and a watch
goes on where it was, whoever leads by then.

What goes is always the oldest of all shards: after `AGE_MS`, or when all feeds together hold more than `bytes_max`.
The bytes of executions are shared with the batch they came with: telling a batch copies none, and one without
executions costs two comparisons.

Must never import: any room but `model`; no I/O, no clock: time is told by `age`.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tickwheel.server.model import Ms, Row

AGE_MS = 75_000
"""How long a change is kept, if there is room: a token is promised for a minute, and a slow reader has some seconds."""

ENTRY_BYTES = 300
"""What a batch takes in memory beside its executions, roughly."""

EXECUTION_BYTES = 120
"""What an execution takes beside its bytes, roughly."""

Images = Sequence[tuple[Row, bytes]]
"""Executions as a change left them, by their rows."""


class Change(NamedTuple):
    """The executions that one entry of the log changed, as stored; `time_ms` is the batch's.

    `told_ms` is when this node was told, by the clock of `age`; `size_bytes` what it takes in memory, roughly. The only
    object of a batch that the garbage collector has to visit: of tuples of plain things it lets go.
    """

    entry: int
    time_ms: Ms
    live: Images
    ended: Images
    told_ms: Ms
    size_bytes: int
    feed: "Feed"

    def images(self) -> Iterator[bytes]:
        """The executions after the change."""
        for _, data in self.live:
            yield data
        for _, data in self.ended:
            yield data

    @property
    def touched(self) -> int:
        """How many executions."""
        return len(self.live) + len(self.ended)


class Feeds:
    """The feeds of one node, and the memory that they share."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_held = 0
        self.listeners: set[Callable[[], None]] = set()
        """Called when executions changed; bounded by who adds them."""
        self.now_ms: Ms = 0
        self._order: deque[Change] = deque()  # bounded: by bytes_max

    def open(self, applied: int) -> "Feed":
        """The feed of a shard that is applied up to there, and of which nothing is known before."""
        return Feed(self, applied)

    def age(self, monotonic_ms: Ms) -> None:
        """It is that late: forget what is old. Called every now and then."""
        self.now_ms = monotonic_ms
        while self._order and self._order[0].told_ms < monotonic_ms - AGE_MS:
            self._forget_oldest()

    def took(self, change: Change) -> None:
        """A feed holds one more."""
        self.bytes_held += change.size_bytes
        self._order.append(change)
        while self.bytes_held > self.bytes_max:
            self._forget_oldest()
        for listener in self.listeners:
            listener()

    def _forget_oldest(self) -> None:
        change = self._order.popleft()
        if change.feed.forget(change):
            self.bytes_held -= change.size_bytes

    def let_go(self, changes: Iterator[Change]) -> None:
        """A feed forgot these by itself; their places in the order go when their turn comes."""
        self.bytes_held -= sum(change.size_bytes for change in changes)


class Feed:
    """What is known of one shard. `floor`: everything after that entry, up to the last one told."""

    __slots__ = ("_changes", "_feeds", "_last", "floor")

    def __init__(self, feeds: Feeds, applied: int) -> None:
        self.floor = applied
        self._last = applied
        self._feeds = feeds
        self._changes: deque[Change] = deque()  # bounded: by bytes_max of all

    def put(self, index: int, time_ms: Ms, live: Images, ended: Images) -> None:
        """An entry was applied. Each has to be told that changes executions, in the order of the log."""
        self._last = index
        if live or ended:
            size_bytes = ENTRY_BYTES
            for _, data in live:
                size_bytes += EXECUTION_BYTES + len(data)
            for _, data in ended:
                size_bytes += EXECUTION_BYTES + len(data)
            told_ms = self._feeds.now_ms
            change = Change(index, time_ms, tuple(live), tuple(ended), told_ms, size_bytes, self)
            self._changes.append(change)
            self._feeds.took(change)

    def recall(self, index: int, time_ms: Ms, live: Images, ended: Images) -> None:
        """An entry from before what was told first, read from the journal: all that are there, in order, then `join`."""
        if index != self._last + 1:
            self.reset(index - 1)
        self.put(index, time_ms, live, ended)

    def join(self, applied: int) -> None:
        """What was recalled is of use only if it leads up to what is applied."""
        if self._last != applied:
            self.reset(applied)

    def reset(self, applied: int) -> None:
        """Forget all: known is only what comes after this entry."""
        self._feeds.let_go(iter(self._changes))
        self._changes.clear()
        self.floor = self._last = applied

    def forget(self, change: Change) -> bool:
        """Forget the oldest change if it is this one."""
        if not self._changes or self._changes[0] is not change:
            return False
        self._changes.popleft()
        self.floor = change.entry
        return True

    def since(self, index: int) -> list[Change] | None:
        """What changed after an entry, oldest first; None when that is not known any more."""
        if index < self.floor:
            return None
        found: list[Change] = []
        for change in reversed(self._changes):
            if change.entry <= index:
                break
            found.append(change)
        found.reverse()
        return found
