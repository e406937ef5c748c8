"""Floor 5. ValidateJob's answer: everything that a job must meet, met or not.

The table below names the criteria in the order of the fields; a violation is matched with it by field and reason. One
that the table does not name is told all the same. A criterion of a part that was not sent (`schedule.cron` of a one-off)
is left out: it asks nothing of this job.

Must never import: rooms below but `errors`.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from google.protobuf.message import Message

from tickwheel.server.api import limits
from tickwheel.server.errors import Violation
from tickwheel.v1 import job_pb2
from tickwheel.v1 import job_service_pb2 as pb


class Rule(NamedTuple):
    """What must hold of a field, and the reason that a refusal would carry."""

    field: str
    reason: str
    text: str


RULES: Final = (
    Rule("schedule", "REQUIRED", "one of once, cron and every is set"),
    Rule("schedule.once", "REQUIRED", "one of scheduled_time, civil_time and delay is set"),
    Rule("schedule.once.scheduled_time", "TIME_INVALID", "lies between 1970-01-01 and 9989-12-30"),
    Rule("schedule.once.delay", "OUT_OF_RANGE", "0 s to 10 years"),
    Rule("schedule.once.time_zone", "ONLY_WITH_CIVIL_TIME", "is set with civil_time only"),
    Rule("schedule.cron.expression", "REQUIRED", "is set"),
    Rule("schedule.cron.expression", "INVALID_CRON", "is a cron expression of the stated dialect"),
    Rule("schedule.cron.expression", "NEVER_FIRES", "matches a date"),
    Rule("schedule.cron.time_zone", "UNKNOWN_TIME_ZONE", "is a zone of the IANA database"),
    Rule("schedule.once.civil_time", "NEVER_FIRES", "exists, or dst_gap is FIRE_AFTER"),
    Rule("schedule.once.civil_time", "INVALID_CIVIL_TIME", "is YYYY-MM-DDThh:mm:ss, no offset"),
    Rule("schedule.once.time_zone", "UNKNOWN_TIME_ZONE", "is a zone of the IANA database"),
    Rule("schedule.every.period", "REQUIRED", "is set"),
    Rule("schedule.every.period", "OUT_OF_RANGE", "1 s to 10 years, whole milliseconds"),
    Rule("http_target", "REQUIRED", "is set"),
    Rule("http_target.url", "URL_INVALID", "is an absolute http or https URL"),
    Rule("http_target.url", "TARGET_BLOCKED", "names no address that the guard refuses"),
    Rule("http_target.method", "METHOD", "is one of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
    Rule("http_target.headers", "HEADER_RESERVED", "names no header that the server sets"),
    Rule("http_target.headers", "HEADER_NAME", "names are HTTP tokens"),
    Rule("http_target.headers", "HEADER_VALUE", "values have no line breaks"),
    Rule("http_target.body", "BODY_TOO_LARGE", f"at most {limits.BODY_BYTES_MAX:,} bytes"),
    Rule("http_target.body", "BODY_NOT_ALLOWED", "is empty with GET, HEAD and OPTIONS"),
    Rule("http_target.timeout", "OUT_OF_RANGE", "100 ms to 30 min"),
    Rule("window.end_time", "OUT_OF_RANGE", "is not before start_time"),
    Rule("window", "NEVER_FIRES", "leaves an occurrence"),
    Rule("window.excluded_dates", "INVALID_DATE", "are YYYY-MM-DD"),
    Rule("jitter", "OUT_OF_RANGE", "up to 24 h, less than the pause between occurrences"),
    Rule("misfire", "OUT_OF_RANGE", "max_count is 1 to 1,000, catchup_window up to 365 days"),
    Rule("expire_after", "OUT_OF_RANGE", "up to 365 days"),
    Rule("retry_policy", "OUT_OF_RANGE", "attempts, pauses and doublings lie within their limits"),
    Rule("labels", "LABEL_KEY", "keys match [a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?"),
    Rule("labels", "LABEL_VALUE", "values have at most 128 printable characters"),
    Rule("description", "TOO_LONG", "at most 1,024 characters"),
    Rule("retention", "OUT_OF_RANGE", "1 s to 365 days, 1 to 100,000 executions"),
)
"""What can be told from the job alone."""

DRY_RUN_RULES: Final = (
    Rule("schedule", "NEVER_FIRES", "has an occurrence that lies ahead"),
    Rule("schedule.once", "PAST_TIME", "has not passed, or past_policy is FIRE_NOW"),
    Rule("job_id", "ALREADY_EXISTS", "is free, or names a job with the same content"),
)
"""What only a create that is not carried out can tell, and so only when the job alone is sound."""


def criteria_of(
    sent: job_pb2.Job, rules: Iterable[Rule], violations: Sequence[Violation]
) -> list[pb.Criterion]:
    """The rules that ask something of this job, then what else is wrong."""
    left = [violation._replace(field=_bare(violation.field)) for violation in violations]
    found: list[pb.Criterion] = []
    for rule in rules:
        broken = [violation for violation in left if _breaks(violation, rule)]
        found += (_unmet(violation, rule.text) for violation in broken)
        left = [violation for violation in left if violation not in broken]
        if not broken and _asked(sent, rule.field):
            found.append(_met(rule))
    return found + [_unmet(violation) for violation in left]


def _bare(field: str) -> str:
    return field.removeprefix("job.")


def _breaks(violation: Violation, rule: Rule) -> bool:
    if violation.reason != rule.reason:
        return False
    return violation.field == rule.field or violation.field.startswith(
        (f"{rule.field}.", f"{rule.field}[")
    )


def _asked(sent: job_pb2.Job, field: str) -> bool:
    """True for what must always be there, and for each part that was sent."""
    if field in {"job_id", "schedule", "http_target"}:
        return True
    return _sent(sent, field.split("."))


def _sent(message: Message, path: list[str]) -> bool:
    name, *rest = path
    known = message.DESCRIPTOR.fields_by_name[name]
    if known.has_presence and not message.HasField(name):
        return False
    part = getattr(message, name)
    if rest:
        return _sent(part, rest)
    return bool(part) if known.is_repeated or known.message_type is None else True


def _met(rule: Rule) -> pb.Criterion:
    return pb.Criterion(field=rule.field, reason=rule.reason, met=True, description=rule.text)


def _unmet(violation: Violation, text: str = "") -> pb.Criterion:
    found = f"{text}; found: {violation.description}" if text else violation.description
    return pb.Criterion(field=violation.field, reason=violation.reason, description=found)
