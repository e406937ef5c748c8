"""The simulated network: the same seed is the same story, and each fault does what it says."""

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest
from tests.conformance.peer_worlds import CLUSTER, OPTIONS, Node, acks, entry, until
from tests.sim.loop import VirtualLoop
from tests.sim.network import NetworkWeather, SimNetwork

from tickwheel.server.cluster.peer_port import Member
from tickwheel.server.message import Acked, Beat

pytestmark = pytest.mark.sim


def simulate(
    story: Callable[[SimNetwork], Coroutine[Any, Any, None]],
    seed: int = 1,
    weather: NetworkWeather | None = None,
) -> float:
    """Tell it on virtual time; how long it took there."""
    loop = VirtualLoop()

    async def main() -> None:
        await story(SimNetwork(Random(seed), weather or NetworkWeather(), OPTIONS))

    try:
        loop.live(main())
    finally:
        loop.abandon()
    return loop.now_s


def start(network: SimNetwork, *names: str) -> list[Node]:
    """Processes that know each other."""
    nodes = [Node(name, CLUSTER) for name in names]
    for node in nodes:
        node.address = f"{node.name}:1"
        node.peers = network.join(node.address, node.me, node.owner)
        node.peers.set_session(1)
    for node in nodes:
        node.peers.set_members({n.store: Member(n.address, 1) for n in nodes})
    return nodes


def matches(target: Node, source: Node) -> list[int]:
    """The numbers of the acks that came."""
    return [m.match for m in target.messages(source) if isinstance(m, Acked)]


def trouble(network: SimNetwork, nodes: list[Node], rng: Random) -> None:
    """Now and then, one fault or the end of all."""
    one, other = rng.sample(nodes, 2)
    fault = rng.random()
    if fault < 0.01:
        network.cut(one.address, other.address)
    elif fault < 0.02:
        network.block(one.address, other.address)
    elif fault < 0.03:
        network.pause(one.address)
    elif fault < 0.08:
        network.heal()


def stormy(seed: int) -> list[tuple[float, str, object]]:
    """Everything that three nodes see in ten seconds of bad weather."""
    seen: list[tuple[float, str, object]] = []

    async def story(network: SimNetwork) -> None:
        nodes = start(network, "a", "b", "c")
        faults = Random(seed)
        for number in range(500):
            await asyncio.sleep(0.02)
            for node in nodes:
                for other in nodes:
                    node.peers.send(other.store, acks(3, 3 * number))
            trouble(network, nodes, faults)
        network.heal()
        await asyncio.sleep(10)
        for node in nodes:
            seen.extend((0.0, node.name, event) for event in node.events)
            seen.extend((0.0, node.name, got) for got in node.got)
            assert all(node.peers.connected(n.store) for n in nodes if n is not node)
            for other in nodes:
                came = matches(node, other)
                assert came == sorted(set(came)), "in order, none twice"

    took_s = simulate(story, seed, NetworkWeather(loss=0.002, keepalive_s=1.0))
    return [(took_s, "end", None), *seen]


def test_the_same_seed_is_the_same_story() -> None:
    assert stormy(3) == stormy(3)
    assert stormy(3) != stormy(4)


@pytest.mark.parametrize("seed", range(10, 16))
def test_in_any_weather_messages_come_in_order_and_connections_come_back(seed: int) -> None:
    story = stormy(seed)
    assert len(story) > 1_000
    assert any("('down'," in repr(event) for _, _, event in story)


def test_lost_frames_take_their_connection_with_them() -> None:
    async def story(network: SimNetwork) -> None:
        a, b = start(network, "a", "b")
        for number in range(400):
            await asyncio.sleep(0.05)
            a.peers.send(b.store, acks(1, number))
        downs = [kind for kind, _ in a.events].count("down")
        assert 2 < downs < 40
        assert 200 < len(matches(b, a)) < 400

    simulate(story, weather=NetworkWeather(loss=0.03))


def test_connections_overtake_each_other() -> None:
    async def story(network: SimNetwork) -> None:
        a, b = start(network, "a", "b")
        await until(lambda: a.peers.connected(b.store))
        await asyncio.sleep(1)
        for number in range(200):
            a.peers.send(b.store, acks(1, number))
            a.peers.send(b.store, [Beat(number, 0, (), ())])
            await asyncio.sleep(0.001)
        await asyncio.sleep(1)
        came = b.messages(a)
        numbers = [
            m.sent_ms if isinstance(m, Beat) else m.match
            for m in came
            if isinstance(m, Beat | Acked)
        ]
        assert numbers != sorted(numbers)
        assert matches(b, a) == list(range(200))

    simulate(story, weather=NetworkWeather(delay_s=(0.001, 0.02)))


def test_a_paused_process_hears_everything_later_if_it_comes_back_in_time() -> None:
    async def story(network: SimNetwork) -> None:
        a, b = start(network, "a", "b")
        await until(lambda: a.peers.connected(b.store))
        network.pause(b.address)
        a.peers.send(b.store, acks(5))
        await asyncio.sleep(0.5)
        assert b.got == []
        network.resume(b.address)
        assert matches(b, a) == [1, 2, 3, 4, 5]
        assert a.events == [("up", b.store)]

    simulate(story, weather=NetworkWeather(keepalive_s=1.0))


def test_a_long_pause_costs_the_connection_on_both_sides() -> None:
    async def story(network: SimNetwork) -> None:
        a, b = start(network, "a", "b")
        await until(lambda: a.events and b.events)
        network.pause(b.address)
        await asyncio.sleep(5)
        assert a.events == [("up", b.store), ("down", b.store)]
        assert b.events == [("up", a.store)], "it does not know yet"
        network.resume(b.address)
        await asyncio.sleep(3)
        for node in (a, b):
            assert [kind for kind, _ in node.events] == ["up", "down", "up"]

    simulate(story, weather=NetworkWeather(keepalive_s=1.0))


def test_a_killed_process_is_missed_at_once_and_a_new_one_is_met() -> None:
    async def story(network: SimNetwork) -> None:
        a, b = start(network, "a", "b")
        await until(lambda: a.events and b.events)
        b.peers.send(a.store, acks(1))
        network.at(b.address).crash()  # type: ignore[union-attr]
        await asyncio.sleep(0.05)
        assert a.events == [("up", b.store), ("down", b.store)]
        assert matches(a, b) == [], "what was under way is lost"
        reborn = Node("b", CLUSTER)
        peers = network.join(b.address, reborn.me, reborn.owner)
        peers.set_session(2)
        await until(lambda: a.events[-1] == ("up", b.store))
        a.peers.send(b.store, acks(1))
        await until(lambda: matches(reborn, a) == [1])
        assert b.events == [("up", a.store)]

    simulate(story)


def test_a_process_that_was_replaced_while_the_path_was_blocked_is_noticed() -> None:
    async def story(network: SimNetwork) -> None:
        a, b = start(network, "a", "b")
        await until(lambda: a.events and b.events)
        network.block(a.address, b.address)
        network.at(b.address).crash()  # type: ignore[union-attr]
        await asyncio.sleep(0.5)
        assert a.events == [("up", b.store)], "nobody could tell it"
        network.heal()
        await until(lambda: a.events[-1] == ("down", b.store))

    simulate(story)


def test_what_is_under_way_is_bounded() -> None:
    async def story(network: SimNetwork) -> None:
        a, b = start(network, "a", "b")
        await until(lambda: a.peers.connected(b.store))
        network.pause(b.address)
        for number in range(1, 9):
            a.peers.send(b.store, [entry(number, 1 << 20)])
            await asyncio.sleep(0.05)
        process = network.at(a.address)
        assert process is not None
        assert process.counters.resets == 1
        assert process.counters.frames_sent <= 3

    simulate(story)
