"""Floor 1, pure. Cron expressions: from the text to bitmaps, and from bitmaps to the next civil time that matches.

    ┌ second (dialect SECONDS_FIRST only)   0-59
    │ ┌ minute                              0-59
    │ │ ┌ hour                              0-23
    │ │ │ ┌ day of month                    1-31, L, L-3, ?
    │ │ │ │ ┌ month                         1-12, JAN-DEC
    │ │ │ │ │ ┌ day of week                 0-7 (0 and 7 are Sunday), SUN-SAT, 5L, FRI#2, ?
    0 0 9 * * MON-FRI

A field is a list of: `*`, a value, a range `a-b`, a step `*/n` or `a-b/n`. Where both days are restricted, a day that
matches either is meant, as in Vixie cron; a field that begins with `*` or `?` does not count as restricted. What is
ambiguous among dialects is refused, with the words to write instead: nothing is guessed.

This room knows no zones: it works on civil seconds (see `zone`), and a day is 86,400 of them.

Worked example: `0 9 * * MON-FRI`, next at or after Friday 2026-01-02 10:00

    clock     hours {9}, minutes {0}, seconds {0}; none at or after 10:00  → the next day that matches, at `first`
    days      January 2026 begins on a Thursday and has 31 days: one bitmap for (31, Thursday), bits 1 2 5 6 7 8 9 12 ...
              cleared up to bit 2, the lowest bit left is 5                → Monday 2026-01-05 09:00

There are 28 such pairs (length, first weekday), so at most 28 bitmaps of an expression are ever made.

Must never import: any room but `errors`, `model`, `zone` (its constants); no I/O, no clock.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from functools import lru_cache
from typing import NamedTuple

from tickwheel.server.errors import InvalidArgument, Violation
from tickwheel.server.model import CronDialect
from tickwheel.server.zone import DAY_S, EPOCH_DAY

FIELD = "schedule.cron.expression"
LENGTH_MAX = 256
MONTHS_AHEAD_MAX = 50 * 12
"""29 February on a given weekday comes every 28 years, over a century without leap day every 40."""

HOUR_S = 3_600
DECEMBER, FEBRUARY = 12, 2
SHORT_MONTHS = frozenset({4, 6, 9, 11})
YEAR_MAX = 9_999


class Kind(NamedTuple):
    """What may stand in a field."""

    name: str
    low: int
    high: int
    names: Mapping[str, int]


MONTH_NAMES = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
WEEKDAY_NAMES = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
MONTHS = {n: i for i, n in enumerate(MONTH_NAMES, 1)}
WEEKDAYS = {n: i for i, n in enumerate(WEEKDAY_NAMES)}

SECOND = Kind("second", 0, 59, {})
MINUTE = Kind("minute", 0, 59, {})
HOUR = Kind("hour", 0, 23, {})
DAY_OF_MONTH = Kind("day of month", 1, 31, {})
MONTH = Kind("month", 1, 12, MONTHS)
DAY_OF_WEEK = Kind("day of week", 0, 7, WEEKDAYS)
KINDS = (SECOND, MINUTE, HOUR, DAY_OF_MONTH, MONTH, DAY_OF_WEEK)

MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


NUMBER = re.compile(r"\d{1,4}", re.ASCII)
FROM_END = re.compile(r"L(?:-([1-9]|[12]\d|30))?", re.ASCII)


class _Fault(Exception):
    """One field is wrong. `text` says what, and what to write instead."""

    def __init__(self, text: str, reason: str = "INVALID_CRON") -> None:
        super().__init__(text)
        self.text = text
        self.reason = reason


class Field(NamedTuple):
    """A parsed field: bit n of `mask` is set when n matches.

    `open` when it begins with `*` or `?`. Days only: bit k of `from_end` for L-k; `nth` has (weekday, n), n = 0 the last.
    """

    mask: int
    open: bool = False
    from_end: int = 0
    nth: frozenset[tuple[int, int]] = frozenset()


# --- matching ------------------------------------------------------------------------------------


def lowest_from(mask: int, n: int) -> int:
    """The lowest bit that is set in `mask` and is not below `n`, or -1."""
    rest = mask >> n
    return n + (rest & -rest).bit_length() - 1 if rest else -1


def highest_to(mask: int, n: int) -> int:
    """The highest bit that is set in `mask` and is not above `n`, or -1."""
    return (mask & (2 << n) - 1).bit_length() - 1


class Clock:
    """The times of a day that match, in seconds since midnight."""

    __slots__ = ("first", "hours", "last", "minutes", "per_day", "seconds")

    def __init__(self, hours: int, minutes: int, seconds: int) -> None:
        self.hours, self.minutes, self.seconds = hours, minutes, seconds
        self.first = self._first(hours, minutes, seconds)
        self.last = sum(
            (mask.bit_length() - 1) * unit
            for mask, unit in ((hours, HOUR_S), (minutes, 60), (seconds, 1))
        )
        self.per_day = hours.bit_count() * minutes.bit_count() * seconds.bit_count()

    @staticmethod
    def _first(hours: int, minutes: int, seconds: int) -> int:
        return (
            lowest_from(hours, 0) * HOUR_S + lowest_from(minutes, 0) * 60 + lowest_from(seconds, 0)
        )

    def ceil(self, t: int) -> int:
        """The first time that is not before `t`, or -1."""
        hour, rest = divmod(t, HOUR_S)
        minute, second = divmod(rest, 60)
        if self.hours >> hour & 1:
            if self.minutes >> minute & 1 and (found := lowest_from(self.seconds, second)) >= 0:
                return t - second + found
            if (found := lowest_from(self.minutes, minute + 1)) >= 0:
                return hour * HOUR_S + found * 60 + lowest_from(self.seconds, 0)
        hour = lowest_from(self.hours, hour + 1)
        return hour * HOUR_S + self.first % HOUR_S if hour >= 0 else -1

    def floor(self, t: int) -> int:
        """The last time that is not after `t`, or -1."""
        hour, rest = divmod(t, HOUR_S)
        minute, second = divmod(rest, 60)
        if self.hours >> hour & 1:
            if self.minutes >> minute & 1 and (found := highest_to(self.seconds, second)) >= 0:
                return t - second + found
            if minute and (found := highest_to(self.minutes, minute - 1)) >= 0:
                return hour * HOUR_S + found * 60 + self.last % 60
        hour = highest_to(self.hours, hour - 1) if hour else -1
        return hour * HOUR_S + self.last % HOUR_S if hour >= 0 else -1

    def rank(self, t: int) -> int:
        """How many times lie before `t`."""
        hour, rest = divmod(t, HOUR_S)
        minute, second = divmod(rest, 60)
        in_minute = below(self.seconds, second) if self.minutes >> minute & 1 else 0
        seconds = self.seconds.bit_count()
        in_hour = below(self.minutes, minute) * seconds + in_minute
        hours = below(self.hours, hour) * self.minutes.bit_count() * seconds
        return hours + (in_hour if self.hours >> hour & 1 else 0)


def below(mask: int, n: int) -> int:
    """How many bits of `mask` below `n` are set."""
    return (mask & (1 << n) - 1).bit_count()


class Calendar:
    """The civil times that an expression matches, in civil seconds. Make it with `parse`."""

    __slots__ = (
        "_dom",
        "_dow",
        "_either",
        "_excluded",
        "_fields",
        "_months",
        "_tables",
        "clock",
        "follows_hand",
    )

    def __init__(self, fields: tuple[Field, ...], excluded: Iterable[date] = ()) -> None:
        second, minute, hour, dom, month, dow = fields
        self.clock = Clock(hour.mask, minute.mask, second.mask)
        self.follows_hand = hour.open or hour.mask == _full(HOUR)
        self._fields = fields
        self._dom, self._dow, self._months = dom, dow, month.mask
        self._either = not (dom.open or dow.open)
        self._tables: dict[tuple[int, int], int] = {}
        self._excluded: dict[tuple[int, int], int] = {}
        for day in excluded:
            key = (day.year, day.month)
            self._excluded[key] = self._excluded.get(key, 0) | 1 << day.day

    def without(self, dates: Iterable[date]) -> "Calendar":
        """The same, but on none of these days."""
        return Calendar(self._fields, dates)

    def matches(self, civil_s: int) -> bool:
        """Whether this very second matches."""
        return self.count(civil_s, civil_s + 1) == 1

    def excludes(self, civil_s: int) -> bool:
        """Whether the day of this civil time is one that `without` named."""
        day = date.fromordinal(civil_s // DAY_S + EPOCH_DAY)
        return bool(self._excluded.get((day.year, day.month), 0) >> day.day & 1)

    def ceil(self, civil_s: int) -> int | None:
        """The first match that is not before `civil_s`; None when there is none within 50 years."""
        day_number, t = divmod(civil_s, DAY_S)
        day = date.fromordinal(day_number + EPOCH_DAY)
        if self._days(day.year, day.month) >> day.day & 1 and (t := self.clock.ceil(t)) >= 0:
            return day_number * DAY_S + t
        found = self._day_after(day)
        return None if found is None else found * DAY_S + self.clock.first

    def floor(self, civil_s: int) -> int | None:
        """The last match that is not after `civil_s`; None when there is none within 50 years."""
        day_number, t = divmod(civil_s, DAY_S)
        day = date.fromordinal(day_number + EPOCH_DAY)
        if self._days(day.year, day.month) >> day.day & 1 and (t := self.clock.floor(t)) >= 0:
            return day_number * DAY_S + t
        found = self._day_before(day)
        return None if found is None else found * DAY_S + self.clock.last

    def count(self, first_s: int, end_s: int) -> int:
        """How many matches lie in [first, end). Cost grows with the months between."""
        if first_s >= end_s:
            return 0
        (day_a, t_a), (day_b, t_b) = divmod(first_s, DAY_S), divmod(end_s, DAY_S)
        a, b = date.fromordinal(day_a + EPOCH_DAY), date.fromordinal(day_b + EPOCH_DAY)
        last_month = b.year * 12 + b.month - 1
        days = -below(self._days(a.year, a.month), a.day) + below(
            self._days(b.year, b.month), b.day
        )
        for month in range(a.year * 12 + a.month - 1, last_month):
            days += self._days(month // 12, month % 12 + 1).bit_count()
        total = days * self.clock.per_day
        if self._days(a.year, a.month) >> a.day & 1:
            total -= self.clock.rank(t_a)
        if self._days(b.year, b.month) >> b.day & 1:
            total += self.clock.rank(t_b)
        return total

    def _day_after(self, day: date) -> int | None:
        """The number of the first matching day after `day`, since the epoch."""
        year, month, floor = day.year, day.month, day.day + 1
        for _ in range(MONTHS_AHEAD_MAX):
            if found := self._days(year, month) >> floor << floor:
                bit = (found & -found).bit_length() - 1
                return date(year, month, bit).toordinal() - EPOCH_DAY
            year, month, floor = (year, month + 1, 0) if month < DECEMBER else (year + 1, 1, 0)
            if year > YEAR_MAX:
                break
        return None

    def _day_before(self, day: date) -> int | None:
        """The number of the last matching day before `day`, since the epoch."""
        year, month, ceiling = day.year, day.month, (1 << day.day) - 1
        for _ in range(MONTHS_AHEAD_MAX):
            if found := self._days(year, month) & ceiling:
                return date(year, month, found.bit_length() - 1).toordinal() - EPOCH_DAY
            year, month, ceiling = (year, month - 1, -1) if month > 1 else (year - 1, 12, -1)
        return None

    def _days(self, year: int, month: int) -> int:
        """Bit d is set when day d of the month matches."""
        if not self._months >> month & 1:
            return 0
        first = date(year, month, 1).toordinal() % 7  # day 1 was a Monday
        length = 28 + _leap(year) if month == FEBRUARY else 31 - (month in SHORT_MONTHS)
        days = self._tables.get((length, first))
        if days is None:
            days = self._tables[length, first] = self._table(length, first)
        if self._excluded:
            days &= ~self._excluded.get((year, month), 0)
        return days

    def _table(self, length: int, first: int) -> int:
        """The days of a month of this length that begins on this weekday (0 is Sunday)."""
        every = (2 << length) - 2
        by_date = self._dom.mask & every
        for back in range(length):
            if self._dom.from_end >> back & 1:
                by_date |= 1 << length - back
        by_weekday = 0
        for day in range(1, length + 1):
            weekday = (first + day - 1) % 7
            last = day + 7 > length and (weekday, 0) in self._dow.nth
            nth = (weekday, (day + 6) // 7) in self._dow.nth
            by_weekday |= (self._dow.mask >> weekday & 1 or last or nth) << day
        return by_date | by_weekday if self._either else by_date & by_weekday


def _leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


# --- parsing -------------------------------------------------------------------------------------


@lru_cache(maxsize=4_096)
def parse(expression: str, dialect: CronDialect) -> Calendar:
    """Read an expression. Raises InvalidArgument with one violation for each field that is wrong."""
    try:
        texts = _split(expression, dialect)
    except _Fault as fault:
        raise _refusal([fault]) from None
    faults: list[_Fault] = []
    fields: list[Field] = []
    for kind, text in zip(KINDS, texts, strict=True):
        try:
            fields.append(_field(kind, text))
        except _Fault as fault:
            faults.append(fault)
    if faults:
        raise _refusal(faults)
    return Calendar(tuple(fields))


def _refusal(faults: Iterable[_Fault]) -> InvalidArgument:
    return InvalidArgument.of([Violation(FIELD, f.text, f.reason) for f in faults])


def _split(expression: str, dialect: CronDialect) -> list[str]:
    """Six fields, whatever was written."""
    if len(expression) > LENGTH_MAX:
        raise _Fault(f"it has {len(expression)} characters; at most {LENGTH_MAX} are allowed")
    texts = expression.upper().split()
    if not texts:
        raise _Fault("it is empty; write five fields, for example `0 9 * * MON-FRI`, or @daily")
    if texts[0].startswith(("TZ=", "CRON_TZ=")):
        raise _Fault(
            f"take {texts[0].partition('=')[0]}= out, and name the zone in schedule.cron.time_zone",
            "UNSUPPORTED_CRON",
        )
    if texts[0].startswith("@"):
        return ["0", *_macro(" ".join(texts).lower()).split()]
    return _counted(texts, dialect)


def _macro(text: str) -> str:
    if text in MACROS:
        return MACROS[text]
    if text.startswith("@every"):
        raise _Fault("@every is not cron; use schedule.every with a period", "UNSUPPORTED_CRON")
    if text == "@reboot":
        raise _Fault("@reboot names no time; call RunJob when it is wanted", "UNSUPPORTED_CRON")
    raise _Fault(f"{text[:32]!r} is unknown; these are known: {', '.join(sorted(MACROS))}")


def _counted(texts: list[str], dialect: CronDialect) -> list[str]:
    with_seconds = dialect == CronDialect.SECONDS_FIRST
    if len(texts) == len(KINDS) - (not with_seconds):
        return texts if with_seconds else ["0", *texts]
    if with_seconds and len(texts) == len(KINDS) - 1:
        raise _Fault(
            "dialect SECONDS_FIRST has six fields and this has five; put the second first, "
            f"for example `0 {' '.join(texts)}`, or use FIVE_FIELDS",
            "SECONDS_FIELD_MISSING",
        )
    if len(texts) == len(KINDS):
        raise _Fault(
            "six fields are ambiguous; if the first is the second, say dialect = SECONDS_FIRST; "
            "a year is not supported (use start_time and end_time)",
            "SECONDS_FIELD_NEEDS_DIALECT",
        )
    raise _Fault(
        f"it has {len(texts)} fields; write {'second ' * with_seconds}"
        "minute hour day-of-month month day-of-week"
    )


def _full(kind: Kind) -> int:
    return (2 << kind.high) - (1 << kind.low)


def _field(kind: Kind, text: str) -> Field:
    """Parse one field. Raises _Fault."""
    _refuse_foreign(kind, text)
    mask, from_end, nth = 0, 0, set[tuple[int, int]]()
    for item in text.split(","):
        if kind is DAY_OF_MONTH and item.startswith("L"):
            from_end |= 1 << _from_end(item)
        elif kind is DAY_OF_WEEK and (item.endswith("L") or "#" in item):
            nth.add(_nth(item))
        else:
            mask |= _item(kind, item)
    if kind is DAY_OF_WEEK:
        mask = mask & 0x7F | mask >> 7
    return Field(mask, text[0] in "*?", from_end, frozenset(nth))


FOREIGN: tuple[tuple[Callable[[str], object], str], ...] = (
    (
        re.compile(r"(^|,)H($|[(/,])|~").search,
        (
            "H and ~ choose a time by chance; write a fixed value and set `jitter`, "
            "which spreads jobs and is stable for each occurrence"
        ),
    ),
    (
        re.compile(r"(^|,)(\d+|L)?W($|,)").search,
        (
            "W (the weekday nearest to a date) is not supported; name the weekday, "
            "for example MON#1, or the date"
        ),
    ),
)


def _refuse_foreign(kind: Kind, text: str) -> None:
    """Refuse what other dialects know."""
    for found, remedy in FOREIGN:
        if found(text):
            raise _Fault(f"{kind.name}: {remedy}", "UNSUPPORTED_CRON")


def _item(kind: Kind, item: str) -> int:
    """A bitmap of `*`, `a`, `a-b`, `*/n`, `a-b/n`."""
    span, slash, step_text = item.partition("/")
    low, high = _range(kind, span)
    if not slash:
        return (2 << high) - (1 << low)
    step = _number(kind, step_text)
    if "-" not in span and span != "*":
        raise _Fault(f"{kind.name}: say where {item!r} ends: {span}-{kind.high}/{step_text}")
    if not 1 <= step <= high - low:
        raise _Fault(
            f"{kind.name}: the step of {item!r} must be from 1 to {high - low}, or it selects "
            f"{low} only; for a period across fields use schedule.every"
        )
    return sum(1 << n for n in range(low, high + 1, step))


def _range(kind: Kind, span: str) -> tuple[int, int]:
    if span == "*":
        # 7 is Sunday again: a step over all weekdays must not see it twice
        return kind.low, (6 if kind is DAY_OF_WEEK else kind.high)
    if span == "?":
        if kind is not DAY_OF_MONTH and kind is not DAY_OF_WEEK:
            raise _Fault(f"{kind.name}: ? is for days only; write *")
        return _range(kind, "*")
    low_text, dash, high_text = span.partition("-")
    low = _value(kind, low_text)
    high = _value(kind, high_text) if dash else low
    if kind is DAY_OF_WEEK and high == 0 < low:
        high = 7
    if high < low:
        raise _Fault(
            f"{kind.name}: the range {span} runs backwards; write it as two: "
            f"{low_text}-{_last_name(kind)},{_first_name(kind)}-{high_text}"
        )
    return low, high


def _last_name(kind: Kind) -> str:
    return {"day of week": "SAT", "month": "DEC"}.get(kind.name, str(kind.high))


def _first_name(kind: Kind) -> str:
    return {"day of week": "SUN", "month": "JAN"}.get(kind.name, str(kind.low))


def _value(kind: Kind, text: str) -> int:
    if text in kind.names:
        return kind.names[text]
    value = _number(kind, text)
    if not kind.low <= value <= kind.high:
        raise _Fault(
            f"{kind.name}: {value} is out of range; it goes from {kind.low} to {kind.high}"
        )
    return value


def _number(kind: Kind, text: str) -> int:
    if not NUMBER.fullmatch(text):
        names = f", {_first_name(kind)} to {_last_name(kind)}" if kind.names else ""
        raise _Fault(
            f"{kind.name}: {text[:32]!r} is not understood; write {kind.low} to {kind.high}{names}, "
            "a range a-b, a step */n, or a list with commas and no blanks"
        )
    return int(text)


def _from_end(item: str) -> int:
    """L is 0, L-3 is 3: days before the last of the month."""
    match = FROM_END.fullmatch(item)
    if match is None:
        raise _Fault(
            f"day of month: {item[:32]!r} is not understood; write L for the last day, "
            "L-1 to L-30 for days before it"
        )
    return int(match[1] or 0)


def _nth(item: str) -> tuple[int, int]:
    """5L is (5, 0), the last Friday; MON#2 is (1, 2), the second Monday."""
    if item == "L":
        raise _Fault("day of week: L needs a day, for example 5L or FRIL for the last Friday")
    day_text, mark, nth_text = item.partition("#")
    weekday = _value(DAY_OF_WEEK, day_text if mark else item.removesuffix("L")) % 7
    if not mark:
        return weekday, 0
    if nth_text not in {"1", "2", "3", "4", "5"}:
        raise _Fault(f"day of week: {item[:32]!r}: after # comes 1 to 5, which of the month's days")
    return weekday, int(nth_text)
