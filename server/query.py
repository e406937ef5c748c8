"""Floor 0. What is asked of the store, and the order in which it answers.

A list is cut in pages. Both lists have one total order over all shards, and a page token is the key of its last item:

    jobs         oldest first, executions newest first, both by Key = (create_ms, row, shard)

A shard gives rows away in the order of creation and its stamped time never goes back, so inside one shard the order of
keys is the order of rows: a page is a scan by primary key, without an index that each insert would have to feed.

Each shard answers with up to `limit` hits after the token; `merge_jobs` and `merge_executions` make one page of many.

Must never import: anything of this project but `model`; no I/O, no clock.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import NamedTuple

from tickwheel.server.model import JobRow, Ms, Row

LIMIT_MAX = 1000


@dataclass(frozen=True, slots=True)
class Applied:
    """How far a store is: everything up to entry `index` of the shard's log is in it, and nothing behind that."""

    index: int = 0
    epoch: int = 0
    next_row: Row = 1
    time_ms: Ms = 0


class Key(NamedTuple):
    """Where an item stands in a list. Also a page token: the next page starts behind it."""

    create_ms: Ms
    row: Row
    shard: int


class JobHit(NamedTuple):
    """A job of a page."""

    key: Key
    job: JobRow


class ExecutionHit(NamedTuple):
    """An execution of a page, as stored (`codec.decode_execution`)."""

    key: Key
    data: bytes


class Due(NamedTuple):
    """Something that falls due: a job (`number` = its generation) or a live execution (`number` = -(attempt + 1))."""

    due_ms: Ms
    row: Row
    number: int


class StoreSizes(NamedTuple):
    """How much a shard's store holds; bytes are those of the files, their journals included."""

    jobs: int
    live: int
    main_bytes: int
    history_bytes: int
    history_days: int


@dataclass(frozen=True, slots=True)
class Range:
    """`from_ms` <= x < `until_ms`; 0 leaves that end open."""

    from_ms: Ms = 0
    until_ms: Ms = 0

    def holds(self, value_ms: Ms) -> bool:
        """True when the value lies inside."""
        return value_ms >= self.from_ms and (not self.until_ms or value_ms < self.until_ms)


EVER = Range()


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which jobs. All conditions hold at once; an empty one asks nothing. `namespace` "" means all of them."""

    namespace: str = ""
    states: tuple[int, ...] = ()
    last_outcomes: tuple[int, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    next_time: Range = EVER
    create_time: Range = EVER
    name_prefix: str = ""
    limit: int = 100
    after: Key | None = None

    def __post_init__(self) -> None:
        assert 0 < self.limit <= LIMIT_MAX, f"limit {self.limit} is not in 1..{LIMIT_MAX}"

    @property
    def tallied(self) -> bool:
        """True when the store's running tallies (by namespace, state, last outcome) answer a count of it."""
        scanned = (
            self.labels or self.name_prefix or self.next_time != EVER or self.create_time != EVER
        )
        return not scanned


@dataclass(frozen=True, slots=True)
class ExecutionQuery:
    """Which executions; as in `JobQuery`. `job` is a job's name inside `namespace`."""

    namespace: str = ""
    job: str = ""
    states: tuple[int, ...] = ()
    scheduled: Range = EVER
    limit: int = 100
    after: Key | None = None

    def __post_init__(self) -> None:
        assert 0 < self.limit <= LIMIT_MAX, f"limit {self.limit} is not in 1..{LIMIT_MAX}"
        assert self.namespace or not self.job, "a job's name means nothing without its namespace"

    def holds(self, namespace: str, job: str, state: int, scheduled_ms: Ms) -> bool:
        """True of an execution that a list of it would show, whatever its page."""
        return (
            namespace == self.namespace
            and self.job in {"", job}
            and (not self.states or state in self.states)
            and self.scheduled.holds(scheduled_ms)
        )


class Read(NamedTuple):
    """How far a watch has read a shard's log: through `entry`, and so all that happened until `read_ms`."""

    shard: int
    entry: int
    read_ms: Ms


class GroupBy(IntEnum):
    """What a count is divided by."""

    NONE = 0
    STATE = 1
    LAST_OUTCOME = 2
    LABEL = 3
    NEXT_TIME = 4


@dataclass(frozen=True, slots=True)
class Grouping:
    """`label` is the key whose values divide (LABEL); `bucket_ms` the width of a bucket of next times (NEXT_TIME)."""

    by: GroupBy = GroupBy.NONE
    label: str = ""
    bucket_ms: Ms = 0

    def __post_init__(self) -> None:
        assert bool(self.label) == (self.by == GroupBy.LABEL), "a label, and only LABEL has one"
        assert (self.bucket_ms > 0) == (self.by == GroupBy.NEXT_TIME), (
            "a width, and only NEXT_TIME has one"
        )


# The group's value (a state, an outcome, a label's value or "" without it, the start of a bucket; 0 for NONE) → jobs.
JobCounts = dict[int | str, int]


def behind_row(after: Key, shard: int) -> Row:
    """The first row of `shard` that stands behind `after` among those of the same create_ms.

    >>> behind_row(Key(5, 7, 3), 3), behind_row(Key(5, 7, 3), 4)
    (8, 7)
    """
    return after.row if shard > after.shard else after.row + 1


def merge_jobs(pages: Iterable[list[JobHit]], limit: int) -> list[JobHit]:
    """One page of the shards' pages, oldest first."""
    return list(islice(heapq.merge(*pages, key=_key), limit))


def merge_executions(pages: Iterable[list[ExecutionHit]], limit: int) -> list[ExecutionHit]:
    """One page of the shards' pages, newest first."""
    return list(islice(heapq.merge(*pages, key=_key, reverse=True), limit))


def merge_counts(counts: Iterable[JobCounts]) -> JobCounts:
    """The sum of the shards' counts."""
    total: JobCounts = {}
    for count in counts:
        for group, number in count.items():
            total[group] = total.get(group, 0) + number
    return total


def _key(hit: JobHit | ExecutionHit) -> Key:
    return hit.key
