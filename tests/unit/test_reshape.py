"""What the leader of a shard does about its voters: one step at a time, and nothing when all is as it should be."""

from tickwheel.server.cluster.registry import MemberState, ShardRecord
from tickwheel.server.cluster.reshape import Change, Forget, Learn, Patience, Voter, plan
from tickwheel.server.placement import Site

A, B, C, D, E = ("a" * 32, "b" * 32, "c" * 32, "d" * 32, "e" * 32)
PATIENCE = Patience(replace_ms=300_000, shrink_ms=60_000)
RECORD = ShardRecord((A, B, C), (), 4, A, 17, released=False)


def here(host: str, zone: str = "") -> Voter:
    return Voter(Site(host, zone), MemberState.ACTIVE, 0)


def gone(host: str, gone_ms: int, *, replaced: bool = False) -> Voter:
    return Voter(Site(host, ""), MemberState.ACTIVE, gone_ms, replaced)


def said(host: str, state: MemberState) -> Voter:
    return Voter(Site(host, ""), state, 0)


NODES = {A: here("h1"), B: here("h2"), C: here("h3")}


def test_nothing_is_done_when_all_are_there() -> None:
    assert plan(7, RECORD, NODES, 3, PATIENCE) is None


def test_a_voter_that_is_away_for_a_moment_is_waited_for() -> None:
    nodes = {**NODES, C: gone("h3", 59_000), D: here("h4")}
    assert plan(7, RECORD, nodes, 3, PATIENCE) is None


def test_a_voter_that_is_gone_for_long_is_replaced_step_by_step() -> None:
    nodes = {**NODES, C: gone("h3", 300_000), D: here("h4")}
    assert plan(7, RECORD, nodes, 3, PATIENCE) == Learn(D)
    learning = ShardRecord((A, B, C), (D,), 4, A, 17, released=False)
    assert plan(7, learning, nodes, 3, PATIENCE) == Change((A, B, D))
    done = ShardRecord((A, B, D), (), 4, A, 17, released=False)
    assert plan(7, done, nodes, 3, PATIENCE) is None


def test_without_a_spare_it_is_left_out_and_added_again_when_it_is_back() -> None:
    nodes = {**NODES, C: gone("h3", 60_000)}
    assert plan(7, RECORD, nodes, 3, PATIENCE) == Change((A, B))
    shrunk = ShardRecord((A, B), (), 4, A, 17, released=False)
    assert plan(7, shrunk, nodes, 3, PATIENCE) is None
    assert plan(7, shrunk, NODES, 3, PATIENCE) == Learn(C)
    learning = ShardRecord((A, B), (C,), 4, A, 17, released=False)
    assert plan(7, learning, NODES, 3, PATIENCE) == Change((A, B, C))


def test_two_voters_are_not_shrunk_by_a_leader() -> None:
    """It could not commit without the other one; the take-over does it (docs/design/replica.md)."""
    record = ShardRecord((A, B), (), 4, A, 17, released=False)
    assert plan(7, record, {A: here("h1"), B: gone("h2", 600_000)}, 2, PATIENCE) is None


def test_a_wiped_disk_is_another_node_and_takes_the_place_of_the_old_at_once() -> None:
    nodes = {**NODES, C: gone("h3", 1_000, replaced=True), D: here("h3")}
    assert plan(7, RECORD, nodes, 3, PATIENCE) == Learn(D)


def test_no_two_copies_come_to_one_host() -> None:
    nodes = {**NODES, C: gone("h3", 300_000), D: here("h1"), E: here("h2")}
    assert plan(7, RECORD, nodes, 3, PATIENCE) == Change((A, B))


def test_another_zone_is_preferred() -> None:
    nodes = {A: here("h1", "z1"), B: here("h2", "z1"), C: gone("h3", 300_000)}
    nodes |= {D: here("h4", "z1"), E: here("h5", "z2")}
    for shard in range(20):
        assert plan(shard, RECORD, nodes, 3, PATIENCE) == Learn(E)


def test_nodes_that_drain_or_are_suspect_lose_their_copies() -> None:
    for state in (MemberState.DRAINING, MemberState.SUSPECT, MemberState.REMOVED):
        nodes = {**NODES, B: said("h2", state), D: here("h4")}
        assert plan(7, RECORD, nodes, 3, PATIENCE) == Learn(D)
        assert plan(7, RECORD, {**NODES, B: said("h2", state)}, 3, PATIENCE) is None


def test_such_nodes_get_none() -> None:
    nodes = {**NODES, C: gone("h3", 300_000), D: said("h4", MemberState.DRAINING)}
    assert plan(7, RECORD, nodes, 3, PATIENCE) == Change((A, B))


def test_a_learner_that_is_gone_or_not_needed_is_forgotten() -> None:
    learning = ShardRecord((A, B, C), (D,), 4, A, 17, released=False)
    assert plan(7, learning, {**NODES, D: gone("h4", 5)}, 3, PATIENCE) == Forget(D)
    assert plan(7, learning, NODES, 3, PATIENCE) == Forget(D)
    assert plan(7, learning, {**NODES, D: here("h4")}, 3, PATIENCE) == Forget(D)


def test_a_voter_that_nobody_ever_saw_is_replaced() -> None:
    nodes = {A: here("h1"), B: here("h2"), D: here("h4")}
    assert plan(7, RECORD, nodes, 3, PATIENCE) == Learn(D)


def test_the_leader_does_not_replace_itself() -> None:
    nodes = {**NODES, A: said("h1", MemberState.DRAINING), D: here("h4")}
    assert plan(7, RECORD, nodes, 3, PATIENCE) is None
