"""A process that holds a session, for tests that kill it, stop it, or keep its loop busy.

    python -m tests.e2e.etcd_holder ENDPOINT DIRECTORY TTL_S

says on stdout, a line each: `held <create_revision>`, `lost <create_revision>`, `spun <1 if the deadline lies ahead>`;
hears on stdin: `spin <seconds>` (the loop does nothing else meanwhile), `close`.
"""

import asyncio
import sys
import time
from pathlib import Path

from tickwheel.server.clock import SystemClock
from tickwheel.server.cluster.etcd import EtcdClient
from tickwheel.server.cluster.etcd_link import EtcdOptions
from tickwheel.server.cluster.etcd_session import SessionFile
from tickwheel.server.cluster.ports import Held, Registration


def say(word: str, number: int) -> None:
    sys.stdout.write(f"{word} {number}\n")
    sys.stdout.flush()


def spin(seconds: float) -> None:
    """Python code that never yields to the loop."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        pass


async def hold(endpoint: str, directory: Path, ttl_s: int) -> None:
    client = EtcdClient(EtcdOptions(endpoints=(endpoint,)))

    def held(life: Held) -> None:
        say("held", life.create_revision)

    def lost(life: Held) -> None:
        say("lost", life.create_revision)

    session = client.session(
        Registration(
            key="nodes/holder",
            value=b"here",
            ttl_s=ttl_s,
            healthy=lambda: True,
            on_held=held,
            on_lost=lost,
            memory=SessionFile(directory),
        )
    )
    while (line := (await asyncio.to_thread(sys.stdin.readline)).split()) and line[0] == "spin":
        spin(float(line[1]))
        say("spun", int(session.deadline_ms > SystemClock().monotonic_ms()))
    await session.close()
    await client.close()


if __name__ == "__main__":
    asyncio.run(hold(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
