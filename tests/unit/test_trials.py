"""ValidateJob and PreviewSchedule: calls that change nothing."""

import pytest
from tests.bad_input import JOB, PARENT, good_create, good_job
from tests.door import Door, create
from tests.fake_scheduler import NOW_MS

from tickwheel.server.errors import (
    NotFound,
)
from tickwheel.server.schedule import jitter
from tickwheel.v1 import job_service_pb2 as pb
from tickwheel.v1 import schedule_pb2


@pytest.fixture
def door() -> Door:
    return Door()


# --- validation ------------------------------------------------------------------------------


async def test_a_sound_job_meets_all_criteria(door: Door) -> None:
    request = pb.ValidateJobRequest(parent=PARENT, job_id="nightly", job=good_job())
    response = await door("ValidateJob", request)
    assert response.valid
    fields = [criterion.field for criterion in response.criteria]
    assert "schedule.once.scheduled_time" in fields
    assert "schedule.cron.expression" not in fields
    assert "http_target.url" in fields
    assert ("job_id", "ALREADY_EXISTS") in {(c.field, c.reason) for c in response.criteria}
    assert not door.scheduler.jobs


async def test_what_is_wrong_is_told_with_what_is_right(door: Door) -> None:
    job = good_job()
    job.http_target.method = "FETCH"
    job.labels["Team"] = "a"
    job.flow_control.max_concurrent = 1
    response = await door("ValidateJob", pb.ValidateJobRequest(parent=PARENT, job_id="A", job=job))
    assert not response.valid
    unmet = [(c.field, c.reason) for c in response.criteria if not c.met]
    assert unmet == [
        ("http_target.method", "METHOD"),
        ("labels[Team]", "LABEL_KEY"),
        ("job_id", "JOB_ID_INVALID"),
        ("flow_control", "NOT_YET_SUPPORTED"),
    ]
    assert any(c.met and c.field == "http_target.url" for c in response.criteria)


async def test_a_name_that_is_taken_and_a_job_that_never_fires(door: Door) -> None:
    await create(door)
    job = good_job()
    job.description = "other"
    request = pb.ValidateJobRequest(parent=PARENT, job_id="nightly", job=job)
    response = await door("ValidateJob", request)
    assert [(c.field, c.reason) for c in response.criteria if not c.met] == [
        ("job_id", "ALREADY_EXISTS")
    ]
    job = good_job()
    job.window.end_time.seconds = 5
    response = await door("ValidateJob", pb.ValidateJobRequest(parent=PARENT, job=job))
    assert [(c.field, c.reason) for c in response.criteria if not c.met] == [
        ("window", "NEVER_FIRES")
    ]


async def test_a_time_that_has_passed(door: Door) -> None:
    job = good_job()
    job.schedule.once.scheduled_time.seconds = 5
    response = await door("ValidateJob", pb.ValidateJobRequest(parent=PARENT, job=job))
    unmet = [(c.field, c.reason) for c in response.criteria if not c.met]
    assert unmet == [("schedule.once", "PAST_TIME")]


# --- previews --------------------------------------------------------------------------------


def _daily(request: pb.PreviewScheduleRequest, gap: schedule_pb2.DstGap.ValueType) -> None:
    cron = request.schedule.cron
    cron.expression, cron.time_zone, cron.dst_gap = "30 2 * * *", "Europe/Berlin", gap


async def test_a_preview_shows_what_daylight_saving_does(door: Door) -> None:
    request = pb.PreviewScheduleRequest(parent=PARENT, count=2)
    _daily(request, schedule_pb2.DST_GAP_FIRE_AFTER)
    request.after_time.FromJsonString("2026-03-28T12:00:00Z")
    request.jitter.seconds = 30
    response = await door("PreviewSchedule", request)
    shown = [(o.local_time, o.utc_offset, o.dst_note) for o in response.occurrences]
    assert shown == [
        ("2026-03-29T03:00:00", "+02:00", pb.DST_NOTE_MOVED_AFTER_GAP),
        ("2026-03-30T02:30:00", "+02:00", pb.DST_NOTE_UNSPECIFIED),
    ]
    first = response.occurrences[0]
    assert first.scheduled_time.ToJsonString() == "2026-03-29T01:00:00Z"
    assert first.latest_due_time.ToJsonString() == "2026-03-29T01:00:30Z"
    assert response.tzdata_version


async def test_a_preview_names_what_is_dropped(door: Door) -> None:
    request = pb.PreviewScheduleRequest(parent=PARENT, count=2)
    _daily(request, schedule_pb2.DST_GAP_SKIP)
    request.window.excluded_dates.append("2026-03-30")
    request.after_time.FromJsonString("2026-03-28T12:00:00Z")
    response = await door("PreviewSchedule", request)
    assert [o.local_time for o in response.occurrences] == [
        "2026-03-31T02:30:00",
        "2026-04-01T02:30:00",
    ]
    assert [(d.local_time, d.reason) for d in response.dropped] == [
        ("2026-03-29T02:30:00", pb.DROP_REASON_DST_GAP),
        ("2026-03-30T02:30:00", pb.DROP_REASON_EXCLUDED),
    ]


async def test_a_preview_of_a_job_is_exact(door: Door) -> None:
    request = good_create()
    request.job.schedule.every.period.seconds = 3_600
    request.job.jitter.seconds = 60
    await door("CreateJob", request)
    response = await door("PreviewSchedule", pb.PreviewScheduleRequest(parent=PARENT, job=JOB))
    uid = door.scheduler.jobs["acme", "nightly"].job.uid
    assert len(response.occurrences) == 10
    for hour, occurrence in enumerate(response.occurrences, 1):
        ms = NOW_MS + hour * 3_600_000
        assert occurrence.scheduled_time.ToMilliseconds() == ms
        assert occurrence.latest_due_time.ToMilliseconds() == ms + jitter(uid, ms, 60_000)
        assert occurrence.utc_offset == "+00:00"


async def test_a_preview_may_run_out(door: Door) -> None:
    request = pb.PreviewScheduleRequest(parent=PARENT, count=1_000)
    request.schedule.once.scheduled_time.seconds = 4_000_000_000
    response = await door("PreviewSchedule", request)
    assert len(response.occurrences) == 1
    with pytest.raises(NotFound):
        await door("PreviewSchedule", pb.PreviewScheduleRequest(parent=PARENT, job=JOB))
