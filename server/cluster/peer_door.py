"""Floor 3. The peers' own listener: streams of messages, forwarded calls, snapshots.

    Replicate   hello ─► admitted or refused ─► frame ─► Unpacker ─► owner.on_messages, in the turn in which it came
    Forward     identified ─► owner.on_forward ─► response, or the status of its error
    Snapshot    identified ─► `SnapshotSource`

A frame is read only when the one before was handed over, so a node that is busy makes its peers wait, and holds no more
of theirs than the window of HTTP/2.

Must never import: the doors, `host`, `etcd*`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from tickwheel.internal.v1 import peer_service_pb2 as pb
from tickwheel.server.cluster import peer_status, wire
from tickwheel.server.cluster.peer_hello import Admission, Caller, Identity, make_hello
from tickwheel.server.cluster.peer_link import Counters
from tickwheel.server.cluster.peer_options import PEER_NAME, PeerOptions, bind, make_server
from tickwheel.server.cluster.peer_port import Forwarded, Owner
from tickwheel.server.cluster.snapshots import SnapshotSource
from tickwheel.server.errors import (
    FailedPrecondition,
    PermissionDenied,
    ResourceExhausted,
    TickwheelError,
    Unavailable,
)
from tickwheel.server.logs import get_logger

log = get_logger(__name__)

SERVICE: Final = "tickwheel.internal.v1.PeerService"
STREAMS_MAX: Final = 512
FORWARDS_MAX: Final = 512
FORWARD_S_MAX: Final = 300.0

Context = grpc.aio.ServicerContext[Any, Any]


class Door:
    """Serves what peers ask of this node."""

    def __init__(
        self, me: Identity, owner: Owner, options: PeerOptions, counters: Counters,
        session: Callable[[], int],
    ) -> None:  # fmt: skip
        self.admission = Admission(me)
        self._me = me
        self._owner = owner
        self._options = options
        self._counters = counters
        self._session = session
        self._snapshots = SnapshotSource(owner.open_snapshot, options.snapshot_bytes_per_s)
        self._server: grpc.aio.Server | None = None
        self._streams: set[asyncio.Task[Any]] = set()  # bounded: by STREAMS_MAX
        self._forwards = 0
        self._closed = False

    async def start(self) -> int:
        """Listen and serve; returns the port. Raises OSError when the address can't be had."""
        server = make_server(self._options)
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Replicate": grpc.stream_stream_rpc_method_handler(self._ended(self._replicate)),
            "Forward": grpc.unary_unary_rpc_method_handler(self._ended(self._forward)),
            "Snapshot": grpc.unary_stream_rpc_method_handler(self._ended(self._snapshot)),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = bind(server, self._options)
        await server.start()
        self._server = server
        return port

    async def stop(self) -> None:
        """Take no more of any stream, let forwarded calls end within the grace, then end everything."""
        self._closed = True
        for stream in self._streams:
            stream.cancel()
        if self._server is not None:
            await self._server.stop(self._options.stop_grace_s)

    def _ended(
        self, serve: Callable[[Any, Context], Awaitable[Any]]
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        """The handler with its refusals turned into statuses."""

        async def served(request: Any, context: Context) -> Any:
            try:
                self._check_certificate(context)
                return await serve(request, context)
            except TickwheelError as error:
                code, words = grpc.StatusCode[error.code], f"{error.reason}: {error.message}"
            return await context.abort(code, words)

        return served

    def _check_certificate(self, context: Context) -> None:
        if self._options.tls is None:
            return
        names = context.auth_context().get("x509_subject_alternative_name", ())
        if PEER_NAME.encode() not in names:
            raise PermissionDenied(
                f"the certificate is not one of a node: it has no name {PEER_NAME}",
                reason="CERTIFICATE_NOT_OF_A_NODE",
            )

    # --- messages ---

    async def _replicate(self, _requests: object, context: Context) -> None:
        if len(self._streams) >= STREAMS_MAX:
            raise ResourceExhausted(f"{STREAMS_MAX} streams are open", reason="STREAMS_MAX")
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            first = parse(pb.ReplicateRequest, await context.read())
            caller = self.admission.identify(first.hello)
            self.admission.open(caller)
            await context.write(self._answer(caller))
            await self._receive(caller, context)
        except asyncio.CancelledError:
            if not self._closed:
                raise
            raise Unavailable("the node is stopping", reason="STOPPING") from None
        finally:
            self._streams.discard(task)

    def _answer(self, caller: Caller) -> bytes:
        hello = make_hello(
            self._me, caller.sender, self._session(), stream=caller.stream, lane=caller.lane
        )
        return pb.ReplicateResponse(hello=hello).SerializeToString()

    async def _receive(self, caller: Caller, context: Context) -> None:
        unpacker = wire.Unpacker()
        try:
            while (data := await context.read()) is not grpc.aio.EOF:
                self.admission.check_current(caller)
                self._counters.frames_received += 1
                messages = unpacker.take(data)
                if messages and not self._closed:
                    self._owner.on_messages(caller.sender, caller.session, messages)
        finally:
            self.admission.closed(caller)

    # --- calls ---

    async def _forward(self, data: bytes, context: Context) -> bytes:
        request = parse(pb.ForwardRequest, data)
        caller = self.admission.identify(request.hello)
        if request.hops != 1:
            raise FailedPrecondition(
                f"forwarded {request.hops} times: a call is forwarded once",
                reason="FORWARDED_TWICE",
            )
        if self._forwards >= FORWARDS_MAX:
            raise ResourceExhausted(f"{FORWARDS_MAX} calls are under way", reason="FORWARDS_MAX")
        left_s = min(context.time_remaining() or FORWARD_S_MAX, FORWARD_S_MAX)
        self._forwards += 1
        try:
            answer = await self._carried_out(
                Forwarded(caller.sender, request.method, request.request, left_s)
            )
        finally:
            self._forwards -= 1
        return answer.SerializeToString()

    async def _carried_out(self, call: Forwarded) -> pb.ForwardResponse:
        try:
            return pb.ForwardResponse(response=await self._owner.on_forward(call))
        except TickwheelError as error:
            return pb.ForwardResponse(status=peer_status.encode(error))
        except Exception:
            log.exception("a forwarded call failed", extra={"method": call.method})
            unforeseen = TickwheelError(
                f"internal error on node {self._me.store}; its log tells more"
            )
            return pb.ForwardResponse(status=peer_status.encode(unforeseen))

    async def _snapshot(self, data: bytes, context: Context) -> None:
        request = parse(pb.SnapshotRequest, data)
        self.admission.identify(request.hello)
        await self._snapshots.serve(request, context.write)


def parse(kind: Any, data: Any) -> Any:
    """The message of its bytes. Raises InvalidArgument."""
    try:
        return kind.FromString(data if isinstance(data, bytes) else b"")
    except DecodeError:
        raise wire.malformed(f"it is no {kind.DESCRIPTOR.name}") from None
