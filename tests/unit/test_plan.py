"""Plans: what is named when, above all on the nights on which the clocks change.

Times are written as civil time with the offset, so a row of a table reads like a preview.
"""

from datetime import UTC, datetime, timedelta, timezone
from typing import NamedTuple

import pytest

from tickwheel.server import schedule
from tickwheel.server.model import (
    Cron,
    CronDialect,
    DstGap,
    DstOverlap,
    Every,
    Once,
    Schedule,
    Window,
)
from tickwheel.server.plan import Dropped, DropReason, Note, Plan

DAY_MS = 86_400_000
SKIP, AFTER = DstGap.SKIP, DstGap.FIRE_AFTER
FIRST, SECOND, BOTH = DstOverlap.FIRST, DstOverlap.SECOND, DstOverlap.BOTH
OPEN = Window()


def ms(text: str) -> int:
    """UTC ms of an ISO time; without an offset it is UTC."""
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def shown(occurrence: schedule.Occurrence) -> str:
    """`2026-03-29 03:00 +2:00 MOVED_AFTER_GAP`"""
    offset = timezone(timedelta(seconds=occurrence.utc_offset_s))
    civil = datetime.fromtimestamp(occurrence.scheduled_ms / 1000, offset)
    sign = "-" if occurrence.utc_offset_s < 0 else "+"
    note = f" {occurrence.note.name}" if occurrence.note else ""
    hours = timedelta(seconds=abs(occurrence.utc_offset_s))
    return f"{civil:%Y-%m-%d %H:%M} {sign}{str(hours)[:-3]}{note}"


def preview(spec: Schedule, since: str, until: str, window: Window = OPEN) -> list[str]:
    """What lies in (since, until], asked for forwards, backwards and by counting."""
    plan = schedule.compile(spec, window)
    forwards = [t for t in walk(plan, ms(since)) if t <= ms(until)]
    backwards: list[int] = []
    found = plan.prev_at_or_before(ms(until))
    while found is not None and found > ms(since):
        backwards.append(found)
        found = plan.prev_at_or_before(found - 1)
    assert forwards == backwards[::-1]
    assert plan.count_between(ms(since), ms(until), 10_000) == len(forwards)
    return [shown(plan.describe(t)) for t in forwards]


def walk(plan: Plan, since_ms: int) -> list[int]:
    return [o.scheduled_ms for o in plan.occurrences(since_ms, 200)]


# --- daylight saving, a table of nights ----------------------------------------------------------


def berlin(expression: str, gap: DstGap = AFTER, overlap: DstOverlap = FIRST) -> Cron:
    return Cron(expression, "Europe/Berlin", dst_gap=gap, dst_overlap=overlap)


class Gap(NamedTuple):
    """A night on which the clocks go forward, and what fires in (since, until] under each policy."""

    zone: str
    expression: str
    since: str
    until: str
    after: list[str]
    skip: list[str]
    dropped: list[str]


GAPS = [
    pytest.param(Gap(
        "Europe/Berlin", "30 2 * * *", "2026-03-28", "2026-03-31",
        ["2026-03-28 02:30 +1:00", "2026-03-29 03:00 +2:00 MOVED_AFTER_GAP", "2026-03-30 02:30 +2:00"],
        ["2026-03-28 02:30 +1:00", "2026-03-30 02:30 +2:00"],
        ["2026-03-29T02:30:00"]
        ), id="berlin: one time in the gap",
    ),
    pytest.param(Gap(
        "Europe/Berlin", "*/20 2 * * *", "2026-03-29", "2026-03-29T12:00",
        ["2026-03-29 03:00 +2:00 MOVED_AFTER_GAP"],
        [],
        ["2026-03-29T02:00:00", "2026-03-29T02:20:00", "2026-03-29T02:40:00"]
        ), id="berlin: several times in one gap are one occurrence",
    ),
    pytest.param(Gap(
        "Europe/Berlin", "30 1-3 * * *", "2026-03-29", "2026-03-29T06:00",
        ["2026-03-29 01:30 +1:00", "2026-03-29 03:00 +2:00 MOVED_AFTER_GAP", "2026-03-29 03:30 +2:00"],
        ["2026-03-29 01:30 +1:00", "2026-03-29 03:30 +2:00"],
        ["2026-03-29T02:30:00"]
        ), id="berlin: beside others",
    ),
    pytest.param(Gap(
        "Europe/Berlin", "0 2,3 * * *", "2026-03-29", "2026-03-29T12:00",
        ["2026-03-29 03:00 +2:00"],
        ["2026-03-29 03:00 +2:00"],
        ["2026-03-29T02:00:00"]
        ), id="berlin: moved onto an occurrence, it is that one",
    ),
    pytest.param(Gap(
        "Australia/Lord_Howe", "15 2 * * *", "2026-10-03", "2026-10-05",
        ["2026-10-04 02:30 +11:00 MOVED_AFTER_GAP", "2026-10-05 02:15 +11:00"],
        ["2026-10-05 02:15 +11:00"],
        ["2026-10-04T02:15:00"]
        ), id="lord howe: half an hour",
    ),
    pytest.param(Gap(
        "Asia/Beirut", "0 0 * * *", "2026-03-28", "2026-03-30",
        ["2026-03-29 01:00 +3:00 MOVED_AFTER_GAP", "2026-03-30 00:00 +3:00"],
        ["2026-03-30 00:00 +3:00"],
        ["2026-03-29T00:00:00"]
        ), id="beirut: midnight does not exist",
    ),
    pytest.param(Gap(
        "America/Havana", "30 0 * * *", "2024-03-09T06:00", "2024-03-11T06:00",
        ["2024-03-10 01:00 -4:00 MOVED_AFTER_GAP", "2024-03-11 00:30 -4:00"],
        ["2024-03-11 00:30 -4:00"],
        ["2024-03-10T00:30:00"]
        ), id="havana: midnight does not exist",
    ),
    pytest.param(Gap(
        "America/Sao_Paulo", "0 0 * * *", "2018-11-03T12:00", "2018-11-05T12:00",
        ["2018-11-04 01:00 -2:00 MOVED_AFTER_GAP", "2018-11-05 00:00 -2:00"],
        ["2018-11-05 00:00 -2:00"],
        ["2018-11-04T00:00:00"]
        ), id="sao paulo 2018: midnight does not exist",
    ),
    pytest.param(Gap(
        "America/Nuuk", "30 23 * * *", "2026-03-28T12:00", "2026-03-30T12:00",
        ["2026-03-29 00:00 -1:00 MOVED_AFTER_GAP", "2026-03-29 23:30 -1:00"],
        ["2026-03-29 23:30 -1:00"],
        ["2026-03-28T23:30:00"]
        ), id="nuuk: the gap ends with the day",
    ),
    pytest.param(Gap(
        "Pacific/Apia", "0 9,17 * * *", "2011-12-30T06:00", "2011-12-31T06:00",
        ["2011-12-31 00:00 +14:00 MOVED_AFTER_GAP", "2011-12-31 09:00 +14:00", "2011-12-31 17:00 +14:00"],
        ["2011-12-31 09:00 +14:00", "2011-12-31 17:00 +14:00"],
        ["2011-12-30T09:00:00", "2011-12-30T17:00:00"]
        ), id="apia 2011: a whole day does not exist",
    ),
    pytest.param(Gap(
        "Antarctica/Troll", "30 1,2 * * *", "2026-03-28T12:00", "2026-03-29T12:00",
        ["2026-03-29 03:00 +2:00 MOVED_AFTER_GAP"],
        [],
        ["2026-03-29T01:30:00", "2026-03-29T02:30:00"]
        ), id="troll: two hours",
    ),
    pytest.param(Gap(
        "Africa/Casablanca", "30 2 * * *", "2026-03-21T12:00", "2026-03-23T12:00",
        ["2026-03-22 03:00 +1:00 MOVED_AFTER_GAP", "2026-03-23 02:30 +1:00"],
        ["2026-03-23 02:30 +1:00"],
        ["2026-03-22T02:30:00"]
        ), id="casablanca: the end of Ramadan",
    ),
    pytest.param(Gap(
        "Africa/Monrovia", "20 0 * * *", "1972-01-06T12:00", "1972-01-08T12:00",
        ["1972-01-07 00:44 +0:00 MOVED_AFTER_GAP", "1972-01-08 00:20 +0:00"],
        ["1972-01-08 00:20 +0:00"],
        ["1972-01-07T00:20:00"]
        ), id="monrovia 1972: 44 minutes 30 seconds",
    ),
    pytest.param(Gap(
        "Europe/Berlin", "*/30 * * * *", "2026-03-29T00:00", "2026-03-29T02:00",
        ["2026-03-29 01:30 +1:00", "2026-03-29 03:00 +2:00", "2026-03-29 03:30 +2:00", "2026-03-29 04:00 +2:00"],
        ["2026-03-29 01:30 +1:00", "2026-03-29 03:00 +2:00", "2026-03-29 03:30 +2:00", "2026-03-29 04:00 +2:00"],
        []
        ), id="berlin: follows the hand, nothing is added",
    ),
    pytest.param(Gap(
        "Europe/Berlin", "15 */2 * * *", "2026-03-29T00:00", "2026-03-29T03:00",
        ["2026-03-29 04:15 +2:00"],
        ["2026-03-29 04:15 +2:00"],
        []
        ), id="berlin: every second hour follows the hand",
    ),
]  # fmt: skip


@pytest.mark.parametrize("overlap", [FIRST, SECOND, BOTH])
@pytest.mark.parametrize("night", GAPS)
def test_gap(night: Gap, overlap: DstOverlap) -> None:
    moving = Cron(night.expression, night.zone, dst_gap=AFTER, dst_overlap=overlap)
    skipping = Cron(night.expression, night.zone, dst_gap=SKIP, dst_overlap=overlap)
    assert preview(moving, night.since, night.until) == night.after
    assert preview(skipping, night.since, night.until) == night.skip
    since, until = ms(night.since), ms(night.until)
    assert schedule.compile(moving, OPEN).dropped(since, until, 10) == []
    dropped = schedule.compile(skipping, OPEN).dropped(since, until, 10)
    assert dropped == [Dropped(civil, DropReason.DST_GAP) for civil in night.dropped]


class Overlap(NamedTuple):
    """A night on which they go back: the occurrence of the first pass, and of the second."""

    zone: str
    expression: str
    since: str
    until: str
    one: str
    two: str


OVERLAPS = [
    pytest.param(Overlap(
        "Europe/Berlin", "30 2 * * *", "2026-10-24T12:00", "2026-10-25T12:00",
        "2026-10-25 02:30 +2:00 FIRST_OF_TWO", "2026-10-25 02:30 +1:00 SECOND_OF_TWO"
        ), id="berlin",
    ),
    pytest.param(Overlap(
        "Australia/Lord_Howe", "45 1 * * *", "2026-04-04T00:00", "2026-04-05T00:00",
        "2026-04-05 01:45 +11:00 FIRST_OF_TWO", "2026-04-05 01:45 +10:30 SECOND_OF_TWO"
        ), id="lord howe: half an hour",
    ),
    pytest.param(Overlap(
        "Asia/Beirut", "30 23 * * *", "2026-10-24T12:00", "2026-10-25T12:00",
        "2026-10-24 23:30 +3:00 FIRST_OF_TWO", "2026-10-24 23:30 +2:00 SECOND_OF_TWO"
        ), id="beirut: the last hour of the day, twice",
    ),
    pytest.param(Overlap(
        "America/Havana", "0 0 * * *", "2024-11-02T12:00", "2024-11-03T12:00",
        "2024-11-03 00:00 -4:00 FIRST_OF_TWO", "2024-11-03 00:00 -5:00 SECOND_OF_TWO"
        ), id="havana: midnight, twice",
    ),
    pytest.param(Overlap(
        "Antarctica/Troll", "30 2 * * *", "2026-10-24T12:00", "2026-10-25T12:00",
        "2026-10-25 02:30 +2:00 FIRST_OF_TWO", "2026-10-25 02:30 +0:00 SECOND_OF_TWO"
        ), id="troll: two hours",
    ),
    pytest.param(Overlap(
        "Africa/Casablanca", "30 2 * * *", "2026-02-14T12:00", "2026-02-15T12:00",
        "2026-02-15 02:30 +1:00 FIRST_OF_TWO", "2026-02-15 02:30 +0:00 SECOND_OF_TWO"
        ), id="casablanca: Ramadan begins",
    ),
    pytest.param(Overlap(
        "Europe/Dublin", "30 1 * * *", "2026-10-24T12:00", "2026-10-25T12:00",
        "2026-10-25 01:30 +1:00 FIRST_OF_TWO", "2026-10-25 01:30 +0:00 SECOND_OF_TWO"
        ), id="dublin: negative daylight saving",
    ),
    pytest.param(Overlap(
        "America/Juneau", "0 12 * * *", "1867-10-18T00:00", "1867-10-18T00:00", "", ""
        ), id="before 1900 nothing exists",
    ),
]  # fmt: skip


@pytest.mark.parametrize("gap", [SKIP, AFTER])
@pytest.mark.parametrize("night", OVERLAPS)
def test_overlap(night: Overlap, gap: DstGap) -> None:
    def fires(overlap: DstOverlap) -> list[str]:
        spec = Cron(night.expression, night.zone, dst_gap=gap, dst_overlap=overlap)
        return preview(spec, night.since, night.until)

    assert fires(FIRST) == [t for t in [night.one] if t]
    assert fires(SECOND) == [t for t in [night.two] if t]
    assert fires(BOTH) == [t for t in [night.one, night.two] if t]


@pytest.mark.parametrize("overlap", [FIRST, SECOND, BOTH])
@pytest.mark.parametrize("hour", ["*", "0-23", "*/1"])
def test_who_follows_the_hand_runs_through_both_passes(hour: str, overlap: DstOverlap) -> None:
    spec = berlin(f"0,30 {hour} * * *", overlap=overlap)
    assert preview(spec, "2026-10-24T23:30", "2026-10-25T02:00") == [
        "2026-10-25 02:00 +2:00 FIRST_OF_TWO",
        "2026-10-25 02:30 +2:00 FIRST_OF_TWO",
        "2026-10-25 02:00 +1:00 SECOND_OF_TWO",
        "2026-10-25 02:30 +1:00 SECOND_OF_TWO",
        "2026-10-25 03:00 +1:00",
    ]


def test_the_first_pass_is_found_from_within_the_second_and_back() -> None:
    plan = schedule.compile(Cron("30 1 * * *", "America/New_York"), OPEN)
    first_pass, second_pass = ms("2026-11-01T01:30-04:00"), ms("2026-11-01T01:30-05:00")
    assert plan.prev_at_or_before(second_pass - 1) == first_pass
    assert plan.prev_at_or_before(second_pass + 1) == first_pass
    both = schedule.compile(Cron("30 1 * * *", "America/New_York", dst_overlap=BOTH), OPEN)
    assert both.prev_at_or_before(second_pass - 1) == first_pass
    assert both.next_after(first_pass) == second_pass
    assert both.next_after(second_pass) == ms("2026-11-02T01:30-05:00")


def test_a_star_minute_alone_does_not_follow_the_hand() -> None:
    assert preview(berlin("*/30 2 * * *"), "2026-10-24T23:30", "2026-10-25T02:00") == [
        "2026-10-25 02:00 +2:00 FIRST_OF_TWO",
        "2026-10-25 02:30 +2:00 FIRST_OF_TWO",
    ]


def test_a_rare_expression_is_found_across_its_years() -> None:
    found = preview(berlin("0 0 29 2 *"), "2026-01-01", "2037-01-01")
    assert found == ["2028-02-29 00:00 +1:00", "2032-02-29 00:00 +1:00", "2036-02-29 00:00 +1:00"]


def test_beyond_the_years_of_the_zones() -> None:
    plan = schedule.compile(Cron("0 0 * * *"), OPEN)
    assert plan.next_after(ms("9989-12-31T12:00")) is None
    assert plan.next_after(ms("9999-01-01")) is None
    assert plan.next_after(ms("1800-01-01")) == ms("1900-01-01")
    assert plan.prev_at_or_before(ms("1899-12-31T12:00")) is None
    assert plan.prev_at_or_before(ms("9999-01-01")) == ms("9989-12-31")
    assert plan.count_between(ms("1800-01-01"), ms("1900-01-03"), 10) == 3
    assert plan.count_between(ms("9989-12-29T12:00"), ms("9999-01-01"), 10) == 2


def test_counting_stops_at_the_limit() -> None:
    plan = schedule.compile(berlin("0 12 * * *"), OPEN)
    assert plan.count_between(ms("2001-01-01"), ms("2026-01-01"), 1_000_000) == 9_131
    assert plan.count_between(ms("2001-01-01"), ms("2026-01-01"), 300) == 300


def test_seconds() -> None:
    spec = Cron("*/20 30 2 * * *", "Europe/Berlin", CronDialect.SECONDS_FIRST)
    plan = schedule.compile(spec, OPEN)
    start = ms("2026-07-01T02:30+02:00")
    assert walk(plan, start - 1)[:4] == [start, start + 20_000, start + 40_000, start + DAY_MS]
    assert plan.next_after(start) == start + 20_000
    assert plan.next_after(start + 19_999) == start + 20_000


# --- windows -------------------------------------------------------------------------------------


def test_start_and_end_are_inclusive() -> None:
    window = Window(ms("2026-01-02T09:00"), ms("2026-01-04T09:00"))
    for spec in (Cron("0 9 * * *"), Every(DAY_MS, ms("2026-01-01T09:00"))):
        plan = schedule.compile(spec, window)
        assert walk(plan, 0) == [ms(f"2026-01-0{d}T09:00") for d in (2, 3, 4)]
        assert plan.next_after(ms("2026-01-04T09:00")) is None
        assert plan.prev_at_or_before(ms("2027-01-01")) == ms("2026-01-04T09:00")
        assert plan.prev_at_or_before(ms("2026-01-02T08:59")) is None
        assert plan.count_between(0, ms("2027-01-01"), 100) == 3
        assert plan.count_between(0, ms("2027-01-01"), 2) == 2
        assert plan.count_between(ms("2026-01-03"), ms("2026-01-03"), 100) == 0


@pytest.mark.parametrize(
    "spec", [Cron("0 9 * * *"), Every(DAY_MS, ms("2026-01-01T09:00"))], ids=["cron", "every"]
)
def test_exclusions(spec: Schedule) -> None:
    window = Window(
        excluded_dates=frozenset({"2026-01-02", "2026-01-03", "2026-02-01"}),
        excluded_ms=frozenset({ms("2026-01-05T09:00"), ms("2026-01-06T09:00") + 1}),
    )
    plan = schedule.compile(spec, window)
    days = [1, 4, 6, 7]
    assert walk(plan, ms("2026-01-01"))[:4] == [ms(f"2026-01-0{d}T09:00") for d in days]
    assert plan.prev_at_or_before(ms("2026-01-05T10:00")) == ms("2026-01-04T09:00")
    assert plan.prev_at_or_before(ms("2026-01-03T10:00")) == ms("2026-01-01T09:00")
    assert plan.count_between(ms("2026-01-01"), ms("2026-01-08"), 100) == 4
    assert plan.count_between(ms("2026-01-01"), ms("2026-01-08"), 2) == 2
    dropped = plan.dropped(ms("2026-01-01"), ms("2026-01-08"), 100)
    assert dropped == [Dropped(f"2026-01-0{d}T09:00:00", DropReason.EXCLUDED) for d in (2, 3, 5)]
    assert plan.dropped(ms("2026-01-01"), ms("2026-01-08"), 1) == dropped[:1]


def test_excluded_dates_are_those_of_the_zone() -> None:
    window = Window(excluded_dates=frozenset({"2026-07-01"}))
    spec = Cron("30 0 * * *", "Europe/Berlin")
    assert preview(spec, "2026-06-29T12:00", "2026-07-02T12:00", window) == [
        "2026-06-30 00:30 +2:00",
        "2026-07-02 00:30 +2:00",
    ]


def test_an_occurrence_is_not_moved_from_or_onto_an_excluded_day() -> None:
    spec = Cron("30 23 * * *", "America/Nuuk")
    for day in ("2026-03-28", "2026-03-29"):
        window = Window(excluded_dates=frozenset({day}))
        assert preview(spec, "2026-03-28T12:00", "2026-03-29T12:00", window) == []


def test_dropped_by_the_gap_and_by_the_window_come_in_order() -> None:
    window = Window(
        excluded_ms=frozenset({ms("2026-03-28T02:30+01:00"), ms("2026-03-30T02:30+02:00")})
    )
    plan = schedule.compile(berlin("30 2 * * *", SKIP), window)
    assert plan.dropped(ms("2026-03-27"), ms("2026-04-05"), 10) == [
        Dropped("2026-03-28T02:30:00", DropReason.EXCLUDED),
        Dropped("2026-03-29T02:30:00", DropReason.DST_GAP),
        Dropped("2026-03-30T02:30:00", DropReason.EXCLUDED),
    ]


def test_excluded_ones_are_looked_for_within_bounds() -> None:
    far = ms("2026-01-01") + 20_000_000
    plan = schedule.compile(Every(1_000), Window(excluded_ms=frozenset({far})))
    assert plan.dropped(ms("2026-01-01"), far + 1_000, 10) == []
    assert len(plan.dropped(far - 1_000, far, 10)) == 1


# --- every ---------------------------------------------------------------------------------------


def test_every_is_anchor_plus_periods_in_both_directions() -> None:
    plan = schedule.compile(Every(7_000, 100_500), OPEN)
    assert plan.next_after(100_499) == 100_500
    assert plan.next_after(100_500) == 107_500
    assert plan.next_after(0) == 2_500
    assert plan.prev_at_or_before(100_500) == 100_500
    assert plan.prev_at_or_before(100_499) == 93_500
    assert plan.prev_at_or_before(-1) == -4_500
    assert plan.count_between(93_500, 107_500, 10) == 2
    assert plan.occurrences(0, 2) == [
        schedule.Occurrence(2_500, 0, Note.NONE),
        schedule.Occurrence(9_500, 0, Note.NONE),
    ]


# --- once ----------------------------------------------------------------------------------------


def test_once_at_an_instant() -> None:
    plan = schedule.compile(Once(5_000), OPEN)
    assert plan.next_after(0) == plan.next_after(4_999) == 5_000
    assert plan.next_after(5_000) is None
    assert plan.prev_at_or_before(5_000) == 5_000
    assert plan.prev_at_or_before(4_999) is None
    assert plan.count_between(4_999, 5_000, 9) == 1
    assert plan.count_between(5_000, 6_000, 9) == 0
    assert plan.occurrences(0, 3) == [schedule.Occurrence(5_000, 0, Note.NONE)]


CIVIL = [
    # civil time, zone, gap, overlap, what the preview shows
    ("2026-07-01T12:00:00", "Europe/Berlin", AFTER, FIRST, "2026-07-01 12:00 +2:00"),
    ("2026-03-29T02:30:00", "Europe/Berlin", AFTER, FIRST, "2026-03-29 03:00 +2:00 MOVED_AFTER_GAP"),
    ("2026-03-29T02:30:00.500", "Europe/Berlin", AFTER, FIRST, "2026-03-29 03:00 +2:00 MOVED_AFTER_GAP"),
    ("2026-10-25T02:30:00", "Europe/Berlin", AFTER, FIRST, "2026-10-25 02:30 +2:00 FIRST_OF_TWO"),
    ("2026-10-25T02:30:00", "Europe/Berlin", AFTER, SECOND, "2026-10-25 02:30 +1:00 SECOND_OF_TWO"),
    ("2011-12-30T12:00:00", "Pacific/Apia", AFTER, FIRST, "2011-12-31 00:00 +14:00 MOVED_AFTER_GAP"),
]  # fmt: skip


@pytest.mark.parametrize(("civil", "where", "gap", "overlap", "shows"), CIVIL)
def test_once_at_a_civil_time(
    civil: str, where: str, gap: DstGap, overlap: DstOverlap, shows: str
) -> None:
    spec = Once(civil=civil, time_zone=where, dst_gap=gap, dst_overlap=overlap)
    (found,) = schedule.compile(spec, OPEN).occurrences(0, 3)
    assert shown(found) == shows
    assert schedule.once_ms(spec) == found.scheduled_ms


def test_once_keeps_its_milliseconds() -> None:
    spec = Once(civil="2026-07-01T12:00:00.250", time_zone="Europe/Berlin")
    assert schedule.once_ms(spec) == ms("2026-07-01T12:00:00.250+02:00")


def test_once_in_a_gap_with_skip_never_fires() -> None:
    spec = Once(civil="2026-03-29T02:30:00", time_zone="Europe/Berlin", dst_gap=SKIP)
    assert schedule.once_ms(spec) is None
    assert schedule.compile(spec, OPEN).next_after(0) is None
    assert schedule.compile(spec, OPEN).prev_at_or_before(1 << 60) is None
    assert schedule.compile(spec, OPEN).count_between(0, 1 << 60, 5) == 0


def test_once_on_an_excluded_date() -> None:
    spec = Once(civil="2026-07-01T00:30:00", time_zone="Europe/Berlin")
    excluded = Window(excluded_dates=frozenset({"2026-07-01"}))
    plan = schedule.compile(spec, excluded)
    assert plan.next_after(0) is None
    assert plan.dropped(0, 1 << 60, 5) == [Dropped("2026-07-01T00:30:00", DropReason.EXCLUDED)]
    other = Window(excluded_dates=frozenset({"2026-06-30"}))
    assert schedule.compile(spec, other).next_after(0) == ms("2026-06-30T22:30")
    instant = Once(ms("2026-06-30T22:30"))
    assert schedule.compile(instant, other).next_after(0) is None


@pytest.mark.parametrize("at_ms", [6_999, 7_000, 7_001])
def test_an_instant_is_a_once_without_a_window(at_ms: int) -> None:
    short, long = schedule.InstantPlan(7_000), schedule.compile(Once(7_000), OPEN)
    assert short.next_after(at_ms) == long.next_after(at_ms)
    assert short.prev_at_or_before(at_ms) == long.prev_at_or_before(at_ms)
    for until_ms in (6_999, 7_000, 7_001):
        assert short.count_between(at_ms, until_ms, 10) == long.count_between(at_ms, until_ms, 10)
