"""Watching executions, from outside: what ends is seen, whoever dies meanwhile."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from bench import calls
from bench.cluster import Cluster
from bench.etcd import find_etcd
from bench.node import Node, Sink

from tickwheel.client import AsyncClient, Change, Client, Execution, Retry
from tickwheel.v1.execution_pb2 import ExecutionState

pytestmark = pytest.mark.timeout(120)
SEEN_S = 30.0
LIVE = ("PENDING", "RUNNING", "RETRYING")


def state_of(execution: Execution) -> str:
    return ExecutionState.Name(execution.state).removeprefix("EXECUTION_STATE_")


class Watcher:
    """A watch that runs beside the test, and what it saw."""

    def __init__(self, client: AsyncClient, *, token: str = "", job: str = "-") -> None:
        self.changes: list[Change] = []
        self.seen: dict[str, list[str]] = {}
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._watch(client, job, token))

    async def _watch(self, client: AsyncClient, job: str, token: str) -> None:
        async with aclosing(client.executions.watch(job, token=token, pulse=True)) as changes:
            async for change in changes:
                self.changes.append(change)
                if change.execution is not None:
                    states = self.seen.setdefault(change.execution.name, [])
                    states.append(state_of(change.execution))
                self._news.set()

    async def until_open(self) -> None:
        await self._until(lambda: bool(self.changes))

    async def until_ended(self, count: int) -> None:
        """Wait until so many executions were seen to end."""
        await self._until(lambda: len(self.ended()) >= count)

    async def until_seen(self, job: str, state: str) -> None:
        """Wait until an execution of a job was seen in a state."""
        await self._until(
            lambda: any(
                f"/jobs/{job}/" in name and state in states for name, states in self.seen.items()
            )
        )

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(SEEN_S):
            while not holds():
                self._news.clear()
                news = asyncio.create_task(self._news.wait())
                await asyncio.wait([news, self._task], return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                if self._task.done():
                    await self._task
                    raise AssertionError("a watch never ends by itself")

    def ended(self) -> dict[str, str]:
        """The last state of those that ended."""
        return {name: states[-1] for name, states in self.seen.items() if states[-1] not in LIVE}

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def listed(client: AsyncClient) -> dict[str, str]:
    """What a list says, to compare with."""
    found = client.executions.list(consistent=True, timeout_s=30)
    return {execution.name: state_of(execution) async for execution in found}


async def test_what_happens_is_seen_and_a_watch_goes_on_after_a_kill(
    node: Node, sink: Sink
) -> None:
    """Success, retries, a cancel and a dead letter; then the node dies, and the same watch sees the rest."""
    async with AsyncClient(node.target) as client:
        watcher = Watcher(client)
        await watcher.until_open()
        first_token = watcher.changes[0].token
        retry = Retry(max_attempts=3, min_backoff="100ms", max_backoff="100ms")
        await client.create(sink.url(), job_id="good", delay="0.2s")
        await client.create(sink.url("/fail?times=1"), job_id="again", delay="0.2s", retry=retry)
        await client.create(sink.url("/status/404"), job_id="bad", delay="0.2s", retry=retry)
        await watcher.until_ended(3)
        assert {n.split("/")[3]: s for n, s in watcher.ended().items()} == {
            "good": "SUCCEEDED",
            "again": "SUCCEEDED",
            "bad": "FAILED",
        }
        again = next(states for name, states in watcher.seen.items() if "/again/" in name)
        assert again[-2:] == ["RETRYING", "SUCCEEDED"]
        slow = Retry(max_attempts=9, min_backoff="1h", max_backoff="1h")
        await client.create(sink.url("/status/503"), job_id="stopped", delay="0s", retry=slow)
        await watcher.until_seen("stopped", "RETRYING")
        await client.cancel("stopped")
        await watcher.until_ended(4)
        for k in range(20):
            await client.create(sink.url(), job_id=f"late-{k}", delay=f"{1.0 + k * 0.1:.1f}s")
        await watcher.until_ended(8)
        node.kill()
        node.start()
        await watcher.until_ended(24)
        await watcher.stop()
        assert watcher.ended() == await listed(client)
        resumed = Watcher(client, token=first_token)
        await resumed.until_ended(24)
        await resumed.stop()
        assert resumed.ended() == watcher.ended()
    await asyncio.to_thread(watched_by_an_ordinary_program, node, sink)


def watched_by_an_ordinary_program(node: Node, sink: Sink) -> None:
    """In a thread: the synchronous client, one job, a filter."""
    with Client(node.target) as client:
        changes = client.executions.watch("hello", "state = SUCCEEDED", pulse=True)
        assert next(changes).execution is None
        client.create(sink.url(), job_id="other", delay="0s")
        client.create(sink.url(), job_id="hello", delay="0.1s")
        seen = next(changes).execution
        assert seen is not None
        assert (seen.name.split("/")[3], state_of(seen)) == ("hello", "SUCCEEDED")
        changes.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, options=["--shards", "8"]) as running:
        running.start()
        yield running


@pytest.mark.skipif(find_etcd() is None, reason="no etcd on this machine")
async def test_a_leader_is_killed_and_every_end_is_seen(cluster: Cluster, sink: Sink) -> None:
    """All jobs of a namespace are watched through one node, another dies; no execution's end is left out."""
    leads = cluster.leads()
    victim = max(cluster.running(), key=lambda node: leads[node.name])
    others = [node for node in cluster.nodes if node is not victim]
    async with (
        AsyncClient(others[0].target) as client,
        AsyncClient([victim.target, others[1].target]) as movable,
    ):
        watcher, moved = Watcher(client), Watcher(movable)
        await watcher.until_open()
        await moved.until_open()
        retry = Retry(max_attempts=20, min_backoff="100ms", max_backoff="1s")
        start = calls.now_ms()
        for k in range(100):
            url = sink.url("/fail?times=1") if k % 10 == 0 else sink.url()
            await client.create(url, job_id=f"j{k}", delay=f"{1 + k * 0.05:.2f}s", retry=retry)
        await watcher.until_ended(20)
        victim.kill()
        assert calls.now_ms() - start < 60_000
        await watcher.until_ended(100)
        await moved.until_ended(100)
        await watcher.stop()
        await moved.stop()
        truth = await listed(client)
        assert len(truth) == 100
        assert watcher.ended() == truth
        assert moved.ended() == truth
