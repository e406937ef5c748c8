"""What replication costs: the same load on a node alone and on three nodes, CPU a job by role.

    alone      one node, one copy
    leader     the node that was asked, when it leads every shard
    follower   the two others, whose disks count
    entry      the node that was asked, when it leads none: it forwards

Client, sink, etcd and all nodes share the machine's cores, so jobs/s say little; CPU a job is what to look at.
"""

import asyncio
import time
from typing import Any

import grpc

from bench import calls
from bench.cluster import Cluster
from bench.etcd import find_etcd
from bench.node import Node, Sink
from bench.report import Row
from bench.rig import Rig
from tickwheel.v1.cluster_service_pb2 import DrainNodeRequest
from tickwheel.v1.cluster_service_pb2_grpc import ClusterServiceStub

BATCHES = ((1_000, 4), (100, 8), (1, 64))
JOBS = {1_000: 100_000, 100: 20_000, 1: 5_000}
HOUR_MS = 3_600_000
EMPTY_S = 30.0


async def create(target: str, url: str, name: str, shape: tuple[int, int, int]) -> float:
    """Create `count` jobs in batches of `size`, `width` at a time, through one node; jobs a second."""
    count, size, width = shape
    api = calls.Api(target)
    due_ms = calls.now_ms() + HOUR_MS
    gate = asyncio.Semaphore(width)

    async def one(first: int) -> None:
        requests = [
            calls.request(f"{name}-{k}", calls.once(url, due_ms + k))
            for k in range(first, first + size)
        ]
        async with gate:
            await api.create_many(requests)

    begin_s = time.monotonic()
    try:
        await asyncio.gather(*(one(first) for first in range(0, count, size)))
    finally:
        await api.close()
    return count / (time.monotonic() - begin_s)


def measure(
    nodes: list[Node], target: str, sink: Sink, name: str, shape: tuple[int, int, int]
) -> tuple[float, list[float]]:
    """Jobs a second, and µs of CPU a job of each node."""
    before = [node.cpu_s() for node in nodes]
    per_s = asyncio.run(create(target, sink.url(), name, shape))
    used = [node.cpu_s() - was for node, was in zip(nodes, before, strict=True)]
    return per_s, [round(seconds * 1e6 / shape[0], 1) for seconds in used]


def drain(cluster: Cluster, hosts: list[str]) -> None:
    """Have some nodes lead nothing."""
    shown = cluster.map()
    with grpc.insecure_channel(cluster.nodes[0].target) as channel:
        stub: Any = ClusterServiceStub(channel)
        for node in shown.nodes:
            if node.host in hosts:
                stub.DrainNode(DrainNodeRequest(name=node.name), timeout=10)
    until_s = time.monotonic() + EMPTY_S
    while any(cluster.leads()[host] for host in hosts):
        if time.monotonic() > until_s:
            raise TimeoutError(f"{hosts} still lead shards")
        time.sleep(0.2)


def replication(rig: Rig) -> list[Row]:
    """What replication costs: CPU a job alone, and of leader, follower and entry in a cluster of three."""
    shapes = [(max(int(JOBS[size] * rig.scale), size), size, width) for size, width in BATCHES]
    with Sink() as sink:
        with rig.node("alone") as node:
            rows = [alone(node, sink, shape) for shape in shapes]
        if find_etcd() is None:
            return rows
        with Cluster(rig.directory / "cluster") as cluster:
            cluster.start()
            drain(cluster, [node.name for node in cluster.nodes[1:]])
            for asked in (0, 1):
                rows += [together(cluster, sink, asked, shape) for shape in shapes]
    return rows


def alone(node: Node, sink: Sink, shape: tuple[int, int, int]) -> Row:
    """One node, one copy."""
    per_s, (cpu_us,) = measure([node], node.target, sink, f"a{shape[1]}", shape)
    return {"what": "alone", "batch": shape[1], "per_s": round(per_s), "leader_us": cpu_us}


def together(cluster: Cluster, sink: Sink, asked: int, shape: tuple[int, int, int]) -> Row:
    """Three nodes, of which the first leads everything; node number `asked` is asked."""
    target = cluster.nodes[asked].target
    per_s, cpu_us = measure(list(cluster.nodes), target, sink, f"c{asked}{shape[1]}", shape)
    row: Row = {
        "what": f"three nodes, asked at the {'follower' if asked else 'leader'}",
        "batch": shape[1],
        "per_s": round(per_s),
        "leader_us": cpu_us[0],
        "follower_us": cpu_us[2],
    }
    if asked:
        row["follower_and_entry_us"] = cpu_us[asked]
    return row
