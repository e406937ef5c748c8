"""Floor 3. A session's life as a pure program: it says what to do next, and is told what came of it.

    revoke what is remembered ─► healthy? ─► save a fresh id ─► grant ─► register ─► Gained
          ▲                                                       │ ?                  │
          ╰────────────── Lost ◄── etcd says: gone ◄── renew, ────┼────── renew, ──────╯
          ╰───────────────────────────────────────────────────────╯

Each turn of `run()` yields an ask and is sent the reply; threads, sockets and the simulation are drivers of it. What is
not answered may have happened, or may happen late, and must do no harm then:

    grant      each id is granted once. Not answered: it is revoked, and another id is drawn. (Asked for again, the
               first one could come late, after the lease has ended, and make a lease without the key: it would be
               renewed for ever, and everybody else take us for dead)
    register   puts the key only where there is none, and on a lease that lives: late, it is refused
    revoke     of an id that is never used again

Two things are not the same. The *deadline* is what etcd granted, counted from when the request left, and may pass while
etcd can't be reached or the node is unwell. The session is *lost* when etcd says that the lease is gone. In between the
same lease is tried again: after an outage etcd extends its leases, and nobody had to move.

A key of ours that hangs on a lease we never saved is a stranger's with our name (a copied data directory). It is left
to live and to expire; we say so, and wait.

Must never import: gRPC, protobuf, the clock, threads.
"""

from collections.abc import Callable, Generator
from enum import Enum
from typing import NamedTuple

from tickwheel.server.cluster.ports import Held, Item, Registration

RETRY_MS = 100
"""Between two tries of what failed, and between two looks at the node's health."""


class Fault(Enum):
    """What stood against an ask."""

    NONE = "done"
    FAILED = "no answer, or none that helps: ask again"
    LEASE_GONE = "the lease does not exist"


class Reply(NamedTuple):
    """What came of an ask: when it left and when this is (boot time), and what it asked for."""

    sent_ms: int
    now_ms: int
    ttl_s: int = 0
    item: Item | None = None
    fault: Fault = Fault.NONE


class Revoke(NamedTuple):
    """End a lease; done also if there is none."""

    lease: int


class Save(NamedTuple):
    """Make the id durable."""

    lease: int


class Grant(NamedTuple):
    """Make a lease of this id. The reply's `ttl_s`."""

    lease: int
    ttl_s: int


class Register(NamedTuple):
    """Put the key on the lease if there is none. The reply's `item`: the key as it is then. LEASE_GONE."""

    key: str
    value: bytes
    lease: int


class Renew(NamedTuple):
    """Renew a lease once. The reply's `ttl_s`, 0 if it is gone."""

    lease: int


class Probe(NamedTuple):
    """Ask, without renewing, whether a lease lives. The reply's `ttl_s`, 0 if it is gone."""

    lease: int


class Pause(NamedTuple):
    """Let time pass."""

    ms: int


class Gained(NamedTuple):
    """Tell the loop."""

    held: Held


class Lost(NamedTuple):
    """Tell the loop."""

    held: Held


class Blocked(NamedTuple):
    """Tell the operator: another process is registered under our name."""

    item: Item


Ask = Revoke | Save | Grant | Register | Renew | Probe | Pause | Gained | Lost | Blocked
Steps = Generator[Ask, Reply, None]


class Life:
    """The program, and what it knows. `deadline_ms` and `lease` may be read from any thread."""

    __slots__ = ("_draw", "_healthy", "_registration", "_remembered", "deadline_ms", "lease")

    def __init__(
        self, registration: Registration, remembered: int, draw_lease: Callable[[], int]
    ) -> None:
        assert registration.ttl_s > 0, "a lease lives for a while"
        self._registration = registration
        self._healthy = registration.healthy
        self._remembered = remembered
        self._draw = draw_lease
        self.deadline_ms = 0
        self.lease = 0

    def run(self) -> Steps:
        """Never ends: whoever drives it stops asking, and revokes `lease`."""
        while True:
            yield from self._clear()
            held = yield from self._register()
            if held is None:
                continue
            yield Gained(held)
            yield from self._keep(held)
            self.deadline_ms = 0
            yield Lost(held)

    def _clear(self) -> Steps:
        """End the lease that may be left over, of this process or of the one before."""
        while self._remembered:
            reply = yield Revoke(self._remembered)
            if reply.fault == Fault.NONE:
                self._remembered = 0
            else:
                yield Pause(RETRY_MS)

    def _register(self) -> Generator[Ask, Reply, Held | None]:
        """A lease, and the key on it; None if there came no lease of it, or it ended before the key was there."""
        yield from self._well()
        self.lease = self._remembered = self._draw()
        yield from self._until_done(Save(self.lease))
        registration = self._registration
        granted = yield Grant(self.lease, registration.ttl_s)
        if granted.fault != Fault.NONE or granted.ttl_s <= 0:
            yield Pause(RETRY_MS)
            return None
        self._extend(granted)
        while True:
            yield from self._well()
            reply = yield Register(registration.key, registration.value, self.lease)
            if reply.fault == Fault.LEASE_GONE:
                return None
            if reply.fault != Fault.NONE:
                yield Pause(RETRY_MS)
                continue
            assert reply.item is not None, "a key that was put is there"
            if reply.item.lease == self.lease:
                return Held(self.lease, reply.item.create_revision, granted.ttl_s * 1_000)
            yield Blocked(reply.item)
            yield Pause(granted.ttl_s * 1_000 // 3)

    def _keep(self, held: Held) -> Steps:
        """Renew each third of the time to live, until etcd says that the lease is gone."""
        third_ms = held.ttl_ms // 3
        next_ms = self.deadline_ms - held.ttl_ms + third_ms
        now_ms = (yield Pause(0)).now_ms
        while True:
            now_ms = (yield Pause(max(next_ms - now_ms, 0))).now_ms
            well = self._healthy()
            if not well and now_ms < self.deadline_ms:
                next_ms = now_ms + RETRY_MS
                continue
            reply = yield Renew(held.lease) if well else Probe(held.lease)
            now_ms = reply.now_ms
            if reply.fault != Fault.NONE:
                next_ms = now_ms + RETRY_MS
                continue
            if reply.ttl_s <= 0:
                self._remembered = 0
                return
            if well:
                self._extend(reply)
            next_ms = reply.sent_ms + third_ms

    def _extend(self, reply: Reply) -> None:
        """Count from when the request left: the answer may have been under way for as long as it likes."""
        self.deadline_ms = max(self.deadline_ms, reply.sent_ms + reply.ttl_s * 1_000)

    def _well(self) -> Steps:
        while not self._healthy():
            yield Pause(RETRY_MS)

    @staticmethod
    def _until_done(ask: Ask) -> Steps:
        while (yield ask).fault != Fault.NONE:
            yield Pause(RETRY_MS)
