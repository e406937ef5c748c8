"""A slice of the simulation in the normal suite; `make sim` runs thousands of seeds."""

import os
import subprocess
import sys
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import pytest
from tests.sim.__main__ import blocks, done_blocks, line_of, replay_command
from tests.sim.probes import SOMETIMES
from tests.sim.story import Verdict, run_seed

pytestmark = pytest.mark.sim

SLICES = [range(start, start + 20) for start in (0, 20, 40, 60)]
REPLAYED = 11
ROOT = Path(__file__).resolve().parents[2]
OTHER_PROCESS = """
from hashlib import blake2b
from tests.sim.story import run_seed
print(blake2b(run_seed({seed}).trace.encode()).hexdigest())
"""

seen: dict[int, dict[str, int]] = {}


@pytest.mark.parametrize("seeds", SLICES, ids=str)
def test_every_guarantee_holds(seeds: range) -> None:
    for seed in seeds:
        verdict = run_seed(seed)
        seen[seed] = verdict.marks
        assert not verdict.wrong, f"{verdict.wrong[:5]}\nreplay: {replay_command(seed)}"


def test_the_slice_reaches_the_rare_branches() -> None:
    """Sometimes-assertions: what no seed reaches is not tested, however green the rest is."""
    if len(seen) < sum(len(seeds) for seeds in SLICES):
        pytest.skip("only a part of the slice was run")
    reached = sum((Counter(marks) for marks in seen.values()), Counter[str]())
    assert sorted(SOMETIMES - RARER - reached.keys()) == []


RARER = frozenset[str]()
"""Reached by a block of 100 seeds, not by this slice."""


def test_a_seed_replays_to_the_byte() -> None:
    assert run_seed(REPLAYED).trace == run_seed(REPLAYED).trace


@pytest.mark.parametrize("hash_seed", ["1", "77"])
def test_a_seed_replays_in_another_process(hash_seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    told = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS.format(seed=REPLAYED)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert told.strip() == blake2b(run_seed(REPLAYED).trace.encode()).hexdigest()


def test_other_seeds_are_other_stories() -> None:
    assert run_seed(REPLAYED).trace != run_seed(REPLAYED + 1).trace


# --- the campaign --------------------------------------------------------------------------------


def test_blocks_end_at_the_hundreds() -> None:
    assert list(blocks(0, 199)) == [(0, 99), (100, 199)]
    assert list(blocks(150, 230)) == [(150, 199), (200, 230)]


def test_a_line_names_what_was_wrong_and_what_was_never_reached() -> None:
    verdicts = [
        Verdict(7, ["I1 lost", "I1 lost too"], 2, 3, 4, 5, {"parked": 1}, ""),
        Verdict(8, [], 1, 1, 1, 1, {}, ""),
    ]
    line = line_of("7-8", "abc", verdicts)
    assert (line["ok"], line["wrong"], line["lives"]) == (1, [(7, "I1 lost")], 3)
    assert line["never"] == sorted(SOMETIMES - {"parked"})


def test_a_campaign_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    results = tmp_path / "campaign.ndjson"
    assert done_blocks(results, "abc") == set()
    results.write_text(
        '{"commit": "abc", "seeds": "0-99"}\n{"commit": "old", "seeds": "100-199"}\n'
    )
    assert done_blocks(results, "abc") == {"0-99"}
