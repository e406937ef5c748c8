"""Cron expressions: what is read, what is refused and with which words, and the next civil time that matches."""

from datetime import UTC, date, datetime

import pytest

from tickwheel.server import cron
from tickwheel.server.errors import InvalidArgument, Violation
from tickwheel.server.model import CronDialect

FIVE, SIX = CronDialect.FIVE_FIELDS, CronDialect.SECONDS_FIRST


def at(text: str) -> int:
    """Civil seconds of `2026-01-02 10:00[:00]`."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def text(civil_s: int | None) -> str:
    assert civil_s is not None
    return datetime.fromtimestamp(civil_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def refusal(expression: str, dialect: CronDialect = FIVE) -> Violation:
    with pytest.raises(InvalidArgument) as caught:
        cron.parse(expression, dialect)
    assert caught.value.violations[0].field == "schedule.cron.expression"
    return caught.value.violations[0]


NEXT = [
    # expression, from, the next two matches
    ("* * * * *", "2026-01-02 10:00:01", "2026-01-02 10:01:00", "2026-01-02 10:02:00"),
    ("*/15 * * * *", "2026-01-02 23:50", "2026-01-03 00:00:00", "2026-01-03 00:15:00"),
    ("0 9 * * MON-FRI", "2026-01-02 10:00", "2026-01-05 09:00:00", "2026-01-06 09:00:00"),
    ("0 9 * * mon,Wed", "2026-01-02 10:00", "2026-01-05 09:00:00", "2026-01-07 09:00:00"),
    ("5-10/5 8-18/5 * * *", "2026-01-01 08:06", "2026-01-01 08:10:00", "2026-01-01 13:05:00"),
    ("0 0 L * *", "2026-01-31 00:01", "2026-02-28 00:00:00", "2026-03-31 00:00:00"),
    ("0 0 L-2 * *", "2026-01-30 00:01", "2026-02-26 00:00:00", "2026-03-29 00:00:00"),
    ("0 0 L-28 * *", "2026-01-04 00:00", "2026-03-03 00:00:00", "2026-04-02 00:00:00"),
    ("0 0 1,15,L * *", "2026-01-15 00:01", "2026-01-31 00:00:00", "2026-02-01 00:00:00"),
    ("0 0 * * 5L", "2026-01-01 00:00", "2026-01-30 00:00:00", "2026-02-27 00:00:00"),
    ("0 0 * * FRIL", "2026-01-01 00:00", "2026-01-30 00:00:00", "2026-02-27 00:00:00"),
    ("0 0 * * 7L", "2026-01-01 00:00", "2026-01-25 00:00:00", "2026-02-22 00:00:00"),
    ("0 0 * * MON#2", "2026-01-01 00:00", "2026-01-12 00:00:00", "2026-02-09 00:00:00"),
    ("0 0 * * 1#5", "2026-01-01 00:00", "2026-03-30 00:00:00", "2026-06-29 00:00:00"),
    ("0 0 * * SUN", "2026-01-01 00:00", "2026-01-04 00:00:00", "2026-01-11 00:00:00"),
    ("0 0 * * 0", "2026-01-01 00:00", "2026-01-04 00:00:00", "2026-01-11 00:00:00"),
    ("0 0 * * 7", "2026-01-01 00:00", "2026-01-04 00:00:00", "2026-01-11 00:00:00"),
    ("0 0 * * SAT-SUN", "2026-01-01 00:00", "2026-01-03 00:00:00", "2026-01-04 00:00:00"),
    ("0 0 * * */2", "2026-01-01 00:00", "2026-01-01 00:00:00", "2026-01-03 00:00:00"),
    # both days restricted: either matches
    ("0 0 13 * FRI", "2026-01-01 00:00", "2026-01-02 00:00:00", "2026-01-09 00:00:00"),
    ("0 0 13 * FRI", "2026-01-10 00:00", "2026-01-13 00:00:00", "2026-01-16 00:00:00"),
    # a day that begins with * is no restriction: both must match
    ("0 0 */2 * MON", "2026-01-01 00:00", "2026-01-05 00:00:00", "2026-01-19 00:00:00"),
    ("0 0 ? * MON", "2026-01-01 00:00", "2026-01-05 00:00:00", "2026-01-12 00:00:00"),
    ("0 0 1 * ?", "2026-01-02 00:00", "2026-02-01 00:00:00", "2026-03-01 00:00:00"),
    ("0 0 29 2 *", "2026-01-01 00:00", "2028-02-29 00:00:00", "2032-02-29 00:00:00"),
    ("0 0 29 2 *", "2096-03-01 00:00", "2104-02-29 00:00:00", "2108-02-29 00:00:00"),
    ("0 0 * 2 MON#5", "2073-01-01 00:00", "2112-02-29 00:00:00", "2140-02-29 00:00:00"),
    ("0 0 31 JAN,mar-APR *", "2026-02-01 00:00", "2026-03-31 00:00:00", "2027-01-31 00:00:00"),
    ("@hourly", "2026-01-01 00:01", "2026-01-01 01:00:00", "2026-01-01 02:00:00"),
    ("@daily", "2026-01-01 00:01", "2026-01-02 00:00:00", "2026-01-03 00:00:00"),
    ("@midnight", "2026-01-01 00:01", "2026-01-02 00:00:00", "2026-01-03 00:00:00"),
    ("@weekly", "2026-01-01 00:01", "2026-01-04 00:00:00", "2026-01-11 00:00:00"),
    ("@Monthly", "2026-01-01 00:01", "2026-02-01 00:00:00", "2026-03-01 00:00:00"),
    ("@yearly", "2026-01-01 00:01", "2027-01-01 00:00:00", "2028-01-01 00:00:00"),
    ("@annually", "2026-01-01 00:01", "2027-01-01 00:00:00", "2028-01-01 00:00:00"),
]


@pytest.mark.parametrize(("expression", "since", "first", "second"), NEXT)
def test_next_and_back(expression: str, since: str, first: str, second: str) -> None:
    calendar = cron.parse(expression, FIVE)
    one = calendar.ceil(at(since))
    assert text(one) == first
    assert one is not None
    two = calendar.ceil(one + 1)
    assert text(two) == second
    assert two is not None
    assert calendar.ceil(one) == calendar.floor(two - 1) == one
    assert calendar.count(at(since), two + 1) == 2
    assert calendar.matches(one)
    assert not calendar.matches(one + 1)


def test_seconds_first() -> None:
    calendar = cron.parse("30-40/5 59 23 31 12 *", SIX)
    found = at("2026-12-31 23:59:36")
    assert text(calendar.ceil(found)) == "2026-12-31 23:59:40"
    assert text(calendar.floor(found)) == "2026-12-31 23:59:35"
    assert text(calendar.ceil(at("2026-12-31 23:59:41"))) == "2027-12-31 23:59:30"
    assert text(calendar.floor(at("2026-12-31 23:59:29"))) == "2025-12-31 23:59:40"
    assert calendar.clock.per_day == 3
    assert cron.parse("@hourly", SIX).clock.per_day == 24


def test_a_day_counts_each_of_its_seconds() -> None:
    calendar = cron.parse("*/7 3-50/9 2-20/3 * * *", SIX)
    day = at("2026-05-05 00:00")
    inside = [s for s in range(day, day + 86_400) if calendar.matches(s)]
    clock = calendar.clock
    assert len(inside) == clock.per_day
    assert (inside[0], inside[-1]) == (day + clock.first, day + clock.last)
    for s in range(day, day + 86_400, 61):
        assert calendar.count(day, s) == sum(t < s for t in inside)
        assert calendar.ceil(s) == next((t for t in inside if t >= s), day + 86_400 + clock.first)
        assert calendar.floor(s) == next(
            (t for t in reversed(inside) if t <= s), day - 86_400 + clock.last
        )


def test_count_of_nothing() -> None:
    calendar = cron.parse("* * * * *", FIVE)
    assert calendar.count(60, 60) == 0
    assert calendar.count(60, 0) == 0


def test_excluded_days_do_not_match() -> None:
    calendar = cron.parse("0 12 * * *", FIVE).without(
        [date(2026, 1, 2), date(2026, 1, 3), date(2026, 2, 1)]
    )
    assert text(calendar.ceil(at("2026-01-01 13:00"))) == "2026-01-04 12:00:00"
    assert text(calendar.floor(at("2026-01-04 11:00"))) == "2026-01-01 12:00:00"
    assert calendar.count(at("2026-01-01 00:00"), at("2026-03-01 00:00")) == 59 - 3
    assert calendar.excludes(at("2026-01-02 23:59"))
    assert not calendar.excludes(at("2026-01-04 00:00"))


@pytest.mark.parametrize("expression", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 L-30 2 *"])
def test_what_never_matches_is_none(expression: str) -> None:
    calendar = cron.parse(expression, FIVE)
    assert calendar.ceil(at("2026-01-01 00:00")) is None
    assert calendar.floor(at("2026-01-01 00:00")) is None


def test_the_calendar_ends_with_year_9999() -> None:
    calendar = cron.parse("0 0 1 1 *", FIVE)
    assert calendar.ceil(at("9999-01-01 00:01")) is None


@pytest.mark.parametrize(
    ("hour", "follows"),
    [("*", True), ("*/2", True), ("0-23", True), ("0-22", False), ("9", False), ("1-23/2", False)],
)
def test_follows_the_hand(hour: str, follows: bool) -> None:
    assert cron.parse(f"0 {hour} * * *", FIVE).follows_hand is follows


REFUSED = [
    ("", "INVALID_CRON", "five fields"),
    ("   ", "INVALID_CRON", "five fields"),
    ("* * * *", "INVALID_CRON", "it has 4 fields; write minute hour"),
    ("* * * * * * *", "INVALID_CRON", "it has 7 fields"),
    ("0 0 9 * * *", "SECONDS_FIELD_NEEDS_DIALECT", "dialect = SECONDS_FIRST"),
    ("60 * * * *", "INVALID_CRON", "minute: 60 is out of range; it goes from 0 to 59"),
    ("* 24 * * *", "INVALID_CRON", "hour: 24 is out of range; it goes from 0 to 23"),
    ("* * 0 * *", "INVALID_CRON", "day of month: 0 is out of range; it goes from 1 to 31"),
    ("* * * 13 *", "INVALID_CRON", "month: 13 is out of range; it goes from 1 to 12"),
    ("* * * * 8", "INVALID_CRON", "day of week: 8 is out of range; it goes from 0 to 7"),
    ("* * * FOO *", "INVALID_CRON", "month: 'FOO' is not understood; write 1 to 12, JAN to DEC"),
    ("* * * * MONDAY", "INVALID_CRON", "0 to 7, SUN to SAT"),
    ("1,,2 * * * *", "INVALID_CRON", "'' is not understood"),
    ("-5 * * * *", "INVALID_CRON", "'' is not understood"),
    ("1-2-3 * * * *", "INVALID_CRON", "'2-3' is not understood"),
    ("٣ * * * *", "INVALID_CRON", "is not understood"),
    ("99999 * * * *", "INVALID_CRON", "'99999' is not understood"),
    ("0/15 * * * *", "INVALID_CRON", "0-59/15"),
    ("*/0 * * * *", "INVALID_CRON", "must be from 1 to 59"),
    ("*/90 * * * *", "INVALID_CRON", "use schedule.every"),
    ("0 */24 * * *", "INVALID_CRON", "from 1 to 23"),
    ("*/x * * * *", "INVALID_CRON", "'X' is not understood"),
    ("0 22-6 * * *", "INVALID_CRON", "22-23,0-6"),
    ("0 0 * * FRI-MON", "INVALID_CRON", "FRI-SAT,SUN-MON"),
    ("0 0 * NOV-FEB *", "INVALID_CRON", "NOV-DEC,JAN-FEB"),
    ("? * * * *", "INVALID_CRON", "? is for days only"),
    ("0 0 15W * *", "UNSUPPORTED_CRON", "W (the weekday nearest"),
    ("0 0 LW * *", "UNSUPPORTED_CRON", "W (the weekday nearest"),
    ("H * * * *", "UNSUPPORTED_CRON", "jitter"),
    ("H/5 * * * *", "UNSUPPORTED_CRON", "jitter"),
    ("0~30 * * * *", "UNSUPPORTED_CRON", "jitter"),
    ("0 0 L-0 * *", "INVALID_CRON", "L-1 to L-30"),
    ("0 0 L-31 * *", "INVALID_CRON", "L-1 to L-30"),
    ("0 0 LX * *", "INVALID_CRON", "L for the last day"),
    ("0 0 * * L", "INVALID_CRON", "5L or FRIL"),
    ("0 0 * * 8L", "INVALID_CRON", "8 is out of range"),
    ("0 0 * * MON#6", "INVALID_CRON", "after # comes 1 to 5"),
    ("0 0 * * #1", "INVALID_CRON", "'' is not understood"),
    ("0 0 1#2 * *", "INVALID_CRON", "'1#2' is not understood"),
    ("@every 5m", "UNSUPPORTED_CRON", "schedule.every"),
    ("@reboot", "UNSUPPORTED_CRON", "RunJob"),
    ("@fortnightly", "INVALID_CRON", "@annually, @daily"),
    ("CRON_TZ=Europe/Berlin 0 9 * * *", "UNSUPPORTED_CRON", "schedule.cron.time_zone"),
    ("TZ=UTC 0 9 * * *", "UNSUPPORTED_CRON", "take TZ= out"),
    ("* " * 200, "INVALID_CRON", "400 characters; at most 256"),
]


@pytest.mark.parametrize(("expression", "reason", "words"), REFUSED)
def test_refused_with_a_remedy(expression: str, reason: str, words: str) -> None:
    found = refusal(expression)
    assert found.reason == reason
    assert words in found.description


def test_names_that_hold_the_letters_of_other_dialects_are_read() -> None:
    cron.parse("0 0 * MAR,MAY 5,WED,THU", FIVE)


def test_seconds_first_wants_six() -> None:
    found = refusal("0 9 * * MON", SIX)
    assert found.reason == "SECONDS_FIELD_MISSING"
    assert "`0 0 9 * * MON`" in found.description
    assert "it has 3 fields; write second minute" in refusal("* * *", SIX).description


def test_every_wrong_field_is_named() -> None:
    with pytest.raises(InvalidArgument) as caught:
        cron.parse("75 25 * H 9", FIVE)
    assert [v.description.partition(":")[0] for v in caught.value.violations] == [
        "minute",
        "hour",
        "month",
        "day of week",
    ]
