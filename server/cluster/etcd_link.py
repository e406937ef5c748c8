"""Floor 3. How etcd is reached: where its members are, how they and we prove who we are, and on which channels.

Each user of a link has channels of its own (a pool of its own, too: gRPC would share the connection otherwise), so that
the session's thread waits for nobody.

Must never import: other rooms than `ports` and `etcd_wire`.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from tickwheel.etcd import rpc_service_pb2_grpc as stubs
from tickwheel.server.cluster.etcd_wire import Keys
from tickwheel.server.errors import InvalidArgument

ENDPOINTS_MAX: Final = 16
MESSAGE_BYTES_MAX: Final = 32 << 20

Metadata = tuple[tuple[str, str], ...]
_SAFE: Final = "https://"
_PLAIN: Final = "http://"


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdOptions:
    """What an operator says of etcd. Raises InvalidArgument.

    `endpoints` are `host:port`, or with `http://` or `https://` before it. TLS is used when a `ca_file` or `https://`
    says so; without `ca_file` the roots that gRPC brings are trusted.
    """

    endpoints: tuple[str, ...]
    prefix: str = "/tickwheel/default/"
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    timeout_ms: int = 3_000
    """Of each call, all tries together."""
    connect_timeout_ms: int = 1_000
    watch_probe_ms: int = 1_000
    """A watch that heard nothing for so long asks whether somebody is there."""
    watch_silence_ms: int = 2_500
    """A watch that heard nothing for so long goes elsewhere."""

    def __post_init__(self) -> None:
        if not 0 < len(self.endpoints) <= ENDPOINTS_MAX:
            raise InvalidArgument(f"1 to {ENDPOINTS_MAX} endpoints of etcd are needed")
        if (self.cert_file is None) is not (self.key_file is None):
            raise InvalidArgument("a certificate needs its key, and a key its certificate")
        if bool(self.user) is not bool(self.password):
            raise InvalidArgument("a user of etcd needs a password, and a password a user")
        if self.secure and any(point.startswith(_PLAIN) for point in self.endpoints):
            raise InvalidArgument("all endpoints of etcd are https, or none")
        if self.cert_file is not None and not self.secure:
            raise InvalidArgument("a certificate for etcd needs https")
        limits = (self.timeout_ms, self.connect_timeout_ms, self.watch_probe_ms)
        if min(limits) <= 0 or self.watch_silence_ms <= self.watch_probe_ms:
            raise InvalidArgument("times are positive, and a watch asks before it gives up")
        Keys(self.prefix)

    @property
    def secure(self) -> bool:
        """Whether to speak TLS."""
        return self.ca_file is not None or any(p.startswith(_SAFE) for p in self.endpoints)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The endpoints as gRPC takes them."""
        return tuple(p.removeprefix(_SAFE).removeprefix(_PLAIN) for p in self.endpoints)

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Read the files; None for plain text. Raises OSError."""
        if not self.secure:
            return None
        ca, key, cert = (
            file.read_bytes() if file else None
            for file in (self.ca_file, self.key_file, self.cert_file)
        )
        return grpc.ssl_channel_credentials(ca, key, cert)


CHANNEL_OPTIONS: Final[Sequence[tuple[str, int]]] = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),  # what may be repeated is ours to say
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),  # how long one try may take
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # etcd drops who pings more often than every 5 s, or without a call
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.enable_http_proxy", 0),
)


class NotConnected(Exception):
    """The member could not be reached; nothing was sent."""


class Member:
    """One endpoint: its channel and the stubs on it."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.address = address
        self.greeted = False
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
        self.kv = stubs.KVStub(self._channel)
        self.lease = stubs.LeaseStub(self._channel)
        self.watch = stubs.WatchStub(self._channel)
        self.auth = stubs.AuthStub(self._channel)
        self.maintenance = stubs.MaintenanceStub(self._channel)

    async def connect(self, timeout_s: float) -> None:
        """Return when there is a connection. Raises NotConnected."""
        try:
            async with asyncio.timeout(timeout_s):
                while (state := self._channel.get_state(True)) != grpc.ChannelConnectivity.READY:
                    if state == grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        raise NotConnected(self.address)
                    await self._channel.wait_for_state_change(state)
        except TimeoutError:
            raise NotConnected(self.address) from None

    async def close(self) -> None:
        """Drop the connection and the calls on it."""
        await self._channel.close()


class Rotation:
    """Which member is asked. Not shared between threads.

    The first is drawn by `seed`, so that the nodes of a cluster don't all begin with the same member.
    """

    __slots__ = ("_count", "index")

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self.index = random.Random(seed).randrange(count)  # noqa: S311 - who is asked first is no secret

    def leave(self, failed: int) -> None:
        """Go on to the next, unless somebody who saw the same member fail has done so."""
        if self.index == failed:
            self.index = (failed + 1) % self._count


def metadata(token: str) -> Metadata:
    """Return what goes with each call: refuse rather than wait at a member without a leader; and who we are."""
    return (("hasleader", "true"), *((("token", token),) if token else ()))
