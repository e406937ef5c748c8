"""Floor 1, pure. Civil time: the time zones of the pinned `tzdata` package, as spans of constant offset.

Never the host's files: two nodes with different hosts must agree on every instant. The only thing read is the data of
an installed package, once, then cached within bounds.

A zone is a row of *spans*. In a span the clock on the wall runs at one offset from UTC, so civil time is
`utc + offset` and nothing can be missing or double. All that daylight saving does happens where two spans meet:

    Europe/Berlin, 2026-03-29, clocks go forward at T = 01:00 UTC

    UTC        00:00 ─────────────── T ────────────── 02:00
    span       offset +1 h           │ offset +2 h
    civil      01:00 ────────── 02:00│03:00 ───────── 04:00      gap: civil [T + before, T + offset)

    Europe/Berlin, 2026-10-25, clocks go back at T = 01:00 UTC

    span       offset +2 h           │ offset +1 h
    civil      02:00 ────────── 03:00│02:00 ───────── 03:00      overlap: civil [T + offset, T + before)

Spans are found by probing the offset every `PROBE_S` and halving where it changed. This is exact as long as no span
is shorter than that, which a test holds against the whole database (the shortest is just under 7 days). Time is cut
in chunks of about 388 days, so a span ends at a chunk's edge too. Nothing changes there (before == offset == after),
nor within a day of it: an edge that is too near to a change is moved away.

Civil seconds are counted like UTC seconds: 0 is 1970-01-01T00:00:00 on the wall. Only times in [EARLIEST_S, LATEST_S)
are looked at.

Must never import: any room but `errors`; no clock, no I/O beyond the package's data.
"""

import difflib
import importlib.resources
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

from tickwheel.server.errors import InvalidArgument, Violation

DAY_S = 86_400
EPOCH_DAY = date(1970, 1, 1).toordinal()

EARLIEST_S = (date(1900, 1, 1).toordinal() - EPOCH_DAY) * DAY_S
LATEST_S = (date(9990, 1, 1).toordinal() - EPOCH_DAY) * DAY_S

PROBE_S = 3 * DAY_S
"""Shorter than any span of the database: a test holds it."""

CHUNK_BITS = 25
"""A chunk is 2**25 s, 388 days: mostly three spans, found in about 0.1 ms."""

EDGE_CALM_S = 2 * DAY_S
EDGE_MOVE_S = 7 * DAY_S // 2
"""Half of the shortest span: from a change at most 2 days away, this leads to a place more than a day from any."""

NAME_LENGTH_MAX = 64
NOT_A_PLACE = frozenset({"Factory", "localtime", "posixrules"})


class Span(NamedTuple):
    """[start, end) in UTC seconds at one offset; `before_s` and `after_s` are the offsets of the neighbours."""

    start_s: int
    end_s: int
    offset_s: int
    before_s: int
    after_s: int


@lru_cache(maxsize=1)
def tz_version() -> str:
    """The release of the IANA database in use, for example `2026a`."""
    path = importlib.resources.files("tzdata").joinpath("zoneinfo", "tzdata.zi")
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("# version ").strip()


@lru_cache(maxsize=1)
def names() -> frozenset[str]:
    """Every zone and link that the package has."""
    text = importlib.resources.files("tzdata").joinpath("zones").read_text("utf-8")
    return frozenset(text.split()) - NOT_A_PLACE


class Zone:
    """One time zone. Make it with `load`."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def span_at(self, utc_s: int) -> Span:
        """The span that holds the instant, which must lie in [EARLIEST_S, LATEST_S)."""
        assert EARLIEST_S <= utc_s < LATEST_S, utc_s
        chunk = utc_s >> CHUNK_BITS
        spans = _spans(self.name, chunk)
        if utc_s < spans[0].start_s:
            spans = _spans(self.name, chunk - 1)
        n = 0
        while utc_s >= spans[n].end_s:
            n += 1
        return spans[n]

    def spans(self, from_s: int, until_s: int) -> Iterator[Span]:
        """The spans that meet [from, until), earliest first."""
        from_s, until_s = max(from_s, EARLIEST_S), min(until_s, LATEST_S)
        while from_s < until_s:
            span = self.span_at(from_s)
            yield span
            from_s = span.end_s

    def instants(self, civil_s: int) -> list[int]:
        """When the wall shows `civil_s`: UTC seconds, earliest first; two in an overlap, none in a gap."""
        around = self.spans(civil_s - DAY_S, civil_s + DAY_S + 1)
        return [
            civil_s - span.offset_s
            for span in around
            if span.start_s <= civil_s - span.offset_s < span.end_s
        ]

    def gap_end(self, civil_s: int) -> int | None:
        """The first instant after the gap that swallows `civil_s`; None when the wall does show it."""
        for span in self.spans(civil_s - DAY_S, civil_s + DAY_S + 1):
            if span.start_s + span.before_s <= civil_s < span.start_s + span.offset_s:
                return span.start_s
        return None

    def pass_of(self, utc_s: int) -> int:
        """0 when the wall shows the civil time of this instant once; else 1 or 2: which of the two times this is."""
        span = self.span_at(utc_s)
        civil_s = utc_s + span.offset_s
        if civil_s < span.start_s + span.before_s:
            return 2
        return 1 if civil_s >= span.end_s + span.after_s else 0


@lru_cache(maxsize=1_024)
def load(name: str) -> Zone:
    """The zone of this IANA name. Raises InvalidArgument (UNKNOWN_TIME_ZONE), with the names that may be meant."""
    if name not in names():
        raise InvalidArgument.of([unknown(name, "time_zone")])
    return Zone(name)


def unknown(name: str, field: str) -> Violation:
    """What is wrong with a name that the database does not have, and what to write instead."""
    said = name[:NAME_LENGTH_MAX]
    if name.lower() in {"", "local", "localtime", "system"}:
        text = (
            "name an IANA time zone, for example Europe/Berlin or UTC; a server has no local time"
        )
    elif name[:1] in {"+", "-"} or name[:4].upper() in {"UTC+", "UTC-", "GMT+", "GMT-"}:
        text = (
            f"{said!r} is an offset, not a time zone; name a place such as Europe/Berlin, "
            "or a fixed offset of the database such as Etc/GMT-2 (which is 2 h east)"
        )
    else:
        text = f"{said!r} is not in the IANA database {tz_version()}; " + _hint(said)
    return Violation(field, text, "UNKNOWN_TIME_ZONE")


def _hint(name: str) -> str:
    near = _near(name)
    if not near:
        return "write it as Area/City, for example Europe/Berlin"
    return f"did you mean {' or '.join(near)}?"


def _near(name: str) -> list[str]:
    """Names that differ in case only, or end in this city, or are spelled alike."""
    folded = name.lower().replace(" ", "_")
    known = sorted(names())
    exact = [n for n in known if n.lower() == folded]
    city = [n for n in known if n.lower().rpartition("/")[2] == folded.rpartition("/")[2]]
    return exact or city[:3] or difflib.get_close_matches(name, known, 3, 0.7)


# --- spans ---------------------------------------------------------------------------------------


@lru_cache(maxsize=1_024)
def _rules(name: str) -> ZoneInfo:
    path = importlib.resources.files("tzdata").joinpath("zoneinfo", *name.split("/"))
    with path.open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


@lru_cache(maxsize=8_192)
def _spans(name: str, chunk: int) -> tuple[Span, ...]:
    rules = _rules(name)
    low, high = _edge(rules, chunk), _edge(rules, chunk + 1)
    cuts = [low, *_changes(rules, low, high - 1), high]
    return tuple(
        Span(a, b, _offset(rules, a), _offset(rules, a - 1), _offset(rules, b))
        for a, b in pairwise(cuts)
    )


def _edge(rules: ZoneInfo, chunk: int) -> int:
    """Where a chunk begins: more than a day from any change, so that no gap or overlap is cut in two."""
    edge = chunk << CHUNK_BITS
    calm = not _changes(rules, edge - EDGE_CALM_S, edge + EDGE_CALM_S)
    return edge if calm else edge + EDGE_MOVE_S


def _changes(rules: ZoneInfo, first_s: int, last_s: int) -> list[int]:
    """The instants in (first, last] whose offset differs from that of the second before."""
    probes = [*range(first_s, last_s, PROBE_S), last_s]
    return [
        _change(rules, a, b) for a, b in pairwise(probes) if _offset(rules, a) != _offset(rules, b)
    ]


def _change(rules: ZoneInfo, low: int, high: int) -> int:
    before = _offset(rules, low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _offset(rules, middle) == before else (low, middle)
    return high


def _offset(rules: ZoneInfo, utc_s: int) -> int:
    offset = datetime.fromtimestamp(utc_s, rules).utcoffset()
    assert offset is not None, "a ZoneInfo always has an offset"
    return offset // timedelta(seconds=1)
