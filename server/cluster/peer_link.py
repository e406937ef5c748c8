"""Floor 3. One lane to one peer: connects, says hello, writes what waits, and connects again.

    send ──► queue ──take──► pack ──► await write ──► HTTP/2 ──► peer
              │ full: reset                │ waits while the peer does not read

Three things run while a stream stands, and the first that ends ends the stream: the writer, the reader (the peer says
nothing after its hello, so it only sees the end), and the order to reset. Then comes a pause that grows with each
failure, to a limit, with chance in it, so that nodes do not all call at once.

Must never import: another room of the cluster but its `wire`, `peer_*`.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Final, Protocol

import grpc
import grpc.aio

from tickwheel.internal.v1 import peer_service_pb2 as pb
from tickwheel.server.cluster import wire
from tickwheel.server.cluster.peer_options import PeerOptions
from tickwheel.server.errors import TickwheelError, Unavailable
from tickwheel.server.logs import get_logger
from tickwheel.server.message import Beat, BeatAcked, Message

log = get_logger(__name__)

REPLICATE: Final = "/tickwheel.internal.v1.PeerService/Replicate"

FRAME_MESSAGES: Final = 2_000
"""Of short ones, so that a frame of them holds the loop for a few milliseconds at most."""

BrokenLink = (
    grpc.aio.AioRpcError,
    grpc.aio.UsageError,
    TickwheelError,
    asyncio.InvalidStateError,
    OSError,
)
"""How a connection ends; anything else is a fault of this program, and told with where it came from."""


StreamOpener = grpc.aio.StreamStreamMultiCallable[bytes, bytes]
Stream = grpc.aio.StreamStreamCall[bytes, bytes]


class Queue(Protocol):
    """What waits for one lane."""

    def put(self, messages: Sequence[Message]) -> bool:
        """Add them at the end; False if there is no room, and then nothing may be sent on this connection any more."""
        ...

    def take(self) -> list[Message]:
        """What fits into the next frame; empty when nothing waits. What was taken before is on its way."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...


class BulkQueue:
    """In order, limited by bytes; what is being written counts until the next `take`."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._messages: deque[tuple[int, Message]] = deque()  # bounded: by bytes_max
        self._taken_bytes = 0
        self.waiting_bytes = 0

    def put(self, messages: Sequence[Message]) -> bool:
        """Add them, unless together they are too much."""
        sized = [(wire.size_bytes(message), message) for message in messages]
        self.waiting_bytes += sum([size for size, _ in sized])
        self._messages.extend(sized)
        return self.waiting_bytes <= self._bytes_max

    def take(self) -> list[Message]:
        """About a frame of them, at least one."""
        self.waiting_bytes -= self._taken_bytes
        self._taken_bytes = 0
        taken: list[Message] = []
        while self._messages:
            size, message = self._messages[0]
            full = self._taken_bytes + size > wire.FRAME_BYTES or len(taken) == FRAME_MESSAGES
            if taken and full:
                break
            self._messages.popleft()
            self._taken_bytes += size
            taken.append(message)
        return taken

    def clear(self) -> None:
        """Forget everything."""
        self._messages.clear()
        self._taken_bytes = self.waiting_bytes = 0


class BeatQueue:
    """The newest beat and the newest ack: an older one has nothing to say beside it."""

    def __init__(self) -> None:
        self._newest: dict[type[Message], Message] = {}

    def put(self, messages: Sequence[Message]) -> bool:
        """Replace what waits."""
        for message in messages:
            assert isinstance(message, Beat | BeatAcked)
            self._newest[type(message)] = message
        return True

    def take(self) -> list[Message]:
        """All of it."""
        taken = list(self._newest.values())
        self._newest.clear()
        return taken

    def clear(self) -> None:
        """Forget everything."""
        self._newest.clear()


class Counters:
    """What the traffic of a node comes to."""

    __slots__ = (
        "bytes_sent",
        "connects",
        "frames_received",
        "frames_sent",
        "messages_sent",
        "resets",
    )

    def __init__(self) -> None:
        self.frames_sent = self.messages_sent = self.bytes_sent = 0
        self.frames_received = 0
        self.connects = self.resets = 0


class Wiring(Protocol):
    """What a link asks of the one that made it."""

    def dial(self) -> grpc.aio.Channel:
        """A new connection to the peer."""
        ...

    def hello(self) -> pb.Hello:
        """The hello of a new stream."""
        ...

    def check(self, hello: pb.Hello) -> None:
        """Raise if it is not the peer that answered."""
        ...

    def changed(self, up: bool) -> None:
        """The stream stands, or stands no more."""
        ...


class Link:
    """One lane. Begins at once; ends with `close`."""

    def __init__(
        self, name: str, queue: Queue, wiring: Wiring, options: PeerOptions, rng: Random,
        counters: Counters,
    ) -> None:  # fmt: skip
        self.up = False
        self._name = name
        self._queue = queue
        self._wiring = wiring
        self._options = options
        self._rng = rng
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._reset: asyncio.Future[None] = self._loop.create_future()
        self._said = ""
        self._task = self._loop.create_task(self._run(), name=f"link {name}")

    def send(self, messages: Sequence[Message]) -> None:
        """Queue them if the stream stands."""
        if not self.up:
            return
        if self._queue.put(messages):
            self._wake.set()
            return
        self._counters.resets += 1
        self._down()
        if not self._reset.done():
            why = (
                f"{self._name} reads too slowly: {self._options.queue_bytes_max} bytes wait for it"
            )
            self._reset.set_exception(Unavailable(why, reason="PEER_SLOW"))

    def close(self) -> asyncio.Task[None]:
        """End it; the task ends soon."""
        self._down()
        self._task.cancel()
        return self._task

    # --- connecting ---

    async def _run(self) -> None:
        failures = 0
        while True:
            began_s = self._loop.time()
            try:
                await self._stream()
            except BrokenLink as error:
                self._say(error)
            except Exception:
                log.exception("a link to a peer failed", extra={"peer": self._name})
            lasted_s = self._loop.time() - began_s
            failures = 0 if lasted_s > self._options.backoff_max_s else failures + 1
            await asyncio.sleep(backoff_s(failures, self._options, self._rng))

    def _say(self, error: BaseException) -> None:
        """A peer that stays away is told of once, not with each attempt."""
        words = _words(error)
        if words != self._said:
            self._said = words
            log.warning("not connected to a peer", extra={"peer": self._name, "why": words})

    async def _stream(self) -> None:
        channel = self._wiring.dial()
        try:
            opener: StreamOpener = channel.stream_stream(REPLICATE)
            call = opener()
            async with asyncio.timeout(self._options.connect_timeout_s):
                await self._greet(call)
            self._up()
            await self._pump(call)
        finally:
            self._down()
            await channel.close()

    async def _greet(self, call: Stream) -> None:
        frame = pb.ReplicateRequest(hello=self._wiring.hello())
        try:
            await call.write(frame.SerializeToString())
            answer = await call.read()
        except asyncio.InvalidStateError:
            await call.read()  # tells why
            raise
        if not isinstance(answer, bytes):
            raise Unavailable("the peer closed the stream", reason="PEER_CLOSED")
        self._wiring.check(pb.ReplicateResponse.FromString(answer).hello)

    def _up(self) -> None:
        self._counters.connects += 1
        self._reset = self._loop.create_future()
        self._queue.clear()
        self.up = True
        if self._said:
            self._said = ""
            log.info("connected to a peer again", extra={"peer": self._name})
        self._wiring.changed(up=True)

    def _down(self) -> None:
        if self.up:
            self.up = False
            self._queue.clear()
            self._wiring.changed(up=False)

    # --- writing ---

    async def _pump(self, call: Stream) -> None:
        reader = self._loop.create_task(_until_end(call))
        writer = self._loop.create_task(self._write(call))
        running = {reader, writer, self._reset}
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for ended in (self._reset, reader, writer):
                if ended.done():
                    ended.result()
        finally:
            call.cancel()
            reader.cancel()
            writer.cancel()
            self._reset.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def _write(self, call: Stream) -> None:
        sequence = 1
        counters = self._counters
        while True:
            messages = self._queue.take()
            if not messages:
                self._wake.clear()
                await self._wake.wait()
                continue
            counters.messages_sent += len(messages)
            for frame in wire.pack(messages, sequence):
                await call.write(frame)
                sequence += 1
                counters.frames_sent += 1
                counters.bytes_sent += len(frame)


async def _until_end(call: Stream) -> None:
    await call.read()
    raise Unavailable("the peer closed the stream", reason="PEER_CLOSED")


def backoff_s(failures: int, options: PeerOptions, rng: Random) -> float:
    """How long to wait before the next attempt: doubled with each failure up to the limit, between half of it and all."""
    longest_s = options.backoff_min_s * 2.0 ** min(failures, 30)
    return min(longest_s, options.backoff_max_s) * (0.5 + rng.random() / 2)


def _words(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"[:500]
    return f"{type(error).__name__}: {error}"[:500]
