"""A backup of a cluster that runs, and a new cluster that begins with it."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from bench import calls
from bench.cluster import Cluster, ClusterNode
from bench.etcd import find_etcd
from bench.node import Sink, wait_until
from tests.e2e.harness import SETTLE_S
from tests.e2e.test_backup import ids
from tests.e2e.test_cli import Shell

from tickwheel.client import Client

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        find_etcd() is None, reason="no etcd on this machine, and none in the environment"
    ),
]
SHARDS = 4
COPIES = 3
DUE = "5s"
"""Time enough for a backup on a busy machine."""


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Cluster]:
    options = ["--shards", str(SHARDS), "--backup-dir", str(tmp_path / "backups")]
    with Cluster(tmp_path, options=options) as running:
        running.start()
        yield running


class Writer:
    """Creates jobs without pause, and knows which of them were answered."""

    def __init__(self, target: str, url: str) -> None:
        self.answered: list[str] = []
        self._target = target
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with Client(self._target, timeout_s=30) as client:
            while not self._stop.is_set():
                name = f"under-{len(self.answered)}"
                client.create(self._url, job_id=name, delay="9h")
                self.answered.append(name)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def fill_and_back_up(cluster: Cluster, shell: Shell, sink: Sink) -> set[str]:
    """What has to be in the backup: everything answered before it began, while more is created."""
    url = sink.url()
    with Client(cluster.target, timeout_s=30) as client:
        client.create(url, job_id="early", delay="0s")
        client.create(url, job_id="skips", every="1h", misfire="skip")
        for n in range(60):
            client.create(url, job_id=f"far-{n}", delay="10h")
        wait_until(lambda: sink.count() == 1, SETTLE_S, "the first request")
        client.create(url, job_id="soon", delay=DUE)
        client.create(url, job_id="brief", delay=DUE, expire_after="1s")
        with closing(Writer(cluster.target, url)) as writer:
            wait_until(lambda: len(writer.answered) > 20, SETTLE_S, "creates")
            before = {"early", "skips", "soon", "brief", *(f"far-{n}" for n in range(60))}
            before |= set(writer.answered)
            assert "/backups/one" in shell.good("backup", "one")
            assert sink.count() == 1, "the backup took longer than this test can bear"
            answered = len(writer.answered)
            wait_until(lambda: len(writer.answered) > answered, SETTLE_S, "creates to go on")
        client.create(url, job_id="after", delay="9h")
    return before


def expect_damage_to_be_named(shell: Shell, backup: Path, to: Path) -> None:
    main = backup / "shard-0001" / "shard-0001.db"
    whole = main.read_bytes()
    main.write_bytes(whole[:5_000] + bytes([whole[5_000] ^ 1]) + whole[5_001:])
    done = shell("restore", str(backup), "--data-dir", str(to))
    assert done.returncode == 1
    assert "shard-0001.db does not have the digest" in done.stderr, done.stderr
    assert not to.exists()
    main.write_bytes(whole)


def expect_exit(node: ClusterNode, words: str) -> None:
    """It refuses to start, and says why."""
    node.spawn()
    assert node.wait_exit() == 1
    assert words in node.tail()


def copies(cluster: Cluster) -> list[int]:
    return [len(shard.voters) for shard in cluster.map().shards]


def test_a_new_cluster_begins_with_the_backup_of_another(
    origin: Cluster, sink: Sink, tmp_path: Path
) -> None:
    shell = Shell(origin.nodes[1].target, tmp_path)
    before = fill_and_back_up(origin, shell, sink)
    backup = tmp_path / "backups" / "one"
    said = json.loads((backup / "backup.json").read_text())
    assert {part["node"] for part in said["parts"]} == {s.leader[6:] for s in origin.map().shards}
    assert said["namespaces"]["default"] >= len(before)
    wait_until(lambda: sink.count() == 3, SETTLE_S, "what was due since")
    original, expired_ms = ids(sink), calls.now_ms() + 1_000
    for node in origin.nodes:
        node.kill()
    sink.reset()
    new = Cluster(tmp_path / "new", options=["--shards", str(SHARDS)])
    new.etcd = origin.etcd
    expect_damage_to_be_named(shell, backup, tmp_path / "new" / "node-1")
    wait_until(lambda: calls.now_ms() > expired_ms, SETTLE_S, "`brief` to expire")
    told = shell.good("restore", str(backup), "--data-dir", str(tmp_path / "new" / "node-1"))
    assert "1 one-off jobs fire at once, late" in told
    expect_exit(new.make(1), "Choose another --cluster NAME")
    new.options += ["--cluster", "restored"]
    new.nodes = [new.make(number + 1) for number in range(3)]
    try:
        expect_a_whole_cluster(new, sink, before, original)
    finally:
        for node in new.nodes:
            node.close()


def expect_a_whole_cluster(
    cluster: Cluster, sink: Sink, before: set[str], original: set[str]
) -> None:
    """It fires what is due, by its first node alone; the others take copies, and any one may be lost."""
    first = cluster.nodes[0].start()
    wait_until(lambda: sink.count() >= 1, SETTLE_S, "the late request")
    assert ids(sink) <= original, "the id is that of the first time"
    assert [arrival.epoch > 1 << 20 for arrival in sink.records()] == [True]
    for node in cluster.nodes[1:]:
        node.spawn()
    wait_until(lambda: copies(cluster) == [COPIES] * SHARDS, SETTLE_S, "three copies of each shard")
    first.kill()
    cluster.wait_served(SETTLE_S)
    with Client(cluster.nodes[2].target, timeout_s=30) as client:
        found = {job.name.rpartition("/")[2]: job for job in client.list(consistent=True)}
        assert before <= found.keys()
        assert "after" not in found
        assert found["brief"].last_outcome != found["soon"].last_outcome
        assert sink.count() == 1, "what was due fired once"
        client.create(sink.url(), job_id="fresh", delay="0s")
    wait_until(lambda: sink.count() == 2, SETTLE_S, "a new job's request")
    assert min(arrival.epoch for arrival in sink.records()) > 1 << 20
    first.options += ["--cluster", "third"]
    expect_exit(first, "belongs to another cluster")
