"""The gRPC door on a real socket: wiring, statuses with details, streams, limits, health, its stop."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.bad_input import JOB, PARENT, good_create
from tests.fake_scheduler import FakeScheduler

from tickwheel.server.alone import Alone
from tickwheel.server.api import limits
from tickwheel.server.api.grpc import SERVICES, GrpcDoor
from tickwheel.server.dispatch.guard import Guard
from tickwheel.server.dispatch.headers import check_headers
from tickwheel.server.slot import Slot
from tickwheel.server.topology import NodeInfo
from tickwheel.v1 import job_service_pb2 as pb
from tickwheel.v1.cluster_service_pb2 import WatchClusterRequest
from tickwheel.v1.cluster_service_pb2_grpc import ClusterServiceStub
from tickwheel.v1.job_service_pb2_grpc import JobServiceStub

METHODS = [method for service in SERVICES for method in service.methods]
REFUSING = [m for m in METHODS if m.name not in {"GetCluster", "WatchCluster"}]
"""An empty request of the other two is a good one."""


class Config:
    grpc_address = ("127.0.0.1", 0)


class Calls:
    """Remembers the calls that ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self.ended.append((method, code))


def alone() -> Alone:
    slot = cast("Slot", SimpleNamespace(shard=SimpleNamespace(epoch=1)))
    slots: dict[int, Slot] = dict.fromkeys(range(64), slot)
    me = NodeInfo("a" * 32, "active", True, "", "", "", "", "", "")
    return Alone("c" * 32, me, slots, lambda: 0)


class World:
    """A door, what is behind it, and a channel to it."""

    def __init__(self) -> None:
        self.scheduler = FakeScheduler()
        self.calls = Calls()
        self.door = GrpcDoor(
            Config(),
            self.scheduler,
            alone(),
            self.calls,
            check_url=Guard().check_url,
            check_headers=check_headers,
            reflection=True,
        )

    async def start(self) -> None:
        port = await self.door.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.jobs = JobServiceStub(self.channel)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.start()
    yield world
    await world.channel.close()
    await world.door.stop(0)


def info_of(error: grpc.aio.AioRpcError) -> ErrorInfo:
    """What a program would match on."""
    for key, value in error.trailing_metadata():
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            status = Status.FromString(value)
            assert status.code == error.code().value[0]
            assert status.message == error.details()
            info = ErrorInfo()
            assert status.details[0].Unpack(info)
            return info
    raise AssertionError(f"an error without details: {error}")


async def test_a_job_comes_and_goes(world: World) -> None:
    made = await world.jobs.CreateJob(good_create())
    assert made == await world.jobs.GetJob(pb.GetJobRequest(name=JOB))
    page = await world.jobs.ListJobs(pb.ListJobsRequest(parent=PARENT))
    assert [job.name for job in page.jobs] == [JOB]
    await world.jobs.DeleteJob(pb.DeleteJobRequest(name=JOB))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await world.jobs.GetJob(pb.GetJobRequest(name=JOB))
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    assert info_of(raised.value).reason == "JOB_NOT_FOUND"
    assert world.calls.ended == [
        ("CreateJob", "OK"),
        ("GetJob", "OK"),
        ("ListJobs", "OK"),
        ("DeleteJob", "OK"),
        ("GetJob", "NOT_FOUND"),
    ]


async def call_raw(channel: Any, path: str, request: bytes, method: MethodDescriptor) -> None:
    """One call without stubs, read to its end."""
    if method.client_streaming:
        stream = channel.stream_stream(path)()
        await stream.write(request)
        await stream.done_writing()
        while await stream.read() is not grpc.aio.EOF:
            pass
    elif method.server_streaming:
        await channel.unary_stream(path)(request).read()
    else:
        await channel.unary_unary(path)(request)


@pytest.mark.parametrize("method", REFUSING, ids=[method.full_name for method in REFUSING])
async def test_every_method_answers_with_details(world: World, method: MethodDescriptor) -> None:
    """An empty request is refused, or the method's turn comes later; never UNKNOWN, never without ErrorInfo."""
    assert method.containing_service is not None
    path = f"/{method.containing_service.full_name}/{method.name}"
    request = GetMessageClass(method.input_type)().SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call_raw(world.channel, path, request, method)
    expected = {
        "INVALID_ARGUMENT", "METHOD_NOT_YET_SUPPORTED", "NODE_NAME", "REQUIRED", "SHARD_NAME"
    }  # fmt: skip
    assert info_of(raised.value).reason in expected


@pytest.mark.parametrize("name", ["CreateJob", "StreamCreateJobs"])
@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (b"\xff\xff\xff", "MESSAGE_MALFORMED"),
        # Field 2047, which no message has: at the top, and inside the job (field 3 of both requests is a message).
        (b"\xfa\x7f\x01x", "FIELD_UNKNOWN"),
        (b"\x1a\x04\xfa\x7f\x01x", "FIELD_UNKNOWN"),
    ],
)
async def test_what_can_not_be_honoured_in_full_is_refused(
    world: World, name: str, request_: bytes, reason: str
) -> None:
    (method,) = (m for m in METHODS if m.full_name == f"tickwheel.v1.JobService.{name}")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call_raw(world.channel, f"/tickwheel.v1.JobService/{name}", request_, method)
    assert info_of(raised.value).reason == reason


async def test_what_nobody_foresaw_is_internal_and_says_nothing(world: World) -> None:
    world.scheduler.fault = RuntimeError("/srv/secret")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await world.jobs.CreateJob(good_create())
    assert raised.value.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in str(raised.value.details())
    assert info_of(raised.value).reason == "INTERNAL"


async def test_a_stream_is_answered_message_by_message(world: World) -> None:
    stream = world.jobs.StreamCreateJobs()
    window = await stream.read()
    assert isinstance(window, pb.StreamCreateJobsResponse)
    for sequence in range(3 * window.window.messages):
        request = pb.StreamCreateJobsRequest(
            sequence=sequence, parent=PARENT, requests=[good_create()]
        )
        await stream.write(request)
        answer = await stream.read()
        assert isinstance(answer, pb.StreamCreateJobsResponse)
        assert answer.result.sequence == sequence
        assert answer.result.results[0].handle.name == JOB
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() == grpc.StatusCode.OK


async def test_a_message_beyond_the_limit_is_refused(world: World) -> None:
    request = good_create()
    request.job.http_target.body = bytes(limits.MESSAGE_BYTES_MAX)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await world.jobs.CreateJob(request)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not world.scheduler.commands


async def test_a_deadline_ends_a_call_that_hangs(world: World) -> None:
    hanging = asyncio.Event()

    async def hang(*_: object) -> None:
        await hanging.wait()

    world.scheduler.get_job = hang  # type: ignore[method-assign,assignment]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await world.jobs.GetJob(pb.GetJobRequest(name=JOB), timeout=0.2)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_health_and_the_stop(world: World) -> None:
    health: Any = health_pb2_grpc.HealthStub(world.channel)  # type: ignore[no-untyped-call]
    for service in ("", "tickwheel.v1.JobService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await world.door.stop(0)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await world.jobs.GetJob(pb.GetJobRequest(name=JOB))
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_port_that_is_taken_is_an_os_error(world: World) -> None:
    class Taken:
        grpc_address = ("127.0.0.1", world.door.port)

    door = GrpcDoor(
        Taken(),
        FakeScheduler(),
        alone(),
        Calls(),
        check_url=Guard().check_url,
        check_headers=check_headers,
    )
    with pytest.raises(OSError, match="can't listen"):
        await door.start()


async def test_who_watches_the_cluster_does_not_delay_the_stop(world: World) -> None:
    """Clients do that all the time: the watch ends well, long before the grace does."""
    stub: Any = ClusterServiceStub(world.channel)
    told: set[int] = set()

    async def watch() -> None:
        async for news in stub.WatchCluster(WatchClusterRequest()):
            told.add(len(news.cluster.shards))

    watching = asyncio.create_task(watch())
    async with asyncio.timeout(10):
        while not told:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)
        await world.door.stop(60)
        await watching
    assert told == {64}
    assert ("WatchCluster", "OK") in world.calls.ended
