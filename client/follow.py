"""Learns who leads which shard, and keeps connections to the nodes, so that a call needs no second hop.

    a few calls were made ──► WatchCluster at any node ──► the map ──► connect to each node ──► ask who it is
                                   ▲   │ ended, failed, 20 s over                                 │ the same cluster
                                   ╰───╯ next node, after a pause                                 ▼
    a call for one job ──► its shard's leader, if that is connected and was asked; otherwise any node, which passes it on

What holds:

- Nobody ever waits for this. While a leader is not connected, or after it did not answer and until it was asked again, a
  call goes where it would go without a map.
- An address that a map names is called only after it said that it is of that cluster: behind a tunnel, or in another
  network, the same address may be somebody else's.
- A server that is older than the map, that runs alone, or that has too many watchers, costs a question now and then.

Everything is bounded: the size of a map, the nodes, how often anyone is asked. All pauses are drawn, so that a
thousand clients of one server do not come back in one moment.
"""

import asyncio
from collections.abc import Collection, Sequence
from enum import Enum
from typing import Final, Protocol

import grpc
import grpc.aio

from tickwheel.client.errors import DeadlineExceeded, TickwheelError, Unavailable
from tickwheel.client.link import CHANCE, CONNECT_TIMEOUT_S, Link
from tickwheel.client.shards import ShardMap, read_map
from tickwheel.v1.cluster_service_pb2 import GetClusterRequest, WatchClusterRequest

LEARN_AFTER_CALLS: Final = 8
"""A program that makes a few calls learns nothing: a map costs as much as several of them."""

WATCH_S: Final = 20.0
"""Then the watch is opened anew: a stream to a machine that is gone may be silent for ever."""

ASK_S: Final = 3.0
PAUSE_S: Final = 0.25
PAUSE_S_MAX: Final = 30.0
SPACE_S: Final = 0.1
"""Between two maps of one watch: while a hundred shards change hands, nobody needs a hundred maps."""

LONG_S: Final = 60.0
"""Until a server that has no map to tell is asked again."""

_READY: Final = grpc.ChannelConnectivity.READY
_NO_MAP: Final = frozenset(
    {
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)


class Links(Protocol):
    """The connections of one client."""

    def link(self, address: str) -> Link:
        """The connection to an address, made now if there is none."""
        ...

    def keep(self, addresses: Collection[str]) -> None:
        """Of the connections to nodes only those are needed from now on."""
        ...

    @property
    def around(self) -> Sequence[str]:
        """Every address that may be asked, the one in use first."""
        ...


class _End(Enum):
    """How a watch ended."""

    OVER = "its time was over"
    BROKEN = "the node is gone, or does not like us now"
    NO_MAP = "there is no map, or none for us"
    FULL = "the node has enough watchers"


class _Node:
    """What is known of an address that a map names."""

    __slots__ = ("asking", "failures", "usable")

    def __init__(self) -> None:
        self.usable = False
        self.failures = 0
        self.asking: asyncio.Task[None] | None = None


class Follower:
    """The map of one client. Used on one event loop only."""

    def __init__(self, links: Links, metadata: Sequence[tuple[str, str]]) -> None:
        self.map: ShardMap | None = None
        self._links = links
        self._metadata = tuple(metadata)
        self._calls = 0
        self._nodes: dict[str, _Node] = {}  # bounded: by the map's nodes
        self._learning: asyncio.Task[None] | None = None
        self._told_by = ""
        self._hint = asyncio.Event()

    # --- asked before and told after each call ---

    def called(self, count: int) -> None:
        """So many calls, or creates of one call, are made; when there were enough, learning begins."""
        if self._learning is None:
            self._calls += count
            if self._calls >= LEARN_AFTER_CALLS:
                self._learning = asyncio.get_running_loop().create_task(self._learn())

    def leader_of(self, key: str) -> str:
        """The address of the job's leader, if it can be called right now; otherwise ""."""
        if self.map is None or not key:
            return ""
        address = self.map.leader_of(key)
        return address if address and self.link(address) is not None else ""

    def link(self, address: str) -> Link | None:
        """The connection to a node, if it can be used right now."""
        node = self._nodes.get(address)
        if node is None or not node.usable:
            return None
        link = self._links.link(address)
        if link.channel.get_state() is not _READY:
            self._doubt(address)
            return None
        return link

    def failed(self, address: str, error: TickwheelError) -> None:
        """A call to that address failed. A leader that is gone, silent or not ready is asked who it is before the next."""
        if isinstance(error, Unavailable | DeadlineExceeded):
            self._doubt(address)
            if address == self._told_by:
                self._hint.set()

    @property
    def usable(self) -> tuple[str, ...]:
        """Nodes that can be asked for anything, should all of the client's own addresses be gone."""
        return tuple(address for address, node in self._nodes.items() if node.usable)

    async def stop(self) -> None:
        """Learn no more, know nothing."""
        asking = [node.asking for node in self._nodes.values()]
        tasks = [task for task in (self._learning, *asking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.map = None
        self._nodes.clear()

    # --- the map ---

    async def _learn(self) -> None:
        """Until the client is closed. Each watch is at another node: one that is silent costs the time of one watch."""
        failures = known = turn = 0
        while True:
            around = self._links.around
            self._told_by = around[turn % len(around)]
            turn += 1
            self._hint.clear()
            end = await self._watch(self._told_by, known)
            known = self.map.revision if end is _End.OVER and self.map is not None else 0
            if end is _End.OVER:
                failures = 0
                await asyncio.sleep(drawn(SPACE_S))
            elif end is _End.BROKEN:
                failures += 1
                await asyncio.sleep(backoff_s(failures))
            else:
                if end is _End.NO_MAP:
                    self._take(None)
                await asyncio.sleep(drawn(LONG_S))

    async def _watch(self, address: str, known: int) -> _End:
        """Read maps from one node, until it ends or that node is said to be gone."""
        reading = asyncio.get_running_loop().create_task(self._read(address, known))
        hint = asyncio.get_running_loop().create_task(self._hint.wait())
        try:
            await asyncio.wait({reading, hint}, return_when=asyncio.FIRST_COMPLETED)
            ended = reading.done() and not reading.cancelled()
            return reading.result() if ended else _End.BROKEN
        finally:
            for task in (reading, hint):
                task.cancel()
            await asyncio.gather(reading, hint, return_exceptions=True)

    async def _read(self, address: str, known: int) -> _End:
        link = self._links.link(address)
        try:
            await link.connect(CONNECT_TIMEOUT_S)
            request = WatchClusterRequest(after_revision=known)
            async for news in link.cluster.WatchCluster(
                request, timeout=drawn(WATCH_S), metadata=self._metadata
            ):
                found = read_map(news.cluster, address)
                if found is None:
                    return _End.NO_MAP
                self._take(found)
                await asyncio.sleep(drawn(SPACE_S))
        except grpc.aio.AioRpcError as error:
            return await self._judged(link, error.code())
        except TickwheelError:
            return _End.BROKEN
        return _End.BROKEN  # the node ended it: it stops

    async def _judged(self, link: Link, code: grpc.StatusCode) -> _End:
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return _End.OVER
        if code in _NO_MAP:
            return _End.NO_MAP
        if code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            return _End.BROKEN
        try:
            shown = await link.cluster.GetCluster(
                GetClusterRequest(), timeout=ASK_S, metadata=self._metadata
            )
        except grpc.aio.AioRpcError:
            return _End.FULL
        self._take(read_map(shown, link.address))
        return _End.FULL

    def _take(self, found: ShardMap | None) -> None:
        """Know this from now on: ask nodes that are new who they are, drop those that are gone."""
        strangers = self.map is not None and (found is None or found.cluster != self.map.cluster)
        self.map = found
        wanted = found.nodes if found is not None else ()
        for address in [a for a in self._nodes if strangers or a not in wanted]:
            node = self._nodes.pop(address)
            if node.asking is not None:
                node.asking.cancel()
        self._links.keep((*wanted, self._told_by))
        for address in wanted:
            if address not in self._nodes:
                self._nodes[address] = _Node()
                self._ask_later(address)

    # --- nodes ---

    def _doubt(self, address: str) -> None:
        node = self._nodes.get(address)
        if node is not None and node.usable:
            node.usable = False
            node.failures += 1
            self._ask_later(address)

    def _ask_later(self, address: str) -> None:
        node = self._nodes[address]
        node.asking = asyncio.get_running_loop().create_task(self._ask(address, node))

    async def _ask(self, address: str, node: _Node) -> None:
        """Connect to a node and hear which cluster it is of, as often as it takes."""
        while True:
            await asyncio.sleep(backoff_s(node.failures) if node.failures else 0)
            try:
                link = self._links.link(address)
                await link.connect(CONNECT_TIMEOUT_S)
                shown = await link.cluster.GetCluster(
                    GetClusterRequest(), timeout=ASK_S, metadata=self._metadata
                )
            except (grpc.aio.AioRpcError, TickwheelError):
                node.failures += 1
                continue
            if self.map is not None and shown.uid == self.map.cluster:
                node.usable, node.failures = True, 0
                return
            node.failures += 1


def drawn(seconds: float) -> float:
    """Between half and all of it."""
    return CHANCE.uniform(seconds / 2, seconds)


def backoff_s(failures: int) -> float:
    """The pause after so many failures in a row."""
    return drawn(min(PAUSE_S_MAX, PAUSE_S * 2.0 ** min(failures, 16)))
