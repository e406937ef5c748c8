"""Spec: the stored message becomes the machine's `Spec`, whole milliseconds, nothing lost."""

import pytest
from tests.unit.shard_kit import (
    HOUR,
    NOW,
    SECOND,
    cron,
    duration,
    every,
    once,
    spec_message,
    timestamp,
)

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
from tickwheel.server.spec import (
    CACHED_BYTES_MAX,
    decode_spec,
    encode_spec,
    parse_spec,
    schedule_of,
    spec_of,
)
from tickwheel.v1 import schedule_pb2, target_pb2


def test_every_field_arrives() -> None:
    job = spec_message(
        every(90 * SECOND + 250, NOW + 1),
        overlap=OverlapPolicy.BUFFER_ONE,
        misfire=MisfirePolicy.ALL,
        misfire_max=7,
        catchup_window_ms=HOUR + 1,
        expire_after_ms=2 * HOUR,
        max_executions=5,
        jitter_ms=1_500,
        max_attempts=4,
        max_retry_duration_ms=9 * HOUR,
        end_ms=NOW + HOUR,
    )
    job.window.start_time.CopyFrom(timestamp(NOW))
    job.window.excluded_dates.append("2027-02-01")
    job.window.excluded_times.append(timestamp(NOW + 5))
    target = job.http_target
    target.headers.append(target_pb2.Header(name="X-A", value="1"))
    target.body = b"{}"
    target.max_redirects = 2
    target.succeed_on.append(target_pb2.StatusRange(low=200, high=204))
    target.retry_on.append(target_pb2.StatusRange(low=500, high=599))
    assert spec_of(job) == Spec(
        schedule=Every(90_250, NOW + 1),
        target=HttpTarget(
            url="http://127.0.0.1/hook",
            method="POST",
            headers=(("X-A", "1"),),
            body=b"{}",
            timeout_ms=30_000,
            max_redirects=2,
            success=((200, 204),),
            retry_on=((500, 599),),
        ),
        window=Window(NOW, NOW + HOUR, frozenset({"2027-02-01"}), frozenset({NOW + 5})),
        max_executions=5,
        jitter_ms=1_500,
        misfire=MisfirePolicy.ALL,
        misfire_max=7,
        catchup_window_ms=HOUR + 1,
        expire_after_ms=2 * HOUR,
        overlap=OverlapPolicy.BUFFER_ONE,
        retry=RetryPolicy(4, 9 * HOUR, 1_000, 300_000, 16),
        delivery=Delivery.AT_LEAST_ONCE,
        retention_ms=86_400_000,
        retention_count=1_000,
    )


def test_once_is_an_instant_or_a_civil_time() -> None:
    assert schedule_of(once(NOW + 1)) == Once(NOW + 1)
    civil = schedule_pb2.Once(
        civil_time="2027-03-28T02:30:00",
        time_zone="Europe/Berlin",
        dst_gap=schedule_pb2.DST_GAP_SKIP,
        dst_overlap=schedule_pb2.DST_OVERLAP_SECOND,
    )
    assert schedule_of(schedule_pb2.Schedule(once=civil)) == Once(
        0, "2027-03-28T02:30:00", "Europe/Berlin", DstGap.SKIP, DstOverlap.SECOND
    )


def test_cron_says_its_dialect_and_zone() -> None:
    assert schedule_of(cron("0 9 * * MON", "Asia/Tokyo")) == Cron(
        "0 9 * * MON",
        "Asia/Tokyo",
        CronDialect.FIVE_FIELDS,
        DstGap.FIRE_AFTER,
        DstOverlap.FIRST,
    )


def test_a_schedule_of_a_newer_version_is_not_guessed_at() -> None:
    with pytest.raises(AssertionError, match="newer node"):
        schedule_of(schedule_pb2.Schedule())


def test_no_window_is_an_open_one() -> None:
    assert spec_of(spec_message(every(HOUR))).window == Window()


def test_equal_specs_are_equal_bytes_whatever_the_order_of_labels() -> None:
    one = spec_message(every(HOUR), labels={"a": "1", "b": "2"})
    two = spec_message(every(HOUR), labels={"b": "2", "a": "1"})
    assert encode_spec(one) == encode_spec(two)


def test_small_specs_are_decoded_once_and_large_ones_each_time() -> None:
    small, large = spec_message(every(HOUR)), spec_message(every(HOUR))
    large.http_target.body = bytes(CACHED_BYTES_MAX)
    for job, cached in ((small, True), (large, False)):
        data = encode_spec(job)
        assert (decode_spec(data) is decode_spec(bytes(data))) == cached
        assert decode_spec(data) == spec_of(job)


def test_a_parsed_spec_is_the_callers_own() -> None:
    data = encode_spec(spec_message(every(HOUR)))
    parsed = parse_spec(data)
    parsed.jitter.CopyFrom(duration(5))
    assert decode_spec(data).jitter_ms == 0
    assert encode_spec(parse_spec(data)) == data
