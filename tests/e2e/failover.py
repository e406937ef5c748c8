"""Fail-over, measured: the node that leads most shards is killed with `kill -9`, again and again, under load.

For each kill: from the kill to the first request that a target gets of one of its shards from a successor (`first`), and
until each of its shards that had something due has sent something (`last`); `served`: until every shard was served.
Every other node, etcd, the target and the load stand on the same machine; its load average is in each line.

    make failover                           20 kills, one line in the results file
    make failover ARGS='--kills 100'        go on until the file holds 100
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import calls
from bench.cluster import Cluster
from bench.etcd import find_etcd
from bench.node import Sink
from bench.report import commit
from tests.e2e.chaos import Leg, Outcome, fired_ms, rows_of, run
from tests.e2e.chaos_faults import PATIENCE

RESULTS = Path(__file__).parent / "results" / "failover.ndjson"
A_LEG = 20
BATCH = 1_000
FAR_MS = 86_400_000


async def preload(target: str, url: str, count: int) -> None:
    """Jobs that are due tomorrow: the stores are not empty."""
    api = calls.Api(target)
    due_ms = calls.now_ms() + FAR_MS
    try:
        for low in range(0, count, BATCH):
            job = calls.once(url, due_ms, body=b"x" * 100)
            await api.create_many(
                [calls.request(f"far-{k}", job) for k in range(low, min(low + BATCH, count))]
            )
    finally:
        await api.close()


def run_leg(leg: Leg, directory: Path, preloaded: int) -> Outcome:
    """One leg: so many kills as the leg has kinds."""
    options = ["--shards", str(leg.shards), *PATIENCE]
    with Sink() as sink, Cluster(directory, members=leg.members, options=options) as cluster:
        cluster.start()
        asyncio.run(preload(cluster.nodes[0].target, sink.url(), preloaded))
        return asyncio.run(run(leg, cluster, sink, preloaded))


def quantile(sorted_: Sequence[float], share: float) -> float:
    """By nearest rank."""
    return sorted_[min(int(share * len(sorted_)), len(sorted_) - 1)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """p50, p99, max."""
    ordered = sorted(values)
    return {"p50": quantile(ordered, 0.5), "p99": quantile(ordered, 0.99), "max": ordered[-1]}


def line(
    leg: Leg, outcome: Outcome, load_before: float, preloaded: int, wall_s: float
) -> dict[str, Any]:
    """What a leg leaves in the results file."""
    assert outcome.watch is not None
    kills: list[dict[str, int]] = []
    for fault in outcome.faults:
        fired = fired_ms(fault, outcome.arrivals, leg.shards)
        served = outcome.watch.served_again_ms(fault.at_ms, fault.whole_ms) - fault.at_ms
        if fired:
            kills.append({"first": fired["first"], "last": fired["last"],
                          "shards": fired["shards"], "served": served})  # fmt: skip
    summary = outcome.report.summary()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "seed": leg.seed,
        "members": leg.members,
        "shards": leg.shards,
        "preloaded": preloaded,
        "fires_per_s": round(outcome.report.arrivals / wall_s, 1),
        "load_average": [round(load_before, 1), round(os.getloadavg()[0], 1)],
        "clean": outcome.report.clean and not outcome.wrong,
        "wrong": outcome.wrong[:5],
        "fault_count": len(outcome.faults),
        **{name: spread([kill[name] for kill in kills]) for name in ("first", "last", "served")},
        "acknowledged": summary["acknowledged"],
        **{name: summary[name] for name in ("lost", "early", "after_cancel", "duplicate")},
        "at_kill": summary["at_kill"],
        "kills": kills,
        "wall_s": round(wall_s, 1),
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make failover", description=__doc__)
    parser.add_argument("--kills", type=int, default=0, help="go on until the file holds so many")
    parser.add_argument("--preload", type=int, default=20_000, help="jobs that are not due")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--rate", type=int, default=50, help="creates a second")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if find_etcd() is None:
        sys.stderr.write("No etcd: put one on the PATH, or name it in ETCD_PROGRAM.\n")
        return 1
    clean = True
    while True:
        rows = rows_of(asked.results)
        seed = 1_000 + len(rows)
        leg = Leg(seed, ("fail_over",) * A_LEG, 1, asked.shards, asked.rate)
        load_before, start = os.getloadavg()[0], time.monotonic()
        with tempfile.TemporaryDirectory(prefix="tickwheel-failover-") as directory:
            outcome = run_leg(leg, Path(directory), asked.preload)
        row = line(leg, outcome, load_before, asked.preload, time.monotonic() - start)
        asked.results.parent.mkdir(exist_ok=True)
        with asked.results.open("a") as out:
            out.write(json.dumps(row) + "\n")
        sys.stdout.write(json.dumps({**row, "kills": len(row["kills"])}) + "\n")
        for kind, examples in outcome.report.examples.items():
            sys.stderr.write("\n  ".join([kind, *examples]) + "\n")
        clean &= bool(row["clean"])
        rows.append(row)
        if sum(row["fault_count"] for row in rows) >= asked.kills:
            break
    kills = [kill for row in rows for kill in row["kills"]]
    for name in ("first", "last", "served"):
        found = spread([kill[name] for kill in kills])
        sys.stdout.write(f"{name:7} {len(kills)} kills: {found}\n")
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
