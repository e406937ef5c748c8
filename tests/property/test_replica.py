"""Replicas of a shard on bad days, and the bugs that such days must find. `python -m tests.sim.logs` runs more of them."""

from collections import Counter

import pytest
from tests.sim.log_mutants import MUTANTS, Mutant
from tests.sim.logs import main, run_seed

SEEDS = 300
RARE = (
    "CasWanted", "FenceFailed", "FenceRefused", "Fetched", "FetchRefused", "Leading", "Rejected", "Released",
    "SNAPSHOT_BASE", "SnapshotWanted", "SteppedDown", "Superseded", "TRUNCATE", "abandoned", "installed", "late swap",
    "shrunk", "swap done", "swap refused", "swap unknown", "ignored Acked", "ignored Fetched", "ignored Rejected",
)  # fmt: skip
"""What must have happened, or nothing was tried."""


def test_bad_days() -> None:
    marks: Counter[str] = Counter()
    committed = 0
    for seed in range(SEEDS):
        verdict = run_seed(seed)
        assert verdict.wrong == "", f"python -m tests.sim.logs --seeds {seed}-{seed} --show"
        marks += verdict.marks
        committed += verdict.committed
    assert [name for name in RARE if not marks[name]] == []
    assert committed > 10 * SEEDS


def test_a_seed_says_the_same_again() -> None:
    assert run_seed(5) == run_seed(5)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_found(mutant: Mutant) -> None:
    with mutant.patches():
        for seed in range(mutant.seeds_max):
            wrong = run_seed(seed).wrong
            if wrong:
                assert wrong.startswith(mutant.wrong)
                return
    pytest.fail(f"not found in {mutant.seeds_max} seeds")


def test_the_command_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0-2", "--steps", "50"]) == 0
    assert "3 seeds, 0 wrong" in capsys.readouterr().out
    with MUTANTS[0].patches():
        assert main(["--seeds", "0-0", "--show"]) == 1
