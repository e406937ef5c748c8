"""The proxy of the fault tests: each mode does what it says, and it can be told over a socket."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from bench.proxy import Mode, Proxy, serve_control
from tests.conformance.peer_worlds import until

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """A server that says back what it hears, and keeps it."""

    def __init__(self) -> None:
        self.heard = b""
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.writers.append(writer)
        try:
            while data := await reader.read(1 << 16):
                self.heard += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


connected: list[asyncio.StreamWriter] = []
"""Every connection that a test opened, to be closed at its end."""


async def connect(port: int) -> Ends:
    """By way of the proxy."""
    ends = await asyncio.open_connection("127.0.0.1", port)
    connected.append(ends[1])
    return ends


@asynccontextmanager
async def path() -> AsyncGenerator[tuple[Proxy, Echo, int]]:
    """A proxy with one link a-b to an echo."""
    echo, proxy = Echo(), Proxy()
    connected.clear()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    port = await proxy.link("a", "b", "127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield proxy, echo, port
    finally:
        await proxy.close()
        server.close()
        for writer in connected:
            writer.transport.abort()
        await until(lambda: all(writer.transport.is_closing() for writer in echo.writers))


async def ask(ends: Ends, words: bytes) -> bytes:
    """Say something, wait until it comes back."""
    ends[1].write(words)
    return await asyncio.wait_for(ends[0].readexactly(len(words)), 5)


async def silent(ends: Ends) -> bool:
    """True when nothing comes for a while."""
    try:
        await asyncio.wait_for(ends[0].readexactly(1), 0.15)
    except TimeoutError:
        return True
    return False


async def test_what_passes_passes_whole() -> None:
    async with path() as (proxy, _echo, port):
        ends = await connect(port)
        data = bytes(range(256)) * 4_000
        assert await ask(ends, data) == data
        ends[1].close()
        await until(lambda: not proxy.links["a", "b"].serving)


async def test_a_cut_resets_what_is_open_and_what_comes() -> None:
    async with path() as (proxy, _echo, port):
        ends = await connect(port)
        assert await ask(ends, b"x") == b"x"
        proxy.set("a", "b", Mode.CUT)
        with pytest.raises(ConnectionResetError):
            await ends[0].read(1)
        late = await connect(port)
        with pytest.raises(ConnectionResetError):
            await late[0].read(1)
        proxy.heal()
        assert await ask(await connect(port), b"y") == b"y"


@pytest.mark.parametrize(
    ("mode", "reaches"), [(Mode.HOLD, False), (Mode.THERE, False), (Mode.BACK, True)]
)
async def test_what_is_held_arrives_when_it_passes_again(mode: Mode, reaches: bool) -> None:
    async with path() as (proxy, echo, port):
        ends = await connect(port)
        assert await ask(ends, b"x") == b"x"
        proxy.set("a", "b", mode)
        ends[1].write(b"yz")
        assert await silent(ends)
        assert (echo.heard == b"xyz") is reaches
        late = await connect(port)
        late[1].write(b"q")
        assert await silent(late)
        proxy.heal()
        assert await asyncio.wait_for(ends[0].readexactly(2), 5) == b"yz"
        assert await asyncio.wait_for(late[0].readexactly(1), 5) == b"q"


async def test_a_delay_is_kept_and_does_not_add_up() -> None:
    async with path() as (proxy, _echo, port):
        ends = await connect(port)
        assert await ask(ends, b"x") == b"x"
        proxy.set("a", "b", Mode.PASS, 50)
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        for _ in range(10):
            ends[1].write(b"y")
            await asyncio.sleep(0.002)
        await asyncio.wait_for(ends[0].readexactly(10), 5)
        assert 0.1 <= loop.time() - start_s < 0.6


async def test_what_waits_is_bounded() -> None:
    async with path() as (proxy, echo, port):
        ends = await connect(port)
        proxy.set("a", "b", Mode.THERE)
        ends[1].transport.set_write_buffer_limits(high=1)
        written = 0
        while written < 64 << 20:
            ends[1].write(bytes(1 << 20))
            written += 1 << 20
            try:
                await asyncio.wait_for(ends[1].drain(), 0.3)
            except TimeoutError:
                break
        assert written < 32 << 20
        assert echo.heard == b""
        ends[1].transport.abort()


async def test_only_loopback_is_forwarded_to() -> None:
    proxy = Proxy()
    with pytest.raises(ValueError, match="not loopback"):
        await proxy.link("a", "b", "192.0.2.1", 80)
    with pytest.raises(ValueError, match="not loopback"):
        await serve_control(proxy, "192.0.2.1", 0)


async def test_it_is_told_over_a_socket() -> None:
    async with path() as (proxy, _echo, port):
        server, ended = await serve_control(proxy, "127.0.0.1", 0)
        reader, writer = await connect(server.sockets[0].getsockname()[1])

        async def tell(line: str) -> str:
            writer.write(f"{line}\n".encode())
            return (await asyncio.wait_for(reader.readline(), 5)).decode().strip()

        target = proxy.links["a", "b"].target_port
        answer = await tell(f"link b a 127.0.0.1:{target}")
        assert await ask(await connect(int(answer.removeprefix("ok "))), b"x") == b"x"
        assert await tell("set a b hold 5") == "ok"
        assert f"a-b:{port}:hold:5:0" in await tell("show")
        assert await tell("heal") == "ok"
        assert proxy.links["a", "b"].mode is Mode.PASS
        for wrong in ("set a c pass", "set a b never", "what", f"link a b 127.0.0.1:{target}"):
            assert (await tell(wrong)).startswith("error ")
        assert await tell("quit") == "ok"
        assert ended.is_set()
        assert await reader.read() == b""
        writer.close()
        server.close()
