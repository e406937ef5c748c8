"""The asynchronous client against a server whose answers the test writes: errors, repeats, fail-over, lists."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc.status_pb2 import Status
from tests.unit import client_fakes as fakes

from tickwheel import client
from tickwheel.client import AsyncClient, TickwheelError
from tickwheel.client.channel import Links, addresses_of, may_repeat
from tickwheel.client.core import Core
from tickwheel.client.errors import from_status
from tickwheel.v1 import execution_pb2, job_pb2
from tickwheel.v1 import job_service_pb2 as pb

C = grpc.StatusCode
NIGHTLY = "namespaces/default/jobs/nightly"


@asynccontextmanager
async def connected(jobs: fakes.FakeJobs, **options: Any) -> AsyncGenerator[AsyncClient]:
    server, address = await fakes.start(jobs)
    try:
        async with AsyncClient(address, **options) as tickwheel:
            yield tickwheel
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (C.INVALID_ARGUMENT, client.InvalidArgument),
        (C.NOT_FOUND, client.NotFound),
        (C.ALREADY_EXISTS, client.AlreadyExists),
        (C.FAILED_PRECONDITION, client.FailedPrecondition),
        (C.ABORTED, client.Aborted),
        (C.RESOURCE_EXHAUSTED, client.ResourceExhausted),
        (C.DEADLINE_EXCEEDED, client.DeadlineExceeded),
        (C.UNAUTHENTICATED, client.Unauthenticated),
        (C.PERMISSION_DENIED, client.PermissionDenied),
        (C.UNIMPLEMENTED, client.Unimplemented),
        (C.INTERNAL, client.InternalError),
        (C.DATA_LOSS, client.InternalError),
    ],
)
async def test_every_code_has_its_error(code: C, kind: type[TickwheelError]) -> None:
    jobs = fakes.FakeJobs()
    jobs.answers["GetJob"] = fakes.failing(fakes.status(code, "words", reason="WHY"))
    async with connected(jobs) as tickwheel:
        with pytest.raises(TickwheelError, match="words") as caught:
            await tickwheel.get("nightly")
    assert type(caught.value) is kind
    assert caught.value.reason == "WHY"
    assert caught.value.metadata == {"k": "v"}
    assert caught.value.from_server


async def test_wrong_fields_are_named() -> None:
    jobs = fakes.FakeJobs()
    fault = fakes.status(
        C.INVALID_ARGUMENT, "a: is wrong (and 1 more)", violations={"a": "is wrong", "b": "is too"}
    )
    jobs.answers["UpdateJob"] = fakes.failing(fault)
    async with connected(jobs) as tickwheel:
        with pytest.raises(client.InvalidArgument) as caught:
            await tickwheel.update("nightly", cron="x")
    assert [(v.field, v.description) for v in caught.value.violations] == [
        ("a", "is wrong"),
        ("b", "is too"),
    ]
    assert str(caught.value) == "a: is wrong (and 1 more); b: is too"


async def test_an_error_without_details_still_has_its_kind() -> None:
    jobs = fakes.FakeJobs()

    async def answer(_request: Any, context: fakes.Context) -> None:
        await context.abort(C.NOT_FOUND, "plain")

    jobs.answers["GetJob"] = answer
    async with connected(jobs) as tickwheel:
        with pytest.raises(client.NotFound, match="plain") as caught:
            await tickwheel.get("nightly")
    assert caught.value.reason == "NOT_FOUND"
    assert not caught.value.from_server


def test_a_code_of_the_future_is_an_internal_error() -> None:
    assert isinstance(from_status(Status(code=99, message="?")), client.InternalError)


async def test_a_read_is_repeated_while_the_server_is_unavailable() -> None:
    jobs = fakes.FakeJobs()
    starting = fakes.status(C.UNAVAILABLE, "the shard is starting")
    jobs.answers["GetJob"] = fakes.failing(starting, starting, then=fakes.job())
    async with connected(jobs) as tickwheel:
        job = await tickwheel.get("nightly")
    assert job.name == NIGHTLY
    assert [method for method, _, _ in jobs.seen] == ["GetJob"] * 3


async def test_the_wait_that_a_server_asks_for_is_kept() -> None:
    jobs = fakes.FakeJobs()
    full = fakes.status(C.RESOURCE_EXHAUSTED, "full", retry_ms=150)
    jobs.answers["GetJob"] = fakes.failing(full, then=fakes.job())
    now = asyncio.get_running_loop().time
    async with connected(jobs) as tickwheel:
        started = now()
        await tickwheel.get("nightly")
        assert now() - started >= 0.150


async def test_a_wait_longer_than_the_deadline_is_not_begun() -> None:
    jobs = fakes.FakeJobs()
    jobs.answers["GetJob"] = fakes.failing(
        fakes.status(C.RESOURCE_EXHAUSTED, "full", retry_ms=60_000)
    )
    async with connected(jobs, timeout_s=5) as tickwheel:
        with pytest.raises(client.ResourceExhausted) as caught:
            await tickwheel.get("nightly")
    assert caught.value.retry_after_s == 60
    assert len(jobs.seen) == 1


async def test_a_silent_server_ends_in_deadline_exceeded() -> None:
    jobs = fakes.FakeJobs()

    async def never(_request: Any, _context: fakes.Context) -> None:
        await asyncio.Event().wait()

    jobs.answers["GetJob"] = never
    async with connected(jobs) as tickwheel:
        with pytest.raises(client.DeadlineExceeded):
            await tickwheel.get("nightly", timeout_s=0.1)


async def test_an_update_that_broke_on_the_way_is_not_repeated() -> None:
    jobs = fakes.FakeJobs()

    async def broken(_request: Any, context: fakes.Context) -> None:
        await context.abort(
            C.UNAVAILABLE, "connection reset"
        )  # no ErrorInfo: not Tickwheel's words

    jobs.answers["UpdateJob"] = broken
    async with connected(jobs) as tickwheel:
        with pytest.raises(client.Unavailable):
            await tickwheel.update("nightly", cron="@daily")
    assert len(jobs.seen) == 1


@pytest.mark.parametrize(
    ("error", "repeatable", "expected"),
    [
        (client.Unavailable("", from_server=True), False, True),
        (client.Unavailable(""), False, False),
        (client.Unavailable(""), True, True),
        (client.ResourceExhausted("", retry_after_s=1.0), False, True),
        (client.ResourceExhausted(""), True, False),
        (client.DeadlineExceeded(""), True, False),
        (client.Aborted(""), True, False),
    ],
)
def test_what_may_be_repeated(error: TickwheelError, repeatable: bool, expected: bool) -> None:
    assert may_repeat(error, repeatable=repeatable) is expected


async def test_another_address_stands_in_for_one_that_is_gone() -> None:
    jobs = fakes.FakeJobs()
    jobs.answers["GetJob"] = fakes.answering(fakes.job())
    jobs.answers["DeleteJob"] = fakes.answering(Empty())
    dead, dead_address = await fakes.start(fakes.FakeJobs())
    await dead.stop(None)
    server, address = await fakes.start(jobs)
    try:
        async with AsyncClient([dead_address, address]) as tickwheel:
            await tickwheel.delete("nightly")  # not repeatable, and yet: nothing was sent before
            await tickwheel.get("nightly")
    finally:
        await server.stop(None)
    assert [method for method, _, _ in jobs.seen] == ["DeleteJob", "GetJob"]


async def test_nobody_there_says_where_it_looked() -> None:
    dead, address = await fakes.start(fakes.FakeJobs())
    await dead.stop(None)
    async with AsyncClient(address, timeout_s=0.3) as tickwheel:
        with pytest.raises(client.Unavailable, match=address) as caught:
            await tickwheel.get("nightly")
    assert caught.value.reason == "NOT_CONNECTED"


async def test_a_server_that_comes_back_is_found_again() -> None:
    jobs = fakes.FakeJobs()
    jobs.answers["GetJob"] = fakes.answering(fakes.job())
    first, address = await fakes.start(jobs)
    async with AsyncClient(address, timeout_s=20) as tickwheel:
        await tickwheel.get("nightly")
        await first.stop(None)
        waiting = asyncio.create_task(tickwheel.get("nightly"))
        second, _ = await fakes.start(jobs, int(address.rpartition(":")[2]))
        try:
            assert (await waiting).name == NIGHTLY
        finally:
            await second.stop(None)


async def test_a_closed_client_says_so() -> None:
    tickwheel = AsyncClient("127.0.0.1:1")
    await tickwheel.close()
    with pytest.raises(client.Unavailable) as caught:
        await tickwheel.get("nightly")
    assert caught.value.reason == "CLIENT_CLOSED"


def test_pauses_double_up_to_two_seconds() -> None:
    links = Links(["a:1"])
    error = client.Unavailable("", from_server=True)
    for failures, most in ((1, 0.05), (2, 0.1), (5, 0.8), (7, 2.0), (1_000, 2.0)):
        for _ in range(20):
            assert most / 2 <= links.pause_s(error, failures) <= most


def test_no_pause_while_an_address_was_not_tried() -> None:
    links = Links(["a:1", "b:1"])
    assert links.pause_s(client.Unavailable(""), 1) == 0
    assert links.pause_s(client.Unavailable(""), 2) > 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("localhost", ("localhost:7070",)),
        ("h:1, i:2,", ("h:1", "i:2")),
        (["10.0.0.1", "b:9"], ("10.0.0.1:7070", "b:9")),
        ("[::1]:8", ("[::1]:8",)),
        ("[::1]", ("[::1]:7070",)),
        ("fd00::1", ("[fd00::1]:7070",)),
        ("dns:///x:1", ("dns:///x:1",)),
        ("unix:/tmp/s", ("unix:/tmp/s",)),
    ],
)
def test_addresses(given: str | list[str], expected: tuple[str, ...]) -> None:
    assert addresses_of(given) == expected


@pytest.mark.parametrize("given", ["", " , ", [], ["a"] * 65])
def test_no_address_or_too_many_are_refused(given: str | list[str]) -> None:
    with pytest.raises(client.InvalidArgument, match="addresses"):
        addresses_of(given)


async def test_the_key_goes_with_every_call() -> None:
    jobs = fakes.FakeJobs()
    jobs.answers["GetJob"] = fakes.answering(fakes.job())
    async with connected(jobs, api_key="tw_abc") as tickwheel:
        await tickwheel.get("nightly")
    assert jobs.seen[0][2]["authorization"] == "Bearer tw_abc"


async def test_a_list_reads_page_after_page() -> None:
    jobs = fakes.FakeJobs()

    async def answer(request: Any, _context: fakes.Context) -> pb.ListJobsResponse:
        start = int(request.page_token or 0)
        page = [fakes.job(f"namespaces/default/jobs/j{start + i}") for i in range(2)]
        return pb.ListJobsResponse(jobs=page, next_page_token=str(start + 2) if start < 4 else "")

    jobs.answers["ListJobs"] = answer
    async with connected(jobs) as tickwheel:
        names = [job.name async for job in tickwheel.list("state = PAUSED", consistent=True)]
    assert names == [f"namespaces/default/jobs/j{i}" for i in range(6)]
    first = jobs.seen[0][1]
    assert (first.parent, first.filter, first.consistent) == (
        "namespaces/default",
        "state = PAUSED",
        True,
    )
    assert [request.page_token for _, request, _ in jobs.seen] == ["", "2", "4"]


async def test_pages_tell_how_to_go_on_and_how_old_they_are() -> None:
    jobs = fakes.FakeJobs()
    answer = pb.ListJobsResponse(jobs=[fakes.job()], next_page_token="t2")
    answer.read_time.seconds = 1_800_000_000
    jobs.answers["ListJobs"] = fakes.answering(answer)
    async with connected(jobs) as tickwheel:
        page = await anext(tickwheel.pages(page_size=7, token="t1", full=True, all_namespaces=True))
    assert (page.next_token, len(page.items)) == ("t2", 1)
    assert page.read_time == datetime.fromtimestamp(1_800_000_000, UTC)
    request = jobs.seen[0][1]
    assert (request.page_size, request.page_token, request.parent, request.view) == (
        7,
        "t1",
        "namespaces/-",
        job_pb2.JOB_VIEW_FULL,
    )


async def test_counts_have_words_for_keys() -> None:
    jobs = fakes.FakeJobs()
    answer = pb.CountJobsResponse(
        total_count=10,
        counts=[
            pb.JobCount(state=job_pb2.JOB_STATE_PAUSED, count=1),
            pb.JobCount(last_outcome=execution_pb2.EXECUTION_STATE_FAILED, count=2),
            pb.JobCount(label_value="a", count=3),
        ],
    )
    answer.counts.add(count=4).bucket_time.seconds = 3_600
    jobs.answers["CountJobs"] = fakes.answering(answer)
    async with connected(jobs) as tickwheel:
        counts = await tickwheel.count("x", group_by="next_time", bucket="1h")
    assert counts.total == 10
    assert dict(counts.groups) == {
        "PAUSED": 1,
        "FAILED": 2,
        "a": 3,
        datetime(1970, 1, 1, 1, tzinfo=UTC): 4,
    }
    assert jobs.seen[0][1].bucket.seconds == 3_600


async def test_an_update_sends_its_mask_and_tells_the_race() -> None:
    jobs = fakes.FakeJobs()
    jobs.answers["UpdateJob"] = fakes.answering(
        pb.UpdateJobResponse(
            job=fakes.job(),
            cancellation=pb.CANCELLATION_ALREADY_DISPATCHED,
            attempt=2,
            execution="e",
        )
    )
    async with connected(jobs) as tickwheel:
        updated = await tickwheel.update("nightly", cron="@daily", etag='"1"')
        await tickwheel.update_job(fakes.job(), FieldMask(paths=["*"]), allow_missing=True)
    assert (updated.outcome, updated.attempt, updated.execution) == ("ALREADY_DISPATCHED", 2, "e")
    (_, first, _), (_, second, _) = jobs.seen
    assert (first.job.name, first.job.etag) == (NIGHTLY, '"1"')
    assert list(first.update_mask.paths) == ["schedule.cron.dialect", "schedule.cron.expression"]
    assert second.allow_missing


async def test_the_small_methods() -> None:
    jobs = fakes.FakeJobs()
    execution = execution_pb2.Execution(name=f"{NIGHTLY}/executions/e")
    ended = pb.CancelJobResponse(
        job=fakes.job(), cancellation=pb.CANCELLATION_CANCELLED_BEFORE_DISPATCH
    )
    for method, answer in {
        "PauseJob": fakes.job(),
        "ResumeJob": fakes.job(),
        "CancelJob": ended,
        "RunJob": execution,
        "GetExecution": execution,
        "RetryExecution": execution,
        "DeleteJob": Empty(),
        "ListExecutions": pb.ListExecutionsResponse(executions=[execution]),
    }.items():
        jobs.answers[method] = fakes.answering(answer)
    async with connected(jobs) as tickwheel:
        handle = client.JobHandle(NIGHTLY, fakes.UID, None)
        await tickwheel.pause("nightly")
        await tickwheel.resume(handle)
        assert (await tickwheel.cancel(fakes.job())).outcome == "CANCELLED_BEFORE_DISPATCH"
        await tickwheel.run(NIGHTLY)
        await tickwheel.delete(handle, missing_ok=True)
        await tickwheel.executions.get("e", job=handle)
        await tickwheel.executions.retry(execution.name)
        assert [e async for e in tickwheel.executions.list("nightly")] == [execution]
    requests = [request for _, request, _ in jobs.seen]
    assert {request.name for request in requests[:5]} == {NIGHTLY}
    assert {request.name for request in requests[5:7]} == {execution.name}
    assert requests[3].request_id
    assert requests[6].request_id
    assert handle.job_id == "nightly"


async def test_a_preview_of_a_schedule_and_of_a_job() -> None:
    jobs = fakes.FakeJobs()
    answer = pb.PreviewScheduleResponse(tzdata_version="2026a")
    answer.occurrences.add(
        utc_offset="+02:00", local_time="2027-03-28T03:00:00", dst_note=pb.DST_NOTE_MOVED_AFTER_GAP
    ).scheduled_time.seconds = 5
    answer.occurrences.add(utc_offset="+02:00")
    answer.dropped.add(local_time="2027-03-29T02:30:00", reason=pb.DROP_REASON_EXCLUDED)
    jobs.answers["PreviewSchedule"] = fakes.answering(answer)
    after = datetime(2027, 1, 1, tzinfo=UTC)
    async with connected(jobs) as tickwheel:
        preview = await tickwheel.preview(
            cron="30 2 * * *", time_zone="Europe/Berlin", end=after, jitter="5s", after=after
        )
        await tickwheel.preview("nightly", count=3)
        with pytest.raises(client.InvalidArgument, match="exactly one"):
            await tickwheel.preview()
    assert [o.dst_note for o in preview.occurrences] == ["MOVED_AFTER_GAP", ""]
    assert preview.dropped[0].reason == "EXCLUDED"
    (_, first, _), (_, second, _) = jobs.seen
    assert first.schedule.cron.time_zone == "Europe/Berlin"
    assert first.window.HasField("end_time")
    assert first.jitter.seconds == 5
    assert (second.job, second.count, second.HasField("schedule")) == (NIGHTLY, 3, False)


async def test_a_validation_tells_every_criterion() -> None:
    jobs = fakes.FakeJobs()
    jobs.answers["ValidateJob"] = fakes.answering(
        pb.ValidateJobResponse(
            valid=False, criteria=[pb.Criterion(field="f", reason="R", met=False, description="d")]
        )
    )
    async with connected(jobs) as tickwheel:
        found = await tickwheel.validate("http://x", delay=timedelta(seconds=1), job_id="a")
    assert not found.valid
    assert found.criteria[0] == client.Criterion("f", "R", False, "d")
    assert jobs.seen[0][1].job_id == "a"


@pytest.mark.parametrize("wrong", ["", fakes.job("")])
def test_a_job_needs_a_name(wrong: client.JobRef) -> None:
    core = Core("h", namespace="n", timeout_s=1, api_key=None, credentials=None)
    with pytest.raises(client.InvalidArgument, match="empty"):
        core.job_name(wrong)


def test_an_execution_needs_its_job() -> None:
    core = Core("h", namespace="n", timeout_s=1, api_key=None, credentials=None)
    with pytest.raises(client.InvalidArgument, match="names no job"):
        core.execution_name("uid:5")
    assert core.execution_name("uid:5", "a") == "namespaces/n/jobs/a/executions/uid:5"


def test_a_timeout_of_nothing_is_refused() -> None:
    with pytest.raises(client.InvalidArgument, match="leaves no time"):
        AsyncClient(timeout_s=0)
