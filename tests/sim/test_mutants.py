"""Bugs planted on purpose, each found within its number of seeds (`mutants.MUTANTS`)."""

import pytest
from tests.sim.mutants import MUTANTS, Mutant, planted
from tests.sim.story import run_seed

pytestmark = pytest.mark.sim


def search(mutant: Mutant) -> tuple[int, list[str]]:
    """The first seed that shows the bug, and what it showed; -1 if none did."""
    for seed in range(mutant.seeds_max):
        with planted(mutant):
            wrong = run_seed(seed).wrong
        if any(fault.startswith(mutant.guarantees) for fault in wrong):
            return seed, wrong
    return -1, []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_found(mutant: Mutant) -> None:
    seed, wrong = search(mutant)
    assert seed >= 0, f"{mutant.name} was not found in {mutant.seeds_max} seeds"
    assert wrong
