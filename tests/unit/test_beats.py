"""Heartbeats: what a wall clock that differs does to a node, on clocks that the test sets."""

import asyncio
import logging
from typing import cast

import pytest
from tests.unit.cluster_kit import A, B, C, Seen, now_s, run, sim_etcd

from tickwheel.server.cluster.beats import Beats
from tickwheel.server.cluster.peer_port import Peers
from tickwheel.server.cluster.tasks import Tasks
from tickwheel.server.lease import Holds, Rights
from tickwheel.server.message import Beat, BeatAcked, Message, NodeId

START_MS = 1_000_000_000


class Clock:
    """The host's clocks; its wall clock can be set."""

    def __init__(self) -> None:
        self.offset_ms = 0

    def now_ms(self) -> int:
        return START_MS + self.monotonic_ms() + self.offset_ms

    def monotonic_ms(self) -> int:
        return round(self.monotonic() * 1000)

    def monotonic(self) -> float:
        return 10 + now_s()


class World:
    """Node a's heart, and two others that beat as theirs would."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.others = {B: Clock(), C: Clock()}
        self.sent: list[tuple[NodeId, Message]] = []
        self.watched = 0
        view = Seen()
        for name in (A, B, C):
            view.node(name)
        self.faults: list[BaseException] = []
        self.beats = Beats(
            A, view, Holds(0), Rights(A, 0), clock=self.clock, etcd=sim_etcd().port(A),
            tasks=Tasks(self.faults.append),
        )  # fmt: skip
        self.beats.start(cast("Peers", self), self._watch)

    def send(self, peer: NodeId, messages: list[Message]) -> None:
        self.sent += [(peer, message) for message in messages]

    def _watch(self) -> None:
        self.watched += 1

    async def run(self, seconds: float, *, late_s: float = 0.0) -> None:
        """Let time pass; every beat of the others is `late_s` on its way, and so is every ack."""
        for _ in range(round(seconds / 0.25)):
            said = {name: clock.now_ms() for name, clock in self.others.items()}
            sent_ms = self.clock.monotonic_ms()
            await asyncio.sleep(0.25)
            for name, wall_ms in said.items():
                beat = Beat(sent_ms, wall_ms + round(1000 * (0.25 - late_s)), (), ())
                ack = BeatAcked(self.clock.monotonic_ms() - round(2000 * late_s), ())
                assert self.beats.receive(name, [beat, ack]) == []


def test_a_clock_that_the_others_contradict_bars_a_node_until_it_is_right(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        world = World()
        await world.run(2)
        assert (world.beats.wall_off_ms, world.beats.wall_wrong) == (0, False)
        world.clock.offset_ms = 60_000
        await world.run(1.25)
        assert (world.beats.wall_off_ms, world.beats.wall_wrong) == (-60_000, True)
        assert world.watched > 8, "whoever must know is told with the same beat"
        world.clock.offset_ms = 0
        await world.run(1.25)
        assert (world.beats.wall_off_ms, world.beats.wall_wrong) == (0, False)
        world.beats.stop()
        assert world.faults == []

    with caplog.at_level(logging.INFO):
        run(story())
    told = [record.message for record in caplog.records if "clock" in record.message]
    assert told == [
        "the wall clock is not the majority's: this node leads nothing",
        "the wall clock is right again",
    ]


def test_a_small_difference_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        world = World()
        world.clock.offset_ms = -400
        await world.run(5)
        assert (world.beats.wall_off_ms, world.beats.wall_wrong) == (400, False)
        world.beats.stop()

    with caplog.at_level(logging.INFO):
        run(story())
    assert [record.message for record in caplog.records] == [
        "the wall clock differs from the majority's"
    ]


def test_when_another_clock_is_wrong_it_is_not_ours() -> None:
    async def story() -> None:
        world = World()
        world.others[B].offset_ms = 3_600_000
        await world.run(3)
        assert (world.beats.wall_off_ms, world.beats.wall_wrong) == (0, False)
        world.beats.stop()

    run(story())


def test_beats_that_are_late_are_no_wrong_clock() -> None:
    """An overloaded machine reads everything two seconds late."""

    async def story() -> None:
        world = World()
        await world.run(5, late_s=2.0)
        assert not world.beats.wall_wrong
        world.beats.stop()

    run(story())
