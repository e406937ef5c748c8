"""`make cluster`: three nodes and an etcd on your machine; a leader dies, another takes over, nothing is lost.

Each node says that it stands on a host of its own, so each shard has three copies. Jobs are scheduled through one node,
whoever leads their shards. While they wait, the node that leads most shards is killed with `kill -9`. The tables show who
led what before and after, and the requests that were late because of it; the exit code is 0 only if each arrived, none
early, and every shard found a new leader.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, from anywhere

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench import calls
from bench.checker import History, Job, Outage, Report, check, scheduled_ms
from bench.cluster import Cluster, ClusterNode
from bench.etcd import find_etcd
from bench.node import Sink
from bench.sink import Arrival

EVERY_MS = 50
FIRST_MS = 6_000
KILL_MS = 8_000
END_MS = 16_000
FAIL_OVER_S = 10.0
LATE_MS_MAX = 6_000


async def schedule(target: str, jobs: list[Job], url: str) -> int:
    """Create all jobs through one node; the uids go into the model. Milliseconds it took."""
    api = calls.Api(target)
    start_ms = calls.now_ms()
    try:
        made = await asyncio.gather(
            *(api.create(job.name, calls.once(url, job.due_ms)) for job in jobs)
        )
    finally:
        await api.close()
    for job, message in zip(jobs, made, strict=True):
        job.uid = message.uid
    return calls.now_ms() - start_ms


def shard_map(cluster: Cluster, title: str) -> Table:
    """Who leads how many shards."""
    shown = cluster.map()
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    for column in ("node", "alive", "leads", "holds a copy of"):
        table.add_column(column, justify="left" if column == "node" else "right")
    for node in sorted(shown.nodes, key=lambda node: node.host or "~"):
        leads = sum(shard.leader == node.name for shard in shown.shards)
        holds = sum(node.name in shard.voters for shard in shown.shards)
        table.add_row(node.host, "yes" if node.alive else "no", str(leads), str(holds))
    return table


def fail_over(console: Console, cluster: Cluster) -> tuple[ClusterNode, Outage, float]:
    """Kill who leads most, and wait until its shards are led again."""
    leads = cluster.leads()
    victim = max(cluster.nodes, key=lambda node: leads[node.name])
    console.print(f"[bold red]kill -9[/] {victim.name}, which leads {leads[victim.name]} shards …")
    dead_ms, dead_s = calls.now_ms(), time.monotonic()
    victim.kill()
    cluster.wait_served(FAIL_OVER_S)
    while cluster.leads()[victim.name]:  # the map that was asked may be of a moment before
        time.sleep(0.02)
    cluster.wait_served(FAIL_OVER_S)
    took_s = time.monotonic() - dead_s
    console.print(f"[bold green]Every shard has a leader again[/] after {took_s:.2f} s.")
    return victim, Outage(dead_ms, calls.now_ms()), took_s


def late_table(arrivals: list[Arrival], outage: Outage) -> Table:
    """What the outage made late: the ten latest."""
    table = Table(box=SIMPLE_HEAD, title="the latest requests", title_justify="left")
    for column in ("job", "late ms", "epoch"):
        table.add_column(column, justify="left" if column == "job" else "right")
    late = sorted(
        (arrival.arrival_us / 1_000 - scheduled_ms(arrival), arrival) for arrival in arrivals
    )
    for lag_ms, arrival in late[-10:]:
        name = arrival.job.rpartition("/")[2]
        table.add_row(name, f"{lag_ms:.1f}", str(arrival.epoch))
    table.caption = f"the outage took {outage.end_ms - outage.start_ms} ms"
    return table


def verdict(console: Console, report: Report, latest_ms: float) -> bool:
    """Say what the judge found. True when all is well."""
    for kind, examples in report.examples.items():
        console.print(f"[bold red]{kind}[/]: {', '.join(examples)}")
    good = report.clean and report.executions > 0 and latest_ms <= LATE_MS_MAX
    if good:
        twice = (
            f", {report.at_kill} of them twice, with the same id" if report.at_kill else ", once"
        )
        console.print(
            f"[bold green]All {report.executions} arrived{twice}; none early, none lost.[/] The latest was "
            f"{latest_ms:.0f} ms late."
        )
    return good


def run(console: Console, cluster: Cluster, sink: Sink) -> bool:
    """The whole story."""
    began_s = time.monotonic()
    cluster.start()
    console.print(f"etcd and three nodes run; it took {time.monotonic() - began_s:.1f} s.")
    console.print(shard_map(cluster, "before"))
    start_ms = calls.now_ms()
    dues = range(start_ms + FIRST_MS, start_ms + END_MS, EVERY_MS)
    jobs = [Job(f"order-{number:03d}", "", due_ms) for number, due_ms in enumerate(dues)]
    took_ms = asyncio.run(schedule(cluster.nodes[0].target, jobs, sink.url()))
    console.print(
        f"{len(jobs)} jobs scheduled through {cluster.nodes[0].name} in {took_ms} ms, each on two disks "
        "before its answer."
    )
    time.sleep(max(start_ms + KILL_MS - calls.now_ms(), 0) / 1_000)
    victim, outage, _ = fail_over(console, cluster)
    console.print(shard_map(cluster, "after"))
    horizon_ms = start_ms + END_MS
    time.sleep(max(horizon_ms + LATE_MS_MAX - calls.now_ms(), 0) / 1_000)
    victim.start()
    console.print(f"{victim.name} is back, and catches up.")
    arrivals = sink.records()
    console.print(late_table(arrivals, outage))
    latest_ms = max((a.arrival_us / 1_000 - scheduled_ms(a) for a in arrivals), default=0.0)
    report = check(History(jobs, arrivals, horizon_ms, [], [outage]))
    return verdict(console, report, latest_ms)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make cluster", description=__doc__)
    parser.add_argument("--dir", type=Path, help="default: a temporary one, removed at the end")
    asked = parser.parse_args()
    console = Console(highlight=False)
    if find_etcd() is None:
        console.print("No etcd: put one on the PATH, or name it in ETCD_PROGRAM.")
        return 1
    directory = asked.dir or Path(tempfile.mkdtemp(prefix="tickwheel-cluster-"))
    try:
        with Sink() as sink, Cluster(directory) as cluster:
            return 0 if run(console, cluster, sink) else 1
    finally:
        if asked.dir is None:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
