"""Floor 5. When a job fires: schedule and window as the API has them, checked and made explicit.

    once    scheduled_time | civil_time + time_zone | delay, which becomes a scheduled_time
    cron    expression, zone, dialect, what a change of the clocks does
    every   period, and the anchor: what was sent, else the window's start, else now

What an expression, a zone or a civil time means is `schedule`'s to say; here it is only taken apart.

Must never import: rooms below but `errors`, `model`, `schedule`, `spec`.
"""

from typing import Final, NamedTuple

from tickwheel.server import schedule as schedules
from tickwheel.server.api import limits
from tickwheel.server.api.times import NANOS_PER_MS, set_ms
from tickwheel.server.api.validate import Violations, choice, instant, length
from tickwheel.server.errors import Violation
from tickwheel.server.model import CronDialect, DstGap, DstOverlap, Every, Once, Schedule, Window
from tickwheel.server.spec import schedule_of, window_of
from tickwheel.v1 import schedule_pb2 as pb

_OPEN: Final = Window()
_GAPS_LOOKED_AT: Final = 64


class When(NamedTuple):
    """A schedule and what narrows it, in the core's words, and compiled."""

    schedule: Schedule
    window: Window
    plan: schedules.Plan


def check_when(
    schedule: pb.Schedule, window: pb.Window | None, now_ms: int, found: Violations, root: str = ""
) -> When | None:
    """Check both and make their defaults explicit, in place; None when something is wrong.

    `root` leads the fields' paths (`job.`).
    """
    before = len(found)
    narrowed = _OPEN
    if window is not None:
        _check_window(window, found, f"{root}window")
        narrowed = window_of(window)
    field = f"{root}schedule"
    match schedule.WhichOneof("kind"):
        case "once":
            _check_once(schedule.once, now_ms, found, f"{field}.once")
        case "cron":
            _check_cron(schedule.cron, found, f"{field}.cron")
        case "every":
            anchor_ms = narrowed.start_ms or now_ms
            _check_every(schedule.every, anchor_ms, found, f"{field}.every")
        case _:
            text = "must have one of once, cron and every"
            found.append(Violation(field, text, "REQUIRED"))
    if len(found) > before:
        return None
    return _compiled(schedule_of(schedule), narrowed, found, root)


def _compiled(kind: Schedule, window: Window, found: Violations, root: str) -> When | None:
    if not (isinstance(kind, Once) and kind.time_ms and window is _OPEN):
        faults = schedules.check(kind, window)
        if faults:
            found += (fault._replace(field=root + fault.field) for fault in faults)
            return None
    return When(kind, window, schedules.compile(kind, window))


def check_jitter(when: When, jitter_ms: int, now_ms: int, found: Violations) -> None:
    """Jitter must not let occurrences overtake each other: it is less than the shortest pause between them."""
    gap_ms = _shortest_pause_ms(when, now_ms)
    if gap_ms is not None and jitter_ms >= gap_ms:
        text = f"must be less than the shortest pause between occurrences, {gap_ms / 1000:g} s"
        found.append(Violation("job.jitter", text, "OUT_OF_RANGE"))


def _shortest_pause_ms(when: When, now_ms: int) -> int | None:
    """Of the next occurrences; None when there are fewer than two."""
    if isinstance(when.schedule, Every):
        return when.schedule.period_ms
    gap_ms: int | None = None
    before = when.plan.next_after(now_ms)
    for _ in range(_GAPS_LOOKED_AT):
        following = None if before is None else when.plan.next_after(before)
        if before is None or following is None:
            break
        gap_ms = following - before if gap_ms is None else min(gap_ms, following - before)
        before = following
    return gap_ms


# --- kinds -----------------------------------------------------------------------------------


def _check_once(once: pb.Once, now_ms: int, found: Violations, field: str) -> None:
    kind = once.WhichOneof("when")
    if kind == "scheduled_time":
        instant(once.scheduled_time, f"{field}.scheduled_time", found)
    elif kind == "delay":
        high = limits.DELAY_MS_MAX
        delay_ms = length(once.delay, f"{field}.delay", found, low=0, high=high)
        set_ms(once.scheduled_time, now_ms + delay_ms)
    elif kind is None:
        text = "must have one of scheduled_time, civil_time and delay"
        found.append(Violation(field, text, "REQUIRED"))
    if kind == "civil_time":
        _check_civil(once, found, field)
    elif once.time_zone or once.dst_gap or once.dst_overlap:
        text = "time_zone, dst_gap and dst_overlap go with civil_time only; leave them out"
        found.append(Violation(f"{field}.time_zone", text, "ONLY_WITH_CIVIL_TIME"))
    policy = once.past_policy
    if not policy:
        once.past_policy = pb.PAST_POLICY_REFUSE
    elif policy not in {pb.PAST_POLICY_REFUSE, pb.PAST_POLICY_FIRE_NOW}:
        text = "must be one of REFUSE, FIRE_NOW"
        found.append(Violation(f"{field}.past_policy", text, "ENUM_UNKNOWN"))


def _check_civil(once: pb.Once, found: Violations, field: str) -> None:
    if not once.time_zone:
        text = "must name an IANA zone, like Europe/Berlin, with civil_time"
        found.append(Violation(f"{field}.time_zone", text, "REQUIRED"))
    _check_dst(once, found, field)


def _check_cron(cron: pb.Cron, found: Violations, field: str) -> None:
    if not cron.expression:
        found.append(Violation(f"{field}.expression", "must be set", "REQUIRED"))
    elif len(cron.expression) > limits.CRON_CHARS_MAX:
        text = f"must have at most {limits.CRON_CHARS_MAX} characters"
        found.append(Violation(f"{field}.expression", text, "TOO_LONG"))
    cron.time_zone = cron.time_zone or "UTC"
    cron.dialect = cron.dialect or pb.CRON_DIALECT_FIVE_FIELDS
    choice(cron.dialect, CronDialect, f"{field}.dialect", found)
    _check_dst(cron, found, field)


def _check_dst(civil: pb.Once | pb.Cron, found: Violations, field: str) -> None:
    civil.dst_gap = civil.dst_gap or pb.DST_GAP_FIRE_AFTER
    civil.dst_overlap = civil.dst_overlap or pb.DST_OVERLAP_FIRST
    choice(civil.dst_gap, DstGap, f"{field}.dst_gap", found)
    choice(civil.dst_overlap, DstOverlap, f"{field}.dst_overlap", found)


def _check_every(every: pb.Every, anchor_ms: int, found: Violations, field: str) -> None:
    if not every.HasField("period"):
        found.append(Violation(f"{field}.period", "must be set", "REQUIRED"))
        return
    if every.period.nanos % NANOS_PER_MS:
        text = "must be whole milliseconds"
        found.append(Violation(f"{field}.period", text, "OUT_OF_RANGE"))
    low, high = limits.EVERY_MS_MIN, limits.EVERY_MS_MAX
    length(every.period, f"{field}.period", found, low=low, high=high)
    if every.HasField("anchor_time"):
        instant(every.anchor_time, f"{field}.anchor_time", found)
    else:
        set_ms(every.anchor_time, anchor_ms)


def _check_window(window: pb.Window, found: Violations, field: str) -> None:
    start_ms = end_ms = 0
    if window.HasField("start_time"):
        start_ms = instant(window.start_time, f"{field}.start_time", found)
    if window.HasField("end_time"):
        end_ms = instant(window.end_time, f"{field}.end_time", found)
    if end_ms and end_ms < start_ms:
        text = "must not be before start_time"
        found.append(Violation(f"{field}.end_time", text, "OUT_OF_RANGE"))
    if len(window.excluded_dates) > limits.EXCLUDED_DATES_MAX:
        text = f"must have at most {limits.EXCLUDED_DATES_MAX:,} entries"
        found.append(Violation(f"{field}.excluded_dates", text, "TOO_MANY"))
    if len(window.excluded_times) > limits.EXCLUDED_TIMES_MAX:
        text = f"must have at most {limits.EXCLUDED_TIMES_MAX:,} entries"
        found.append(Violation(f"{field}.excluded_times", text, "TOO_MANY"))
        return
    for position, excluded in enumerate(window.excluded_times):
        instant(excluded, f"{field}.excluded_times[{position}]", found)
