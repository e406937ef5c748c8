"""A campaign: many seeds, in blocks of 100, each block one line of the results file. `make sim SEEDS=0-1999`.

    python -m tests.sim --seeds 0-1999        go on where the file ends; blocks that it holds for this commit are skipped
    python -m tests.sim --seeds 17-17 --show  one seed: its marks, its trace and what was wrong

A line: {commit, seeds, ok, wrong, lives, promises, arrivals, never, date}. `wrong` lists [seed, first fault]; `never`
the rare branches that no seed of the block reached. The exit code is 1 if any seed was wrong.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tests.sim.probes import SOMETIMES
from tests.sim.story import Verdict, run_seed

BLOCK = 100
PROCESSES_MAX = 2
RESULTS = Path(__file__).parent / "results" / "campaign.ndjson"


def survive(seed: int) -> Verdict:
    """Run a seed; whatever it raises is a fault of that seed. Without the trace, which is long."""
    try:
        return replace(run_seed(seed), trace="")
    except Exception as error:  # noqa: BLE001 - the campaign goes on, and the seed is named
        return Verdict(seed, [f"raised {error!r}"], 0, 0, 0, 0, {}, "")


def replay_command(seed: int) -> str:
    """What to type to see a seed again."""
    return f"python -m tests.sim --seeds {seed}-{seed} --show"


def blocks(first: int, last: int, size: int = BLOCK) -> Iterator[tuple[int, int]]:
    """Cut [first, last] at the multiples of a size."""
    while first <= last:
        end = min(last, first // size * size + size - 1)
        yield first, end
        first = end + 1


def faults_of(verdicts: Sequence[Verdict]) -> list[tuple[int, str]]:
    """The seeds that were wrong, each with its first fault."""
    return [(verdict.seed, verdict.wrong[0]) for verdict in verdicts if verdict.wrong]


def line_of(name: str, commit: str, verdicts: Sequence[Verdict]) -> dict[str, object]:
    """What the results file says of a block."""
    marks: Counter[str] = Counter()
    for verdict in verdicts:
        marks.update(verdict.marks)
    return {
        "commit": commit,
        "seeds": name,
        "ok": sum(not verdict.wrong for verdict in verdicts),
        "wrong": faults_of(verdicts),
        "lives": sum(verdict.lives for verdict in verdicts),
        "promises": sum(verdict.promises for verdict in verdicts),
        "arrivals": sum(verdict.arrivals for verdict in verdicts),
        "never": sorted(mark for mark in SOMETIMES if not marks[mark]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def done_blocks(results: Path, commit: str) -> set[str]:
    """The blocks that the file holds for this commit."""
    if not results.exists():
        return set()
    lines = (json.loads(line) for line in results.read_text("utf-8").splitlines())
    return {line["seeds"] for line in lines if line["commit"] == commit}


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def commit_now() -> str:
    """The commit under test; a `+` says that the server differs from it."""
    changed = _git("status", "--porcelain", "--", "server", "src")
    return (_git("rev-parse", "--short=12", "HEAD") or "none") + ("+" if changed else "")


def _show(seed: int) -> bool:
    verdict = run_seed(seed)
    print(verdict.trace)
    print(verdict)
    print(verdict.marks)
    return not verdict.wrong


def _campaign(first: int, last: int, results: Path) -> bool:
    commit = commit_now()
    done = done_blocks(results, commit)
    results.parent.mkdir(parents=True, exist_ok=True)
    well = True
    with ProcessPoolExecutor(PROCESSES_MAX) as pool, results.open("a", encoding="utf-8") as file:
        for start, end in blocks(first, last):
            name = f"{start}-{end}"
            if name in done:
                continue
            verdicts = list(pool.map(survive, range(start, end + 1), chunksize=5))
            line, faults = line_of(name, commit, verdicts), faults_of(verdicts)
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(json.dumps(line), flush=True)
            for seed, _ in faults:
                print(f"replay: {replay_command(seed)}")
            well = well and not faults
    return well


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", default="0-99", help="first-last, inclusive")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="one seed, in full")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    if options.show:
        return 0 if _show(int(first)) else 1
    return 0 if _campaign(int(first), int(last or first), options.results) else 1


if __name__ == "__main__":
    sys.exit(main())
