"""A small slice of the crash campaign (`make crash` runs the long one), and one recurring job under repeated kills."""

import asyncio
from pathlib import Path

import pytest
from bench import calls
from bench.checker import Job, Outage
from bench.node import Node, Sink
from tests.e2e.crash import Leg, run_leg
from tests.e2e.harness import assert_clean, judge, restart


@pytest.mark.timeout(240)
@pytest.mark.parametrize("wipe", [False, True], ids=["plain", "wipe"])
async def test_nothing_acknowledged_is_lost(tmp_path: Path, *, wipe: bool) -> None:
    leg = Leg(seed=1, acknowledged=3_000, kills=3, rate=800, recurring=8, wipe=wipe)
    report, story = await run_leg(leg, tmp_path)
    assert_clean(report)
    assert story.faults == []
    assert len(story.outages) >= leg.kills
    assert report.acknowledged >= leg.acknowledged


@pytest.mark.timeout(120)
async def test_each_occurrence_keeps_its_one_id_when_killed_in_flight(
    node: Node, sink: Sink
) -> None:
    """The target needs longer than the period, so every kill finds requests on the way."""
    api = calls.Api(node.target)
    first = calls.now_ms() + 1_000
    job = Job("slow", "", first, 1_000)
    job.uid = (await api.create("slow", calls.every(sink.url("/slow?ms=700"), 1_000, first))).uid
    outages: list[Outage] = []
    for _ in range(4):
        await asyncio.sleep(1.3)
        outages.append(restart(node))
    await asyncio.sleep(3.0)
    report = judge([job], sink, outages, await api.excuses())
    assert_clean(report)
    assert report.at_kill > 0, "no kill found a request in flight: the test has shown nothing"
    await api.close()
