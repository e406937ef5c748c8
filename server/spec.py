"""Floor 1. A job's stored spec, and back: bytes of the journal and of SQLite ↔ `model.Spec`.

The stored form is the deterministic serialisation of a `tickwheel.v1.Job` that carries only what the user may say
(schedule, target, window, policies, labels, description), every default made explicit and a delay turned into its
instant. So a later version with other defaults changes no job that exists, a read shows what will happen, and two equal
specs are equal bytes. The doors make it (`api/convert`); the machine only reads it, through this room.

Must never import: any room but `model`; no I/O, no clock.
"""

from functools import lru_cache
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tickwheel.server.model import (
    Cron,
    CronDialect,
    Delivery,
    DstGap,
    DstOverlap,
    Every,
    HttpTarget,
    MisfirePolicy,
    Once,
    OverlapPolicy,
    RetryPolicy,
    Schedule,
    Spec,
    Window,
)
from tickwheel.v1 import job_pb2, schedule_pb2, target_pb2

CACHED_SPECS: Final = 2_048
"""Decoded specs kept, by value."""

CACHED_BYTES_MAX: Final = 8_192
"""A larger spec is decoded each time: so the cache holds at most 16 MiB."""

_NANOS_PER_MS: Final = 1_000_000

# Looking a member up costs a fifth of calling its enum.
_MISFIRES: Final = {int(p): p for p in MisfirePolicy}
_OVERLAPS: Final = {int(p): p for p in OverlapPolicy}
_DELIVERIES: Final = {int(d): d for d in Delivery}
_OPEN: Final = Window()


def decode_spec(data: bytes) -> Spec:
    """The `Spec` of its stored bytes."""
    return _decode_cached(data) if len(data) <= CACHED_BYTES_MAX else _decode(data)


def parse_spec(data: bytes) -> job_pb2.Job:
    """The stored message, fresh: the caller may change it."""
    return job_pb2.Job.FromString(data)


def encode_spec(job: job_pb2.Job) -> bytes:
    """The stored form of a normalised message."""
    return job.SerializeToString(deterministic=True)


def _decode(data: bytes) -> Spec:
    return spec_of(job_pb2.Job.FromString(data))


_decode_cached = lru_cache(CACHED_SPECS)(_decode)


def spec_of(job: job_pb2.Job) -> Spec:
    """The `Spec` of a normalised message."""
    misfire, retry, retention = job.misfire, job.retry_policy, job.retention
    return Spec(
        schedule=schedule_of(job.schedule),
        target=_target_of(job.http_target),
        window=window_of(job.window) if job.HasField("window") else _OPEN,
        max_executions=job.max_executions,
        jitter_ms=_ms(job.jitter),
        misfire=_MISFIRES[misfire.policy],
        misfire_max=misfire.max_count,
        catchup_window_ms=_ms(misfire.catchup_window),
        expire_after_ms=_ms(job.expire_after),
        overlap=_OVERLAPS[job.overlap_policy],
        retry=_retry_policy(
            retry.max_attempts,
            _ms(retry.max_retry_duration),
            _ms(retry.min_backoff),
            _ms(retry.max_backoff),
            retry.max_doublings,
        ),
        delivery=_DELIVERIES[job.delivery],
        retention_ms=_ms(retention.duration),
        retention_count=retention.max_executions,
    )


_retry_policy = lru_cache(256)(RetryPolicy)
"""Most jobs share a few."""


def schedule_of(schedule: schedule_pb2.Schedule) -> Schedule:
    """The schedule of a normalised message (a delay is an instant already)."""
    match schedule.WhichOneof("kind"):
        case "once":
            return _once_of(schedule.once)
        case "cron":
            cron = schedule.cron
            return Cron(
                cron.expression,
                cron.time_zone,
                CronDialect(cron.dialect),
                DstGap(cron.dst_gap),
                DstOverlap(cron.dst_overlap),
            )
        case "every":
            return Every(_ms(schedule.every.period), _ms(schedule.every.anchor_time))
        case kind:
            raise AssertionError(f"a schedule of kind {kind!r}: written by a newer node?")


def _once_of(once: schedule_pb2.Once) -> Once:
    if once.WhichOneof("when") == "scheduled_time":
        return Once(_ms(once.scheduled_time))
    gap, overlap = DstGap(once.dst_gap), DstOverlap(once.dst_overlap)
    return Once(0, once.civil_time, once.time_zone, gap, overlap)


def window_of(window: schedule_pb2.Window) -> Window:
    """What narrows a schedule."""
    return Window(
        start_ms=_ms(window.start_time),
        end_ms=_ms(window.end_time),
        excluded_dates=frozenset(window.excluded_dates),
        excluded_ms=frozenset(_ms(instant) for instant in window.excluded_times),
    )


def _target_of(target: target_pb2.HttpTarget) -> HttpTarget:
    return HttpTarget(
        url=target.url,
        method=target.method,
        headers=tuple((header.name, header.value) for header in target.headers),
        body=target.body,
        timeout_ms=_ms(target.timeout),
        max_redirects=target.max_redirects,
        success=tuple((r.low, r.high) for r in target.succeed_on),
        retry_on=tuple((r.low, r.high) for r in target.retry_on),
    )


def _ms(value: Timestamp | Duration) -> int:
    """Whole milliseconds: stored times were rounded when they came in."""
    return value.seconds * 1_000 + value.nanos // _NANOS_PER_MS
