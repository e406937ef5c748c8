"""A slice of the model's campaign: sound rules hold, broken ones are caught (docs/design/model.md)."""

import pytest
from tests.model.__main__ import told, world_of
from tests.model.explore import Found, search, shorten, walk
from tests.model.mutations import MUTATIONS, Mutation
from tests.model.scopes import SEARCHES, VARIANTS
from tests.model.state import fence_quorum, quorum
from tests.model.world import World

WALKS = 20
STATES_MAX = 20_000
TINY = [name for name, scope in SEARCHES.items() if scope.tiny]
QUICK = [m for m in MUTATIONS.values() if m.seed >= 0 or m.variant in TINY]


def explore(world: World, seeds: range, states_max: int) -> Found | None:
    """Walk, or search if the scope is a small one."""
    if world.scope.name in SEARCHES:
        kinds = [kind for kind in world.scope.weights if kind in world.kinds]
        return search(world, states_max, kinds, lambda: False).found
    return next((found for seed in seeds if (found := walk(world, seed))), None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_walks_find_nothing(variant: str) -> None:
    world = world_of(variant)
    found = explore(world, range(WALKS), 0)
    assert found is None, "\n".join(told(world, shorten(world, found).moves))


@pytest.mark.parametrize("variant", TINY)
def test_a_small_scope_is_sound_in_every_state(variant: str) -> None:
    world = world_of(variant)
    kinds = [kind for kind in world.scope.weights if kind in world.kinds]
    result = search(world, STATES_MAX, kinds, lambda: False)
    assert result.whole
    assert result.found is None
    assert result.states > 100


@pytest.mark.parametrize("mutation", QUICK, ids=lambda mutation: mutation.name)
def test_a_broken_rule_is_caught(mutation: Mutation) -> None:
    world = world_of(mutation.variant, mutation.name)
    found = explore(world, range(mutation.seed, mutation.seed + 1), STATES_MAX)
    assert found is not None


def test_a_counterexample_is_short_and_can_be_replayed_and_read() -> None:
    mutation = MUTATIONS["cut_to_commit"]
    world = world_of(mutation.variant, mutation.name)
    found = walk(world, mutation.seed)
    assert found is not None
    short = shorten(world, found)
    assert len(short.moves) <= len(found.moves)
    lines = list(told(world, short.moves))
    assert lines[-1].strip().startswith(f"BREACH {found.breach.name}")
    assert walk(world, mutation.seed) is not None


@pytest.mark.parametrize("size", range(1, 8))
def test_any_commit_quorum_meets_any_fence_quorum(size: int) -> None:
    voters = "ABCDEFG"[:size]
    assert quorum(voters) + fence_quorum(voters) == size + 1
