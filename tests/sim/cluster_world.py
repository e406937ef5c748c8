"""A simulated cluster and everything around it: nodes, network, etcd, target, clocks. A seed decides all of it.

    users ──► any node ──► the shard's leader ──► log ──► followers        all on one `LifeLoop`
    Ledger ◄── acknowledgements        arrivals ◄── SimTarget ◄── every leader
    Watch  ◄── journals, replicas, rights of every node

What users, faults and the judge do belongs to no life; each node's doing belongs to its own (`lives`).
"""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.sim.cluster_faults import draw_cluster_weather
from tests.sim.cluster_log import Watch
from tests.sim.cluster_node import HostClock, SimNode
from tests.sim.disk import PowerCut
from tests.sim.etcd import SimEtcd
from tests.sim.ledger import Arrival, Ledger
from tests.sim.lives import LifeLoop, life_of
from tests.sim.network import SimNetwork
from tests.sim.target import to_ms

from tickwheel.server.cluster.control import Control
from tickwheel.server.cluster.host import Host
from tickwheel.server.cluster.registry import SHARDS, MemberRecord, MemberState, ShardRecord, decode
from tickwheel.server.config import Config
from tickwheel.server.errors import Fatal, TickwheelError
from tickwheel.server.model import Ms

START_MS = 1_800_000_000_000
BACK_EXCUSES_S = 30.0
UNHANDLED_MS = 90_000
COMMAND_S = 25.0
NEVER_S = 1e9
CLOSING_S = 0.5


class ClusterWorld:
    """All machines, and what connects them."""

    def __init__(self, seed: int, scratch: Path) -> None:
        self.seed = seed
        self.scratch = scratch
        self.rng = Random(seed)
        self.weather = weather = draw_cluster_weather(Random(f"{seed}:weather"))
        self.shards = weather.shards
        self.replicas = min(weather.nodes, 3)
        self.ledger = Ledger()
        self.marks: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.story: list[str] = []
        self.closing = False
        self.life = 0
        self.wiped = False
        self.healed_s = NEVER_S
        self.drained: set[str] = set()
        self.steps: list[tuple[float, Ms]] = []
        self.set_by_ms: Counter[str] = Counter()
        self.config = self._make_config()
        self.loop = LifeLoop()
        self.loop.set_exception_handler(self._on_failure)
        self.clock = HostClock(self.loop, START_MS)
        self.etcd = SimEtcd(self.loop, Random(f"{seed}:etcd"), weather.etcd)
        self.network = SimNetwork(Random(f"{seed}:network"), weather.network)
        self.log = Watch(self)
        self.nodes = [SimNode(self, number, self._clock()) for number in range(weather.nodes)]

    def _make_config(self) -> Config:
        config = Config(
            data_dir="/simulated",
            shards=self.shards,
            replicas=self.replicas,
            min_copies=self.weather.min_copies if self.replicas > 2 else 1,
            wal_low_water_bytes=0,
            flush_interval_ms=700,
            checkpoint_interval_ms=2_500,
            wheel_horizon_ms=60_000,
            replace_ms=self.weather.replace_ms,
            shrink_ms=self.weather.replace_ms,
        )
        # Smaller than a real node may be told, so that followers fall behind it within seconds.
        object.__setattr__(config, "tail_bytes", self.weather.tail_bytes)
        return config

    def _clock(self) -> HostClock:
        skew_ms = self.weather.skew_ms
        rate = 1 + self.rng.uniform(-0.000_4, 0.000_4)
        return HostClock(self.loop, START_MS + self.rng.randint(-skew_ms, skew_ms), rate)

    # --- telling ---

    def tell(self, what: str) -> None:
        """A line of the story."""
        self.story.append(f"{self.loop.now_s:9.3f} {what}")

    def blame(self, what: str) -> None:
        """A guarantee is broken."""
        self.tell(f"WRONG {what}")
        self.wrong.append(f"{what} [{self.loop.now_s:.3f} s]")

    def _on_failure(self, _loop: object, context: dict[str, Any]) -> None:
        """A callback raised: only a power cut, or the end of a node, may do so."""
        error, life = context.get("exception"), life_of(context)
        node = next((node for node in self.nodes if node.life is life and life), None)
        if isinstance(error, PowerCut | Fatal) and node is not None:
            node.die(error)
        else:
            where = life.name if life else "nobody"
            self.blame(f"unhandled on {where}: {context.get('message')} {error!r}")

    # --- nodes ---

    def when_dead(self, node: SimNode) -> None:
        """Somebody starts it again after a while, unless it is to stay down."""
        delay_s = self.rng.choice((0.1, 0.5, 3.0))
        self.loop.call_later(delay_s, self._restart, node, context=self.network.context)

    def let_up(self, node: SimNode) -> None:
        """It need not stay down any more."""
        node.kept_down -= 1
        self._restart(node)

    def _restart(self, node: SimNode) -> None:
        dead = node.life is not None and not node.life.alive
        if dead and self.closing:  # not now; but it is not forgotten
            self.loop.call_later(CLOSING_S, self._restart, node, context=self.network.context)
        elif dead and not node.kept_down:
            self.tell(f"start {node.name}")
            node.boot()

    def can_spare(self, node: SimNode) -> bool:
        """True if a disk may be lost: nothing else is wrong, and each shard has another whole copy."""
        records = self.records()
        return (
            not self.wiped
            and all(other.running for other in self.nodes)
            and all(
                len(record.voters) > 1 or node.id not in record.voters
                for record in records.values()
            )
            and set(self.served()) == set(range(self.shards))
        )

    def records(self) -> dict[int, ShardRecord]:
        """What etcd says."""
        items = self.etcd.store.items
        return {
            int(key.removeprefix(SHARDS)): decode(ShardRecord, item)
            for key, item in sorted(items.items())
            if key.startswith(SHARDS)
        }

    def served(self) -> list[int]:
        """The shards for which some node may act, and does."""
        return sorted({n for node in self.nodes if node.running for n in node.leads()})

    def check_right(self, node: SimNode, shard: int) -> None:
        """A node may act for a shard: nobody else may."""
        for other in self.nodes:
            host = other.node.host if other.node is not None else None
            if other is not node and host is not None and Host.may_act(host, shard):
                self.blame(f"I11 {node.name} and {other.name} both may act for shard {shard}")

    def step_clock(self, node: SimNode, step_ms: int) -> None:
        """Somebody sets a host's clock."""
        self.tell(f"the clock of {node.name} is set by {step_ms} ms")
        self.steps.append((self.loop.now_s, node.clock.now_ms()))
        node.clock.offset_ms += step_ms
        self.set_by_ms[node.name] += step_ms

    async def command(
        self, node: SimNode, ask: Callable[[Control], Awaitable[object]]
    ) -> TickwheelError | None:
        """What an operator asks of a node; refusals are no fault."""
        if node.node is None or node.life is None:
            return None
        control = node.node.control

        async def work() -> TickwheelError | None:
            try:
                await ask(control)
            except TickwheelError as error:
                return error
            return None

        try:
            async with asyncio.timeout(COMMAND_S):
                return await node.life.ask(work())
        except TimeoutError:
            return None

    # --- healing ---

    def heal_paths(self) -> None:
        """Every path is open again; who is paused stays so."""
        for one in self.nodes:
            self.etcd.heal(one.name)
            for other in self.nodes:
                self.network.unblock(one.address, other.address)

    def heal(self) -> None:
        """Nothing is wrong any more."""
        self.tell("heal")
        self.heal_paths()
        self.etcd.down = False
        self.etcd.calm()
        self.network.hurry(copies=True)
        for node in self.nodes:
            node.resume()
            node.disk.left = None
            node.stall_s = 0.0
            node.disk.fail_sync_at = node.disk.cut_at = 0
            node.kept_down, node.struck = 0, False
            if self.set_by_ms[node.name]:  # a node whose clock is wrong leads nothing
                self.step_clock(node, -self.set_by_ms[node.name])
            self._restart(node)
        for name in sorted(self.drained):
            self.etcd.write(f"members/{name}", MemberRecord(MemberState.ACTIVE.value).encode())
        self.drained.clear()
        self.healed_s = self.loop.now_s

    # --- observation ---

    def unhandled_since_ms(self) -> Ms:
        """What fell due from here on may not be handled yet: a shard may have been without a leader for long."""
        return self.clock.now_ms() - UNHANDLED_MS

    def record_arrival(self, node: SimNode, headers: dict[str, str]) -> None:
        """The target saw a request."""
        now_ms = node.clock.now_ms()
        recent = [ms for at_s, ms in self.steps if self.loop.now_s - at_s < BACK_EXCUSES_S]
        clocks = [other.clock.now_ms() for other in self.nodes]
        self.ledger.arrivals.append(
            Arrival(
                now_ms,
                max(*clocks, now_ms, *recent),
                headers["webhook-id"].replace("_", ":"),
                headers["tickwheel-job"],
                to_ms(headers["tickwheel-scheduled-time"]),
                int(headers["tickwheel-attempt"]),
                int(headers["tickwheel-epoch"]),
                node.number,
            )
        )


def make_scratch() -> "tempfile.TemporaryDirectory[str]":
    """Where files of copies that come in lie; in memory if that can be had."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
