"""Floor 1, pure. Plans: a compiled schedule that is asked for its occurrences. `schedule` makes them.

    once     an instant, or a civil time of a zone
    every    anchor + k x period, absolute time
    cron     civil times that an expression matches, resolved by the zone and two policies

Cron is solved span by span (see `zone`). Inside a span civil = utc + offset, so the matches of `cron.Calendar` are
the occurrences. Only the edges need a rule:

    clocks go forward at T: civil [T + before, T + offset) does not exist
        FIRE_AFTER   if anything matched in there, T is an occurrence (one, however many matched)
        SKIP         it is dropped
    clocks go back at T: civil [T + offset, T + before) exists twice
        FIRST        matches of the later span begin at civil T + before
        SECOND       matches of the earlier span end at civil T + offset
        BOTH         neither is cut

An expression whose hour is `*` or `*/n` (or all 24) *follows the clock's hand*: it means "every so often", so it runs
on through both passes of an overlap and adds nothing for a gap, whatever the policies say. `0 9 * * *` means a
time of the day, and obeys them.

Worked example: `30 2 * * *`, Europe/Berlin, FIRE_AFTER, FIRST

    2026-03-28 02:30 +01:00
    2026-03-29 03:00 +02:00   02:30 does not exist: first instant after the gap
    2026-10-25 02:30 +02:00   exists twice: the first
    2026-10-26 02:30 +01:00

Invariants: the occurrences of a plan are strictly increasing; `next_after`, `prev_at_or_before` and `count_between`
agree; the same values give the same plan on every node with the same tz database. Occurrences of cron are looked for
50 years around the instant that is asked about, and between 1900 and 9990.

Must never import: any room but `model`, `errors`, `zone`, `cron`; no I/O, no clock, no chance.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum
from itertools import islice
from typing import NamedTuple

from tickwheel.server import cron, zone
from tickwheel.server.errors import InvalidArgument, Violation
from tickwheel.server.model import MS_PER_DAY, Cron, DstGap, DstOverlap, Every, Ms, Once, Window
from tickwheel.server.zone import DAY_S, EARLIEST_S, EPOCH_DAY, LATEST_S, Span, Zone

HORIZON_S = 50 * 366 * DAY_S

DROPPED_SCAN_MAX = 10_000
"""How many occurrences `dropped` looks at for those that the window excludes."""

OPEN_MS = 1 << 62
"""Beyond every instant: what an open window ends at."""

CIVIL = re.compile(r"(\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2})(?:\.(\d{3}))?", re.ASCII)
INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}[T ].*(Z|[+-]\d{2}:?\d{2})", re.ASCII | re.IGNORECASE)


class Note(IntEnum):
    """What daylight saving did to an occurrence (the API's DstNote)."""

    NONE = 0
    MOVED_AFTER_GAP = 1
    FIRST_OF_TWO = 2
    SECOND_OF_TWO = 3


class DropReason(IntEnum):
    """Why a civil time that the schedule matches is no occurrence (the API's DropReason)."""

    DST_GAP = 1
    EXCLUDED = 2


class Occurrence(NamedTuple):
    """An instant that a schedule names, with the offset of its zone then (0 if it has none)."""

    scheduled_ms: Ms
    utc_offset_s: int
    note: Note


class Dropped(NamedTuple):
    """A civil time that is no occurrence: `2026-03-29T02:30:00[.mmm]`."""

    civil: str
    reason: DropReason


# --- plans ---------------------------------------------------------------------------------------


class Plan(ABC):
    """A compiled schedule: its occurrences inside its window, in UTC ms. Make it with `compile`."""

    __slots__ = ("_end_ms", "_excluded_ms", "_floor_ms", "window")

    def __init__(self, window: Window) -> None:
        self.window = window
        self._floor_ms = window.start_ms - 1 if window.start_ms else -OPEN_MS
        self._end_ms = window.end_ms or OPEN_MS
        self._excluded_ms = window.excluded_ms

    def next_after(self, ms: Ms, /) -> Ms | None:
        """The first occurrence after `ms`; None when there is none."""
        found = self._next(max(ms, self._floor_ms))
        while found in self._excluded_ms:
            assert found is not None, "what is excluded is an instant"
            found = self._next(found)
        return None if found is None or found > self._end_ms else found

    def prev_at_or_before(self, ms: Ms, /) -> Ms | None:
        """The last occurrence that is not after `ms`; None when there is none."""
        found = self._prev(min(ms, self._end_ms))
        while found in self._excluded_ms:
            assert found is not None, "what is excluded is an instant"
            found = self._prev(found - 1)
        return None if found is None or found <= self._floor_ms else found

    def count_between(self, after_ms: Ms, until_ms: Ms, limit: int, /) -> int:
        """How many occurrences lie in (after, until], at most `limit`.

        O(1) for `every`, O(months between) for `cron`, plus the number of exclusions.
        """
        after_ms, until_ms = max(after_ms, self._floor_ms), min(until_ms, self._end_ms)
        if after_ms >= until_ms:
            return 0
        gone = sum(
            after_ms < ms <= until_ms and self._next(ms - 1) == ms for ms in self._excluded_ms
        )
        return min(self._count(after_ms, until_ms, limit + gone) - gone, limit)

    def walk(self, after_ms: Ms) -> Iterator[Ms]:
        """The occurrences after an instant, one by one."""
        found = self.next_after(after_ms)
        while found is not None:
            yield found
            found = self.next_after(found)

    def occurrences(self, after_ms: Ms, n: int, /) -> list[Occurrence]:
        """The first `n` occurrences after an instant, each with what a preview shows."""
        return [self.describe(ms) for ms in islice(self.walk(after_ms), n)]

    def dropped(self, after_ms: Ms, until_ms: Ms, limit: int, /) -> list[Dropped]:
        """Civil times in (after, until] that match and are no occurrence, earliest first, at most `limit`.

        A gap counts as lying at the instant of its transition. Of the excluded ones those among the next
        `DROPPED_SCAN_MAX` occurrences are found.
        """
        after_ms, until_ms = max(after_ms, self._floor_ms), min(until_ms, self._end_ms)
        found = [*islice(self._lost(after_ms, until_ms), limit)]
        found += islice(self._excluded(after_ms, until_ms), limit)
        found.sort()
        return [dropped for _, dropped in found[:limit]]

    def describe(self, ms: Ms, /) -> Occurrence:
        """What a preview shows of an occurrence."""
        return Occurrence(ms, 0, Note.NONE)

    def _lost(self, after_ms: Ms, until_ms: Ms) -> Iterator[tuple[Ms, Dropped]]:
        """What gaps swallow, with the instant to sort it by."""
        del after_ms, until_ms
        return iter(())

    def _excluded(self, after_ms: Ms, until_ms: Ms) -> Iterator[tuple[Ms, Dropped]]:
        """What the window excludes, with its instant."""
        if not (self.window.excluded_ms or self.window.excluded_dates):
            return
        for ms in islice(self._bare().walk(after_ms), DROPPED_SCAN_MAX):
            if ms > until_ms:
                return
            if self.next_after(ms - 1) != ms:
                local_ms = ms + self.describe(ms).utc_offset_s * 1_000
                yield ms, Dropped(civil_text(local_ms), DropReason.EXCLUDED)

    @abstractmethod
    def _bare(self) -> "Plan":
        """The same plan without exclusions."""

    @abstractmethod
    def _next(self, ms: Ms) -> Ms | None:
        """The first occurrence after `ms`; start, end and excluded instants are not looked at."""

    @abstractmethod
    def _prev(self, ms: Ms) -> Ms | None:
        """The last occurrence not after `ms`, likewise."""

    @abstractmethod
    def _count(self, after_ms: Ms, until_ms: Ms, limit: int) -> int:
        """The number in (after, until], likewise; may stop counting once it is not below `limit`."""


class OncePlan(Plan):
    """At most one occurrence."""

    __slots__ = ("_at_ms", "_once")

    def __init__(self, once: Once, window: Window) -> None:
        super().__init__(window)
        self._once = once
        self._at_ms = once_ms(once)
        if self._at_ms is not None and window.excluded_dates:
            offset_s = _offset_s(_once_zone(once), self._at_ms)
            if civil_text(self._at_ms + offset_s * 1_000)[:10] in window.excluded_dates:
                self._at_ms = None

    def describe(self, ms: Ms, /) -> Occurrence:
        """What a preview shows of the occurrence."""
        where = _once_zone(self._once)
        if where is None:
            return Occurrence(ms, 0, Note.NONE)
        utc_s, offset_s = ms // 1_000, _offset_s(where, ms)
        moved = utc_s + offset_s != civil_ms(self._once.civil) // 1_000
        note = Note.MOVED_AFTER_GAP if moved else PASS_NOTES[where.pass_of(utc_s)]
        return Occurrence(ms, offset_s, note)

    def _bare(self) -> Plan:
        return OncePlan(self._once, _without_exclusions(self.window))

    def _next(self, ms: Ms) -> Ms | None:
        return self._at_ms if self._at_ms is not None and self._at_ms > ms else None

    def _prev(self, ms: Ms) -> Ms | None:
        return self._at_ms if self._at_ms is not None and self._at_ms <= ms else None

    def _count(self, after_ms: Ms, until_ms: Ms, limit: int) -> int:
        del limit
        return int(self._at_ms is not None and after_ms < self._at_ms <= until_ms)


class InstantPlan:
    """A one-off at an instant, in no window: what most plans are, and one is made for each job of a bulk load."""

    __slots__ = ("_time_ms",)

    def __init__(self, time_ms: Ms) -> None:
        self._time_ms = time_ms

    def next_after(self, ms: Ms, /) -> Ms | None:
        """As `Plan.next_after`."""
        return self._time_ms if self._time_ms > ms else None

    def prev_at_or_before(self, ms: Ms, /) -> Ms | None:
        """As `Plan.prev_at_or_before`."""
        return self._time_ms if self._time_ms <= ms else None

    def count_between(self, after_ms: Ms, until_ms: Ms, limit: int, /) -> int:
        """As `Plan.count_between`."""
        return min(int(after_ms < self._time_ms <= until_ms), limit)


class EveryPlan(Plan):
    """anchor + k x period. Excluded dates are UTC days."""

    __slots__ = ("_anchor_ms", "_days", "_period_ms")

    def __init__(self, every: Every, window: Window) -> None:
        super().__init__(window)
        self._period_ms, self._anchor_ms = every.period_ms, every.anchor_ms
        self._days = frozenset(day.toordinal() - EPOCH_DAY for day in _dates(window))

    def _bare(self) -> Plan:
        every = Every(self._period_ms, self._anchor_ms)
        return EveryPlan(every, _without_exclusions(self.window))

    def _next(self, ms: Ms) -> Ms | None:
        found = ms + self._period_ms - (ms - self._anchor_ms) % self._period_ms
        while self._days and (day := found // MS_PER_DAY) in self._days:
            last_ms = (day + 1) * MS_PER_DAY - 1
            found = last_ms + self._period_ms - (last_ms - self._anchor_ms) % self._period_ms
        return found

    def _prev(self, ms: Ms) -> Ms | None:
        found = ms - (ms - self._anchor_ms) % self._period_ms
        while self._days and (day := found // MS_PER_DAY) in self._days:
            last_ms = day * MS_PER_DAY - 1
            found = last_ms - (last_ms - self._anchor_ms) % self._period_ms
        return found

    def _count(self, after_ms: Ms, until_ms: Ms, limit: int) -> int:
        del limit
        excluded = 0
        for day in sorted(self._days):
            low = max(after_ms, day * MS_PER_DAY - 1)
            high = min(until_ms, (day + 1) * MS_PER_DAY - 1)
            excluded += self._grid(low, high) if low < high else 0
        return self._grid(after_ms, until_ms) - excluded

    def _grid(self, after_ms: Ms, until_ms: Ms) -> int:
        first = (after_ms - self._anchor_ms) // self._period_ms
        return (until_ms - self._anchor_ms) // self._period_ms - first


class CronPlan(Plan):
    """Civil times, span by span. All inner times are seconds: UTC ones end in `_s`, civil ones are called so."""

    __slots__ = ("_calendar", "_cron", "_gap", "_overlap", "_zone")

    def __init__(self, spec: Cron, window: Window) -> None:
        super().__init__(window)
        calendar = cron.parse(spec.expression, spec.dialect)
        days = _dates(window)
        self._cron = spec
        self._calendar = calendar.without(days) if days else calendar
        self._zone = zone.load(spec.time_zone)
        self._gap = None if calendar.follows_hand else spec.dst_gap
        self._overlap = DstOverlap.BOTH if calendar.follows_hand else spec.dst_overlap

    def describe(self, ms: Ms, /) -> Occurrence:
        """What a preview shows of an occurrence."""
        utc_s = ms // 1_000
        offset_s = self._zone.span_at(utc_s).offset_s
        if not self._calendar.matches(utc_s + offset_s):
            return Occurrence(ms, offset_s, Note.MOVED_AFTER_GAP)
        return Occurrence(ms, offset_s, PASS_NOTES[self._zone.pass_of(utc_s)])

    def _bare(self) -> Plan:
        return CronPlan(self._cron, _without_exclusions(self.window))

    def _next(self, ms: Ms) -> Ms | None:
        utc_s = max(ms // 1_000 + 1, EARLIEST_S)
        stop_s = min(utc_s + HORIZON_S, LATEST_S)
        while utc_s < stop_s:
            span = self._zone.span_at(utc_s)
            if utc_s == span.start_s and self._moved(span):
                return utc_s * 1_000
            low, high = self._civil(span)
            found = self._calendar.ceil(max(low, utc_s + span.offset_s))
            if found is not None and found < high:
                return (found - span.offset_s) * 1_000
            utc_s = span.end_s
            if span.after_s >= span.offset_s:
                # no civil time comes back here, so nothing matches before `found`
                utc_s = max(utc_s, (LATEST_S if found is None else found) - DAY_S)
        return None

    def _prev(self, ms: Ms) -> Ms | None:
        utc_s = min(ms // 1_000, LATEST_S - 1)
        stop_s = max(utc_s - HORIZON_S, EARLIEST_S)
        while utc_s >= stop_s:
            span = self._zone.span_at(utc_s)
            low, high = self._civil(span)
            found = self._calendar.floor(min(high - 1, utc_s + span.offset_s))
            if found is not None and found >= low:
                return (found - span.offset_s) * 1_000
            if self._moved(span):
                return span.start_s * 1_000
            utc_s = span.start_s - 1
            if span.before_s <= span.offset_s:
                utc_s = min(utc_s, (EARLIEST_S if found is None else found) + DAY_S)
        return None

    def _count(self, after_ms: Ms, until_ms: Ms, limit: int) -> int:
        first_s, end_s = after_ms // 1_000 + 1, until_ms // 1_000 + 1
        total = 0
        for span in self._zone.spans(first_s, end_s):
            if total >= limit:
                break
            low, high = self._civil(span)
            low = max(low, first_s + span.offset_s)
            total += self._calendar.count(low, min(high, end_s + span.offset_s))
            total += first_s <= span.start_s and self._moved(span)
        return total

    def _civil(self, span: Span) -> tuple[int, int]:
        """The civil times [low, high) that this span serves, under the overlap policy."""
        low = max(span.start_s, EARLIEST_S) + span.offset_s
        high = min(span.end_s, LATEST_S) + span.offset_s
        if self._overlap == DstOverlap.FIRST and span.before_s > span.offset_s:
            low = span.start_s + span.before_s
        if self._overlap == DstOverlap.SECOND and span.after_s < span.offset_s:
            high = span.end_s + span.after_s
        return low, high

    def _moved(self, span: Span) -> bool:
        """Whether the span begins with an occurrence that the gap before it has put there."""
        if self._gap != DstGap.FIRE_AFTER or span.before_s >= span.offset_s:
            return False
        first, end = span.start_s + span.before_s, span.start_s + span.offset_s
        if not self._calendar.count(first, end) or self._calendar.excludes(end):
            return False
        return not self._calendar.matches(end)

    def _lost(self, after_ms: Ms, until_ms: Ms) -> Iterator[tuple[Ms, Dropped]]:
        """What gaps swallow: nothing unless the policy is SKIP."""
        if self._gap != DstGap.SKIP:
            return
        first_s, end_s = after_ms // 1_000 + 1, until_ms // 1_000 + 1
        for span in self._zone.spans(first_s, end_s):
            if span.start_s < first_s or span.before_s >= span.offset_s:
                continue
            end = span.start_s + span.offset_s
            lost = self._calendar.ceil(span.start_s + span.before_s)
            while lost is not None and lost < end:
                yield span.start_s * 1_000, Dropped(civil_text(lost * 1_000), DropReason.DST_GAP)
                lost = self._calendar.ceil(lost + 1)


PASS_NOTES = (Note.NONE, Note.FIRST_OF_TWO, Note.SECOND_OF_TWO)


def once_ms(once: Once) -> Ms | None:
    """The instant of a one-off; None when its civil time does not exist and `dst_gap` is SKIP.

    Raises InvalidArgument when the civil time or its zone cannot be read.
    """
    where = _once_zone(once)
    if where is None:
        return once.time_ms
    civil_s, ms = divmod(civil_ms(once.civil), 1_000)
    instants = where.instants(civil_s)
    if instants:
        return instants[-1 if once.dst_overlap == DstOverlap.SECOND else 0] * 1_000 + ms
    gap_end_s = where.gap_end(civil_s)
    assert gap_end_s is not None, "a civil time that no span shows lies in a gap"
    return None if once.dst_gap == DstGap.SKIP else gap_end_s * 1_000


def civil_text(civil_ms: int) -> str:
    """`2026-03-29T02:30:00`, with `.mmm` when it is not a whole second."""
    second = datetime.fromtimestamp(civil_ms // 1_000, UTC).replace(tzinfo=None).isoformat()
    return f"{second}.{civil_ms % 1_000:03}" if civil_ms % 1_000 else second


def _once_zone(once: Once) -> Zone | None:
    return zone.load(once.time_zone) if once.civil else None


def _offset_s(where: Zone | None, ms: Ms) -> int:
    return where.span_at(ms // 1_000).offset_s if where else 0


def civil_ms(text: str) -> int:
    """`2026-03-29T02:30:00[.mmm]` in civil ms. Raises InvalidArgument."""
    match = CIVIL.fullmatch(text)
    if match is None:
        raise InvalidArgument.of([_bad_civil(text)])
    try:
        civil = datetime.fromisoformat(match[1]).replace(tzinfo=UTC)
    except ValueError:
        raise InvalidArgument.of([_bad_civil(text)]) from None
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return (civil - epoch) // timedelta(milliseconds=1) + int(match[2] or 0)


def _bad_civil(text: str) -> Violation:
    said = text[:40]
    if INSTANT.fullmatch(said):
        remedy = f"{said!r} carries an offset, so it is an instant: give it as scheduled_time"
    else:
        remedy = (
            f"{said!r} is no civil time; write YYYY-MM-DDThh:mm:ss, for example 2026-03-29T02:30:00"
        )
    return Violation("schedule.once.civil_time", remedy, "INVALID_CIVIL_TIME")


def _dates(window: Window) -> list[date]:
    return [date.fromisoformat(text) for text in sorted(window.excluded_dates)]


def _without_exclusions(window: Window) -> Window:
    return Window(window.start_ms, window.end_ms)
