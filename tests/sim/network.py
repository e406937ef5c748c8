"""A network of simulated nodes: the port `Peers` on virtual time, with every delay and fault out of one seed.

    network = SimNetwork(Random(7), NetworkWeather())
    a = network.join("a:1", Identity(cluster, store_a), owner_a)      a process begins to listen
    a.set_session(1); a.set_members({store_b: Member("b:1", 2)})
    network.block("a:1", "b:1")                                       what a sends does not arrive: one way
    network.pause("b:1")                                              SIGSTOP
    a.crash()                                                         kill -9: nobody is told but by the network

It behaves as TCP does below gRPC: in order within a connection, reordered between connections, nothing lost but with
the connection. `loss` is the chance that a frame takes its connection down with it. A path that is closed holds what is
sent, up to a window; after `keepalive_s` whoever waits for the other end gives the connection up. Who is let in is
decided by the same `Admission` as in a real node, and what waits is held in the same queues.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ParamSpec, TypeVar

from tests.sim.connection import Connection

from tickwheel.internal.v1 import peer_service_pb2 as pb
from tickwheel.server.cluster import wire
from tickwheel.server.cluster.peer_hello import Admission, Caller, Identity, make_hello
from tickwheel.server.cluster.peer_link import BeatQueue, BulkQueue, Counters, backoff_s
from tickwheel.server.cluster.peer_options import PeerOptions
from tickwheel.server.cluster.peer_port import Forwarded, Member, Owner, Verify
from tickwheel.server.cluster.snapshots import Download, SnapshotSource, fetch
from tickwheel.server.errors import DeadlineExceeded, TickwheelError, Unavailable
from tickwheel.server.message import Beat, BeatAcked, Message, NodeId

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NetworkWeather:
    """How good the network is. Delays in seconds, each drawn between the two; `loss` is of 1, for each frame.

    `copy_s` is the longest that a piece of a snapshot is on its way besides, unless they `hurry`.
    """

    delay_s: tuple[float, float] = (0.000_2, 0.002)
    loss: float = 0.0
    keepalive_s: float = 6.0
    call_wait_s: float = 1.0
    copy_s: float = 0.0


class SimNetwork:
    """All processes that listen, and the paths between their addresses."""

    def __init__(
        self, rng: Random, weather: NetworkWeather, options: PeerOptions | None = None
    ) -> None:
        self.rng = rng
        self.weather = weather
        self.options = options or PeerOptions()
        self._processes: dict[str, SimPeers] = {}
        self._blocked: set[tuple[str, str]] = set()
        self._paused: set[str] = set()
        self.copies_are_slow = False
        self.context = copy_context()
        """What is under way belongs to nobody: it arrives though its sender has died (see `lives`)."""

    def join(self, address: str, me: Identity, owner: Owner) -> "SimPeers":
        """A process begins to listen at an address that is free."""
        assert address not in self._processes, f"{address} is in use"
        process = SimPeers(self, address, me, owner)
        self._processes[address] = process
        return process

    def leave(self, address: str) -> None:
        """It listens no more, and its connections end; who is cut off from it does not hear of that."""
        self._processes.pop(address, None)
        self._paused.discard(address)
        for lane in self._lanes():
            if address == lane.target and self.both_open(lane.source, lane.target):
                lane.break_later("the process ended")

    def at(self, address: str) -> "SimPeers | None":
        """Who listens there."""
        return self._processes.get(address)

    # --- faults ---

    def block(self, source: str, target: str) -> None:
        """What the one sends does not arrive at the other; the other way stays as it is."""
        self._blocked.add((source, target))
        self._changed()

    def unblock(self, source: str, target: str) -> None:
        """It arrives again, what was held back first."""
        self._blocked.discard((source, target))
        self._changed()

    def cut(self, one: str, other: str) -> None:
        """Reset the connections between both; they may be made again at once."""
        for lane in self._lanes():
            if {lane.source, lane.target} == {one, other}:
                lane.break_later("reset")

    def pause(self, address: str) -> None:
        """SIGSTOP: the kernel goes on taking bytes, up to the window, and the process does nothing."""
        self._paused.add(address)
        self._changed()

    def resume(self, address: str) -> None:
        """SIGCONT."""
        self._paused.discard(address)
        self._changed()

    def heal(self) -> None:
        """No path is blocked, no process is paused."""
        self._blocked.clear()
        self._paused.clear()
        self._changed()

    def hurry(self, *, copies: bool) -> None:
        """From here on copies come as fast as anything; or again not."""
        self.copies_are_slow = self.weather.copy_s > 0 and not copies

    # --- paths ---

    def one_open(self, source: str, target: str) -> bool:
        """True while bytes go this way, and are read at its end."""
        return (source, target) not in self._blocked and not {source, target} & self._paused

    def both_open(self, one: str, other: str) -> bool:
        """True while a connection between both can live."""
        return self.one_open(one, other) and self.one_open(other, one)

    def paused(self, address: str) -> bool:
        """True between `pause` and `resume`."""
        return address in self._paused

    def delay_s(self) -> float:
        """One way, this time."""
        return self.rng.uniform(*self.weather.delay_s)

    def _lanes(self) -> list["_Lane"]:
        return [lane for process in list(self._processes.values()) for lane in process.lanes()]

    def _changed(self) -> None:
        for lane in self._lanes():
            lane.path_changed()


class SimPeers:
    """One process. Implements `Peers`."""

    def __init__(self, network: SimNetwork, address: str, me: Identity, owner: Owner) -> None:
        self.network = network
        self.address = address
        self.me = me
        self.owner = owner
        self.counters = Counters()
        self.admission = Admission(me)
        self.session = 0
        self.closed = False
        self._source = SnapshotSource(owner.open_snapshot)
        self._stream = 0
        self._members: dict[NodeId, Member] = {}
        self._links: dict[NodeId, tuple[str, _Lane, _Lane]] = {}

    # --- Peers ---

    def set_session(self, session: int) -> None:
        """Speak in the name of this session; reconnect."""
        assert session > self.session, f"session {session} comes after {self.session}"
        self.session = session
        members = self._members
        self._connect({})
        self._connect(members)

    def set_members(self, members: Mapping[NodeId, Member]) -> None:
        """Connect to these and to no others."""
        self._members = {n: Member(*m) for n, m in members.items() if n != self.me.store}
        for node, member in self._members.items():
            self.admission.observe(node, member.session)
        self.admission.forget_all_but(frozenset(self._members))
        if self.session:
            self._connect(self._members)

    def send(self, peer: NodeId, messages: Sequence[Message]) -> None:
        """Queue the messages, each on its lane."""
        if peer not in self._links:
            return
        _, bulk, beats = self._links[peer]
        for lane, of_lane in (
            (beats, [m for m in messages if isinstance(m, Beat | BeatAcked)]),
            (bulk, [m for m in messages if not isinstance(m, Beat | BeatAcked)]),
        ):
            if of_lane:
                lane.send(of_lane)

    def connected(self, peer: NodeId) -> bool:
        """True while the bulk lane stands."""
        return peer in self._links and self._links[peer][1].up

    async def forward(
        self, peer: NodeId, method: str, request: bytes, timeout_s: float, *, hops: int = 0
    ) -> bytes:
        """Have a call carried out there."""
        if hops:
            raise Unavailable(
                "the shard moved while the call was on its way", reason="FORWARDED_ONCE"
            )
        address = self._address(peer)
        target = await self._reach(address, min(timeout_s, self.network.weather.call_wait_s))
        try:
            target.admission.identify(make_hello(self.me, peer, self.session))
        except TickwheelError as error:
            raise Unavailable(error.message, reason="PEER_REFUSED") from error
        call = Forwarded(self.me.store, method, request, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._called(address, target, call)
        except (TimeoutError, ConnectionError):
            raise DeadlineExceeded("no answer", reason="FORWARD_OUTCOME_UNKNOWN") from None

    async def _called(self, address: str, target: "SimPeers", call: Forwarded) -> bytes:
        await self._travel(self.address, address)
        if self.network.at(address) is not target:
            raise ConnectionError
        error: TickwheelError | None = None
        answer = b""
        try:
            answer = await target.owner.on_forward(call)
        except TickwheelError as refused:
            error = refused
        await self._travel(address, self.address)
        if error is not None:
            raise error
        return answer

    async def fetch_snapshot(
        self, peer: NodeId, shard: int, directory: Path, verify: Verify | None = None
    ) -> bytes:
        """Copy a snapshot into the directory, at once wherever the real one waits for a disk."""
        download = Download(directory, verify, _at_once)
        return await fetch(
            download,
            lambda: self._fetch_on(peer, shard, download),
            lambda failures: backoff_s(failures, self.network.options, self.network.rng),
        )

    async def close(self) -> None:
        """End every connection."""
        self.crash()

    def crash(self) -> None:
        """End as a killed process does: the owner hears nothing more."""
        self.closed = True
        self._connect({})
        if self.network.at(self.address) is self:
            self.network.leave(self.address)

    # --- connections ---

    def lanes(self) -> list["_Lane"]:
        """Those that this process opened."""
        return [lane for _, *lanes in self._links.values() for lane in lanes]

    def next_hello(self, peer: NodeId, lane: int) -> pb.Hello:
        """The hello of a new stream."""
        self._stream += 1
        return make_hello(self.me, peer, self.session, stream=self._stream, lane=lane)

    def tell(self, peer: NodeId, *, up: bool) -> None:
        """Call the owner, in a turn of its own."""
        told = self.owner.on_connected if up else self.owner.on_disconnected
        asyncio.get_running_loop().call_soon(self._tell, told, peer, context=self.network.context)

    def _tell(self, told: Callable[[NodeId], None], peer: NodeId) -> None:
        if not self.closed:
            told(peer)

    def receive(self, caller: Caller, messages: list[Message]) -> None:
        """A frame came, on a stream that still counts."""
        if not self.closed:
            self.counters.frames_received += 1
            self.owner.on_messages(caller.sender, caller.session, messages)

    def _connect(self, members: Mapping[NodeId, Member]) -> None:
        addresses = {node: member.address for node, member in members.items()}
        for node in [n for n, (address, *_) in self._links.items() if addresses.get(n) != address]:
            _, *lanes = self._links.pop(node)
            for lane in lanes:
                lane.close()
        for node, address in addresses.items():
            if node not in self._links:
                bulk = BulkQueue(self.network.options.queue_bytes_max)
                self._links[node] = (
                    address,
                    _Lane(self, node, address, pb.LANE_BULK, bulk),
                    _Lane(self, node, address, pb.LANE_BEATS, BeatQueue()),
                )

    def _address(self, peer: NodeId) -> str:
        if peer not in self._links:
            raise Unavailable(f"node {peer} is not there", reason="PEER_UNREACHABLE")
        return self._links[peer][0]

    async def _reach(self, address: str, wait_s: float) -> "SimPeers":
        """The process there, by a connection that is made now. Raises Unavailable."""
        await asyncio.sleep(self.network.delay_s())
        target = self.network.at(address)
        if target is not None and not self.network.both_open(self.address, address):
            await asyncio.sleep(wait_s)
            target = None
        if target is None:
            raise Unavailable(f"{address} can't be reached", reason="PEER_UNREACHABLE")
        return target

    async def _travel(self, source: str, target: str) -> None:
        """One way, when the path is open. Raises ConnectionError when it stays closed."""
        await asyncio.sleep(self.network.delay_s())
        if not self.network.one_open(source, target):
            await asyncio.sleep(self.network.weather.keepalive_s)
            if not self.network.one_open(source, target):
                raise ConnectionError(f"{source} does not reach {target}")

    # --- snapshots ---

    async def _fetch_on(self, peer: NodeId, shard: int, download: Download) -> bytes:
        digest, number, offset = await download.where()
        address = self._address(peer)
        target = await self._reach(address, self.network.options.connect_timeout_s)
        hello = make_hello(self.me, peer, self.session)
        target.admission.identify(hello)
        request = pb.SnapshotRequest(
            hello=hello, shard=shard, manifest_sha256=digest, file=number, offset=offset
        )
        async with aclosing(self._pieces(address, target, request)) as pieces:
            return await download.take(pieces)

    async def _pieces(
        self, address: str, target: "SimPeers", request: pb.SnapshotRequest
    ) -> AsyncGenerator[bytes, None]:
        pieces: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)

        async def serve() -> None:
            try:
                await target._source.serve(request, pieces.put)
            finally:
                await pieces.put(None)

        serving = asyncio.get_running_loop().create_task(serve())
        try:
            while (piece := await self._piece(pieces, address, target)) is not None:
                await self._wait_for_piece()
                await self._travel(address, self.address)
                lost = self.network.rng.random() < self.network.weather.loss
                if lost or self.network.at(address) is not target:
                    raise ConnectionError("the connection broke")
                yield piece
            serving.result()
        finally:
            serving.cancel()
            serving.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _wait_for_piece(self) -> None:
        network, loop = self.network, asyncio.get_running_loop()
        until_s = loop.time()
        if network.copies_are_slow:
            until_s += network.rng.random() * network.weather.copy_s
        while network.copies_are_slow and loop.time() < until_s:  # noqa: ASYNC110 - bounded
            await asyncio.sleep(0.1)

    async def _piece(
        self, pieces: "asyncio.Queue[bytes | None]", address: str, target: "SimPeers"
    ) -> bytes | None:
        while True:
            try:
                async with asyncio.timeout(self.network.weather.keepalive_s):
                    return await pieces.get()
            except TimeoutError:
                if self.network.at(address) is not target:
                    raise ConnectionError("the process there ended") from None


class _Lane:
    """One connection from a process to an address, made again whenever it breaks."""

    def __init__(
        self, process: SimPeers, node: NodeId, target: str, kind: int, queue: BulkQueue | BeatQueue
    ) -> None:
        self.source = process.address
        self.target = target
        self.up = False
        self._process = process
        self._network = process.network
        self._node = node
        self._kind = kind
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._pumping = False
        self._context = copy_context()
        self._broken = asyncio.Event()
        self._connection = Connection()
        self._suspicion: asyncio.TimerHandle | None = None
        self._task = self._loop.create_task(self._run())

    def send(self, messages: Sequence[Message]) -> None:
        """Queue them if the connection stands."""
        if not self.up:
            return
        if not self._queue.put(messages):
            self._process.counters.resets += 1
            self._break()
        self._kick()

    def close(self) -> None:
        """End it for good."""
        self._break()
        self._task.cancel()

    def break_later(self, _why: str) -> None:
        """The end of the connection becomes known here after a while; nothing arrives at the other end any more."""
        self._connection.cut()
        delay_s, context = self._network.delay_s(), self._network.context
        self._loop.call_later(delay_s, self._break_if, self._connection, context=context)

    # --- connecting ---

    async def _run(self) -> None:
        failures = 0
        while True:
            failures += 1
            target = await self._attempt()
            if target is not None:
                failures = 0
                await self._stand(target)
            await asyncio.sleep(backoff_s(failures, self._network.options, self._network.rng))

    async def _attempt(self) -> SimPeers | None:
        if self._network.paused(self.source):
            await asyncio.sleep(self._network.options.connect_timeout_s)
            return None
        try:
            target = await self._process._reach(
                self.target, self._network.options.connect_timeout_s
            )
            caller = target.admission.identify(self._process.next_hello(self._node, self._kind))
            target.admission.open(caller)
        except TickwheelError:
            return None
        self._connection = Connection(target, caller)
        return target

    async def _stand(self, target: SimPeers) -> None:
        connection = self._connection
        self._broken.clear()
        self._queue.clear()
        self.up = True
        self._process.counters.connects += 1
        self._tell(up=True)
        self.path_changed()
        try:
            await self._broken.wait()
        finally:
            connection.cut()

    def _break(self) -> None:
        self._connection.cut()
        if self._suspicion is not None:
            self._suspicion.cancel()
            self._suspicion = None
        if self.up:
            self.up = False
            self._queue.clear()
            self._broken.set()
            self._tell(up=False)

    def _break_if(self, connection: Connection) -> None:
        if connection is self._connection:
            self._break()

    def _tell(self, *, up: bool) -> None:
        if self._kind == pb.LANE_BULK:
            self._process.tell(self._node, up=up)

    def path_changed(self) -> None:
        """Deliver what was held back; give up when nothing is heard for too long."""
        if not self.up:
            return
        alive = self._network.both_open(self.source, self.target)
        if alive and self._suspicion is not None:
            overdue = self._suspicion.when() <= self._loop.time()
            self._suspicion.cancel()
            self._suspicion = None
            if overdue:
                self.break_later("the other end gave it up meanwhile")
        elif not alive and self._suspicion is None:
            self._suspicion = self._loop.call_later(
                self._network.weather.keepalive_s, self._give_up, context=self._network.context
            )
        if alive and self._network.at(self.target) is not self._connection.target:
            self.break_later("the process there is another one")
        self._deliver(self._connection)

    def _give_up(self) -> None:
        """A paused process gives nothing up: it sees what happened when it goes on."""
        if not self._network.paused(self.source):
            self._suspicion = None
            self._break()

    # --- writing ---

    def _kick(self) -> None:
        """Write in a turn of this process's own: a paused one writes nothing."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump, context=self._context)

    def _pump(self) -> None:
        self._pumping = False
        connection = self._connection
        while self.up and connection.room and (messages := self._queue.take()):
            for frame in wire.pack(messages, connection.next_sequence):
                connection.next_sequence += 1
                self._depart(connection, frame)
            self._process.counters.messages_sent += len(messages)

    def _depart(self, connection: Connection, frame: bytes) -> None:
        counters = self._process.counters
        counters.frames_sent += 1
        counters.bytes_sent += len(frame)
        if self._network.rng.random() < self._network.weather.loss:
            self.break_later("a frame was lost")
            return
        connection.arrives_s = max(
            connection.arrives_s, self._loop.time() + self._network.delay_s()
        )
        connection.put(frame)
        context = self._network.context
        self._loop.call_at(connection.arrives_s, self._arrived, connection, context=context)

    def _arrived(self, connection: Connection) -> None:
        connection.arrived += 1
        self._deliver(connection)

    def _deliver(self, connection: Connection) -> None:
        """Hand over what arrived, if the path is open; a stream that does not count any more ends."""
        while connection.arrived and self._network.one_open(self.source, self.target):
            full = not connection.room
            frame = connection.take()
            if full:
                self._kick()
            target, caller = connection.target, connection.caller
            if frame is None or target is None or caller is None or target.closed:
                return
            try:
                target.admission.check_current(caller)
                messages = connection.unpacker.take(frame)
            except TickwheelError:
                self.break_later("refused")
                return
            if messages:
                target.receive(caller, messages)


async def _at_once(work: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T:
    return work(*args, **options)
