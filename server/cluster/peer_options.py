"""Floor 3. How nodes reach each other: limits, time-outs, TLS, and what gRPC is told of them.

With TLS both sides show a certificate of the cluster's own authority, for the name `tickwheel-peer`: the address does not
matter, so nodes may move, and a client's certificate from the same authority does not open the door. Which node it is,
the hello says, and the certificate's holder is believed.

Must never import: another room of the cluster.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from tickwheel.server.config import Config

PEER_NAME: Final = "tickwheel-peer"
"""The DNS name in the certificate of every node."""

MESSAGE_BYTES_MAX: Final = 8 << 20
"""The longest message of gRPC in either direction; frames are far smaller, forwarded calls may be this long."""

METADATA_BYTES_MAX: Final = 8 << 10
CALLS_MAX: Final = 1_024
STREAMS_PER_CONNECTION_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM form: the authority of the cluster, this node's certificate and its key."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """The settings of one node's traffic with the others. `snapshot_bytes_per_s` 0 sets no limit."""

    listen: tuple[str, int] = ("127.0.0.1", 7071)
    tls: Tls | None = None
    queue_bytes_max: int = 64 << 20
    connect_timeout_s: float = 3.0
    keepalive_ms: int = 3_000
    backoff_min_s: float = 0.05
    backoff_max_s: float = 2.0
    snapshot_bytes_per_s: int = 0
    stop_grace_s: float = 2.0

    def __post_init__(self) -> None:
        """Hold the relations."""
        assert 0 < self.backoff_min_s <= self.backoff_max_s
        assert self.queue_bytes_max > 0
        assert self.snapshot_bytes_per_s >= 0


def options_of(config: Config) -> PeerOptions:
    """What the operator said."""
    files = (Path(config.peer_ca), Path(config.peer_cert), Path(config.peer_key))
    return PeerOptions(
        listen=config.peer_address,
        tls=Tls(*files) if config.peer_tls else None,
        snapshot_bytes_per_s=config.snapshot_bytes_per_s,
    )


def advertised_of(config: Config, port: int) -> str:
    """The address that other nodes are told, given the port that the listener got."""
    if config.peer_advertise:
        return config.peer_advertise
    host, _ = config.peer_address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def dial(address: str, options: PeerOptions) -> grpc.aio.Channel:
    """A connection of its own, which nobody shares and which never leaves through a proxy."""
    settings: list[tuple[str, Any]] = [
        *_common(options),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    if options.tls is None:
        return grpc.aio.insecure_channel(address, settings)
    settings.append(("grpc.ssl_target_name_override", PEER_NAME))
    credentials = grpc.ssl_channel_credentials(
        options.tls.ca.read_bytes(), options.tls.key.read_bytes(), options.tls.cert.read_bytes()
    )
    return grpc.aio.secure_channel(address, credentials, settings)


def make_server(options: PeerOptions) -> grpc.aio.Server:
    """A server that has no port yet."""
    settings = [
        *_common(options),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", options.keepalive_ms // 2),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
    ]
    return grpc.aio.server(options=settings, maximum_concurrent_rpcs=CALLS_MAX)


def bind(server: grpc.aio.Server, options: PeerOptions) -> int:
    """Give the server its port. Raises OSError when the address can't be had."""
    host, port = options.listen
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if options.tls is None:
            return server.add_insecure_port(address)
        pair = (options.tls.key.read_bytes(), options.tls.cert.read_bytes())
        credentials = grpc.ssl_server_credentials(
            [pair], options.tls.ca.read_bytes(), require_client_auth=True
        )
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(f"can't listen on {address}: {error}") from error


def _common(options: PeerOptions) -> list[tuple[str, Any]]:
    """Both ends ask whether the other one is still there: a stopped process holds its connections open for ever."""
    return [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.keepalive_time_ms", options.keepalive_ms),
        ("grpc.keepalive_timeout_ms", options.keepalive_ms),
        ("grpc.http2.ping_timeout_ms", options.keepalive_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
