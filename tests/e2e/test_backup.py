"""Backups of a node that runs, and what a node does that starts on a restored one."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.node import Node, Sink, wait_until
from tests.e2e.harness import SETTLE_S, running_node
from tests.e2e.test_cli import Shell

from tickwheel.client import Client

pytestmark = pytest.mark.timeout(180)
SHARDS = ("--shards", "8")
DUE = "10s"
"""Time enough for a backup on a busy machine."""


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Node]:
    with running_node(
        tmp_path, options=[*SHARDS, "--backup-dir", str(tmp_path / "backups")]
    ) as node:
        yield node


def jobs_of(shell: Shell) -> dict[str, dict[str, object]]:
    lines = shell.good("jobs", "list", "-o", "ndjson", "--full", "--consistent", "--limit", "0")
    return {job["name"].rpartition("/")[2]: job for job in map(json.loads, lines.splitlines())}


def ids(sink: Sink) -> set[str]:
    return {arrival.id for arrival in sink.records()}


def fill_and_back_up(node: Node, shell: Shell, sink: Sink) -> dict[str, dict[str, object]]:
    """One job that fired, two that are due after the backup, some far ahead; the jobs as the backup has them."""
    url = sink.url()
    with Client(node.target, timeout_s=30) as client:
        client.create(url, job_id="early", delay="0s")
        wait_until(lambda: sink.count() == 1, SETTLE_S, "the first request")
        client.create(url, job_id="skips", every="1h", misfire="skip")
        client.create(url, job_id="later", delay="10h")
        client.create(url, job_id="cancelled", delay="9h")
        before = jobs_of(shell)
        client.create(url, job_id="soon", delay=DUE)
        client.create(url, job_id="brief", delay=DUE, expire_after="1s")
        assert "/backups/one" in shell.good("backup", "one")
        assert sink.count() == 1, "the backup took longer than this test can bear"
    return before


def test_what_fell_due_since_the_backup_follows_its_policies(
    origin: Node, sink: Sink, tmp_path: Path
) -> None:
    shell = Shell(origin.target, tmp_path)
    before = fill_and_back_up(origin, shell, sink)
    assert sorted(path.name for path in (tmp_path / "backups").iterdir()) == ["one"]
    shell.good("jobs", "cancel", "cancelled")
    shell.good("jobs", "create", "--id", "unknown", "--url", sink.url(), "--in", "9h")
    wait_until(lambda: sink.count() == 3, SETTLE_S, "what was due since")
    original = ids(sink)
    origin.terminate()
    time.sleep(1.5)  # so that `brief` is expired
    sink.reset()
    told = shell.good("restore", str(tmp_path / "backups" / "one"), "--data-dir",
                      str(tmp_path / "new" / "data"))  # fmt: skip
    for words in ("6 jobs", "1 one-off jobs fire at once, late", "1 jobs record", "WARNING"):
        assert words in told
    with running_node(tmp_path / "new", options=SHARDS) as node:
        shell = Shell(node.target, tmp_path)
        wait_until(lambda: sink.count() >= 1, SETTLE_S, "the late request")
        after = jobs_of(shell)
        assert after.keys() == {*before, "soon", "brief"}, "what came after is not there"
        assert {name: after[name] for name in before} == before
        expect_history(shell)
        assert ids(sink) <= original, "the id is that of the first time"
        assert [arrival.epoch > 1 << 20 for arrival in sink.records()] == [True]
        shell.good("jobs", "create", "--id", "fresh", "--url", sink.url(), "--in", "0s")
        wait_until(lambda: sink.count() == 2, SETTLE_S, "a new job's request")
        assert node.terminate() == 0


def expect_history(shell: Shell) -> None:
    """What ended before the backup is there, and what was given up has its reason."""
    wait_until(
        lambda: jobs_of(shell)["brief"]["state"] == "JOB_STATE_COMPLETED", SETTLE_S, "the miss"
    )
    missed = shell.good("executions", "list", "brief", "-o", "ndjson", "--consistent")
    assert json.loads(missed)["reason"] == "REASON_EXPIRED"
    early = shell.good("executions", "list", "early", "-o", "ndjson", "--consistent")
    assert json.loads(early)["state"] == "EXECUTION_STATE_SUCCEEDED"


def test_a_restored_node_can_be_paused_whole(origin: Node, sink: Sink, tmp_path: Path) -> None:
    shell = Shell(origin.target, tmp_path)
    with Client(origin.target, timeout_s=30) as client:
        client.create(sink.url(), job_id="later", delay="10h")
        client.create(sink.url(), job_id="soon", delay=DUE)
        shell.good("backup", "two")
        origin.kill()
    told = shell.good("restore", str(tmp_path / "backups" / "two"), "--paused", "--data-dir",
                      str(tmp_path / "new" / "data"))  # fmt: skip
    assert "paused: 2 jobs" in told
    with running_node(tmp_path / "new", options=SHARDS) as node:
        shell = Shell(node.target, tmp_path)
        assert {job["state"] for job in jobs_of(shell).values()} == {"JOB_STATE_PAUSED"}
        counts = shell.good("jobs", "count", "--by", "state", "-o", "json")
        assert "PAUSED" in counts
        shell.good("jobs", "resume", "soon")
        wait_until(lambda: sink.count() == 1, SETTLE_S, "the resumed job's request")
        assert jobs_of(shell)["later"]["state"] == "JOB_STATE_PAUSED"


def test_a_backup_under_load_is_whole(origin: Node, sink: Sink, tmp_path: Path) -> None:
    """Everything answered before the call is in it, and firing goes on meanwhile."""
    shell = Shell(origin.target, tmp_path)
    job = {
        "httpTarget": {"url": sink.url()},
        "schedule": {"every": {"period": "1s"}},
        "retention": {"maxExecutions": 5},
    }
    lines = [json.dumps({"jobId": f"job-{n}", "job": job}) for n in range(300)]
    (tmp_path / "jobs").write_text("\n".join(lines))
    shell.good("jobs", "create", "--from", "jobs")
    far = job | {
        "schedule": {"once": {"delay": "36000s"}},
        "httpTarget": {"url": sink.url(), "body": "eA==" * 500},
    }
    (tmp_path / "more").write_text("\n".join(json.dumps({"jobId": f"far-{n}", "job": far}) for n in range(20_000)))  # fmt: skip
    loading = threading.Thread(target=shell, args=("jobs", "create", "--from", "more"))
    loading.start()
    names = [f"under-{k}" for k in range(3)]
    try:
        for name in names:
            shell.good("jobs", "create", "--id", name, "--url", sink.url(), "--in", "9h")
            shell.good("backup", name)
    finally:
        loading.join()
    sent = sink.count()
    wait_until(lambda: sink.count() > sent, SETTLE_S, "firing to go on")
    origin.terminate()
    for k, name in enumerate(names):
        target = tmp_path / name / "data"
        shell.good(
            "restore", str(tmp_path / "backups" / name), "--data-dir", str(target), "--paused"
        )
        with running_node(tmp_path / name, options=SHARDS) as node:
            found = jobs_of(Shell(node.target, tmp_path))
            assert {f"job-{n}" for n in range(300)} <= found.keys()
            assert [other for other in names if other in found] == names[: k + 1]
            node.terminate()


def test_what_goes_wrong_is_told(origin: Node, tmp_path: Path) -> None:
    shell = Shell(origin.target, tmp_path)
    for words, code, text in (
        (("backup", "Not A Name"), 2, "backup_id"),
        (("backup", "../up"), 2, "backup_id"),
        (("-s", "127.0.0.1:1", "backup"), 5, "no server answers"),
        (("-s", "127.0.0.1:1,127.0.0.1:2", "backup"), 2, "Name the one node"),
        (("restore", "nowhere", "--data-dir", "new"), 2, "does not exist"),
        (("restore", ".", "--data-dir", "new"), 1, "is no backup"),
    ):
        done = shell(*words)
        assert done.returncode == code, done.stderr
        assert text in done.stderr
        assert "Traceback" not in done.stderr
    out = shell.good("backup")
    assert "/backups/backup-20" in out
    shell.good("backup", "twice")
    again = shell("backup", "twice")
    assert (again.returncode, "already" in again.stderr) == (4, True), again.stderr
    source = tmp_path / "backups" / "twice"
    done = shell("restore", str(source), "--data-dir", str(origin.data_dir))
    assert (done.returncode, "is not empty" in done.stderr) == (1, True), done.stderr
    main = source / "shard-0003" / "shard-0003.db"
    data = bytearray(main.read_bytes())
    data[5_000] ^= 1
    main.write_bytes(data)
    done = shell("restore", str(source), "--data-dir", str(tmp_path / "new"))
    assert (done.returncode, "digest" in done.stderr) == (1, True), done.stderr
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.restoring").exists()


def test_a_node_without_a_place_for_backups_says_so(node: Node, tmp_path: Path) -> None:
    done = Shell(node.target, tmp_path)("backup")
    assert done.returncode == 4
    assert "--backup-dir" in done.stderr
