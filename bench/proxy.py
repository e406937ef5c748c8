"""Paths between nodes that can be made bad: TCP forwarded on loopback, a listener for each direction of each pair.

    proxy = Proxy()
    port = await proxy.link("a", "b", "127.0.0.1", 7071)      what node a is told to be the address of node b
    proxy.set("a", "b", Mode.HOLD)

    pass    as it is
    cut     connections are reset, new ones too
    hold    bytes are no longer taken from either end; they arrive when it passes again: a partition, as TCP sees it
    there   hold, but only what goes from a to b
    back    hold, but only what comes back

with a delay in ms for each piece, either way. Over a socket: `python -m bench.proxy --control 127.0.0.1:0`, lines in,
one line out for each:

    link a b 127.0.0.1:7071  -> ok 40123          set a b hold 0    -> ok
    heal                     -> ok                show              -> ok a-b:40123:hold:0:2 ...
    quit                     -> ok

Loopback only. Bounded: links, connections, and the bytes of each that wait.
"""

import argparse
import asyncio
import socket
import struct
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address
from typing import Final

LINKS_MAX: Final = 256
CONNECTIONS_MAX: Final = 256
"""Of one link."""

PIECE_BYTES: Final = 64 << 10
PIECES_MAX: Final = 64
"""Pieces of one direction that wait for their delay."""

LINE_BYTES_MAX: Final = 1_024
CONNECT_S: Final = 5.0


class Mode(Enum):
    """What happens on a link."""

    PASS = "pass"  # noqa: S105 - what the path does
    CUT = "cut"
    HOLD = "hold"
    THERE = "there"
    BACK = "back"


HELD_THERE: Final = frozenset({Mode.HOLD, Mode.THERE})
HELD_BACK: Final = frozenset({Mode.HOLD, Mode.BACK})


@dataclass
class Link:
    """One direction of a pair of nodes: connections that the one opens to the other."""

    host: str
    target_port: int
    port: int = 0
    mode: Mode = Mode.PASS
    delay_ms: int = 0
    accepted: int = 0
    serving: int = 0
    server: asyncio.Server | None = None
    there: asyncio.Event = field(default_factory=asyncio.Event)
    back: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    open: set[asyncio.StreamWriter] = field(default_factory=set[asyncio.StreamWriter])

    def set(self, mode: Mode, delay_ms: int) -> None:
        """From now on."""
        self.mode, self.delay_ms = mode, delay_ms
        for gate, held in ((self.there, HELD_THERE), (self.back, HELD_BACK)):
            if mode in held:
                gate.clear()
            else:
                gate.set()
        if mode is Mode.CUT:
            for writer in list(self.open):
                reset(writer)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection until one side ends it."""
        self.accepted += 1
        if self.mode is Mode.CUT or self.serving >= CONNECTIONS_MAX:
            reset(writer)
            return
        self.serving += 1
        self.idle.clear()
        try:
            await self._forward(reader, writer)
        finally:
            self.serving -= 1
            if not self.serving:
                self.idle.set()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        onward: asyncio.StreamWriter | None = None
        try:
            await self.there.wait()
            if self.mode is Mode.CUT:
                return
            async with asyncio.timeout(CONNECT_S):
                answers, onward = await asyncio.open_connection(
                    self.host, self.target_port, limit=PIECE_BYTES
                )
            self.open.add(onward)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pass(reader, onward, self.there))
                ways.create_task(self._pass(answers, writer, self.back))
        except* (OSError, TimeoutError):
            pass
        finally:
            for end in (writer, onward):
                if end is not None:
                    self.open.discard(end)
                    reset(end)

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=PIECES_MAX)
        writing = asyncio.create_task(_write(pieces, sink, gate))
        try:
            while True:
                await gate.wait()
                piece = await source.read(PIECE_BYTES)
                due_s = asyncio.get_running_loop().time() + self.delay_ms / 1_000
                put = asyncio.create_task(pieces.put((due_s, piece)))
                await asyncio.wait({put, writing}, return_when=asyncio.FIRST_COMPLETED)
                if writing.done():
                    put.cancel()
                    writing.result()
                if not piece:
                    await writing
                    raise ConnectionResetError("one side ended it")  # ends the other way, too
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)


async def _write(
    pieces: "asyncio.Queue[tuple[float, bytes]]", sink: asyncio.StreamWriter, gate: asyncio.Event
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due_s, piece = await pieces.get()
        if due_s > loop.time():
            await asyncio.sleep(due_s - loop.time())
        await gate.wait()
        if not piece:
            return
        sink.write(piece)
        await sink.drain()


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection the rude way: what is unsent is lost, and the other end sees a reset."""
    raw: socket.socket | None = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Proxy:
    """All links."""

    def __init__(self) -> None:
        self.links: dict[tuple[str, str], Link] = {}

    async def link(self, source: str, target: str, host: str, port: int) -> int:
        """Listen for `source`, forward to host and port, which is `target`; returns the port to call."""
        if not ip_address(host).is_loopback:
            raise ValueError(f"{host} is not loopback")
        if (source, target) in self.links or len(self.links) >= LINKS_MAX:
            raise ValueError(f"there is a link {source}-{target}, or there are {LINKS_MAX}")
        link = Link(host, port)
        link.set(Mode.PASS, 0)
        link.idle.set()
        link.server = await asyncio.start_server(link.serve, "127.0.0.1", 0, limit=PIECE_BYTES)
        link.port = link.server.sockets[0].getsockname()[1]
        self.links[source, target] = link
        return link.port

    def set(self, source: str, target: str, mode: Mode, delay_ms: int = 0) -> None:
        """Change one direction. Raises KeyError for a link that is not there."""
        self.links[source, target].set(mode, delay_ms)

    def heal(self) -> None:
        """Everything passes, without delay."""
        for link in self.links.values():
            link.set(Mode.PASS, 0)

    def show(self) -> str:
        """Each link with its port, mode, delay and how many connections it took."""
        return " ".join(
            f"{source}-{target}:{link.port}:{link.mode.value}:{link.delay_ms}:{link.accepted}"
            for (source, target), link in self.links.items()
        )

    async def close(self) -> None:
        """Reset everything and listen no more."""
        for link in self.links.values():
            assert link.server is not None
            link.server.close()
            link.set(Mode.CUT, 0)
        async with asyncio.timeout(CONNECT_S + 1):
            for link in self.links.values():
                await link.idle.wait()
        self.links.clear()

    async def control(self, line: str) -> str:
        """Carry out one line. Raises ValueError, KeyError, OSError for one that is wrong."""
        match line.split():
            case ["link", source, target, address]:
                host, _, port = address.rpartition(":")
                return f"ok {await self.link(source, target, host, int(port))}"
            case ["set", source, target, mode, *delay] if len(delay) <= 1:
                self.set(source, target, Mode(mode), int(delay[0]) if delay else 0)
            case ["heal"]:
                self.heal()
            case ["show"]:
                return f"ok {self.show()}"
            case _:
                raise ValueError(f"not understood: {line!r}")
        return "ok"


async def serve_control(proxy: Proxy, host: str, port: int) -> tuple[asyncio.Server, asyncio.Event]:
    """Listen for lines; the event is set by `quit`."""
    if not ip_address(host).is_loopback:
        raise ValueError(f"{host} is not loopback")
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not ended.is_set() and (line := (await reader.readline()).decode().strip()):
                writer.write(f"{await _answered(proxy, line, ended)}\n".encode())
                await writer.drain()
        except (ValueError, OSError):
            pass  # a line that is too long, or a caller who left
        finally:
            writer.close()

    return await asyncio.start_server(serve, host, port, limit=LINE_BYTES_MAX), ended


async def _answered(proxy: Proxy, line: str, ended: asyncio.Event) -> str:
    if line == "quit":
        ended.set()
        return "ok"
    try:
        return await proxy.control(line)
    except (ValueError, KeyError, OSError) as error:
        return f"error {error}"


async def run(host: str, port: int) -> None:
    """Serve until `quit`."""
    proxy = Proxy()
    server, ended = await serve_control(proxy, host, port)
    print(f"control on {host}:{server.sockets[0].getsockname()[1]}", flush=True)
    await ended.wait()
    await proxy.close()
    server.close()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.proxy", description=__doc__)
    parser.add_argument("--control", default="127.0.0.1:0", metavar="HOST:PORT")
    host, _, port = parser.parse_args().control.rpartition(":")
    asyncio.run(run(host, int(port)))


if __name__ == "__main__":
    main()
