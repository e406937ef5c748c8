"""Messages survive the wire, whatever they hold and however they are framed; what is no frame is refused."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickwheel.internal.v1 import peer_service_pb2 as pb
from tickwheel.server.cluster import wire
from tickwheel.server.cluster.peer_link import BulkQueue
from tickwheel.server.errors import FailedPrecondition, InvalidArgument, TickwheelError
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

shards = st.integers(0, 2**32 - 1)
numbers = st.integers(0, 2**64 - 1)
indexes = st.integers(0, 2**62)
uuids = st.binary(min_size=16, max_size=16).map(bytes.hex)


@st.composite
def entries(draw: st.DrawFn) -> tuple[int, tuple[LogEntry, ...]]:
    """A previous index, and what comes behind it."""
    prev = draw(indexes)
    held = draw(st.lists(st.tuples(numbers, st.binary(max_size=40)), max_size=5))
    return prev, tuple(
        LogEntry(prev + place, epoch, payload) for place, (epoch, payload) in enumerate(held, 1)
    )


@st.composite
def appends(draw: st.DrawFn) -> Append:
    """A leader's entries."""
    prev, held = draw(entries())
    return Append(draw(shards), draw(numbers), prev, draw(numbers), held, draw(numbers))


@st.composite
def fetches(draw: st.DrawFn) -> Fetched:
    """Entries for a candidate."""
    prev, held = draw(entries())
    return Fetched(draw(shards), draw(numbers), prev, draw(numbers), held, draw(numbers))


beats = st.builds(
    Beat,
    numbers,
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.builds(Led, shards, numbers), max_size=5).map(tuple),
    st.lists(uuids, max_size=3).map(tuple),
)
messages = st.one_of(
    appends(),
    st.builds(Acked, shards, numbers, numbers),
    st.builds(Rejected, shards, numbers, numbers),
    st.builds(Superseded, shards, numbers, numbers),
    st.builds(Fence, shards, numbers, st.booleans()),
    st.builds(Fenced, shards, numbers, numbers, numbers),
    st.builds(FenceRefused, shards, numbers, numbers),
    st.builds(Fetch, shards, numbers, numbers, numbers),
    fetches(),
    st.builds(FetchRefused, shards, numbers, numbers),
    beats,
    st.builds(BeatAcked, numbers, st.lists(shards, max_size=5).map(tuple)),
)


def carried(sent: Sequence[Message]) -> list[Message]:
    """Through a queue, frames, and an unpacker."""
    queue, unpacker = BulkQueue(1 << 30), wire.Unpacker()
    assert queue.put(sent)
    sequence, got = 1, list[Message]()
    while taken := queue.take():
        for frame in wire.pack(taken, sequence):
            assert len(frame) <= wire.FRAME_BYTES + 200
            got += unpacker.take(frame)
            sequence += 1
    assert queue.waiting_bytes == 0
    return got


@given(st.lists(messages, max_size=12))
def test_what_is_sent_arrives(sent: list[Message]) -> None:
    assert carried(sent) == sent


@pytest.mark.parametrize("kind", Message.__args__, ids=lambda kind: kind.__name__)
def test_a_message_of_nothing_but_zeros_keeps_its_kind(kind: type[Message]) -> None:
    empty: dict[str, Any] = {
        "entries": (),
        "led": (),
        "unheard": (),
        "refused": (),
        "released": False,
    }
    message = kind(**{name: empty.get(name, 0) for name in kind._fields})
    assert carried([message]) == [message]


@given(messages)
def test_the_estimate_is_never_too_small(message: Message) -> None:
    [frame] = wire.pack([message], 1)
    overhead = 11  # of the sequence, which comes once a frame
    assert len(frame) <= wire.size_bytes(message) + overhead


def test_every_kind_of_message_has_its_place_in_the_protocol() -> None:
    kinds = set(Message.__args__)
    assert set(wire._FILL) == kinds
    assert set(wire._READ) == {field.name for field in pb.PeerMessage.DESCRIPTOR.fields}
    assert len(wire._READ) == len(kinds)


@pytest.mark.parametrize("size", [wire.FRAME_BYTES - 40, wire.FRAME_BYTES, 3 * wire.FRAME_BYTES])
def test_a_long_message_goes_in_parts(size: int) -> None:
    long = Append(1, 2, 6, 2, (LogEntry(7, 2, bytes(size)), LogEntry(8, 2, b"")), 5)
    sent: list[Message] = [Acked(1, 2, 3), long, Acked(1, 2, 4), long]
    assert carried(sent) == sent


# --- what is refused -------------------------------------------------------------------------


def frame(sequence: int = 1, **fields: object) -> bytes:
    """One made by hand."""
    return pb.ReplicateRequest(sequence=sequence, **fields).SerializeToString()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "frames",
    [
        [b"\xff\xff\xff"],
        [frame()],
        [frame(2, part=b"x")],
        [frame(0, part=b"x")],
        [frame(part=b"\xff\xff")],
        [frame(part=b"x", parts_left=2), frame(2, part=b"x")],
        [frame(part=b"x", parts_left=2), frame(2, messages=[pb.PeerMessage()])],
        [frame(messages=[pb.PeerMessage(append=pb.Append(payloads=[b"x"]))])],
        [frame(messages=[pb.PeerMessage(beat=pb.Beat(shards=[1]))])],
    ],
)
def test_what_is_no_frame_is_refused(frames: list[bytes]) -> None:
    unpacker = wire.Unpacker()
    for data in frames[:-1]:
        assert unpacker.take(data) == []
    with pytest.raises(InvalidArgument, match="the frame can't be read"):
        unpacker.take(frames[-1])


def test_a_message_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MESSAGE_BYTES_MAX", 100)
    unpacker = wire.Unpacker()
    assert unpacker.take(frame(part=bytes(60), parts_left=9)) == []
    with pytest.raises(InvalidArgument, match="more than 100 bytes"):
        unpacker.take(frame(2, part=bytes(60), parts_left=8))
    long = Append(1, 1, 0, 0, (LogEntry(1, 1, bytes(wire.FRAME_BYTES + 100)),), 0)
    with pytest.raises(AssertionError, match="a message of"):
        list(wire.pack([long], 1))


def test_a_kind_of_a_later_version_is_refused_and_says_so() -> None:
    later = b"\x1a\x04" + b"\xfa\x01\x01x"  # messages { 31: "x" }
    data = frame() + later
    assert pb.ReplicateRequest.FromString(data).messages[0].WhichOneof("kind") is None
    with pytest.raises(FailedPrecondition, match="does not know") as caught:
        wire.Unpacker().take(data)
    assert caught.value.reason == "MESSAGE_KIND_UNKNOWN"


def test_entries_with_a_gap_are_never_sent() -> None:
    with pytest.raises(AssertionError, match="entry 3 stands where 2 belongs"):
        list(wire.pack([Append(1, 1, 0, 0, (LogEntry(1, 1, b""), LogEntry(3, 1, b"")), 0)], 1))


@given(st.binary(max_size=200))
def test_junk_is_refused_or_read(data: bytes) -> None:
    with suppress(TickwheelError):
        wire.Unpacker().take(data)
