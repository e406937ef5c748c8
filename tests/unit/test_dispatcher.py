"""The dispatcher against a transport that does what the test says: order, bounds, fairness, the end."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickwheel.server.dispatch.dispatcher import Dispatcher, Limits, target_key
from tickwheel.server.dispatch.transport import (
    ErrorKind,
    Gate,
    Request,
    Response,
    TransportError,
    Withdrawn,
)
from tickwheel.server.fire import Fire, Outcome, OutcomeKind, TargetKey
from tickwheel.server.model import HttpTarget


class Ticks:
    """A clock that goes on by one at each look."""

    def __init__(self) -> None:
        self.ms = 0

    def now_ms(self) -> int:
        self.ms += 1
        return self.ms


class Held:
    """A transport whose requests end when the test says so."""

    def __init__(self) -> None:
        self.open: dict[int, asyncio.Future[Response]] = {}
        self.begun: list[int] = []
        self.requests: list[Request] = []

    async def send(self, request: Request, gate: Gate) -> Response:
        row = int(dict(request.headers)["Tickwheel-Attempt"])
        self.begun.append(row)
        self.requests.append(request)
        if not await gate():
            raise Withdrawn
        self.open[row] = asyncio.get_running_loop().create_future()
        try:
            return await self.open[row]
        finally:
            del self.open[row]

    def end(self, row: int, error: Exception | None = None, status: int = 200) -> None:
        if error is not None:
            self.open[row].set_exception(error)
        else:
            self.open[row].set_result(Response(status, {}, b"ok"))

    async def close(self) -> None: ...


class World:
    """A dispatcher on a held transport. A fire's number doubles as its attempt, so that the transport can tell it."""

    def __init__(self, limits: Limits, **options: Any) -> None:
        self.transport = Held()
        self.dispatcher = Dispatcher(self.transport, Ticks(), limits, version="1", **options)
        self.ended: list[tuple[int, Outcome]] = []
        self.may = True

    async def gate(self, fire: Fire) -> bool:
        return self.may

    def done(self, fire: Fire, outcome: Outcome) -> None:
        self.ended.append((fire.attempt, outcome))

    def submit(self, row: int, host: str = "a", *, late: bool = False) -> None:
        target = HttpTarget(f"http://{host}.example/{row}")
        fire = Fire(0, row, row, f"u:{row}", "n", "j", 1, 1, 0, 0, row, target, late)
        self.dispatcher.submit(fire, self.gate, self.done)

    async def settle(self) -> None:
        """Let every task go as far as it can."""
        for _ in range(8):
            await asyncio.sleep(0)

    async def end(self, row: int, error: Exception | None = None, status: int = 200) -> None:
        self.transport.end(row, error, status)
        await self.settle()

    async def finish(self) -> None:
        """End all that is under way, and what comes after it."""
        await self.settle()
        while self.transport.open:
            await self.end(min(self.transport.open))


def run(
    scenario: Callable[[World], Awaitable[None]], limits: Limits | None = None, **options: Any
) -> None:
    async def main() -> None:
        world = World(limits or Limits(4, 2, 10), **options)
        await scenario(world)
        await world.finish()
        assert world.dispatcher.in_flight == world.dispatcher.waiting == 0
        assert world.dispatcher._targets == {}, "nothing is kept of a target that is idle"

    asyncio.run(main())


# --- order and bounds ------------------------------------------------------------------------


def test_each_target_has_its_own_bound() -> None:
    async def scenario(world: World) -> None:
        for row in (1, 2, 3):
            world.submit(row, "a")
        world.submit(4, "b")
        await world.settle()
        assert world.transport.begun == [1, 2, 4]
        await world.end(2)
        assert world.transport.begun == [1, 2, 4, 3]

    run(scenario)


def test_all_targets_together_have_a_bound() -> None:
    async def scenario(world: World) -> None:
        for row in range(1, 7):
            world.submit(row, f"h{row}")
        await world.settle()
        assert world.transport.begun == [1, 2, 3, 4]
        assert (world.dispatcher.in_flight, world.dispatcher.waiting) == (4, 2)
        await world.end(3)
        assert world.transport.begun[4:] == [5]

    run(scenario)


def test_targets_take_turns() -> None:
    async def scenario(world: World) -> None:
        world.submit(1, "a")
        for row in (2, 3, 4):
            world.submit(row, "a")
        for row in (5, 6):
            world.submit(row, "b")
        world.submit(7, "c")
        await world.finish()
        assert world.transport.begun == [1, 5, 7, 2, 6, 3, 4]

    run(scenario, Limits(1, 1, 10))


def test_a_slow_target_does_not_delay_the_others() -> None:
    async def scenario(world: World) -> None:
        for row in range(1, 8):
            world.submit(row, "slow")
        await world.settle()
        assert world.transport.begun == [1, 2]
        for row in range(11, 14):
            world.submit(row, "fast")
            await world.settle()
            await world.end(row)
        assert [row for row, _ in world.ended] == [11, 12, 13]

    run(scenario)


def test_late_ones_wait_for_those_on_time() -> None:
    async def scenario(world: World) -> None:
        world.submit(1, "a")
        for row in (2, 3):
            world.submit(row, "b", late=True)
        world.submit(4, "c")
        await world.finish()
        assert world.transport.begun == [1, 4, 2, 3]

    run(scenario, Limits(1, 1, 10))


def test_late_ones_take_half_of_the_slots() -> None:
    async def scenario(world: World) -> None:
        for row in range(1, 7):
            world.submit(row, f"h{row}", late=True)
        await world.settle()
        assert world.transport.begun == [1, 2]
        world.submit(7, "x")
        await world.settle()
        assert world.transport.begun == [1, 2, 7]
        await world.end(1)
        assert world.transport.begun == [1, 2, 7, 3]

    run(scenario)


def test_late_ones_take_half_of_a_targets_slots() -> None:
    async def scenario(world: World) -> None:
        for row in (1, 2, 3):
            world.submit(row, "a", late=True)
        world.submit(4, "a")
        await world.settle()
        assert world.transport.begun == [1, 4]
        await world.end(4)
        assert world.transport.begun == [1, 4], "its other slot stays free for what is on time"
        await world.end(1)
        assert world.transport.begun == [1, 4, 2]

    run(scenario, Limits(10, 2, 10))


def test_a_target_filled_through_the_other_lane_comes_back() -> None:
    """Its late one waits its turn; meanwhile one on time takes the only slot, and the turn passes without it."""

    async def scenario(world: World) -> None:
        world.submit(1, "x", late=True)
        world.submit(2, "y", late=True)
        world.submit(3, "a", late=True)
        world.submit(4, "a")
        await world.settle()
        assert world.transport.begun == [1, 2, 4]
        await world.end(1)
        assert world.transport.begun == [1, 2, 4]
        await world.end(4)
        assert world.transport.begun == [1, 2, 4, 3]

    run(scenario, Limits(4, 1, 10))


# --- room ------------------------------------------------------------------------------------


def test_room_is_bounded() -> None:
    async def scenario(world: World) -> None:
        for row in range(1, 10):
            world.submit(row, "a")
        assert world.dispatcher.room() == 0
        with pytest.raises(AssertionError, match="room"):
            world.submit(99, "a")
        await world.settle()
        await world.end(1)
        assert world.dispatcher.room() == 1

    run(scenario, Limits(4, 1, 8))


def hear(told: list[str]) -> Callable[[TargetKey], None]:
    """A listener that notes the host that it is called for."""

    def on_room(key: TargetKey) -> None:
        told.append(key[1])

    return on_room


def offer(world: World, row: int, host: str) -> bool:
    """Submit it if its target has a place, as whoever fires does."""
    if world.dispatcher.crowded(f"http://{host}.example/{row}") is not None:
        return False
    world.submit(row, host)
    return True


def test_a_target_takes_no_more_places_than_it_leaves() -> None:
    """Sixteen places: the first that hangs gets half, the second half of what is left; the others still find one."""

    async def scenario(world: World) -> None:
        taken = {
            host: sum(offer(world, 100 * at + n, host) for n in range(30))
            for at, host in enumerate("abcd", 1)
        }
        assert taken == {"a": 1 + 8, "b": 1 + 4, "c": 1 + 2, "d": 1}
        assert world.dispatcher.room() > 0
        assert offer(world, 999, "e")

    run(scenario, Limits(3, 1, 16))


def test_a_place_that_was_promised_is_kept() -> None:
    async def scenario(world: World) -> None:
        crowded = world.dispatcher.crowded
        assert offer(world, 1, "a")
        assert [crowded("http://a.example/"), crowded("http://a.example/")] == [None, None]
        key = ("http", "a.example", 80)
        assert (crowded("http://a.example/"), world.dispatcher.places(key)) == (key, 0)
        world.submit(2, "a")
        world.submit(3, "a")
        assert crowded("http://a.example/") == key

    run(scenario, Limits(1, 1, 4))


def test_a_crowded_target_is_told_of_room() -> None:
    told: list[str] = []

    async def scenario(world: World) -> None:
        world.dispatcher.on_room = hear(told)
        for host, rows in (("a", range(10, 20)), ("b", range(20, 30))):
            assert not all(offer(world, row, host) for row in rows)
        assert told == []
        await world.settle()
        await world.end(10)
        assert told == ["b.example"], "it was its turn"
        await world.finish()
        assert sorted(told) == ["a.example", "b.example"], "each is told once"

    run(scenario, Limits(1, 1, 8))


def test_a_target_that_found_no_place_is_told_when_others_leave() -> None:
    told: list[str] = []

    async def scenario(world: World) -> None:
        world.dispatcher.on_room = hear(told)
        for row in range(1, 4):
            world.submit(row, "a")
        assert world.dispatcher.room() == 0
        assert not offer(world, 9, "new")
        assert world.dispatcher.places(("http", "new.example", 80)) == 0
        await world.settle()
        await world.end(1)
        assert told == ["new.example"]
        assert world.dispatcher.places(("http", "new.example", 80)) == 1

    run(scenario, Limits(1, 1, 2))


def test_when_the_queue_is_empty_everyone_is_told() -> None:
    told: list[str] = []

    async def scenario(world: World) -> None:
        world.submit(1, "a")
        world.submit(2, "a")
        for host in "bcd":
            assert not offer(world, 9, host)
        await world.settle()
        world.dispatcher.on_room = hear(told)
        await world.end(1)
        assert told == ["b.example", "c.example", "d.example"]

    run(scenario, Limits(1, 1, 1))


def test_nobody_need_listen() -> None:
    async def scenario(world: World) -> None:
        world.submit(1, "a")
        world.submit(2, "a")
        assert not offer(world, 9, "b")
        await world.settle()
        await world.end(1)
        assert world.dispatcher.room() == 1

    run(scenario, Limits(1, 1, 1))


def test_hanging_targets_leave_slots_to_the_others() -> None:
    """Three that hang want all sixteen slots; a fourth that answers never waits for one."""

    async def scenario(world: World) -> None:
        for row in range(60):
            world.submit(row, "abc"[row % 3])
        await world.settle()
        assert len(world.transport.open) == 12
        for row in range(100, 130):
            world.submit(row, "fast")
            await world.settle()
            assert row in world.transport.open
            await world.end(row)

    run(scenario, Limits(16, 16, 200))


def test_5000_due_at_one_target_do_not_delay_another() -> None:
    """The other's attempts start in the turn in which they are submitted, however many of the first wait."""

    async def scenario(world: World) -> None:
        taken = sum(offer(world, row, "loaded") for row in range(5_000))
        assert taken == 5_000
        await world.settle()
        for row in range(10_000, 10_020):
            assert offer(world, row, "healthy")
            await world.settle()
            assert row in world.transport.open
            await world.end(row)
            await world.end(min(world.transport.open))
        for row in list(world.transport.open):
            world.transport.end(row)

    run(scenario, Limits(1_024, 256, 20_000))


# --- outcomes --------------------------------------------------------------------------------


def test_what_is_sent_and_what_comes_back() -> None:
    seen: list[OutcomeKind] = []

    def observe(_: Fire, outcome: Outcome) -> None:
        seen.append(outcome.kind)

    async def scenario(world: World) -> None:
        world.submit(1)
        await world.settle()
        (request,) = world.transport.requests
        assert (request.method, request.url) == ("POST", "http://a.example/1")
        assert dict(request.headers)["webhook-id"] == "u_1"
        assert dict(request.headers)["User-Agent"] == "tickwheel/1"
        await world.end(1)
        assert world.ended == [(1, Outcome(OutcomeKind.SUCCEEDED, 200, "", b"ok", 2, 3))]
        assert seen == [OutcomeKind.SUCCEEDED]

    run(scenario, observe=observe)


def test_a_closed_gate_is_withdrawn() -> None:
    async def scenario(world: World) -> None:
        world.may = False
        world.submit(1)
        await world.settle()
        ((_, outcome),) = world.ended
        assert (outcome.kind, outcome.sent) == (OutcomeKind.WITHDRAWN, False)

    run(scenario)


def test_errors_are_outcomes() -> None:
    async def scenario(world: World) -> None:
        world.submit(1)
        world.submit(2)
        await world.settle()
        await world.end(1, TransportError(ErrorKind.RESET, sent=True))
        await world.end(2, TransportError(ErrorKind.BLOCKED, sent=False))
        assert [(o.kind, o.error, o.sent) for _, o in world.ended] == [
            (OutcomeKind.RETRY, "reset", True),
            (OutcomeKind.FAIL, "blocked", False),
        ]

    run(scenario)


def test_a_fault_of_the_transport_loses_no_outcome(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.submit(1)
        await world.settle()
        await world.end(1, ZeroDivisionError("a bug"))
        ((_, outcome),) = world.ended
        assert (outcome.kind, outcome.error, outcome.sent) == (OutcomeKind.RETRY, "internal", True)

    run(scenario)
    assert "does not declare" in caplog.text


def test_a_fault_in_done_takes_nobody_elses_turn(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.submit(1)
        world.submit(2)
        await world.settle()
        ended, world.ended = world.ended, None  # type: ignore[assignment]
        await world.end(1)
        world.ended = ended
        assert world.transport.begun == [1, 2]

    run(scenario, Limits(1, 1, 10))
    assert "could not be reported" in caplog.text


# --- the end ---------------------------------------------------------------------------------


def test_drain_waits_then_cancels_and_says_nothing_of_those() -> None:
    async def main() -> None:
        world = World(Limits(4, 2, 10))
        for row in (1, 2, 3):
            world.submit(row)
        await world.settle()
        draining = asyncio.create_task(world.dispatcher.drain(50))
        await world.settle()
        assert world.dispatcher.room() == 0
        await world.end(1)
        assert await draining == 1
        assert [row for row, _ in world.ended] == [1]
        assert world.transport.begun == [1, 2], "what waits is not started any more"
        assert world.transport.open == {}

    asyncio.run(main())


def test_drain_with_nothing_under_way() -> None:
    async def main() -> None:
        assert await World(Limits(1, 1, 1)).dispatcher.drain(1_000) == 0

    asyncio.run(main())


def test_limits_are_at_least_one() -> None:
    with pytest.raises(AssertionError, match="at least 1"):
        World(Limits(0, 1, 1))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://A.example/x", ("http", "a.example", 80)),
        ("HTTPS://a.example", ("https", "a.example", 443)),
        ("http://[::1]:8080/", ("http", "::1", 8080)),
    ],
)
def test_what_a_target_is(url: str, expected: tuple[str, str, int]) -> None:
    assert target_key(url) == expected


# --- any order of events ---------------------------------------------------------------------

STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()) | st.integers(0, 5), max_size=60)


@given(STEPS, st.integers(1, 4), st.integers(1, 3))
def test_bounds_hold_and_nothing_idles(
    steps: list[tuple[str, bool] | int], concurrency: int, per_target: int
) -> None:
    """After every step: no bound is broken, and whatever may start has started; at the end all have ended once."""

    async def main() -> None:
        world = World(Limits(concurrency, per_target, 100))
        hosts: dict[int, tuple[str, bool]] = {}
        for step in steps:
            if isinstance(step, tuple):
                hosts[len(hosts)] = step
                world.submit(len(hosts) - 1, step[0], late=step[1])
                await world.settle()
            elif world.transport.open:
                under_way = sorted(world.transport.open)
                await world.end(under_way[step % len(under_way)])
            check(world, hosts, concurrency, per_target)
        await world.finish()
        assert sorted(row for row, _ in world.ended) == sorted(hosts)

    asyncio.run(main())


def check(
    world: World, hosts: dict[int, tuple[str, bool]], concurrency: int, per_target: int
) -> None:
    busy = [hosts[row] for row in world.transport.open]
    waiting = [hosts[row] for row in hosts if row not in world.transport.begun]
    late_max, target_late_max = max(1, concurrency // 2), max(1, per_target // 2)
    late_busy = sum(late for _, late in busy)
    assert len(busy) <= concurrency
    assert late_busy <= late_max
    for host, late in {*busy, *waiting}:
        mine = [other for other in busy if other[0] == host]
        mine_late = sum(other[1] for other in mine)
        assert len(mine) <= per_target
        assert mine_late <= target_late_max
        free = len(mine) < min(per_target, concurrency - len(busy))
        late_free = not late or (late_busy < late_max and mine_late < target_late_max)
        assert (host, late) not in waiting or not (free and late_free)


async def test_the_end_of_a_late_one_lets_two_in() -> None:
    world = World(Limits(2, 1, 100))
    for row, host, late in [(0, "a", True), (1, "a", False), (2, "b", True)]:
        world.submit(row, host, late=late)
        await world.settle()
    assert sorted(world.transport.open) == [0]
    await world.end(0)
    assert sorted(world.transport.open) == [1, 2]
    await world.finish()
