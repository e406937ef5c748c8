"""The simulated etcd: each fault does what it says, and whatever the weather, what the port promises is kept.

A seed draws the weather and a storm of faults; three nodes count in one key by compare-and-swap, hold a session each
and believe a watch. The same seed gives the same run.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from contextlib import aclosing
from random import Random
from typing import Any

import pytest
from tests.sim.etcd import EtcdWeather, SimEtcd, SimMemory, SimPort, draw_etcd_weather
from tests.sim.loop import VirtualLoop

from tickwheel.server.cluster.ports import (
    Batch,
    Done,
    Held,
    OutcomeUnknown,
    Put,
    Refused,
    Registration,
    Reset,
    Session,
    absent,
    revision_is,
)
from tickwheel.server.errors import Unavailable

NODES = ("a", "b", "c")
STORM_S = 120.0
CALM_S = 30.0
UNKNOWN = EtcdWeather(unknown_share=1.0)


def run(work: Coroutine[Any, Any, None], loop: VirtualLoop) -> None:
    try:
        assert loop.live(work)
    finally:
        loop.abandon()


def calm(loop: VirtualLoop, weather: EtcdWeather | None = None, seed: int = 1) -> SimEtcd:
    return SimEtcd(loop, Random(seed), weather or EtcdWeather())


class Node:
    """Holds a session and notes what it is told."""

    def __init__(self, etcd: SimEtcd, name: str, ttl_s: int = 3) -> None:
        self.name = name
        self.port: SimPort = etcd.port(name)
        self.well = True
        self.held: list[Held] = []
        self.lost: list[Held] = []
        self.memory = SimMemory()
        self._ttl_s = ttl_s

    def open(self) -> Session:
        return self.port.session(
            Registration(
                key=f"nodes/{self.name}",
                value=b"here",
                ttl_s=self._ttl_s,
                healthy=lambda: self.well,
                on_held=self.held.append,
                on_lost=self.lost.append,
                memory=self.memory,
            )
        )


# --- each fault ------------------------------------------------------------------------------


def test_an_unknown_transaction_may_have_happened_may_yet_or_not() -> None:
    fates: Counter[str] = Counter()
    for seed in range(60):
        loop = VirtualLoop()
        etcd = calm(loop, UNKNOWN, seed)

        async def attempt(etcd: SimEtcd = etcd) -> None:
            with pytest.raises(OutcomeUnknown):
                await etcd.port("a").transact([], [Put("k", b"v")])
            at_once = etcd.store.get("k") is not None
            await asyncio.sleep(20.0)
            late = etcd.store.get("k") is not None
            fates["happened" if at_once else "came late" if late else "did not"] += 1

        run(attempt(), loop)
    assert set(fates) == {"happened", "came late", "did not"}, fates


@pytest.mark.parametrize(
    ("requests", "answers", "applied"),
    [(True, True, False), (True, False, False), (False, True, True)],
)
def test_a_cut_of_one_way_loses_requests_or_answers(
    requests: bool, answers: bool, applied: bool
) -> None:
    loop = VirtualLoop()
    etcd = calm(loop)

    async def story() -> None:
        etcd.cut("a", requests=requests, answers=answers)
        with pytest.raises((OutcomeUnknown, Unavailable)):
            await etcd.port("a").transact([], [Put("k", b"v")])
        with pytest.raises(Unavailable):
            await etcd.port("a").get("k")
        found = await etcd.port("b").get("k")
        assert (found is not None) is applied
        etcd.heal("a")
        await etcd.port("a").transact([], [Put("k", b"w")])

    run(story(), loop)


def test_an_outage_ends_no_lease_and_a_new_leader_extends_them() -> None:
    loop = VirtualLoop()
    etcd = calm(loop)

    async def story() -> None:
        node = Node(etcd, "a")
        session = node.open()
        await asyncio.sleep(1.0)
        etcd.down = True
        await asyncio.sleep(20.0)
        assert session.deadline_ms < loop.now_s * 1_000
        assert session.held == node.held[0]
        etcd.change_leader()
        etcd.down = False
        await asyncio.sleep(2.0)
        assert session.deadline_ms > loop.now_s * 1_000
        assert (len(node.held), node.lost) == (1, [])
        await session.close()
        assert etcd.store.get("nodes/a") is None

    run(story(), loop)


def test_keep_alives_that_a_stale_leader_answers_do_not_count() -> None:
    loop = VirtualLoop()
    etcd = calm(loop)

    async def story() -> None:
        node = Node(etcd, "a")
        session = node.open()
        await asyncio.sleep(1.0)
        etcd.stale_leader(6.0)
        await asyncio.sleep(5.0)
        assert session.deadline_ms > loop.now_s * 1_000, "the node believes that it lives"
        assert etcd.store.get("nodes/a") is None, "and it does not"
        await asyncio.sleep(3.0)
        assert node.lost == node.held[:1]
        assert len(node.held) == 2
        await session.close()

    run(story(), loop)


def test_a_lease_that_ends_early_is_noticed() -> None:
    loop = VirtualLoop()
    etcd = calm(loop)

    async def story() -> None:
        node = Node(etcd, "a")
        session = node.open()
        await asyncio.sleep(1.0)
        assert etcd.end_lease(node.held[0].lease)
        assert not etcd.end_lease(node.held[0].lease)
        await asyncio.sleep(1.5)
        assert len(node.held) == 2
        await session.close()

    run(story(), loop)


def test_the_lease_of_a_killed_node_ends_and_its_next_life_does_not_wait_for_it() -> None:
    loop = VirtualLoop()
    etcd = calm(loop)

    async def story() -> None:
        first = Node(etcd, "a", ttl_s=30)
        first.open()
        await asyncio.sleep(1.0)
        first.port.kill()
        second = Node(etcd, "a", ttl_s=3)
        second.memory = first.memory
        second.open()
        await asyncio.sleep(0.2)
        assert second.held[0].create_revision > first.held[0].create_revision
        second.port.kill()
        await asyncio.sleep(4.0)
        assert etcd.store.get("nodes/a") is None

    run(story(), loop)


def test_a_stalled_watch_that_was_compacted_meanwhile_is_reset() -> None:
    loop = VirtualLoop()
    etcd = calm(loop)

    async def story() -> None:
        port = etcd.port("a")
        async with aclosing(port.watch("k")) as watch:
            assert isinstance(await anext(watch), Reset)
            etcd.stall_watches("a", 5.0)
            for number in range(3):
                await etcd.port("b").transact([], [Put("k", b"%d" % number)])
            etcd.compact()
            news = await anext(watch)
            assert loop.now_s >= 5.0
            assert isinstance(news, Reset)
            assert [item.value for item in news.listing.items] == [b"2"]

    run(story(), loop)


# --- everything at once ----------------------------------------------------------------------


class Storm:
    """One seed: three nodes under whatever comes."""

    def __init__(self, seed: int) -> None:
        self.loop = VirtualLoop()
        self.rng = Random(seed)
        self.etcd = SimEtcd(self.loop, Random(f"{seed}:etcd"), draw_etcd_weather(self.rng))
        self.nodes = [Node(self.etcd, name) for name in NODES]
        self.marks: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.sure = self.unsure = 0
        self.believed: dict[str, dict[str, bytes]] = {name: {} for name in NODES}
        self.trace: list[tuple[float, str]] = []

    async def story(self) -> None:
        sessions = [node.open() for node in self.nodes]
        readers = [asyncio.create_task(self._believe(node)) for node in self.nodes]
        work = [
            asyncio.create_task(job(node))
            for node in self.nodes
            for job in (self._count, self._falter)
        ]
        await self.etcd.storm(Random(self.rng.random()), NODES, STORM_S)
        await end(work)
        self.etcd.weather = EtcdWeather()
        for node in self.nodes:
            node.well = True
        await asyncio.sleep(CALM_S)
        self._judge(sessions)
        for session in sessions:
            await session.close()
        await end(readers)

    async def _count(self, node: Node) -> None:
        """Add one to the counter, again and again; know which additions are sure."""
        while True:
            await asyncio.sleep(self.rng.random())
            try:
                found = await node.port.get("counter")
                value = int(found.item.value) if found else 0
                guard = revision_is(found.item) if found else absent("counter")
                done = await node.port.transact([guard], [Put("counter", b"%d" % (value + 1))])
            except asyncio.CancelledError:
                self.unsure += 1  # it may be under way
                raise
            except OutcomeUnknown:
                self.unsure += 1
                self.marks["unknown"] += 1
            except Unavailable:
                self.marks["unavailable"] += 1
            else:
                self.sure += isinstance(done, Done)
                self.marks["refused"] += isinstance(done, Refused)
                self.trace.append((self.loop.now_s, f"{node.name} {done.revision}"))

    async def _believe(self, node: Node) -> None:
        believed = self.believed[node.name]
        last = 0
        async with aclosing(node.port.watch("")) as watch:
            async for news in watch:
                if isinstance(news, Reset):
                    self.marks["reset"] += last > 0
                    believed.clear()
                    believed |= {item.key: item.value for item in news.listing.items}
                    last = news.listing.revision
                    continue
                last = self._take(believed, news, last)

    def _take(self, believed: dict[str, bytes], news: Batch, last: int) -> int:
        revisions = [event.revision for event in news.events]
        if revisions != sorted(revisions) or revisions[0] <= last or revisions[-1] != news.revision:
            self.wrong.append(f"events {revisions} after {last}, up to {news.revision}")
        for event in news.events:
            if event.item is None:
                believed.pop(event.key, None)
            else:
                believed[event.key] = event.item.value
        return news.revision

    async def _falter(self, node: Node) -> None:
        """Be unwell now and then."""
        while True:
            await asyncio.sleep(self.rng.random() * 30.0)
            node.well = not node.well or self.rng.random() < 0.3

    def _judge(self, sessions: list[Session]) -> None:
        found = self.etcd.store.get("counter")
        count = int(found.item.value) if found else 0
        if not self.sure <= count <= self.sure + self.unsure:
            self.wrong.append(f"{self.sure} sure, {self.unsure} unsure, {count} counted")
        state = {key: item.value for key, item in self.etcd.store.items.items()}
        for name, believed in self.believed.items():
            if believed != state:
                self.wrong.append(f"{name} believes {believed}, there is {state}")
        for node, session in zip(self.nodes, sessions, strict=True):
            self._judge_session(node, session)
        self.marks["lost"] += sum(len(node.lost) for node in self.nodes)

    def _judge_session(self, node: Node, session: Session) -> None:
        there = self.etcd.store.get(f"nodes/{node.name}")
        held = session.held
        if there is None or held is None or there.item.create_revision != held.create_revision:
            self.wrong.append(f"{node.name} holds {held}, there is {there}")
        if node.lost != node.held[:-1]:
            self.wrong.append(f"{node.name} was told {node.held} and {node.lost}")
        revisions = [life.create_revision for life in node.held]
        if revisions != sorted(set(revisions)):
            self.wrong.append(f"{node.name} lived at {revisions}")


async def end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel them; whatever else they died of is raised."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, asyncio.CancelledError), result


def storm(seed: int) -> Storm:
    made = Storm(seed)
    run(made.story(), made.loop)
    return made


def test_whatever_comes_the_port_keeps_its_promises() -> None:
    marks: Counter[str] = Counter()
    for seed in range(40):
        made = storm(seed)
        assert made.wrong == [], f"seed {seed}"
        marks += made.marks
    for rare in ("unknown", "unavailable", "refused", "reset", "lost"):
        assert marks[rare] > 0, f"{rare} never happened: {marks}"


def test_a_seed_tells_everything() -> None:
    assert storm(5).trace == storm(5).trace
    assert storm(5).trace != storm(6).trace
