"""The chaos campaign: three nodes and an etcd under load, one fault after the other, and a judge of every job.

One leg: a fresh cluster; one-offs and recurring jobs are created through every node, some cancelled, some moved, all due
within seconds. Fault after fault strikes (tests/e2e/chaos_faults.py lists the kinds); after each, the campaign waits
until every shard is served and has all its copies. At the end each acknowledged job is held against each request that
its target saw (bench/checker.py):

    lost, early, after_cancel, second_job, epoch_back, ...    violations, always
    a second request after a success                          `at_kill` if the second carries a higher epoch and the first was on
                                                              its way, or answered less than 1 s ago, between a fault and the
                                                              moment when the cluster was whole again; else `duplicate`,
                                                              a violation
    a change of leader without a fault                        `unplanned`, in the line; a window of its own, from one lease before

For each fault: `served_ms`, until every shard was served again for good (0: all were, all the time; some kinds strike
more than once); `unserved_ms`, for how long, in sum, some shard was not; `fired_ms`, until the
first, and until the last, of the shards that the harmed nodes led had sent a request under a new epoch; `whole_ms`.

A clock that jumps is given to one node by tests/e2e/stepping.py: the host's own would jump for all of them, and the judge.

    make chaos                                     one leg with etcd alone, one with three members
    make chaos ARGS='--faults 1000'                until the results file holds so many faults
    make chaos ARGS='--kinds pause,cut_all --legs 5'
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import calls
from bench.checker import Change, History, Report, check, name_of
from bench.cluster import Cluster
from bench.etcd import find_etcd
from bench.node import ROOT, Sink
from bench.report import commit
from bench.sink import Arrival
from tests.e2e.chaos_faults import (
    EXIT_FATAL,
    KINDS,
    ChaosCluster,
    Fault,
    World,
    impossible,
)
from tests.e2e.chaos_load import Load
from tests.e2e.chaos_net import Net
from tests.e2e.chaos_watch import Changed, Watch
from tests.e2e.crash import HORIZON_MS, SETTLE_S
from tests.e2e.crash import Leg as LoadLeg

from tickwheel.server.placement import shard_of

RESULTS = Path(__file__).parent / "results" / "chaos.ndjson"
WHOLE_S = 60.0
LEASE_MS = 6_000
BETWEEN_S = (0.3, 1.5)
READY_S = 90.0
SUPERVISE_S = 0.5
UNREACHED = "can't be reached"
DEFAULT = tuple(kind for kind in KINDS if kind != "fail_over")
DUMPS = ROOT / "tests" / "e2e" / "dumps"


@dataclass(frozen=True, slots=True)
class Leg:
    """What one leg does."""

    seed: int
    kinds: tuple[str, ...]
    members: int = 1
    shards: int = 16
    rate: int = 60
    recurring: int = 48


@dataclass(slots=True)
class Outcome:
    """What a leg came to."""

    report: Report
    faults: list[Fault]
    wrong: list[str] = field(default_factory=list[str])
    unplanned: list[Changed] = field(default_factory=list[Changed])
    arrivals: Sequence[Arrival] = ()
    watch: Watch | None = None
    dropped: int = 0
    repeats: int = 0


class Campaign:
    """One leg on a running cluster."""

    def __init__(self, leg: Leg, cluster: Cluster, sink: Sink) -> None:
        self.leg = leg
        self.sink = sink
        self.watch = Watch(cluster.nodes)
        self.world = World(cluster, self.watch, random.Random(f"faults {leg.seed}"))
        load = LoadLeg(leg.seed, 0, 0, rate=leg.rate, recurring=leg.recurring)
        self.load = Load(load, cluster.nodes, sink)
        self.done: list[Fault] = []

    async def run(self) -> Outcome:
        """The whole leg."""
        watching = asyncio.create_task(self.watch.run())
        try:
            await self.watch.whole(WHOLE_S)
            await self.load.begin()
            flow = asyncio.create_task(self.load.flow())
            await asyncio.sleep(2.0)
            try:
                await self._all_faults()
            finally:
                self.load.stopping = True
                await flow
            return await self._judge()
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            await self.load.end()

    async def _all_faults(self) -> None:
        for kind in self.leg.kinds:
            self.world.fault = fault = Fault(kind)
            await KINDS[kind](self.world)
            fault.healed_ms = calls.now_ms()
            supervising = asyncio.create_task(self._supervise(fault))
            try:
                await self.watch.whole(WHOLE_S)
            except TimeoutError as error:
                self.world.wrong.append(f"{kind}: not whole after {WHOLE_S:.0f} s: {error}")
                self._dump()
            finally:
                supervising.cancel()
            fault.whole_ms = calls.now_ms()
            self.done.append(fault)
            if self.world.wrong:
                return
            await self.world.pause(*BETWEEN_S)

    async def _supervise(self, fault: Fault) -> None:
        """Start again what ended because it could not reach etcd in time at its start; any other end is wrong."""
        while True:
            for node in self.world.cluster.nodes:
                code = node.code()
                if code is not None:
                    said = f"{fault.kind}: {node.name} ended with {code}: {node.tail(1)}"
                    fault.note += said
                    full = fault.kind == "full_disk" and code == EXIT_FATAL
                    if UNREACHED not in said and not full:
                        self.world.wrong.append(said)
                    node.spawn()
            await asyncio.sleep(SUPERVISE_S)

    def _dump(self) -> None:
        """Have every node write down its tasks, if it was started with `DUMPS` on its path."""
        if str(DUMPS) in os.environ.get("PYTHONPATH", ""):
            for node in self.world.cluster.running():
                os.kill(node.pid, signal.SIGUSR2)
            time.sleep(2.0)

    async def _judge(self) -> Outcome:
        horizon_ms = calls.now_ms() + HORIZON_MS + 500
        await asyncio.sleep((horizon_ms - calls.now_ms()) / 1_000 + SETTLE_S)
        await self.load.wait_quiet()
        await self.load.compare_state()
        excuses = await self.load.api.excuses()
        story = self.load.story
        arrivals = self.sink.records()
        unplanned = self._unplanned()
        windows = [Change(f.at_ms, f.whole_ms, f.kind) for f in self.done]
        windows += [Change(c.before_ms - LEASE_MS, c.seen_ms, "unplanned") for c in unplanned]
        report = check(History(story.jobs, arrivals, horizon_ms, excuses, changes=windows))
        wrong = self.world.wrong + story.faults
        return Outcome(report, self.done, wrong, unplanned, arrivals, self.watch,
                       self.load.dropped, self.load.api.repeats)  # fmt: skip

    def _unplanned(self) -> list[Changed]:
        """Changes of leader outside every fault."""
        return [
            c
            for c in self.watch.changes
            if not any(f.at_ms <= c.seen_ms and c.before_ms <= f.whole_ms for f in self.done)
        ]


def fired_ms(fault: Fault, arrivals: Sequence[Arrival], shards: int) -> dict[str, int]:
    """From the fault until the first and the last of its shards sent something under a new epoch."""
    first: dict[int, int] = {}
    for arrival in arrivals:
        at_ms = arrival.arrival_us // 1_000
        if not fault.at_ms <= at_ms <= fault.whole_ms:
            continue
        number = shard_of("default", name_of(arrival), shards)
        led = fault.shards.get(number)
        if led is not None and arrival.epoch > led.epoch:
            first[number] = min(first.get(number, at_ms), at_ms)
    if not first:
        return {}
    took = sorted(at_ms - fault.at_ms for at_ms in first.values())
    return {"first": took[0], "last": took[-1], "shards": len(took)}


async def run(leg: Leg, cluster: Cluster, sink: Sink, others: int = 0) -> Outcome:
    """On a cluster that serves, and holds so many `others`' jobs; channels belong to the loop that runs here."""
    campaign = Campaign(leg, cluster, sink)
    campaign.load.others = others
    return await campaign.run()


def run_leg(leg: Leg, directory: Path) -> Outcome:
    """One leg in a directory of its own."""
    with Net() as net, Sink() as sink:
        cluster = ChaosCluster(directory, net, members=leg.members, shards=leg.shards)
        with cluster:
            cluster.start(READY_S)
            try:
                return asyncio.run(run(leg, cluster, sink))
            except BaseException as error:
                for node in cluster.nodes:
                    error.add_note(f"{node.name}: {node.tail(15)}")
                raise


# --- results ----------------------------------------------------------------------------------


def line(leg: Leg, outcome: Outcome, wall_s: float) -> dict[str, Any]:
    """What a leg leaves in the results file."""
    report = outcome.report
    faults = [fault_line(fault, outcome, leg.shards) for fault in outcome.faults]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "seed": leg.seed,
        "members": leg.members,
        "shards": leg.shards,
        "rate": leg.rate,
        "load_average": round(os.getloadavg()[0], 1),
        "clean": report.clean and not outcome.wrong,
        "fault_count": len(faults),
        **report.summary(),
        "at_change": report.at_change,
        "unplanned": len(outcome.unplanned),
        "wrong": outcome.wrong[:10],
        "dropped": outcome.dropped,
        "repeats": outcome.repeats,
        "faults": faults,
        "wall_s": round(wall_s, 1),
    }


def fault_line(fault: Fault, outcome: Outcome, shards: int) -> dict[str, Any]:
    """One fault: when, whom, and how long until what."""
    assert outcome.watch is not None
    served = outcome.watch.served_again_ms(fault.at_ms, fault.whole_ms)
    row: dict[str, Any] = {
        "kind": fault.kind,
        "at": datetime.fromtimestamp(fault.at_ms / 1_000, UTC).isoformat(timespec="milliseconds"),
        "hosts": fault.hosts,
        "led": len(fault.shards),
        "healed_ms": fault.healed_ms - fault.at_ms,
        "served_ms": served - fault.at_ms,
        "unserved_ms": outcome.watch.unserved_ms(fault.at_ms, fault.whole_ms),
        "fired_ms": fired_ms(fault, outcome.arrivals, shards),
        "whole_ms": fault.whole_ms - fault.at_ms,
    }
    return {**row, "note": fault.note} if fault.note else row


def rows_of(results: Path) -> list[dict[str, Any]]:
    """All lines so far."""
    if not results.exists():
        return []
    return [json.loads(row) for row in results.read_text().splitlines()]


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The table of a campaign."""

    def total(name: str) -> int:
        return sum(row[name] for row in rows)

    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    duplicates: dict[str, int] = defaultdict(int)
    for row in rows:
        for fault in row["faults"]:
            by_kind[fault["kind"]].append(fault)
        for kind, count in row["at_change"].items():
            duplicates[kind] += count
    out = [
        f"{'kind':12} {'faults':>6} {'served p50':>10} {'max ms':>8} {'fired p50':>10} {'max ms':>8} {'dup':>5}"
    ]
    for kind, faults in sorted(by_kind.items()):
        served = sorted(fault["served_ms"] for fault in faults)
        fired = sorted(fault["fired_ms"]["last"] for fault in faults if fault["fired_ms"]) or [0]
        out.append(
            f"{kind:12} {len(faults):6} {served[len(served) // 2]:10,} {served[-1]:8,} "
            f"{fired[len(fired) // 2]:10,} {fired[-1]:8,} {duplicates[kind]:5}"
        )
    arrivals = max(total("arrivals"), 1)
    out.append(
        f"{len(rows)} legs ({sum(row['clean'] for row in rows)} clean), {total('fault_count')} faults, "
        f"{total('acknowledged'):,} acknowledged, {total('expected'):,} expected, {total('lost')} lost, "
        f"{total('early')} early, {total('after_cancel')} after a cancel, {total('duplicate')} duplicates outside, "
        f"{total('epoch_back')} epochs back, {total('second_job')} second jobs, {total('unplanned')} unplanned changes; "
        f"duplicates at a change of leader: {total('at_kill')}, {1e6 * total('at_kill') / arrivals:,.0f} a million"
    )
    return "\n".join(out)


# --- the command line -------------------------------------------------------------------------


def draw(seed: int, members: int, kinds: Sequence[str], count: int) -> tuple[str, ...]:
    """So many kinds, each as often as any other, by chance."""
    rng = random.Random(f"kinds {seed}")
    missing = impossible(members)
    bag = [kind for kind in kinds if kind not in missing]
    assert bag, f"none of these is possible: {missing}"
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(bag, len(bag))
    return tuple(drawn[:count])


def one(leg: Leg, results: Path, keep: Path | None) -> bool:
    """Run a leg and append its line. Whether it is clean."""
    with tempfile.TemporaryDirectory(prefix="tickwheel-chaos-") as temporary:
        directory = Path(temporary)
        if keep is not None:
            directory = keep / f"leg-{leg.seed}-{datetime.now(UTC):%H%M%S}"
            directory.mkdir(parents=True)
        start = time.monotonic()
        outcome = run_leg(leg, directory)
        if keep is not None:
            arrived = (json.dumps(arrival) for arrival in outcome.arrivals)
            (directory / "arrivals.ndjson").write_text("\n".join(arrived))
    row = line(leg, outcome, time.monotonic() - start)
    results.parent.mkdir(exist_ok=True)
    with results.open("a") as out:
        out.write(json.dumps(row) + "\n")
    sys.stdout.write(json.dumps({**row, "faults": len(row["faults"])}) + "\n")
    for kind, examples in outcome.report.examples.items():
        sys.stderr.write("\n  ".join([kind, *examples]) + "\n")
    sys.stdout.flush()
    return bool(row["clean"])


def end(*_: object) -> None:
    """On SIGTERM: leave, and close what is open on the way out."""
    sys.exit(1)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--legs", type=int, default=2, help="to run now")
    parser.add_argument("--faults", type=int, default=0, help="go on until the file holds so many")
    parser.add_argument("--a-leg", type=int, default=12, help="faults of one leg")
    parser.add_argument("--kinds", default=",".join(DEFAULT), help=",".join(KINDS))
    parser.add_argument("--rate", type=int, default=60, help="creates a second")
    parser.add_argument("--seed", type=int, help="of the first leg; default: one behind the file's")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, help="put the data directories there, and leave them")
    asked = parser.parse_args()
    if find_etcd() is None:
        sys.stderr.write("No etcd: put one on the PATH, or name it in ETCD_PROGRAM.\n")
        return 1
    signal.signal(signal.SIGTERM, end)  # every process that was started ends, too
    clean = True
    count = 0
    while (
        count < asked.legs or sum(r["fault_count"] for r in rows_of(asked.results)) < asked.faults
    ):
        seen = [row["seed"] for row in rows_of(asked.results)]
        seed = asked.seed + count if asked.seed is not None else max(seen, default=-1) + 1
        members = 3 if seed % 2 else 1
        kinds = draw(seed, members, asked.kinds.split(","), asked.a_leg)
        shards = 64 if seed % 4 == 3 else 16
        clean &= one(Leg(seed, kinds, members, shards, asked.rate), asked.results, asked.keep)
        count += 1
    sys.stdout.write(summary(rows_of(asked.results)) + "\n")
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
