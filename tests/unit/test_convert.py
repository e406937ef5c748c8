"""Jobs as they are sent → what the scheduler takes: defaults, rounding, digests, merging; and the stored form, read back."""

import resource
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import pytest
from tests.bad_input import good_job
from tests.fake_scheduler import TAKES_ALL

from tickwheel.server import codec
from tickwheel.server.api.convert import SPEC_FIELDS, Converter
from tickwheel.server.api.limits import BODY_BYTES_MAX
from tickwheel.server.api.mask import usable_paths
from tickwheel.server.api.validate import TargetChecks
from tickwheel.server.errors import InvalidArgument, NotYetSupported, Violation
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
    Spec,
    Window,
)
from tickwheel.server.spec import decode_spec, parse_spec
from tickwheel.v1 import job_pb2, job_service_pb2, schedule_pb2

NOW = 1_800_000_000_000
TIME = 4_000_000_000_000


def converter() -> Converter:
    return Converter(TAKES_ALL, body_bytes_max=BODY_BYTES_MAX)


def spec_of(job: job_pb2.Job) -> Spec:
    return decode_spec(converter().prepare(job, NOW).spec)


def recurring(**fields: object) -> job_pb2.Job:
    job = good_job()
    job.schedule.every.period.seconds = 60
    job.MergeFrom(job_pb2.Job(**fields))  # type: ignore[arg-type]
    return job


# --- defaults --------------------------------------------------------------------------------


def test_a_one_off_with_defaults() -> None:
    assert spec_of(good_job()) == Spec(
        schedule=Once(TIME),
        target=HttpTarget("https://example.com/hook"),
        misfire_max=100,
        overlap=OverlapPolicy.ALLOW_ALL,
    )


def test_a_recurring_job_with_defaults() -> None:
    spec = spec_of(recurring())
    assert spec.schedule == Every(60_000, NOW)
    assert spec.overlap == OverlapPolicy.SKIP
    assert spec.retry == RetryPolicy()


def test_every_default_is_explicit_in_the_stored_form() -> None:
    stored = parse_spec(converter().prepare(good_job(), NOW).spec)
    assert stored.http_target.method == "POST"
    assert stored.http_target.timeout.seconds == 30
    assert stored.retry_policy.max_attempts == 5
    assert stored.retry_policy.HasField("max_doublings")
    assert stored.misfire.policy == job_pb2.MISFIRE_POLICY_LATEST
    assert stored.retention.duration.seconds == 604_800
    assert stored.delivery == job_pb2.DELIVERY_AT_LEAST_ONCE
    assert stored.schedule.once.past_policy == schedule_pb2.PAST_POLICY_REFUSE


def test_parts_get_their_own_defaults() -> None:
    job = recurring()
    job.misfire.policy = job_pb2.MISFIRE_POLICY_ALL
    job.retry_policy.min_backoff.seconds = 600
    job.retention.max_executions = 3
    spec = spec_of(job)
    assert (spec.misfire, spec.misfire_max) == (MisfirePolicy.ALL, 100)
    assert spec.retry == RetryPolicy(5, 0, 600_000, 600_000, 16)
    assert (spec.retention_ms, spec.retention_count) == (604_800_000, 3)


def test_a_cron_with_defaults() -> None:
    job = good_job()
    job.schedule.cron.expression = "0 9 * * *"
    cron = Cron("0 9 * * *", "UTC", CronDialect.FIVE_FIELDS, DstGap.FIRE_AFTER, DstOverlap.FIRST)
    assert spec_of(job).schedule == cron


def test_an_anchor_comes_from_the_window() -> None:
    job = recurring()
    job.window.start_time.seconds = 5_000
    assert spec_of(job).schedule == Every(60_000, 5_000_000)


def test_normalising_twice_changes_nothing() -> None:
    once = converter().prepare(good_job(), NOW)
    again = converter().prepare(parse_spec(once.spec), NOW + 1)
    assert again.spec == once.spec


# --- values come through ---------------------------------------------------------------------


def test_all_that_is_said_comes_through() -> None:
    job = good_job()
    cron = job.schedule.cron
    cron.expression, cron.time_zone = "0 0 9 * * MON", "Europe/Berlin"
    cron.dialect = schedule_pb2.CRON_DIALECT_SECONDS_FIRST
    cron.dst_gap, cron.dst_overlap = schedule_pb2.DST_GAP_SKIP, schedule_pb2.DST_OVERLAP_BOTH
    job.window.start_time.seconds = 1
    job.window.end_time.seconds = 9_000_000_000
    job.window.excluded_dates.append("2090-01-01")
    job.window.excluded_times.add(seconds=7, nanos=1)
    target = job.http_target
    target.method, target.body, target.max_redirects = "PUT", b"{}", 2
    target.headers.add(name="x", value="y")
    target.headers.add(name="x", value="")
    target.timeout.nanos = 100_000_001
    target.succeed_on.add(low=404)
    target.retry_on.add(low=500, high=503)
    job.max_executions = 9
    job.jitter.seconds = 2
    job.misfire.policy, job.misfire.max_count = job_pb2.MISFIRE_POLICY_SKIP, 4
    job.misfire.catchup_window.seconds = 5
    job.expire_after.seconds = 6
    job.overlap_policy = job_pb2.OVERLAP_POLICY_BUFFER_ONE
    job.delivery = job_pb2.DELIVERY_AT_LEAST_ONCE
    job.retry_policy.max_attempts, job.retry_policy.max_doublings = 7, 0
    job.retry_policy.max_retry_duration.seconds = 8
    job.retry_policy.min_backoff.nanos = 1_000_000
    job.retry_policy.max_backoff.seconds = 9
    job.retention.duration.seconds = 10
    job.retention.max_executions = 11
    job.labels["team"] = "a"
    job.description = "words"
    prepared = converter().prepare(job, NOW)
    assert decode_spec(prepared.spec) == Spec(
        schedule=Cron(
            "0 0 9 * * MON", "Europe/Berlin", CronDialect.SECONDS_FIRST, DstGap.SKIP, DstOverlap.BOTH
        ),
        target=HttpTarget(
            "https://example.com/hook", "PUT", (("x", "y"), ("x", "")), b"{}", 101, 2,
            ((404, 404),), ((500, 503),),
        ),
        window=Window(1_000, 9_000_000_000_000, frozenset(["2090-01-01"]), frozenset([7_001])),
        max_executions=9,
        jitter_ms=2_000,
        misfire=MisfirePolicy.SKIP,
        misfire_max=4,
        catchup_window_ms=5_000,
        expire_after_ms=6_000,
        overlap=OverlapPolicy.BUFFER_ONE,
        retry=RetryPolicy(7, 8_000, 1, 9_000, 0),
        delivery=Delivery.AT_LEAST_ONCE,
        retention_ms=10_000,
        retention_count=11,
    )  # fmt: skip
    assert (prepared.once, prepared.jitter_ms, prepared.past_ok) == (False, 2_000, False)
    assert codec.decode_labels(prepared.labels) == {"team": "a"}
    assert parse_spec(prepared.spec).description == "words"


@pytest.mark.parametrize(("nanos", "ms"), [(0, 0), (1, 1), (1_000_000, 1), (1_000_001, 2)])
def test_times_are_rounded_up(nanos: int, ms: int) -> None:
    job = good_job()
    job.schedule.once.scheduled_time.nanos = nanos
    prepared = converter().prepare(job, NOW)
    assert decode_spec(prepared.spec).schedule == Once(TIME + ms)
    assert prepared.plan.next_after(0) == TIME + ms
    assert parse_spec(prepared.spec).schedule.once.scheduled_time.nanos == ms * 1_000_000


def test_rounding_up_carries_into_the_seconds() -> None:
    job = good_job()
    job.schedule.once.scheduled_time.nanos = 999_999_999
    assert spec_of(job).schedule == Once(TIME + 1_000)


def test_a_delay_becomes_an_instant() -> None:
    job = good_job()
    job.schedule.once.delay.seconds = 90
    prepared = converter().prepare(job, NOW)
    assert decode_spec(prepared.spec).schedule == Once(NOW + 90_000)
    assert parse_spec(prepared.spec).schedule.once.WhichOneof("when") == "scheduled_time"


def test_no_delay_at_all_is_a_delay() -> None:
    job = good_job()
    job.schedule.once.delay.SetInParent()
    assert spec_of(job).schedule == Once(NOW)


def test_a_civil_time_stays_civil() -> None:
    job = good_job()
    job.schedule.once.civil_time = "2090-03-29T02:30:00"
    job.schedule.once.time_zone = "Europe/Berlin"
    schedule = Once(0, "2090-03-29T02:30:00", "Europe/Berlin", DstGap.FIRE_AFTER, DstOverlap.FIRST)
    assert spec_of(job).schedule == schedule


def test_the_past_is_welcome_when_said_so() -> None:
    job = good_job()
    job.schedule.once.past_policy = schedule_pb2.PAST_POLICY_FIRE_NOW
    assert converter().prepare(job, NOW).past_ok


def test_a_large_spec_is_decoded_too() -> None:
    job = good_job()
    job.http_target.body = bytes(100_000)
    assert spec_of(job).target.body == bytes(100_000)


# --- digests ---------------------------------------------------------------------------------


def digest(change: Callable[[job_pb2.Job], object] = lambda _job: None, now_ms: int = NOW) -> bytes:
    job = good_job()
    change(job)
    return converter().prepare(job, now_ms).digest


def test_a_digest_is_of_what_was_sent() -> None:
    assert digest() == digest(now_ms=NOW + 60_000)
    assert len(digest()) == 16
    assert digest(lambda job: setattr(job, "description", "x")) != digest()
    assert digest(lambda job: setattr(job.http_target, "method", "POST")) != digest()


def test_a_delay_repeated_later_has_the_same_digest() -> None:
    def delayed(job: job_pb2.Job) -> None:
        job.schedule.once.delay.seconds = 5

    assert digest(delayed) == digest(delayed, NOW + 60_000)


def test_what_is_only_read_does_not_count() -> None:
    def output(job: job_pb2.Job) -> None:
        job.name, job.uid, job.etag, job.generation = "a", "b", "c", 4
        job.state = job_pb2.JOB_STATE_PAUSED
        job.create_time.seconds = 6

    assert digest(output) == digest()
    job = good_job()
    output(job)
    assert converter().prepare(job, NOW).spec == converter().prepare(good_job(), NOW).spec


# --- refusals --------------------------------------------------------------------------------


def violations(job: job_pb2.Job) -> list[tuple[str, str]]:
    with pytest.raises(InvalidArgument) as raised:
        converter().prepare(job, NOW)
    return [(violation.field, violation.reason) for violation in raised.value.violations]


def test_all_that_is_wrong_is_told_at_once() -> None:
    job = job_pb2.Job(description="x" * 2_000, max_executions=-1)
    job.http_target.method = "FETCH"
    assert violations(job) == [
        ("job.schedule", "REQUIRED"),
        ("job.http_target.method", "METHOD"),
        ("job.max_executions", "OUT_OF_RANGE"),
        ("job.description", "TOO_LONG"),
    ]


def test_what_comes_later_is_refused_as_such() -> None:
    job = good_job()
    job.flow_control.max_concurrent = 1
    with pytest.raises(NotYetSupported, match=r"job\.flow_control"):
        converter().prepare(job, NOW)


def test_jitter_is_less_than_the_pause() -> None:
    job = recurring()
    job.jitter.seconds = 60
    assert violations(job) == [("job.jitter", "OUT_OF_RANGE")]
    job = recurring()
    job.jitter.seconds = 59
    assert spec_of(job).jitter_ms == 59_000


def test_jitter_of_a_cron_is_less_than_its_shortest_pause() -> None:
    job = good_job()
    job.schedule.cron.expression = "* * * * *"
    job.jitter.seconds = 60
    assert violations(job) == [("job.jitter", "OUT_OF_RANGE")]


def test_jitter_of_a_one_off_has_no_pause_to_mind() -> None:
    job = good_job()
    job.jitter.seconds = 3_600
    assert spec_of(job).jitter_ms == 3_600_000


def test_verdicts_of_the_sending_side_are_passed_on_and_remembered() -> None:
    asked: list[str] = []

    def check_url(url: str, field: str) -> list[Violation]:
        asked.append(url)
        return [Violation(field, "is odd", "URL_INVALID")]

    door = Converter(TargetChecks(check_url, TAKES_ALL.headers), body_bytes_max=10)
    for _ in range(2):
        with pytest.raises(InvalidArgument, match=r"job\.http_target\.url: is odd"):
            door.prepare(good_job(), NOW)
    assert asked == ["https://example.com/hook"]


# --- updates ---------------------------------------------------------------------------------


def merged(change: job_pb2.Job, *paths: str) -> job_pb2.Job:
    stored = recurring()
    stored.labels.update({"team": "a", "tier": "1"})
    stored.retry_policy.max_attempts = 9
    stored.retry_policy.max_doublings = 3
    stored.description = "before"
    spec = converter().prepare(stored, NOW).spec
    usable = usable_paths(paths, change, SPEC_FIELDS)
    return parse_spec(converter().merge(spec, change, usable, NOW).spec)


def test_without_a_mask_what_is_set_changes() -> None:
    after = merged(job_pb2.Job(description="after", etag="x", uid="y"))
    assert after.description == "after"
    assert after.retry_policy.max_attempts == 9


def test_a_path_changes_one_field() -> None:
    change = job_pb2.Job(description="after")
    change.retry_policy.max_attempts = 2
    after = merged(change, "retry_policy.max_attempts")
    assert (after.retry_policy.max_attempts, after.retry_policy.max_doublings) == (2, 3)
    assert after.description == "before"


@pytest.mark.parametrize(
    ("path", "read", "default"),
    [
        ("retry_policy", "retry_policy.max_attempts", 5),
        ("retry_policy.max_attempts", "retry_policy.max_attempts", 5),
        ("retry_policy.max_doublings", "retry_policy.max_doublings", 16),
        ("description", "description", ""),
        ("labels", "labels", {}),
        ("labels.team", "labels", {"tier": "1"}),
    ],
)
def test_a_path_that_is_not_set_goes_back_to_its_default(
    path: str, read: str, default: object
) -> None:
    assert attrgetter(read)(merged(job_pb2.Job(), path)) == default


def test_one_label_changes() -> None:
    change = job_pb2.Job(labels={"team": "b", "other": "c"})
    assert dict(merged(change, "labels.team").labels) == {"team": "b", "tier": "1"}


def test_a_schedule_of_another_kind_replaces_the_old_one() -> None:
    change = job_pb2.Job()
    change.schedule.once.delay.seconds = 5
    after = merged(change, "schedule")
    assert after.schedule.once.scheduled_time.seconds == NOW // 1000 + 5


def test_a_star_replaces_everything() -> None:
    after = merged(good_job(), "*")
    assert after.SerializeToString(deterministic=True) == converter().prepare(good_job(), NOW).spec


def test_a_repeated_field_is_replaced() -> None:
    change = job_pb2.Job()
    change.http_target.headers.add(name="a", value="b")
    after = merged(change, "http_target.headers")
    assert [(header.name, header.value) for header in after.http_target.headers] == [("a", "b")]
    assert after.http_target.url == "https://example.com/hook"


def test_output_only_paths_are_ignored() -> None:
    assert usable_paths(["state", "name", "description"], job_pb2.Job(), SPEC_FIELDS) == [
        "description"
    ]


def test_a_star_stands_alone() -> None:
    with pytest.raises(InvalidArgument, match="stands alone"):
        usable_paths(["*", "description"], job_pb2.Job(), SPEC_FIELDS)


def test_what_a_merge_makes_is_checked() -> None:
    with pytest.raises(InvalidArgument, match=r"job\.schedule"):
        merged(job_pb2.Job(), "schedule")


# --- memory ----------------------------------------------------------------------------------


def resident_bytes() -> int:
    """Of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_bodies_of_jobs_of_one_shape_do_not_pile_up() -> None:
    """200 MB of bodies go through one shape. A message keeps all that was ever put into it."""
    known, body = converter(), b"x" * 200_000
    for _ in range(20):
        known.prepare(with_body(body), NOW)
    before = resident_bytes()
    specs = {len(known.prepare(with_body(body), NOW).spec) for _ in range(1_000)}
    assert specs == {len(converter().prepare(with_body(body), NOW).spec)}
    assert resident_bytes() - before < 20_000_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_shape_does_not_hold_the_request_it_came_with() -> None:
    """A hundred batches of 2 MB bring a new shape each."""
    known = converter()
    before = resident_bytes()
    for number in range(100):
        batch = job_service_pb2.BatchCreateJobsRequest()
        for _ in range(10):
            batch.requests.add().job.CopyFrom(with_body(b"x" * 200_000))
        job = batch.requests[0].job
        job.http_target.url = f"https://example.com/{number}"
        known.prepare(job, NOW)
    assert resident_bytes() - before < 60_000_000


def with_body(body: bytes) -> job_pb2.Job:
    job = good_job()
    job.http_target.body = body
    return job
