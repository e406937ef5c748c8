"""The network of a campaign: every path between nodes, and from each node to etcd, can be held. A process of its own.

A node tells the others one address, its door; whoever calls there is known by its process (Linux: sock_diag and /proc), so that each
direction of each pair is a link of its own (`bench.proxy.Link`):

    node-1 ──► door of node-2 ──► link node-1/node-2 ──► node-2's peer port
    node-3 ──► door of node-2 ──► link node-3/node-2 ──►      "
    node-1 ──► link node-1/m0 ──► etcd's member m0

Namespaces would cut at the level of packets, but a target would not be on loopback then; a held link is what TCP
sees of a cut cable: nothing is reset, and what was sent arrives when the cable is back.

Lines on stdin, one line out for each, beside those of `bench.proxy`; it ends when stdin closes:

    door node-2 127.0.0.1:7071 node-1 node-3   -> ok 40123
    pid node-1 4711                            -> ok
"""

import asyncio
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from bench.node import ROOT, environment
from bench.proxy import Link, Mode, Proxy, reset

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
ANY_STATE = 0xFFFFFFFF
NO_COOKIE = (0xFFFFFFFF, 0xFFFFFFFF)
INODE_AT = 84
_HEADER = struct.Struct("=IHHII")
_ASK = struct.Struct("=BBxxI2H16s16sIII")
_INODE = struct.Struct("=I")


class Doors(Proxy):
    """Links by who calls, besides those by port."""

    def __init__(self) -> None:
        super().__init__()
        self.pids: dict[str, int] = {}

    async def door(self, target: str, host: str, port: int, sources: Iterable[str]) -> int:
        """Listen for all `sources`; a link from each to `target`. Returns the port."""
        links = {source: Link(host, port) for source in sources}
        server = await asyncio.start_server(partial(self.enter, target), "127.0.0.1", 0)
        for source, link in links.items():
            link.set(Mode.PASS, 0)
            link.idle.set()
            link.server = server
            link.port = server.sockets[0].getsockname()[1]
            self.links[source, target] = link
        return int(server.sockets[0].getsockname()[1])

    async def enter(
        self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Somebody calls: who is it?"""
        port: int = writer.get_extra_info("peername")[1]
        name = self.caller(port, writer.get_extra_info("sockname")[1])
        link = self.links.get((name, target))
        if link is None:
            reset(writer)  # ended already, or not told yet: it calls again
        else:
            await link.serve(reader, writer)

    def caller(self, port: int, door: int) -> str:
        """The node whose process has a connection from this port to that; "" if none has."""
        wanted = f"socket:[{inode_of(port, door)}]"
        for name, pid in list(self.pids.items()):
            with suppress(OSError):
                for fd in Path(f"/proc/{pid}/fd").iterdir():
                    with suppress(OSError):
                        if str(fd.readlink()) == wanted:
                            return name
        return ""

    async def control(self, line: str) -> str:
        """See the module."""
        match line.split():
            case ["door", target, address, *sources]:
                host, _, port = address.rpartition(":")
                return f"ok {await self.door(target, host, int(port), sources)}"
            case ["pid", name, pid]:
                self.pids[name] = int(pid)
                return "ok"
            case _:
                return await super().control(line)


def inode_of(port: int, door: int) -> int:
    """Of the socket at `port` of loopback that is connected to `door`, 0 if there is none. One question to the kernel.

    /proc/net/tcp would tell too, but it walks through every socket that the machine could have.
    """
    here = ip_address("127.0.0.1").packed.ljust(16, b"\0")
    ask = _ASK.pack(
        socket.AF_INET,
        socket.IPPROTO_TCP,
        ANY_STATE,
        socket.htons(port),
        socket.htons(door),
        here,
        here,
        0,
        *NO_COOKIE,
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1.0)
        kernel.send(_HEADER.pack(_HEADER.size + len(ask), SOCK_DIAG_BY_FAMILY, 1, 0, 0) + ask)
        answer = kernel.recv(4_096)
    kind: int = _HEADER.unpack_from(answer)[1]
    if kind != SOCK_DIAG_BY_FAMILY:
        return 0
    inode: int = _INODE.unpack_from(answer, INODE_AT)[0]
    return inode


class Net:
    """The process, for the campaign. One line at a time, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.chaos_net"], cwd=ROOT, env=environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1,
        )  # fmt: skip

    def say(self, *words: object) -> str:
        """One line; what follows the "ok". Raises ValueError."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self._lock:
            self.process.stdin.write(" ".join(map(str, words)) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline().strip()
        state, _, rest = answer.partition(" ")
        if state != "ok":
            raise ValueError(f"{words}: {answer!r}")
        return rest

    def set(self, source: str, target: str, mode: Mode) -> None:
        """From now on."""
        self.say("set", source, target, mode.value)

    def heal(self) -> None:
        """Everything passes."""
        self.say("heal")

    def close(self) -> None:
        """End it."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def serve() -> None:
    """Answer lines until stdin closes."""
    doors = Doors()
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            answer = await doors.control(line)
        except (ValueError, KeyError, OSError) as error:
            answer = f"error {error!r}"
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve())
