"""Floor 6. Wires the world once, and knows the order of starting and stopping.

    start   lock the directory ─► operators' door (not ready) ─► stores, journal, replay ─► fire ─► gRPC door ─► ready
    stop    not ready ─► gRPC door closes ─► firing ends ─► requests in flight end (bounded) ─► flush ─► journal closes

A fatal error (the journal can't be written, a store is corrupt) ends the process at once, without any of that: what was
acknowledged is in the journal, and the next start takes it from there.

Must never import: `shard`, `wheel`, `table`.
"""

import asyncio
import gc
import os
import platform
import resource
import secrets
import signal
import socket
import sqlite3
import sys
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prometheus_client import CollectorRegistry

from tickwheel.server import node
from tickwheel.server.alone import Alone
from tickwheel.server.api import ops
from tickwheel.server.api.grpc import GrpcDoor
from tickwheel.server.assembly import make_devices, reach_etcd
from tickwheel.server.backup import BACKUP_POINT, Backups, Leaders, Origin
from tickwheel.server.clock import SystemClock
from tickwheel.server.cluster.etcd import EtcdClient
from tickwheel.server.clustered import ClusterNode
from tickwheel.server.config import Config
from tickwheel.server.dispatch.dispatcher import Dispatcher, Limits
from tickwheel.server.dispatch.guard import Guard
from tickwheel.server.dispatch.headers import check_headers
from tickwheel.server.dispatch.http import HttpTransport
from tickwheel.server.files import OsFiles
from tickwheel.server.identity import DataDirectory
from tickwheel.server.journal import Journal
from tickwheel.server.logs import get_logger
from tickwheel.server.metrics import Metrics
from tickwheel.server.record import Record, ShardMark
from tickwheel.server.recovery import WalIdentity, WalOptions
from tickwheel.server.store import ShardStore, StoreOptions, StoreThreads
from tickwheel.server.store.install import settle
from tickwheel.server.store.sqlite import translate
from tickwheel.server.topology import ClusterPort, NodeInfo
from tickwheel.server.wal import WalThread
from tickwheel.server.zone import tz_version
from tickwheel.version import VERSION

log = get_logger(__name__)

EXIT_FATAL = 70
"""EX_SOFTWARE of sysexits.h: the node stopped itself; start it again."""

OVERDUE_MS = 5_000
"""A wheel whose head is overdue by more than this makes the node unready."""

GRPC_GRACE_S = 2.0

RESOLVER_THREADS = 32
"""Names of targets are resolved in threads; a slow name server must not stop the others."""

GC_THRESHOLDS = (5_000, 50, 100)
"""A round stops the loop while it looks at what was made since the last: 5,000 objects take some milliseconds.

The older ones are seldom looked at again: what the table keeps the collector does not follow (`model.JobParts`), and
nothing else here lives long, but what `gc.freeze` sets aside at the start."""

SWITCH_INTERVAL_S = 0.001
"""How long a thread that wants the interpreter waits while another computes. The store's threads ask for it with each
statement, and 64 shards are 64 statements: at the default of 5 ms a busy loop made a batch wait a third of a second
for the names that it reads; and the loop itself waits for them no longer than this."""


class App:
    """One process: a node, its doors, and their order."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._clock = SystemClock()
        self._registry = CollectorRegistry()
        self._metrics = Metrics(self._registry)
        self._ops = ops.OpsServer(ops.make_app(self._registry, self.unready))
        self._phase = "starting"
        self._started: node.Started | ClusterNode | None = None
        self._etcd: EtcdClient
        self._guard = Guard(
            allow=config.allow_private_targets,
            own=(config.grpc_address, config.http_address),
        )

    # --- start ---

    async def start(self) -> None:
        """Bring everything up; returns when the node serves and fires. Raises Fatal, OSError, FailedPrecondition."""
        config = self._config
        gc.set_threshold(*GC_THRESHOLDS)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        _raise_file_limit()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(RESOLVER_THREADS, "resolver"))
        etcd, meta = await reach_etcd(config) if config.etcd else (None, None)
        self._directory = DataDirectory(
            Path(config.data_dir),
            shards=config.shards,
            cluster=bytes.fromhex(meta.cluster) if meta else None,
        )
        self._directory.settle_in()
        for line in settle(self._directory.path / "shards"):
            log.warning(line)
        for flag, address in (
            ("--http-listen", config.http_address),
            ("--grpc-listen", config.grpc_address),
        ):
            check_free(flag, *address)
        await self._ops.start(*config.http_address)
        self._store = StoreThreads(loop)
        self._make_dispatch()
        devices = node.Devices(
            clock=self._clock,
            store=self._store,
            dispatch=self._dispatcher,
            open_store=self._open_store,
            open_wal=self._open_wal,
        )
        cluster: ClusterPort
        if etcd is None or meta is None:
            started = await node.start(
                config, devices, self._metrics, seed=secrets.randbits(64), on_fatal=self._die
            )
            self._started, cluster = started, self._alone(started)
        else:
            self._etcd = etcd
            joined = ClusterNode(
                config,
                devices,
                make_devices(config, etcd, meta, self._directory, self._clock),
                self._metrics,
                seed=secrets.randbits(64),
                on_fatal=self._die,
            )
            await joined.start()
            self._started, cluster = joined, joined.control
        gc.freeze()
        await self._open_door(cluster)

    async def _open_door(self, cluster: ClusterPort) -> None:
        """Answer calls."""
        config = self._config
        assert self._started is not None
        backups = self._make_backups(self._started, cluster)
        self._metrics.watch(
            self._started.runner,
            self._started.wal,
            self._dispatcher,
            ready=lambda: not self.unready(),
        )
        self._grpc = GrpcDoor(
            config,
            self._started.node,
            cluster,
            self._metrics,
            check_url=self._guard.check_url,
            check_headers=check_headers,
            reflection=config.reflection,
            backups=backups,
        )
        if isinstance(self._started, ClusterNode):
            self._started.answers[BACKUP_POINT] = backups.answer
            self._started.door = self._grpc.answer
        port = await self._grpc.start()
        self._phase = "serving"
        log.info(
            "serving",
            extra={
                "grpc_port": port,
                "http_port": self._ops.port,
                "data_dir": str(config.data_dir),
                "version": VERSION,
            },
        )

    def _alone(self, started: node.Started) -> Alone:
        """The map of a node that runs by itself."""
        config = self._config
        identity = self._directory.identity
        me = NodeInfo(
            name=identity.store.hex(),
            state="active",
            alive=True,
            grpc=config.grpc_listen,
            http=config.http_listen,
            host=config.host or platform.node(),
            zone=config.zone,
            version=VERSION,
            tzdata=tz_version(),
        )
        return Alone(identity.cluster.hex(), me, started.slots, self._clock.now_ms)

    def _make_dispatch(self) -> None:
        config = self._config
        self._transport = HttpTransport(self._guard)
        self._dispatcher = Dispatcher(
            self._transport,
            self._clock,
            Limits(
                config.dispatch_concurrency,
                config.dispatch_concurrency_per_target,
                config.dispatch_queue_max,
            ),
            version=VERSION,
        )

    def _make_backups(self, started: node.Started | ClusterNode, cluster: ClusterPort) -> Backups:
        peers = started.peers if isinstance(started, ClusterNode) else None
        identity = self._directory.identity
        return Backups(
            Path(self._config.backup_dir) if self._config.backup_dir else None,
            self._directory.path / "shards",
            Origin(identity.cluster.hex(), identity.store.hex(), VERSION),
            runner=started.runner,
            keeper=started.keeper,
            leaders=Leaders(cluster.leader_of, peers),
        )

    def _open_store(self, number: int) -> ShardStore:
        try:
            return ShardStore.open(self._directory.path / "shards", number, StoreOptions())
        except sqlite3.Error as error:
            raise translate(error) from error

    def _open_wal(self) -> tuple[Mapping[int, ShardMark], Iterable[Record], WalThread]:
        config = self._config
        options = WalOptions(
            segment_bytes=config.segment_bytes,
            low_water_bytes=config.wal_low_water_bytes,
            queue_bytes_max=config.wal_queue_bytes,
        )
        identity = WalIdentity(self._directory.identity.cluster, self._directory.identity.store)
        journal, recovery = Journal.open(
            OsFiles(self._directory.path / "journal"),
            options,
            identity,
            seconds=self._clock.monotonic,
            lock=threading.Lock(),
        )
        for line in recovery.lines:
            log.warning(line)
        wal = WalThread(journal, asyncio.get_running_loop(), self._die)
        return recovery.shards, recovery.records(), wal

    # --- health ---

    def unready(self) -> list[str]:
        """What keeps the node from firing on time; empty when nothing does."""
        if self._phase != "serving" or self._started is None:
            return [self._phase]
        overdue_ms = self._started.runner.overdue_ms()
        reasons = [f"firing is {overdue_ms} ms behind"] if overdue_ms > OVERDUE_MS else []
        if self._started.runner.table_bytes >= self._config.table_bytes_max:
            reasons.append("the store does not keep up: the table is full")
        if isinstance(self._started, ClusterNode):
            reasons += self._started.unready()
        return reasons

    # --- stop ---

    async def stop(self) -> None:
        """End in order, in bounded time; what has no outcome by then is sent again, with the same id, after a start."""
        assert self._started is not None, "stop() comes after start()"
        self._phase = "draining"
        await self._grpc.stop(GRPC_GRACE_S)
        self._started.runner.stop_firing()
        await self._dispatcher.drain(self._config.drain_timeout_ms)
        if isinstance(self._started, ClusterNode):
            await self._started.stop()
            await self._etcd.close()
        else:
            await node.stop(self._started)
        await self._started.wal.close()
        await self._transport.close()
        await self._store.flush(self._close_stores)
        await self._store.close()
        await self._ops.stop()
        self._directory.close()
        log.info("stopped")

    def _close_stores(self) -> None:
        assert self._started is not None
        for slot in self._started.slots.values():
            slot.store.close()

    def _die(self, error: BaseException) -> None:
        """Nothing more may be promised: end at once. A supervisor starts the node again."""
        log.critical("the node must stop: %s", error)
        sys.stderr.flush()
        os._exit(EXIT_FATAL)


def check_free(flag: str, host: str, port: int) -> None:
    """Before anything is recovered: can this be listened on? OSError that says which option is wrong, and why."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]
        raise OSError(f"can't listen on {host}:{port} ({flag}): {why}") from error


def _raise_file_limit() -> None:
    """Each shard has some files and each request a socket: ask for all that the system grants."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def run(config: Config) -> int:
    """Serve until SIGTERM or SIGINT; the exit code."""
    app = App(config)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await app.start()
    await stopping.wait()
    await app.stop()
    return 0
