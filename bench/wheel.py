"""Measure the timing wheel: `PYTHONPATH=src python bench/wheel.py [--entries 1000000]`.

Four passes over one wheel: insert, `next_ms` + `advance` until it is empty, bytes an entry (tracemalloc, a pass of its
own), and the longest single `advance`. Two loads: due times spread over 15 minutes, and all at one instant. Then the
same insert and expiry through 64 wheels, as a node has them. `heapq` of tuples runs beside it on the spread load.
"""

import argparse
import gc
import heapq
import random
import time
import tracemalloc
from collections.abc import Callable

from tickwheel.server.wheel import Wheel

NOW_MS = 1_800_000_000_000
WINDOW_MS = 15 * 60_000
SHARDS = 64
SLICE = 128


def spread(entries: int) -> list[int]:
    rng = random.Random(1)
    return [NOW_MS + rng.randrange(1, WINDOW_MS) for _ in range(entries)]


def burst(entries: int) -> list[int]:
    return [NOW_MS + 60_000] * entries


def fill(dues: list[int], wheels: list[Wheel]) -> float:
    gc.collect()
    started = time.perf_counter()
    if len(wheels) == 1:
        add = wheels[0].add
        for row, due_ms in enumerate(dues):
            add(due_ms, row, 1)
    else:
        for row, due_ms in enumerate(dues):
            wheels[row & (SHARDS - 1)].add(due_ms, row, 1)
    return time.perf_counter() - started


def drain(wheel: Wheel) -> tuple[float, float, int]:
    """Expire everything in slices, jumping from one due time to the next. Seconds, the longest call, calls."""
    started = time.perf_counter()
    longest_s = 0.0
    calls = 0
    while (next_ms := wheel.next_ms()) is not None:
        before = time.perf_counter()
        wheel.advance(max(next_ms, NOW_MS), SLICE)
        longest_s = max(longest_s, time.perf_counter() - before)
        calls += 1
    return time.perf_counter() - started, longest_s, calls


def bytes_an_entry(dues: list[int], shards: int) -> float:
    gc.collect()
    tracemalloc.start()
    wheels = [Wheel(NOW_MS) for _ in range(shards)]
    for row, due_ms in enumerate(dues):
        wheels[row % shards].add(due_ms, row, 1)
    used_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(map(len, wheels)) == len(dues)
    return used_bytes / len(dues)


def measure(name: str, dues: list[int], shards: int) -> None:
    wheels = [Wheel(NOW_MS) for _ in range(shards)]
    insert_s = fill(dues, wheels)
    expire_s = longest_s = 0.0
    calls = 0
    for wheel in wheels:
        seconds, longest, count = drain(wheel)
        expire_s, longest_s, calls = expire_s + seconds, max(longest_s, longest), calls + count
    print(
        f"{name:<28} insert {len(dues) / insert_s / 1e6:5.2f} M/s   expire {len(dues) / expire_s / 1e6:5.2f} M/s   "
        f"longest advance {longest_s * 1e3:6.2f} ms   {calls} calls   {bytes_an_entry(dues, shards):5.1f} B/entry"
    )


def measure_heap(dues: list[int]) -> None:
    gc.collect()
    heap: list[tuple[int, int, int]] = []
    started = time.perf_counter()
    for row, due_ms in enumerate(dues):
        heapq.heappush(heap, (due_ms, row, 1))
    filled = time.perf_counter()
    while heap:
        heapq.heappop(heap)
    emptied = time.perf_counter()
    rates = (len(dues) / seconds / 1e6 for seconds in (filled - started, emptied - filled))
    print("heapq of tuples, spread      insert {:5.2f} M/s   expire {:5.2f} M/s".format(*rates))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    entries: int = parser.parse_args().entries
    loads: list[tuple[str, Callable[[int], list[int]]]] = [("spread", spread), ("burst", burst)]
    for name, load in loads:
        measure(f"1 wheel, {name}", load(entries), 1)
        measure(f"{SHARDS} wheels, {name}", load(entries), SHARDS)
    measure_heap(spread(entries))
    print(f"empty wheels: {bytes_an_empty_wheel():.0f} B each")


def bytes_an_empty_wheel() -> float:
    tracemalloc.start()
    wheels = [Wheel(NOW_MS) for _ in range(1_000)]
    used_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used_bytes / len(wheels)


if __name__ == "__main__":
    main()
