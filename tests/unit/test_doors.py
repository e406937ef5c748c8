"""JobService behind its transport: what each method asks of the scheduler, and how it answers."""

from typing import Any

import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from tests.bad_input import JOB, PARENT, good_create, good_job
from tests.door import Door, create
from tests.fake_scheduler import NOW_MS

from tickwheel.internal.v1.unread_pb2 import UnreadBatch
from tickwheel.server.api import limits, names
from tickwheel.server.command import Create, Redrive, Run, etag
from tickwheel.server.errors import (
    Aborted,
    AlreadyExists,
    InvalidArgument,
    NotFound,
)
from tickwheel.server.model import (
    Attempt,
    Execution,
    ExecutionKind,
    ExecutionState,
    JobState,
    Reason,
)
from tickwheel.server.query import GroupBy, Grouping, Range
from tickwheel.server.schedule import DropReason, Note
from tickwheel.v1 import execution_pb2, job_pb2
from tickwheel.v1 import job_service_pb2 as pb


@pytest.fixture
def door() -> Door:
    return Door()


# --- creates ---------------------------------------------------------------------------------


async def test_a_create_answers_with_the_job(door: Door) -> None:
    job = await create(door)
    assert (job.name, job.generation, job.etag) == (JOB, 1, f'"{NOW_MS:x}.1.1"')
    assert job.state == job_pb2.JOB_STATE_SCHEDULED
    assert job.next_time.seconds == 4_000_000_000
    assert job.create_time.seconds == NOW_MS // 1_000
    assert not job.HasField("last_time")
    assert len(job.uid) == 32


async def test_the_same_create_answers_with_the_same_job(door: Door) -> None:
    assert await create(door) == await create(door)


async def test_other_content_under_the_same_name_is_refused(door: Door) -> None:
    await create(door)
    request = good_create()
    request.job.description = "other"
    with pytest.raises(AlreadyExists):
        await door("CreateJob", request)


async def test_without_a_job_id_the_request_id_names_the_job(door: Door) -> None:
    first = pb.CreateJobRequest(parent=PARENT, job=good_job(), request_id="a")
    again = pb.CreateJobRequest(parent=PARENT, job=good_job(), request_id="a")
    other = pb.CreateJobRequest(parent=PARENT, job=good_job(), request_id="b")
    jobs = [await door("CreateJob", request) for request in (first, again, other)]
    assert jobs[0].name == jobs[1].name != jobs[2].name
    assert jobs[0].name == f"{PARENT}/jobs/{names.generated_job_id('acme', 'a')}"
    assert [
        command.fresh for command in door.scheduler.commands if isinstance(command, Create)
    ] == [
        False,
        False,
        False,
    ]


def test_a_generated_name_never_changes() -> None:
    # base32(sha256("acme/a")[:20]): other languages compute it too.
    assert names.generated_job_id("acme", "a") == "r-ra5bjmz7dvxrsv625424vd5nnbqxxeat"
    assert names.valid_part(names.generated_job_id("acme", "a"))
    assert names.generated_job_id("a", "b") != names.generated_job_id("b", "a")


async def test_without_any_id_the_name_is_random_and_fresh(door: Door) -> None:
    request = pb.CreateJobRequest(parent=PARENT, job=good_job())
    await door("CreateJob", request)
    (command,) = door.scheduler.commands
    assert isinstance(command, Create)
    assert command.fresh
    assert names.valid_part(command.name)
    assert names.random_job_id() != names.random_job_id()


async def test_validate_only_is_passed_on(door: Door) -> None:
    request = good_create()
    request.validate_only = True
    job = await door("CreateJob", request)
    assert job.name == JOB
    assert not door.scheduler.jobs


async def test_a_batch_answers_in_order(door: Door) -> None:
    bad = good_create()
    bad.job.ClearField("schedule")
    other = good_create()
    other.parent = "namespaces/other"
    taken = good_create()
    taken.job.description = "other content"
    batch = pb.BatchCreateJobsRequest(parent=PARENT, requests=[bad, good_create(), other, taken])
    batch.requests[1].parent = ""
    response = await door("BatchCreateJobs", batch)
    kinds = [result.WhichOneof("result") for result in response.results]
    assert kinds == ["error", "handle", "error", "error"]
    assert response.results[1].handle.name == JOB
    assert response.results[1].handle.next_time.seconds == 4_000_000_000
    assert "job.schedule" in response.results[0].error.message
    assert "parent" in response.results[2].error.message
    assert response.results[3].error.message == "other content"


async def test_a_batch_can_answer_with_jobs(door: Door) -> None:
    request = good_create()
    request.job.http_target.body = b"secret"
    batch = pb.BatchCreateJobsRequest(parent=PARENT, requests=[request], view=pb.BATCH_VIEW_JOBS)
    (result,) = (await door("BatchCreateJobs", batch)).results
    assert result.job.name == JOB
    assert not result.job.http_target.body


@pytest.mark.parametrize(
    ("junk", "reason"), [(b"\xfa\x7f\x01x", "FIELD_UNKNOWN"), (b"\xff", "MESSAGE_MALFORMED")]
)
async def test_a_job_that_can_not_be_read_costs_the_others_nothing(
    door: Door, junk: bytes, reason: str
) -> None:
    """Also among jobs of one shape, which are known by their bytes."""
    creates = [good_create() for _ in range(4)]
    for number, create_ in enumerate(creates):
        create_.job_id = f"j{number}"
    batch = UnreadBatch.FromString(
        pb.BatchCreateJobsRequest(parent=PARENT, requests=creates).SerializeToString()
    )
    batch.requests[2].job += junk
    response = await door("BatchCreateJobs", batch)
    kinds = [result.WhichOneof("result") for result in response.results]
    assert kinds == ["handle", "handle", "error", "handle"]
    info = ErrorInfo()
    assert response.results[2].error.details[0].Unpack(info)
    assert info.reason == reason


async def test_a_batch_of_only_bad_requests_asks_nothing(door: Door) -> None:
    batch = pb.BatchCreateJobsRequest(parent=PARENT, requests=[pb.CreateJobRequest()] * 200)
    door.scheduler.fault = AssertionError("asked")
    response = await door("BatchCreateJobs", batch)
    assert len(response.results) == 200


# --- reads -----------------------------------------------------------------------------------


async def test_views(door: Door) -> None:
    request = good_create()
    request.job.http_target.body = b"body"
    request.job.http_target.headers.add(name="authorization", value="secret")
    await door("CreateJob", request)
    full = await door("GetJob", pb.GetJobRequest(name=JOB))
    basic = await door("GetJob", pb.GetJobRequest(name=JOB, view=job_pb2.JOB_VIEW_BASIC))
    (listed,) = (await door("ListJobs", pb.ListJobsRequest(parent=PARENT))).jobs
    assert full.http_target.body == b"body"
    assert full.http_target.headers[0].value == "secret"
    assert basic.http_target.headers[0].name == "authorization"
    assert not basic.http_target.headers[0].value
    assert not basic.http_target.body
    assert listed == basic
    (listed,) = (
        await door("ListJobs", pb.ListJobsRequest(parent=PARENT, view=job_pb2.JOB_VIEW_FULL))
    ).jobs
    assert listed == full


async def test_a_job_that_is_over_has_no_next_time(door: Door) -> None:
    await create(door)
    view = door.scheduler.jobs["acme", "nightly"]
    status = view.status._replace(
        state=JobState.COMPLETED,
        last_ms=5_000,
        last_outcome=5,
        run=1,
        failed=1,
        succeeded=2,
        skipped=3,
    )
    door.scheduler.jobs["acme", "nightly"] = view._replace(status=status, running=4)
    job = await door("GetJob", pb.GetJobRequest(name=JOB))
    assert not job.HasField("next_time")
    assert job.last_time.seconds == 5
    assert job.last_outcome == execution_pb2.EXECUTION_STATE_FAILED
    counts = (job.started_count, job.succeeded_count, job.failed_count, job.skipped_count)
    assert (*counts, job.running_count) == (1, 2, 1, 3, 4)


async def test_pages_follow_each_other(door: Door) -> None:
    for number in range(5):
        await create(door, f"job-{number}")
    seen: list[str] = []
    token = ""
    page = pb.ListJobsResponse()
    for _ in range(3):
        page = await door(
            "ListJobs", pb.ListJobsRequest(parent=PARENT, page_size=2, page_token=token)
        )
        seen += [job.name for job in page.jobs]
        token = page.next_page_token
    assert seen == [f"{PARENT}/jobs/job-{number}" for number in range(5)]
    assert token == ""
    assert page.read_time.seconds == NOW_MS // 1_000


async def test_a_token_belongs_to_its_request(door: Door) -> None:
    await create(door)
    page = await door("ListJobs", pb.ListJobsRequest(parent=PARENT, page_size=1))
    request = pb.ListJobsRequest(
        parent=PARENT, page_token=page.next_page_token, filter="state = PAUSED"
    )
    with pytest.raises(InvalidArgument) as raised:
        await door("ListJobs", request)
    assert raised.value.reason == "PAGE_TOKEN_MISMATCH"


async def test_a_page_that_grows_too_large_ends_early(door: Door) -> None:
    request = good_create()
    request.job.http_target.body = bytes(limits.BODY_BYTES_MAX)
    size = len(request.SerializeToString())
    for number in range(20):
        request.job_id = f"job-{number:02}"
        await door("CreateJob", pb.CreateJobRequest.FromString(request.SerializeToString()))
    seen: list[str] = []
    token = "first"
    pages = 0
    while token:
        token = "" if token == "first" else token
        listing = pb.ListJobsRequest(parent=PARENT, view=job_pb2.JOB_VIEW_FULL, page_token=token)
        page = await door("ListJobs", listing)
        assert page.ByteSize() <= limits.PAGE_BYTES_MAX + size
        seen += [job.name for job in page.jobs]
        token = page.next_page_token
        pages += 1
    assert seen == [f"{PARENT}/jobs/job-{number:02}" for number in range(20)]
    assert pages > 1


async def test_a_list_asks_the_query_of_its_filter(door: Door) -> None:
    await door(
        "ListJobs", pb.ListJobsRequest(parent="namespaces/-", filter="state = PAUSED", page_size=5)
    )
    (query,) = door.scheduler.job_queries
    assert (query.namespace, query.states, query.limit, query.after) == ("", (2,), 5, None)


@pytest.mark.parametrize(
    ("request_", "grouping", "counts", "keys"),
    [
        (pb.CountJobsRequest(), Grouping(), {0: 3}, [(None, 3)]),
        (
            pb.CountJobsRequest(group_by=pb.COUNT_GROUPING_STATE),
            Grouping(GroupBy.STATE),
            {2: 1, 1: 5, 3: 0},
            [(1, 5), (2, 1)],
        ),
        (
            pb.CountJobsRequest(group_by=pb.COUNT_GROUPING_LAST_OUTCOME),
            Grouping(GroupBy.LAST_OUTCOME),
            {0: 1, 5: 2},
            [(0, 1), (5, 2)],
        ),
        (
            pb.CountJobsRequest(group_by=pb.COUNT_GROUPING_LABEL, label_key="team"),
            Grouping(GroupBy.LABEL, label="team"),
            {"b": 1, "a": 2, "": 9},
            [("a", 2), ("b", 1)],
        ),
        (
            pb.CountJobsRequest(group_by=pb.COUNT_GROUPING_NEXT_TIME),
            Grouping(GroupBy.NEXT_TIME, bucket_ms=3_600_000),
            {7_200_000: 2, 0: 9, 3_600_000: 1},
            [(3_600, 1), (7_200, 2)],
        ),
    ],
)
async def test_counts(
    door: Door,
    request_: pb.CountJobsRequest,
    grouping: Grouping,
    counts: dict[int | str, int],
    keys: list[tuple[object, int]],
) -> None:
    request_.parent = PARENT
    door.scheduler.counts = counts
    response = await door("CountJobs", request_)
    found: list[tuple[object, int]] = []
    for count in response.counts:
        kind = count.WhichOneof("key")
        key: Any = getattr(count, kind) if kind else None
        found.append((key.seconds if kind == "bucket_time" else key, count.count))
    assert found == keys
    assert door.scheduler.groupings == [grouping]


async def test_too_many_groups_are_refused(door: Door) -> None:
    door.scheduler.counts = {f"v{number}": 1 for number in range(1_001)}
    request = pb.CountJobsRequest(parent=PARENT, group_by=pb.COUNT_GROUPING_LABEL, label_key="a")
    with pytest.raises(InvalidArgument) as raised:
        await door("CountJobs", request)
    assert raised.value.reason == "TOO_MANY_GROUPS"


# --- changes ---------------------------------------------------------------------------------


async def test_an_update_changes_and_answers(door: Door) -> None:
    job = await create(door)
    change = job_pb2.Job(name=JOB, description="after", etag=job.etag)
    response = await door("UpdateJob", pb.UpdateJobRequest(job=change))
    assert response.job.description == "after"
    assert response.job.generation == 2
    assert response.cancellation == pb.CANCELLATION_CANCELLED_BEFORE_DISPATCH


async def test_an_update_with_an_old_etag_is_refused(door: Door) -> None:
    await create(door)
    change = job_pb2.Job(name=JOB, description="after", etag='"0.1"')
    with pytest.raises(Aborted):
        await door("UpdateJob", pb.UpdateJobRequest(job=change))


async def test_an_update_makes_a_missing_job_when_allowed(door: Door) -> None:
    job = good_job()
    job.name = JOB
    with pytest.raises(NotFound):
        await door("UpdateJob", pb.UpdateJobRequest(job=job))
    response = await door("UpdateJob", pb.UpdateJobRequest(job=job, allow_missing=True))
    assert response.job.name == JOB
    assert ("acme", "nightly") in door.scheduler.jobs


async def test_an_update_can_be_tried(door: Door) -> None:
    await create(door)
    change = job_pb2.Job(name=JOB, description="after")
    await door("UpdateJob", pb.UpdateJobRequest(job=change, validate_only=True))
    assert not (await door("GetJob", pb.GetJobRequest(name=JOB))).description


async def test_pause_resume_cancel_delete(door: Door) -> None:
    await create(door)
    paused = await door("PauseJob", pb.PauseJobRequest(name=JOB))
    assert paused.state == job_pb2.JOB_STATE_PAUSED
    assert paused.HasField("next_time")
    resumed = await door("ResumeJob", pb.ResumeJobRequest(name=JOB, etag=paused.etag))
    assert resumed.state == job_pb2.JOB_STATE_SCHEDULED
    cancelled = await door("CancelJob", pb.CancelJobRequest(name=JOB))
    assert cancelled.job.state == job_pb2.JOB_STATE_CANCELLED
    assert cancelled.cancellation == pb.CANCELLATION_ALREADY_DISPATCHED
    assert cancelled.attempt == 3
    await door("DeleteJob", pb.DeleteJobRequest(name=JOB))
    with pytest.raises(NotFound):
        await door("DeleteJob", pb.DeleteJobRequest(name=JOB))
    await door("DeleteJob", pb.DeleteJobRequest(name=JOB, allow_missing=True))


# --- executions ------------------------------------------------------------------------------


async def test_a_run_answers_with_its_execution(door: Door) -> None:
    job = await create(door)
    execution = await door("RunJob", pb.RunJobRequest(name=JOB, request_id="now"))
    assert execution.name == f"{JOB}/executions/{job.uid}:r:now"
    assert execution.kind == execution_pb2.EXECUTION_KIND_MANUAL
    assert execution.request_id == "now"
    again = await door("GetExecution", pb.GetExecutionRequest(name=execution.name))
    assert again == execution


async def test_a_run_without_a_request_id_gets_a_new_one(door: Door) -> None:
    await create(door)
    for _ in range(2):
        await door("RunJob", pb.RunJobRequest(name=JOB))
    ids = [command.request_id for command in door.scheduler.commands if isinstance(command, Run)]
    assert len(set(ids)) == 2


def _failed() -> Execution:
    attempts = tuple(
        Attempt(number, 7, 1, NOW_MS + 10 * number, NOW_MS + 10 * number + 5, 500, "", b"no")
        for number in (1, 2)
    )
    return Execution(
        1, bytes(16), "acme", "nightly", ExecutionKind.OCCURRENCE, NOW_MS, "", ExecutionState.FAILED,
        NOW_MS, 0, NOW_MS + 25, 2, 0, NOW_MS + 10, Reason.ATTEMPTS_EXHAUSTED, attempts=attempts,
    )  # fmt: skip


async def test_executions_are_listed_with_their_last_attempt(door: Door) -> None:
    door.scheduler.executions = [_failed(), _failed()._replace(scheduled_ms=NOW_MS + 60_000)]
    request = pb.ListExecutionsRequest(parent=JOB, page_size=1, filter="state = FAILED")
    page = await door("ListExecutions", request)
    (execution,) = page.executions
    assert execution.name == f"{JOB}/executions/{'00' * 16}:{NOW_MS}"
    assert [attempt.number for attempt in execution.attempts] == [2]
    assert execution.attempt_count == 2
    assert execution.reason == execution_pb2.REASON_ATTEMPTS_EXHAUSTED
    assert not execution.HasField("next_attempt_time")
    assert not execution.HasField("skip_run")
    request.page_token = page.next_page_token
    page = await door("ListExecutions", request)
    assert page.executions[0].scheduled_time.ToMilliseconds() == NOW_MS + 60_000
    query = door.scheduler.execution_queries[0]
    assert (query.namespace, query.job, query.states, query.limit) == ("acme", "nightly", (5,), 1)


async def test_executions_of_all_jobs(door: Door) -> None:
    filter_ = "scheduled_time >= 2026-03-29T00:00:00Z"
    request = pb.ListExecutionsRequest(parent=f"{PARENT}/jobs/-", filter=filter_, consistent=True)
    page = await door("ListExecutions", request)
    (query,) = door.scheduler.execution_queries
    assert (query.namespace, query.job) == ("acme", "")
    assert query.scheduled == Range(1_774_742_400_000)
    assert page.read_time.nanos == 1_000_000


async def test_a_page_of_large_executions_ends_early(door: Door) -> None:
    attempt = Attempt(1, 7, 1, NOW_MS, NOW_MS, 500, "", bytes(4_096))
    door.scheduler.executions = [_failed()._replace(attempts=(attempt,))] * 1_000
    request = pb.ListExecutionsRequest(parent=JOB, page_size=1_000)
    page = await door("ListExecutions", request)
    assert page.ByteSize() <= limits.PAGE_BYTES_MAX + 8_192
    assert page.next_page_token
    request.page_token = page.next_page_token
    rest = await door("ListExecutions", request)
    assert len(page.executions) + len(rest.executions) == 1_000


async def test_a_run_of_skipped_occurrences_is_one_record(door: Door) -> None:
    skipped = _failed()._replace(
        state=ExecutionState.SKIPPED,
        reason=Reason.OVERLAP,
        last_ms=NOW_MS + 5_000,
        length=6,
        attempts=(),
    )
    door.scheduler.executions = [skipped]
    (execution,) = (await door("ListExecutions", pb.ListExecutionsRequest(parent=JOB))).executions
    assert execution.skip_run.count == 6
    assert execution.skip_run.first_time.ToMilliseconds() == NOW_MS
    assert execution.skip_run.last_time.ToMilliseconds() == NOW_MS + 5_000
    assert execution.skip_run.reason == execution_pb2.REASON_OVERLAP


async def test_an_execution_that_waits_says_for_when(door: Door) -> None:
    waiting = _failed()._replace(state=ExecutionState.RETRYING, end_ms=0, due_ms=NOW_MS + 9_000)
    running = waiting._replace(state=ExecutionState.RUNNING, due_ms=0, first_attempt_ms=0)
    door.scheduler.executions = [waiting, running]
    page = await door("ListExecutions", pb.ListExecutionsRequest(parent=JOB))
    first, second = page.executions
    assert first.next_attempt_time.ToMilliseconds() == NOW_MS + 9_000
    assert first.start_time.ToMilliseconds() == NOW_MS + 10
    for name in ("next_attempt_time", "start_time", "end_time"):
        assert not second.HasField(name)


async def test_a_job_without_a_next_time_gets_a_handle_without_one(door: Door) -> None:
    await create(door)
    view = door.scheduler.jobs["acme", "nightly"]
    status = view.status._replace(state=JobState.COMPLETED)
    door.scheduler.jobs["acme", "nightly"] = view._replace(status=status)
    batch = pb.BatchCreateJobsRequest(parent=PARENT, requests=[good_create()])
    (result,) = (await door("BatchCreateJobs", batch)).results
    assert not result.handle.HasField("next_time")


async def test_a_retry_gives_a_new_budget(door: Door) -> None:
    await create(door)
    door.scheduler.executions = [_failed()]
    name = f"{JOB}/executions/{_failed().id}"
    execution = await door(
        "RetryExecution", pb.RetryExecutionRequest(name=name, request_id="again")
    )
    assert execution.state == execution_pb2.EXECUTION_STATE_PENDING
    assert len(execution.attempts) == 2
    command = door.scheduler.commands[-1]
    assert command == Redrive("acme", "nightly", 0, "again")


def test_numbers_of_enums_are_those_of_the_api() -> None:
    for kind, prefix, enum in (
        (JobState, "JOB_STATE", job_pb2.JobState),
        (ExecutionState, "EXECUTION_STATE", execution_pb2.ExecutionState),
        (ExecutionKind, "EXECUTION_KIND", execution_pb2.ExecutionKind),
        (GroupBy, "COUNT_GROUPING", pb.CountGrouping),
        (Note, "DST_NOTE", pb.DstNote),
        (DropReason, "DROP_REASON", pb.DropReason),
    ):
        known = {f"{prefix}_{member.name}": int(member) for member in kind if int(member)}
        assert known == {name: number for name, number in enum.items() if number}
    reasons = {f"REASON_{r.name}": int(r) for r in Reason if r != Reason.NONE}
    assert reasons == {name: number for name, number in execution_pb2.Reason.items() if number}


async def test_an_etag_is_what_the_scheduler_compares(door: Door) -> None:
    job = await create(door)
    assert job.etag == etag(door.scheduler.jobs["acme", "nightly"].status)
