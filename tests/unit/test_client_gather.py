"""Creates that wait at the same time travel together, and each gets its own end."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from tests.unit import client_fakes as fakes

from tickwheel import client
from tickwheel.client import AsyncClient, JobHandle, new_job
from tickwheel.client.aio import LOAD_WINDOW
from tickwheel.client.gather import BATCH_BYTES_MAX, BATCH_JOBS_MAX, CALLS_MAX
from tickwheel.v1 import job_service_pb2 as pb

C = grpc.StatusCode
URL = "https://example.com/hook"


@asynccontextmanager
async def connected(jobs: fakes.FakeJobs, **options: Any) -> AsyncGenerator[AsyncClient]:
    server, address = await fakes.start(jobs)
    try:
        async with AsyncClient(address, **options) as tickwheel:
            yield tickwheel
    finally:
        await server.stop(None)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


async def test_a_create_gets_its_handle() -> None:
    jobs = fakes.FakeJobs()
    async with connected(jobs, namespace="team") as tickwheel:
        handle = await tickwheel.create(URL, delay="90s", job_id="nightly")
    assert handle.name == "namespaces/team/jobs/nightly"
    assert handle.job_id == "nightly"
    assert handle.uid == fakes.UID
    assert handle.next_time is not None
    assert int(handle.next_time.timestamp()) == fakes.NEXT_S
    assert jobs.batches[0].parent == "namespaces/team"


async def test_creates_of_one_turn_are_one_call() -> None:
    jobs = fakes.FakeJobs()
    async with connected(jobs) as tickwheel:
        names = await asyncio.gather(
            *(tickwheel.create(URL, delay="1s", job_id=f"j{i}") for i in range(50))
        )
    assert [handle.job_id for handle in names] == [f"j{i}" for i in range(50)]
    assert [len(batch.requests) for batch in jobs.batches] == [50]
    assert len({request.request_id for request in jobs.batches[0].requests}) == 50


async def test_while_four_calls_are_under_way_the_next_gathers() -> None:
    jobs = fakes.FakeJobs()
    jobs.gate = asyncio.Event()
    async with connected(jobs) as tickwheel:
        creates: list[asyncio.Task[JobHandle]] = []
        for call in range(CALLS_MAX):
            creates.append(asyncio.create_task(tickwheel.create(URL, delay="1s")))
            await until(lambda seen=call + 1: len(jobs.batches) == seen)
        creates += [asyncio.create_task(tickwheel.create(URL, delay="1s")) for _ in range(30)]
        await asyncio.sleep(0.02)  # long enough for a fifth call, if there were one
        assert len(jobs.batches) == CALLS_MAX
        jobs.gate.set()
        await asyncio.gather(*creates)
    assert [len(batch.requests) for batch in jobs.batches] == [1, 1, 1, 1, 30]
    assert jobs.most_calls == CALLS_MAX


async def test_a_few_beside_many_wait_for_more_and_not_for_long() -> None:
    jobs = fakes.FakeJobs()
    jobs.gate = asyncio.Event()
    async with connected(jobs) as tickwheel:
        creates = [asyncio.create_task(tickwheel.create(URL, delay="1s")) for _ in range(20)]
        await until(lambda: len(jobs.batches) == 1)
        creates += [asyncio.create_task(tickwheel.create(URL, delay="1s")) for _ in range(9)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not creates[-1].done()
        creates.append(asyncio.create_task(tickwheel.create(URL, delay="1s")))
        await until(lambda: len(jobs.batches) == 2)
        creates.append(asyncio.create_task(tickwheel.create(URL, delay="1s")))
        await until(lambda: len(jobs.batches) == 3)
        jobs.gate.set()
        await asyncio.gather(*creates)
    assert [len(batch.requests) for batch in jobs.batches] == [20, 10, 1]


async def test_an_answer_sends_those_that_were_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tickwheel.client.gather.HELD_BACK_S_MAX", 60.0)
    jobs = fakes.FakeJobs()
    jobs.gate = asyncio.Event()
    async with connected(jobs) as tickwheel:
        creates = [asyncio.create_task(tickwheel.create(URL, delay="1s")) for _ in range(20)]
        await until(lambda: len(jobs.batches) == 1)
        creates += [asyncio.create_task(tickwheel.create(URL, delay="1s")) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert len(jobs.batches) == 1
        jobs.gate.set()
        await asyncio.gather(*creates)
    assert [len(batch.requests) for batch in jobs.batches] == [20, 2]


async def test_a_call_has_at_most_a_thousand_creates() -> None:
    jobs = fakes.FakeJobs()
    async with connected(jobs) as tickwheel:
        await asyncio.gather(
            *(tickwheel.create(URL, delay="1s") for _ in range(2 * BATCH_JOBS_MAX + 1))
        )
    sizes = sorted(len(batch.requests) for batch in jobs.batches)  # they arrive in any order
    assert sizes == [1, BATCH_JOBS_MAX, BATCH_JOBS_MAX]


async def test_a_call_has_at_most_a_mebibyte() -> None:
    jobs = fakes.FakeJobs()
    body = bytes(200 * 1024)
    async with connected(jobs) as tickwheel:
        await asyncio.gather(
            *(tickwheel.create(URL, delay="1s", body=body) for _ in range(12)),
            tickwheel.create(URL, delay="1s", body=bytes(BATCH_BYTES_MAX)),  # one is always sent
        )
    assert sum(len(batch.requests) for batch in jobs.batches) == 13
    small = [batch.ByteSize() for batch in jobs.batches if len(batch.requests) > 1]
    assert sorted(len(batch.requests) for batch in jobs.batches) == [1, 2, 5, 5]
    assert max(small) < BATCH_BYTES_MAX + 4_096


async def test_each_create_has_its_own_error() -> None:
    jobs = fakes.FakeJobs()
    jobs.errors["bad"] = [fakes.status(C.ALREADY_EXISTS, "taken", reason="ALREADY_EXISTS")]
    async with connected(jobs) as tickwheel:
        good, bad = await asyncio.gather(
            tickwheel.create(URL, delay="1s", job_id="good"),
            tickwheel.create(URL, delay="1s", job_id="bad"),
            return_exceptions=True,
        )
    assert isinstance(good, JobHandle)
    assert isinstance(bad, client.AlreadyExists)


async def test_one_that_a_repeat_mends_goes_again_alone_with_its_request_id() -> None:
    jobs = fakes.FakeJobs()
    moving = fakes.status(C.UNAVAILABLE, "the shard is moving")
    full = fakes.status(C.RESOURCE_EXHAUSTED, "full", retry_ms=20)
    jobs.errors["slow"] = [moving, full]
    async with connected(jobs) as tickwheel:
        await asyncio.gather(
            tickwheel.create(URL, delay="1s", job_id="slow"),
            tickwheel.create(URL, delay="1s", job_id="fast"),
        )
    assert [[r.job_id for r in batch.requests] for batch in jobs.batches] == [
        ["slow", "fast"],
        ["slow"],
        ["slow"],
    ]
    assert len({batch.requests[0].request_id for batch in jobs.batches}) == 1


async def test_one_that_cannot_be_mended_in_time_gets_the_last_error() -> None:
    jobs = fakes.FakeJobs()
    jobs.errors["full"] = [fakes.status(C.RESOURCE_EXHAUSTED, "full", retry_ms=60_000)]
    async with connected(jobs) as tickwheel:
        with pytest.raises(client.ResourceExhausted):
            await tickwheel.create(URL, delay="1s", job_id="full", timeout_s=5)


async def test_a_call_that_fails_fails_all_its_creates() -> None:
    jobs = fakes.FakeJobs()
    jobs.answers["BatchCreateJobs"] = fakes.failing(fakes.status(C.UNAUTHENTICATED, "who?"))
    async with connected(jobs) as tickwheel:
        ends = await asyncio.gather(
            *(tickwheel.create(URL, delay="1s") for _ in range(3)), return_exceptions=True
        )
    assert [type(end) for end in ends] == [client.Unauthenticated] * 3


async def test_an_answer_of_the_wrong_length_is_no_answer() -> None:
    jobs = fakes.FakeJobs()
    jobs.answers["BatchCreateJobs"] = fakes.answering(pb.BatchCreateJobsResponse())
    async with connected(jobs) as tickwheel:
        with pytest.raises(client.InternalError, match="did not answer each"):
            await tickwheel.create(URL, delay="1s")


async def test_the_deadline_of_one_create_does_not_end_another() -> None:
    jobs = fakes.FakeJobs()
    jobs.gate = asyncio.Event()
    async with connected(jobs) as tickwheel:
        hasty = asyncio.create_task(tickwheel.create(URL, delay="1s", timeout_s=0.5))
        patient = asyncio.create_task(tickwheel.create(URL, delay="1s", timeout_s=20))
        with pytest.raises(client.DeadlineExceeded):
            await hasty
        jobs.gate.set()
        assert (await patient).uid == fakes.UID
    assert [len(batch.requests) for batch in jobs.batches] == [2, 1]


async def test_what_the_oldest_has_no_time_for_goes_on_for_the_others() -> None:
    jobs = fakes.FakeJobs()
    full = fakes.status(C.RESOURCE_EXHAUSTED, "full", retry_ms=200)
    handle = pb.BatchCreateJobsResult(handle=pb.JobHandle(name="n", uid=fakes.UID))
    jobs.answers["BatchCreateJobs"] = fakes.failing(
        full, then=pb.BatchCreateJobsResponse(results=[handle])
    )
    async with connected(jobs) as tickwheel:
        hasty, patient = await asyncio.gather(
            tickwheel.create(URL, delay="1s", timeout_s=0.1),
            tickwheel.create(URL, delay="1s", timeout_s=20),
            return_exceptions=True,
        )
    assert isinstance(hasty, client.ResourceExhausted)
    assert isinstance(patient, JobHandle)


async def test_a_create_that_waited_too_long_is_never_sent() -> None:
    jobs = fakes.FakeJobs()
    jobs.gate = asyncio.Event()
    async with connected(jobs) as tickwheel:
        first: list[asyncio.Task[JobHandle]] = []
        for call in range(CALLS_MAX):
            first.append(asyncio.create_task(tickwheel.create(URL, delay="1s")))
            await until(lambda seen=call + 1: len(jobs.batches) == seen)
        late = asyncio.create_task(tickwheel.create(URL, delay="1s", job_id="late", timeout_s=0.01))
        await asyncio.sleep(0.02)
        jobs.gate.set()
        with pytest.raises(client.DeadlineExceeded) as caught:
            await late
        await asyncio.gather(*first)
    assert caught.value.reason == "NOT_SENT"
    assert len(jobs.batches) == CALLS_MAX


async def test_a_cancelled_create_is_not_sent() -> None:
    jobs = fakes.FakeJobs()
    async with connected(jobs) as tickwheel:
        gone = asyncio.create_task(tickwheel.create(URL, delay="1s", job_id="gone"))
        await asyncio.sleep(0)
        gone.cancel()
        await tickwheel.create(URL, delay="1s", job_id="here")
        with pytest.raises(asyncio.CancelledError):
            await gone
    assert [r.job_id for batch in jobs.batches for r in batch.requests] == ["here"]


async def test_closing_leaves_nobody_waiting() -> None:
    jobs = fakes.FakeJobs()
    jobs.gate = asyncio.Event()
    jobs.errors["pausing"] = [fakes.status(C.RESOURCE_EXHAUSTED, "full", retry_ms=5_000)]
    server, address = await fakes.start(jobs)
    tickwheel = AsyncClient(address)
    jobs.gate.set()
    pausing = asyncio.create_task(tickwheel.create(URL, delay="1s", job_id="pausing"))
    await until(lambda: not jobs.errors["pausing"])
    jobs.gate.clear()
    under_way = asyncio.create_task(tickwheel.create(URL, delay="1s"))
    await until(lambda: len(jobs.batches) == 2)
    await tickwheel.close()
    ends = await asyncio.gather(pausing, under_way, return_exceptions=True)
    with pytest.raises(client.Unavailable, match="closed"):
        await tickwheel.create(URL, delay="1s")
    jobs.gate.set()
    await server.stop(None)
    assert [type(end) for end in ends] == [client.Unavailable] * 2


async def test_a_load_answers_in_order_and_never_has_too_many_on_the_way() -> None:
    jobs = fakes.FakeJobs()
    jobs.errors["j7"] = [fakes.status(C.INVALID_ARGUMENT, "wrong")]
    total, begun, most = LOAD_WINDOW + 500, 0, 0

    def requests() -> Any:
        nonlocal begun
        for i in range(total):
            begun = i + 1
            yield new_job(URL, delay="1s", job_id=f"j{i}")

    ended = 0
    async with connected(jobs) as tickwheel:
        async for result in tickwheel.load(requests()):
            assert result.index == ended
            ended += 1
            most = max(most, begun - ended)
            if result.index == 7:
                assert isinstance(result.error, client.InvalidArgument)
                assert result.handle is None
            else:
                assert result.handle is not None
                assert result.handle.job_id == f"j{result.index}"
    assert ended == total
    assert most <= LOAD_WINDOW


async def test_a_load_that_is_left_early_is_let_go() -> None:
    jobs = fakes.FakeJobs()
    async with connected(jobs) as tickwheel:
        loading = tickwheel.load(new_job(URL, delay="1s") for _ in range(100))
        async for result in loading:
            assert result.index == 0
            break
        await loading.aclose()  # type: ignore[attr-defined]
