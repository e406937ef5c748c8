"""Which shard a job is on, and who leads it: the contract of cluster_service.proto, on the client's side. Pure.

    "namespaces/acme/jobs/nightly" ──► key "acme/nightly" ──► crc32 mod shards ──► leader ──► its address

A map is a hint and need not be right: any node answers any call, and passes on what another one has to answer.
"""

import zlib
from base64 import b32encode
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address
from typing import Final

from tickwheel.client.values import ANY
from tickwheel.v1.cluster_service_pb2 import Cluster
from tickwheel.v1.job_service_pb2 import CreateJobRequest

SHARDS_MAX: Final = 65_536
NODES_MAX: Final = 64
"""Nodes that one client has connections to, beside its own addresses. What others lead goes to any of those."""

_GENERATED_BYTES: Final = 20
_NAME_PARTS_MIN: Final = 4


@dataclass(frozen=True, slots=True)
class ShardMap:
    """Who led what at a revision of a cluster: the address of each shard's leader, "" where nobody can be told.

    `nodes` are the addresses of all nodes: who leads nothing today may stand in for others tomorrow.
    """

    cluster: str
    revision: int
    leaders: tuple[str, ...]
    nodes: tuple[str, ...]

    def leader_of(self, key: str) -> str:
        """The address of whoever leads a job's shard; "" if that is not known."""
        return self.leaders[zlib.crc32(key.encode()) % len(self.leaders)]


def read_map(shown: Cluster, told_by: str) -> ShardMap | None:
    """The map of a cluster, as the node at `told_by` tells it; None if it is of no use: one node has it all anyway.

    An address that names no machine, or this one though the node that told it is elsewhere, is left out.
    """
    if len(shown.nodes) < 2 or not 0 < shown.shard_count <= SHARDS_MAX:  # noqa: PLR2004 - one is no cluster
        return None
    near = _is_near(told_by)
    reachable: dict[str, str] = {}
    for node in shown.nodes:
        if len(reachable) < NODES_MAX and node.alive and _is_callable(node.grpc_address, near):
            reachable[node.name] = node.grpc_address
    leaders = [""] * shown.shard_count
    for shard in shown.shards:
        if 0 <= shard.number < shown.shard_count:
            leaders[shard.number] = reachable.get(shard.leader, "")
    nodes = tuple(dict.fromkeys(reachable.values()))
    return ShardMap(shown.uid, shown.revision, tuple(leaders), nodes)


def key_of(name: str) -> str:
    """`acme/nightly`, of the name of a job or of anything below it; "" where the name is of no single job."""
    parts = name.split("/", _NAME_PARTS_MIN)
    if len(parts) < _NAME_PARTS_MIN or parts[0] != "namespaces" or parts[2] != "jobs":
        return ""
    return "" if ANY in (parts[1], parts[3]) else f"{parts[1]}/{parts[3]}"


def key_of_create(namespace: str, request: CreateJobRequest) -> str:
    """`acme/nightly`, of the job that a create will make; "" if only the server can name it."""
    if not request.job_id and not request.request_id:
        return ""
    return f"{namespace}/{request.job_id or _generated(namespace, request.request_id)}"


def _generated(namespace: str, request_id: str) -> str:
    digest = sha256(f"{namespace}/{request_id}".encode()).digest()[:_GENERATED_BYTES]
    return "r-" + b32encode(digest).decode().lower()


def _host_of(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _is_near(address: str) -> bool:
    """True for an address that only this machine has."""
    if address.startswith("unix:"):
        return True
    host = _host_of(address)
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_callable(address: str, near: bool) -> bool:
    """True for `host:port` that may mean the node also where this client is."""
    host, port = _host_of(address), address.rpartition(":")[2]
    if not host or not port.isdecimal() or not int(port):
        return False
    try:
        if ip_address(host).is_unspecified:
            return False
    except ValueError:
        pass
    return near or not _is_near(address)
