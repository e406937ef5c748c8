"""Floor 5. The gRPC door: every method of every service of `tickwheel.v1`, on one `grpc.aio` server.

The handlers are made from the services' descriptors, so no method can be forgotten: one that has no coroutine here is
UNIMPLEMENTED with METHOD_NOT_YET_SUPPORTED. Each call is wrapped once: errors become statuses, its end is counted. A
call whose deadline passes is cancelled by the transport; what it asked for may still be done (DEADLINE_EXCEEDED means
unknown).

Limits on everything: bytes of a message, of metadata, calls at a time, pings of a client.

Must never import: rooms below but `command`, `errors`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.code_pb2 import Code
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio as health  # type: ignore[attr-defined]  # not in __all__
from grpc_reflection.v1alpha import reflection as reflections

from tickwheel.internal.v1.unread_pb2 import UnreadBatch, UnreadStreamMessage
from tickwheel.server.api import limits
from tickwheel.server.api.admin import Backups, create_backup
from tickwheel.server.api.cluster import ClusterDoor
from tickwheel.server.api.convert import Converter
from tickwheel.server.api.creates import Creator
from tickwheel.server.api.errors import abort_with, to_status
from tickwheel.server.api.gather import Gather
from tickwheel.server.api.jobs import Jobs
from tickwheel.server.api.lists import Lists
from tickwheel.server.api.messages import BATCH, SERVICE, read_message
from tickwheel.server.api.route import Router
from tickwheel.server.api.stream import CreateStream
from tickwheel.server.api.trials import Trials
from tickwheel.server.api.validate import TargetChecks
from tickwheel.server.api.watch import WATCH, Watches
from tickwheel.server.command import Scheduler
from tickwheel.server.errors import Unimplemented, Violation
from tickwheel.server.topology import SCATTER, ClusterPort
from tickwheel.v1 import (
    admin_service_pb2,
    cluster_service_pb2,
    job_service_pb2,
    operation_service_pb2,
    worker_service_pb2,
)

Context = grpc.aio.ServicerContext[Any, Any]
Call = Callable[[Any], Awaitable[Message]]
StreamCall = Callable[[AsyncIterator[Any], Any], Awaitable[None]]

SERVICES: Final[tuple[ServiceDescriptor, ...]] = tuple(
    service
    for module in (
        job_service_pb2,
        operation_service_pb2,
        admin_service_pb2,
        worker_service_pb2,
        cluster_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
)

OPTIONS: Final = (
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", limits.METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", limits.METADATA_BYTES_MAX),
    ("grpc.max_concurrent_streams", limits.CONCURRENT_STREAMS_MAX),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    (
        "grpc.http2.ping_timeout_ms",
        10_000,
    ),  # what ends a silent connection; keepalive_timeout alone does not
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
)


class DoorConfig(Protocol):
    """What the door asks of the configuration."""

    @property
    def grpc_address(self) -> tuple[str, int]:
        """Host and port to listen on; port 0 takes a free one."""
        ...


class CallMetrics(Protocol):
    """Who counts calls."""

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """A call ended, with a status, after so long."""
        ...


class GrpcDoor:
    """The listener and its services."""

    def __init__(  # noqa: PLR0913 - it is where the door meets the house
        self,
        config: DoorConfig,
        scheduler: Scheduler,
        cluster: ClusterPort,
        metrics: CallMetrics,
        *,
        check_url: Callable[[str, str], Sequence[Violation]],
        check_headers: Callable[[Sequence[tuple[str, str]], str], Sequence[Violation]],
        body_bytes_max: int = limits.BODY_BYTES_MAX,
        reflection: bool = False,
        backups: Backups | None = None,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._reflection = reflection
        self._health: Any = health.HealthServicer()  # pyright: ignore[reportUnknownMemberType]
        self._server: grpc.aio.Server | None = None
        self._watchers: set[asyncio.Task[Any]] = set()  # bounded: by WATCHERS_MAX
        self._closing = False
        converter = Converter(TargetChecks(check_url, check_headers), body_bytes_max=body_bytes_max)
        self._cluster = ClusterDoor(cluster)
        self._exchange = Exchange.make(scheduler, converter, cluster)
        self._backups = backups
        self.port = 0

    async def start(self) -> int:
        """Listen and serve; returns the port. OSError when the address can't be had."""
        server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=limits.CALLS_MAX)
        server.add_generic_rpc_handlers(self._handlers())
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)  # type: ignore[no-untyped-call]
        names = [service.full_name for service in SERVICES]
        if self._reflection:
            shown = [*names, HEALTH, reflections.SERVICE_NAME]
            reflections.enable_server_reflection(shown, server)  # type: ignore[no-untyped-call]
        host, port = self._config.grpc_address
        self.port = _bind(server, host, port)
        await server.start()
        for name in ["", *names]:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        return self.port

    async def answer(self, method: str, request: bytes) -> bytes:
        """Carry out a call that another node forwarded. Raises TickwheelError."""
        return await self._exchange.answer(method, request)

    async def stop(self, grace_s: float) -> None:
        """Say NOT_SERVING, take no new calls, let those under way end within the grace."""
        assert self._server is not None, "stop() comes after start()"
        await self._health.enter_graceful_shutdown()
        self._exchange.watches.close()
        self._closing = True
        for watcher in self._watchers:
            watcher.cancel()
        await self._server.stop(grace_s)

    # --- handlers ---

    def _handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        return tuple(
            grpc.method_handlers_generic_handler(
                service.full_name,
                {method.name: self._handler(method) for method in service.methods},
            )
            for service in SERVICES
        )

    def _handler(self, method: MethodDescriptor) -> "grpc.RpcMethodHandler[Any, Any]":
        # Requests arrive as bytes: one that can't be read gets a status with details, too.
        codec: dict[str, Any] = {
            "response_serializer": GetMessageClass(method.output_type).SerializeToString
        }
        if method.client_streaming:
            bulk = method.full_name == "tickwheel.v1.JobService.StreamCreateJobs"
            call = self._create_stream if bulk else _later(method)
            return grpc.stream_stream_rpc_method_handler(self._wrapped(method, call), **codec)
        if method.server_streaming:
            call = self._streams().get(method.full_name) or _later(method)
            return grpc.unary_stream_rpc_method_handler(self._wrapped(method, call), **codec)
        unary = self._exchange.calls.get(method.full_name)
        call = _later(method) if unary is None else _parsed(unary, method)
        return grpc.unary_unary_rpc_method_handler(self._wrapped(method, call), **codec)

    def _streams(self) -> Mapping[str, Callable[[bytes, Context], Awaitable[None]]]:
        """The calls that answer with a stream."""
        streams = {
            "tickwheel.v1.ClusterService.WatchCluster": self._watch_cluster,
            SERVICE + "WatchExecutions": self._watch_executions,
        }
        if self._backups is not None:
            streams["tickwheel.v1.AdminService.CreateBackup"] = self._create_backup
        return streams

    async def _create_stream(self, messages: AsyncIterator[Any], context: Context) -> None:
        await CreateStream(self._exchange.router, context).serve(_creates(messages))

    async def _watch_cluster(self, request: bytes, context: Context) -> None:
        """A watch ends by itself when the door closes: it would outlast any grace."""
        message = read_message(cluster_service_pb2.WatchClusterRequest, request)
        watcher = asyncio.current_task()
        assert watcher is not None, "a handler is a task"
        self._watchers.add(watcher)
        try:
            async for response in self._cluster.watch_cluster(message):
                await context.write(response)
        except asyncio.CancelledError:
            if not self._closing:
                raise
            watcher.uncancel()
        finally:
            self._watchers.discard(watcher)

    async def _watch_executions(self, request: bytes, context: Context) -> None:
        message = read_message(job_service_pb2.WatchExecutionsRequest, request)
        await self._exchange.watches.serve(message, context.write)

    async def _create_backup(self, request: bytes, context: Context) -> None:
        assert self._backups is not None, "the method is served only where backups can be made"
        message = read_message(admin_service_pb2.CreateBackupRequest, request)
        await create_backup(self._backups, message, context)

    def _wrapped(
        self, method: MethodDescriptor, call: Callable[[Any, Context], Awaitable[Any]]
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        """The call with its errors turned into statuses and its end counted."""
        name = method.name
        ended = self._metrics.call_ended
        now_s = asyncio.get_running_loop().time

        async def serve(request: Any, context: Context) -> Any:
            code, start_s = "OK", now_s()
            try:
                return await call(request, context)
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            except Exception as error:  # noqa: BLE001 - the last place where it can get an answer
                status = to_status(error)
                code = Code.Name(status.code)
            finally:
                ended(name, code, now_s() - start_s)
            # What abort raises and the call's state hold each other until the collector comes, which is seldom:
            # neither the request nor the error, whose traceback holds it too, may hang on to that ring.
            del request
            return await abort_with(context, status)

        return serve


class Exchange(NamedTuple):
    """The calls of one message, as any node answers them, and what answers those that other nodes forward."""

    calls: dict[str, Call]
    router: Router
    gather: Gather
    watches: Watches

    @classmethod
    def make(cls, scheduler: Scheduler, converter: Converter, cluster: ClusterPort) -> "Exchange":
        """Put them together."""
        creator, lists = Creator(scheduler, converter), Lists(scheduler)
        own = method_table(scheduler, converter)
        router, gather = Router(cluster, creator, own), Gather(cluster, lists)
        calls = {method: router.routed(method, call) for method, call in own.items()}
        batches = Jobs(scheduler, converter, router)
        door = ClusterDoor(cluster)
        calls |= {
            SERVICE + "BatchCreateJobs": batches.batch_create_jobs,
            SERVICE + "ListJobs": gather.list_jobs,
            SERVICE + "CountJobs": gather.count_jobs,
            SERVICE + "ListExecutions": router.routed(
                SERVICE + "ListExecutions", gather.list_executions
            ),
            "tickwheel.v1.ClusterService.GetCluster": door.get_cluster,
            "tickwheel.v1.ClusterService.DrainNode": door.drain_node,
            "tickwheel.v1.ClusterService.MoveShard": door.move_shard,
        }
        return cls(calls, router, gather, Watches(cluster, scheduler))

    async def answer(self, method: str, request: bytes) -> bytes:
        """Carry out what another node forwarded. Raises TickwheelError."""
        if method == WATCH:
            return await self.watches.answer(request)
        if method.startswith(SCATTER):
            return await self.gather.answer(method, request)
        return await self.router.answer(method, request)


def method_table(scheduler: Scheduler, converter: Converter) -> dict[str, Call]:
    """The coroutine of each method of JobService that takes one message and answers with one, on this node's shards."""
    jobs, lists = Jobs(scheduler, converter), Lists(scheduler)
    trials = Trials(scheduler, converter)
    table: dict[str, Call] = {
        "CreateJob": jobs.create_job,
        "BatchCreateJobs": jobs.batch_create_jobs,
        "GetJob": jobs.get_job,
        "ListJobs": lists.list_jobs,
        "CountJobs": lists.count_jobs,
        "UpdateJob": jobs.update_job,
        "DeleteJob": jobs.delete_job,
        "PauseJob": jobs.pause_job,
        "ResumeJob": jobs.resume_job,
        "CancelJob": jobs.cancel_job,
        "RunJob": jobs.run_job,
        "ListExecutions": lists.list_executions,
        "GetExecution": jobs.get_execution,
        "RetryExecution": jobs.retry_execution,
        "PreviewSchedule": trials.preview_schedule,
        "ValidateJob": trials.validate_job,
    }
    return {SERVICE + name: call for name, call in table.items()}


def _parsed(call: Call, method: MethodDescriptor) -> Callable[[bytes, Context], Awaitable[Any]]:
    unread = method.full_name == BATCH
    kind: type[Any] = UnreadBatch if unread else GetMessageClass(method.input_type)

    async def called(request: bytes, _context: Context) -> Any:
        return await call(read_message(kind, request))

    return called


async def _creates(messages: AsyncIterator[bytes]) -> AsyncIterator[UnreadStreamMessage]:
    async for message in messages:
        yield read_message(UnreadStreamMessage, message)


def _later(method: MethodDescriptor) -> Callable[[Any, Context], Awaitable[Any]]:
    async def refuse(_request: Any, _context: Context) -> Any:
        raise Unimplemented(
            f"{method.name} is part of the API, but this version of the server does not have it",
            metadata={"method": method.full_name},
        )

    return refuse


def _bind(server: grpc.aio.Server, host: str, port: int) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"can't listen on {address}: {error}") from error
