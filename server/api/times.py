"""Floor 5. Times and durations of the API, and the server's milliseconds.

Inside, a time is an integer of UTC milliseconds, rounded UP from what the API was given: never early. Protobuf's own
well-known types are read by their two numbers, since their helper methods cost more than a whole job may.

Must never import: rooms below.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, Protocol

from google.protobuf.timestamp_pb2 import Timestamp

NANOS_PER_MS: Final = 1_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)"
)


class SecondsNanos(Protocol):
    """What Timestamp and Duration have in common."""

    seconds: int
    nanos: int


class Instant(NamedTuple):
    """An instant between two milliseconds: the last one not after it, and the first one not before it."""

    floor_ms: int
    ceil_ms: int


def ms_up(value: SecondsNanos) -> int:
    """Milliseconds of a Timestamp or Duration, rounded up."""
    return value.seconds * 1_000 - -value.nanos // NANOS_PER_MS


def timestamp(ms: int) -> Timestamp:
    """The Timestamp of a time."""
    return Timestamp(seconds=ms // 1_000, nanos=ms % 1_000 * NANOS_PER_MS)


def parse_rfc3339(text: str) -> Instant:
    """The instant of `2026-03-29T02:30:00.5+02:00`. Raises ValueError; an offset is required, never guessed."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError("not an RFC 3339 time with an offset, like 2026-03-29T02:30:00Z")
    day, clock, fraction, offset = match.groups()
    zone = "+00:00" if offset in "Zz" else offset
    whole_ms = (datetime.fromisoformat(f"{day}T{clock}{zone}") - _EPOCH) // timedelta(
        milliseconds=1
    )
    nanos = int((fraction or "").ljust(9, "0"))
    return Instant(whole_ms + nanos // NANOS_PER_MS, whole_ms - -nanos // NANOS_PER_MS)


def set_ms(value: SecondsNanos, ms: int) -> None:
    """Make a Timestamp or Duration say `ms`."""
    value.seconds = ms // 1_000
    value.nanos = ms % 1_000 * NANOS_PER_MS
