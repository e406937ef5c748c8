"""`python -m bench <scenario>`: run a scenario on a fresh node, print its table, write its JSON file."""

import argparse
import tempfile
from pathlib import Path

from rich.console import Console

from bench import report
from bench.rig import Rig
from bench.scenarios import SCENARIOS


def main() -> None:
    """The command line."""
    lines = [
        f"  {name:11} {(run.__doc__ or '').splitlines()[0]}" for name, run in SCENARIOS.items()
    ]
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=",
        description="Load and lateness.\n\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenario", nargs="+", choices=[*SCENARIOS, "all"])
    parser.add_argument("--scale", type=float, default=1.0, help="1 is the published size")
    parser.add_argument("--dir", type=Path, help="where data directories go (default: temporary)")
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    asked = parser.parse_args()
    console = Console(highlight=False, width=200)
    names = list(SCENARIOS) if "all" in asked.scenario else asked.scenario
    for name in names:
        facts = report.machine()
        with tempfile.TemporaryDirectory(prefix="tickwheel-bench-", dir=asked.dir) as directory:
            rows = SCENARIOS[name](Rig(Path(directory), asked.scale))
        report.publish(
            name, [{"scale": asked.scale, **row} for row in rows], facts, asked.out, console
        )


if __name__ == "__main__":
    main()
