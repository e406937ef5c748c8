"""Floor 3. The messages of the replicas ↔ frames of `PeerService.Replicate`.

    queue of messages ──pack──► frames of about a MiB ──Unpacker──► the same messages, in the same order

    frame 7   [Append Append Acked …]       as many as fit
    frame 8   part, 2 left │
    frame 9   part, 1 left │ one message that is longer than a frame, so that reading it never holds the loop for long
    frame 10  part, 0 left │

It is the hot path of a cluster: messages are filled in place, an Append's entries travel as two columns (measured: half
the time of one message an entry). The indexes of entries follow one another, so only the first one is sent.

A kind of message that this version does not know is refused, never ignored: who sent it counts on it.

Must never import: gRPC, `asyncio`, another room of the cluster.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from tickwheel.internal.v1 import peer_service_pb2 as pb
from tickwheel.server.errors import FailedPrecondition, InvalidArgument
from tickwheel.server.message import (
    Acked,
    Append,
    Beat,
    BeatAcked,
    Fence,
    Fenced,
    FenceRefused,
    Fetch,
    Fetched,
    FetchRefused,
    Led,
    LogEntry,
    Message,
    Rejected,
    Superseded,
)

FRAME_BYTES: Final = 1 << 20
"""A frame is closed when its messages reach this; a longer message is cut into parts of it."""

MESSAGE_BYTES_MAX: Final = 64 << 20
"""The longest message. Whoever makes messages keeps below it: a batch of the journal is far smaller."""

_ENTRY_BYTES: Final = 24
_MESSAGE_BYTES: Final = 80


def size_bytes(message: Message) -> int:
    """What a message takes on the wire, at most."""
    if type(message) is Append or type(message) is Fetched:
        return _MESSAGE_BYTES + sum([len(e.payload) + _ENTRY_BYTES for e in message.entries])
    if type(message) is Beat:
        return _MESSAGE_BYTES + 20 * (len(message.led) + len(message.unheard))
    if type(message) is BeatAcked:
        return _MESSAGE_BYTES + 8 * len(message.refused)
    return _MESSAGE_BYTES


# --- values → bytes --------------------------------------------------------------------------


def pack(messages: Sequence[Message], sequence: int) -> Iterator[bytes]:
    """Yield the frames of messages, numbered from `sequence` on. More than one: only for a message longer than a frame.

    The caller hands over what fits into a frame, or one message alone.
    """
    frame = pb.ReplicateRequest(sequence=sequence)
    add = frame.messages.add
    for message in messages:
        _FILL[type(message)](add(), message)
    data = frame.SerializeToString()
    if len(data) <= FRAME_BYTES + _MESSAGE_BYTES:
        yield data
        return
    assert len(messages) == 1, f"{len(messages)} messages of {len(data)} bytes in a frame"
    yield from _parts(frame.messages[0].SerializeToString(), sequence)


def _parts(data: bytes, sequence: int) -> Iterator[bytes]:
    assert len(data) <= MESSAGE_BYTES_MAX, f"a message of {len(data)} bytes"
    count = -(-len(data) // FRAME_BYTES)
    for number in range(count):
        part = data[number * FRAME_BYTES : (number + 1) * FRAME_BYTES]
        yield pb.ReplicateRequest(
            sequence=sequence + number, part=part, parts_left=count - 1 - number
        ).SerializeToString()


def _fill_append(made: Any, message: Append) -> None:
    into = made.append
    into.shard = message.shard
    into.epoch = message.epoch
    into.prev_index = message.prev_index
    into.prev_epoch = message.prev_epoch
    into.commit = message.commit
    if message.entries:
        _fill_entries(into, message.prev_index, message.entries)


def _fill_fetched(made: Any, message: Fetched) -> None:
    into = made.fetched
    into.shard = message.shard
    into.epoch = message.epoch
    into.prev_index = message.prev_index
    into.prev_epoch = message.prev_epoch
    into.last_index = message.last_index
    _fill_entries(into, message.prev_index, message.entries)


def _fill_entries(into: Any, prev_index: int, entries: tuple[LogEntry, ...]) -> None:
    for index, entry in enumerate(entries, prev_index + 1):
        assert entry.index == index, f"entry {entry.index} stands where {index} belongs"
    into.epochs.extend([entry.epoch for entry in entries])
    into.payloads.extend([entry.payload for entry in entries])


def _fill_acked(made: Any, message: Acked) -> None:
    into = made.acked
    into.shard = message.shard  # sets the kind, even to 0
    into.epoch = message.epoch
    into.match = message.match


def _fill_beat(made: Any, message: Beat) -> None:
    into = made.beat
    into.SetInParent()
    into.sent_ms = message.sent_ms
    into.wall_ms = message.wall_ms
    into.shards.extend([led.shard for led in message.led])
    into.epochs.extend([led.epoch for led in message.led])
    into.unheard.extend([bytes.fromhex(node) for node in message.unheard])


def _fill_beat_acked(made: Any, message: BeatAcked) -> None:
    into = made.beat_acked
    into.SetInParent()
    into.sent_ms = message.sent_ms
    into.refused.extend(message.refused)


def _fill_plain(field: str) -> Callable[[Any, Any], None]:
    """The filler of a message whose fields have the same names and plain values on both sides."""

    def fill(made: Any, message: Any) -> None:
        into = getattr(made, field)
        into.SetInParent()
        for name, value in zip(message._fields, message, strict=True):
            setattr(into, name, value)

    return fill


_FILL: Final[dict[type, Callable[[Any, Any], None]]] = {
    Append: _fill_append,
    Acked: _fill_acked,
    Rejected: _fill_plain("rejected"),
    Superseded: _fill_plain("superseded"),
    Fence: _fill_plain("fence"),
    Fenced: _fill_plain("fenced"),
    FenceRefused: _fill_plain("fence_refused"),
    Fetch: _fill_plain("fetch"),
    Fetched: _fill_fetched,
    FetchRefused: _fill_plain("fetch_refused"),
    Beat: _fill_beat,
    BeatAcked: _fill_beat_acked,
}


# --- bytes → values --------------------------------------------------------------------------


class Unpacker:
    """Reads the frames of one stream, behind its hello. Raises InvalidArgument, FailedPrecondition: then it is over."""

    __slots__ = ("_parts", "_parts_bytes", "_parts_left", "_sequence")

    def __init__(self) -> None:
        self._sequence = 0
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._parts_left = 0

    def take(self, data: bytes) -> list[Message]:
        """The messages that are complete with this frame."""
        frame = _parsed(pb.ReplicateRequest, data)
        self._sequence += 1
        if frame.sequence != self._sequence:
            raise malformed(f"frame {frame.sequence} came where {self._sequence} belongs")
        if frame.part:
            return self._take_part(frame)
        if self._parts or not frame.messages:
            raise malformed("a frame holds neither messages nor the part that belongs there")
        return [_read(message) for message in frame.messages]

    def _take_part(self, frame: pb.ReplicateRequest) -> list[Message]:
        if self._parts and frame.parts_left != self._parts_left - 1:
            raise malformed("a part of a message is missing")
        self._parts.append(frame.part)  # bounded: by MESSAGE_BYTES_MAX
        self._parts_bytes += len(frame.part)
        self._parts_left = frame.parts_left
        if self._parts_bytes > MESSAGE_BYTES_MAX:
            raise malformed(f"a message has more than {MESSAGE_BYTES_MAX} bytes")
        if self._parts_left:
            return []
        whole = b"".join(self._parts)
        self._parts, self._parts_bytes = [], 0
        return [_read(_parsed(pb.PeerMessage, whole))]


def malformed(why: str) -> InvalidArgument:
    """The error of bytes that no node of this project sends."""
    return InvalidArgument(f"the frame can't be read: {why}", reason="FRAME_MALFORMED")


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise malformed(f"it is no {kind.DESCRIPTOR.name}") from None


def _read(message: pb.PeerMessage) -> Message:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise FailedPrecondition(
            "the peer sent a kind of message that this version does not know; "
            "upgrade this node, or finish the upgrade before using what is new",
            reason="MESSAGE_KIND_UNKNOWN",
        )
    return _READ[kind](getattr(message, kind))


def _read_append(m: Any) -> Append:
    prev = m.prev_index
    return Append(m.shard, m.epoch, prev, m.prev_epoch, _read_entries(m, prev), m.commit)


def _read_fetched(m: Any) -> Fetched:
    prev = m.prev_index
    return Fetched(m.shard, m.epoch, prev, m.prev_epoch, _read_entries(m, prev), m.last_index)


def _read_entries(m: Any, prev_index: int) -> tuple[LogEntry, ...]:
    payloads = m.payloads
    if not payloads:
        return ()
    epochs = m.epochs
    if len(epochs) != len(payloads):
        raise malformed(f"{len(epochs)} epochs for {len(payloads)} entries")
    return tuple(
        [
            LogEntry(index, epoch, payload)
            for index, (epoch, payload) in enumerate(
                zip(epochs, payloads, strict=True), prev_index + 1
            )
        ]
    )


def _read_acked(m: Any) -> Acked:
    return Acked(m.shard, m.epoch, m.match)


def _read_beat(m: Any) -> Beat:
    if len(m.shards) != len(m.epochs):
        raise malformed(f"{len(m.epochs)} epochs for {len(m.shards)} shards")
    led = tuple([Led(shard, epoch) for shard, epoch in zip(m.shards, m.epochs, strict=True)])
    return Beat(m.sent_ms, m.wall_ms, led, tuple([node.hex() for node in m.unheard]))


_READ: Final[dict[str, Callable[[Any], Message]]] = {
    "append": _read_append,
    "acked": _read_acked,
    "rejected": lambda m: Rejected(m.shard, m.epoch, m.hint),
    "superseded": lambda m: Superseded(m.shard, m.epoch, m.promised),
    "fence": lambda m: Fence(m.shard, m.epoch, m.released),
    "fenced": lambda m: Fenced(m.shard, m.epoch, m.last_index, m.last_epoch),
    "fence_refused": lambda m: FenceRefused(m.shard, m.epoch, m.wait_ms),
    "fetch": lambda m: Fetch(m.shard, m.epoch, m.after_index, m.after_epoch),
    "fetched": _read_fetched,
    "fetch_refused": lambda m: FetchRefused(m.shard, m.epoch, m.first_index),
    "beat": _read_beat,
    "beat_acked": lambda m: BeatAcked(m.sent_ms, tuple(m.refused)),
}
