"""What waiting jobs cost: memory, disk and lateness with up to 10M pending, and how soon a killed node fires again."""

import asyncio
import time

from bench import calls
from bench.checker import scheduled_ms
from bench.node import Node, Sink
from bench.report import Row
from bench.rig import Rig, lags, load, progress, wait_count

PENDING_MAX = 10_000_000
STEPS = 10
MONTH_MS = 30 * 86_400_000
HOUR_MS = 3_600_000
HOUR_CREATES_PER_S = 8_000
HOUR_SETTLE_MS = 20_000
FIRING_S = 60.0
PULSES = 20
PENDING = 1_000_000
DUE_AFTER_KILL_MS = 300
FIRST = 200
FLUSH_S = 40.0


def memory(rig: Rig) -> list[Row]:
    """Up to 10M jobs due over a month: resident memory, disk, rate of creates, and the lag of 20 jobs a second."""
    with Sink() as sink, rig.node("memory") as node:
        rows = [idle(node, 0, "empty")]
        rows += fill(rig, node, sink, calls.now_ms() + 86_400_000, MONTH_MS)
        time.sleep(FLUSH_S)
        rows.append(idle(node, rows[-1]["pending"], "flushed"))
    return rows


def memory_hour(rig: Rig) -> list[Row]:
    """The same, all due within one hour that begins soon; and its first minute."""
    ahead_ms = HOUR_SETTLE_MS + rig.count(PENDING_MAX) * 1_000 // HOUR_CREATES_PER_S
    with Sink() as sink, rig.node("memory-hour") as node:
        start_ms = calls.now_ms() + ahead_ms
        rows = fill(rig, node, sink, start_ms, HOUR_MS)
        time.sleep(max(start_ms - calls.now_ms(), 0) / 1_000)
        rows.append(idle(node, rows[-1]["pending"], "hour begins"))
        sink.reset()
        used = node.cpu_s()
        time.sleep(FIRING_S)
        arrivals = sink.records()
        rows.append(idle(node, rows[-1]["pending"] - len(arrivals), "firing"))
        rows[-1] |= {
            "fires_per_s": round(len(arrivals) / FIRING_S),
            "node_cpu_us_a_fire": round((node.cpu_s() - used) * 1e6 / max(len(arrivals), 1), 1),
            **lags(arrivals),
        }
        progress(rows[-1])
    return rows


def fill(rig: Rig, node: Node, sink: Sink, due_ms: int, spread_ms: int) -> list[Row]:
    """Create the jobs in equal steps, each over the whole span of time; a row a step.

    Beside them 20 recurring jobs fire once a second, one every 50 ms: their lag shows what holds the node up.
    """
    asyncio.run(pulse(node, sink))
    rows: list[Row] = []
    total = 0
    for number in range(STEPS):
        sink.reset()
        made = load(
            node, sink, "bulk", count=rig.count(PENDING_MAX) // STEPS, prefix=f"m{number}-",
            due_ms=due_ms, spread_ms=spread_ms, flight=4,
        )  # fmt: skip
        total += made["accepted"]
        rows.append({
            **idle(node, total, "loading"), "creates_per_s": made["per_s"],
            "node_cpu_us_a_create": made["node_cpu_us_a_job"], "refused": made["refused"],
            "batch_max_ms": made["latency_ms"]["max"], **lags(sink.records()),
        })  # fmt: skip
        progress(rows[-1])
    return rows


async def pulse(node: Node, sink: Sink) -> None:
    """Jobs that fire every second from now on, evenly staggered."""
    api = calls.Api(node.target)
    anchor_ms = calls.now_ms() + 2_000
    for number in range(PULSES):
        at_ms = anchor_ms + number * 1_000 // PULSES
        await api.create(f"pulse-{number}", calls.every(sink.url(), 1_000, at_ms))
    await api.close()


def idle(node: Node, pending: int, phase: str) -> Row:
    """What the node takes at this moment, and the most it ever took."""
    disk = sum(p.stat().st_size for p in node.data_dir.rglob("*") if p.is_file())
    return {
        "phase": phase, "pending": pending, "rss_mib": node.rss_bytes() >> 20,
        "rss_peak_mib": node.rss_peak_bytes() >> 20, "disk_mib": disk >> 20,
    }  # fmt: skip


def restart(rig: Rig) -> list[Row]:
    """Kill -9 with 1M pending while creates go on; then: process start → ready → the first due job arrives."""
    with Sink() as sink, rig.node("restart") as node:
        made = load(node, sink, "bulk", count=rig.count(PENDING), spread_ms=MONTH_MS)
        due = calls.now_ms() + 1_500
        load(
            node,
            sink,
            "bulk",
            count=FIRST,
            prefix="first-",
            batch=FIRST,
            due_ms=due + DUE_AFTER_KILL_MS,
        )
        time.sleep(max(due - calls.now_ms(), 0) / 1_000)
        node.kill()
        start_ms = calls.now_ms()
        node.start()
        ready_ms = calls.now_ms() - start_ms
        wait_count(sink, FIRST, 60.0)
        arrivals = sink.records()
        first_us = min(a.arrival_us for a in arrivals)
        return [{
            "pending": made["accepted"], "ready_ms": ready_ms,
            "first_fire_ms": first_us / 1_000 - start_ms, "late": len(arrivals),
            "last_fire_ms": max(a.arrival_us for a in arrivals) / 1_000 - start_ms,
            "early": sum(a.arrival_us < scheduled_ms(a) * 1_000 for a in arrivals),
            "rss_mib": node.rss_bytes() >> 20,
        }]  # fmt: skip
