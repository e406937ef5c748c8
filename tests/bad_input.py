"""Requests that must be refused, and how: one table for the door in process and for a node over the wire.

Each case is a whole request that needs no state on the server. `field` is the path of the first violation, empty where
the error names none.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from google.protobuf.message import Message

from tickwheel.v1 import job_pb2, schedule_pb2, target_pb2
from tickwheel.v1 import job_service_pb2 as pb

PARENT = "namespaces/acme"
JOB = f"{PARENT}/jobs/nightly"
FAR_FUTURE_S = 4_000_000_000


class Case(NamedTuple):
    """A method of JobService, a request, and the refusal it must meet."""

    label: str
    method: str
    request: Message
    code: str
    reason: str
    field: str


def good_job() -> job_pb2.Job:
    """A job that every server takes."""
    job = job_pb2.Job()
    job.schedule.once.scheduled_time.seconds = FAR_FUTURE_S
    job.http_target.url = "https://example.com/hook"
    return job


def good_create() -> pb.CreateJobRequest:
    """A request that every server takes."""
    return pb.CreateJobRequest(parent=PARENT, job_id="nightly", job=good_job())


def cases() -> list[Case]:
    """The whole table."""
    return [*_of_requests(), *_of_schedules(), *_of_targets(), *_of_policies(), *_of_reads()]


def _create(label: str, change: Callable[[job_pb2.Job], object], reason: str, field: str) -> Case:
    request = good_create()
    change(request.job)
    return Case(label, "CreateJob", request, "INVALID_ARGUMENT", reason, field)


def _refused(label: str, method: str, request: Message, reason: str, field: str) -> Case:
    return Case(label, method, request, "INVALID_ARGUMENT", reason, field)


# --- names, ids, batches, masks --------------------------------------------------------------


def _of_requests() -> Iterator[Case]:
    for label, parent, reason in (
        ("no parent", "", "REQUIRED"),
        ("a parent that is a job", JOB, "NAME_INVALID"),
        ("a namespace in capitals", "namespaces/Acme", "NAME_INVALID"),
        ("a wildcard for a parent", "namespaces/-", "NAME_INVALID"),
    ):
        request = good_create()
        request.parent = parent
        yield _refused(label, "CreateJob", request, reason, "parent")
    for label, job_id in (
        ("a job_id in capitals", "Nightly"),
        ("a job_id with a slash", "a/b"),
        ("a job_id with a colon", "a:b"),
        ("a job_id that ends in a dash", "a-"),
        ("a job_id of 129 characters", "a" * 129),
        ("a job_id with a line break", "a\n"),
    ):
        request = good_create()
        request.job_id = job_id
        yield _refused(label, "CreateJob", request, "JOB_ID_INVALID", "job_id")
    for label, request_id in (
        ("a request_id with a space", "a b"),
        ("a request_id of 129 characters", "a" * 129),
        ("a request_id outside ASCII", "ä"),
    ):
        request = good_create()
        request.request_id = request_id
        yield _refused(label, "CreateJob", request, "REQUEST_ID_INVALID", "request_id")
        run = pb.RunJobRequest(name=JOB, request_id=request_id)
        yield _refused(f"run: {label}", "RunJob", run, "REQUEST_ID_INVALID", "request_id")
    batch = pb.BatchCreateJobsRequest(parent=PARENT)
    yield _refused("an empty batch", "BatchCreateJobs", batch, "BATCH_SIZE", "requests")
    batch = pb.BatchCreateJobsRequest(parent=PARENT, requests=[pb.CreateJobRequest()] * 1001)
    yield _refused("a batch of 1,001", "BatchCreateJobs", batch, "BATCH_SIZE", "requests")
    for path in ("nothing", "schedule.nothing", "labels.", "http_target.headers.name", ""):
        update = pb.UpdateJobRequest(job=good_job())
        update.job.name = JOB
        update.update_mask.paths.append(path)
        yield _refused(f"mask {path!r}", "UpdateJob", update, "MASK_PATH", "update_mask")
    update = pb.UpdateJobRequest(job=good_job())
    yield _refused("an update without a name", "UpdateJob", update, "REQUIRED", "job.name")


# --- schedules -------------------------------------------------------------------------------


def _of_schedules() -> Iterator[Case]:
    once, every, cron = "job.schedule.once", "job.schedule.every", "job.schedule.cron"
    yield _create("no schedule", lambda j: j.ClearField("schedule"), "REQUIRED", "job.schedule")
    yield _create("once without a time", lambda j: j.schedule.once.Clear(), "REQUIRED", once)
    yield _create(
        "a time after 9999",
        lambda j: setattr(j.schedule.once.scheduled_time, "seconds", 253_402_300_800),
        "TIME_INVALID",
        f"{once}.scheduled_time",
    )
    yield _create(
        "a time before 1970",
        lambda j: setattr(j.schedule.once.scheduled_time, "seconds", -1),
        "TIME_INVALID",
        f"{once}.scheduled_time",
    )
    yield _create(
        "too many nanos",
        lambda j: setattr(j.schedule.once.scheduled_time, "nanos", 1_000_000_000),
        "TIME_INVALID",
        f"{once}.scheduled_time",
    )
    yield _create(
        "a negative delay",
        lambda j: setattr(j.schedule.once.delay, "seconds", -1),
        "OUT_OF_RANGE",
        f"{once}.delay",
    )
    yield _create(
        "a delay of eleven years",
        lambda j: setattr(j.schedule.once.delay, "seconds", 11 * 366 * 86_400),
        "OUT_OF_RANGE",
        f"{once}.delay",
    )
    yield _create(
        "an instant with a zone",
        lambda j: setattr(j.schedule.once, "time_zone", "Europe/Berlin"),
        "ONLY_WITH_CIVIL_TIME",
        f"{once}.time_zone",
    )
    yield _create(
        "a civil time without a zone",
        lambda j: setattr(j.schedule.once, "civil_time", "2090-03-29T02:30:00"),
        "REQUIRED",
        f"{once}.time_zone",
    )
    yield _create(
        "a past policy nobody knows",
        lambda j: setattr(j.schedule.once, "past_policy", 9),
        "ENUM_UNKNOWN",
        f"{once}.past_policy",
    )
    yield _create(
        "cron without a field",
        lambda j: j.schedule.cron.SetInParent(),
        "REQUIRED",
        f"{cron}.expression",
    )
    yield _create(
        "a cron expression of 257 characters",
        lambda j: setattr(j.schedule.cron, "expression", "*" * 257),
        "TOO_LONG",
        f"{cron}.expression",
    )
    yield _create(
        "a dialect nobody knows",
        lambda j: j.schedule.cron.MergeFrom(schedule_pb2.Cron(expression="* * * * *", dialect=7)),  # type: ignore[arg-type]
        "ENUM_UNKNOWN",
        f"{cron}.dialect",
    )
    yield _create(
        "every without a period",
        lambda j: j.schedule.every.SetInParent(),
        "REQUIRED",
        f"{every}.period",
    )
    yield _create(
        "every 999 ms",
        lambda j: setattr(j.schedule.every.period, "nanos", 999_000_000),
        "OUT_OF_RANGE",
        f"{every}.period",
    )
    yield _create(
        "every 1.5 s and a microsecond",
        lambda j: (
            setattr(j.schedule.every.period, "seconds", 1),
            setattr(j.schedule.every.period, "nanos", 500_001_000),
        ),
        "OUT_OF_RANGE",
        f"{every}.period",
    )
    yield _create(
        "an end before the start", _backward_window, "OUT_OF_RANGE", "job.window.end_time"
    )
    yield _create(
        "1,001 excluded dates",
        lambda j: j.window.excluded_dates.extend(["2090-01-01"] * 1001),
        "TOO_MANY",
        "job.window.excluded_dates",
    )
    yield _create("1,001 excluded times", _many_excluded, "TOO_MANY", "job.window.excluded_times")


def _backward_window(job: job_pb2.Job) -> None:
    job.window.start_time.seconds = FAR_FUTURE_S
    job.window.end_time.seconds = FAR_FUTURE_S - 1


def _many_excluded(job: job_pb2.Job) -> None:
    for _ in range(1001):
        job.window.excluded_times.add(seconds=FAR_FUTURE_S)


# --- targets ---------------------------------------------------------------------------------


def _of_targets() -> Iterator[Case]:
    target = "job.http_target"
    yield _create("no target", lambda j: j.ClearField("http_target"), "REQUIRED", target)
    yield _create(
        "a worker",
        lambda j: setattr(j.worker_target, "task_type", "mail"),
        "NOT_YET_SUPPORTED",
        "job.worker_target",
    )
    for url, reason in (
        ("", "URL_INVALID"),
        ("example.com/hook", "URL_INVALID"),
        ("ftp://example.com/", "URL_SCHEME"),
        ("http://user:secret@example.com/", "URL_USERINFO"),
        ("http://example.com/#part", "URL_FRAGMENT"),
        ("http://example.com/a b", "URL_INVALID"),
        ("http://", "URL_HOST"),
        ("http://169.254.169.254/latest/meta-data/", "TARGET_BLOCKED"),
    ):
        yield _create(
            f"url {url!r}",
            lambda j, url=url: setattr(j.http_target, "url", url),
            reason,
            f"{target}.url",
        )
    yield _create(
        "method FETCH",
        lambda j: setattr(j.http_target, "method", "FETCH"),
        "METHOD",
        f"{target}.method",
    )
    yield _create("a GET with a body", _get_with_body, "BODY_NOT_ALLOWED", f"{target}.body")
    yield _create(
        "a body of 256 KiB and one byte",
        lambda j: setattr(j.http_target, "body", bytes(262_145)),
        "BODY_TOO_LARGE",
        f"{target}.body",
    )
    for name, value, reason, part in (
        ("Host", "a", "HEADER_RESERVED", "name"),
        ("Tickwheel-Job", "a", "HEADER_RESERVED", "name"),
        ("webhook-id", "a", "HEADER_RESERVED", "name"),
        ("bad name", "a", "HEADER_NAME", "name"),
        ("", "a", "HEADER_NAME", "name"),
        ("x", "a\r\nb: c", "HEADER_VALUE", "value"),
    ):
        yield _create(
            f"header {name!r}: {value!r}",
            lambda j, name=name, value=value: j.http_target.headers.add(name=name, value=value),
            reason,
            f"{target}.headers[0].{part}",
        )
    yield _create(
        "65 headers",
        lambda j: j.http_target.headers.extend([target_pb2.Header(name="x", value="y")] * 65),
        "HEADERS_TOO_MANY",
        f"{target}.headers",
    )
    yield _create(
        "a header without content",
        lambda j: j.http_target.headers.add(name="x"),
        "REQUIRED",
        f"{target}.headers[0].value",
    )
    yield _create(
        "a header from a secret",
        lambda j: j.http_target.headers.add(name="x", secret="namespaces/acme/secrets/a"),
        "NOT_YET_SUPPORTED",
        f"{target}.headers[0].secret",
    )
    yield _create(
        "a signing secret",
        lambda j: setattr(j.http_target, "signing_secret", "namespaces/acme/secrets/a"),
        "NOT_YET_SUPPORTED",
        f"{target}.signing_secret",
    )
    for label, nanos, seconds in (
        ("99 ms", 99_000_000, 0),
        ("31 min", 0, 1_860),
        ("less than nothing", 0, -1),
    ):
        yield _create(
            f"a time-out of {label}",
            lambda j, nanos=nanos, seconds=seconds: (
                setattr(j.http_target.timeout, "nanos", nanos),
                setattr(j.http_target.timeout, "seconds", seconds),
            ),
            "OUT_OF_RANGE",
            f"{target}.timeout",
        )
    yield _create(
        "4 redirects",
        lambda j: setattr(j.http_target, "max_redirects", 4),
        "OUT_OF_RANGE",
        f"{target}.max_redirects",
    )
    for low, high in ((99, 200), (500, 499), (200, 600)):
        yield _create(
            f"status {low} to {high}",
            lambda j, low=low, high=high: j.http_target.retry_on.add(low=low, high=high),
            "OUT_OF_RANGE",
            f"{target}.retry_on[0]",
        )
    yield _create(
        "17 ranges",
        lambda j: j.http_target.succeed_on.extend([target_pb2.StatusRange(low=200)] * 17),
        "TOO_MANY",
        f"{target}.succeed_on",
    )


def _get_with_body(job: job_pb2.Job) -> None:
    job.http_target.method = "GET"
    job.http_target.body = b"x"


# --- policies, labels ------------------------------------------------------------------------


def _of_policies() -> Iterator[Case]:
    for field in ("on_success", "on_failure"):
        yield _create(
            field,
            lambda j, field=field: setattr(getattr(j, field), "url", "https://example.com/"),
            "NOT_YET_SUPPORTED",
            f"job.{field}",
        )
    yield _create(
        "flow control",
        lambda j: setattr(j.flow_control, "key", "a"),
        "NOT_YET_SUPPORTED",
        "job.flow_control",
    )
    yield _create(
        "at most once",
        lambda j: setattr(j, "delivery", job_pb2.DELIVERY_AT_MOST_ONCE),
        "NOT_YET_SUPPORTED",
        "job.delivery",
    )
    for field in ("delivery", "overlap_policy"):
        yield _create(
            f"{field} 9",
            lambda j, field=field: setattr(j, field, 9),
            "ENUM_UNKNOWN",
            f"job.{field}",
        )
    yield _create(
        "misfire 9", lambda j: setattr(j.misfire, "policy", 9), "ENUM_UNKNOWN", "job.misfire.policy"
    )
    for path, value in (
        ("misfire.max_count", 1_001),
        ("misfire.max_count", -1),
        ("misfire.catchup_window.seconds", 366 * 86_400),
        ("expire_after.seconds", -1),
        ("expire_after.seconds", 366 * 86_400),
        ("jitter.seconds", 86_401),
        ("max_executions", -1),
        ("retry_policy.max_attempts", 1_001),
        ("retry_policy.max_attempts", -1),
        ("retry_policy.max_retry_duration.seconds", 31 * 86_400),
        ("retry_policy.min_backoff.seconds", 86_401),
        ("retry_policy.max_backoff.nanos", 1_000_000),
        ("retry_policy.max_doublings", 33),
        ("retention.duration.seconds", 366 * 86_400),
        ("retention.max_executions", 100_001),
    ):
        field = f"job.{path}".removesuffix(".seconds").removesuffix(".nanos")
        yield _create(
            f"{path} {value}",
            lambda j, path=path, value=value: _set(j, path, value),
            "OUT_OF_RANGE",
            field,
        )
    for label, key, value, reason in (
        ("a key in capitals", "Team", "a", "LABEL_KEY"),
        ("an empty key", "", "a", "LABEL_KEY"),
        ("a key with =", "a=b", "a", "LABEL_KEY"),
        ("a key of 64 characters", "a" * 64, "a", "LABEL_KEY"),
        ("a value of 129 characters", "a", "b" * 129, "LABEL_VALUE"),
        ("a value with a separator", "a", "b\x1fc", "LABEL_VALUE"),
    ):
        yield _create(
            label,
            lambda j, key=key, value=value: j.labels.update({key: value}),
            reason,
            f"job.labels[{key}]",
        )
    yield _create(
        "33 labels",
        lambda j: j.labels.update({f"k{n}": "v" for n in range(33)}),
        "TOO_MANY",
        "job.labels",
    )
    yield _create(
        "a description of 1,025 characters",
        lambda j: setattr(j, "description", "a" * 1_025),
        "TOO_LONG",
        "job.description",
    )


def _set(message: Message, path: str, value: int) -> None:
    *parts, last = path.split(".")
    for part in parts:
        message = getattr(message, part)
    setattr(message, last, value)


# --- reads -----------------------------------------------------------------------------------


def _of_reads() -> Iterator[Case]:
    for method, request in (
        ("GetJob", pb.GetJobRequest(name="nightly")),
        ("DeleteJob", pb.DeleteJobRequest(name=PARENT)),
        ("PauseJob", pb.PauseJobRequest(name=f"{JOB}/executions/a")),
        ("ResumeJob", pb.ResumeJobRequest(name=f"{PARENT}/jobs/A")),
        ("CancelJob", pb.CancelJobRequest(name=f"{PARENT}/jobs/")),
        ("RunJob", pb.RunJobRequest(name=f"{PARENT}/jobs/-")),
        ("GetExecution", pb.GetExecutionRequest(name=JOB)),
        ("RetryExecution", pb.RetryExecutionRequest(name=f"{JOB}/executions/")),
    ):
        yield _refused(f"{method}: a malformed name", method, request, "NAME_INVALID", "name")
    yield _refused("a read without a name", "GetJob", pb.GetJobRequest(), "REQUIRED", "name")
    yield _refused(
        "executions of nothing", "ListExecutions", pb.ListExecutionsRequest(), "REQUIRED", "parent"
    )
    for filter_ in (
        "state",
        "state = ",
        "state = NOWHERE",
        "state > PAUSED",
        "colour = red",
        "NOT state = PAUSED",
        "(state = PAUSED",
        "state = PAUSED OR job_id = 'a*'",
        "next_time > yesterday",
        "next_time > 2026-01-01T00:00:00",
        "job_id = nightly",
        "labels.team = 'a*'",
        "state = PAUSED state = PAUSED",
        "a" * 2_049,
    ):
        request = pb.ListJobsRequest(parent=PARENT, filter=filter_)
        yield _refused(f"filter {filter_[:40]!r}", "ListJobs", request, "FILTER", "filter")
    request = pb.ListJobsRequest(parent=PARENT, page_size=-1)
    yield _refused("a page of -1", "ListJobs", request, "OUT_OF_RANGE", "page_size")
    for token in ("nonsense", "!", "A" * 36):
        request = pb.ListJobsRequest(parent=PARENT, page_token=token)
        yield _refused(f"token {token!r}", "ListJobs", request, "PAGE_TOKEN_INVALID", "page_token")
    yield from _of_counts()


def _of_counts() -> Iterator[Case]:
    count = pb.CountJobsRequest(parent=PARENT, group_by=pb.COUNT_GROUPING_LABEL)
    yield _refused("by a label without its key", "CountJobs", count, "REQUIRED", "label_key")
    count = pb.CountJobsRequest(parent=PARENT, label_key="team")
    yield _refused("a key without LABEL", "CountJobs", count, "ONLY_WITH_LABEL", "label_key")
    count = pb.CountJobsRequest(parent=PARENT)
    count.bucket.seconds = 60
    yield _refused(
        "a bucket without NEXT_TIME", "CountJobs", count, "ONLY_WITH_NEXT_TIME", "bucket"
    )
    count = pb.CountJobsRequest(parent=PARENT, group_by=pb.COUNT_GROUPING_NEXT_TIME)
    count.bucket.nanos = 1
    yield _refused("a bucket of 1 ns", "CountJobs", count, "OUT_OF_RANGE", "bucket")
    count = pb.CountJobsRequest(parent=PARENT, group_by=9)  # type: ignore[arg-type]
    yield _refused("a grouping nobody knows", "CountJobs", count, "ENUM_UNKNOWN", "group_by")
