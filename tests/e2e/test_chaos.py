"""A small slice of the chaos campaign (`make chaos` runs the long one): a kill and a pause of a leader, under load."""

import sys
from pathlib import Path

import pytest
from bench.etcd import find_etcd
from tests.e2e.chaos import Leg, fired_ms, line, run_leg, summary
from tests.e2e.harness import assert_clean

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(sys.platform != "linux", reason="callers are told apart by /proc"),
    pytest.mark.skipif(
        find_etcd() is None, reason="no etcd on this machine, and none in the environment"
    ),
]


def test_two_faults_lose_nothing(tmp_path: Path) -> None:
    leg = Leg(seed=1, kinds=("kill_leader", "pause"), rate=40, recurring=16)
    outcome = run_leg(leg, tmp_path)
    assert outcome.wrong == []
    assert_clean(outcome.report)
    killed, paused = outcome.faults
    assert killed.shards, "the node that leads most led nothing: the fault has shown nothing"
    assert fired_ms(killed, outcome.arrivals, leg.shards)["shards"] > 0
    assert paused.hosts != killed.hosts, "the killed node leads nothing when it is back"
    row = line(leg, outcome, 1.0)
    assert row["clean"]
    assert "2 faults" in summary([row])
