"""What goes wrong in a campaign: each kind of fault does its harm, heals it, and says when it struck and when it healed.

A kind is a coroutine on the `World`. It calls `strike` at the moment of harm with the nodes that are concerned; when it
returns, everything that it broke runs or passes again. The campaign waits then until the cluster is whole.
"""

import asyncio
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from bench import calls
from bench.cluster import Cluster, ClusterNode
from bench.proxy import Mode
from tests.e2e.chaos_net import Net
from tests.e2e.chaos_watch import Led, Watch
from tests.e2e.harness import command_runs
from tests.e2e.stepping import Hands

from tickwheel.v1.cluster_service_pb2 import DrainNodeRequest, MoveShardRequest
from tickwheel.v1.cluster_service_pb2_grpc import ClusterServiceStub

FAIL_OVER_S = 12.0
ENDS_S = 30.0
EXIT_FATAL = 70
DISK_BYTES = 256 << 20
DISK_FULL_S = (3.0, 6.0)
DISK = ("--segment-bytes", str(4 << 20), "--wal-low-water-bytes", str(16 << 20))
PATIENCE = ("--replace-ms", "3000", "--shrink-ms", "6000")


class ChaosNode(ClusterNode):
    """A node whose every path can be held, and whose clock can be set."""

    net: Net
    hands: Hands

    def spawn(self) -> None:
        """Start it, and tell the doors who it is."""
        super().spawn()
        self.net.say("pid", self.name, self.pid)


class ChaosCluster(Cluster):
    """Nodes that reach etcd and each other over the campaign's network; the last one's disk is small, if possible."""

    def __init__(self, directory: Path, net: Net, *, members: int, shards: int) -> None:
        options = ["--shards", str(shards), *PATIENCE, *DISK]
        super().__init__(directory, nodes=3, members=members, options=options)
        self.net = net
        self.names = [f"node-{k + 1}" for k in range(3)]
        self.disk = small_disk(directory / self.names[-1])

    def make(self, number: int) -> ClusterNode:
        """A node with doors."""
        name = f"node-{number}"
        links = [
            f"127.0.0.1:{self.net.say('link', name, member.name, f'127.0.0.1:{member.client_port}')}"
            for member in self.etcd.members
        ]
        node = ChaosNode(self.directory, name, ",".join(links), self.options)
        node.net = self.net
        node.hands = Hands(self.directory / f"{name}.clock")
        node.module = node.hands.module
        others = [other for other in self.names if other != name]
        door = self.net.say("door", name, f"127.0.0.1:{node.peer_port}", *others)
        node.options += ["--peer-advertise", f"127.0.0.1:{door}"]
        return node

    def close(self) -> None:
        """End every process; unmount."""
        super().close()
        if self.disk is not None:
            subprocess.run(["umount", "-l", str(self.disk)], check=True)


def small_disk(path: Path) -> Path | None:
    """A small file system, None where that is not allowed."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return None
    path.mkdir(parents=True)
    if command_runs("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)):
        return path
    path.rmdir()
    return None


@dataclass(slots=True)
class Fault:
    """One fault. `shards`: those that the nodes concerned led, with the epoch of that moment."""

    kind: str
    at_ms: int = 0
    healed_ms: int = 0
    whole_ms: int = 0
    hosts: list[str] = field(default_factory=list[str])
    shards: dict[int, Led] = field(default_factory=dict[int, Led])
    note: str = ""


@dataclass(slots=True)
class World:
    """What the faults act on. Those that cut or fill need a `ChaosCluster`."""

    cluster: Cluster
    watch: Watch
    rng: random.Random
    fault: Fault = field(default_factory=lambda: Fault(""))
    wrong: list[str] = field(default_factory=list[str])

    @property
    def net(self) -> Net:
        """The paths."""
        assert isinstance(self.cluster, ChaosCluster)
        return self.cluster.net

    @property
    def names(self) -> list[str]:
        """Of all nodes."""
        return [node.name for node in self.cluster.nodes]

    def any_node(self) -> ClusterNode:
        """By chance."""
        return self.rng.choice(self.cluster.nodes)

    def most(self) -> ClusterNode:
        """The node that leads most."""
        leads = self.watch.leads()
        return max(self.cluster.nodes, key=lambda node: len(leads[node.name]))

    def strike(self, *nodes: ClusterNode) -> None:
        """Now. The shards of these nodes are concerned."""
        hosts = [node.name for node in nodes]
        self.fault.at_ms = calls.now_ms()
        self.fault.hosts = hosts
        self.fault.shards = {n: led for n, led in self.watch.led.items() if led.host in hosts}

    async def pause(self, least_s: float, most_s: float) -> None:
        """A while by chance."""
        await asyncio.sleep(self.rng.uniform(least_s, most_s))

    async def call(self, node: ClusterNode, method: str, request: Any) -> None:
        """One call of the cluster service; what fails is noted, since faults may well make it fail."""
        async with grpc.aio.insecure_channel(node.target) as channel:
            stub: Any = ClusterServiceStub(channel)
            try:
                await getattr(stub, method)(request, timeout=25.0)
            except grpc.aio.AioRpcError as error:
                self.fault.note += f"{method}: {error.code().name} {error.details()}; "

    def hold_all(self, sources: Sequence[str], targets: Sequence[str], mode: Mode) -> None:
        """Every link between these."""
        for source in sources:
            for target in targets:
                if source != target:
                    self.net.set(source, target, mode)


Kind = Callable[[World], Awaitable[None]]


# --- processes --------------------------------------------------------------------------------


async def _kill(world: World, node: ClusterNode) -> None:
    world.strike(node)
    node.kill()
    if world.rng.random() < 0.6:
        await world.watch.until_served(FAIL_OVER_S)
    await world.pause(0.0, 0.5)
    node.spawn()


async def kill_leader(world: World) -> None:
    """The node that leads most."""
    await _kill(world, world.most())


async def fail_over(world: World) -> None:
    """The same, and it stays away until others serve its shards."""
    node = world.most()
    world.strike(node)
    node.kill()
    await world.watch.until_served(FAIL_OVER_S)
    node.spawn()


async def kill_random(world: World) -> None:
    """Any."""
    await _kill(world, world.any_node())


async def kill_two(world: World) -> None:
    """The leader, and once its shards are served, who took most of them; both come back then."""
    first = world.most()
    world.strike(first)
    first.kill()
    await world.watch.until_served(FAIL_OVER_S)
    first.spawn()
    await asyncio.to_thread(first.wait_ready, ENDS_S)
    leads = world.watch.leads()
    second = max(
        (n for n in world.cluster.nodes if n is not first), key=lambda n: len(leads[n.name])
    )
    with suppress(TimeoutError):
        await world.watch.whole(ENDS_S)
    second.kill()
    await world.watch.until_served(FAIL_OVER_S)
    second.spawn()


async def pause(world: World) -> None:
    """SIGSTOP of the node that leads most: shorter or longer than its lease; SIGCONT."""
    node = world.most()
    world.strike(node)
    node.pause()
    await world.pause(2.0, 8.0)
    node.resume()


async def roll(world: World) -> None:
    """SIGTERM to each in turn; each is back before the next goes."""
    world.strike(*world.cluster.nodes)
    for node in world.cluster.nodes:
        code = await asyncio.to_thread(node.terminate, ENDS_S)
        if code != 0:
            world.wrong.append(f"roll: {node.name} ended with {code}: {node.tail(5)}")
        node.spawn()
        await asyncio.to_thread(node.wait_ready, ENDS_S)
        with suppress(TimeoutError):
            await world.watch.whole(ENDS_S)


async def wipe(world: World) -> None:
    """Its disk is lost: it comes back as a stranger, and is given copies again."""
    node = world.any_node()
    world.strike(node)
    node.kill()
    await asyncio.to_thread(empty, node.data_dir)
    await world.pause(0.0, 2.0)
    node.spawn()


def empty(directory: Path) -> None:
    """Everything below it."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


# --- etcd -------------------------------------------------------------------------------------


async def etcd_member(world: World) -> None:
    """One member of several, at times the one that leads; its nodes find another."""
    etcd = world.cluster.etcd
    member = world.rng.choice(etcd.members)
    if world.rng.random() < 0.5:
        with suppress(LookupError):
            member = await asyncio.to_thread(etcd.leader)
    world.strike(*world.cluster.nodes)
    member.kill()
    await world.pause(3.0, 7.0)
    member.spawn(etcd.token)
    await asyncio.to_thread(etcd.wait_ready, member)


async def etcd_all(world: World) -> None:
    """No etcd at all for a while: leaders go on, nobody takes over."""
    etcd = world.cluster.etcd
    world.strike(*world.cluster.nodes)
    for member in etcd.members:
        member.kill()
    await world.pause(5.0, 15.0)
    for member in etcd.members:
        member.spawn(etcd.token)
    for member in etcd.members:
        await asyncio.to_thread(etcd.wait_ready, member)


async def cut_etcd(world: World) -> None:
    """One node cannot reach etcd; the others can reach both."""
    node = world.most()
    world.strike(node)
    _etcd(world, node, Mode.HOLD)
    await world.pause(3.0, 8.0)
    world.net.heal()


def _etcd(world: World, node: ClusterNode, mode: Mode) -> None:
    for member in world.cluster.etcd.members:
        world.net.set(node.name, member.name, mode)


# --- partitions -------------------------------------------------------------------------------


async def deaf(world: World) -> None:
    """Nothing that its peers send reaches it; what it sends reaches them."""
    node = world.most()
    world.strike(node)
    world.hold_all(world.names, [node.name], Mode.THERE)
    world.hold_all([node.name], world.names, Mode.BACK)
    await world.pause(3.0, 8.0)
    world.net.heal()


async def mute(world: World) -> None:
    """Nothing that it sends reaches its peers; it hears them."""
    node = world.most()
    world.strike(node)
    world.hold_all([node.name], world.names, Mode.THERE)
    world.hold_all(world.names, [node.name], Mode.BACK)
    await world.pause(3.0, 8.0)
    world.net.heal()


async def cut_peers(world: World) -> None:
    """No peer, either way, but etcd."""
    node = world.most()
    world.strike(node)
    world.hold_all([node.name], world.names, Mode.HOLD)
    world.hold_all(world.names, [node.name], Mode.HOLD)
    await world.pause(3.0, 8.0)
    world.net.heal()


async def cut_pair(world: World) -> None:
    """Two nodes cannot reach each other; both reach the third, and etcd."""
    a, b = world.rng.sample(world.names, 2)
    world.strike(*(node for node in world.cluster.nodes if node.name in (a, b)))
    world.hold_all([a], [b], Mode.HOLD)
    world.hold_all([b], [a], Mode.HOLD)
    await world.pause(3.0, 8.0)
    world.net.heal()


async def cut_all(world: World) -> None:
    """Neither peers nor etcd. Clients and targets still reach it."""
    node = world.most()
    world.strike(node)
    _etcd(world, node, Mode.HOLD)
    world.hold_all([node.name], world.names, Mode.HOLD)
    world.hold_all(world.names, [node.name], Mode.HOLD)
    await world.pause(3.0, 8.0)
    world.net.heal()


# --- disks ------------------------------------------------------------------------------------


async def eio(world: World) -> None:
    """Every fdatasync of one node fails from the next on: it must end itself; it comes back on a good disk."""
    node = world.most()
    tracer = fail_syncs(node.pid)
    world.strike(node)
    try:
        code = await asyncio.to_thread(node.wait_exit, ENDS_S)
        if code != EXIT_FATAL:
            world.wrong.append(f"eio: {node.name} ended with {code}: {node.tail(5)}")
    except subprocess.TimeoutExpired:
        world.wrong.append(f"eio: {node.name} lives on after EIO: {node.tail(5)}")
        node.kill()
    finally:
        tracer.kill()
        tracer.wait()
    node.spawn()


def fail_syncs(pid: int) -> "subprocess.Popen[bytes]":
    """Have strace answer EIO to each fdatasync of a process."""
    return subprocess.Popen(
        [shutil.which("strace") or "strace", "-f", "-qq", "-o", "/dev/null", "-p", str(pid),
         "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=1+"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


async def full_disk(world: World) -> None:
    """The disk of one node is full for some seconds: it refuses or ends, and comes back when there is room."""
    assert isinstance(world.cluster, ChaosCluster)
    disk = world.cluster.disk
    assert disk is not None
    node = world.cluster.nodes[-1]
    ballast = disk / "ballast"
    world.strike(node)
    await asyncio.to_thread(fill, ballast)
    await world.pause(*DISK_FULL_S)
    code = node.code()
    world.fault.note += f"exit code {code}; "
    if code not in (None, EXIT_FATAL):
        world.wrong.append(f"full_disk: {node.name} ended with {code}: {node.tail(5)}")
    ballast.unlink()
    if code is not None:
        node.spawn()


def fill(path: Path) -> None:
    """Until there is no room."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))


# --- clocks -----------------------------------------------------------------------------------


async def _set_clock(world: World, offset_ms: int) -> None:
    node = world.most()
    assert isinstance(node, ChaosNode)
    world.strike(node)
    node.hands.set(offset_ms)
    await world.pause(3.0, 8.0)
    node.hands.set(0)


async def clock_back(world: World) -> None:
    """The clock of the node that leads most is set back, and right again: it must not lead meanwhile."""
    await _set_clock(world, -world.rng.choice((2_000, 10_000, 60_000)))


async def clock_forward(world: World) -> None:
    """The same, forward: it must not fire early."""
    await _set_clock(world, world.rng.choice((2_000, 10_000, 90_000)))


# --- what operators do ------------------------------------------------------------------------


async def move(world: World) -> None:
    """Some shards, to another voter, at the same time."""
    world.strike(*world.cluster.nodes)
    shown = await asyncio.to_thread(world.cluster.map)
    wishes: list[Awaitable[None]] = []
    for shard in world.rng.sample(list(shown.shards), 4):
        others = [voter for voter in shard.voters if voter != shard.leader]
        request = MoveShardRequest(name=shard.name, node=world.rng.choice(others))
        wishes.append(world.call(world.any_node(), "MoveShard", request))
    await asyncio.gather(*wishes)


async def drain(world: World) -> None:
    """One node is to be empty, and then it may lead again."""
    node = world.most()
    world.strike(node)
    shown = await asyncio.to_thread(world.cluster.map)
    name = next(n.name for n in shown.nodes if n.host == node.name)
    await world.call(world.any_node(), "DrainNode", DrainNodeRequest(name=name))
    await world.pause(2.0, 4.0)
    await world.call(world.any_node(), "DrainNode", DrainNodeRequest(name=name, undo=True))


async def drain_kill(world: World) -> None:
    """A drain, and while the shards are on their way, another node is killed."""
    node = world.most()
    other = world.rng.choice([n for n in world.cluster.nodes if n is not node])
    shown = await asyncio.to_thread(world.cluster.map)
    name = next(n.name for n in shown.nodes if n.host == node.name)
    world.strike(node, other)
    await world.call(other, "DrainNode", DrainNodeRequest(name=name))
    await world.pause(0.0, 0.3)
    other.kill()
    await world.pause(1.0, 3.0)
    other.spawn()
    await world.call(node, "DrainNode", DrainNodeRequest(name=name, undo=True))


KINDS: dict[str, Kind] = {
    "kill_leader": kill_leader, "kill_random": kill_random, "kill_two": kill_two, "pause": pause,
    "roll": roll, "wipe": wipe, "etcd_member": etcd_member, "etcd_all": etcd_all,
    "cut_etcd": cut_etcd, "deaf": deaf, "mute": mute, "cut_peers": cut_peers,
    "cut_pair": cut_pair, "cut_all": cut_all, "eio": eio, "full_disk": full_disk, "clock_back": clock_back,
    "clock_forward": clock_forward, "move": move,
    "drain": drain, "drain_kill": drain_kill, "fail_over": fail_over,
}  # fmt: skip


def impossible(members: int) -> dict[str, str]:
    """The kinds that this machine does not allow, with the reason."""
    missing: dict[str, str] = {}
    if members < 2:
        missing["etcd_member"] = "etcd has one member"
    if sys.platform != "linux" or os.geteuid() != 0:
        missing["full_disk"] = "mounting a small file system needs root, on Linux"
    strace = shutil.which("strace")
    if strace is None:
        missing["eio"] = "strace is not installed"
    elif not command_runs(strace, "-f", "-e", "inject=fdatasync:error=EIO:when=1", "true"):
        missing["eio"] = "this machine allows no tracing"
    return missing
