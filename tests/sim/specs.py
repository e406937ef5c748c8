"""What the users of a simulated node ask for: small jobs of every kind, as a door would hand them over."""

from hashlib import blake2b
from random import Random
from typing import NamedTuple

from tickwheel.server import schedule
from tickwheel.server.command import Prepared
from tickwheel.server.model import Ms
from tickwheel.server.spec import decode_spec
from tickwheel.v1 import job_pb2, schedule_pb2

HOUR_S = 3_600
ZONES = ("UTC", "Europe/Berlin", "America/New_York")
"""Whole hours from UTC: an expression by seconds falls on the same instants in each."""


class Wish(NamedTuple):
    """A job in a user's words. `once_ms` or `period_ms` says when; `cron` says in which notation."""

    once_ms: Ms
    period_ms: int
    cron: bool = False
    jitter_ms: int = 0
    overlap: int = job_pb2.OVERLAP_POLICY_ALLOW_ALL
    misfire: int = job_pb2.MISFIRE_POLICY_LATEST
    retention_s: int = 24 * HOUR_S
    salt: int = 0
    zone: str = "UTC"


def draw_once(rng: Random, now_ms: Ms) -> Wish:
    """Soon, mostly."""
    return Wish(
        once_ms=now_ms + rng.choice((0, 1, 40, 900, 3_000, 20_000, 70_000)) + 1,
        period_ms=0,
        jitter_ms=rng.choice((0, 0, 0, 300)),
        retention_s=rng.choice((24 * HOUR_S, 24 * HOUR_S, 24 * HOUR_S, 3)),
        salt=rng.randrange(1 << 30),
    )


def draw_recurring(rng: Random) -> Wish:
    """Every few seconds, under any policy."""
    return Wish(
        once_ms=0,
        period_ms=rng.choice((1_000, 2_000, 6_000)),
        cron=rng.random() < 0.4,
        overlap=rng.choice((1, 1, 2, 2, 3)),
        misfire=rng.choice((1, 1, 2, 3)),
        salt=rng.randrange(1 << 30),
        zone=rng.choice(ZONES),
    )


def prepared(wish: Wish) -> Prepared:
    """What a door would hand over."""
    stored = _stored(wish).SerializeToString(deterministic=True)
    spec = decode_spec(stored)
    plan = schedule.compile(spec.schedule, spec.window)
    digest = blake2b(stored, digest_size=16).digest()
    once = bool(wish.once_ms)
    return Prepared(
        stored, digest, plan, once=once, jitter_ms=wish.jitter_ms, labels="", past_ok=False
    )


def _stored(wish: Wish) -> job_pb2.Job:
    job = job_pb2.Job()
    target = job.http_target
    target.url, target.method, target.body = "http://target.test/hook", "POST", b"%d" % wish.salt
    _say_when(job, wish)
    job.overlap_policy = job_pb2.OverlapPolicy.ValueType(wish.overlap)
    job.misfire.policy = job_pb2.MisfirePolicy.ValueType(wish.misfire)
    job.misfire.max_count = 3 if wish.misfire == job_pb2.MISFIRE_POLICY_ALL else 0
    job.delivery = job_pb2.DELIVERY_AT_LEAST_ONCE
    job.retention.duration.FromSeconds(wish.retention_s)
    job.jitter.FromMilliseconds(wish.jitter_ms)
    retry = job.retry_policy
    retry.max_attempts, retry.max_doublings = 4, 4
    retry.min_backoff.FromMilliseconds(200)
    retry.max_backoff.FromMilliseconds(2_000)
    return job


def _say_when(job: job_pb2.Job, wish: Wish) -> None:
    if wish.once_ms:
        job.schedule.once.scheduled_time.FromMilliseconds(wish.once_ms)
    elif wish.cron:
        cron = job.schedule.cron
        cron.expression = f"*/{wish.period_ms // 1000} * * * * *"
        cron.time_zone = wish.zone
        cron.dialect = schedule_pb2.CRON_DIALECT_SECONDS_FIRST
        cron.dst_gap = schedule_pb2.DST_GAP_FIRE_AFTER
        cron.dst_overlap = schedule_pb2.DST_OVERLAP_FIRST
    else:
        job.schedule.every.period.FromMilliseconds(wish.period_ms)
