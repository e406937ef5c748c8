"""A slice of the simulated clusters in the normal suite; `make sim-cluster` runs thousands of seeds."""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import pytest
from tests.sim.cluster import Survived, line_of, replay_command
from tests.sim.cluster_mutants import MUTANTS
from tests.sim.cluster_story import ClusterVerdict, run_cluster_seed
from tests.sim.lives import LIFE, Life, LifeLoop
from tests.sim.mutants import Mutant, planted

pytestmark = pytest.mark.sim

SEEDS = range(16)
REPLAYED = 12
SEEDS_MAX = 5
"""Mutants that take more seeds are for campaigns (docs/design/simulation.md)."""

QUICK = [mutant for mutant in MUTANTS if mutant.seeds_max <= SEEDS_MAX]
ROOT = Path(__file__).resolve().parents[2]
OTHER_PROCESS = """
from hashlib import blake2b
from tests.sim.cluster_story import run_cluster_seed
print(blake2b(run_cluster_seed({seed}).trace.encode()).hexdigest())
"""
REACHED = {"leaderships", "repeated attempt", "strike: kill", "strike: pause", "strike: isolate"}

seen: dict[int, dict[str, int]] = {}


@pytest.mark.parametrize("seed", SEEDS)
def test_every_guarantee_holds(seed: int) -> None:
    verdict = run_cluster_seed(seed)
    seen[seed] = verdict.marks
    assert not verdict.wrong, f"{verdict.wrong[:5]}\nreplay: {replay_command(seed)}"


def test_the_slice_reaches_what_it_is_for() -> None:
    if len(seen) < len(SEEDS):
        pytest.skip("only a part of the slice was run")
    reached = sum((Counter(marks) for marks in seen.values()), Counter[str]())
    assert sorted(REACHED - reached.keys()) == []


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
        timeout=120,
    ).stdout
    assert told.strip() == blake2b(run_cluster_seed(REPLAYED).trace.encode()).hexdigest()


@pytest.mark.parametrize("mutant", QUICK, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_found(mutant: Mutant) -> None:
    for seed in range(mutant.seeds_max):
        with planted(mutant):
            wrong = run_cluster_seed(seed).wrong
        if any(fault.startswith(mutant.guarantees) for fault in wrong):
            return
    pytest.fail(f"{mutant.name} was not found in {mutant.seeds_max} seeds")


def test_a_line_names_faults_and_what_was_wrong() -> None:
    verdict = ClusterVerdict(7, ["I1 lost"], 2, 3, 4, 5, 60.0, {"strike: kill": 2, "stop": 1}, "")
    line = line_of("7-7", "abc", [Survived(verdict, 1.5)])
    assert (line["wrong"], line["faults"], line["marks"]) == (
        [(7, "I1 lost")],
        {"kill": 2},
        {"stop": 1},
    )
    assert line["verdict"] == "wrong"


# --- lives ---------------------------------------------------------------------------------------


def test_nothing_of_a_dead_life_runs_and_a_paused_one_goes_on() -> None:
    loop = LifeLoop()
    one, other = Life(loop, "one"), Life(loop, "other")
    heard: list[tuple[str, int, float]] = []

    async def count() -> None:
        life = LIFE.get()
        assert life is not None
        for number in range(5):
            await asyncio.sleep(1)
            heard.append((life.name, number, loop.time()))

    async def world() -> None:
        one.spawn(count())
        other.spawn(count())
        await asyncio.sleep(1.5)
        one.end()
        other.pause()
        await asyncio.sleep(2)
        other.resume()
        await asyncio.sleep(4)

    loop.live(world())
    loop.abandon()
    times = {name: [at_s for of, _, at_s in heard if of == name] for name in ("one", "other")}
    assert times == {"one": [1.0], "other": [1.0, 3.5, 4.5, 5.5, 6.5]}
