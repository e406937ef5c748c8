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


Change = Callable[[job_pb2.Job], object]


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
    parts = (
        _of_requests(),
        _of_schedules(),
        _of_cron_and_every(),
        _of_windows(),
        _of_targets(),
        _of_headers_and_answers(),
        _of_policies(),
        _of_texts(),
        _of_reads(),
    )
    return [case for part in parts for case in part]


def _create(what: str, change: Change, reason: str, field: str) -> Case:
    request = good_create()
    change(request.job)
    return Case(what, "CreateJob", request, "INVALID_ARGUMENT", reason, field)


def at(path: str, value: object, *more: object) -> Change:
    """The change that sets a field of the job; further paths and values may follow."""

    def change(job: job_pb2.Job) -> None:
        for where, what in batched((path, value, *more)):
            *parts, last = str(where).split(".")
            message: Message = job
            for part in parts:
                message = getattr(message, part)
            setattr(message, last, what)

    return change


def batched(values: tuple[object, ...]) -> Iterator[tuple[object, object]]:
    return zip(values[::2], values[1::2], strict=True)


def header(name: str, value: str) -> Change:
    return lambda job: job.http_target.headers.add(name=name, value=value)


def label(key: str, value: str) -> Change:
    return lambda job: job.labels.update({key: value})


def retry_on(low: int, high: int) -> Change:
    return lambda job: job.http_target.retry_on.add(low=low, high=high)


def _refused(what: str, method: str, request: Message, reason: str, field: str) -> Case:
    return Case(what, method, request, "INVALID_ARGUMENT", reason, field)


# --- names, ids, batches, masks --------------------------------------------------------------


def _of_requests() -> Iterator[Case]:
    for what, parent, reason in (
        ("no parent", "", "REQUIRED"),
        ("a parent that is a job", JOB, "NAME_INVALID"),
        ("a namespace in capitals", "namespaces/Acme", "NAME_INVALID"),
        ("a wildcard for a parent", "namespaces/-", "NAME_INVALID"),
    ):
        request = good_create()
        request.parent = parent
        yield _refused(what, "CreateJob", request, reason, "parent")
    for what, job_id in (
        ("a job_id in capitals", "Nightly"),
        ("a job_id with a slash", "a/b"),
        ("a job_id with a colon", "a:b"),
        ("a job_id that ends in a dash", "a-"),
        ("a job_id of 129 characters", "a" * 129),
        ("a job_id with a line break", "a\n"),
    ):
        request = good_create()
        request.job_id = job_id
        yield _refused(what, "CreateJob", request, "JOB_ID_INVALID", "job_id")
    for what, request_id in (
        ("a request_id with a space", "a b"),
        ("a request_id of 129 characters", "a" * 129),
        ("a request_id outside ASCII", "ä"),
    ):
        request = good_create()
        request.request_id = request_id
        yield _refused(what, "CreateJob", request, "REQUEST_ID_INVALID", "request_id")
        run = pb.RunJobRequest(name=JOB, request_id=request_id)
        yield _refused(f"run: {what}", "RunJob", run, "REQUEST_ID_INVALID", "request_id")
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
    once = "job.schedule.once"
    yield _create("no schedule", lambda j: j.ClearField("schedule"), "REQUIRED", "job.schedule")
    yield _create("once without a time", lambda j: j.schedule.once.Clear(), "REQUIRED", once)
    yield _create(
        "a time after 9989",
        at("schedule.once.scheduled_time.seconds", 253_086_681_600),
        "TIME_INVALID",
        f"{once}.scheduled_time",
    )
    yield _create(
        "a time before 1970",
        at("schedule.once.scheduled_time.seconds", -1),
        "TIME_INVALID",
        f"{once}.scheduled_time",
    )
    yield _create(
        "too many nanos",
        at("schedule.once.scheduled_time.nanos", 1_000_000_000),
        "TIME_INVALID",
        f"{once}.scheduled_time",
    )
    yield _create(
        "a negative delay",
        at("schedule.once.delay.seconds", -1),
        "OUT_OF_RANGE",
        f"{once}.delay",
    )
    yield _create(
        "a delay of eleven years",
        at("schedule.once.delay.seconds", 11 * 366 * 86_400),
        "OUT_OF_RANGE",
        f"{once}.delay",
    )
    yield _create(
        "an instant with a zone",
        at("schedule.once.time_zone", "Europe/Berlin"),
        "ONLY_WITH_CIVIL_TIME",
        f"{once}.time_zone",
    )
    yield _create(
        "a civil time without a zone",
        at("schedule.once.civil_time", "2090-03-29T02:30:00"),
        "REQUIRED",
        f"{once}.time_zone",
    )
    yield _create(
        "a past policy nobody knows",
        at("schedule.once.past_policy", 9),
        "ENUM_UNKNOWN",
        f"{once}.past_policy",
    )


def _of_cron_and_every() -> Iterator[Case]:
    every, cron = "job.schedule.every", "job.schedule.cron"
    for expression, reason in (
        ("* * * *", "INVALID_CRON"),
        ("0 0 0 * * *", "SECONDS_FIELD_NEEDS_DIALECT"),
        ("61 * * * *", "INVALID_CRON"),
        ("0 0 30 2 *", "NEVER_FIRES"),
    ):
        change = at("schedule.cron.expression", expression)
        yield _create(f"cron {expression}", change, reason, f"{cron}.expression")
    yield _create(
        "a zone nobody knows",
        at("schedule.cron.expression", "@daily", "schedule.cron.time_zone", "Europe/Atlantis"),
        "UNKNOWN_TIME_ZONE",
        f"{cron}.time_zone",
    )
    yield _create(
        "cron without a field",
        lambda j: j.schedule.cron.SetInParent(),
        "REQUIRED",
        f"{cron}.expression",
    )
    yield _create(
        "a cron expression of 257 characters",
        at("schedule.cron.expression", "*" * 257),
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
        at("schedule.every.period.nanos", 999_000_000),
        "OUT_OF_RANGE",
        f"{every}.period",
    )
    yield _create(
        "every 1.5 s and a microsecond",
        at("schedule.every.period.nanos", 500_001_000, "schedule.every.period.seconds", 1),
        "OUT_OF_RANGE",
        f"{every}.period",
    )


def _of_windows() -> Iterator[Case]:
    for civil in ("2090-02-30T00:00:00", "2090-01-01T00:00:00Z", "tomorrow"):
        yield _create(
            f"civil time {civil}",
            at("schedule.once.civil_time", civil, "schedule.once.time_zone", "Europe/Berlin"),
            "INVALID_CIVIL_TIME",
            "job.schedule.once.civil_time",
        )
    yield _create(
        "a civil time that happens twice, both times",
        lambda j: j.schedule.once.MergeFrom(
            schedule_pb2.Once(
                civil_time="2090-01-01T00:00:00",
                time_zone="Europe/Berlin",
                dst_overlap=schedule_pb2.DST_OVERLAP_BOTH,
            )
        ),
        "BOTH_NOT_ALLOWED",
        "job.schedule.once.dst_overlap",
    )
    yield _create(
        "an excluded date that is none",
        lambda j: j.window.excluded_dates.append("2090-02-30"),
        "INVALID_DATE",
        "job.window.excluded_dates",
    )
    never = at("window.end_time.seconds", 5)
    yield _create("a window that leaves nothing", never, "NEVER_FIRES", "job.window")
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
        at("worker_target.task_type", "mail"),
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
            at("http_target.url", url),
            reason,
            f"{target}.url",
        )
    yield _create(
        "method FETCH",
        at("http_target.method", "FETCH"),
        "METHOD",
        f"{target}.method",
    )
    yield _create("a GET with a body", _get_with_body, "BODY_NOT_ALLOWED", f"{target}.body")
    yield _create(
        "a body of 256 KiB and one byte",
        at("http_target.body", bytes(262_145)),
        "BODY_TOO_LARGE",
        f"{target}.body",
    )


def _of_headers_and_answers() -> Iterator[Case]:
    target = "job.http_target"
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
            header(name, value),
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
        at("http_target.signing_secret", "namespaces/acme/secrets/a"),
        "NOT_YET_SUPPORTED",
        f"{target}.signing_secret",
    )
    for what, nanos, seconds in (
        ("99 ms", 99_000_000, 0),
        ("31 min", 0, 1_860),
        ("less than nothing", 0, -1),
    ):
        yield _create(
            f"a time-out of {what}",
            at("http_target.timeout.nanos", nanos, "http_target.timeout.seconds", seconds),
            "OUT_OF_RANGE",
            f"{target}.timeout",
        )
    yield _create(
        "4 redirects",
        at("http_target.max_redirects", 4),
        "OUT_OF_RANGE",
        f"{target}.max_redirects",
    )
    for low, high in ((99, 200), (500, 499), (200, 600)):
        yield _create(
            f"status {low} to {high}",
            retry_on(low, high),
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
            at(f"{field}.url", "https://example.com/"),
            "NOT_YET_SUPPORTED",
            f"job.{field}",
        )
    yield _create(
        "flow control",
        at("flow_control.key", "a"),
        "NOT_YET_SUPPORTED",
        "job.flow_control",
    )
    yield _create(
        "at most once",
        at("delivery", job_pb2.DELIVERY_AT_MOST_ONCE),
        "NOT_YET_SUPPORTED",
        "job.delivery",
    )
    for field in ("delivery", "overlap_policy"):
        yield _create(
            f"{field} 9",
            at(field, 9),
            "ENUM_UNKNOWN",
            f"job.{field}",
        )
    yield _create("misfire 9", at("misfire.policy", 9), "ENUM_UNKNOWN", "job.misfire.policy")
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
            at(path, value),
            "OUT_OF_RANGE",
            field,
        )


def _of_texts() -> Iterator[Case]:
    for what, key, text, reason in (
        ("a key in capitals", "Team", "a", "LABEL_KEY"),
        ("an empty key", "", "a", "LABEL_KEY"),
        ("a key with =", "a=b", "a", "LABEL_KEY"),
        ("a key of 64 characters", "a" * 64, "a", "LABEL_KEY"),
        ("a value of 129 characters", "a", "b" * 129, "LABEL_VALUE"),
        ("a value with a separator", "a", "b\x1fc", "LABEL_VALUE"),
    ):
        yield _create(
            what,
            label(key, text),
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
        at("description", "a" * 1_025),
        "TOO_LONG",
        "job.description",
    )


# --- reads -----------------------------------------------------------------------------------


def _of_reads() -> Iterator[Case]:
    malformed: tuple[tuple[str, Message], ...] = (
        ("GetJob", pb.GetJobRequest(name="nightly")),
        ("DeleteJob", pb.DeleteJobRequest(name=PARENT)),
        ("PauseJob", pb.PauseJobRequest(name=f"{JOB}/executions/a")),
        ("ResumeJob", pb.ResumeJobRequest(name=f"{PARENT}/jobs/A")),
        ("CancelJob", pb.CancelJobRequest(name=f"{PARENT}/jobs/")),
        ("RunJob", pb.RunJobRequest(name=f"{PARENT}/jobs/-")),
        ("GetExecution", pb.GetExecutionRequest(name=JOB)),
        ("RetryExecution", pb.RetryExecutionRequest(name=f"{JOB}/executions/")),
    )
    for method, message in malformed:
        yield _refused(f"{method}: a malformed name", method, message, "NAME_INVALID", "name")
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
    yield from _of_previews()


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


def _of_previews() -> Iterator[Case]:
    preview = pb.PreviewScheduleRequest(parent=PARENT)
    yield _refused("a preview of nothing", "PreviewSchedule", preview, "REQUIRED", "schedule")
    preview = pb.PreviewScheduleRequest(parent=PARENT, job="namespaces/other/jobs/a")
    yield _refused("another's job", "PreviewSchedule", preview, "PARENT_MISMATCH", "job")
    for count in (-1, 1_001):
        preview = pb.PreviewScheduleRequest(parent=PARENT, count=count)
        preview.schedule.every.period.seconds = 60
        yield _refused(f"{count} of them", "PreviewSchedule", preview, "OUT_OF_RANGE", "count")
    preview = pb.PreviewScheduleRequest(parent=PARENT)
    preview.schedule.every.SetInParent()
    field = "schedule.every.period"
    yield _refused("every nothing", "PreviewSchedule", preview, "REQUIRED", field)
