"""Floor 5. What a job must be: each function adds to a list what is wrong, and makes the defaults explicit.

The message is changed in place (the door owns its request), so that what is stored says what will happen. A valid job
passes without an object made a field: lists and texts come into being only for what is wrong, and verdicts on URLs,
headers and labels, which repeat from job to job, are remembered by value.

Must never import: rooms below but `errors`, `model`.
"""

import re
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tickwheel.server.api import limits
from tickwheel.server.api.times import NANOS_PER_MS, ms_up, set_ms
from tickwheel.server.errors import Violation
from tickwheel.server.model import (
    Delivery,
    MisfirePolicy,
    OverlapPolicy,
)
from tickwheel.v1 import job_pb2, target_pb2

Violations = list[Violation]

_METHODS: Final = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
_BODILESS: Final = frozenset(["GET", "HEAD", "OPTIONS"])
_LABEL_KEY: Final = re.compile(r"[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?")
_NANOS_END: Final = 1_000_000_000
_NOT_YET: Final = "is not supported yet; leave it out"

_RETRY_DEFAULT: Final = target_pb2.RetryPolicy(max_attempts=5, max_doublings=16)
_RETRY_DEFAULT.min_backoff.seconds = 1
_RETRY_DEFAULT.max_backoff.seconds = 300
_MISFIRE_DEFAULT: Final = job_pb2.Misfire(policy=job_pb2.MISFIRE_POLICY_LATEST, max_count=100)
_RETENTION_DEFAULT: Final = job_pb2.Retention(max_executions=1_000)
_RETENTION_DEFAULT.duration.seconds = 7 * 86_400


class TargetChecks(NamedTuple):
    """What only the sending side can judge; handed in by `app`. Both take a field's path for their violations."""

    url: Callable[[str, str], Sequence[Violation]]
    headers: Callable[[Sequence[tuple[str, str]], str], Sequence[Violation]]


# --- parts of the parts ----------------------------------------------------------------------


def instant(value: Timestamp, field: str, found: Violations) -> int:
    """Its milliseconds, rounded up; the message is rounded too."""
    seconds, nanos = value.seconds, value.nanos
    ms = seconds * 1_000 - -nanos // NANOS_PER_MS
    if not (0 <= nanos < _NANOS_END and limits.TIME_MS_MIN <= ms <= limits.TIME_MS_MAX):
        text = "must lie between 1970-01-01 and 9989-12-30, with 0 to 999,999,999 nanos"
        found.append(Violation(field, text, "TIME_INVALID"))
        return limits.TIME_MS_MIN
    if nanos % NANOS_PER_MS:
        set_ms(value, ms)
    return ms


def length(value: Duration, field: str, found: Violations, *, low: int, high: int) -> int:
    """Its milliseconds, rounded up; the message is rounded too. Both bounds are allowed."""
    seconds, nanos = value.seconds, value.nanos
    ms = ms_up(value)
    if not (0 <= nanos < _NANOS_END and seconds >= 0 and low <= ms <= high):
        text = f"must be {low / 1000:g} s to {high / 1000:g} s"
        found.append(Violation(field, text, "OUT_OF_RANGE"))
        return low
    if nanos % NANOS_PER_MS:
        set_ms(value, ms)
    return ms


def number(value: int, field: str, found: Violations, *, low: int, high: int) -> None:
    """A number within bounds, both allowed."""
    if not low <= value <= high:
        found.append(Violation(field, f"must be {low:,} to {high:,}", "OUT_OF_RANGE"))


def choice(value: int, kinds: type[IntEnum], field: str, found: Violations) -> None:
    """A known value of an enum."""
    if value not in kinds._value2member_map_:
        names = ", ".join(kind.name for kind in kinds)
        found.append(Violation(field, f"must be one of {names}", "ENUM_UNKNOWN"))


# --- target ----------------------------------------------------------------------------------


class TargetValidator:
    """Checks HTTP targets; remembers the verdicts on URLs and header lists."""

    def __init__(self, checks: TargetChecks, body_bytes_max: int = limits.BODY_BYTES_MAX) -> None:
        self._body_bytes_max = body_bytes_max
        self._checks = checks
        self._url = lru_cache(4_096)(self._judge_url)
        self._headers = lru_cache(1_024)(self._judge_headers)

    def _judge_url(self, url: str) -> tuple[Violation, ...]:
        return tuple(self._checks.url(url, "job.http_target.url"))

    def _judge_headers(self, headers: tuple[tuple[str, str], ...]) -> tuple[Violation, ...]:
        return tuple(self._checks.headers(headers, "job.http_target.headers"))

    def check(self, job: job_pb2.Job, found: Violations) -> None:
        """The job's target, which must be an HTTP one in this version."""
        kind = job.WhichOneof("target")
        if kind == "http_target":
            self._check_http(job.http_target, found)
        elif kind is None:
            found.append(Violation("job.http_target", "must be set: what the job does", "REQUIRED"))
        else:
            found.append(Violation(f"job.{kind}", _NOT_YET, "NOT_YET_SUPPORTED"))

    def _check_http(self, target: target_pb2.HttpTarget, found: Violations) -> None:
        found += self._url(target.url)
        method = target.method
        if not method:
            target.method = method = "POST"
        elif method not in _METHODS:
            names = ", ".join(sorted(_METHODS))
            found.append(Violation("job.http_target.method", f"must be one of {names}", "METHOD"))
        body = target.body
        if body:
            self._check_body(method, len(body), found)
        if target.HasField("timeout"):
            low, high = limits.TIMEOUT_MS_MIN, limits.TIMEOUT_MS_MAX
            length(target.timeout, "job.http_target.timeout", found, low=low, high=high)
        else:
            target.timeout.seconds = 30
        if target.headers:
            self._check_headers(target, found)
        if target.max_redirects or target.succeed_on or target.retry_on or target.signing_secret:
            _check_rare(target, found)

    def _check_body(self, method: str, size_bytes: int, found: Violations) -> None:
        if method in _BODILESS:
            text = f"must be empty with {method}"
            found.append(Violation("job.http_target.body", text, "BODY_NOT_ALLOWED"))
        if size_bytes > self._body_bytes_max:
            text = f"has {size_bytes:,} bytes, at most {self._body_bytes_max:,} are allowed"
            found.append(Violation("job.http_target.body", text, "BODY_TOO_LARGE"))

    def _check_headers(self, target: target_pb2.HttpTarget, found: Violations) -> None:
        pairs: list[tuple[str, str]] = []
        for position, header in enumerate(target.headers):
            kind = header.WhichOneof("content")
            if kind == "secret":
                field = f"job.http_target.headers[{position}].secret"
                found.append(Violation(field, _NOT_YET, "NOT_YET_SUPPORTED"))
            elif kind is None:
                field = f"job.http_target.headers[{position}].value"
                found.append(Violation(field, "must be set", "REQUIRED"))
            pairs.append((header.name, header.value))
        found += self._headers(tuple(pairs))


def _check_rare(target: target_pb2.HttpTarget, found: Violations) -> None:
    field, high = "job.http_target.max_redirects", limits.REDIRECTS_MAX
    number(target.max_redirects, field, found, low=0, high=high)
    if target.signing_secret:
        field = "job.http_target.signing_secret"
        found.append(Violation(field, _NOT_YET, "NOT_YET_SUPPORTED"))
    for name, ranges in (("succeed_on", target.succeed_on), ("retry_on", target.retry_on)):
        field = f"job.http_target.{name}"
        if len(ranges) > limits.STATUS_RANGES_MAX:
            text = f"must have at most {limits.STATUS_RANGES_MAX} ranges"
            found.append(Violation(field, text, "TOO_MANY"))
            continue
        for position, span in enumerate(ranges):
            span.high = span.high or span.low
            if not limits.STATUS_MIN <= span.low <= span.high <= limits.STATUS_MAX:
                text = f"must be {limits.STATUS_MIN} <= low <= high <= {limits.STATUS_MAX}"
                found.append(Violation(f"{field}[{position}]", text, "OUT_OF_RANGE"))


# --- policies --------------------------------------------------------------------------------


def check_policies(job: job_pb2.Job, found: Violations, *, once: bool) -> None:
    """Everything of a job but its schedule, window, target and labels."""
    if job.HasField("misfire"):
        _check_misfire(job.misfire, found)
    else:
        job.misfire.CopyFrom(_MISFIRE_DEFAULT)
    if job.HasField("retry_policy"):
        _check_retry(job.retry_policy, found)
    else:
        job.retry_policy.CopyFrom(_RETRY_DEFAULT)
    if job.HasField("retention"):
        _check_retention(job.retention, found)
    else:
        job.retention.CopyFrom(_RETENTION_DEFAULT)
    if job.HasField("expire_after"):
        high = limits.EXPIRE_AFTER_MS_MAX
        length(job.expire_after, "job.expire_after", found, low=0, high=high)
    if job.HasField("jitter"):
        length(job.jitter, "job.jitter", found, low=0, high=limits.JITTER_MS_MAX)
    if job.max_executions:
        high = limits.MAX_EXECUTIONS_MAX
        number(job.max_executions, "job.max_executions", found, low=0, high=high)
    if not job.overlap_policy:
        job.overlap_policy = (
            job_pb2.OVERLAP_POLICY_ALLOW_ALL if once else job_pb2.OVERLAP_POLICY_SKIP
        )
    else:
        choice(job.overlap_policy, OverlapPolicy, "job.overlap_policy", found)
    _check_delivery(job, found)


def _check_delivery(job: job_pb2.Job, found: Violations) -> None:
    if not job.delivery:
        job.delivery = job_pb2.DELIVERY_AT_LEAST_ONCE
    elif job.delivery == job_pb2.DELIVERY_AT_MOST_ONCE:
        found.append(Violation("job.delivery", f"AT_MOST_ONCE {_NOT_YET}", "NOT_YET_SUPPORTED"))
    else:
        choice(job.delivery, Delivery, "job.delivery", found)
    if job.HasField("on_success"):
        found.append(Violation("job.on_success", _NOT_YET, "NOT_YET_SUPPORTED"))
    if job.HasField("on_failure"):
        found.append(Violation("job.on_failure", _NOT_YET, "NOT_YET_SUPPORTED"))
    if job.HasField("flow_control"):
        found.append(Violation("job.flow_control", _NOT_YET, "NOT_YET_SUPPORTED"))


def _check_misfire(misfire: job_pb2.Misfire, found: Violations) -> None:
    misfire.policy = misfire.policy or job_pb2.MISFIRE_POLICY_LATEST
    choice(misfire.policy, MisfirePolicy, "job.misfire.policy", found)
    misfire.max_count = misfire.max_count or _MISFIRE_DEFAULT.max_count
    number(misfire.max_count, "job.misfire.max_count", found, low=1, high=limits.MISFIRES_MAX)
    if misfire.HasField("catchup_window"):
        field, high = "job.misfire.catchup_window", limits.CATCHUP_WINDOW_MS_MAX
        length(misfire.catchup_window, field, found, low=0, high=high)


def _check_retry(retry: target_pb2.RetryPolicy, found: Violations) -> None:
    retry.max_attempts = retry.max_attempts or _RETRY_DEFAULT.max_attempts
    field = "job.retry_policy"
    number(retry.max_attempts, f"{field}.max_attempts", found, low=1, high=limits.ATTEMPTS_MAX)
    if retry.HasField("max_retry_duration"):
        high = limits.RETRY_DURATION_MS_MAX
        length(retry.max_retry_duration, f"{field}.max_retry_duration", found, low=0, high=high)
    low, high = limits.BACKOFF_MS_MIN, limits.BACKOFF_MS_MAX
    if not retry.HasField("min_backoff"):
        retry.min_backoff.CopyFrom(_RETRY_DEFAULT.min_backoff)
    min_ms = length(retry.min_backoff, f"{field}.min_backoff", found, low=low, high=high)
    if not retry.HasField("max_backoff"):
        set_ms(retry.max_backoff, max(min_ms, ms_up(_RETRY_DEFAULT.max_backoff)))
    max_ms = length(retry.max_backoff, f"{field}.max_backoff", found, low=low, high=high)
    if max_ms < min_ms:
        text = "must not be less than min_backoff"
        found.append(Violation(f"{field}.max_backoff", text, "OUT_OF_RANGE"))
    if not retry.HasField("max_doublings"):
        retry.max_doublings = _RETRY_DEFAULT.max_doublings
    high = limits.DOUBLINGS_MAX
    number(retry.max_doublings, f"{field}.max_doublings", found, low=0, high=high)


def _check_retention(retention: job_pb2.Retention, found: Violations) -> None:
    if not retention.HasField("duration"):
        retention.duration.CopyFrom(_RETENTION_DEFAULT.duration)
    low, high = limits.RETENTION_MS_MIN, limits.RETENTION_MS_MAX
    length(retention.duration, "job.retention.duration", found, low=low, high=high)
    retention.max_executions = retention.max_executions or _RETENTION_DEFAULT.max_executions
    field, high = "job.retention.max_executions", limits.RETENTION_COUNT_MAX
    number(retention.max_executions, field, found, low=1, high=high)


# --- texts -----------------------------------------------------------------------------------


def check_texts(job: job_pb2.Job, labels: dict[str, str], found: Violations) -> None:
    """Labels and description."""
    if len(labels) > limits.LABELS_MAX:
        text = f"must have at most {limits.LABELS_MAX} entries, not {len(labels)}"
        found.append(Violation("job.labels", text, "TOO_MANY"))
    else:
        for key, value in labels.items():
            if not _label_fits(key, value):
                found.append(_bad_label(key))
    if len(job.description) > limits.DESCRIPTION_CHARS_MAX:
        text = f"must have at most {limits.DESCRIPTION_CHARS_MAX:,} characters"
        found.append(Violation("job.description", text, "TOO_LONG"))


@lru_cache(4_096)
def _label_fits(key: str, value: str) -> bool:
    if _LABEL_KEY.fullmatch(key) is None or len(value) > limits.LABEL_VALUE_CHARS_MAX:
        return False
    return value.isprintable()


def _bad_label(key: str) -> Violation:
    if _LABEL_KEY.fullmatch(key) is None:
        text = "keys match [a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?"
        return Violation(f"job.labels[{key}]", text, "LABEL_KEY")
    text = f"values have at most {limits.LABEL_VALUE_CHARS_MAX} printable characters"
    return Violation(f"job.labels[{key}]", text, "LABEL_VALUE")
