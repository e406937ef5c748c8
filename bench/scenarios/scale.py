"""What waiting jobs cost: memory at 1M, 5M and 10M pending, and how long a killed node with 1M needs to fire again."""

import time

from bench import calls
from bench.checker import scheduled_ms
from bench.node import Sink
from bench.report import Row
from bench.rig import Rig, load, wait_count

STEPS = (1_000_000, 4_000_000, 5_000_000)
MONTH_MS = 30 * 86_400_000
PENDING = 1_000_000
DUE_AFTER_KILL_MS = 300
FIRST = 200
FLUSH_S = 10.0


def memory(rig: Rig) -> list[Row]:
    """Up to 10M jobs due over a month: resident memory, disk, the rate of creates, and the lag of jobs due meanwhile."""
    rows: list[Row] = []
    total = 0
    with Sink() as sink, rig.node("memory") as node:
        for number, step in enumerate(STEPS):
            count = rig.count(step)
            made = load(
                node, sink, "bulk", count=count, prefix=f"m{number}-", spread_ms=MONTH_MS, flight=4
            )
            total += made["accepted"]
            peak = node.rss_bytes()
            time.sleep(FLUSH_S)
            disk = sum(p.stat().st_size for p in node.data_dir.rglob("*") if p.is_file())
            rows.append({
                "pending": total, "creates_per_s": made["per_s"], "refused": made["refused"],
                "rss_mib_after_load": peak >> 20, "rss_mib_idle": node.rss_bytes() >> 20,
                "disk_mib": disk >> 20,
            })  # fmt: skip
    return rows


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
