"""Floor 3. What carries messages between nodes, in plain values: so that a simulated network can take its place.

    Peers     to the other nodes: messages of the log, a snapshot of a shard, a forwarded call
    Owner     what comes from them: who carries messages calls these

Messages to a peer arrive in the order in which they were sent, without a gap, as long as one connection lasts; beats
go another way and overtake. What was under way when a connection ends is lost or not, and nobody says which. What is
sent while there is none is dropped: the replicas probe again when `on_connected` says so.

Must never import: gRPC, protobuf, another room of the cluster; no I/O.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from tickwheel.server.message import Message, NodeId

MANIFEST = "manifest.json"
"""The file that a fetched snapshot has when, and only when, it is complete."""


class Member(NamedTuple):
    """Another node: where it listens (`host:port`), and the session that is known of it."""

    address: str
    session: int


class Forwarded(NamedTuple):
    """A call that another node asks this one to carry out. It is not forwarded again."""

    sender: NodeId
    method: str
    request: bytes
    timeout_s: float


class SnapshotFile(NamedTuple):
    """One file of a snapshot. `sha256` in hexadecimal."""

    name: str
    bytes: int
    sha256: str


class SnapshotFiles(Protocol):
    """A snapshot that is being read by a peer; it does not change until it is closed."""

    @property
    def manifest(self) -> bytes:
        """What the store says of it, in its own words, at most 1 MiB. Another manifest is another snapshot."""
        ...

    @property
    def files(self) -> Sequence[SnapshotFile]:
        """Its files, in the order in which they are sent. Bare names."""
        ...

    async def read(self, number: int, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes of a file. Raises OSError."""
        ...

    def close(self) -> None:
        """The peer has it, or went away."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who is told what happens. None of these is ever called from within a call of the port.

    `on_messages` gets the sender, its session, and messages in order; it must not raise. `on_connected` says that what
    is sent from now on travels to that peer, `on_disconnected` that it is dropped; they take turns. `on_forward` answers
    with the response or raises a TickwheelError; `open_snapshot` may take a while, and raises one if it can't.
    """

    on_messages: Callable[[NodeId, int, list[Message]], None]
    on_connected: Callable[[NodeId], None]
    on_disconnected: Callable[[NodeId], None]
    on_forward: Callable[[Forwarded], Awaitable[bytes]]
    open_snapshot: Callable[[int], Awaitable[SnapshotFiles]]


Verify = Callable[[Path, SnapshotFile], Awaitable[None]]
"""Called for each file of a snapshot, whole and with the right digest, before it gets its name. Raises to refuse it."""


class Peers(Protocol):
    """The other nodes. All methods belong to the loop's thread."""

    def set_session(self, session: int) -> None:
        """Speak in the name of this session from now on: what went out for an earlier one ends, and reconnects.

        Sessions only grow. Before the first one, nothing connects.
        """
        ...

    def set_members(self, members: Mapping[NodeId, Member]) -> None:
        """Connect to these and to no others; a new address reconnects. This node itself may be among them.

        From a member, nothing is taken any more that is of an older session than the one given here; what it is sent
        goes on, since a process that was replaced has broken its connections.
        """
        ...

    def send(self, peer: NodeId, messages: Sequence[Message]) -> None:
        """Hand messages over; never blocks. Those of one turn of the loop travel together.

        Of beats, and of their acks, only the newest one waits. When a peer takes the others so slowly that too many
        bytes wait for it, its connection is reset, and they are lost. A peer that is not connected gets nothing.
        """
        ...

    def connected(self, peer: NodeId) -> bool:
        """True between `on_connected` and `on_disconnected`, or a little earlier."""
        ...

    async def forward(
        self, peer: NodeId, method: str, request: bytes, timeout_s: float, *, hops: int = 0
    ) -> bytes:
        """Have a call carried out there, and return the response, or raise the error that it ended with.

        `hops` is how often the call was forwarded already: more than 0 is refused. Raises Unavailable if the peer was
        not reached: nothing was done. Raises DeadlineExceeded if the answer did not come: the outcome is unknown.
        """
        ...

    async def fetch_snapshot(
        self, peer: NodeId, shard: int, directory: Path, verify: Verify | None = None
    ) -> bytes:
        """Copy a snapshot of the shard into the directory, durably, and return its manifest.

        Goes on where an earlier call into the same directory was broken off, and reconnects as long as it gets on.
        `manifest.json` appears last. Raises Unavailable if the peer can't be reached, the error with which it refuses,
        FailedPrecondition if what came is not what the digests say, what `verify` raises, OSError.
        """
        ...

    async def close(self) -> None:
        """End every connection, in bounded time; nobody is called back any more."""
        ...
