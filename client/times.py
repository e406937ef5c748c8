"""Times and spans as users write them, and as the messages hold them. Pure.

A span is a `timedelta`, or text of numbers with units: `90s`, `1h30m`, `250ms`, `1.5h`, `2d`. A day is 24 hours. An
instant is a `datetime` with a zone, or RFC 3339 text; what has no zone is a civil time, and no instant.
"""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

Span = timedelta | str

_UNITS_MS: Final = {
    "ms": 1,
    "s": 1_000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_WHOLE: Final = re.compile(rf"(?:{_PART.pattern})+")
_SPAN_CHARS_MAX: Final = 64
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_SECOND_US: Final = 1_000_000


@lru_cache(maxsize=1_024)  # a program writes the same few over and over
def parse_span(text: str) -> timedelta:
    """Read `90s`, `1h30m`, `250ms`. ValueError for anything else."""
    spaceless = text.strip()
    if len(spaceless) > _SPAN_CHARS_MAX or not _WHOLE.fullmatch(spaceless):
        raise ValueError(f"{text!r} is no span of time; write it as 90s, 5m, 1h30m or 2d")
    total = sum(
        (Decimal(number) * _UNITS_MS[unit] for number, unit in _PART.findall(spaceless)),
        Decimal(0),
    )
    return timedelta(milliseconds=float(total))


def to_duration(span: Span) -> Duration:
    """A span as a message; exact to the microsecond."""
    delta = parse_span(span) if isinstance(span, str) else span
    micros = delta // _MICROSECOND
    sign = -1 if micros < 0 else 1
    seconds, rest = divmod(abs(micros), _SECOND_US)
    return Duration(seconds=sign * seconds, nanos=sign * rest * 1_000)


def parse_instant(text: str) -> datetime:
    """Read RFC 3339 with an offset. ValueError if it is not, or has none."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no offset; write it as 2027-01-31T09:00:00+01:00")
    return moment


def to_timestamp(moment: datetime) -> Timestamp:
    """An instant as a message. ValueError if the datetime knows no zone: it would be anyone's guess."""
    if moment.tzinfo is None:
        raise ValueError(
            f"{moment.isoformat()} has no zone; write datetime(..., tzinfo=...) or give time_zone"
        )
    since = moment - _EPOCH
    seconds = since.days * 86_400 + since.seconds
    return Timestamp(seconds=seconds, nanos=since.microseconds * 1_000)


def from_timestamp(stamp: Timestamp) -> datetime:
    """A message as an instant in UTC."""
    return _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1_000)


def civil(moment: datetime) -> str:
    """A civil time as the API spells it: no offset, milliseconds only where there are some, rounded up."""
    whole = moment.replace(tzinfo=None, fold=0) + timedelta(
        microseconds=-moment.microsecond % 1_000
    )
    return whole.isoformat(timespec="milliseconds" if whole.microsecond else "seconds")
