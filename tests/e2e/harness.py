"""Real processes for tests: a node and a sink that end with the test, and the checks that every test makes.

The processes themselves are `bench.node`; here are the fixtures' bodies and what judges a run. Each test has its own
data directory and ports, so that tests can run beside each other.
"""

import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import calls
from bench.checker import Excuse, History, Job, Outage, Report, check
from bench.node import Node, Sink

from tickwheel.v1.job_pb2 import Job as Message

SETTLE_S = 30.0
FLOOD_MS = 1_000


@contextmanager
def running_node(
    directory: Path, *, prefix: Sequence[str] = (), options: Sequence[str] = ()
) -> Generator[Node]:
    """A node that is ready. When the block fails, the error carries its log's end."""
    with Node(directory / "data", prefix=prefix, options=options) as node:
        node.start()
        try:
            yield node
        except BaseException as error:
            error.add_note(node.tail())
            raise


def restart(node: Node) -> Outage:
    """`kill -9`, start, wait until ready."""
    node.kill()
    start_ms = calls.now_ms()
    node.start()
    return Outage(start_ms, calls.now_ms())


async def create_all(api: calls.Api, jobs: Sequence[Job], messages: Sequence[Message]) -> None:
    """Create one job a call; the model learns the uids."""
    for job, message in zip(jobs, messages, strict=True):
        job.uid = (await api.create(job.name, message)).uid


def judge(
    jobs: Sequence[Job],
    sink: Sink,
    outages: Sequence[Outage] = (),
    excuses: Sequence[Excuse] = (),
) -> Report:
    """Hold the model against what the sink saw, up to now."""
    horizon = calls.now_ms() - FLOOD_MS
    return check(History(jobs, sink.records(), horizon, excuses, outages))


def assert_clean(report: Report) -> None:
    """No guarantee was broken."""
    assert report.clean, (report.counts, dict(report.examples))
    assert report.expected > 0, "nothing was judged"


def command_runs(*command: str) -> bool:
    """Whether a command exists and succeeds."""
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
