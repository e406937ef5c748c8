"""How late requests reach their target. The lag is the sink's clock minus the scheduled time, on one machine."""

from bench import calls
from bench.node import Node, Sink
from bench.report import Row
from bench.rig import Rig, lags, load, start_at, wait_count

RATES = (200, 2_000, 10_000)
STEADY_S = 30
BURST = 5_000
DRAIN_S = 60.0


def steady(rig: Rig) -> list[Row]:
    """One-offs due evenly at 200, 2,000 and 10,000 a second for half a minute, all created before the first is due."""
    rows: list[Row] = []
    for rate in RATES:
        count = rig.count(rate * STEADY_S)
        with Sink() as sink, rig.node(f"steady-{rate}") as node:
            rows.append({"fires_per_s": rate, **fire(node, sink, count, count * 1_000 // rate)})
    return rows


def burst(rig: Rig) -> list[Row]:
    """5,000 one-offs due at one instant, three times."""
    rows: list[Row] = []
    count = rig.count(BURST)
    with Sink() as sink, rig.node("burst") as node:
        for number in range(3):
            sink.reset()
            rows.append({"burst": count, **fire(node, sink, count, 0, prefix=f"b{number}-")})
    return rows


def fire(node: Node, sink: Sink, count: int, spread_ms: int, prefix: str = "b-") -> Row:
    """Create `count` jobs over a span of time, wait until they have fired, and say how late they were."""
    start_ms = start_at(count)
    made = load(
        node, sink, "bulk", count=count, due_ms=start_ms, spread_ms=spread_ms, prefix=prefix
    )
    used = node.cpu_s()
    wait_count(sink, count, (start_ms + spread_ms - calls.now_ms()) / 1_000 + DRAIN_S)
    arrivals = sink.records()
    return {
        "jobs": made["accepted"],
        "arrived": len({a.id for a in arrivals}),
        **lags(arrivals),
        "node_cpu_us_a_fire": round((node.cpu_s() - used) * 1e6 / count, 1),
        "rss_mib": node.rss_bytes() >> 20,
    }
