"""Several nodes and an etcd as real processes: start, kill, pause, restart, stop. Shared by tests, demo and campaigns.

Each node says that it stands on a host of its own, so that three of them on one machine may hold three copies.
"""

import contextlib
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf.json_format import MessageToDict

from bench.etcd import EtcdCluster
from bench.node import Node, free_port, wait_until
from tickwheel.v1.cluster_service_pb2 import Cluster as Map
from tickwheel.v1.cluster_service_pb2 import GetClusterRequest, ShardState
from tickwheel.v1.cluster_service_pb2_grpc import ClusterServiceStub

READY_S = 60.0
CALL_S = 2.0


class ClusterNode(Node):
    """One node of a cluster."""

    def __init__(self, directory: Path, name: str, etcd: str, options: Sequence[str] = ()) -> None:
        self.name = name
        self.peer_port = free_port()
        super().__init__(
            directory / name,
            options=[
                "--etcd", etcd, "--host", name, "--peer-listen", f"127.0.0.1:{self.peer_port}",
                *options,
            ],
        )  # fmt: skip

    def pause(self) -> None:
        """SIGSTOP."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def map(self) -> Map:
        """The cluster as this node sees it. Raises grpc.RpcError."""
        with grpc.insecure_channel(self.target) as channel:
            stub: Any = ClusterServiceStub(channel)
            answer: Map = stub.GetCluster(GetClusterRequest(), timeout=CALL_S)
            return answer


class Cluster:
    """etcd and its nodes. Everything ends with the block."""

    def __init__(
        self, directory: Path, *, nodes: int = 3, members: int = 1, options: Sequence[str] = ()
    ) -> None:
        self.directory = directory
        self.etcd = EtcdCluster(directory / "etcd", members)
        self.options = list(options)
        self.nodes: list[ClusterNode] = []
        self._wanted = nodes

    def start(self, timeout_s: float = READY_S) -> Self:
        """Start etcd and every node, and wait until each shard has a leader."""
        self.etcd.start()
        self.nodes = [self.make(number + 1) for number in range(self._wanted)]
        for node in self.nodes:
            node.spawn()
        for node in self.nodes:
            node.wait_ready(timeout_s)
        self.wait_served(timeout_s)
        return self

    def make(self, number: int) -> ClusterNode:
        """One more node, not started yet."""
        return ClusterNode(
            self.directory, f"node-{number}", ",".join(self.etcd.endpoints), self.options
        )

    @property
    def target(self) -> str:
        """Addresses of all nodes, for a client."""
        return ",".join(node.target for node in self.nodes)

    def running(self) -> list[ClusterNode]:
        """The nodes whose process lives."""
        return [n for n in self.nodes if n.process is not None and n.process.poll() is None]

    def map(self) -> Map:
        """The cluster as the first node that answers sees it. Raises TimeoutError."""
        until = time.monotonic() + READY_S
        while time.monotonic() < until:
            for node in self.running():
                with contextlib.suppress(grpc.RpcError):
                    return node.map()
            time.sleep(0.05)
        raise TimeoutError("no node told the map of the cluster")

    def served(self) -> bool:
        """Whether every shard has a leader that serves, as far as a node can tell."""
        shards = self.map().shards
        return bool(shards) and all(s.state == ShardState.SHARD_STATE_SERVING for s in shards)

    def wait_served(self, timeout_s: float = READY_S) -> None:
        """Wait until every shard is served."""
        try:
            wait_until(self.served, timeout_s, "a leader for every shard")
        except TimeoutError as error:
            error.add_note(str(MessageToDict(self.map()))[:2_000])
            for node in self.nodes:
                error.add_note(f"{node.name}: {node.tail(10)}")
            raise

    def leads(self) -> dict[str, int]:
        """How many shards each node leads, by its name."""
        shown = self.map()
        names = {node.name: node.host for node in shown.nodes}
        count = {node.name: 0 for node in self.nodes}
        for shard in shown.shards:
            if shard.leader:
                host = names.get(shard.leader, "gone")
                count[host] = count.get(host, 0) + 1
        return count

    def close(self) -> None:
        """End every process."""
        for node in self.nodes:
            node.close()
        self.etcd.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
