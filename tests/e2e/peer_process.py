"""A node's traffic in a process of its own: takes whatever comes, and answers each line on its input with what came.

python -m tests.e2e.peer_process NAME      prints its address, then for each line: messages, frames, CPU µs
"""

import asyncio
import resource
import sys
from dataclasses import replace
from random import Random

from tests.conformance.peer_worlds import CLUSTER, OPTIONS, Node

from tickwheel.server.cluster.peers import GrpcPeers
from tickwheel.server.message import Message, NodeId


def say(words: str) -> None:
    """One line to whoever started this."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


async def main(name: str) -> None:
    """Serve until the input ends."""
    node = Node(name, CLUSTER)
    came = 0

    def count(_sender: NodeId, _session: int, messages: list[Message]) -> None:
        nonlocal came
        came += len(messages)

    owner = replace(node.owner, on_messages=count)
    peers = GrpcPeers(node.me, owner, OPTIONS, Random(1))
    say(f"127.0.0.1:{await peers.start()}")
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_us = int((used.ru_utime + used.ru_stime) * 1e6)
        say(f"{came} {peers.counters.frames_received} {cpu_us}")
    await peers.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
