"""One node whose wall clock is set, far forward and back, in the midst of firing: nothing is early, nothing is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import calls
from bench.checker import Job
from bench.node import Node, Sink, wait_until
from tests.e2e.harness import SETTLE_S, assert_clean, create_all, judge
from tests.e2e.stepping import Hands

pytestmark = pytest.mark.timeout(120)
JOBS = 60
EVERY_MS = 50
LEAD_MS = 1_500
AWAY_MS = 1_200


@pytest.fixture
def hands(tmp_path: Path) -> Hands:
    return Hands(tmp_path / "clock")


@pytest.fixture
def node(tmp_path: Path, hands: Hands) -> Iterator[Node]:
    made = Node(tmp_path / "data")
    made.module = hands.module
    with made:
        yield made.start()


@pytest.mark.parametrize("offset_ms", [90_000, -30_000])
async def test_a_clock_that_is_set_right_again(
    node: Node, sink: Sink, hands: Hands, offset_ms: int
) -> None:
    """Forward it is far enough to be held for longer than it stays so; back, what is due waits for it."""
    api = calls.Api(node.target)
    start_ms = calls.now_ms() + LEAD_MS
    jobs = [Job(f"j{k}", "", start_ms + EVERY_MS * k) for k in range(JOBS)]
    await create_all(api, jobs, [calls.once(sink.url(), job.due_ms) for job in jobs])
    wait_until(lambda: sink.count() >= 3, SETTLE_S, "the first of them")
    hands.set(offset_ms)
    set_ms = calls.now_ms()
    wait_until(
        lambda: calls.now_ms() > set_ms + AWAY_MS, SETTLE_S, "a while in which nothing fires"
    )
    away = sum(arrival.arrival_us // 1_000 > set_ms + 200 for arrival in sink.records())
    assert away == 0, "it fired by a clock that was off"
    hands.set(0)
    wait_until(lambda: sink.count() >= JOBS, SETTLE_S, "all of them")
    assert_clean(judge(jobs, sink))
    await api.close()
