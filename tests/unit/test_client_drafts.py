"""From a user's words to messages: spans, times, jobs, and the masks of updates."""

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from tickwheel.client import InvalidArgument, Retry, parse_span
from tickwheel.client.drafts import JobOptions, UpdateOptions, change, draft
from tickwheel.client.times import (
    civil,
    from_timestamp,
    parse_instant,
    to_duration,
    to_timestamp,
)
from tickwheel.v1 import job_pb2, schedule_pb2
from tickwheel.v1.target_pb2 import HttpTarget

URL = "https://example.com/hook"
NAME = "namespaces/default/jobs/nightly"


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("90s", timedelta(seconds=90)),
        ("1h30m", timedelta(minutes=90)),
        ("250ms", timedelta(milliseconds=250)),
        ("1.5h", timedelta(minutes=90)),
        ("2d", timedelta(days=2)),
        ("1w", timedelta(weeks=1)),
        (" 5m ", timedelta(minutes=5)),
    ],
)
def test_a_span_is_numbers_with_units(text: str, span: timedelta) -> None:
    assert parse_span(text) == span


@pytest.mark.parametrize("text", ["", "90", "s", "1h 30m", "-5s", "1y", "1e3s", "9" * 80 + "s"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no span of time"):
        parse_span(text)


@pytest.mark.parametrize(
    ("span", "seconds", "nanos"),
    [
        ("1.5s", 1, 500_000_000),
        (timedelta(microseconds=1), 0, 1_000),
        (timedelta(milliseconds=-1_500), -1, -500_000_000),
        (timedelta(days=3650), 3650 * 86_400, 0),
    ],
)
def test_a_duration_is_exact_and_of_one_sign(
    span: timedelta | str, seconds: int, nanos: int
) -> None:
    duration = to_duration(span)
    assert (duration.seconds, duration.nanos) == (seconds, nanos)


def test_an_instant_goes_there_and_back() -> None:
    moment = datetime(2027, 3, 28, 2, 30, 0, 123_456, timezone(timedelta(hours=2)))
    assert from_timestamp(to_timestamp(moment)) == moment
    assert parse_instant("2027-03-28T02:30:00+02:00") == moment.replace(microsecond=0)


def test_a_time_before_the_epoch_has_positive_nanos() -> None:
    stamp = to_timestamp(datetime(1969, 12, 31, 23, 59, 59, 500_000, UTC))
    assert (stamp.seconds, stamp.nanos) == (-1, 500_000_000)


def test_a_time_without_a_zone_is_no_instant() -> None:
    with pytest.raises(ValueError, match="has no zone"):
        to_timestamp(datetime(2027, 1, 1))  # noqa: DTZ001 - the point
    with pytest.raises(ValueError, match="has no offset"):
        parse_instant("2027-01-01T00:00:00")


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "2027-01-01T09:00:00"),
        (1_000, "2027-01-01T09:00:00.001"),
        (1, "2027-01-01T09:00:00.001"),
        (999_001, "2027-01-01T09:00:01"),
    ],
)
def test_a_civil_time_is_rounded_up(micros: int, text: str) -> None:
    assert civil(datetime(2027, 1, 1, 9, 0, 0, micros)) == text  # noqa: DTZ001 - civil


def test_a_delay() -> None:
    job = draft(URL, {"delay": "90s", "body": b"hello"})
    assert job.schedule.once.delay.seconds == 90
    assert (job.http_target.url, job.http_target.body) == (URL, b"hello")


def test_an_instant() -> None:
    at = datetime(2027, 1, 1, tzinfo=UTC)
    job = draft(URL, {"at": at, "past": "fire_now"})
    assert from_timestamp(job.schedule.once.scheduled_time) == at
    assert job.schedule.once.past_policy == schedule_pb2.PAST_POLICY_FIRE_NOW


def test_a_civil_time_stays_civil() -> None:
    once = draft(
        URL, {"at": "2027-03-28T02:30:00", "time_zone": "Europe/Berlin", "dst_gap": "skip"}
    ).schedule.once
    assert (once.civil_time, once.time_zone) == ("2027-03-28T02:30:00", "Europe/Berlin")
    assert once.dst_gap == schedule_pb2.DST_GAP_SKIP


def test_a_cron_with_all_its_options() -> None:
    cron = draft(
        URL,
        {
            "cron": "0 0 9 * * 1-5",
            "time_zone": "Europe/Berlin",
            "seconds": True,
            "dst_overlap": "both",
        },
    ).schedule.cron
    assert (cron.expression, cron.time_zone) == ("0 0 9 * * 1-5", "Europe/Berlin")
    assert cron.dialect == schedule_pb2.CRON_DIALECT_SECONDS_FIRST
    assert cron.dst_overlap == schedule_pb2.DST_OVERLAP_BOTH


def test_a_period_with_an_anchor() -> None:
    anchor = datetime(2027, 1, 1, tzinfo=UTC)
    every = draft(URL, {"every": timedelta(minutes=5), "anchor": anchor}).schedule.every
    assert every.period.seconds == 300
    assert from_timestamp(every.anchor_time) == anchor


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "exactly one of .* none was given"),
        ({"delay": "1s", "cron": "@daily"}, "delay and cron was given"),
        ({"delay": "soon"}, "no span of time"),
        ({"every": "5m", "time_zone": "UTC"}, "time_zone does not go with every"),
        ({"cron": "@daily", "anchor": datetime(2027, 1, 1, tzinfo=UTC)}, "anchor does not go"),
        ({"delay": "1s", "seconds": True}, "seconds does not go with delay"),
        ({"at": "2027-01-01T00:00:00"}, "has no zone"),
        ({"at": "2027-01-01T00:00:00Z", "time_zone": "UTC"}, "has an offset already"),
        ({"at": "tomorrow"}, "Invalid isoformat"),
        ({"delay": "1s", "overlap": "never"}, "OVERLAP_POLICY_NEVER"),
        ({"delay": "1s", "body": {"x": float("nan")}}, "not JSON compliant"),
        ({"delay": "1s", "body": {"x": object()}}, "not JSON serializable"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_it_is_sent(options: JobOptions, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as caught:
        draft(URL, options)
    assert caught.value.reason == "INVALID_OPTION"
    assert not caught.value.from_server


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b"\x00\xff", b"\x00\xff"),
        ("grüße", "grüße".encode()),
        ({"a": [1, "ü"]}, '{"a":[1,"ü"]}'.encode()),
        ([1, 2], b"[1,2]"),
    ],
)
def test_bodies(body: Any, sent: bytes) -> None:
    assert draft(URL, {"delay": "1s", "body": body}).http_target.body == sent


def test_json_says_that_it_is_json_unless_the_user_says_otherwise() -> None:
    plain = draft(URL, {"delay": "1s", "body": {"a": 1}}).http_target.headers
    assert [(h.name, h.value) for h in plain] == [("content-type", "application/json")]
    own = draft(
        URL, {"delay": "1s", "body": {"a": 1}, "headers": {"Content-Type": "application/x"}}
    ).http_target.headers
    assert [(h.name, h.value) for h in own] == [("Content-Type", "application/x")]


def test_headers_keep_their_order_and_duplicates() -> None:
    job = draft(URL, {"delay": "1s", "headers": [("b", "1"), ("a", "2"), ("b", "3")]})
    assert [(h.name, h.value) for h in job.http_target.headers] == [
        ("b", "1"),
        ("a", "2"),
        ("b", "3"),
    ]


EVERYTHING: JobOptions = {
    "every": "1h",
    "start": datetime(2027, 1, 1, tzinfo=UTC),
    "end": datetime(2027, 2, 1, tzinfo=UTC),
    "exclude": [date(2027, 1, 6), datetime(2027, 1, 7, 12, tzinfo=UTC)],
    "method": "put",
    "headers": {"x-a": "1"},
    "body": "text",
    "timeout": "5s",
    "max_redirects": 2,
    "succeed_on": [200, (202, 204)],
    "retry_on": [(500, 599)],
    "signing_secret": "namespaces/default/secrets/s",
    "labels": {"team": "a"},
    "description": "words",
    "retry": Retry(max_attempts=3, max_doublings=0, min_backoff="2s"),
    "overlap": "buffer_one",
    "misfire": "all",
    "catchup_max": 7,
    "catchup_window": "1d",
    "delivery": "at_most_once",
    "expire_after": "10m",
    "jitter": "30s",
    "max_executions": 9,
    "on_success": "https://example.com/ok",
    "on_failure": HttpTarget(url="https://example.com/bad", method="PUT"),
    "flow_key": "k",
    "max_concurrent": 2,
    "per_second": 0.5,
    "keep_executions": 10,
    "keep_for": "2d",
}


def test_every_option_has_its_place() -> None:
    job = draft(URL, EVERYTHING)
    unset = {
        field.name
        for field in job.DESCRIPTOR.fields
        if field.name not in {present.name for present, _ in job.ListFields()}
    }
    target_unset = {field.name for field in job.http_target.DESCRIPTOR.fields} - {
        present.name for present, _ in job.http_target.ListFields()
    }
    output_only = {
        "name", "uid", "etag", "generation", "state", "create_time", "update_time", "next_time",
        "last_time", "last_outcome", "running_count", "started_count", "succeeded_count",
        "failed_count", "skipped_count", "origin",
    }  # fmt: skip
    assert unset == output_only | {"worker_target"}
    assert target_unset == set()
    assert job.http_target.method == "PUT"
    assert [(r.low, r.high) for r in job.http_target.succeed_on] == [(200, 200), (202, 204)]
    assert list(job.window.excluded_dates) == ["2027-01-06"]
    assert len(job.window.excluded_times) == 1
    assert job.retry_policy.HasField("max_doublings")
    assert (job.retry_policy.max_attempts, job.retry_policy.min_backoff.seconds) == (3, 2)
    assert job.misfire.max_count == 7
    assert job.delivery == job_pb2.DELIVERY_AT_MOST_ONCE
    assert job.on_failure.method == "PUT"
    assert job.retention.duration.seconds == 2 * 86_400


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ({"every": "90s"}, ["schedule"]),
        ({"cron": "@daily"}, ["schedule.cron.dialect", "schedule.cron.expression"]),
        (
            {"cron": "@daily", "time_zone": "Europe/Berlin"},
            ["schedule.cron.dialect", "schedule.cron.expression", "schedule.cron.time_zone"],
        ),
        ({"url": URL}, ["http_target.url"]),
        ({"body": {"a": 1}}, ["http_target.body"]),
        ({"body": "x", "headers": {"a": "b"}}, ["http_target.body", "http_target.headers"]),
        ({"labels": {}}, ["labels"]),
        ({"retry": Retry(max_attempts=2)}, ["retry_policy.max_attempts"]),
        ({"exclude": []}, ["window.excluded_dates", "window.excluded_times"]),
        ({"misfire": "skip", "jitter": "1s"}, ["jitter", "misfire.policy"]),
    ],
)
def test_an_update_names_what_it_changes_and_no_more(
    options: UpdateOptions, paths: list[str]
) -> None:
    job, mask = change(NAME, options)
    assert list(mask.paths) == paths
    assert job.name == NAME


def test_every_path_of_an_update_exists() -> None:
    _, mask = change(NAME, {**EVERYTHING, "url": URL})
    assert mask.IsValidForDescriptor(job_pb2.Job.DESCRIPTOR)


def test_a_json_body_leaves_the_headers_of_a_job_alone() -> None:
    job, _ = change(NAME, {"body": {"a": 1}})
    assert job.http_target.body == b'{"a":1}'
    assert not job.http_target.headers


def test_an_update_without_a_target_sets_none() -> None:
    job, _ = change(NAME, {"description": "words"})
    assert not job.HasField("http_target")


def test_no_attempts_are_refused_since_0_would_mean_the_default() -> None:
    with pytest.raises(InvalidArgument, match="1 for no retry"):
        change(NAME, {"retry": Retry(max_attempts=0)})


def test_an_update_that_cannot_be_meant_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no span"):
        change(NAME, {"every": "often"})
