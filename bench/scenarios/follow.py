"""What it saves that the client library follows the shard map: CPU a call, of all nodes and of the client.

    create      single creates, which the client gathers       get     reads, each a call of its own

    any node    the client has one address and calls it; that node passes on what others lead
    follow      the same client, once it knows the leaders

Both are measured in turn, on one cluster of three nodes that share the shards, so that whatever else the machine does
meets both. What the nodes use while nothing is asked of them (heartbeats) is measured first, and not counted.
"""

import asyncio
import time
from datetime import UTC, datetime
from statistics import median

from bench import calls
from bench.cluster import Cluster
from bench.etcd import find_etcd
from bench.node import Sink, counted, wait_until
from bench.report import Row
from bench.rig import Rig
from tickwheel.client import AsyncClient

SHAPES = (("create", 64, 12_000), ("create", 8, 4_000), ("get", 8, 6_000))
"""What is done, by how many users who each wait for an answer, and how often in all."""

TURNS = 5
BALANCED_S = 180.0
IDLE_S = 4.0
HOUR_MS = 3_600_000
FORWARDED = "tickwheel_cluster_calls_forwarded_total"


def follow(rig: Rig) -> list[Row]:
    """CPU a call through three nodes, by a client that follows the shard map and by one that does not."""
    if find_etcd() is None:
        return []
    with Sink() as sink, Cluster(rig.directory / "cluster") as cluster:
        cluster.start()
        wait_until(lambda: min(cluster.leads().values()) >= 64 // 6, BALANCED_S, "shared shards")
        return [
            row
            for what, flight, count in SHAPES
            for row in compared(cluster, sink.url(), (what, flight, rig.count(count)))
        ]


Shape = tuple[str, int, int]


def compared(cluster: Cluster, url: str, shape: Shape) -> list[Row]:
    """Both ways in turn; the median of each."""
    what, flight, _ = shape
    idle_s = idle(cluster)
    runs: dict[bool, list[Row]] = {False: [], True: []}
    for turn in range(TURNS):
        for followed in (False, True):
            prefix = f"{what}-{'f' if followed else 'a'}{flight}-{turn}-"
            run = measured(cluster, url, prefix, shape, follow=followed, idle_s=idle_s)
            runs[followed].append(run)
    return [
        {
            "what": what,
            "way": "follow" if followed else "any node",
            "flight": flight,
            **{name: median(float(str(run[name])) for run in found) for name in found[0]},
        }
        for followed, found in runs.items()
    ]


def idle(cluster: Cluster) -> float:
    """Seconds of CPU that all nodes use in a second while nothing is asked of them."""
    before = sum(node.cpu_s() for node in cluster.nodes)
    time.sleep(IDLE_S)
    return (sum(node.cpu_s() for node in cluster.nodes) - before) / IDLE_S


def measured(
    cluster: Cluster, url: str, prefix: str, shape: Shape, *, follow: bool, idle_s: float
) -> Row:
    """One run, after the client has learnt what it wants to know."""
    what, flight, count = shape

    async def run() -> tuple[float, float, float]:
        async with AsyncClient(cluster.nodes[0].target, follow=follow, timeout_s=60) as client:
            await create(client, url, f"{prefix}w", flight, max(count // 10, 100))
            await asyncio.sleep(1.0)
            nodes_s, own_s, wall_s = used(cluster)
            if what == "create":
                await create(client, url, prefix, flight, count)
            else:
                await read(client, f"{prefix}w", flight, count)
            after = used(cluster)
            return after[0] - nodes_s, after[1] - own_s, after[2] - wall_s

    before = forwarded(cluster)
    nodes_s, own_s, wall_s = asyncio.run(run())
    return {
        "per_s": round(count / wall_s),
        "nodes_us": round((nodes_s - idle_s * wall_s) * 1e6 / count, 1),
        "client_us": round(own_s * 1e6 / count, 1),
        "passed_on": forwarded(cluster) - before,
    }


def used(cluster: Cluster) -> tuple[float, float, float]:
    """Seconds of CPU: of all nodes, of this process; and of time."""
    return sum(node.cpu_s() for node in cluster.nodes), time.process_time(), time.monotonic()


def forwarded(cluster: Cluster) -> int:
    """Calls that nodes passed on so far."""
    return sum(int(counted(node, FORWARDED)) for node in cluster.nodes)


async def create(client: AsyncClient, url: str, prefix: str, flight: int, count: int) -> None:
    """Make so many jobs, by users who each wait for an answer before the next."""
    due = datetime.fromtimestamp((calls.now_ms() + HOUR_MS) / 1_000, UTC)
    numbers = iter(range(count))

    async def user() -> None:
        for number in numbers:
            await client.create(url, job_id=f"{prefix}{number}", at=due, body=b"x" * 100)

    await asyncio.gather(*(user() for _ in range(flight)))


async def read(client: AsyncClient, prefix: str, flight: int, count: int) -> None:
    """Read jobs that were made before, by users who each wait for an answer before the next."""
    numbers = iter(range(count))

    async def user() -> None:
        for number in numbers:
            await client.get(f"{prefix}{number % 100}")

    await asyncio.gather(*(user() for _ in range(flight)))
