"""Floor 6. A cluster's node, put together from its configuration: etcd, the peers, who this node is.

Must never import: `shard`, `wheel`, `table`.
"""

import platform
import shutil
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from random import Random

from tickwheel.server.clock import SystemClock
from tickwheel.server.cluster import member
from tickwheel.server.cluster.etcd import EtcdClient
from tickwheel.server.cluster.etcd_link import EtcdOptions
from tickwheel.server.cluster.etcd_session import SessionFile
from tickwheel.server.cluster.health import Health
from tickwheel.server.cluster.peer_hello import Identity
from tickwheel.server.cluster.peer_options import advertised_of, options_of
from tickwheel.server.cluster.peer_port import Owner, Peers
from tickwheel.server.cluster.peers import GrpcPeers
from tickwheel.server.cluster.registry import MetaRecord, NodeRecord
from tickwheel.server.clustered import ClusterDevices
from tickwheel.server.config import Config
from tickwheel.server.copies import SHIPPED, FileShelves
from tickwheel.server.identity import DataDirectory, check_shards, restored
from tickwheel.server.store.snapshot import shard_of_file
from tickwheel.server.zone import tz_version
from tickwheel.version import VERSION


async def reach_etcd(config: Config) -> tuple[EtcdClient, MetaRecord]:
    """A client of etcd, and the cluster that lives there, made now if it is not. Raises Unavailable, FailedPrecondition.

    A directory that was restored begins a cluster with what it holds, and joins none.
    """
    data_dir = Path(config.data_dir)
    fresh = restored(data_dir)
    if fresh is not None:
        check_shards(data_dir, fresh, config.shards)
    options = etcd_options(config)
    etcd = EtcdClient(options)
    wanted = MetaRecord(uuid.uuid4().hex, config.shards, config.replicas)
    if fresh is None:
        return etcd, await member.join(etcd, wanted)
    wanted = replace(wanted, cluster=fresh.cluster.hex(), founder=fresh.store.hex())
    return etcd, await member.found(etcd, wanted, options.prefix)


def etcd_options(config: Config) -> EtcdOptions:
    """How etcd is reached. Raises InvalidArgument, OSError."""
    password = ""
    if config.etcd_password_file:
        password = Path(config.etcd_password_file).read_text().strip()
    return EtcdOptions(
        endpoints=config.etcd,
        prefix=f"/tickwheel/{config.cluster}/",
        ca_file=_file(config.etcd_ca),
        cert_file=_file(config.etcd_cert),
        key_file=_file(config.etcd_key),
        user=config.etcd_user,
        password=password,
    )


def make_devices(
    config: Config, etcd: EtcdClient, meta: MetaRecord, directory: DataDirectory, clock: SystemClock
) -> ClusterDevices:
    """What `clustered.start` needs beside a node's devices."""
    shards = directory.path / "shards"
    for path in shards.glob(f"{SHIPPED}*"):  # copies for peers that a crash left
        shutil.rmtree(path)
    health = Health(clock.monotonic_ms)
    store = directory.identity.store.hex()
    return ClusterDevices(
        etcd=etcd,
        make_peers=peer_maker(config, Identity(meta.cluster, store)),
        meta=meta,
        myself=member.Self(
            id=store,
            record=node_record(config),
            ttl_s=max(config.etcd_ttl_ms // 1000, 1),
            healthy=health.well,
            memory=SessionFile(directory.path),
        ),
        health=health,
        stored=lambda: stored_shards(shards),
        shelves=FileShelves(shards),
    )


def peer_maker(config: Config, me: Identity) -> Callable[[Owner], Awaitable[Peers]]:
    """Makes the peers' traffic, listening already."""
    options = options_of(config)

    async def make(owner: Owner) -> Peers:
        peers = GrpcPeers(me, owner, options, Random())  # noqa: S311 - spreads reconnects
        await peers.start()
        return peers

    return make


def node_record(config: Config) -> NodeRecord:
    """What the others are told of this node."""
    return NodeRecord(
        peer=advertised_of(config, config.peer_address[1]),
        grpc=config.grpc_told,
        http=config.http_listen,
        host=config.host or platform.node(),
        zone=config.zone,
        version=VERSION,
        tzdata=tz_version(),
    )


def stored_shards(directory: Path) -> list[int]:
    """The shards that have a store here."""
    numbers = (shard_of_file(path.name) for path in directory.glob("shard-*.db"))
    return sorted(number for number in numbers if number is not None)


def _file(name: str) -> Path | None:
    return Path(name) if name else None
