"""Whether a node is well enough to keep its lease, and tasks that nobody awaits."""

import asyncio

from tickwheel.server.cluster.health import LOOP_MS_MAX, WRITE_MS_MAX, Health
from tickwheel.server.cluster.tasks import Tasks


class Clock:
    def __init__(self) -> None:
        self.ms = 10_000

    def __call__(self) -> int:
        return self.ms


def test_a_loop_that_stands_still_is_ailing() -> None:
    clock = Clock()
    health = Health(clock)
    assert health.well()
    clock.ms += LOOP_MS_MAX
    assert health.well()
    clock.ms += 1
    assert not health.well()
    assert "event loop" in health.ailing()
    health.beat()
    assert health.well()


def test_so_is_a_disk_that_does_not_answer() -> None:
    clock = Clock()
    health = Health(clock)
    health.writing_since_ms = clock.ms
    clock.ms += WRITE_MS_MAX
    health.beat()
    assert health.well()
    clock.ms += 1
    assert "disk" in health.ailing()
    health.writing_since_ms = 0
    assert health.well()


async def test_a_task_that_fails_is_never_silent() -> None:
    faults: list[BaseException] = []
    tasks = Tasks(faults.append)

    async def fails() -> None:
        raise ValueError("unforeseen")

    async def ends() -> None:
        await asyncio.sleep(0)

    tasks.spawn(fails())
    tasks.spawn(ends())
    for _ in range(5):
        await asyncio.sleep(0)
    assert [str(fault) for fault in faults] == ["unforeseen"]


async def test_tasks_end_together() -> None:
    faults: list[BaseException] = []
    tasks = Tasks(faults.append)
    ended: list[int] = []

    async def waits(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    for number in range(3):
        tasks.spawn(waits(number))
    await asyncio.sleep(0)
    await tasks.cancel()
    assert (ended, faults) == ([0, 1, 2], [])
    await tasks.cancel()
