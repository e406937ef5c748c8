"""Floor 2, pure. What a replica is told and what it asks for: plain values, in the manner of etcd-raft's Ready.

    driver ── led, following, propose, receive, persisted, tick ──► Replica ── take() ──► Output ──► driver

What the driver does with an Output, in this order:

    1. records    to the journal, in their order; behind everything that earlier outputs put there
    2. now        to the peers, at once: an Append is on its way while the disk writes
    3. committed  apply, in order; say `applied` when done
    4. events     act on them
    5. when the records are durable: `synced` to the peers, then `persisted(mark)`

Must never import: any driver; no I/O, no clock.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from tickwheel.server.message import LogEntry, Message, NodeId
from tickwheel.server.record import Record

KIB, MIB = 1 << 10, 1 << 20

Mark = int
"""Counts the outputs of a replica that have records. `persisted(mark)` speaks of all up to that one."""


class Leadership(NamedTuple):
    """A shard's record in etcd. No leader: "".

    `released`: the leader before stopped by itself, all it began is committed. `shrunk`: of two voters one was dead,
    and the change that made us leader left it out.
    """

    epoch: int
    leader: NodeId
    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...] = ()
    config: int = 0
    released: bool = False
    shrunk: bool = False


class Outcome(Enum):
    """How the compare-and-swap of a change of voters ended."""

    DONE = "done"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class Why(Enum):
    """Why a leadership, or a candidacy, is over."""

    SUPERSEDED = "a voter promised a higher epoch"
    FENCED = "promised a higher epoch itself"
    ANOTHER_LEADS = "the record names another leader, or a higher epoch"
    RECORD_LOST = "the record was not as this leader knew it"
    GAVE_UP = "stepped down by itself"


class Leading(NamedTuple):
    """The EPOCH_START is committed. Apply up to it, then serve."""

    epoch: int


class SteppedDown(NamedTuple):
    """Neither leader nor candidate any more. `detail` is for the log."""

    epoch: int
    reason: Why
    detail: str = ""


class FenceFailed(NamedTuple):
    """Found no quorum in time, or can't fetch what `best` (else "") has. Release the record, let another try."""

    epoch: int
    best: NodeId = ""


class SnapshotWanted(NamedTuple):
    """What comes next for the peer is no entry of this log any more. Said again if it is still so after a while."""

    peer: NodeId


class CasWanted(NamedTuple):
    """The new voters are caught up: change the record, then say `reconfigured`."""

    epoch: int
    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...]


class Released(NamedTuple):
    """All that was proposed is committed, nothing more is taken. Change the record to `released`."""

    epoch: int


Event = Leading | SteppedDown | FenceFailed | SnapshotWanted | CasWanted | Released


@dataclass(slots=True)
class Output:
    """What is to be done. `mark` is that of the newest records there are, of this output or an earlier one."""

    mark: Mark = 0
    records: list[Record] = field(default_factory=list[Record])
    now: list[tuple[NodeId, Message]] = field(default_factory=list[tuple[NodeId, Message]])
    synced: list[tuple[NodeId, Message]] = field(default_factory=list[tuple[NodeId, Message]])
    committed: list[LogEntry] = field(default_factory=list[LogEntry])
    events: list[Event] = field(default_factory=list[Event])

    def __bool__(self) -> bool:
        return bool(self.records or self.now or self.synced or self.committed or self.events)


@dataclass(frozen=True, slots=True)
class ReplicaOptions:
    """Bounds in bytes and times in milliseconds.

    append_bytes_max     entries of one Append or Fetched, but for an entry that is longer by itself
    probe_bytes_max      entries of an Append whose place is only guessed
    window_bytes_max     sent to one peer and not acked
    tail_bytes_max       applied entries kept for peers that are a little behind
    snapshot_tail_bytes_max  the same while a peer takes a snapshot: what comes after it must still be there then
    retry_ms             an unanswered Fence or Fetch is sent again
    give_up_ms           a candidate without progress gives up
    probe_ms             an unanswered probe is sent again
    ack_ms               a peer that acks nothing of what was streamed for so long is probed
    refresh_ms           an idle peer is sent the commit index again
    snapshot_ms          a peer that takes a snapshot is probed after so long
    """

    append_bytes_max: int = MIB
    probe_bytes_max: int = 16 * KIB
    window_bytes_max: int = 4 * MIB
    tail_bytes_max: int = MIB
    snapshot_tail_bytes_max: int = 16 * MIB
    retry_ms: int = 100
    give_up_ms: int = 3_000
    probe_ms: int = 500
    ack_ms: int = 1_000
    refresh_ms: int = 5_000
    snapshot_ms: int = 30_000

    def __post_init__(self) -> None:
        """Hold the relations between the bounds."""
        assert 0 < self.probe_bytes_max <= self.append_bytes_max <= self.window_bytes_max
        assert 0 <= self.tail_bytes_max <= self.snapshot_tail_bytes_max
        assert 0 < self.retry_ms < self.give_up_ms


class Holding(Protocol):
    """What a replica asks of `lease.Holds`."""

    def wait_ms(self, shard: int, epoch: int, now_ms: int, *, released: bool) -> int:
        """How long a Fence for `epoch` has to wait; 0 if it may be granted. Leaders below it are not acked any more."""
        ...

    def promised(self, shard: int, epoch: int) -> None:
        """From now on no beat of a leader below `epoch` is acked for the shard."""
        ...
