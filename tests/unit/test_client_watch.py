"""A watch of the client library: it goes on by itself over breaks, and stops where going on would leave something out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from google.rpc.status_pb2 import Status
from tests.unit import client_fakes as fakes
from tests.unit.test_client_calls import connected
from tests.unit.test_client_sync import jobs, tickwheel

from tickwheel import client
from tickwheel.client import AsyncClient, Client
from tickwheel.v1 import job_service_pb2 as pb

__all__ = ["jobs", "tickwheel"]
C = grpc.StatusCode
NIGHTLY = "namespaces/default/jobs/nightly"


def change(number: int) -> pb.WatchExecutionsResponse:
    message = pb.WatchExecutionsResponse(resume_token=f"t{number}")
    message.execution.name = f"e{number}"
    message.read_time.seconds = number
    return message


def pulse(number: int) -> pb.WatchExecutionsResponse:
    return pb.WatchExecutionsResponse(resume_token=f"t{number}")


Ending = Callable[[Any], Any]


async def cut(context: fakes.Context) -> None:
    """As a proxy would end it that goes away: no word of Tickwheel's."""
    await context.abort(C.UNAVAILABLE, "cut")


async def end(_context: fakes.Context) -> None:
    """Without an error, which no server of Tickwheel's does."""


async def silence(_context: fakes.Context) -> None:
    await asyncio.sleep(3600)


def refusal(status: Status) -> Ending:
    async def refuse(context: fakes.Context) -> None:
        await fakes.abort(context, status)

    return refuse


def script(*parts: tuple[list[pb.WatchExecutionsResponse], Ending]) -> Any:
    """What the server says in its first stream, its second, ..., and how each ends."""
    left = list(parts)

    async def watch(_request: Any, context: fakes.Context) -> AsyncIterator[Any]:
        messages, ending = left.pop(0)
        for message in messages:
            yield message
        await ending(context)

    return watch


async def take(connected: AsyncClient, count: int, **options: Any) -> list[str]:
    """The names and tokens of the first changes."""
    found: list[str] = []
    async with aclosing(connected.executions.watch("nightly", **options)) as changes:
        async for seen in changes:
            name = seen.execution.name if seen.execution is not None else "-"
            found.append(f"{name} {seen.token}")
            if len(found) == count:
                return found
    raise AssertionError("a watch never ends by itself")


def tokens_sent(server: fakes.FakeJobs) -> list[str]:
    return [request.resume_token for _, request, _ in server.seen]


@pytest.mark.parametrize(
    "ending",
    [
        cut,
        end,
        refusal(fakes.status(C.UNAVAILABLE, "stopping", reason="NODE_STOPPING")),
        refusal(fakes.status(C.RESOURCE_EXHAUSTED, "slow", reason="READER_TOO_SLOW", retry_ms=1)),
    ],
)
async def test_it_goes_on_after_the_last_token_it_saw(ending: Ending) -> None:
    server = fakes.FakeJobs()
    server.watch = script(
        ([pulse(0), change(1), change(2)], ending), ([], ending), ([change(3)], silence)
    )
    async with connected(server, api_key="key") as connection:
        assert await take(connection, 3, where="state = FAILED") == ["e1 t1", "e2 t2", "e3 t3"]
    assert tokens_sent(server) == ["", "t2", "t2"]
    _, request, metadata = server.seen[-1]
    assert (request.parent, request.filter) == (NIGHTLY, "state = FAILED")
    assert metadata["authorization"] == "Bearer key"


async def test_an_opening_and_pulses_move_the_token_on_and_are_told_if_wanted() -> None:
    server = fakes.FakeJobs()
    server.watch = script(([pulse(5)], cut), ([change(6), pulse(7)], cut), ([pulse(8)], silence))
    async with connected(server) as connection:
        assert await take(connection, 4, pulse=True, token="t4") == [
            "- t5",
            "e6 t6",
            "- t7",
            "- t8",
        ]
    assert tokens_sent(server) == ["t4", "t5", "t7"]


async def test_times_are_told_where_they_are_known() -> None:
    server = fakes.FakeJobs()
    server.watch = script(([pulse(0), change(9)], silence))
    async with (
        connected(server) as connection,
        aclosing(connection.executions.watch(pulse=True)) as changes,
    ):
        first, second = await anext(changes), await anext(changes)
    assert first.read_time is None
    assert second.read_time is not None
    assert second.read_time.timestamp() == 9


async def test_what_is_forgotten_is_an_error_with_the_remedy() -> None:
    server = fakes.FakeJobs()
    expired = fakes.status(C.ABORTED, "list, then watch anew", reason="RESUME_TOKEN_EXPIRED")
    server.watch = script(([change(1)], cut), ([], refusal(expired)))
    async with connected(server) as connection:
        with pytest.raises(client.Aborted, match="list, then watch anew") as caught:
            await take(connection, 2)
    assert caught.value.reason == "RESUME_TOKEN_EXPIRED"
    assert tokens_sent(server) == ["", "t1"]


async def test_a_silent_stream_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tickwheel.client.runs.SILENCE_S", 0.2)
    server = fakes.FakeJobs()
    server.watch = script(([change(1)], silence), ([change(2)], silence))
    async with connected(server) as connection:
        assert await take(connection, 2) == ["e1 t1", "e2 t2"]
    assert tokens_sent(server) == ["", "t1"]


async def test_patience_ends() -> None:
    server = fakes.FakeJobs()
    nothing: list[pb.WatchExecutionsResponse] = []
    server.watch = script(*[(nothing, cut)] * 99)
    async with connected(server) as connection:
        with pytest.raises(client.Unavailable, match="cut"):
            await take(connection, 1, patience_s=0.3)
    assert 1 < len(server.seen) < 20


async def test_another_address_stands_in() -> None:
    server = fakes.FakeJobs()
    server.watch = script(([change(1)], silence))
    running, address = await fakes.start(server)
    async with AsyncClient(["127.0.0.1:1", address]) as connection:
        assert await take(connection, 1) == ["e1 t1"]
    await running.stop(None)


async def test_a_client_that_is_closed_watches_no_more() -> None:
    server = fakes.FakeJobs()
    server.watch = script(([change(1)], silence))
    async with connected(server) as connection:
        changes = connection.executions.watch()
        await anext(changes)
        await connection.close()
        with pytest.raises(client.TickwheelError):
            await anext(changes)
        with pytest.raises(client.Unavailable) as caught:
            await anext(connection.executions.watch())
    assert caught.value.reason == "CLIENT_CLOSED"


async def test_a_connection_that_is_let_go_under_a_watch_is_a_break() -> None:
    server = fakes.FakeJobs()
    server.watch = script(([change(1)], silence), ([change(2)], silence))
    running, address = await fakes.start(server)
    async with AsyncClient(address) as connection:
        changes = connection.executions.watch()
        assert (await anext(changes)).token == "t1"
        links = connection._core.links
        await links._open.pop(address).channel.close()
        assert (await anext(changes)).token == "t2"
        await changes.aclose()
    await running.stop(None)
    assert tokens_sent(server) == ["", "t1"]


async def test_a_watch_that_is_left_is_ended_at_the_server() -> None:
    server = fakes.FakeJobs()
    gone = asyncio.Event()

    async def noticing(_context: fakes.Context) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            gone.set()

    server.watch = script(([change(1)], noticing))
    async with connected(server) as connection:
        assert await take(connection, 1) == ["e1 t1"]
        async with asyncio.timeout(5):
            await gone.wait()


def test_ordinary_programs_iterate(tickwheel: Client, jobs: fakes.FakeJobs) -> None:
    jobs.watch = script(([pulse(0), change(1)], cut), ([change(2)], silence))
    changes = tickwheel.executions.watch("nightly")
    assert [next(changes).token for _ in range(2)] == ["t1", "t2"]
    changes.close()
    assert tokens_sent(jobs) == ["", "t1"]


def test_a_watch_may_be_left_after_the_client_is_closed(
    tickwheel: Client, jobs: fakes.FakeJobs
) -> None:
    jobs.watch = script(([change(1)], silence))
    changes = tickwheel.executions.watch()
    assert next(changes).token == "t1"
    tickwheel.close()
    changes.close()
