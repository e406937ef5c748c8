"""Floor 3. What the cluster needs of etcd, in plain values: so that a simulated one can take its place.

    Etcd      get, list, transact, grant, revoke, watch; session() registers this node and keeps it alive
    Session   the lease of this node, kept by a thread of its own

Keys are text below a prefix that the implementation puts before them (`/tickwheel/<cluster>/`), values are bytes.
Every call ends within the implementation's deadline. What a failed call left behind is told by its error:

    Unavailable       it surely did not happen (reads: there is no answer); call again
    OutcomeUnknown    it may have happened, or may yet: read before deciding anything. Nothing repeats it by itself
    LeaseGone         refused: the lease does not exist (any more)
    ResourceExhausted, InvalidArgument, Unauthenticated, PermissionDenied       refused: nothing happened

A watch and a session are hints: fast, and now and then wrong. The truth is a transaction. A compare-and-swap:

    record = await etcd.get("shards/7")
    done = await etcd.transact(
        [revision_is(record.item), created_is("nodes/me", held.create_revision), created_is_not("nodes/old", 41)],
        [Put("shards/7", value)],
    )

Must never import: gRPC, protobuf, another room of the cluster; no I/O.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

from tickwheel.server.errors import DeadlineExceeded, FailedPrecondition

# --- what is stored --------------------------------------------------------------------------


class Item(NamedTuple):
    """A key with its value. `version` counts the puts since it was created; `lease` is 0 for none."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class Found(NamedTuple):
    """A key as it was at `revision` of the whole store."""

    item: Item
    revision: int


class Listing(NamedTuple):
    """All keys below a prefix in order, as they were together at `revision`: watch from `revision + 1`."""

    items: tuple[Item, ...]
    revision: int


# --- transactions ----------------------------------------------------------------------------


class Target(IntEnum):
    """What of a key is compared. A key that is absent has revision, version and lease 0."""

    VERSION = 0
    CREATE_REVISION = 1
    MOD_REVISION = 2
    VALUE = 3
    LEASE = 4


class Relation(IntEnum):
    """How what is found must relate to the operand."""

    EQUAL = 0
    GREATER = 1
    LESS = 2
    NOT_EQUAL = 3


class Compare(NamedTuple):
    """One condition of a transaction. Of an absent key a VALUE comparison never holds, as in etcd."""

    key: str
    target: Target
    relation: Relation
    operand: int | bytes


def absent(key: str) -> Compare:
    """Hold when there is no such key."""
    return Compare(key, Target.CREATE_REVISION, Relation.EQUAL, 0)


def revision_is(item: Item) -> Compare:
    """Hold when nobody wrote the key since it was read."""
    return Compare(item.key, Target.MOD_REVISION, Relation.EQUAL, item.mod_revision)


def created_is(key: str, create_revision: int) -> Compare:
    """Hold when the key is there, of this creation (a session that goes on); 0: when it is absent."""
    return Compare(key, Target.CREATE_REVISION, Relation.EQUAL, create_revision)


def created_is_not(key: str, create_revision: int) -> Compare:
    """Hold when the key is gone or of another creation (a session that has ended); 0: when it is there."""
    return Compare(key, Target.CREATE_REVISION, Relation.NOT_EQUAL, create_revision)


def version_is(key: str, version: int) -> Compare:
    """Hold when the key was put so many times since it was created; 0: when it is absent."""
    return Compare(key, Target.VERSION, Relation.EQUAL, version)


def value_is(key: str, value: bytes) -> Compare:
    """Hold when the key is there with exactly this value."""
    return Compare(key, Target.VALUE, Relation.EQUAL, value)


class Put(NamedTuple):
    """Set a key; `lease` 0 keeps it for ever, and takes it off the lease it was on."""

    key: str
    value: bytes
    lease: int = 0


class Delete(NamedTuple):
    """Remove a key; nothing happens if it is absent."""

    key: str


Change = Put | Delete


class Done(NamedTuple):
    """Every comparison held, every change was made, at `revision` (of a transaction without changes: the current)."""

    revision: int


class Refused(NamedTuple):
    """A comparison did not hold, nothing changed. `items`: those of the compared keys that exist, at `revision`."""

    items: tuple[Item, ...]
    revision: int

    def find(self, key: str) -> Item | None:
        """Return a compared key as it is, None if it is absent."""
        return next((item for item in self.items if item.key == key), None)


# --- watches ---------------------------------------------------------------------------------


class Event(NamedTuple):
    """A key was put (`item`) or deleted, or its lease ended (None), at `revision`."""

    key: str
    item: Item | None
    revision: int


class Batch(NamedTuple):
    """What happened up to `revision`, in order; never a part of a revision, never empty."""

    events: tuple[Event, ...]
    revision: int


class Reset(NamedTuple):
    """The history in between is lost (compacted), or was not asked for: forget what was known, this is all there is."""

    listing: Listing


# --- leases ----------------------------------------------------------------------------------


class Lease(NamedTuple):
    """A lease as granted: `ttl_s` may be more than was asked for."""

    id: int
    ttl_s: int


class Held(NamedTuple):
    """One life of a session: its key exists with this `create_revision` as long as the lease lives."""

    lease: int
    create_revision: int
    ttl_ms: int


class LeaseMemory(Protocol):
    """Where the lease id outlives the process. Called in the session's thread; may raise OSError."""

    def load(self) -> int:
        """Return the id that was saved last, 0 if there is none."""
        ...

    def save(self, lease: int) -> None:
        """Make it durable, then return."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """Who registers: `key` (`nodes/<store_uuid>`) is put with `value` on a lease of `ttl_s` seconds.

    `healthy` is asked before each renewal, in the session's thread: quick, without locks. While it says False the
    lease is not renewed, and no new one is taken. `on_held` and `on_lost` are called in the loop's thread, in turn.

    Whoever registers holds the flock of the data directory that `memory` lies in: the lease found there is of a dead
    predecessor, and is revoked first.
    """

    key: str
    value: bytes
    ttl_s: int
    healthy: Callable[[], bool]
    on_held: Callable[[Held], None]
    on_lost: Callable[[Held], None]
    memory: LeaseMemory


class Session(Protocol):
    """This node in etcd: registered, kept alive, and registered afresh (new lease, new create revision) after a loss."""

    @property
    def held(self) -> Held | None:
        """The life that the loop was told of last; None before the first and after a loss."""
        ...

    @property
    def deadline_ms(self) -> int:
        """Boot time until which etcd granted the lease, counted from when the request left; 0 if none is held.

        Any thread may ask; it is ahead of `on_lost`, which waits for the loop.
        """
        ...

    async def close(self) -> None:
        """Stop renewing and revoke at once, as far as etcd can be reached; `on_lost` is not called for it."""
        ...


# --- the port --------------------------------------------------------------------------------


class Etcd(Protocol):
    """An etcd cluster, below one prefix."""

    async def get(self, key: str) -> Found | None:
        """Return what any earlier answered write left (linearizable), None if absent. Raises Unavailable."""
        ...

    async def list(self, prefix: str) -> Listing:
        """Return every key that begins so, in pages but of one revision (linearizable). Raises Unavailable."""
        ...

    async def transact(self, compares: Sequence[Compare], then: Sequence[Change]) -> Done | Refused:
        """Make all changes if every comparison holds, else none. Each key is changed at most once.

        Raises OutcomeUnknown, Unavailable, LeaseGone, InvalidArgument, ResourceExhausted.
        """
        ...

    async def grant(self, ttl_s: int) -> Lease:
        """Make a lease. Raises OutcomeUnknown (then one that nobody knows runs out by itself), Unavailable."""
        ...

    async def revoke(self, lease: int) -> bool:
        """End a lease and delete its keys; False if it had ended. Safe to repeat. Raises OutcomeUnknown, Unavailable."""
        ...

    def watch(self, prefix: str, from_revision: int = 0) -> AsyncGenerator[Batch | Reset]:
        """Yield what happens below the prefix from a revision on, each event once and in order; never ends by itself.

        0 begins with a Reset of what is there now. After a lost connection it goes on where it was, by itself; when
        that history is compacted, a Reset says so. Use it under `contextlib.aclosing`. Raises PermissionDenied,
        Unauthenticated, InvalidArgument; never Unavailable.
        """
        ...

    def session(self, registration: Registration) -> Session:
        """Begin to register; goes on trying until closed. One per node; close it before the port."""
        ...

    async def close(self) -> None:
        """Drop every connection. Calls under way end with their error."""
        ...


# --- errors ----------------------------------------------------------------------------------


class OutcomeUnknown(DeadlineExceeded):
    """The request may have left, its answer did not come: it may have happened, or may yet."""

    default_reason = "ETCD_OUTCOME_UNKNOWN"


class LeaseGone(FailedPrecondition):
    """The lease of a put does not exist: it ended, or never was."""

    default_reason = "ETCD_LEASE_GONE"
