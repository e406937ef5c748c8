"""Two worlds to hold `Peers` against: gRPC through a proxy whose paths can be closed, and the simulated network."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any, Protocol

from bench.proxy import Mode, Proxy
from tests.sim.loop import VirtualLoop
from tests.sim.network import NetworkWeather, SimNetwork

from tickwheel.server.cluster.peer_hello import Identity
from tickwheel.server.cluster.peer_link import Counters
from tickwheel.server.cluster.peer_options import PeerOptions
from tickwheel.server.cluster.peer_port import (
    Forwarded,
    Member,
    Owner,
    Peers,
    SnapshotFile,
    SnapshotFiles,
)
from tickwheel.server.cluster.peers import GrpcPeers
from tickwheel.server.errors import NotFound
from tickwheel.server.message import Acked, Append, LogEntry, Message, NodeId

CLUSTER = "c0" * 16
WAIT_S = 20.0
QUEUE_BYTES = 4 << 20
OPTIONS = PeerOptions(
    listen=("127.0.0.1", 0),
    queue_bytes_max=QUEUE_BYTES,
    connect_timeout_s=1.0,
    keepalive_ms=1_000,
    backoff_max_s=0.2,
    stop_grace_s=1.0,
)


def store_of(name: str) -> NodeId:
    """The uuid of a node that tests call by a letter."""
    return hashlib.md5(name.encode()).hexdigest()


class Files:
    """A snapshot in memory."""

    def __init__(self, contents: dict[str, bytes], manifest: bytes = b"{}") -> None:
        self.manifest = manifest
        self.contents = list(contents.values())
        self.files = [
            SnapshotFile(name, len(data), hashlib.sha256(data).hexdigest())
            for name, data in contents.items()
        ]
        self.reads: list[tuple[int, int]] = []
        self.closed = 0

    async def read(self, number: int, offset: int, size: int) -> bytes:
        """A piece."""
        self.reads.append((number, offset))
        return self.contents[number][offset : offset + size]

    def close(self) -> None:
        """Counted."""
        self.closed += 1


class Node:
    """A process, and all that its owner was told."""

    def __init__(self, name: str, cluster: str) -> None:
        self.name = name
        self.me = Identity(cluster, store_of(name))
        self.store = self.me.store
        self.got: list[tuple[NodeId, int, Message]] = []
        self.events: list[tuple[str, NodeId]] = []
        self.forwarded: list[Forwarded] = []
        self.files: Callable[[int], SnapshotFiles] | None = None
        self.answer: Callable[[Forwarded], Awaitable[bytes]] | None = None
        self.peers: Peers
        self.counters: Counters
        self.address = ""

    @property
    def owner(self) -> Owner:
        """Writes everything down."""
        return Owner(
            on_messages=lambda sender, session, messages: self.got.extend(
                (sender, session, message) for message in messages
            ),
            on_connected=lambda peer: self.events.append(("up", peer)),
            on_disconnected=lambda peer: self.events.append(("down", peer)),
            on_forward=self._forward,
            open_snapshot=self._open,
        )

    async def _forward(self, call: Forwarded) -> bytes:
        self.forwarded.append(call)
        assert self.answer is not None
        return await self.answer(call)

    async def _open(self, shard: int) -> SnapshotFiles:
        if self.files is None:
            raise NotFound(f"shard {shard} is not here")
        return self.files(shard)

    def messages(self, sender: "Node") -> list[Message]:
        """What came from that node, in order."""
        return [message for node, _, message in self.got if node == sender.store]


class World(Protocol):
    """Nodes, and the paths between them."""

    async def join(self, name: str, cluster: str = CLUSTER, session: int = 1) -> Node:
        """A process begins; it knows nobody yet."""
        ...

    def member(self, of: Node, peer: Node, session: int = 1) -> Member:
        """What `of` has to be told of `peer`."""
        ...

    def hold(self, source: Node, target: Node) -> None:
        """Nothing passes between both, and nobody is told."""
        ...

    def hold_one_way(self, source: Node, target: Node) -> None:
        """What source sends does not arrive; the other way stays as it is."""
        ...

    def cut(self, source: Node, target: Node) -> None:
        """Reset all connections between both; new ones can be made."""
        ...

    def heal(self) -> None:
        """Everything passes."""
        ...


class RealWorld:
    """gRPC on loopback. Each node calls each other one through a link of the proxy."""

    def __init__(self) -> None:
        self.proxy = Proxy()
        self.nodes: list[Node] = []
        self.options = OPTIONS

    async def join(self, name: str, cluster: str = CLUSTER, session: int = 1) -> Node:
        """Listen on a free port."""
        node = Node(name, cluster)
        peers = GrpcPeers(node.me, node.owner, self.options, Random(len(self.nodes)))
        port = await peers.start()
        node.address = f"127.0.0.1:{port}"
        node.peers, node.counters = peers, peers.counters
        peers.set_session(session)
        for other in self.nodes:
            await self._link(node, other)
            await self._link(other, node)
        self.nodes.append(node)
        return node

    async def _link(self, source: Node, target: Node) -> None:
        port = int(target.address.rpartition(":")[2])
        await self.proxy.link(source.address, target.address, "127.0.0.1", port)

    def member(self, of: Node, peer: Node, session: int = 1) -> Member:
        """By way of the proxy."""
        if of is peer:
            return Member(of.address, session)
        return Member(f"127.0.0.1:{self.proxy.links[of.address, peer.address].port}", session)

    def hold(self, source: Node, target: Node) -> None:
        """Both links."""
        self.proxy.set(source.address, target.address, Mode.HOLD)
        self.proxy.set(target.address, source.address, Mode.HOLD)

    def hold_one_way(self, source: Node, target: Node) -> None:
        """What travels from source to target, on the connections of both."""
        self.proxy.set(source.address, target.address, Mode.THERE)
        self.proxy.set(target.address, source.address, Mode.BACK)

    def cut(self, source: Node, target: Node) -> None:
        """Reset."""
        for pair in ((source.address, target.address), (target.address, source.address)):
            self.proxy.set(*pair, Mode.CUT)
            self.proxy.set(*pair, Mode.PASS)

    def heal(self) -> None:
        """Everything passes."""
        self.proxy.heal()

    async def close(self) -> None:
        """End all processes."""
        for node in self.nodes:
            await node.peers.close()
        await self.proxy.close()


class SimWorld:
    """The simulated network."""

    def __init__(self) -> None:
        weather = NetworkWeather(keepalive_s=2.0)
        self.network = SimNetwork(Random(1), weather, OPTIONS)
        self.count = 0

    async def join(self, name: str, cluster: str = CLUSTER, session: int = 1) -> Node:
        """An address of its own."""
        node = Node(name, cluster)
        self.count += 1
        node.address = f"{name}:{self.count}"
        process = self.network.join(node.address, node.me, node.owner)
        node.peers, node.counters = process, process.counters
        process.set_session(session)
        return node

    def member(self, of: Node, peer: Node, session: int = 1) -> Member:
        """Directly."""
        del of
        return Member(peer.address, session)

    def hold(self, source: Node, target: Node) -> None:
        """Both ways."""
        self.network.block(source.address, target.address)
        self.network.block(target.address, source.address)

    def hold_one_way(self, source: Node, target: Node) -> None:
        """One."""
        self.network.block(source.address, target.address)

    def cut(self, source: Node, target: Node) -> None:
        """Reset."""
        self.network.cut(source.address, target.address)

    def heal(self) -> None:
        """Everything passes."""
        self.network.heal()


Scenario = Callable[[Any], Coroutine[Any, Any, None]]
Runner = Callable[[Scenario], None]


def run_real(scenario: Scenario) -> None:
    """On loopback, in real time."""

    async def main() -> None:
        world = RealWorld()
        try:
            await scenario(world)
        finally:
            await world.close()

    asyncio.run(main())


def run_sim(scenario: Scenario) -> None:
    """On virtual time."""
    loop = VirtualLoop()

    async def main() -> None:
        await scenario(SimWorld())

    try:
        asyncio.set_event_loop(None)
        loop.live(main())
    finally:
        loop.abandon()


# --- helpers of scenarios --------------------------------------------------------------------


async def until(condition: Callable[[], object], wait_s: float = WAIT_S) -> None:
    """Wait until it holds."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + wait_s
    while not condition():
        assert loop.time() < deadline_s, "it did not come to hold"
        await asyncio.sleep(0.005)


async def acquaint(world: World, *nodes: Node, session: int = 1) -> None:
    """Tell each node of all others, and wait until they are connected."""
    for node in nodes:
        node.peers.set_members({n.store: world.member(node, n, session) for n in nodes})
    for node in nodes:
        for other in nodes:
            if node is not other:
                await until(lambda n=node, o=other: n.peers.connected(o.store))  # type: ignore[misc]
    await until(lambda: all(len(n.events) >= len(nodes) - 1 for n in nodes))


async def two(world: World) -> tuple[Node, Node]:
    """Two nodes that are connected."""
    a, b = await world.join("a"), await world.join("b")
    await acquaint(world, a, b)
    return a, b


def entry(index: int, size: int = 10) -> Append:
    """A message that tells itself from others, of about so many bytes."""
    return Append(1, 1, index - 1, 1, (LogEntry(index, 1, bytes(size)),), 0)


def acks(count: int, start: int = 1) -> list[Message]:
    """Short messages that tell themselves from others."""
    return [Acked(1, 1, number) for number in range(start, start + count)]


async def flows(source: Node, target: Node, number: int) -> None:
    """Send one message, again whenever the connection was made anew, until it is there."""
    message = Acked(7, 7, number)
    while message not in target.messages(source):
        source.peers.send(target.store, [message])
        await asyncio.sleep(0.02)


def contents_of(directory: Path) -> dict[str, bytes]:
    """Every file in it."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
