"""Ten thousand jobs from one process, each durable before it is counted.

    python examples/bulk.py [count]

Needs a node (`make run`). The jobs are due in a day; their ids are their keys, so that running it again makes none twice.
"""

import asyncio
import os
import sys
import time
from collections.abc import Iterator

from tickwheel.client import AsyncClient, new_job
from tickwheel.v1.job_service_pb2 import CreateJobRequest

DEFAULT_COUNT = 10_000


def requests(count: int) -> Iterator[CreateJobRequest]:
    """One reminder an order, due at one instant."""
    for order in range(count):
        yield new_job(
            "http://127.0.0.1:9000/ok",
            job_id=f"remind-{order}",
            at="2099-01-01T09:00:00+01:00",
            body={"order": order},
            labels={"kind": "reminder"},
        )


async def main(count: int) -> None:
    """Load them, then count what the server has."""
    async with AsyncClient(os.environ.get("TICKWHEEL_SERVER", "127.0.0.1:7070")) as tickwheel:
        start = time.monotonic()
        faults = [loaded async for loaded in tickwheel.load(requests(count)) if loaded.error]
        took = time.monotonic() - start
        print(f"{count - len(faults)} made or met, {len(faults)} refused, in {took:.1f} s")
        counted = await tickwheel.count('labels.kind = "reminder"', consistent=True)
        print(f"the server counts {counted.total}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_COUNT))
