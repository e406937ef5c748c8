"""Host: what leaves when. Real replicas, a journal whose writes end when the test says so."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import pytest
from tests.unit.replica_kit import SHARD, Free, append, entries, record, replica

from tickwheel.server.cluster import host as room
from tickwheel.server.cluster.health import Health
from tickwheel.server.cluster.host import Host
from tickwheel.server.cluster.peer_port import Peers
from tickwheel.server.commit import Proposal
from tickwheel.server.errors import TickwheelError
from tickwheel.server.lease import Rights
from tickwheel.server.log import Log, Recovered
from tickwheel.server.message import Acked, Append, BeatAcked, Fenced, LogEntry, Message, NodeId
from tickwheel.server.record import Record
from tickwheel.server.replica import Replica
from tickwheel.server.turn import Event, Leading, Released, SteppedDown
from tickwheel.server.wal import Wal


class SlowWal:
    """Each write waits until `write` is called."""

    def __init__(self) -> None:
        self.submitted: list[list[Record]] = []
        self.futures: list[asyncio.Future[None]] = []
        self.waiting_bytes = 0
        self.space_low = False
        self.record_bytes_max = 1 << 20

    def submit(self, records: Sequence[Record]) -> asyncio.Future[None]:
        self.submitted.append(list(records))
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]

    async def write(self, error: BaseException | None = None) -> None:
        """The oldest write ends."""
        future = self.futures.pop(0)
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
        await turn()

    async def write_all(self) -> None:
        while self.futures:
            await self.write()


class FakePeers:
    def __init__(self) -> None:
        self.frames: list[tuple[NodeId, list[Message]]] = []

    def send(self, peer: NodeId, messages: Sequence[Message]) -> None:
        self.frames.append((peer, list(messages)))

    def take(self) -> list[tuple[NodeId, list[Message]]]:
        frames, self.frames = self.frames, []
        return frames


class FakeHooks:
    """What the node is told, in its order."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.fault: Exception | None = None

    def apply(self, shard: int, entries: Sequence[LogEntry]) -> None:
        if self.fault is not None:
            raise self.fault
        self.told.append(("apply", shard, [entry.index for entry in entries]))

    def resign(self, shard: int) -> None:
        self.told.append(("resign", shard))

    def event(self, shard: int, event: Event) -> None:
        self.told.append(("event", shard, type(event)))


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1000


class World:
    """Node a, which holds some shards."""

    def __init__(self, *replicas: Replica) -> None:
        self.wal, self.peers, self.hooks, self.clock = SlowWal(), FakePeers(), FakeHooks(), Clock()
        self.faults: list[BaseException] = []
        self.decided: list[tuple[list[int], str]] = []
        self.rights = Rights("a", self.clock.ms)
        self.health = Health(self.clock.monotonic_ms)
        self.host = Host(
            "a", {one.shard: one for one in replicas}, wal=cast("Wal", self.wal),
            rights=self.rights, clock=self.clock, health=self.health,
            on_fatal=self.faults.append,
        )  # fmt: skip
        self.host.start(cast("Peers", self.peers), self.hooks)

    def done(self, places: Sequence[int], error: TickwheelError | None) -> None:
        self.decided.append((list(places), error.reason if error else ""))
        self.hooks.told.append(("decided", list(places)))

    async def receive(self, sender: NodeId, *messages: Message) -> None:
        self.host.receive(sender, messages)
        await turn()

    async def lead(self, epoch: int = 6) -> None:
        """Become the leader of shard 1 of a, b, c, and serve it."""
        self.host.replicas[SHARD].led(record(epoch, "a"), self.clock.ms)
        self.host.poke(SHARD)
        await turn()
        await self.wal.write_all()
        await self.receive("b", Fenced(SHARD, epoch, 0, 0))
        await self.wal.write_all()
        await self.receive("b", Acked(SHARD, epoch, 1))
        assert ("event", SHARD, Leading) in self.hooks.told
        self.host.serve(SHARD)
        self.peers.take()
        self.hooks.told.clear()


async def turn() -> None:
    """What was called for soon has been done, twice over."""
    for _ in range(4):
        await asyncio.sleep(0)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def empty(shard: int) -> Replica:
    return Replica(shard, "a", Recovered(Log(0, 0, []), 0, void=False), holds=Free())


def test_an_ack_leaves_when_its_records_are_durable_and_not_before() -> None:
    async def test() -> None:
        world = World(replica())
        await world.receive("b", append(5, (0, 0), *entries(5, 5)))
        assert [len(records) for records in world.wal.submitted] == [3]  # the promise, two entries
        assert world.peers.take() == []
        await world.wal.write()
        assert world.peers.take() == [("b", [Acked(SHARD, 5, 2)])]
        world.host.stop()

    run(test)


def test_after_a_failed_write_nothing_is_acknowledged() -> None:
    async def test() -> None:
        world = World(replica())
        await world.receive("b", append(5, (0, 0), *entries(5)))
        await world.wal.write(OSError("EIO"))
        assert world.peers.take() == []
        world.host.stop()

    run(test)


def test_a_leader_sends_at_once_what_its_disk_is_yet_to_write() -> None:
    async def test() -> None:
        world = World(replica())
        await world.lead()
        assert world.host.append([Proposal(SHARD, 6, b"x")], world.done) == [2]
        sent = [m for _, messages in world.peers.take() for m in messages if isinstance(m, Append)]
        assert [entry.payload for entry in sent[0].entries] == [b"x"]
        assert world.wal.futures
        world.host.stop()

    run(test)


@pytest.mark.parametrize("own_first", [True, False])
def test_a_batch_is_decided_by_a_majority_of_disks_and_once(own_first: bool) -> None:
    async def test() -> None:
        world = World(replica())
        await world.lead()
        world.host.append([Proposal(SHARD, 6, b"x")], world.done)
        if own_first:
            await world.wal.write_all()
            assert world.decided == []
            await world.receive("c", Acked(SHARD, 6, 2))
        else:
            await world.receive("c", Acked(SHARD, 6, 2))
            assert world.decided == []  # one peer alone is no majority
            await world.wal.write_all()
        await world.receive("b", Acked(SHARD, 6, 2))
        assert world.decided == [([0], "")]
        assert ("apply", SHARD, [2]) not in world.hooks.told  # the runner applies what it proposed
        world.host.stop()

    run(test)


def test_a_batch_under_way_is_answered_before_the_shard_is_let_go() -> None:
    async def test() -> None:
        world = World(replica())
        await world.lead()
        world.host.append([Proposal(SHARD, 6, b"x")], world.done)
        await world.receive("c", append(7, (0, 0)))
        assert world.decided == [([0], "OUTCOME_UNKNOWN")]
        kinds = [told[0] for told in world.hooks.told]
        assert kinds == ["decided", "resign", "event"]
        assert world.hooks.told[-1] == ("event", SHARD, SteppedDown)
        assert not world.host.serves(SHARD)
        assert world.host.leaderships_ended == 1
        world.host.stop()

    run(test)


def test_who_does_not_lead_is_told_so_after_the_call() -> None:
    async def test() -> None:
        world = World(replica())
        assert world.host.append([Proposal(SHARD, 6, b"x")], world.done) == [0]
        assert world.decided == []
        await turn()
        assert world.decided == [([0], "OUTCOME_UNKNOWN")]
        world.host.stop()

    run(test)


def test_what_happens_in_one_turn_is_one_write_and_one_frame_a_peer() -> None:
    async def test() -> None:
        world = World(empty(1), empty(2))
        first = append(5, (0, 0), *entries(5))
        world.host.receive("b", [first, first._replace(shard=2)])
        await turn()
        assert len(world.wal.submitted) == 1
        assert {found.shard for found in world.wal.submitted[0]} == {1, 2}
        await world.wal.write()
        assert [(peer, len(messages)) for peer, messages in world.peers.take()] == [("b", 2)]
        world.host.stop()

    run(test)


def test_messages_of_a_shard_that_is_not_held_are_dropped() -> None:
    async def test() -> None:
        world = World(replica())
        await world.receive("b", append(5, (0, 0), *entries(5))._replace(shard=40))
        assert world.wal.submitted == []
        world.host.adopt(empty(40))
        await world.receive("b", append(5, (0, 0), *entries(5))._replace(shard=40))
        assert len(world.wal.submitted) == 1
        world.host.stop()

    run(test)


def test_a_follower_applies_what_is_committed_in_order() -> None:
    async def test() -> None:
        world = World(replica())
        await world.receive("b", append(5, (0, 0), *entries(5, 5, 5), commit=2))
        await world.wal.write_all()
        await world.receive("b", append(5, (3, 5), commit=3))
        assert world.hooks.told == [("apply", SHARD, [1, 2]), ("apply", SHARD, [3])]
        world.host.stop()

    run(test)


def test_a_fault_of_the_node_stops_it() -> None:
    async def test() -> None:
        world = World(replica())
        world.hooks.fault = ValueError("nobody foresaw it")
        await world.receive("b", append(5, (0, 0), *entries(5), commit=1))
        await world.wal.write_all()
        assert world.faults == [world.hooks.fault]
        world.host.stop()

    run(test)


def test_while_too_much_waits_for_the_disk_outputs_wait() -> None:
    async def test() -> None:
        world = World(replica())
        world.wal.waiting_bytes = room.WAL_WAITING_BYTES_MAX + 1
        await world.receive("b", append(5, (0, 0), *entries(5)))
        assert world.wal.submitted == []
        world.wal.waiting_bytes = 0
        world.host.poke(SHARD)
        await turn()
        assert len(world.wal.submitted) == 1
        world.host.stop()

    run(test)


def test_the_right_to_act_needs_acked_beats_and_a_runner_that_serves() -> None:
    async def test() -> None:
        world = World(replica())
        assert not world.host.may_act(SHARD)
        await world.lead()
        assert not world.host.may_act(SHARD)
        world.clock.ms += 10
        beat = world.rights.beat(world.clock.ms, 0)
        world.rights.acked("b", BeatAcked(beat.sent_ms, ()))
        assert world.host.may_act(SHARD)
        world.clock.ms += 1_000
        assert not world.host.may_act(SHARD)
        world.host.stop()

    run(test)


def test_a_release_ends_when_all_that_was_proposed_is_committed() -> None:
    async def test() -> None:
        world = World(replica())
        await world.lead()
        world.host.append([Proposal(SHARD, 6, b"x")], world.done)
        world.host.replicas[SHARD].release()
        world.host.poke(SHARD)
        await world.wal.write_all()
        assert ("event", SHARD, Released) not in world.hooks.told
        await world.receive("b", Acked(SHARD, 6, 2))
        assert world.decided == [([0], "")]
        assert ("event", SHARD, Released) in world.hooks.told
        world.host.stop()

    run(test)


def test_health_knows_since_when_a_write_is_under_way() -> None:
    async def test() -> None:
        world = World(replica())
        await world.receive("b", append(5, (0, 0), *entries(5)))
        world.clock.ms += 50
        await world.receive("b", append(5, (1, 5), *entries(5, start=2)))
        assert world.health.writing_since_ms == 1_000
        await world.wal.write()
        assert world.health.writing_since_ms == 1_050
        await world.wal.write()
        assert world.health.writing_since_ms == 0
        world.host.stop()

    run(test)


def test_time_goes_on_by_itself() -> None:
    async def test() -> None:
        world = World(replica())
        world.host.replicas[SHARD].led(record(6, "a"), world.clock.ms)
        world.host.poke(SHARD)
        await turn()
        await world.wal.write_all()
        world.peers.take()
        world.clock.ms += 200
        while not world.peers.frames:  # noqa: ASYNC110 - bounded; the fence is sent again
            await asyncio.sleep(0.001)
        world.host.stop()

    run(test)
