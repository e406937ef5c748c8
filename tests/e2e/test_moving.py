"""Jobs exported from one server and imported into another are the same jobs, and are known as such."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.node import Node, Sink, wait_until
from tests.e2e.harness import SETTLE_S, running_node
from tests.e2e.test_cli import Shell

from tickwheel.client import AlreadyExists, Client

pytestmark = pytest.mark.timeout(180)
MADE_ANEW = {"createTime", "updateTime", "etag"}


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Node]:
    (tmp_path / "other").mkdir()
    with running_node(tmp_path / "other") as running:
        yield running


def jobs_of(shell: Shell) -> dict[str, dict[str, Any]]:
    out = shell.good(
        "jobs", "list", "--all-namespaces", "-o", "ndjson", "--full", "--consistent", "--limit", "0"
    )
    jobs = [json.loads(line) for line in out.splitlines()]
    return {job["name"]: {k: v for k, v in job.items() if k not in MADE_ANEW} for job in jobs}


def fill(node: Node, shell: Shell, sink: Sink) -> None:
    """Jobs of every kind and state, in two namespaces."""
    url = sink.url()
    shell.good("jobs", "create", "--id", "once", "--url", url, "--in", "9h", "--body", "hello",
               "--header", "x-key: secret", "--label", "team=a")  # fmt: skip
    shell.good("jobs", "create", "--id", "cron", "--url", url, "--cron", "30 2 * * *",
               "--time-zone", "Europe/Berlin", "--jitter", "5m")  # fmt: skip
    shell.good("jobs", "create", "--id", "counts", "--url", url, "--every", "1s",
               "--max-executions", "2")  # fmt: skip
    shell.good("jobs", "create", "--id", "every", "--url", url, "--every", "1h", "-n", "second")
    for name, verb in (("paused", "pause"), ("cancelled", "cancel")):
        shell.good("jobs", "create", "--id", name, "--url", url, "--cron", "@daily")
        shell.good("jobs", verb, name)
    with Client(node.target) as client:
        client.create(url, delay="8h", request_id="order-1")
        client.create(url, delay="8h", request_id="order-2", job_id="named")
    wait_until(lambda: jobs_of(shell)["namespaces/default/jobs/counts"]["state"].endswith("COMPLETED"),
               SETTLE_S, "a job to complete")  # fmt: skip


def test_the_same_jobs_on_another_server(
    node: Node, other: Node, sink: Sink, tmp_path: Path
) -> None:
    here, there = Shell(node.target, tmp_path), Shell(other.target, tmp_path)
    fill(node, here, sink)
    before = jobs_of(here)
    assert len(before) == 8
    done = here("export", "jobs.ndjson", "--all-namespaces")
    assert done.returncode == 0, done.stderr
    assert "exported 8 jobs" in done.stderr
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    assert (tmp_path / "jobs.ndjson").stat().st_mode & 0o777 == 0o600
    assert there.good("import", "jobs.ndjson") == "imported 8, failed 0\n"
    assert jobs_of(there) == before
    assert there.good("import", "jobs.ndjson") == "imported 8, failed 0\n"
    assert jobs_of(there) == before, "what is there is met, not made twice"
    with Client(other.target) as client, Client(node.target) as old:
        for request_id, job_id in (("order-1", ""), ("order-2", "named")):
            again, first = (
                each.create(sink.url(), delay="8h", request_id=request_id, job_id=job_id)
                for each in (client, old)
            )
            assert again == first
        with pytest.raises(AlreadyExists):
            client.create(sink.url(), delay="7h", request_id="order-1")
    assert jobs_of(there) == before
    there.good("jobs", "resume", "paused")
    there.good("jobs", "cancel", "cancelled")
    assert jobs_of(there)["namespaces/default/jobs/paused"]["state"] == "JOB_STATE_SCHEDULED"


def test_what_fell_due_on_the_way_fires_late_under_its_id(
    node: Node, other: Node, sink: Sink, tmp_path: Path
) -> None:
    here, there = Shell(node.target, tmp_path), Shell(other.target, tmp_path)
    with Client(node.target) as client:
        uid = client.create(sink.url(), job_id="soon", delay="8s").uid
    due_s = time.monotonic() + 8
    exported = here.good("export")
    node.kill()
    assert not sink.count(), "the export took longer than this test can bear"
    time.sleep(max(due_s - time.monotonic(), 0))
    (tmp_path / "jobs").write_text(exported)
    there.good("import", "jobs")
    wait_until(lambda: sink.count() == 1, SETTLE_S, "the request")
    assert uid in sink.records()[0].id


def test_unfinished_executions_are_told(node: Node, sink: Sink, tmp_path: Path) -> None:
    shell = Shell(node.target, tmp_path)
    shell.good("jobs", "create", "--id", "fails", "--url", sink.url("/fail?times=9"), "--in", "0s",
               "--min-backoff", "60s")  # fmt: skip
    wait_until(lambda: sink.count() == 1, SETTLE_S, "the first attempt")
    done = shell("export")
    assert done.returncode == 0
    assert "1 executions have not ended" in done.stderr


def test_an_export_goes_on_where_it_was_interrupted(node: Node, sink: Sink, tmp_path: Path) -> None:
    shell = Shell(node.target, tmp_path)
    job = {"httpTarget": {"url": sink.url()}, "schedule": {"once": {"delay": "36000s"}}}
    lines = [json.dumps({"jobId": f"job-{n:05d}", "job": job}) for n in range(12_000)]
    (tmp_path / "load").write_text("\n".join(lines))
    shell.good("jobs", "create", "--from", "load")
    whole = shell.good("export")
    state = tmp_path / "out.partial.state"
    running = subprocess.Popen(
        shell.command("export", "out"), cwd=tmp_path, env=shell.environment, stderr=subprocess.PIPE
    )
    try:
        wait_until(state.exists, SETTLE_S, "the first page")
    finally:
        running.kill()
        running.communicate()
    assert not (tmp_path / "out").exists()
    with (tmp_path / "out.partial").open("ab") as torn:
        torn.write(b'{"parent":"namespaces/de')
    done = shell("export", "out")
    assert done.returncode == 0, done.stderr
    assert "going on behind" in done.stderr
    assert (tmp_path / "out").read_text() == whole
    assert len(whole.splitlines()) == 12_000
    assert not state.exists()


def test_lines_that_fail_are_named(node: Node, sink: Sink, tmp_path: Path) -> None:
    shell = Shell(node.target, tmp_path)
    shell.good("jobs", "create", "--id", "a", "--url", sink.url(), "--in", "9h")
    shell.good("jobs", "create", "--id", "b", "--url", sink.url(), "--in", "9h")
    first, second = (json.loads(line) for line in shell.good("export").splitlines())
    shell.good("jobs", "delete", "a")
    shell.good("jobs", "create", "--id", "a", "--url", sink.url(), "--in", "8h")
    second["jobId"] = "c"
    bad = json.loads(json.dumps(second))
    bad["job"]["uid"] = "short"
    lines = [first, "nonsense", bad, second]
    (tmp_path / "jobs").write_text("\n".join(json.dumps(line) for line in lines))
    done = shell("import", "jobs")
    assert (done.returncode, done.stdout) == (1, "imported 1, failed 3\n")
    assert "line 1: job 'a' exists with other content" in done.stderr
    assert "line 2: " in done.stderr
    assert "line 3: job.uid" in done.stderr
    done = shell("import", "jobs", "--from-line", "4")
    assert (done.returncode, done.stdout) == (0, "imported 1, failed 0\n")
    done = shell("-s", "127.0.0.1:1", "--timeout", "1", "import", "jobs", "--from-line", "3")
    assert done.returncode == 5
    assert "go on with --from-line 3" in done.stderr
