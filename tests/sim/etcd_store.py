"""What etcd keeps, in memory: revisions, history, transactions, leases. Pure: the time is an argument.

revision   1        2          3           4
events              a put      b, c put    a deleted
compact(3) forgets the history before 3; what is there stays
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tickwheel.server.cluster.etcd_wire import check
from tickwheel.server.cluster.ports import (
    Change,
    Compare,
    Done,
    Event,
    Found,
    Item,
    LeaseGone,
    Listing,
    Put,
    Refused,
    Relation,
    Target,
)
from tickwheel.server.errors import FailedPrecondition

LEASE_TTL_MIN_S = 2
"""As a real one with its default election time-out."""
SCAN_S = 0.5
"""How long a lease may live on after its end."""
_ABSENT = Item("", b"", 0, 0, 0, 0)


@dataclass
class SimLease:
    """A lease, and when it ends unless it is renewed."""

    ttl_s: int
    ends_s: float


class EtcdStore:
    """One store with all its history since the last compaction."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self.revision = 1
        self.compacted = 0
        self.leases: dict[int, SimLease] = {}
        self._events: list[Event] = []

    # --- reading ---

    def get(self, key: str) -> Found | None:
        """One key as of now."""
        item = self.items.get(key)
        return item and Found(item, self.revision)

    def list(self, prefix: str) -> Listing:
        """All keys that begin so."""
        found = (self.items[key] for key in sorted(self.items) if key.startswith(prefix))
        return Listing(tuple(found), self.revision)

    def events(self, prefix: str, revision: int) -> tuple[Event, ...] | None:
        """What happened from a revision on; None if that is compacted."""
        if revision < self.compacted:
            return None
        return tuple(
            event
            for event in self._events
            if event.revision >= revision and event.key.startswith(prefix)
        )

    # --- writing ---

    def transact(self, compares: Sequence[Compare], then: Sequence[Change]) -> Done | Refused:
        """All changes at one revision, or none."""
        check(compares, then)
        keys = dict.fromkeys(compare.key for compare in compares)
        if not all(self._holds(compare) for compare in compares):
            found = (self.items[key] for key in keys if key in self.items)
            return Refused(tuple(found), self.revision)
        if any(isinstance(c, Put) and c.lease and c.lease not in self.leases for c in then):
            raise LeaseGone("requested lease not found")
        self._change(then)
        return Done(self.revision)

    def _holds(self, compare: Compare) -> bool:
        item = self.items.get(compare.key)
        if item is None and compare.target == Target.VALUE:
            return False
        found = getattr(item or _ABSENT, compare.target.name.lower())
        match compare.relation:
            case Relation.EQUAL:
                return bool(found == compare.operand)
            case Relation.NOT_EQUAL:
                return bool(found != compare.operand)
            case Relation.GREATER:
                return bool(found > compare.operand)
            case Relation.LESS:
                return bool(found < compare.operand)

    def _change(self, then: Sequence[Change]) -> None:
        changes = [c for c in then if isinstance(c, Put) or c.key in self.items]
        if not changes:
            return
        self.revision += 1
        for change in changes:
            if isinstance(change, Put):
                self._put(change)
            else:
                del self.items[change.key]
                self._events.append(Event(change.key, None, self.revision))

    def _put(self, put: Put) -> None:
        old = self.items.get(put.key)
        created, version = (old.create_revision, old.version) if old else (self.revision, 0)
        item = Item(put.key, put.value, created, self.revision, version + 1, put.lease)
        self.items[put.key] = item
        self._events.append(Event(put.key, item, self.revision))

    def compact(self, revision: int) -> None:
        """Forget what happened before a revision."""
        assert self.compacted < revision <= self.revision, "what is there, and once"
        self.compacted = revision
        self._events = [event for event in self._events if event.revision >= revision]

    # --- leases ---

    def grant(self, ttl_s: int, lease: int, now_s: float) -> int:
        """Make a lease; the seconds that it got."""
        if lease in self.leases:
            raise FailedPrecondition("lease already exists")
        granted_s = max(ttl_s, LEASE_TTL_MIN_S)
        self.leases[lease] = SimLease(granted_s, now_s + granted_s)
        return granted_s

    def renew(self, lease: int, now_s: float) -> int:
        """Live on for the whole time again; the seconds, 0 if there is none."""
        found = self.leases.get(lease)
        if found is None:
            return 0
        found.ends_s = now_s + found.ttl_s
        return found.ttl_s

    def extend_all(self, now_s: float) -> None:
        """What a new leader of etcd does: it can't know what the old one heard."""
        for lease in self.leases.values():
            lease.ends_s = max(lease.ends_s, now_s + lease.ttl_s)

    def revoke(self, lease: int) -> bool:
        """End it and delete its keys; False if there is none."""
        if self.leases.pop(lease, None) is None:
            return False
        keys = sorted(key for key, item in self.items.items() if item.lease == lease)
        if keys:
            self.revision += 1
        for key in keys:
            del self.items[key]
            self._events.append(Event(key, None, self.revision))
        return True

    def expire(self, now_s: float, rng: Random) -> bool:
        """End some of the leases whose time is over, all of them after another half second; whether any ended."""
        over = [
            lease
            for lease, found in self.leases.items()
            if now_s >= found.ends_s + SCAN_S or (now_s >= found.ends_s and rng.random() < 0.5)
        ]
        return [self.revoke(lease) for lease in over] != []
