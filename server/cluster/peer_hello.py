"""Floor 3. Who speaks to whom: the hello of every stream and call, and what is refused.

    A ──hello {cluster, A, B, session 7, stream 3}──► B      B's own uuid? the cluster? session 7 the newest of A?
    A ◄──hello {cluster, B, A, ...}────────────────── B      or the refusal, with its reason

An address is reused by another store, a former life of a node still has a connection open, a machine is moved to
another cluster: each of them is told why, and nothing of it reaches the log.

Must never import: gRPC, another room of the cluster; no I/O.
"""

from typing import Final, NamedTuple

from tickwheel.internal.v1 import peer_service_pb2 as pb
from tickwheel.server.errors import FailedPrecondition, ResourceExhausted
from tickwheel.server.message import NodeId

SENDERS_MAX: Final = 1_024
"""Stores whose sessions are remembered."""

_UUID_BYTES: Final = 16


class Identity(NamedTuple):
    """Whose messages these are: the cluster, as 32 hexadecimal digits, and the store."""

    cluster: str
    store: NodeId


class Caller(NamedTuple):
    """Who opened a stream or a call."""

    sender: NodeId
    session: int
    stream: int
    lane: int


def make_hello(
    me: Identity, receiver: NodeId, session: int, *, stream: int = 0, lane: int = 0
) -> pb.Hello:
    """What this node says first."""
    return pb.Hello(
        cluster=bytes.fromhex(me.cluster),
        sender=bytes.fromhex(me.store),
        receiver=bytes.fromhex(receiver),
        session=session,
        stream=stream,
        lane=pb.Lane.ValueType(lane),
    )


def check_answer(me: Identity, peer: NodeId, hello: pb.Hello) -> None:
    """The one who answers is the one who was meant. Raises FailedPrecondition."""
    if hello.cluster.hex() != me.cluster or hello.sender.hex() != peer:
        raise _wrong_store(hello.sender.hex(), peer)


class Admission:
    """Remembers the newest session of each store, and its newest stream a lane."""

    def __init__(self, me: Identity) -> None:
        self._me = me
        self._sessions: dict[NodeId, int] = {}
        self._streams: dict[tuple[NodeId, int], Caller] = {}

    def observe(self, sender: NodeId, session: int) -> None:
        """Take nothing any more of what that store sent before this session."""
        if session > self._sessions.get(sender, -1):
            self._sessions[sender] = session

    def forget_all_but(self, senders: frozenset[NodeId]) -> None:
        """Keep memory bounded: stores that are no members, and have no stream, are strangers again."""
        kept = senders | {sender for sender, _ in self._streams}
        self._sessions = {s: n for s, n in self._sessions.items() if s in kept}

    def identify(self, hello: pb.Hello) -> Caller:
        """Say who calls. Raises FailedPrecondition for a wrong cluster, a wrong store, a former session."""
        if len(hello.sender) != _UUID_BYTES:
            raise FailedPrecondition("the first frame is no hello", reason="HELLO_MISSING")
        if hello.cluster.hex() != self._me.cluster:
            raise FailedPrecondition(
                f"this is cluster {self._me.cluster}, not {hello.cluster.hex()}",
                reason="WRONG_CLUSTER",
            )
        if hello.receiver.hex() != self._me.store:
            raise _wrong_store(self._me.store, hello.receiver.hex())
        caller = Caller(hello.sender.hex(), hello.session, hello.stream, hello.lane)
        newest = self._sessions.get(caller.sender)
        if newest is None and len(self._sessions) >= SENDERS_MAX:
            raise ResourceExhausted(f"{SENDERS_MAX} stores have called", reason="SENDERS_MAX")
        if newest is not None and caller.session < newest:
            raise _stale(caller, newest)
        self._sessions[caller.sender] = caller.session
        return caller

    def open(self, caller: Caller) -> None:
        """A stream begins, and an earlier one of its lane is over. Raises FailedPrecondition if it is the earlier one."""
        key = caller.sender, caller.lane
        before = self._streams.get(key)
        if before is not None and (before.session, before.stream) >= (
            caller.session,
            caller.stream,
        ):
            raise _stale(caller, before.session)
        self._streams[key] = caller

    def check_current(self, caller: Caller) -> None:
        """What comes on the stream still counts. Raises FailedPrecondition."""
        newest = self._sessions.get(caller.sender, caller.session)
        if self._streams.get((caller.sender, caller.lane)) is not caller or caller.session < newest:
            raise _stale(caller, newest)

    def closed(self, caller: Caller) -> None:
        """The stream ended."""
        key = caller.sender, caller.lane
        if self._streams.get(key) is caller:
            del self._streams[key]


def _wrong_store(here: str, meant: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"store {here} is at this address, not {meant}; the address was given to another node",
        reason="WRONG_STORE",
    )


def _stale(caller: Caller, newest: int) -> FailedPrecondition:
    return FailedPrecondition(
        f"session {caller.session}, stream {caller.stream} of {caller.sender} is over: "
        f"there is session {newest}, or a later stream",
        reason="STALE_SESSION",
    )
