"""Schedules: what is refused, with which words, and what is compiled."""

import zoneinfo
from datetime import UTC, datetime, timedelta

import pytest

from tickwheel.server import schedule
from tickwheel.server.errors import InvalidArgument, Violation
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
from tickwheel.server.plan import Plan

DAY_MS = 86_400_000
SKIP, AFTER = DstGap.SKIP, DstGap.FIRE_AFTER
FIRST, SECOND, BOTH = DstOverlap.FIRST, DstOverlap.SECOND, DstOverlap.BOTH
OPEN = Window()


def ms(text: str) -> int:
    """UTC ms of an ISO time; without an offset it is UTC."""
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def reasons(spec: Schedule, window: Window = OPEN) -> list[tuple[str, str]]:
    return [(v.field, v.reason) for v in schedule.check(spec, window)]


# --- jitter --------------------------------------------------------------------------------------


def test_jitter_is_stable_and_fills_its_range() -> None:
    uid = bytes(range(16))
    assert schedule.jitter(uid, 123, 0) == 0
    assert schedule.jitter(uid, 123, 10_000) == schedule.jitter(uid, 123, 10_000)
    assert schedule.jitter(uid, -1, 1) in {0, 1}
    seen = {schedule.jitter(uid, t * 60_000, 9) for t in range(500)}
    assert seen == set(range(10))
    others = {schedule.jitter(bytes([n] * 16), 0, 1_000_000) for n in range(100)}
    assert len(others) > 95


def test_jitter_never_changes_between_releases() -> None:
    assert schedule.jitter(bytes(16), 1_800_000_000_000, 60_000) == 55_077


# --- check ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        Once(ms("2026-01-01")),
        Once(ms("1999-01-01")),
        Once(civil="2026-01-01T00:00:00", time_zone="Asia/Kathmandu"),
        Every(1_000),
        Every(schedule.PERIOD_MS_MAX),
        Cron("0 9 * * MON-FRI", "Europe/Berlin"),
        Cron("0 9 * * *", "EST5EDT"),
        Cron("0 9 * * *", "US/Eastern"),
        Cron("0 0 9 * * *", dialect=CronDialect.SECONDS_FIRST),
        Cron("0 0 * 2 MON#5"),
        Cron("30 2 * * *", "Europe/Berlin", dst_gap=SKIP),
    ],
)
def test_what_is_right_is_accepted(spec: Schedule) -> None:
    assert schedule.check(spec, OPEN) == []
    plan = schedule.compile(spec, OPEN)
    assert isinstance(plan, Plan)


BERLIN_GAP = Cron("30 2 * 3 SUNL", "Europe/Berlin", dst_gap=SKIP)
WRONG = [
    (Every(999), "schedule.every.period", "PERIOD_TOO_SHORT"),
    (Every(0), "schedule.every.period", "PERIOD_TOO_SHORT"),
    (Every(schedule.PERIOD_MS_MAX + 1), "schedule.every.period", "PERIOD_TOO_LONG"),
    (Cron("0 0 30 2 *"), "schedule.cron.expression", "NEVER_FIRES"),
    (Cron("0 0 31 4,6 *"), "schedule.cron.expression", "NEVER_FIRES"),
    (BERLIN_GAP, "schedule.cron.expression", "NEVER_FIRES"),
    (Cron("0 9 * *"), "schedule.cron.expression", "INVALID_CRON"),
    (Once(civil="2026-03-29T02:30:00", time_zone="Europe/Berlin", dst_gap=SKIP), "schedule.once.civil_time", "NEVER_FIRES"),
    (Cron("0 9 * * *", "Mars/Olympus"), "schedule.cron.time_zone", "UNKNOWN_TIME_ZONE"),
    (Once(), "schedule.once", "TIME_REQUIRED"),
    (Once(5_000, time_zone="UTC"), "schedule.once.time_zone", "TIME_ZONE_NOT_ALLOWED"),
    (Once(1 << 60), "schedule.once.scheduled_time", "TIME_OUT_OF_RANGE"),
    (Once(civil="2026-01-01T00:00:00"), "schedule.once.time_zone", "UNKNOWN_TIME_ZONE"),
    (Once(5, "2026-01-01T00:00:00", "UTC"), "schedule.once.civil_time", "ONE_TIME_ONLY"),
    (Once(civil="1815-06-18T11:35:00", time_zone="UTC"), "schedule.once.civil_time", "TIME_OUT_OF_RANGE"),
    (Once(civil="2026-01-01T00:00:00", time_zone="UTC", dst_overlap=BOTH), "schedule.once.dst_overlap", "BOTH_NOT_ALLOWED"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "field", "reason"), WRONG)
def test_what_is_wrong_is_named(spec: Schedule, field: str, reason: str) -> None:
    assert reasons(spec) == [(field, reason)]


@pytest.mark.parametrize(
    ("civil", "words"),
    [
        ("2026-02-30T00:00:00", "YYYY-MM-DDThh:mm:ss"),
        ("2026-01-01T24:00:00", "YYYY-MM-DDThh:mm:ss"),
        ("2026-01-01T00:00:60", "YYYY-MM-DDThh:mm:ss"),
        ("2026-01-01", "YYYY-MM-DDThh:mm:ss"),
        ("2026-01-01T00:00:00.5", "YYYY-MM-DDThh:mm:ss"),
        ("2026-01-01T00:00:00Z", "give it as scheduled_time"),
        ("2026-01-01T00:00:00+02:00", "give it as scheduled_time"),
    ],
)
def test_a_civil_time_that_is_none(civil: str, words: str) -> None:
    (found,) = schedule.check(Once(civil=civil, time_zone="UTC"), OPEN)
    assert (found.field, found.reason) == ("schedule.once.civil_time", "INVALID_CIVIL_TIME")
    assert words in found.description


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "a server has no local time"),
        ("Local", "a server has no local time"),
        ("localtime", "a server has no local time"),
        ("+02:00", "is an offset"),
        ("UTC+2", "is an offset"),
        ("europe/berlin", "did you mean Europe/Berlin?"),
        ("Berlin", "did you mean Europe/Berlin?"),
        ("Europe/Berlni", "did you mean Europe/Berlin"),
        ("new york", "did you mean America/New_York?"),
        ("PST", "write it as Area/City"),
        ("Factory", "write it as Area/City"),
        ("../../../etc/passwd", "write it as Area/City"),
        ("x" * 10_000, "write it as Area/City"),
    ],
)
def test_an_unknown_zone(name: str, words: str) -> None:
    (found,) = schedule.check(Cron("0 9 * * *", name), OPEN)
    assert (found.field, found.reason) == ("schedule.cron.time_zone", "UNKNOWN_TIME_ZONE")
    assert words in found.description
    assert len(found.description) < 300
    with pytest.raises(InvalidArgument):
        schedule.compile(Cron("0 9 * * *", name), OPEN)


def test_everything_wrong_is_said_at_once() -> None:
    window = Window(
        ms("2026-02-01"),
        ms("2026-01-01"),
        frozenset({"2026-02-30", "20260101"}),
        frozenset(range(1_001)),
    )
    assert reasons(Cron("61 25 * * *", "Nowhere"), window) == [
        ("schedule.cron.expression", "INVALID_CRON"),
        ("schedule.cron.expression", "INVALID_CRON"),
        ("schedule.cron.time_zone", "UNKNOWN_TIME_ZONE"),
        ("window.end_time", "END_BEFORE_START"),
        ("window.excluded_times", "TOO_MANY_EXCLUSIONS"),
        ("window.excluded_dates", "INVALID_DATE"),
        ("window.excluded_dates", "INVALID_DATE"),
    ]


def test_windows_out_of_range() -> None:
    assert reasons(Every(1_000), Window(1 << 60)) == [("window.start_time", "TIME_OUT_OF_RANGE")]
    assert reasons(Every(1_000), Window(0, 1 << 60)) == [("window.end_time", "TIME_OUT_OF_RANGE")]


NOTHING_INSIDE = [
    (Cron("0 9 * * *"), Window(ms("2026-01-01T10:00"), ms("2026-01-01T11:00"))),
    (Cron("0 9 1 1 *"), Window(ms("2026-01-02"), ms("2026-12-31"))),
    (Every(DAY_MS), Window(ms("2026-01-01T10:00"), ms("2026-01-01T11:00"))),
    (Once(ms("2026-01-01")), Window(ms("2026-01-02"))),
    (Once(ms("2026-01-01")), Window(0, ms("2025-01-02"))),
    (Once(ms("2026-01-01")), Window(excluded_ms=frozenset({ms("2026-01-01")}))),
]


@pytest.mark.parametrize(("spec", "window"), NOTHING_INSIDE)
def test_a_window_without_an_occurrence(spec: Schedule, window: Window) -> None:
    assert reasons(spec, window) == [("window", "NEVER_FIRES")]


def test_a_window_that_has_ended_is_no_fault() -> None:
    assert schedule.check(Cron("0 9 * * *"), Window(0, ms("2001-01-01"))) == []


def test_violations_are_of_the_shared_type() -> None:
    (found,) = schedule.check(Every(0), OPEN)
    assert isinstance(found, Violation)


def test_the_hosts_files_are_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoneinfo, "TZPATH", ("/nonexistent",))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    plan = schedule.compile(Cron("0 9 * * *", "America/Santiago"), OPEN)
    assert plan.next_after(ms("2026-07-01T00:00")) == ms("2026-07-01T09:00-04:00")


def test_compiled_cron_is_kept() -> None:
    spec = Cron("1 2 3 4 *", "Europe/Berlin")
    assert schedule.compile(spec, OPEN) is schedule.compile(
        Cron("1 2 3 4 *", "Europe/Berlin"), OPEN
    )
