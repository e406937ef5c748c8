"""Every zone of the database around its changes of the clocks, against the minute-by-minute truth."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise, product

import pytest
from tests.property.schedule_oracle import (
    DAY_S,
    Expression,
    Transition,
    Wall,
    rules,
    transitions,
)

from tickwheel.server import schedule, zone
from tickwheel.server.model import Cron, DstGap, DstOverlap, Window

FROM_S = int(datetime(2018, 1, 1, tzinfo=UTC).timestamp())
UNTIL_S = int(datetime(2029, 1, 1, tzinfo=UTC).timestamp())
AROUND_S = 2 * DAY_S
NIGHTS_BY_DEFAULT = 60
PARTS = 16
"""Of what is slow: each part ends long before the time-out."""

EXPRESSIONS = [
    "30 2 * * *",
    "0 0 * * *",
    "*/15 1-3 * * *",
    "45 23 * * SAT,SUN",
    "15,45 0-4/2 L,1-31/2 * *",
    "*/20 * * * *",
    "30 */2 * * *",
]
POLICIES = list(product(DstGap, DstOverlap))


def near(name: str) -> list[Transition]:
    return [t for t in transitions(name) if FROM_S <= t.at_s < UNTIL_S]


def changes(name: str, from_s: int, until_s: int) -> list[Transition]:
    """The server's view of the same."""
    spans = zone.load(name).spans(from_s, until_s)
    found = [Transition(s.start_s, s.before_s, s.offset_s) for s in spans]
    return [t for t in found if from_s <= t.at_s < until_s and t.before_s != t.after_s]


def nights() -> dict[Transition, str]:
    """Each distinct change, with one zone that has it: two days around it depend on nothing else."""
    return {transition: name for name in sorted(zone.names()) for transition in near(name)}


def check_night(name: str, transition: Transition) -> None:
    from_s, until_s = transition.at_s - AROUND_S, transition.at_s + AROUND_S
    wall = Wall(rules(name), from_s, until_s)
    for text in EXPRESSIONS:
        expression = Expression(text)
        for gap, overlap in POLICIES:
            spec = Cron(text, name, dst_gap=gap, dst_overlap=overlap)
            plan = schedule.compile(spec, Window())
            expected = wall.occurrences(expression, gap, overlap)
            found = [ms // 1_000 for ms in forwards(plan, from_s, until_s)]
            assert found == expected, (name, text, gap, overlap)
            assert [ms // 1_000 for ms in backwards(plan, from_s, until_s)] == expected[::-1]
            assert plan.count_between(from_s * 1_000 - 1, until_s * 1_000, 9_999) == len(expected)
            check_dropped(plan, wall, expression, gap)


def forwards(plan: schedule.Plan, from_s: int, until_s: int) -> Iterator[int]:
    found = plan.next_after(from_s * 1_000 - 1)
    while found is not None and found <= until_s * 1_000:
        yield found
        found = plan.next_after(found)


def backwards(plan: schedule.Plan, from_s: int, until_s: int) -> Iterator[int]:
    found = plan.prev_at_or_before(until_s * 1_000)
    while found is not None and found >= from_s * 1_000:
        yield found
        found = plan.prev_at_or_before(found - 1)


def check_dropped(plan: schedule.Plan, wall: Wall, expression: Expression, gap: DstGap) -> None:
    lost = [] if gap != DstGap.SKIP or expression.follows_hand else wall.lost(expression)
    dropped = plan.dropped(wall.ticks[0][0] * 1_000, wall.ticks[-1][0] * 1_000, 9_999)
    assert [d.civil for d in dropped] == [schedule.civil_text(c * 1_000) for _, c in lost]


def test_spans_are_longer_than_what_probing_needs() -> None:
    """Also against a new release of the database: `zone` finds changes by probing and keeps its edges calm."""
    shortest = min(
        b.at_s - a.at_s for name in sorted(zone.names()) for a, b in pairwise(transitions(name))
    )
    assert shortest > zone.PROBE_S
    assert zone.EDGE_MOVE_S - zone.EDGE_CALM_S > DAY_S
    assert shortest - zone.EDGE_MOVE_S - zone.EDGE_CALM_S > DAY_S


def test_no_change_of_the_offset_is_a_day_or_more() -> None:
    widest = max(
        abs(t.after_s - t.before_s) for name in sorted(zone.names()) for t in transitions(name)
    )
    assert widest <= DAY_S


def test_every_zone_has_the_changes_of_its_file() -> None:
    seen = 0
    for name in sorted(zone.names()):
        expected = near(name)
        assert changes(name, FROM_S, UNTIL_S) == expected, name
        seen += len(expected)
    assert seen > 3_000


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_zone_has_the_changes_of_its_file_since_1900(part: int) -> None:
    until_s = int(datetime(2037, 1, 1, tzinfo=UTC).timestamp())
    for name in sorted(zone.names())[part::PARTS]:
        expected = [t for t in transitions(name) if zone.EARLIEST_S <= t.at_s < until_s]
        assert changes(name, zone.EARLIEST_S, until_s) == expected, name


def test_chunks_begin_far_from_any_change() -> None:
    """The edges of chunks must not cut a gap or an overlap; some are moved for it."""
    moved = 0
    for name in ("Europe/Berlin", "America/New_York", "Pacific/Apia", "Asia/Gaza"):
        at = [t.at_s for t in transitions(name)]
        for chunk in range(20, 62):
            edge = zone._spans(name, chunk)[0].start_s
            assert all(abs(edge - t) > DAY_S for t in at)
            assert zone.load(name).span_at(edge).start_s == edge
            assert zone.load(name).span_at(edge - 1).end_s == edge
            moved += edge != chunk << zone.CHUNK_BITS
    assert moved


def test_a_slice_of_all_nights() -> None:
    every = sorted(nights().items())
    assert len(every) > 200
    odd = [(t, n) for t, n in every if abs(t.after_s - t.before_s) != 3_600]
    for transition, name in odd + random.Random(1).sample(every, NIGHTS_BY_DEFAULT):
        check_night(name, transition)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_all_nights(part: int) -> None:
    for transition, name in sorted(nights().items())[part::PARTS]:
        check_night(name, transition)
