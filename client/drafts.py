"""From a user's words to a `Job` message, and the mask of an update. Pure.

    draft("https://example.com/hook", cron="0 9 * * 1-5", time_zone="Europe/Berlin", body={"a": 1})

Faults that the server would find too (an unknown zone, a cron expression that never matches) are left to it: it names
the field. Only what cannot be put into a message is refused here, as `InvalidArgument` with the option's name.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any, Final, Literal, TypedDict

from google.protobuf.field_mask_pb2 import FieldMask

from tickwheel.client.errors import InvalidArgument, Violation
from tickwheel.client.times import Span, civil, to_duration, to_timestamp
from tickwheel.v1 import job_pb2, schedule_pb2
from tickwheel.v1.target_pb2 import Header, HttpTarget, RetryPolicy, StatusRange

Body = bytes | str | Mapping[str, Any] | Sequence[Any]
"""Bytes and text are sent as they are; a mapping or list as JSON, with its content-type."""

Headers = Mapping[str, str] | Sequence[tuple[str, str]]
Statuses = Iterable[int | tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and at what pauses an execution is attempted. What is left out has the server's default."""

    max_attempts: int | None = None
    max_retry_duration: Span | None = None
    min_backoff: Span | None = None
    max_backoff: Span | None = None
    max_doublings: int | None = None


class ScheduleOptions(TypedDict, total=False):
    """When. Exactly one of `at`, `delay`, `cron`, `every`."""

    at: datetime | str
    """An instant (a datetime with a zone), or, with `time_zone`, a civil time without one."""
    delay: Span
    """From the moment the server accepts the job: `90s`."""
    cron: str
    every: Span
    """A fixed period of absolute time, from 1 s."""
    anchor: datetime
    """With `every`: one of the occurrences."""
    time_zone: str
    """IANA zone of `cron`, or of a civil `at`."""
    seconds: bool
    """With `cron`: six fields, the first of them seconds."""
    dst_gap: Literal["skip", "fire_after"]
    dst_overlap: Literal["first", "second", "both"]
    past: Literal["refuse", "fire_now"]
    """With `at`: what to do if it passed more than 60 s ago."""


class WindowOptions(TypedDict, total=False):
    """What narrows a schedule."""

    start: datetime
    end: datetime
    exclude: Iterable[date | datetime]
    """Days in the schedule's zone (`date`), or instants (`datetime` with a zone)."""


class TargetOptions(TypedDict, total=False):
    """What is sent."""

    method: str
    headers: Headers
    body: Body
    timeout: Span
    """Of one attempt; the server's default is 30 s."""
    max_redirects: int
    succeed_on: Statuses
    retry_on: Statuses
    signing_secret: str


class PolicyOptions(TypedDict, total=False):
    """How it is carried out."""

    labels: Mapping[str, str]
    description: str
    retry: Retry
    overlap: Literal["skip", "buffer_one", "allow_all"]
    misfire: Literal["latest", "all", "skip"]
    catchup_max: int
    """With `misfire="all"`: at most so many."""
    catchup_window: Span
    delivery: Literal["at_least_once", "at_most_once"]
    expire_after: Span
    jitter: Span
    max_executions: int
    on_success: str | HttpTarget
    """Called when an execution succeeded: a URL, or a whole target."""
    on_failure: str | HttpTarget
    flow_key: str
    """Jobs that share the key share the limits."""
    max_concurrent: int
    per_second: float
    keep_executions: int
    keep_for: Span


class JobOptions(ScheduleOptions, WindowOptions, TargetOptions, PolicyOptions, total=False):
    """Everything that `create` takes beside the URL."""


class UpdateOptions(JobOptions, total=False):
    """Everything that `update` can change."""

    url: str


_KINDS: Final = ("at", "delay", "cron", "every")
_SCHEDULE_KEYS: Final = frozenset(ScheduleOptions.__annotations__)
_COMMON_KEYS: Final = _SCHEDULE_KEYS | {"body"}
"""What most jobs have: with nothing else there are no rarer options to look for."""
_WITH_CIVIL: Final = frozenset(("time_zone", "dst_gap", "dst_overlap", "past"))
_WITH_CRON: Final = frozenset(("time_zone", "seconds", "dst_gap", "dst_overlap"))
_WITH_EVERY: Final = frozenset(("anchor",))
_PATHS: Final = {
    "start": "window.start_time",
    "end": "window.end_time",
    "url": "http_target.url",
    "overlap": "overlap_policy",
    "misfire": "misfire.policy",
    "catchup_max": "misfire.max_count",
    "catchup_window": "misfire.catchup_window",
    "flow_key": "flow_control.key",
    "max_concurrent": "flow_control.max_concurrent",
    "per_second": "flow_control.per_second",
    "keep_executions": "retention.max_executions",
    "keep_for": "retention.duration",
} | {key: f"http_target.{key}" for key in TargetOptions.__annotations__}


def draft(url: str, options: JobOptions) -> job_pb2.Job:
    """The job that `create` sends. InvalidArgument names the option that cannot be meant."""
    job = job_pb2.Job()
    fill_draft(job, url, options)
    return job


def fill_draft(job: job_pb2.Job, url: str, options: JobOptions) -> None:
    """Make an empty message the job that `create` sends. InvalidArgument names the option that cannot be meant."""
    try:
        fill_schedule(job.schedule, options)
        job.http_target.url = url
        if options.keys() <= _COMMON_KEYS:
            _fill_body(job.http_target, options.get("body", b""))
        else:
            _fill(job, options)
    except (ValueError, TypeError) as error:
        raise refused(str(error)) from error


def change(name: str, options: UpdateOptions) -> tuple[job_pb2.Job, FieldMask]:
    """The job and the mask that `update` sends: no field that was not named is touched."""
    job = job_pb2.Job(name=name)
    paths = {path for key in options if key not in _SCHEDULE_KEYS for path in _paths(key, options)}
    try:
        if not _SCHEDULE_KEYS.isdisjoint(options):
            fill_schedule(job.schedule, options)
            paths |= _schedule_paths(options)
        if "url" in options:
            job.http_target.url = options["url"]
        if set(TargetOptions.__annotations__) & set(options) or "url" in options:
            fill_target(job.http_target, options)
        _fill(job, options, target=False)
    except (ValueError, TypeError) as error:
        raise refused(str(error)) from error
    if (
        "headers" not in options
    ):  # a JSON body's content-type must not replace all headers there are
        job.http_target.ClearField("headers") if job.HasField("http_target") else None
    return job, FieldMask(paths=sorted(paths))


def _schedule_paths(options: ScheduleOptions) -> set[str]:
    """A schedule replaces the one there is; but a new cron expression keeps the old one's zone and DST policies."""
    if "cron" not in options:
        return {"schedule"}
    kept = {"time_zone", "dst_gap", "dst_overlap"} & options.keys()
    return {f"schedule.cron.{field}" for field in {"expression", "dialect"} | kept}


def _paths(key: str, options: UpdateOptions) -> list[str]:
    """The fields that an option sets."""
    if key == "exclude":
        return ["window.excluded_dates", "window.excluded_times"]
    if key == "retry" and "retry" in options:
        given = asdict(options["retry"])
        return [f"retry_policy.{name}" for name, value in given.items() if value is not None]
    return [_PATHS.get(key, key)]


def refused(text: str, field: str = "") -> InvalidArgument:
    """What this library refuses before anything is sent."""
    return InvalidArgument(
        text, reason="INVALID_OPTION", violations=[Violation(field, text, "INVALID_OPTION")]
    )


def fill_schedule(schedule: schedule_pb2.Schedule, options: ScheduleOptions) -> None:
    """Put the one kind that `options` name into `schedule`. ValueError if it is none or two, or does not fit."""
    kinds = [kind for kind in _KINDS if kind in options]
    if len(kinds) != 1:
        named = " and ".join(kinds) or "none"
        raise ValueError(f"give exactly one of at, delay, cron, every: {named} was given")
    if "cron" in options:
        _fill_cron(schedule.cron, options)
    elif "every" in options:
        _fill_every(schedule.every, options)
    else:
        _fill_once(schedule.once, options)


def _fill_once(once: schedule_pb2.Once, options: ScheduleOptions) -> None:
    _only(options, "at" if "at" in options else "delay", _WITH_CIVIL)
    if "delay" in options:
        once.delay.CopyFrom(to_duration(options["delay"]))
    if "at" in options:
        _fill_at(once, options["at"], options.get("time_zone", ""))
    if "past" in options:
        once.past_policy = schedule_pb2.PastPolicy.Value(f"PAST_POLICY_{options['past'].upper()}")
    _fill_dst(once, options)


def _fill_at(once: schedule_pb2.Once, at: datetime | str, time_zone: str) -> None:
    moment = datetime.fromisoformat(at) if isinstance(at, str) else at
    if moment.tzinfo is not None:
        if time_zone:
            raise ValueError("at has an offset already: leave time_zone out, or the offset")
        once.scheduled_time.CopyFrom(to_timestamp(moment))
    elif time_zone:
        once.civil_time, once.time_zone = civil(moment), time_zone
    else:
        raise ValueError(f"at={moment.isoformat()} has no zone: add an offset, or give time_zone")


def _fill_cron(cron: schedule_pb2.Cron, options: ScheduleOptions) -> None:
    _only(options, "cron", _WITH_CRON)
    cron.expression = options.get("cron", "")
    cron.time_zone = options.get("time_zone", "")
    if options.get("seconds", False):
        cron.dialect = schedule_pb2.CRON_DIALECT_SECONDS_FIRST
    _fill_dst(cron, options)


def _fill_every(every: schedule_pb2.Every, options: ScheduleOptions) -> None:
    _only(options, "every", _WITH_EVERY)
    every.period.CopyFrom(to_duration(options.get("every", "")))
    if "anchor" in options:
        every.anchor_time.CopyFrom(to_timestamp(options["anchor"]))


def _fill_dst(kind: schedule_pb2.Once | schedule_pb2.Cron, options: ScheduleOptions) -> None:
    if "dst_gap" in options:
        kind.dst_gap = schedule_pb2.DstGap.Value(f"DST_GAP_{options['dst_gap'].upper()}")
    if "dst_overlap" in options:
        kind.dst_overlap = schedule_pb2.DstOverlap.Value(
            f"DST_OVERLAP_{options['dst_overlap'].upper()}"
        )


def _only(options: ScheduleOptions, kind: str, fitting: AbstractSet[str]) -> None:
    strange = _SCHEDULE_KEYS & options.keys() - fitting - {kind}
    if strange:
        raise ValueError(f"{min(strange)} does not go with {kind}")


def _fill(job: job_pb2.Job, options: JobOptions, *, target: bool = True) -> None:
    """Everything but the schedule; most jobs have none of the rarer options."""
    if target:
        fill_target(job.http_target, options)
    if "labels" in options:
        job.labels.update(options["labels"])
    if "description" in options:
        job.description = options["description"]
    if "max_executions" in options:
        job.max_executions = options["max_executions"]
    if "jitter" in options:
        job.jitter.CopyFrom(to_duration(options["jitter"]))
    if "expire_after" in options:
        job.expire_after.CopyFrom(to_duration(options["expire_after"]))
    if "retry" in options:
        job.retry_policy.CopyFrom(retry_policy(options["retry"]))
    _fill_policies(job, options)
    fill_window(job.window, options) if options.keys() & _WINDOW_KEYS else None
    _fill_limits(job, options)


def _fill_policies(job: job_pb2.Job, options: PolicyOptions) -> None:
    if "overlap" in options:
        job.overlap_policy = job_pb2.OverlapPolicy.Value(
            f"OVERLAP_POLICY_{options['overlap'].upper()}"
        )
    if "misfire" in options:
        job.misfire.policy = job_pb2.MisfirePolicy.Value(
            f"MISFIRE_POLICY_{options['misfire'].upper()}"
        )
    if "catchup_max" in options:
        job.misfire.max_count = options["catchup_max"]
    if "catchup_window" in options:
        job.misfire.catchup_window.CopyFrom(to_duration(options["catchup_window"]))
    if "delivery" in options:
        job.delivery = job_pb2.Delivery.Value(f"DELIVERY_{options['delivery'].upper()}")
    if "on_success" in options:
        job.on_success.CopyFrom(_callback(options["on_success"]))
    if "on_failure" in options:
        job.on_failure.CopyFrom(_callback(options["on_failure"]))


def _fill_limits(job: job_pb2.Job, options: PolicyOptions) -> None:
    if "flow_key" in options:
        job.flow_control.key = options["flow_key"]
    if "max_concurrent" in options:
        job.flow_control.max_concurrent = options["max_concurrent"]
    if "per_second" in options:
        job.flow_control.per_second = options["per_second"]
    if "keep_executions" in options:
        job.retention.max_executions = options["keep_executions"]
    if "keep_for" in options:
        job.retention.duration.CopyFrom(to_duration(options["keep_for"]))


def _callback(target: str | HttpTarget) -> HttpTarget:
    return HttpTarget(url=target) if isinstance(target, str) else target


def fill_window(window: schedule_pb2.Window, options: WindowOptions) -> None:
    """Put what narrows a schedule into `window`. ValueError for an instant without a zone."""
    if "start" in options:
        window.start_time.CopyFrom(to_timestamp(options["start"]))
    if "end" in options:
        window.end_time.CopyFrom(to_timestamp(options["end"]))
    for item in options.get("exclude", ()):
        if isinstance(item, datetime):
            window.excluded_times.append(to_timestamp(item))
        else:
            window.excluded_dates.append(item.isoformat())


def fill_target(target: HttpTarget, options: TargetOptions) -> None:
    """Put what is sent into `target`; a mapping or list as a body becomes JSON, and says so."""
    if "method" in options:
        target.method = options["method"].upper()
    if "headers" in options:
        target.headers.extend(_headers(options["headers"]))
    if "body" in options:
        _fill_body(target, options["body"])
    if "timeout" in options:
        target.timeout.CopyFrom(to_duration(options["timeout"]))
    if "max_redirects" in options:
        target.max_redirects = options["max_redirects"]
    if "succeed_on" in options:
        target.succeed_on.extend(_ranges(options["succeed_on"]))
    if "retry_on" in options:
        target.retry_on.extend(_ranges(options["retry_on"]))
    if "signing_secret" in options:
        target.signing_secret = options["signing_secret"]


def _fill_body(target: HttpTarget, body: Body) -> None:
    if isinstance(body, str):
        target.body = body.encode()
    elif isinstance(body, bytes | bytearray | memoryview):
        target.body = bytes(body)
    else:
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        target.body = text.encode()
        if not any(header.name.lower() == "content-type" for header in target.headers):
            target.headers.append(Header(name="content-type", value="application/json"))


def _headers(headers: Headers) -> list[Header]:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return [Header(name=name, value=value) for name, value in pairs]


def _ranges(statuses: Statuses) -> list[StatusRange]:
    pairs = ((each, each) if isinstance(each, int) else each for each in statuses)
    return [StatusRange(low=low, high=high) for low, high in pairs]


def retry_policy(retry: Retry) -> RetryPolicy:
    """A `Retry` as a message. ValueError for no attempts: on the wire 0 means the default."""
    if retry.max_attempts == 0:
        raise ValueError("max_attempts counts the first attempt too: give 1 for no retry")
    policy = RetryPolicy(max_attempts=retry.max_attempts or 0, max_doublings=retry.max_doublings)
    for name in ("max_retry_duration", "min_backoff", "max_backoff"):
        span: Span | None = getattr(retry, name)
        if span is not None:
            getattr(policy, name).CopyFrom(to_duration(span))
    return policy


_WINDOW_KEYS: Final = WindowOptions.__annotations__.keys()
