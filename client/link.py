"""One connection to one address: made at once, connected when it is first needed."""

import asyncio
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import grpc
import grpc.aio

from tickwheel.client.errors import Unavailable
from tickwheel.v1.cluster_service_pb2_grpc import ClusterServiceStub
from tickwheel.v1.job_service_pb2_grpc import JobServiceStub

if TYPE_CHECKING:
    from tickwheel.v1.cluster_service_pb2_grpc import ClusterServiceAsyncStub
    from tickwheel.v1.job_service_pb2_grpc import JobServiceAsyncStub

MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
CONNECT_TIMEOUT_S: Final = 3.0
CHANCE: Final = random.SystemRandom()
_OPTIONS: Final[Sequence[tuple[str, int]]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
_READY: Final = grpc.ChannelConnectivity.READY
_BROKEN: Final = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)


class Link:
    """A channel, and the services behind it."""

    __slots__ = ("address", "channel", "cluster", "jobs")

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.address = address
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
        self.jobs: JobServiceAsyncStub = JobServiceStub(self.channel)
        self.cluster: ClusterServiceAsyncStub = ClusterServiceStub(self.channel)

    async def connect(self, timeout_s: float) -> None:
        """Return once it is connected; Unavailable if that fails, or takes too long."""
        if self.channel.get_state() is _READY:
            return
        try:
            async with asyncio.timeout(timeout_s):
                while (state := self.channel.get_state(try_to_connect=True)) is not _READY:
                    if state in _BROKEN:
                        raise self.unreachable()
                    await self.channel.wait_for_state_change(state)
        except TimeoutError:
            raise self.unreachable() from None

    def unreachable(self) -> Unavailable:
        """What a call gets that was not sent."""
        text = f"no server answers at {self.address}; is it running, and is this its gRPC port?"
        return Unavailable(text, reason="NOT_CONNECTED", metadata={"address": self.address})
