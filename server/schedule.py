"""Floor 1, pure. When a job fires: `check` what a user asked for, `compile` it to a `Plan` that names the instants.

    zone      civil time: spans of constant offset                 (tzdata, the pinned package)
    cron      expression → bitmaps → next civil time that matches  (knows no zones)
    plan      once, every, cron in a window → occurrences          (daylight saving is here)
    schedule  the door of the four: check, compile, jitter; other rooms import this one only

`check` returns everything that is wrong at once, each with a stable reason and the words of the remedy, so that a bad
schedule is refused when it is created and never meets the loop that fires.

Must never import: any room but `model`, `errors`, `zone`, `cron`, `plan`; no I/O, no clock, no chance.
"""

import hashlib
import re
from datetime import date
from functools import lru_cache

from tickwheel.server import cron, zone
from tickwheel.server.errors import InvalidArgument, Violation
from tickwheel.server.model import MS_PER_DAY, Cron, DstOverlap, Every, Ms, Once, Schedule, Window
from tickwheel.server.plan import (
    OPEN_MS,
    CronPlan,
    Dropped,
    DropReason,
    EveryPlan,
    InstantPlan,
    Note,
    Occurrence,
    OncePlan,
    Plan,
    civil_ms,
    civil_text,
    once_ms,
)
from tickwheel.server.zone import DAY_S, EARLIEST_S, EPOCH_DAY, LATEST_S, tz_version

__all__ = [
    "DropReason",
    "Dropped",
    "InstantPlan",
    "Note",
    "Occurrence",
    "Plan",
    "check",
    "civil_text",
    "compile",
    "jitter",
    "once_ms",
    "tz_version",
]

PERIOD_MS_MIN = 1_000
PERIOD_MS_MAX = 3_653 * MS_PER_DAY
EXCLUSIONS_MAX = 1_000
DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
BAD_DATES_NAMED_MAX = 10


def compile(schedule: Schedule, window: Window) -> Plan:  # noqa: A001 - the word for it
    """The plan of a schedule that `check` has nothing against. Raises InvalidArgument if it cannot be read."""
    if isinstance(schedule, Cron):
        return _cron_plan(schedule, window)
    if isinstance(schedule, Every):
        return EveryPlan(schedule, window)
    return OncePlan(schedule, window)


@lru_cache(maxsize=4_096)
def _cron_plan(spec: Cron, window: Window) -> CronPlan:
    return CronPlan(spec, window)


def jitter(uid: bytes, scheduled_ms: Ms, jitter_ms: int) -> int:
    """How long after its scheduled time an occurrence fires, 0 to `jitter_ms` ms inclusive.

    The same for the same job and occurrence, on every node and after every restart.
    """
    if not jitter_ms:
        return 0
    text = uid + scheduled_ms.to_bytes(8, "big", signed=True)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") % (jitter_ms + 1)


# --- checking ------------------------------------------------------------------------------------


def check(schedule: Schedule, window: Window) -> list[Violation]:
    """Everything that is wrong, each with its remedy; empty when `compile` will serve it.

    Whether occurrences lie in the future is not its business: it knows no now.
    """
    if isinstance(schedule, Cron):
        found = _check_cron(schedule)
    elif isinstance(schedule, Every):
        found = _check_every(schedule)
    else:
        found = _check_once(schedule)
    found += _check_window(window)
    return found or _check_fires(schedule, window)


def _check_cron(spec: Cron) -> list[Violation]:
    found: list[Violation] = []
    try:
        cron.parse(spec.expression, spec.dialect)
    except InvalidArgument as error:
        found += error.violations
    if spec.time_zone not in zone.names():
        found.append(zone.unknown(spec.time_zone, "schedule.cron.time_zone"))
    return found


def _check_every(spec: Every) -> list[Violation]:
    field = "schedule.every.period"
    if spec.period_ms < PERIOD_MS_MIN:
        text = f"{spec.period_ms} ms is too short; the shortest period is 1 s"
        return [Violation(field, text, "PERIOD_TOO_SHORT")]
    if spec.period_ms > PERIOD_MS_MAX:
        text = f"{spec.period_ms} ms is too long; the longest period is 10 years (3,653 days)"
        return [Violation(field, text, "PERIOD_TOO_LONG")]
    return []


def _check_once(spec: Once) -> list[Violation]:
    if not spec.civil:
        return _check_instant(spec)
    found: list[Violation] = []
    if spec.time_ms:
        text = "an instant is given too; give one of scheduled_time and civil_time"
        found.append(Violation("schedule.once.civil_time", text, "ONE_TIME_ONLY"))
    if spec.dst_overlap == DstOverlap.BOTH:
        text = "a one-off happens once; choose FIRST or SECOND"
        found.append(Violation("schedule.once.dst_overlap", text, "BOTH_NOT_ALLOWED"))
    try:
        local_ms = civil_ms(spec.civil)
    except InvalidArgument as error:
        found += error.violations
    else:
        found += _check_range("schedule.once.civil_time", local_ms)
    if spec.time_zone not in zone.names():
        found.append(zone.unknown(spec.time_zone, "schedule.once.time_zone"))
    return found


def _check_instant(spec: Once) -> list[Violation]:
    if spec.time_zone:
        text = "an instant has no time zone; leave it out, or give civil_time"
        return [Violation("schedule.once.time_zone", text, "TIME_ZONE_NOT_ALLOWED")]
    if not spec.time_ms:
        text = "when? give scheduled_time, civil_time with time_zone, or delay"
        return [Violation("schedule.once", text, "TIME_REQUIRED")]
    return _check_range("schedule.once.scheduled_time", spec.time_ms)


def _check_range(field: str, ms: Ms) -> list[Violation]:
    # a day inside the range of the zones, so that civil and UTC time may differ
    if (EARLIEST_S + DAY_S) * 1_000 <= ms < (LATEST_S - DAY_S) * 1_000:
        return []
    return [Violation(field, "give a time from 1900-01-02 to 9989-12-30", "TIME_OUT_OF_RANGE")]


def _check_window(window: Window) -> list[Violation]:
    found: list[Violation] = []
    for name in ("start", "end"):
        ms: Ms = window.start_ms if name == "start" else window.end_ms
        if ms:
            found += _check_range(f"window.{name}_time", ms)
    if window.end_ms and window.start_ms > window.end_ms:
        text = "it lies before start_time; give a later one, or none for an open end"
        found.append(Violation("window.end_time", text, "END_BEFORE_START"))
    for name, count in (
        ("excluded_dates", len(window.excluded_dates)),
        ("excluded_times", len(window.excluded_ms)),
    ):
        if count > EXCLUSIONS_MAX:
            text = f"{count} are given; at most {EXCLUSIONS_MAX} are allowed"
            found.append(Violation(f"window.{name}", text, "TOO_MANY_EXCLUSIONS"))
    bad = [text for text in sorted(window.excluded_dates) if not _is_date(text)]
    found += [
        Violation(
            "window.excluded_dates", f"{t[:32]!r} is no date; write YYYY-MM-DD", "INVALID_DATE"
        )
        for t in bad[:BAD_DATES_NAMED_MAX]
    ]
    return found


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return DATE.fullmatch(text) is not None


def _check_fires(schedule: Schedule, window: Window) -> list[Violation]:
    """Whether there is an occurrence at all."""
    if _fires(compile(schedule, window)):
        return []
    if not _fires(compile(schedule, Window())):
        return [_never(schedule)]
    text = "no occurrence lies inside; look at start_time, end_time and what is excluded"
    return [Violation("window", text, "NEVER_FIRES")]


def _fires(plan: Plan) -> bool:
    """Without a window, judged by the rules of the year in which the tz database was released."""
    window = plan.window
    if window.start_ms or isinstance(plan, OncePlan):
        return plan.next_after(-OPEN_MS) is not None
    if window.end_ms:
        return plan.prev_at_or_before(window.end_ms) is not None
    return plan.next_after(_release_ms()) is not None


def _release_ms() -> Ms:
    return (date(int(tz_version()[:4]), 1, 1).toordinal() - EPOCH_DAY) * MS_PER_DAY


def _never(schedule: Schedule) -> Violation:
    if isinstance(schedule, Cron):
        text = (
            "no date ever matches; look at day of month, month and day of week together"
            " (30 February), and at dst_gap = SKIP for a time that the clocks always skip"
        )
        return Violation("schedule.cron.expression", text, "NEVER_FIRES")
    text = "that civil time does not exist there, and dst_gap is SKIP; choose another or FIRE_AFTER"
    return Violation("schedule.once.civil_time", text, "NEVER_FIRES")
