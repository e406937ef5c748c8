"""What the model is made of: immutable values, so that a state can be hashed, kept and compared.

One shard. Nodes are single letters; a set of voters is a sorted string ("ABC"). Indexes count from 1: `log[i - 1]` is
the entry at index i. Times are ticks left (of a lease, of a hold-off), never absolute, so that the state space of a
small scope is finite.

    State
     ├ nodes[i]   Node: disk (synced), mem (what the process believes), hold-off, Lead (if it leads or wants to)
     ├ live[i]    does etcd hold a session of this node?
     ├ rec        the shard's record in etcd          ├ txns   transactions that etcd may still carry out
     ├ msgs       messages that may still arrive       ├ budget how often each fault may still happen
     └ ghost      what an all-seeing observer remembers: no rule of the protocol may read it
"""

from typing import NamedTuple

NOBODY = -1


class Entry(NamedTuple):
    """One entry of the log. Kinds: n EPOCH_START, w a write, c the cancel of the job, s START of the at-most-once job."""

    epoch: int
    kind: str
    by: str


Log = tuple[Entry, ...]


class Disk(NamedTuple):
    """A journal: the highest promise, the log, and the index up to which a snapshot has replaced it."""

    promise: int = 1
    log: Log = ()
    base: int = 0


class Msg(NamedTuple):
    """A message in flight; the fields that its kind does not need are 0.

    kind     index            last              also
    append   previous index   previous epoch    entries, commit, life (the receiver's, as the leader knows it)
    ack      match            -                 life (the sender's)
    snap     its index        -                 entries = the state, commit
    fence    released epoch   -
    promise  last index       last epoch
    beat     -                -                 age, ticks since it was SENT, on the leader's clock
    heard    -                -                 age of the beat it answers, life
    """

    kind: str
    src: str
    dst: str
    epoch: int
    idx: int = 0
    last: int = 0
    entries: Log = ()
    commit: int = 0
    life: int = 0
    age: int = 0


class Lead(NamedTuple):
    """What a candidate or leader keeps in memory, lost with its process. Tuples by node are in the nodes' order."""

    epoch: int
    cfg: str
    rev: int
    match: tuple[int, ...]
    left: tuple[int, ...]
    lives: tuple[int, ...]
    waived: int = (
        NOBODY  # the epoch whose leader released itself: its hold-off need not be waited for
    )
    got: tuple[tuple[str, int, int], ...] = ()  # promises: who, last epoch, last index
    leading: bool = False  # fenced and adopted; serves once `noop` is committed
    want: str = ""  # the other configuration while joint
    unknown: bool = False  # a CAS of it was sent and not answered
    commit: int = 0
    noop: int = 0
    sent: bool = False  # the at-most-once request has left this process
    armed: bool = False  # only when the rule "check right before the send" is broken


class Node(NamedTuple):
    """A store and the process on it."""

    disk: Disk = Disk()
    mem: Disk = Disk()
    owed: tuple[Msg, ...] = ()  # answers that wait for the fsync
    commit: int = 0
    hold: int = 0  # ticks for which it grants no fence
    hold_epoch: int = (
        NOBODY  # the leader that the hold-off protects; NOBODY after a start: it may be any
    )
    fast: bool = False  # its clock is one tick ahead of its share
    life: int = 0  # number of its process
    mute: bool = (
        False  # lost its log: grants no fence until the leader has re-seeded this very life
    )
    dead: bool = False
    mine: bool = True  # the process owns the session that etcd holds, if it holds one
    led: int = 0  # highest epoch that this process began to lead
    lead: Lead | None = None


class Record(NamedTuple):
    """The shard's record. `held`: the session that the leader had when it took over still exists."""

    epoch: int
    leader: str
    held: bool
    released: bool
    voters: str
    rev: int
    before: str = ""  # the voters before the last change; only one mutation looks at it


class Txn(NamedTuple):
    """A compare-and-swap on its way to etcd."""

    kind: str  # take, config, release
    by: str
    rev: int
    epoch: int
    voters: str


class Ghost(NamedTuple):
    """The observer's memory."""

    committed: Log = ()
    by_epoch: tuple[
        tuple[int, int], ...
    ] = ()  # (epoch, longest prefix that its leader called committed)
    led: tuple[tuple[int, str, int], ...] = ()  # (epoch, node, life)
    fired: int = 0  # the highest epoch that a request carried
    once: int = 0  # at-most-once requests sent


class Budget(NamedTuple):
    """How often what may go wrong, or costs states, may still happen."""

    crash: int = 99
    revoke: int = 99
    wipe: int = 0
    lose: int = 0  # logs lost to rot, re-seeded under the same name
    reconfig: int = 99
    release: int = 99
    late: int = 99
    skew: int = 99
    snap: int = 99
    once: int = 1


class State(NamedTuple):
    """The whole world."""

    nodes: tuple[Node, ...]
    live: tuple[bool, ...]
    rec: Record
    ghost: Ghost
    budget: Budget
    txns: tuple[Txn, ...] = ()
    msgs: tuple[Msg, ...] = ()


class Breach(Exception):
    """An invariant does not hold; the first word names it."""

    def __init__(self, name: str, text: str) -> None:
        """Name the invariant and say what was seen."""
        super().__init__(f"{name}: {text}")
        self.name = name


def quorum(voters: str) -> int:
    """Qc: how many voters commit. 1 of 1, 2 of 2, 2 of 3, 3 of 5."""
    return len(voters) // 2 + 1


def fence_quorum(voters: str) -> int:
    """Qf: how many voters a candidate fences; any Qc meets any Qf."""
    return len(voters) - quorum(voters) + 1


def at(names: str, name: str) -> int:
    """The place of a node in the tuples; nodes are A, B, C... in order."""
    place = ord(name) - 65
    assert names[place] == name
    return place


def epoch_at(log: Log, index: int) -> int:
    """The epoch of the entry at `index`; 0 before the first."""
    return log[index - 1].epoch if index else 0


def put(values: tuple[int, ...], place: int, value: int) -> tuple[int, ...]:
    """The tuple with one value changed."""
    return (*values[:place], value, *values[place + 1 :])
