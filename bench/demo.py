"""`make demo`: what the project is for, on your machine, in about twenty seconds.

A node and a target start. Some jobs are scheduled over gRPC: one-offs, an `every`, a `cron`; some fall due while the node
is dead. While they wait the node is killed with `kill -9`, and started again. The table shows each request as the
target saw it: scheduled, arrived, how late; the exit code is 0 only if each arrived, once, and never early.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, from anywhere

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench import calls
from bench.checker import Excuse, History, Job, Outage, Report, check, name_of, scheduled_ms
from bench.node import Node, Sink
from bench.sink import Arrival
from tickwheel.v1.job_pb2 import Job as Message

KILL_MS = 4_000
DOWN_MS = 2_500
FIRST_MS = 1_500
EVERY_MS = 2_000
END_MS = 15_000
SETTLE_S = 10.0
LATE_MS_MAX = 1_000  # of what fell due while the node ran


class Plan(NamedTuple):
    """What is scheduled: the messages by job name, and what the judge must know of each."""

    start_ms: int
    messages: dict[str, Message]
    jobs: list[Job]


def plan(sink: Sink, start_ms: int) -> Plan:
    """Ten one-offs over the time span, three of them within the outage; an `every`; a `cron`."""
    url = sink.url()
    messages: dict[str, Message] = {}
    jobs: list[Job] = []
    offsets = [
        1_500,
        2_250,
        3_000,
        KILL_MS + 200,
        KILL_MS + 900,
        KILL_MS + 1_700,
        8_000,
        9_500,
        11_000,
        13_000,
    ]
    for offset in offsets:
        name = f"order-{len(jobs) + 1:02d}"
        messages[name] = calls.once(url, start_ms + offset, body=b'{"say":"hello"}')
        jobs.append(Job(name, "", start_ms + offset))
    first = start_ms + FIRST_MS
    messages["heartbeat"] = calls.every(sink.url("/ok"), EVERY_MS, first)
    jobs.append(Job("heartbeat", "", first, EVERY_MS))
    messages["report"] = calls.cron(url, "*/5 * * * * *")
    jobs.append(Job("report", "", -(-(start_ms + 1_000) // 5_000) * 5_000, 5_000))
    messages["report"].window.start_time.CopyFrom(calls.stamp(jobs[-1].due_ms))
    return Plan(start_ms, messages, jobs)


async def schedule(node: Node, what: Plan) -> None:
    """Create all jobs; the uids go into the model."""
    api = calls.Api(node.target)
    try:
        for job in what.jobs:
            job.uid = (await api.create(job.name, what.messages[job.name])).uid
    finally:
        await api.close()


async def excuses(node: Node) -> list[Excuse]:
    """What the server says it did not attempt."""
    api = calls.Api(node.target)
    try:
        return await api.excuses()
    finally:
        await api.close()


def sleep_until(ms: int) -> None:
    """Wait for an instant of the wall clock."""
    time.sleep(max(ms - calls.now_ms(), 0) / 1_000)


def run(console: Console, node: Node, sink: Sink) -> tuple[Report, list[Arrival], Outage]:
    """The whole story."""
    node.start()
    console.print(f"A node runs (pid {node.pid}, gRPC {node.target}), and a target ({sink.url()}).")
    start_ms = calls.now_ms()
    what = plan(sink, start_ms)
    asyncio.run(schedule(node, what))
    took = calls.now_ms() - start_ms
    console.print(
        f"{len(what.jobs)} jobs scheduled over gRPC in {took} ms, each durable before its answer."
    )
    sleep_until(start_ms + KILL_MS)
    dead = calls.now_ms()
    node.kill()
    console.print(
        f"[bold red]kill -9 {node.pid}[/] while they wait. {DOWN_MS / 1_000} s of silence …"
    )
    sleep_until(dead + DOWN_MS)
    node.start()
    outage = Outage(dead, calls.now_ms())
    console.print(
        f"[bold green]Started again[/] (pid {node.pid}), ready after {outage.end_ms - dead - DOWN_MS} ms."
    )
    horizon = start_ms + END_MS
    sleep_until(horizon + LATE_MS_MAX)
    arrivals = sink.records()
    missed = asyncio.run(excuses(node))
    code = node.terminate()
    console.print(f"SIGTERM: the node ended with exit code {code}.")
    report = check(History(what.jobs, arrivals, horizon, missed, [outage]))
    return report, arrivals, outage


def table(arrivals: list[Arrival], outage: Outage) -> Table:
    """Each request as the target saw it."""
    out = Table(box=SIMPLE_HEAD)
    for column in ("job", "scheduled", "arrived", "late ms", "times", "epoch", ""):
        numeric = column in ("late ms", "times", "epoch")
        out.add_column(column, no_wrap=True, justify="right" if numeric else "left")
    counts: dict[str, int] = {}
    for arrival in arrivals:
        counts[arrival.id] = counts.get(arrival.id, 0) + 1
    shown: set[str] = set()
    for arrival in sorted(arrivals, key=scheduled_ms):
        if arrival.id in shown:
            continue
        shown.add(arrival.id)
        due = scheduled_ms(arrival)
        lag_ms = arrival.arrival_us / 1_000 - due
        note = "while dead" if outage.start_ms <= due <= outage.end_ms else ""
        out.add_row(
            name_of(arrival), clock(due), clock(arrival.arrival_us / 1_000), f"{lag_ms:.1f}",
            str(counts[arrival.id]), str(arrival.epoch), note,
        )  # fmt: skip
    return out


def clock(ms: float) -> str:
    """Minute, second and ms of local time."""
    whole = time.strftime("%M:%S", time.localtime(ms / 1_000))
    return f"{whole}.{int(ms) % 1_000:03d}"


def verdict(console: Console, report: Report) -> bool:
    """Say what the judge found. True when all is well."""
    lag = report.summary()["lag_ms"]
    punctual = lag.get("max", 0) <= LATE_MS_MAX
    for kind, examples in report.examples.items():
        console.print(f"[bold red]{kind}[/]: {', '.join(examples)}")
    if not punctual:
        console.print(f"[bold red]late[/]: by {lag['max']:.1f} ms while the node ran")
    good = report.clean and punctual and report.executions > 0
    if good:
        extra = f", {report.at_kill} sent again because of the kill" if report.at_kill else ", once"
        merged = (
            f" Missed beats of the heartbeat, on record: {report.excused}."
            if report.excused
            else ""
        )
        console.print(
            f"[bold green]All {report.executions} arrived{extra}, none early, none lost.[/]{merged} While the node ran: "
            f"p50 {lag['p50']:.1f} ms, at most {lag['max']:.1f} ms late."
        )
    return good


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--data-dir", type=Path, help="default: a temporary one, removed at the end"
    )
    asked = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="tickwheel-demo-") as temporary, Sink() as sink:
        data = asked.data_dir or Path(temporary) / "data"
        with Node(data) as node:
            report, arrivals, outage = run(console, node, sink)
        console.print(table(arrivals, outage))
        return 0 if verdict(console, report) else 1


if __name__ == "__main__":
    sys.exit(main())
