"""The slow truth about cron: every minute (or second) of a stretch of real time is asked what the wall shows.

Shares nothing with the server's way: expressions become sets, offsets come from `zoneinfo` instant by instant, gaps and
overlaps are seen as jumps between one tick and the next, and transitions are read from the TZif files' own tables.
"""

import importlib.resources
import re
import struct
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

from tickwheel.server.model import DstGap, DstOverlap

DAY_S = 86_400
BOUNDS = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
NAMES = {
    4: dict(zip(["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"], range(1, 13), strict=True)),
    5: dict(zip(["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"], range(7), strict=True)),
}  # fmt: skip


class Transition(NamedTuple):
    """At `at_s` (UTC) the offset changes."""

    at_s: int
    before_s: int
    after_s: int


# --- zones ---------------------------------------------------------------------------------------


@lru_cache(maxsize=1_024)
def zone_bytes(name: str) -> bytes:
    return importlib.resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).read_bytes()


@lru_cache(maxsize=64)
def rules(name: str) -> ZoneInfo:
    path = importlib.resources.files("tzdata").joinpath("zoneinfo", *name.split("/"))
    with path.open("rb") as file:
        return ZoneInfo.from_file(file)


@lru_cache(maxsize=1_024)
def transitions(name: str) -> list[Transition]:
    """Every change of the offset up to 2037: a TZif file's 64-bit table, then its footer (RFC 8536)."""
    data = zone_bytes(name)
    _, _, isutc, isstd, leap, times, types, chars = struct.unpack(">4sc15x6L", data[:44])
    start = 44 + times * 5 + types * 6 + chars + leap * 8 + isstd + isutc
    _, _, isutc, isstd, leap, times, types, chars = struct.unpack_from(">4sc15x6L", data, start)
    start += 44
    at = struct.unpack_from(f">{times}q", data, start)
    index = data[start + 8 * times : start + 9 * times]
    offsets = [struct.unpack_from(">lBB", data, start + 9 * times + 6 * n)[0] for n in range(types)]
    changes = [(when, offsets[kind]) for when, kind in zip(at, index, strict=True)]
    end = start + 9 * times + 6 * types + chars + leap * 12 + isstd + isutc
    footer = data[end:].decode().strip()
    changes += [c for c in footer_changes(footer) if c[0] > (at[-1] if at else -(1 << 62))]
    found: list[Transition] = []
    offset = offsets[0]
    for when, after in changes:
        if after != offset:
            found.append(Transition(when, offset, after))
            offset = after
    return found


POSIX = re.compile(
    r"(?:<[^>]+>|[A-Za-z]+)([-+:\d]+)(?:(?:<[^>]+>|[A-Za-z]+)([-+:\d]+)?"
    r",M(\d+)\.(\d)\.(\d)(?:/([-+:\d]+))?,M(\d+)\.(\d)\.(\d)(?:/([-+:\d]+))?)?"
)


def footer_changes(footer: str) -> list[tuple[int, int]]:
    """(UTC second, offset from then) of the rule `EET-2EEST,M3.5.0/3,M10.5.0/4`, from 1900 to 2037."""
    match = POSIX.fullmatch(footer)
    assert match, footer
    if match[3] is None:
        return []
    standard = -seconds(match[1])
    summer = -seconds(match[2]) if match[2] else standard + 3_600
    begin, end = match.group(3, 4, 5), match.group(7, 8, 9)
    changes: list[tuple[int, int]] = []
    for year in range(1900, 2038):
        changes.append((nth_day(year, *begin) + seconds(match[6] or "2") - standard, summer))
        changes.append((nth_day(year, *end) + seconds(match[10] or "2") - summer, standard))
    return sorted(changes)


def seconds(text: str) -> int:
    """`-2:30` in seconds."""
    parts = [int(part) for part in text.lstrip("+-").split(":")] + [0, 0]
    return (-1 if text[0] == "-" else 1) * (parts[0] * 3_600 + parts[1] * 60 + parts[2])


def nth_day(year: int, month: str, week: str, weekday: str) -> int:
    """Midnight of the n-th such weekday, 5 the last, in civil seconds."""
    day = date(year, int(month), 1)
    days = [
        day + timedelta(days=n)
        for n in range(31)
        if (day + timedelta(days=n)).isoweekday() % 7 == int(weekday)
        and (day + timedelta(days=n)).month == int(month)
    ]
    return (days[min(int(week), len(days)) - 1] - date(1970, 1, 1)).days * DAY_S


# --- expressions ---------------------------------------------------------------------------------


def number(text: str, field: int) -> int:
    known = NAMES.get(field, {})
    return known[text] if text in known else int(text)


def values(text: str, field: int) -> set[int]:
    """The plain numbers of a field; L and # are left to `day_matches`."""
    low, high = BOUNDS[field]
    found: set[int] = set()
    for item in text.split(","):
        if "L" in item and item not in NAMES.get(field, {}) and "-" not in item.replace("L-", ""):
            continue
        if "#" in item:
            continue
        span, _, step = item.partition("/")
        if span in {"*", "?"}:
            first, last = low, high
        else:
            one, _, two = span.partition("-")
            first = number(one, field)
            last = number(two, field) if two else first
            if field == 5 and last == 0 < first:
                last = 7
        found |= {n for n in range(first, last + 1) if (n - first) % int(step or 1) == 0}
    return {n % 7 for n in found} if field == 5 else found


class Expression:
    """A cron expression as sets."""

    def __init__(self, text: str) -> None:
        fields = text.upper().split()
        self.fields = ["0", *fields] if len(fields) == 5 else fields
        seconds, minutes, hours, self.dom, self.months, self.dow = (
            values(f, n) for n, f in enumerate(self.fields)
        )
        self.times = {h * 3600 + m * 60 + s for h in hours for m in minutes for s in seconds}
        self.follows_hand = self.fields[2][0] == "*" or len(hours) == 24
        self._days: dict[int, bool] = {}

    def matches(self, civil_s: int) -> bool:
        day, time = divmod(civil_s, DAY_S)
        if time not in self.times:
            return False
        if day not in self._days:
            self._days[day] = self.day_matches(date(1970, 1, 1) + timedelta(days=day))
        return self._days[day]

    def day_matches(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        last = (day.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
        by_date = day.day in self.dom
        for item in self.fields[3].split(","):
            if item.startswith("L"):
                by_date |= last.day - day.day == int(item[2:] or 0)
        weekday = day.isoweekday() % 7
        by_weekday = weekday in self.dow
        for item in self.fields[5].split(","):
            if "#" in item:
                name, _, nth = item.partition("#")
                by_weekday |= number(name, 5) % 7 == weekday and (day.day - 1) // 7 + 1 == int(nth)
            elif item.endswith("L"):
                by_weekday |= number(item[:-1], 5) % 7 == weekday and last.day - day.day < 7
        if self.fields[3][0] in "*?" or self.fields[5][0] in "*?":
            return by_date and by_weekday
        return by_date or by_weekday


# --- the wall ------------------------------------------------------------------------------------


class Wall:
    """What the wall of a zone shows at each tick of [from, until]."""

    def __init__(self, zone: ZoneInfo, from_s: int, until_s: int, tick_s: int = 60) -> None:
        self.tick_s = tick_s
        self.ticks: list[tuple[int, int]] = []
        for utc_s in range(from_s, until_s + 1, tick_s):
            wall = datetime.fromtimestamp(utc_s, UTC).astimezone(zone).replace(tzinfo=UTC)
            self.ticks.append((utc_s, int(wall.timestamp())))

    def occurrences(self, expression: Expression, gap: DstGap, overlap: DstOverlap) -> list[int]:
        """UTC seconds of what fires, by the table of docs/design/schedule.md."""
        shown: dict[int, list[int]] = defaultdict(list)
        for utc_s, civil_s in self.ticks:
            if expression.matches(civil_s):
                shown[civil_s].append(utc_s)
        if expression.follows_hand:
            return sorted(utc_s for found in shown.values() for utc_s in found)
        chosen = {
            DstOverlap.FIRST: slice(0, 1),
            DstOverlap.SECOND: slice(-1, None),
            DstOverlap.BOTH: slice(None),
        }[overlap]
        fires = {utc_s for found in shown.values() for utc_s in found[chosen]}
        if gap == DstGap.FIRE_AFTER:
            fires |= {utc_s for utc_s, _ in self.lost(expression)}
        return sorted(fires)

    def lost(self, expression: Expression) -> list[tuple[int, int]]:
        """(the first instant after the gap, civil time) of each match that the wall never shows."""
        return [
            (utc_s, civil_s)
            for (_, before), (utc_s, after) in pairwise(self.ticks)
            for civil_s in range(before + self.tick_s, after, self.tick_s)
            if expression.matches(civil_s)
        ]
