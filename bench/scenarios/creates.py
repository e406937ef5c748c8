"""How fast jobs are taken in, each durable before its answer. They fall due in a day, so nothing fires meanwhile."""

from bench.node import Sink
from bench.report import Row
from bench.rig import Rig, load

BULK = 1_000_000
SINGLE = 200_000
FLIGHT = 64
OPEN_RATE = 2_000


def bulk(rig: Rig) -> list[Row]:
    """BatchCreateJobs of 1,000, four in flight; and the same over one stream."""
    count = rig.count(BULK)
    rows: list[Row] = []
    for mode in ("bulk", "stream"):
        with Sink() as sink, rig.node(mode) as node:
            rows.append(load(node, sink, mode, count=count, flight=4))
            rows[-1]["rss_mib"] = node.rss_bytes() >> 20
    return rows


def single(rig: Rig) -> list[Row]:
    """One job a call: gathered by the client library, and plain; then plain at a fixed rate, for the latency."""
    count = rig.count(SINGLE)
    rows: list[Row] = []
    with Sink() as sink, rig.node("single") as node:
        rows.append(load(node, sink, "gather", count=count, flight=FLIGHT, prefix="g-"))
        rows.append(load(node, sink, "unary", count=count // 4, flight=FLIGHT, prefix="u-"))
        rows.append(load(node, sink, "unary", count=count // 10, rate=OPEN_RATE, prefix="o-"))
        rows[-1]["mode"] = f"unary at {OPEN_RATE}/s"
    return rows
