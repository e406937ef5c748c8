"""A campaign over whole clusters, in blocks of 250 seeds. `make sim-cluster SEEDS=0-1999`.

    python -m tests.sim.cluster --seeds 0-1999         go on where the file ends; blocks it holds for this commit are skipped
    python -m tests.sim.cluster --seeds 17-17 --show   one seed: its story, its marks and what was wrong

A line: {commit, seeds, ok, wrong, seconds, virtual_seconds, lives, promises, arrivals, faults, marks, verdict, date}.
`seconds` are those of CPU of all processes, `faults` counts strikes by kind, `wrong` lists [seed, first fault]. Somebody
who mended what a line found adds a `note` to it. The exit code is 1 if any seed was wrong.
"""

import argparse
import json
import multiprocessing
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from tests.sim.__main__ import blocks, commit_now, done_blocks
from tests.sim.cluster_story import ClusterVerdict, run_cluster_seed

BLOCK = 250
SEEDS_A_PROCESS = 50
"""Its memory is not collected, for that would cost a tenth of the time."""

REAL_S_MAX = 300
"""A seed that takes so long runs in circles."""

RESULTS = Path(__file__).parent / "results" / "cluster.ndjson"
STRIKE = "strike: "


class Survived(NamedTuple):
    """A verdict, and the seconds of CPU that it took."""

    verdict: ClusterVerdict
    seconds: float


class TooLong(KeyboardInterrupt):
    """A seed runs in circles."""


def survive(seed: int) -> Survived:
    """Run a seed; whatever it raises is a fault of that seed. Without the trace, which is long."""
    begin_s = time.process_time()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(REAL_S_MAX)
    try:
        verdict = replace(run_cluster_seed(seed, collect=False), trace="")
    except (Exception, TooLong) as error:  # noqa: BLE001 - the campaign goes on, and the seed is named
        verdict = ClusterVerdict(seed, [f"raised {error!r}"], 0, 0, 0, 0, 0.0, {}, "")
    finally:
        signal.alarm(0)
    return Survived(verdict, time.process_time() - begin_s)


def _too_long(_signal: int, _frame: FrameType | None) -> None:
    raise TooLong(f"more than {REAL_S_MAX} s")


def replay_command(seed: int) -> str:
    """What to type to see a seed again."""
    return f"python -m tests.sim.cluster --seeds {seed}-{seed} --show"


def line_of(name: str, commit: str, survived: Sequence[Survived]) -> dict[str, object]:
    """What the results file says of a block."""
    verdicts = [one.verdict for one in survived]
    marks: Counter[str] = Counter()
    for verdict in verdicts:
        marks.update(verdict.marks)
    faults = {key.removeprefix(STRIKE): n for key, n in marks.items() if key.startswith(STRIKE)}
    wrong = [(verdict.seed, verdict.wrong[0]) for verdict in verdicts if verdict.wrong]
    return {
        "commit": commit,
        "seeds": name,
        "ok": len(verdicts) - len(wrong),
        "wrong": wrong,
        "seconds": round(sum(one.seconds for one in survived)),
        "virtual_seconds": round(sum(verdict.seconds for verdict in verdicts)),
        "lives": sum(verdict.lives for verdict in verdicts),
        "promises": sum(verdict.promises for verdict in verdicts),
        "arrivals": sum(verdict.arrivals for verdict in verdicts),
        "faults": dict(sorted(faults.items())),
        "marks": {key: n for key, n in sorted(marks.items()) if not key.startswith(STRIKE)},
        "verdict": "wrong" if wrong else "ok",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _show(seed: int) -> bool:
    verdict = run_cluster_seed(seed)
    print(verdict.trace)
    print(verdict)
    print(verdict.marks)
    return not verdict.wrong


def _campaign(first: int, last: int, results: Path, processes: int) -> bool:
    commit = commit_now()
    done = done_blocks(results, commit)
    results.parent.mkdir(parents=True, exist_ok=True)
    well = True
    fork = multiprocessing.get_context("fork")
    with (
        fork.Pool(processes, maxtasksperchild=SEEDS_A_PROCESS) as pool,
        results.open("a", encoding="utf-8") as file,
    ):
        for start, end in blocks(first, last, BLOCK):
            if f"{start}-{end}" in done:
                continue
            survived: list[Survived] = []
            for one in pool.imap(survive, range(start, end + 1)):
                survived.append(one)
                if one.verdict.wrong:
                    print(one.verdict.seed, *one.verdict.wrong[:3], sep="\n    ", flush=True)
                    print(f"replay: {replay_command(one.verdict.seed)}", flush=True)
            line = line_of(f"{start}-{end}", commit, survived)
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(json.dumps(line), flush=True)
            well = well and line["verdict"] == "ok"
    return well


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.cluster", description=__doc__)
    parser.add_argument("--seeds", default="0-99", help="first-last, inclusive")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="one seed, in full")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    if options.show:
        return 0 if _show(int(first)) else 1
    return 0 if _campaign(int(first), int(last or first), options.results, options.processes) else 1


if __name__ == "__main__":
    sys.exit(main())
