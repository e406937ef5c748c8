"""What every scenario stands on: a node, a sink and load generators as processes, and how to ask them."""

import json
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import calls
from bench.checker import scheduled_ms
from bench.histogram import Histogram
from bench.node import ROOT, Node, Sink, environment
from bench.sink import Arrival

LEAD_MS_MIN = 3_000


@dataclass(frozen=True, slots=True)
class Rig:
    """Where a scenario runs, and how much of it: `scale` 1 is the published size, 0.01 a trial."""

    directory: Path
    scale: float = 1.0

    def count(self, full: int) -> int:
        """A number of jobs, scaled; at least 1,000."""
        return max(int(full * self.scale), 1_000)

    @contextmanager
    def node(self, name: str) -> Generator[Node]:
        """A fresh node that is ready."""
        with Node(self.directory / name) as node:
            node.start()
            yield node


def load(node: Node, sink: Sink, mode: str, **options: Any) -> dict[str, Any]:
    """Run one load generator to its end; its result, and the node's CPU a job."""
    command = [
        sys.executable,
        "-m",
        "bench.load",
        mode,
        "--target",
        node.target,
        "--url",
        sink.url(),
    ]
    for name, value in options.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    before = node.cpu_s()
    done = subprocess.run(  # noqa: S603 — our own command line
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    used = node.cpu_s() - before
    result["node_cpu_us_a_job"] = round(used * 1e6 / max(result["accepted"], 1), 1)
    return result


def progress(row: dict[str, Any]) -> None:
    """Show a row of a long run at once, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {json.dumps(row)}", file=sys.stderr, flush=True)


def lags(arrivals: list[Arrival]) -> dict[str, Any]:
    """How late each first arrival was, early ones and repeats counted apart."""
    histogram = Histogram()
    seen: set[str] = set()
    early = 0
    for arrival in arrivals:
        lag_us = arrival.arrival_us - scheduled_ms(arrival) * 1_000
        if arrival.id not in seen:
            histogram.record(lag_us)
        seen.add(arrival.id)
        early += lag_us < 0
    return {"lag_ms": histogram.ms(), "early": early, "repeated": len(arrivals) - len(seen)}


def wait_count(sink: Sink, count: int, timeout_s: float) -> bool:
    """Wait until so many requests arrived, or time is over, or nothing came for 10 s after the first."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if sink.count() >= count:
            return True
        time.sleep(0.2)
    return False


def lead_ms(count: int, creates_per_s: int = 5_000) -> int:
    """How far ahead the first occurrence must lie, so that all are created before it."""
    return LEAD_MS_MIN + count * 1_000 // creates_per_s


def start_at(count: int) -> int:
    """The first due time of `count` jobs that are created now."""
    return calls.now_ms() + lead_ms(count)
