"""The disk fails: an fsync that reports an error, a file system that is full.

An fsync error is never retried: the node ends at once, and the next start takes up what was acknowledged. A full disk
makes it refuse or end, never forget. Both need Linux and rights that not every machine gives; the reason is named then.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc.aio
import pytest
from bench import calls
from bench.checker import Job
from bench.node import Node, Sink, wait_until
from tests.e2e.harness import SETTLE_S, assert_clean, command_runs, judge, running_node

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]
EXIT_FATAL = 70
DUE_MS = 12_000
BATCH = 20
DISK_BYTES = 24 << 20


# --- fsync says no -----------------------------------------------------------------------------


@pytest.fixture
def strace() -> str:
    path = shutil.which("strace")
    if path is None:
        pytest.skip("strace is not installed")
    if not command_runs(path, "-f", "-e", "inject=fdatasync:error=EIO:when=1", "true"):
        pytest.skip("this machine allows no tracing")
    return path


@pytest.mark.parametrize("when", [1, 2, 7])
async def test_an_fsync_error_ends_the_node_and_loses_nothing(
    node: Node, sink: Sink, strace: str, when: int
) -> None:
    """The error hits the journal or a store, whichever syncs as the n-th; both must end it."""
    api = calls.Api(node.target)
    jobs: list[Job] = []
    await load(api, sink, jobs, batches=5)
    acknowledged = len(jobs)
    tracer = attach(strace, node, when)
    try:
        with suppress(calls.GaveUp, grpc.aio.AioRpcError):
            while node.code() is None:
                await load(api, sink, jobs, batches=1, within_s=2.0)
        wait_until(lambda: node.code() is not None, SETTLE_S, "the node's end")
    finally:
        tracer.kill()
        tracer.wait()
    assert node.code() == EXIT_FATAL
    await api.close()
    await restart_and_judge(node, sink, jobs)
    assert len(jobs) >= acknowledged


def attach(strace: str, node: Node, when: int) -> subprocess.Popen[bytes]:
    """Make every fdatasync of a running node fail from the n-th on. Returns when it is traced."""
    tracer = subprocess.Popen(
        [strace, "-f", "-qq", "-o", "/dev/null", "-p", str(node.pid),
         "-e", "trace=fdatasync", "-e", f"inject=fdatasync:error=EIO:when={when}+"],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    tasks = list(Path(f"/proc/{node.pid}/task").iterdir())
    wait_until(lambda: all(_traced(task) for task in tasks), SETTLE_S, "the tracer")
    return tracer


def _traced(task: Path) -> bool:
    with suppress(FileNotFoundError):
        return "TracerPid:\t0\n" not in (task / "status").read_text()
    return True


# --- the disk is full --------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    path = tmp_path / "disk"
    path.mkdir()
    if not command_runs("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)):
        pytest.skip("this machine allows no mount")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


async def test_a_full_disk_refuses_and_loses_nothing(small_disk: Path, sink: Sink) -> None:
    options = (
        "--segment-bytes",
        str(2 << 20),
        "--wal-low-water-bytes",
        str(4 << 20),
        "--shards",
        "4",
    )
    with running_node(small_disk, options=options) as node:
        api = calls.Api(node.target)
        jobs: list[Job] = []
        body = b"x" * 20_000
        refused = None
        for _ in range(DISK_BYTES // (BATCH * len(body)) * 2):
            try:
                await load(api, sink, jobs, batches=1, body=body, within_s=3.0)
            except (calls.GaveUp, grpc.aio.AioRpcError, AssertionError) as error:
                refused = error
                break
        assert refused is not None, "twice the disk's size was accepted"
        assert jobs, "nothing was accepted"
        assert node.code() in (None, EXIT_FATAL), node.tail()
        await api.close()
        node.close()
        assert command_runs("mount", "-o", f"remount,size={DISK_BYTES * 8}", str(small_disk))
        await restart_and_judge(node, sink, jobs)


# --- shared ------------------------------------------------------------------------------------


async def load(
    api: calls.Api,
    sink: Sink,
    jobs: list[Job],
    *,
    batches: int,
    body: bytes = b"",
    within_s: float = 20.0,
) -> None:
    """Create batches; only what was acknowledged enters the model. Raises what the node answers for good."""
    for _ in range(batches):
        due = calls.now_ms() + DUE_MS
        made = [Job(f"j{len(jobs) + k}", "", due) for k in range(BATCH)]
        requests = [calls.request(j.name, calls.once(sink.url(), due, body=body)) for j in made]
        uids = await api.create_many(requests, within_s)
        for job, uid in zip(made, uids, strict=True):
            job.uid = uid
        jobs += made


async def restart_and_judge(node: Node, sink: Sink, jobs: list[Job]) -> None:
    """Start again on a healthy disk: every acknowledged job is there, and fires."""
    unanswered = [Job(f"j{len(jobs) + k}", "", calls.now_ms()) for k in range(BATCH)]
    node.start()
    api = calls.Api(node.target)
    for job in jobs[:: max(len(jobs) // 50, 1)]:
        assert (await api.get(job.name)).uid == job.uid
    await api.close()
    last = max(job.due_ms for job in jobs)
    await asyncio.sleep(max(last - calls.now_ms(), 0) / 1_000)
    wait_until(lambda: sink.count() >= len(jobs), SETTLE_S, f"{len(jobs)} requests")
    await asyncio.sleep(1.2)
    assert_clean(judge(jobs + unanswered, sink))
