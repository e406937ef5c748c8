"""Floor 4. What the runner keeps of each shard, and the parts of a group of batches: slots, work, tickets, room.

Must never import: the doors, `node`, `runner`; no device but the store, whose rows it reads in the store's thread.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice
from typing import TypeVar

from tickwheel.server import codec
from tickwheel.server.command import (
    Command,
    Create,
    Ended,
    NamedCommand,
    Reply,
    Update,
)
from tickwheel.server.draft import Rows
from tickwheel.server.errors import NotLeader, TickwheelError
from tickwheel.server.feed import Feed, Feeds
from tickwheel.server.fire import TargetKey
from tickwheel.server.model import Effects, ExecutionState, JobRow, Ms, Row
from tickwheel.server.query import Applied
from tickwheel.server.reading import Found, Wants
from tickwheel.server.shard import Entry, Shard
from tickwheel.server.store import ShardStore

UPDATE_BYTES = 300_000
"""The most that an update logs: a spec with its largest body."""

T = TypeVar("T")


class Ticket:
    """One call's answers as they come in; `future` is done with the last of them."""

    __slots__ = ("future", "left", "results")

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self.results: list[Reply | TickwheelError] = [None] * count
        self.left = count
        self.future: asyncio.Future[list[Reply | TickwheelError]] = loop.create_future()

    def answer(self, position: int, reply: Reply | TickwheelError) -> None:
        """Fill in one answer."""
        self.results[position] = reply
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(self.results)


class Shelf:
    """Due entries whose target has no place in dispatch, by target; those due earlier come back first."""

    def __init__(self) -> None:
        self._heaps: dict[TargetKey, list[tuple[Ms, int, int, Entry]]] = {}
        self._put = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: TargetKey) -> bool:
        return key in self._heaps

    def put(self, key: TargetKey, number: int, entry: Entry) -> None:
        """Keep an entry of a shard."""
        self._put += 1
        self._count += 1
        heappush(self._heaps.setdefault(key, []), (entry[0], self._put, number, entry))

    def take(self, key: TargetKey, count: int) -> list[tuple[int, Entry]]:
        """At most `count` (shard, entry) of a target."""
        heap = self._heaps.get(key, [])
        taken = [heappop(heap)[2:] for _ in range(min(count, len(heap)))]
        self._count -= len(taken)
        if not heap:
            self._heaps.pop(key, None)
        return taken


@dataclass(slots=True, eq=False)
class Slot:
    """A shard on this node, with its store and what waits for it. `index` is the last entry given to the WAL.

    `tickets` says of each command in `waiting` who waits for it: the ticket, and the answer's place there.
    """

    shard: Shard
    store: ShardStore
    index: int
    applied: int
    waiting: list[NamedCommand] = field(default_factory=list[NamedCommand])
    tickets: list[tuple[Ticket, int]] = field(default_factory=list[tuple[Ticket, int]])
    leading: list[Command] = field(default_factory=list[Command])
    busy: bool = False
    next_ms: Ms | None = None
    cold: list[Entry] = field(default_factory=list[Entry])
    warming: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    frozen_at: Applied = field(default_factory=Applied)
    ended_since_trim: Counter[Row] = field(default_factory=Counter[Row])
    feed: Feed = field(default_factory=lambda: Feeds(0).open(0))
    led: bool = False
    paused: bool = False
    retired: bool = False

    def leads(self, epoch: int) -> bool:
        """True while this node leads the shard in that epoch."""
        return self.led and self.shard.epoch == epoch

    def end(self) -> None:
        """The leadership is over: forget all that was its own, and keep what is applied."""
        self.led = self.paused = self.busy = self.warming = False
        self.leading, self.cold = [], []
        self.next_ms = None
        self.index = self.applied
        self.shard.resign()
        self.settled.set()

    def reached(self, index: int, effects: Effects) -> None:
        """The effects of this entry are in the table; who watches may know of them."""
        self.applied = index
        self.feed.put(index, effects.time_ms, effects.live, effects.ended)

    def applied_now(self) -> Applied:
        """How far the table is, for the store that it is flushed to."""
        return Applied(self.applied, self.shard.epoch, self.shard.next_row, self.shard.last_ms)


class Work:
    """One shard's part of a group. `read` says that `rows` holds all that the commands want to know."""

    __slots__ = (
        "commands", "effects", "ended", "epoch", "leader_count", "read", "replies", "rows", "slot", "tickets"
    )  # fmt: skip

    def __init__(
        self,
        slot: Slot,
        commands: list[Command],
        tickets: list[tuple[Ticket, int]],
        leader_count: int,
    ) -> None:
        self.slot = slot
        self.epoch = slot.shard.epoch
        self.commands = commands
        self.tickets = tickets
        self.leader_count = leader_count
        self.rows = Rows()
        self.read = False
        self.effects: Effects | None = None
        self.ended: Sequence[tuple[Row, ExecutionState]] = ()
        self.replies: list[Reply | TickwheelError] = []

    def join_leading(self) -> None:
        """Take in what the leader told itself since the batch was formed: ahead of users' commands, if it has any."""
        if self.tickets and self.slot.leading:
            leading, self.slot.leading = self.slot.leading, []
            self.commands[self.leader_count : self.leader_count] = leading
            self.leader_count += len(leading)
            self.read = False


@dataclass(slots=True)
class Room:
    """What a group may still take: commands, and bytes of journal."""

    commands: int
    bytes: int

    @property
    def full(self) -> bool:
        """True when nothing more goes in."""
        return self.commands <= 0 or self.bytes <= 0

    def take(self, commands: Sequence[Command]) -> int:
        """How many of these go in, from the front; a group takes at least one of what it is offered first."""
        count, bytes_left = 0, self.bytes
        for size in map(weight, islice(commands, max(self.commands, 0))):
            if bytes_left <= 0:
                break
            count += 1
            bytes_left -= size
        self.commands -= count
        self.bytes = bytes_left
        return count


def leadership_lost() -> NotLeader:
    """What callers are told whose command was not begun before the leadership ended: nothing was done."""
    return NotLeader("this node does not lead the job's shard any more; repeat the call")


def weight(command: Command) -> int:
    """About how many bytes of journal a command makes, rather too many than too few."""
    if isinstance(command, Create):
        return len(command.prepared.spec) + 300
    if isinstance(command, Ended):
        return 3 * len(command.outcome.body) + 5_000
    return UPDATE_BYTES if isinstance(command, Update) else 1_000


def split(items: list[T], count: int) -> tuple[list[T], list[T]]:
    """The first `count` items and the others; mostly all are wanted, and nothing is copied."""
    return (items, []) if count == len(items) else (items[:count], items[count:])


def read_all(asked: Sequence[tuple[ShardStore, Wants]]) -> list[Found]:
    return [read_wants(store, wants) for store, wants in asked]


def read_wants(store: ShardStore, wants: Wants) -> Found:
    """In the store's thread: answer what a batch wants to know of one shard."""
    names = store.find(wants.names) if wants.names else {}
    return Found(
        names,
        store.jobs(wants.jobs) if wants.jobs else {},
        store.live(wants.live) if wants.live else {},
        {row: data for row in wants.ended if (data := store.execution(row)) is not None},
    )


def read_entries(store: ShardStore, jobs: Sequence[Row], live: Sequence[Row]) -> Found:
    """In the store's thread: the rows behind wheel entries, and the jobs behind their executions."""
    executions = store.live(live) if live else {}
    rows = {*jobs, *(codec.decode_execution(data).job_row for data in executions.values())}
    return Found({}, store.jobs(sorted(rows)) if rows else {}, executions)


def is_known(slot: Slot, entry: Entry) -> bool:
    """True if the entry's row exists after all; one that does not is a leftover of something that ended."""
    _, row, generation = entry
    if generation > 0:
        return isinstance(slot.shard.table.job(row), JobRow)
    return isinstance(slot.shard.table.execution(row), bytes)
