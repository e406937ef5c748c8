"""Any node answers any call: forwarded once, waited for while nobody leads, split by leader."""

import asyncio
from collections.abc import Sequence

import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo
from tests.unit.route_kit import PARENT, SHARDS, Nodes, create_of, names_on, run

from tickwheel.server.api.limits import BATCH_JOBS_MAX
from tickwheel.server.api.messages import request_class, response_class
from tickwheel.server.api.route import PATIENCE_S, job_id_of
from tickwheel.server.errors import (
    Aborted,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    NotLeader,
    ResourceExhausted,
    TickwheelError,
    Unavailable,
    Unimplemented,
    Violation,
)
from tickwheel.server.placement import shard_of
from tickwheel.v1 import job_pb2
from tickwheel.v1 import job_service_pb2 as pb

LEADERLESS = NotLeader("nobody", reason="LEADERLESS")
SERVICE = "tickwheel.v1.JobService."


def now_s() -> float:
    return asyncio.get_running_loop().time()


def name(job: str) -> str:
    return f"{PARENT}/jobs/{job}"


async def cluster_with(shard: int, leader: str = "b") -> tuple[Nodes, str]:
    """Two nodes, and a job on a shard of that leader."""
    nodes = Nodes("a", "b")
    nodes.leaders[shard] = leader
    (job,) = names_on(shard)
    await nodes[leader].call("CreateJob", create_of(job))
    return nodes, job


# --- one job ---


@pytest.mark.parametrize("asked", ["a", "b"])
def test_any_node_answers_any_call(asked: str) -> None:
    async def story() -> None:
        nodes, job = await cluster_with(1)
        node = nodes[asked]
        uid = (await node.call("GetJob", pb.GetJobRequest(name=name(job)))).uid
        assert uid
        update = pb.UpdateJobRequest(job=job_pb2.Job(name=name(job), description="new"))
        update.update_mask.paths.append("description")
        assert (await node.call("UpdateJob", update)).job.description == "new"
        paused = await node.call("PauseJob", pb.PauseJobRequest(name=name(job)))
        assert paused.state == job_pb2.JOB_STATE_PAUSED
        await node.call("ResumeJob", pb.ResumeJobRequest(name=name(job)))
        started = await node.call("RunJob", pb.RunJobRequest(name=name(job), request_id="r1"))
        listed = await node.call("ListExecutions", pb.ListExecutionsRequest(parent=name(job)))
        execution = listed.executions[0].name
        assert execution
        assert started
        found = await node.call("GetExecution", pb.GetExecutionRequest(name=execution))
        assert found.name == execution
        await node.call("RetryExecution", pb.RetryExecutionRequest(name=execution))
        await node.call("CancelJob", pb.CancelJobRequest(name=name(job)))
        await node.call("DeleteJob", pb.DeleteJobRequest(name=name(job)))
        with pytest.raises(NotFound) as caught:
            await node.call("GetJob", pb.GetJobRequest(name=name(job)))
        assert (caught.value.reason, caught.value.metadata) == ("JOB_NOT_FOUND", {"job": job})
        assert bool(nodes["a"].forwarded) == (asked == "a")
        assert nodes["b"].forwarded == []

    run(story())


def test_every_method_of_a_job_is_routed() -> None:
    """One that has no key would be answered by whoever was asked."""
    routed = {
        "CreateJob", "GetJob", "UpdateJob", "DeleteJob", "PauseJob", "ResumeJob", "CancelJob",
        "RunJob", "ListExecutions", "GetExecution", "RetryExecution", "ValidateJob",
        "PreviewSchedule",
    }  # fmt: skip
    elsewhere = {"BatchCreateJobs", "ListJobs", "CountJobs"}
    nodes = Nodes("a", "b")
    served = {method.removeprefix(SERVICE) for method in nodes["a"].exchange.calls}
    served = {method for method in served if "." not in method}
    assert served == routed | elsewhere
    own = nodes["a"].exchange.router._table
    for method in routed:
        assert nodes["a"].exchange.calls[SERVICE + method] is not own[SERVICE + method]


def test_what_concerns_no_job_stays_here() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        request = pb.PreviewScheduleRequest(parent=PARENT, count=3)
        request.schedule.every.period.seconds = 60
        assert len((await nodes["a"].call("PreviewSchedule", request)).occurrences) == 3
        assert nodes["a"].forwarded == []

    run(story())


def test_the_schedule_of_a_job_is_known_to_its_leader() -> None:
    async def story() -> None:
        nodes, job = await cluster_with(1)
        request = pb.PreviewScheduleRequest(parent=PARENT, job=name(job))
        assert len((await nodes["a"].call("PreviewSchedule", request)).occurrences) == 1
        request.job = "x"
        with pytest.raises(InvalidArgument) as caught:
            await nodes["a"].call("PreviewSchedule", request)
        assert caught.value.violations[0].field == "job"

    run(story())


@pytest.mark.parametrize("number", range(8))
def test_a_job_is_tried_where_it_would_be_made(number: int) -> None:
    """With a name or without: only the leader of its shard can say what a create would meet."""

    async def story() -> None:
        nodes = Nodes("a", "b")
        job = create_of("x").job
        for job_id in ("", f"j{number}"):
            request = pb.ValidateJobRequest(job=job, parent=PARENT, job_id=job_id)
            assert (await nodes["a"].call("ValidateJob", request)).valid
        await nodes["b"].call("CreateJob", create_of(f"j{number}"))
        job.http_target.url = "https://example.com/other"
        request = pb.ValidateJobRequest(job=job, parent=PARENT, job_id=f"j{number}")
        assert not (await nodes["a"].call("ValidateJob", request)).valid

    run(story())


def test_a_forwarded_call_is_answered_there_or_not_at_all() -> None:
    """Two nodes that take each other for the leader do not play ball with it."""

    async def story() -> None:
        nodes, job = await cluster_with(1)
        nodes.leaders[1] = "a"
        request = pb.GetJobRequest(name=name(job)).SerializeToString()
        with pytest.raises(NotLeader):
            await nodes["b"].exchange.answer(SERVICE + "GetJob", request)
        assert nodes["b"].forwarded == []

    run(story())


def test_a_leader_that_knows_nothing_of_it_yet_is_asked_again() -> None:
    async def story() -> None:
        nodes, job = await cluster_with(1)
        nodes.late.add(1)
        asyncio.get_running_loop().call_later(2.0, nodes.late.discard, 1)
        assert (await nodes["a"].call("GetJob", pb.GetJobRequest(name=name(job)))).name == name(job)
        assert 2.0 <= now_s() < 2.2
        assert len(nodes["a"].forwarded) > 10

    run(story())


def test_a_shard_between_two_leaders_is_waited_for() -> None:
    async def story() -> None:
        nodes, job = await cluster_with(1)
        nodes.leaders[1] = ""
        nodes.later(3.0, s1="b")
        await nodes["a"].call("GetJob", pb.GetJobRequest(name=name(job)))
        assert 3.0 <= now_s() < 3.2

    run(story())


def test_patience_ends() -> None:
    async def story() -> None:
        nodes, job = await cluster_with(1)
        nodes.leaders[1] = ""
        with pytest.raises(NotLeader) as caught:
            await nodes["a"].call("GetJob", pb.GetJobRequest(name=name(job)))
        assert (caught.value.reason, caught.value.retry_after_ms) == ("LEADERLESS", 200)
        assert PATIENCE_S <= now_s() < PATIENCE_S + 0.2

    run(story())


def test_a_leader_that_was_not_reached_did_nothing_so_the_next_one_is_waited_for() -> None:
    async def story() -> None:
        nodes, job = await cluster_with(1)
        nodes["b"].faults = [Unavailable("gone", reason="PEER_UNREACHABLE")] * 5
        await nodes["a"].call("GetJob", pb.GetJobRequest(name=name(job)))
        assert len(nodes["a"].forwarded) == 6

    run(story())


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("maybe done", reason="OUTCOME_UNKNOWN", retry_after_ms=7),
        DeadlineExceeded("no answer"),
        ResourceExhausted("full", retry_after_ms=100),
        Aborted("the etag", reason="ETAG_MISMATCH", metadata={"etag": "1"}),
        InvalidArgument.of([Violation("name", "is bad", "BAD")]),
    ],
)
def test_other_errors_are_raised_at_once_as_they_are(error: TickwheelError) -> None:
    async def story() -> None:
        nodes, job = await cluster_with(1)
        nodes["b"].faults = [error]
        with pytest.raises(type(error)) as caught:
            await nodes["a"].call("GetJob", pb.GetJobRequest(name=name(job)))
        found = caught.value
        assert (found.code, found.reason, found.message) == (
            error.code,
            error.reason,
            error.message,
        )
        assert (found.metadata, found.violations) == (error.metadata, error.violations)
        assert found.retry_after_ms == error.retry_after_ms
        assert len(nodes["a"].forwarded) == 1

    run(story())


def test_a_name_that_is_none_is_refused_where_it_came() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        for request in (pb.GetJobRequest(name="x"), pb.GetJobRequest()):
            with pytest.raises(InvalidArgument):
                await nodes["a"].call("GetJob", request)
        with pytest.raises(InvalidArgument):
            await nodes["a"].call("CreateJob", create_of("x", parent="acme"))
        assert nodes["a"].forwarded == []

    run(story())


# --- between versions ---


@pytest.mark.parametrize("method", [SERVICE + "Dance", "scatter/Dance", "nonsense", ""])
def test_what_this_version_does_not_have_is_said_so(method: str) -> None:
    with pytest.raises(Unimplemented):
        run(Nodes("a")["a"].exchange.answer(method, b""))


def test_the_messages_of_a_method_that_is_not_there() -> None:
    assert request_class(SERVICE + "GetJob") is pb.GetJobRequest
    assert response_class(SERVICE + "GetJob") is job_pb2.Job
    with pytest.raises(Unimplemented):
        request_class(SERVICE + "Dance")


@pytest.mark.parametrize("method", [SERVICE + "GetJob", "scatter/ListJobs"])
def test_a_forwarded_field_that_this_version_does_not_know_is_refused(method: str) -> None:
    unknown = b"\xfa\x3f\x01x"  # field 1023, one byte
    with pytest.raises(InvalidArgument) as caught:
        run(Nodes("a")["a"].exchange.answer(method, unknown))
    assert caught.value.reason == "FIELD_UNKNOWN"
    with pytest.raises(InvalidArgument) as caught:
        run(Nodes("a")["a"].exchange.answer(method, b"\xff"))
    assert caught.value.reason == "MESSAGE_MALFORMED"


# --- creates ---


def test_a_create_without_a_name_is_where_its_name_belongs() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        for _ in range(12):
            made = await nodes["a"].call("CreateJob", create_of(""))
            job = made.name.rpartition("/")[2]
            leader = nodes.leaders[shard_of("acme", job, SHARDS)]
            assert ("acme", job) in nodes[leader].scheduler.jobs
        assert nodes["a"].scheduler.jobs
        assert nodes["b"].scheduler.jobs

    run(story())


def test_a_create_with_a_request_id_is_one_job_wherever_it_is_sent() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        for number in range(6):
            first = await nodes["a"].call("CreateJob", create_of("", request_id=f"r{number}"))
            again = await nodes["b"].call("CreateJob", create_of("", request_id=f"r{number}"))
            assert first == again
        assert sum(len(node.scheduler.jobs) for node in nodes.values()) == 6

    run(story())


@pytest.mark.parametrize("after", ["a", "b"])
@pytest.mark.parametrize("batched", [True, False])
def test_a_create_that_had_to_be_tried_twice_is_still_what_was_sent(
    after: str, *, batched: bool
) -> None:
    """A node changes the request when it takes it; a repeat of it has to meet the same content."""

    def request() -> pb.CreateJobRequest:
        made = create_of(names_on(2)[0])
        made.job.schedule.once.delay.seconds = 60
        return made

    async def story() -> None:
        nodes = Nodes("a", "b")
        nodes.late.add(2)
        nodes.later(1.0, s2=after)
        asyncio.get_running_loop().call_later(1.0, nodes.late.clear)
        if batched:
            batch = pb.BatchCreateJobsRequest(parent=PARENT, requests=[request()])
            assert told(await nodes["a"].call("BatchCreateJobs", batch)) == names_on(2)
        else:
            await nodes["a"].call("CreateJob", request())
        await nodes["b"].call("CreateJob", request())
        assert now_s() < 2.0

    run(story())


def test_a_name_is_drawn_once() -> None:
    request = create_of("")
    assert job_id_of("acme", request) == request.job_id == job_id_of("acme", request)
    named = create_of("", request_id="r1")
    assert job_id_of("acme", named).startswith("r-")
    assert named.job_id == ""


# --- batches ---


def batch_of(jobs: Sequence[str]) -> pb.BatchCreateJobsRequest:
    return pb.BatchCreateJobsRequest(parent=PARENT, requests=[create_of(job) for job in jobs])


def mixed(count: int) -> list[str]:
    """Jobs that go round over the shards."""
    per_shard = [names_on(shard, count // SHARDS + 1) for shard in range(SHARDS)]
    return [per_shard[n % SHARDS][n // SHARDS] for n in range(count)]


def told(response: pb.BatchCreateJobsResponse) -> list[str]:
    """Names, and reasons of errors."""
    found: list[str] = []
    for result in response.results:
        info = ErrorInfo()
        if result.WhichOneof("result") == "error":
            assert result.error.details[0].Unpack(info)
        found.append(info.reason or result.handle.name.rpartition("/")[2])
    return found


def test_each_result_of_a_batch_is_in_its_place() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b", "c")
        jobs = mixed(40)
        assert told(await nodes["a"].call("BatchCreateJobs", batch_of(jobs))) == jobs
        assert sorted(nodes["a"].forwarded) == [("b", "BatchCreateJobs"), ("c", "BatchCreateJobs")]
        assert sum(len(node.scheduler.jobs) for node in nodes.values()) == 40
        assert all(len(node.scheduler.batches) == 1 for node in nodes.values())

    run(story())


def test_a_batch_may_ask_for_whole_jobs() -> None:
    async def story() -> None:
        request = batch_of(mixed(8))
        request.view = pb.BATCH_VIEW_JOBS
        response = await Nodes("a", "b")["a"].call("BatchCreateJobs", request)
        assert [result.job.name for result in response.results] == [name(job) for job in mixed(8)]

    run(story())


def test_a_wrong_item_costs_the_others_nothing() -> None:
    async def story() -> None:
        request = batch_of(mixed(16))
        request.requests[5].job_id = "No Name"
        request.requests[6].parent = "namespaces/other"
        request.requests[7].job.ClearField("schedule")
        found = told(await Nodes("a", "b")["a"].call("BatchCreateJobs", request))
        wrong = [place for place, text in enumerate(found) if text not in mixed(16)]
        assert wrong == [5, 6, 7]

    run(story())


@pytest.mark.parametrize("size", [0, BATCH_JOBS_MAX + 1])
def test_a_batch_is_as_long_as_on_one_node(size: int) -> None:
    async def story() -> None:
        with pytest.raises(InvalidArgument) as caught:
            await Nodes("a", "b")["a"].call("BatchCreateJobs", batch_of(mixed(size)))
        assert caught.value.reason == "BATCH_SIZE"

    run(story())


def test_an_error_of_one_leaders_share_is_that_of_its_items() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        nodes["b"].faults = [DeadlineExceeded("no answer", reason="PEER_SLOW")]
        jobs = mixed(16)
        found = told(await nodes["a"].call("BatchCreateJobs", batch_of(jobs)))
        for job, text in zip(jobs, found, strict=True):
            leads = nodes.leaders[shard_of("acme", job, SHARDS)]
            assert text == (job if leads == "a" else "PEER_SLOW")
        assert len(nodes["a"].forwarded) == 1, "it may be done: it is not repeated"

    run(story())


def test_so_is_one_of_this_node() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        nodes["a"].scheduler.fault = ResourceExhausted("full", reason="QUEUE_FULL")
        found = told(await nodes["a"].call("BatchCreateJobs", batch_of(mixed(16))))
        assert found.count("QUEUE_FULL") == 8

    run(story())


def test_what_nobody_took_goes_to_the_next_leader_and_the_rest_is_not_repeated() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        nodes.leaders[2] = ""
        nodes.later(2.0, s2="b")
        jobs = mixed(24)
        assert told(await nodes["a"].call("BatchCreateJobs", batch_of(jobs))) == jobs
        assert 2.0 <= now_s() < 2.2
        assert sum(len(node.scheduler.jobs) for node in nodes.values()) == 24
        assert nodes["b"].scheduler.batches == [12, 3]

    run(story())


def test_items_that_no_leader_took_in_time_say_so() -> None:
    async def story() -> None:
        nodes = Nodes("a", "b")
        nodes.leaders[2] = ""
        jobs = mixed(16)
        found = told(await nodes["a"].call("BatchCreateJobs", batch_of(jobs)))
        assert PATIENCE_S <= now_s() < PATIENCE_S + 0.2
        assert [text for text in found if text not in jobs] == ["LEADERLESS"] * 2
        assert found[2] == "LEADERLESS"

    run(story())


@pytest.mark.parametrize("others", [("b",), ()])
def test_a_batch_waits_too_when_no_other_node_leads_anything(others: tuple[str, ...]) -> None:
    async def story() -> None:
        nodes = Nodes("a", *others)
        nodes.leaders.update({number: "" if number == 5 else "a" for number in range(SHARDS)})
        nodes.later(1.0, s5="a")
        jobs = mixed(16)
        assert told(await nodes["a"].call("BatchCreateJobs", batch_of(jobs))) == jobs

    run(story())


def test_a_share_that_is_too_long_for_one_message_goes_in_several() -> None:
    """Between nodes a message has half the bytes that a client's may have."""

    async def story() -> None:
        nodes = Nodes("a", "b")
        nodes.leaders.update(dict.fromkeys(range(SHARDS), "b"))
        request = batch_of(mixed(60))
        for create in request.requests:
            create.job.http_target.body = b"x" * 250_000
        assert told(await nodes["a"].call("BatchCreateJobs", request)) == mixed(60)
        assert len(nodes["a"].forwarded) > 1
        assert max(nodes["a"].request_bytes) < 8 << 20

    run(story())


def test_a_node_alone_takes_a_batch_as_it_is() -> None:
    async def story() -> None:
        nodes = Nodes("a")
        assert told(await nodes["a"].call("BatchCreateJobs", batch_of(mixed(16)))) == mixed(16)
        assert nodes["a"].scheduler.batches == [16]

    run(story())


def test_a_parent_that_is_none_is_the_error_of_the_whole_batch() -> None:
    request: Message = pb.BatchCreateJobsRequest(parent="acme", requests=[create_of("x")])
    with pytest.raises(InvalidArgument):
        run(Nodes("a", "b")["a"].call("BatchCreateJobs", request))
