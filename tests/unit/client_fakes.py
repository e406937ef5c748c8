"""A server for tests of the client: a real gRPC server on loopback, whose answers the test writes by hand."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from tickwheel.v1 import job_service_pb2 as pb
from tickwheel.v1.cluster_service_pb2 import Cluster, WatchClusterRequest, WatchClusterResponse
from tickwheel.v1.cluster_service_pb2_grpc import (
    ClusterServiceServicer,
    add_ClusterServiceServicer_to_server,
)
from tickwheel.v1.job_pb2 import JOB_STATE_SCHEDULED, Job

Context = grpc.aio.ServicerContext[Any, Any]
EMPTY = Empty()
UID = "0" * 32
NEXT_S = 1_900_000_000
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def status(
    code: grpc.StatusCode,
    message: str,
    *,
    reason: str = "",
    violations: dict[str, str] | None = None,
    retry_ms: int | None = None,
) -> Status:
    """A status as the server's doors make it."""
    packed = Status(code=code.value[0], message=message)
    details: list[Message] = [
        ErrorInfo(reason=reason or code.name, domain="tickwheel", metadata={"k": "v"})
    ]
    if violations:
        fields = [
            BadRequest.FieldViolation(field=field, description=text, reason="INVALID")
            for field, text in violations.items()
        ]
        details.append(BadRequest(field_violations=fields))
    if retry_ms is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(retry_ms)
        details.append(retry)
    for detail in details:
        packed.details.add().Pack(detail)
    return packed


async def abort(context: Context, error: Status) -> NoReturn:
    details = (("grpc-status-details-bin", error.SerializeToString()),)
    await context.abort(_CODES[error.code], error.message, details)


class FakeJobs:
    """Answers every batch of creates; other methods as the test sets them in `answers` by their name."""

    def __init__(self) -> None:
        self.batches: list[pb.BatchCreateJobsRequest] = []
        self.seen: list[tuple[str, Any, dict[str, str]]] = []
        self.answers: dict[str, Callable[[Any, Context], Awaitable[Any]]] = {}
        self.watch: Callable[[Any, Context], AsyncIterator[Any]] | None = None
        self.errors: dict[
            str, list[Status]
        ] = {}  # an item's job_id: its errors, the first one next
        self.gate: asyncio.Event | None = None
        self.most_calls = 0
        self._calls = 0

    async def answer(self, method: str, request: Any, context: Context) -> Any:
        """The answer to one call."""
        if method == "BatchCreateJobs":
            return await self._batch(request, context)
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        self.seen.append((method, request, metadata))
        if method not in self.answers:
            text = f"the test gave no answer for {method}"
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)
        return await self.answers[method](request, context)

    async def _batch(self, request: Any, context: Context) -> Any:
        self.batches.append(request)
        self._calls += 1
        self.most_calls = max(self.most_calls, self._calls)
        try:
            if "BatchCreateJobs" in self.answers:
                return await self.answers["BatchCreateJobs"](request, context)
            if self.gate is not None:
                await self.gate.wait()
            results = [self._result(request.parent, item) for item in request.requests]
            return pb.BatchCreateJobsResponse(results=results)
        finally:
            self._calls -= 1

    def _result(self, parent: str, item: pb.CreateJobRequest) -> pb.BatchCreateJobsResult:
        errors = self.errors.get(item.job_id)
        if errors:
            return pb.BatchCreateJobsResult(error=errors.pop(0))
        handle = pb.JobHandle(name=f"{parent}/jobs/{item.job_id or item.request_id}", uid=UID)
        handle.next_time.seconds = NEXT_S
        return pb.BatchCreateJobsResult(handle=handle)

    def handlers(self) -> grpc.GenericRpcHandler:
        """Every method of the service that has one request and one answer."""
        service = pb.DESCRIPTOR.services_by_name["JobService"]
        unary = [m for m in service.methods if not (m.client_streaming or m.server_streaming)]
        handlers = {method.name: self._handler(method) for method in unary}
        handlers["WatchExecutions"] = grpc.unary_stream_rpc_method_handler(
            self._watch,
            request_deserializer=pb.WatchExecutionsRequest.FromString,
            response_serializer=pb.WatchExecutionsResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    async def _watch(self, request: Any, context: Context) -> None:
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        self.seen.append(("WatchExecutions", request, metadata))
        assert self.watch is not None, "the test gave no watch"
        async for message in self.watch(request, context):
            await context.write(message)

    def _handler(self, method: MethodDescriptor) -> Any:
        async def call(request: Any, context: Context) -> Any:
            return await self.answer(method.name, request, context)

        return grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )


def answering(message: Message) -> Callable[[Any, Context], Awaitable[Any]]:
    """Always this answer."""

    async def answer(_request: Any, _context: Context) -> Any:
        return message

    return answer


def failing(
    *errors: Status, then: Message | None = None
) -> Callable[[Any, Context], Awaitable[Any]]:
    """These errors, one a call, and after them `then`; without it the last error for ever."""
    left = list(errors)

    async def answer(_request: Any, context: Context) -> Any:
        if not left:
            return then
        error = left[0]
        if then is not None or len(left) > 1:
            left.pop(0)
        return await abort(context, error)

    return answer


class FakeMap(ClusterServiceServicer):
    """Tells `shown` to whoever asks or watches, and again after `tell`; or the error that the test sets for watchers."""

    def __init__(self) -> None:
        self.shown = Cluster()
        self.watched = 0
        self.asked = 0
        self.error: Status | None = None
        self._news = asyncio.Event()

    def tell(self, shown: Cluster) -> None:
        self.shown = shown
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def GetCluster(self, request: Any, context: Any) -> Cluster:  # noqa: N802 - gRPC's name
        self.asked += 1
        return self.shown

    async def WatchCluster(  # noqa: N802
        self, request: WatchClusterRequest, context: Any
    ) -> AsyncIterator[WatchClusterResponse]:
        self.watched += 1
        if self.error is not None:
            await abort(context, self.error)
        known = request.after_revision
        while True:
            news = self._news
            if self.shown.revision > known:
                known = self.shown.revision
                yield WatchClusterResponse(cluster=self.shown)
            else:
                await news.wait()

    async def DrainNode(self, request: Any, context: Any) -> NoReturn:  # noqa: N802
        await abort(context, status(grpc.StatusCode.UNIMPLEMENTED, "not here"))

    async def MoveShard(self, request: Any, context: Any) -> NoReturn:  # noqa: N802
        await abort(context, status(grpc.StatusCode.UNIMPLEMENTED, "not here"))


async def start(
    jobs: FakeJobs, port: int = 0, cluster: FakeMap | None = None
) -> tuple[grpc.aio.Server, str]:
    """A server on loopback, and its address. Without `cluster` it is older than the map."""
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 * 1024 * 1024)]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((jobs.handlers(),))
    if cluster is not None:
        add_ClusterServiceServicer_to_server(cluster, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, f"127.0.0.1:{bound}"


@contextmanager
def serving(jobs: FakeJobs) -> Generator[str]:
    """The address of a server on a thread of its own, for tests that are not asynchronous."""
    started: list[str] = []
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        server, address = await start(jobs)
        started.append(address)
        ready.set()
        await asyncio.to_thread(stop.wait)
        await server.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield started[0]
    finally:
        stop.set()
        thread.join()


def job(name: str = "namespaces/default/jobs/nightly") -> Job:
    """A job as a server would answer it."""
    answer = Job(name=name, uid=UID, etag='"1"', state=JOB_STATE_SCHEDULED)
    answer.schedule.cron.expression = "0 9 * * 1-5"
    answer.schedule.cron.time_zone = "Europe/Berlin"
    answer.http_target.url = "https://example.com/hook"
    answer.next_time.seconds = NEXT_S
    return answer
