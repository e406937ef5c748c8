"""The client for ordinary programs: the same, from any number of threads."""

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tests.unit import client_fakes as fakes

from tickwheel import client
from tickwheel.client import Client, JobHandle, new_job
from tickwheel.v1 import execution_pb2
from tickwheel.v1 import job_service_pb2 as pb

URL = "https://example.com/hook"


@pytest.fixture
def jobs() -> fakes.FakeJobs:
    return fakes.FakeJobs()


@pytest.fixture
def tickwheel(jobs: fakes.FakeJobs) -> Iterator[Client]:
    with fakes.serving(jobs) as address, Client(address) as connected:
        yield connected


def test_five_lines(tickwheel: Client) -> None:
    job = tickwheel.create(URL, delay="90s", body=b"hello")
    assert job.name.startswith("namespaces/default/jobs/")
    assert job.next_time is not None


def test_creates_of_many_threads_travel_together(tickwheel: Client, jobs: fakes.FakeJobs) -> None:
    together = threading.Barrier(16)
    made: list[JobHandle] = []

    def work() -> None:
        together.wait()
        made.extend(tickwheel.create(URL, delay="1s") for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({handle.name for handle in made}) == 320
    assert len(jobs.batches) < 320


def test_errors_reach_the_caller(tickwheel: Client, jobs: fakes.FakeJobs) -> None:
    jobs.errors["bad"] = [fakes.status(grpc.StatusCode.ALREADY_EXISTS, "taken")]
    with pytest.raises(client.AlreadyExists, match="taken"):
        tickwheel.create(URL, delay="1s", job_id="bad")
    jobs.answers["GetJob"] = fakes.failing(fakes.status(grpc.StatusCode.NOT_FOUND, "no job"))
    with pytest.raises(client.NotFound, match="no job"):
        tickwheel.get("nope")


def test_lists_are_plain_iterators(tickwheel: Client, jobs: fakes.FakeJobs) -> None:
    pages: dict[str, Any] = {
        "": pb.ListJobsResponse(jobs=[fakes.job("a"), fakes.job("b")], next_page_token="2"),
        "2": pb.ListJobsResponse(jobs=[fakes.job("c")]),
    }

    async def answer(request: Any, _context: fakes.Context) -> Any:
        return pages[request.page_token]

    jobs.answers["ListJobs"] = answer
    assert [job.name for job in tickwheel.list()] == ["a", "b", "c"]
    assert [len(page.items) for page in tickwheel.pages()] == [2, 1]


def test_a_load_answers_in_order(tickwheel: Client, jobs: fakes.FakeJobs) -> None:
    jobs.errors["j3"] = [fakes.status(grpc.StatusCode.INVALID_ARGUMENT, "wrong")]
    requests = (new_job(URL, delay="1s", job_id=f"j{i}") for i in range(2_500))
    results = list(tickwheel.load(requests))
    assert [result.index for result in results] == list(range(2_500))
    assert [result.index for result in results if result.error] == [3]


def test_every_method_has_its_twin(tickwheel: Client, jobs: fakes.FakeJobs) -> None:
    execution = execution_pb2.Execution(name="namespaces/default/jobs/a/executions/e")
    for method, answer in {
        "GetJob": fakes.job(),
        "PauseJob": fakes.job(),
        "ResumeJob": fakes.job(),
        "CancelJob": pb.CancelJobResponse(job=fakes.job()),
        "UpdateJob": pb.UpdateJobResponse(job=fakes.job()),
        "CountJobs": pb.CountJobsResponse(total_count=3),
        "RunJob": execution,
        "GetExecution": execution,
        "RetryExecution": execution,
        "ListExecutions": pb.ListExecutionsResponse(executions=[execution]),
        "DeleteJob": fakes.EMPTY,
        "PreviewSchedule": pb.PreviewScheduleResponse(),
        "ValidateJob": pb.ValidateJobResponse(valid=True),
    }.items():
        jobs.answers[method] = fakes.answering(answer)
    assert tickwheel.get("nightly") == fakes.job()
    assert tickwheel.pause("nightly") == fakes.job()
    assert tickwheel.resume("nightly") == fakes.job()
    assert tickwheel.cancel("nightly").job == fakes.job()
    assert tickwheel.update("nightly", cron="@daily").outcome == ""
    assert tickwheel.update_job(fakes.job()).job == fakes.job()
    assert tickwheel.count().total == 3
    assert tickwheel.run("nightly") == execution
    assert tickwheel.executions.get("e", job="a") == execution
    assert tickwheel.executions.retry("e", job="a") == execution
    assert list(tickwheel.executions.list("a")) == [execution]
    assert tickwheel.preview(cron="@daily").occurrences == ()
    assert tickwheel.validate(URL, delay="1s").valid
    assert tickwheel.create_job(fakes.job(), job_id="x").job_id == "x"
    tickwheel.delete("nightly")
    assert {method for method, _, _ in jobs.seen} == jobs.answers.keys()


def test_both_clients_have_the_same_methods() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    only_async = {"bind", "queue_threadsafe"}
    assert public(client.AsyncClient) - only_async == public(Client)
    assert public(client.AsyncExecutions) == public(client.Executions)


def test_closing_twice_is_closing_once_and_then_nothing_works(jobs: fakes.FakeJobs) -> None:
    with fakes.serving(jobs) as address:
        tickwheel = Client(address)
        tickwheel.create(URL, delay="1s")
        tickwheel.close()
        tickwheel.close()
        with pytest.raises(client.Unavailable):
            tickwheel.create(URL, delay="1s")
        with pytest.raises(client.Unavailable):
            tickwheel.get("nightly")
    assert not any(thread.name == "tickwheel-client" for thread in threading.enumerate())


def test_everything_public_is_exported() -> None:
    assert sorted(client.__all__) == client.__all__
    for name in client.__all__:
        assert getattr(client, name) is not None
