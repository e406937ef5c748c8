"""Where the suite of etcd runs: on the simulated one, on one real member, on three. A bed also breaks things."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Protocol

from bench.etcd import EtcdCluster
from tests.sim.etcd import SimEtcd

from tickwheel.server.cluster.etcd import EtcdClient
from tickwheel.server.cluster.etcd_link import EtcdOptions
from tickwheel.server.cluster.ports import Etcd


class Bed(Protocol):
    """An etcd that is empty, a client of it, and what an operator can do to it."""

    etcd: Etcd

    def another(self) -> Etcd:
        """A client of another node."""
        ...

    async def compact(self) -> None:
        """Forget all history before now."""
        ...


class SimBed:
    """The simulated etcd, on the test's own loop."""

    def __init__(self) -> None:
        self.sim = SimEtcd(asyncio.get_running_loop(), Random(7))
        self.etcd: Etcd = self.sim.port("a")

    def another(self) -> Etcd:
        return self.sim.port("b")

    async def compact(self) -> None:
        self.sim.compact()


class RealBed:
    """Members that outlive the test; each test has a prefix of its own."""

    def __init__(self, cluster: EtcdCluster, prefix: str) -> None:
        self._cluster = cluster
        self._options = EtcdOptions(endpoints=cluster.endpoints, prefix=prefix)
        self._clients: list[EtcdClient] = []
        self.etcd: Etcd = self.another()

    def another(self) -> Etcd:
        self._clients.append(EtcdClient(self._options))
        return self._clients[-1]

    async def compact(self) -> None:
        await asyncio.to_thread(lambda: self._cluster.compact(self._cluster.revision()))

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


@asynccontextmanager
async def real_bed(cluster: EtcdCluster, prefix: str) -> AsyncGenerator[RealBed]:
    bed = RealBed(cluster, prefix)
    try:
        yield bed
    finally:
        await bed.close()


class Clusters:
    """Real clusters, started when first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: dict[int, EtcdCluster] = {}

    def of(self, members: int) -> EtcdCluster:
        if members not in self._running:
            cluster = EtcdCluster(self._directory / str(members), members)
            self._running[members] = cluster
            cluster.start()
        return self._running[members]

    def close(self) -> None:
        for cluster in self._running.values():
            cluster.close()
