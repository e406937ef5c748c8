"""A watch against a scripted server: what a real one says only when something is rare, large or broken."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import pytest

from tickwheel.etcd import kv_pb2 as kv
from tickwheel.etcd import rpc_service_pb2 as rpc
from tickwheel.etcd import rpc_service_pb2_grpc as stubs
from tickwheel.server.cluster import etcd_watch
from tickwheel.server.cluster.etcd import EtcdClient
from tickwheel.server.cluster.etcd_link import EtcdOptions
from tickwheel.server.cluster.ports import Batch, Reset
from tickwheel.server.errors import PermissionDenied, TickwheelError, Unavailable

CLUSTER = 77
Requests = AsyncIterator[rpc.WatchRequest]
Script = Callable[["Server", Requests, rpc.WatchCreateRequest], AsyncGenerator[rpc.WatchResponse]]


def header(revision: int = 10, cluster: int = CLUSTER) -> rpc.ResponseHeader:
    return rpc.ResponseHeader(cluster_id=cluster, revision=revision)


def created(revision: int = 10, cluster: int = CLUSTER) -> rpc.WatchResponse:
    return rpc.WatchResponse(header=header(revision, cluster), watch_id=1, created=True)


def put(*revisions: int, fragment: bool = False) -> rpc.WatchResponse:
    events = [
        kv.Event(kv=kv.KeyValue(key=b"/tickwheel/default/k", value=b"v", mod_revision=revision))
        for revision in revisions
    ]
    return rpc.WatchResponse(header=header(99), watch_id=1, events=events, fragment=fragment)


class Server(stubs.KVServicer, stubs.WatchServicer, stubs.AuthServicer):
    """Plays one script a watch stream, the last one again and again."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.starts: list[int] = []
        self.tokens: list[str] = []
        self.revision = 10
        self.probes = 0
        self.logins = 0
        self.port = 0
        self._server = grpc.aio.server()

    async def start(self) -> None:
        stubs.add_KVServicer_to_server(self, self._server)
        stubs.add_WatchServicer_to_server(self, self._server)
        stubs.add_AuthServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def Range(self, request: rpc.RangeRequest, context: object) -> rpc.RangeResponse:  # noqa: N802
        return rpc.RangeResponse(header=header(self.revision))

    def _unused(self, request: object, context: object) -> Any:
        raise AssertionError("a watch does not call it")

    Put = DeleteRange = Txn = _unused

    async def Authenticate(  # noqa: N802
        self, request: rpc.AuthenticateRequest, context: object
    ) -> rpc.AuthenticateResponse:
        self.logins += 1
        return rpc.AuthenticateResponse(token=f"token-{self.logins}")

    async def Watch(  # noqa: N802
        self,
        request_iterator: Requests,
        context: "grpc.aio.ServicerContext[rpc.WatchRequest, rpc.WatchResponse]",
    ) -> AsyncIterator[rpc.WatchResponse]:
        first = await anext(request_iterator)
        self.starts.append(first.create_request.start_revision)
        self.tokens += [str(v) for k, v in context.invocation_metadata() or () if k == "token"]
        script = self.scripts[min(len(self.starts), len(self.scripts)) - 1]
        try:
            async for response in script(self, request_iterator, first.create_request):
                yield response
        except Failure as failure:
            await context.abort(failure.code, failure.details)


async def never(requests: Requests) -> None:
    """Say nothing more, whatever is asked."""
    async for _ in requests:
        pass


async def first_two(
    server: Server, requests: Requests, _: object
) -> AsyncGenerator[rpc.WatchResponse]:
    """Two revisions, then the stream ends."""
    yield created()
    yield put(11)
    yield put(12)


async def quiet(server: Server, requests: Requests, _: object) -> AsyncGenerator[rpc.WatchResponse]:
    """Nothing happens; probes are answered."""
    yield created()
    async for request in requests:
        assert request.HasField("progress_request")
        server.probes += 1
        yield rpc.WatchResponse(header=header(50), watch_id=-1)
        if server.probes == 3:
            yield put(13)


async def silent(
    server: Server, requests: Requests, _: object
) -> AsyncGenerator[rpc.WatchResponse]:
    """There, and says nothing."""
    yield created()
    await never(requests)


async def in_pieces(
    server: Server, requests: Requests, _: object
) -> AsyncGenerator[rpc.WatchResponse]:
    """One answer in three."""
    yield created()
    yield put(11, 11, fragment=True)
    yield put(11, fragment=True)
    yield put(11, 12)
    await never(requests)


async def compacted(
    server: Server, requests: Requests, _: object
) -> AsyncGenerator[rpc.WatchResponse]:
    """The start is forgotten."""
    yield created()
    yield rpc.WatchResponse(header=header(), watch_id=1, canceled=True, compact_revision=9)


async def denied(
    server: Server, requests: Requests, _: object
) -> AsyncGenerator[rpc.WatchResponse]:
    """As etcd refuses: made and ended at once."""
    yield rpc.WatchResponse(
        header=header(), watch_id=-1, created=True, canceled=True, cancel_reason="permission denied"
    )


async def ended(server: Server, requests: Requests, _: object) -> AsyncGenerator[rpc.WatchResponse]:
    """Cancelled for a reason that passes."""
    yield created()
    yield rpc.WatchResponse(
        header=header(), watch_id=1, canceled=True, cancel_reason="etcdserver: no leader"
    )


async def elsewhere(
    server: Server, requests: Requests, _: object
) -> AsyncGenerator[rpc.WatchResponse]:
    """Another cluster."""
    yield created(cluster=78)
    await never(requests)


async def behind(
    server: Server, requests: Requests, _: object
) -> AsyncGenerator[rpc.WatchResponse]:
    """A member that has not heard of our revision yet."""
    yield created(revision=5)
    yield put(13)
    await never(requests)


def fails(code: grpc.StatusCode, details: str) -> Script:
    async def script(
        server: Server, requests: Requests, _: object
    ) -> AsyncGenerator[rpc.WatchResponse]:
        raise Failure(code, details)
        yield created()

    return script


class Failure(Exception):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


Play = Callable[..., Awaitable[tuple[Server, EtcdClient]]]


@pytest.fixture
async def play() -> AsyncIterator[Play]:
    running: list[tuple[Server, EtcdClient]] = []

    async def start(*scripts: Script, **options: str) -> tuple[Server, EtcdClient]:
        server = Server(*scripts)
        await server.start()
        client = EtcdClient(
            EtcdOptions(
                endpoints=(f"127.0.0.1:{server.port}",),
                watch_probe_ms=40,
                watch_silence_ms=120,
                **options,  # type: ignore[arg-type]
            )
        )
        running.append((server, client))
        return running[-1]

    yield start
    for server, client in running:
        await client.close()
        await server.stop()


async def take(client: EtcdClient, count: int, from_revision: int = 11) -> list[Batch | Reset]:
    news: list[Batch | Reset] = []
    async with asyncio.timeout(10), aclosing(client.watch("k", from_revision)) as watch:
        async for one in watch:
            news.append(one)
            if len(news) == count:
                break
    return news


async def test_a_stream_that_ends_goes_on_after_the_last_event(play: Play) -> None:
    server, client = await play(first_two, quiet)
    server.revision = 12
    news = await take(client, 3)
    assert [one.revision for one in news if isinstance(one, Batch)] == [11, 12, 13]
    assert (server.starts[0], set(server.starts[1:])) == (11, {13})


async def test_progress_proves_life_and_moves_nothing(play: Play) -> None:
    server, client = await play(quiet)
    news = await take(client, 1)
    assert isinstance(news[0], Batch)
    assert news[0].revision == 13
    assert server.starts == [11]
    assert server.probes == 3


async def test_a_silent_stream_is_left(play: Play) -> None:
    server, client = await play(silent, silent, quiet)
    await take(client, 1)
    assert server.starts == [11, 11, 11]


async def test_an_answer_in_pieces_is_one_batch(play: Play) -> None:
    _, client = await play(in_pieces)
    (batch,) = await take(client, 1)
    assert isinstance(batch, Batch)
    assert [event.revision for event in batch.events] == [11, 11, 11, 11, 12]
    assert batch.revision == 12


async def test_an_answer_without_end_is_replaced_by_a_listing(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_watch, "EVENTS_MAX", 3)
    server, client = await play(in_pieces, quiet)
    server.revision = 12
    news = await take(client, 2)
    assert isinstance(news[0], Reset)
    assert news[0].listing.revision == 12
    assert server.starts == [11, 13]


async def test_a_compacted_start_is_replaced_by_a_listing(play: Play) -> None:
    server, client = await play(compacted, quiet)
    news = await take(client, 2)
    assert isinstance(news[0], Reset)
    assert server.starts == [11, 11]


async def test_another_cluster_is_listed_anew(play: Play) -> None:
    server, client = await play(first_two, elsewhere, elsewhere)
    news = await take(client, 3)
    assert isinstance(news[2], Reset)
    assert server.starts[:2] == [11, 13]


async def test_a_member_that_is_behind_is_waited_for(play: Play) -> None:
    server, client = await play(first_two, behind)
    server.revision = 12
    news = await take(client, 3)
    assert isinstance(news[2], Batch)
    assert server.starts == [11, 13]


async def test_a_store_that_was_set_back_is_listed_anew(play: Play) -> None:
    server, client = await play(first_two, behind)
    server.revision = 5
    news = await take(client, 3)
    assert isinstance(news[2], Reset)
    assert news[2].listing.revision == 5


async def test_a_watch_that_etcd_ends_goes_on(play: Play) -> None:
    server, client = await play(ended, quiet)
    await take(client, 1)
    assert server.starts == [11, 11]


async def test_a_lack_of_rights_is_believed_when_a_new_token_does_not_help(play: Play) -> None:
    server, client = await play(denied, quiet, user="u", password="p")
    await take(client, 1)
    assert server.tokens == ["token-1", "token-2"]
    server, client = await play(denied, user="u", password="p")
    with pytest.raises(PermissionDenied):
        await take(client, 1)
    assert server.tokens == ["token-1", "token-2"]


async def test_a_closed_client_ends_its_watches(play: Play) -> None:
    _, client = await play(quiet)
    taking = asyncio.create_task(take(client, 9))
    await asyncio.sleep(0.1)
    await client.close()
    with pytest.raises(Unavailable):
        await taking


@pytest.mark.parametrize(
    ("code", "details", "again"),
    [
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader", True),
        (grpc.StatusCode.UNKNOWN, "whatever", True),
        (grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token", True),
        (grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied", False),
    ],
)
async def test_a_stream_that_fails(
    play: Play, code: grpc.StatusCode, details: str, again: bool
) -> None:
    server, client = await play(fails(code, details), quiet)
    if again:
        await take(client, 1)
        assert server.starts == [11, 11]
    else:
        with pytest.raises(TickwheelError, match=details):
            await take(client, 1)
