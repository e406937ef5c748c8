"""WatchExecutions behind its transport: a reader that stalls, one that goes, and a server that leaves."""

import asyncio
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from tests.conformance.test_grpc_door import World, info_of, world
from tests.fake_scheduler import NOW_MS

from tickwheel.server.api import watch
from tickwheel.server.model import Attempt, Execution, ExecutionKind, ExecutionState
from tickwheel.v1 import job_service_pb2 as pb

__all__ = ["world"]
ALL = pb.WatchExecutionsRequest(parent="namespaces/acme/jobs/-")


def ended(number: int) -> Execution:
    """With as long a response as one may have."""
    attempt = Attempt(1, 1, 1, NOW_MS, NOW_MS, 200, "", bytes(4096))
    return Execution(
        1, bytes(16), "acme", "nightly", ExecutionKind.OCCURRENCE, NOW_MS + number, "",
        ExecutionState.SUCCEEDED, NOW_MS, attempts=(attempt,),
    )  # fmt: skip


async def until_ended(world: World) -> list[tuple[str, str]]:
    async with asyncio.timeout(10):
        while not world.calls.ended:  # noqa: ASYNC110 - it is the server that ends it
            await asyncio.sleep(0.01)
    return world.calls.ended


async def rest_of(call: Any) -> tuple[list[int], ErrorInfo]:
    """The messages that are still there, by their scheduled times, and the error at their end."""
    numbers: list[int] = []
    try:
        while (message := await call.read()) is not grpc.aio.EOF:
            numbers.append(message.execution.scheduled_time.ToMilliseconds() - NOW_MS)
    except grpc.aio.AioRpcError as error:
        return numbers, info_of(error)
    raise AssertionError("a watch ends with an error")


async def test_who_does_not_read_is_ended_while_the_transport_is_full(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SLOW_S", 0.5)
    call: Any = world.jobs.WatchExecutions(ALL)
    opening = await call.read()
    assert not opening.HasField("execution")
    world.scheduler.log += [ended(number) for number in range(4_000)]
    assert await until_ended(world) == [("WatchExecutions", "RESOURCE_EXHAUSTED")]
    numbers, info = await rest_of(call)
    assert info.reason == "READER_TOO_SLOW"
    assert numbers == list(range(len(numbers))), "what was sent before comes in order"
    assert 0 < len(numbers) < 4_000


async def test_who_goes_is_not_remembered(world: World) -> None:
    call = world.jobs.WatchExecutions(ALL)
    await call.read()
    call.cancel()
    assert await until_ended(world) == [("WatchExecutions", "CANCELLED")]


async def test_a_server_that_leaves_says_so_at_once(world: World) -> None:
    call = world.jobs.WatchExecutions(ALL)
    await call.read()
    stopping = asyncio.create_task(world.door.stop(30))
    numbers, info = await rest_of(call)
    assert (numbers, info.reason) == ([], "NODE_STOPPING")
    async with asyncio.timeout(5):
        await stopping
