"""Floor 3. The peers over gRPC: two links to each member, one listener, calls on connections of their own.

    A ──bulk───► B     Append, Acked, Fence …     one stream, one connection
    A ──beats──► B     Beat, BeatAcked            one stream, one connection: never behind megabytes
    A ──calls──► B     Forward                    made with the first call
    A ──copy───► B     Snapshot                   made for each, closed after it

    and the same from B to A. `connected` is the bulk link; the other one is its own matter.

Implements `Peers`. Must never import: the doors, `host`, `etcd*`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import grpc
import grpc.aio

from tickwheel.internal.v1 import peer_service_pb2 as pb
from tickwheel.server.cluster import peer_status
from tickwheel.server.cluster.peer_door import SERVICE, Door
from tickwheel.server.cluster.peer_hello import Identity, check_answer, make_hello
from tickwheel.server.cluster.peer_link import (
    BeatQueue,
    BulkQueue,
    Counters,
    Link,
    backoff_s,
)
from tickwheel.server.cluster.peer_options import PeerOptions, dial
from tickwheel.server.cluster.peer_port import Member, Owner, Verify
from tickwheel.server.cluster.snapshots import Download, fetch
from tickwheel.server.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TickwheelError,
    Unavailable,
)
from tickwheel.server.message import Beat, BeatAcked, Message, NodeId

FORWARD: Final = f"/{SERVICE}/Forward"
SNAPSHOT: Final = f"/{SERVICE}/Snapshot"

FETCH_IDLE_S: Final = 60.0
"""A snapshot may take a while to open; after so long without a byte the attempt is over."""

NEEDED_S: Final = 1.0
"""What a forwarded call waits, at most, for a connection."""


class GrpcPeers:
    """The traffic of one node with all others. Made within the loop; `start` opens the listener."""

    def __init__(self, me: Identity, owner: Owner, options: PeerOptions, rng: Random) -> None:
        self.counters = Counters()
        self._me = me
        self._owner = owner
        self._options = options
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._door = Door(me, owner, options, self.counters, lambda: self._session)
        self._session = 0
        self._stream = 0
        self._members: dict[NodeId, Member] = {}
        self._peers: dict[NodeId, _Peer] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> int:
        """Listen; returns the port. Raises OSError when the address can't be had."""
        return await self._door.start()

    # --- Peers ---

    def set_session(self, session: int) -> None:
        """Speak in the name of this session; reconnect."""
        assert session > self._session, f"session {session} comes after {self._session}"
        self._session = session
        members = self._members
        self._connect({})
        self._connect(members)

    def set_members(self, members: Mapping[NodeId, Member]) -> None:
        """Connect to these and to no others."""
        self._members = {
            node: Member(*member) for node, member in members.items() if node != self._me.store
        }
        for node, member in self._members.items():
            self._door.admission.observe(node, member.session)
        self._door.admission.forget_all_but(frozenset(self._members))
        if self._session:
            self._connect(self._members)

    def send(self, peer: NodeId, messages: Sequence[Message]) -> None:
        """Queue the messages, each on its lane."""
        known = self._peers.get(peer)
        if known is not None:
            known.send(messages)

    def connected(self, peer: NodeId) -> bool:
        """True while the bulk link stands."""
        known = self._peers.get(peer)
        return known is not None and known.bulk.up

    async def forward(
        self, peer: NodeId, method: str, request: bytes, timeout_s: float, *, hops: int = 0
    ) -> bytes:
        """Have a call carried out there."""
        if hops:
            raise Unavailable(
                "the shard moved while the call was on its way; repeat it",
                reason="FORWARDED_ONCE",
                retry_after_ms=100,
            )
        channel = self._peer(peer).calls()
        await _ready(channel, peer, min(timeout_s, NEEDED_S))
        asked = pb.ForwardRequest(
            hello=make_hello(self._me, peer, self._session), method=method, request=request, hops=1
        )
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(FORWARD)
        try:
            data = await call(asked.SerializeToString(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _turned_away(error, peer) or _unknown(_words(error, peer)) from None
        except asyncio.CancelledError:
            if _cancelled():
                raise
            raise _unknown(f"node {peer} left the cluster meanwhile") from None
        answer = pb.ForwardResponse.FromString(data)
        if answer.WhichOneof("result") != "response":
            raise peer_status.decode(answer.status)
        return answer.response

    async def fetch_snapshot(
        self, peer: NodeId, shard: int, directory: Path, verify: Verify | None = None
    ) -> bytes:
        """Copy a snapshot into the directory."""
        download = Download(directory, verify)
        return await fetch(
            download,
            lambda: self._fetch_on(peer, shard, download),
            lambda failures: backoff_s(failures, self._options, self._rng),
        )

    async def close(self) -> None:
        """End everything: links first, so that no frame leaves behind the owner's back."""
        self._closed = True
        self._members = {}
        self._connect({})
        await self._door.stop()
        if self._ending:
            await asyncio.wait(self._ending, timeout=self._options.stop_grace_s)

    # --- links ---

    def _connect(self, members: Mapping[NodeId, Member]) -> None:
        addresses = {node: member.address for node, member in members.items()}
        for node in [n for n, peer in self._peers.items() if addresses.get(n) != peer.address]:
            self._end(self._peers.pop(node).close())
        for node, address in addresses.items():
            if node not in self._peers:
                self._peers[node] = _Peer(self, node, address)

    def _end(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            self._ending.add(task)  # bounded: each is cancelled
            task.add_done_callback(self._ending.discard)

    def _peer(self, peer: NodeId) -> "_Peer":
        known = self._peers.get(peer)
        if known is None:
            raise Unavailable(
                f"node {peer} is not there", reason="PEER_UNREACHABLE", retry_after_ms=200
            )
        return known

    @property
    def grace_s(self) -> float:
        """How long calls under way may go on when their connection is to be closed."""
        return self._options.stop_grace_s

    def dial(self, address: str) -> grpc.aio.Channel:
        """A new connection."""
        return dial(address, self._options)

    def make_link(self, peer: "_Peer", lane: int) -> Link:
        """Begin a lane to a peer."""
        bulk = lane == pb.LANE_BULK
        queue = BulkQueue(self._options.queue_bytes_max) if bulk else BeatQueue()
        name = f"{peer.node} {peer.address} {'bulk' if bulk else 'beats'}"
        wiring = _LaneWiring(self, peer, lane)
        return Link(name, queue, wiring, self._options, self._rng, self.counters)

    def next_hello(self, peer: NodeId, lane: int) -> pb.Hello:
        """The hello of a new stream."""
        self._stream += 1
        return make_hello(self._me, peer, self._session, stream=self._stream, lane=lane)

    def check_answer(self, peer: NodeId, hello: pb.Hello) -> None:
        """Raise if it is not the peer that answered."""
        check_answer(self._me, peer, hello)

    def tell(self, peer: NodeId, *, up: bool) -> None:
        """Call the owner, in a turn of its own."""
        told = self._owner.on_connected if up else self._owner.on_disconnected
        self._loop.call_soon(self._tell, told, peer)

    def _tell(self, told: Callable[[NodeId], None], peer: NodeId) -> None:
        if not self._closed:
            told(peer)

    # --- snapshots ---

    async def _fetch_on(self, peer: NodeId, shard: int, download: Download) -> bytes:
        digest, number, offset = await download.where()
        request = pb.SnapshotRequest(
            hello=make_hello(self._me, peer, self._session), shard=shard,
            manifest_sha256=digest, file=number, offset=offset,
        )  # fmt: skip
        channel = self.dial(self._peer(peer).address)
        try:
            await _ready(channel, peer, self._options.connect_timeout_s)
            ask: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(SNAPSHOT)
            responses = _responses(ask(request.SerializeToString()), peer)
            return await download.take(responses)
        finally:
            await channel.close()


async def _responses(call: Any, peer: NodeId) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(FETCH_IDLE_S):
                data = await call.read()
        except grpc.aio.AioRpcError as error:
            raise _refusal(error, peer) or _broken(error, peer) from None
        except TimeoutError:
            raise Unavailable(f"node {peer} sends nothing", reason="PEER_SILENT") from None
        if data is grpc.aio.EOF:
            return
        yield data


class _Peer:
    """One member: its links, and the connection for calls."""

    def __init__(self, peers: GrpcPeers, node: NodeId, address: str) -> None:
        self.node = node
        self.address = address
        self._peers = peers
        self._calls: grpc.aio.Channel | None = None
        self.bulk = peers.make_link(self, pb.LANE_BULK)
        self.beats = peers.make_link(self, pb.LANE_BEATS)

    def send(self, messages: Sequence[Message]) -> None:
        """Part the beats from the rest."""
        beats = [m for m in messages if isinstance(m, Beat | BeatAcked)]
        if beats:
            self.beats.send(beats)
            messages = [m for m in messages if not isinstance(m, Beat | BeatAcked)]
        if messages:
            self.bulk.send(messages)

    def calls(self) -> grpc.aio.Channel:
        """The connection for forwarded calls, made when it is first needed."""
        if self._calls is None:
            self._calls = self._peers.dial(self.address)
        return self._calls

    def close(self) -> list[asyncio.Task[None]]:
        """End all; the tasks end soon."""
        tasks = [self.bulk.close(), self.beats.close()]
        if self._calls is not None:
            tasks.append(
                asyncio.get_running_loop().create_task(self._calls.close(self._peers.grace_s))
            )
        return tasks


class _LaneWiring:
    """What a link asks."""

    def __init__(self, peers: GrpcPeers, peer: _Peer, lane: int) -> None:
        self._peers, self._peer, self._lane = peers, peer, lane

    def dial(self) -> grpc.aio.Channel:
        """A new connection to the peer."""
        return self._peers.dial(self._peer.address)

    def hello(self) -> pb.Hello:
        """The hello of a new stream."""
        return self._peers.next_hello(self._peer.node, self._lane)

    def check(self, hello: pb.Hello) -> None:
        """Raise if it is not the peer that answered."""
        self._peers.check_answer(self._peer.node, hello)

    def changed(self, up: bool) -> None:
        """Of the bulk link the owner is told."""
        if self._lane == pb.LANE_BULK:
            self._peers.tell(self._peer.node, up=up)


async def _ready(channel: grpc.aio.Channel, peer: NodeId, timeout_s: float) -> None:
    """Wait for the connection before anything is sent: what fails here has surely not happened there."""
    try:
        if channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
            return
        async with asyncio.timeout(timeout_s):
            await channel.channel_ready()
    except (TimeoutError, grpc.aio.UsageError):
        raise Unavailable(
            f"node {peer} can't be reached", reason="PEER_UNREACHABLE", retry_after_ms=200
        ) from None


_REFUSED: Final[Mapping[grpc.StatusCode, type[TickwheelError]]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.INVALID_ARGUMENT: FailedPrecondition,
    grpc.StatusCode.UNIMPLEMENTED: FailedPrecondition,
}


def _refusal(error: grpc.aio.AioRpcError, peer: NodeId) -> TickwheelError | None:
    """The peer said no: nothing was done."""
    refused = _REFUSED.get(error.code())
    return None if refused is None else refused(_words(error, peer), reason="PEER_REFUSED")


def _turned_away(error: grpc.aio.AioRpcError, peer: NodeId) -> TickwheelError | None:
    """The peer did not take a client's call, for what this node is or was: the client may say it again, to whom it likes."""
    refusal = _refusal(error, peer)
    if not isinstance(refusal, FailedPrecondition | PermissionDenied | NotFound):
        return refusal
    return Unavailable(
        f"{refusal.message}; nothing was done, repeat it",
        reason="PEER_REFUSED",
        retry_after_ms=200,
    )


def _broken(error: grpc.aio.AioRpcError, peer: NodeId) -> Unavailable:
    return Unavailable(_words(error, peer), reason="PEER_UNREACHABLE")


def _unknown(words: str) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"{words}; whether it was done is unknown: repeat it with the same request_id",
        reason="FORWARD_OUTCOME_UNKNOWN",
    )


def _cancelled() -> bool:
    """True when it is this task that shall end, and not a connection that was closed below it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _words(error: grpc.aio.AioRpcError, peer: NodeId) -> str:
    return f"node {peer}: {error.details()}"[:500]
