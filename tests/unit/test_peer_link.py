"""What waits for a peer, and how long a link waits for it."""

from pathlib import Path
from random import Random

import pytest

from tickwheel.server.cluster import wire
from tickwheel.server.cluster.peer_link import BeatQueue, BulkQueue, backoff_s
from tickwheel.server.cluster.peer_options import PeerOptions, Tls, advertised_of, options_of
from tickwheel.server.config import Config
from tickwheel.server.message import Acked, Append, Beat, BeatAcked, LogEntry, Message


def ack(number: int) -> Message:
    """A short message."""
    return Acked(1, 1, number)


def test_bulk_is_taken_in_frames_and_in_order() -> None:
    queue = BulkQueue(10 * wire.FRAME_BYTES)
    half = Append(1, 1, 0, 1, (LogEntry(1, 1, bytes(wire.FRAME_BYTES // 2)),), 0)
    long = Append(1, 1, 0, 1, (LogEntry(1, 1, bytes(2 * wire.FRAME_BYTES)),), 0)
    sent = [ack(1), half, half, ack(2), long, ack(3)]
    assert queue.put(sent)
    frames = [queue.take() for _ in range(5)]
    assert frames == [[ack(1), half], [half, ack(2)], [long], [ack(3)], []]
    assert queue.waiting_bytes == 0


def test_a_frame_of_short_messages_is_short_too() -> None:
    queue = BulkQueue(10 * wire.FRAME_BYTES)
    assert queue.put([ack(number) for number in range(5_000)])
    assert [len(queue.take()) for _ in range(4)] == [2_000, 2_000, 1_000, 0]


def test_what_is_being_written_still_counts() -> None:
    size = wire.size_bytes(ack(1))
    queue = BulkQueue(2 * size)
    assert queue.put([ack(1), ack(2)])
    assert len(queue.take()) == 2
    assert queue.waiting_bytes == 2 * size
    assert not queue.put([ack(3)])
    queue.clear()
    assert queue.take() == []
    assert queue.put([ack(4)])


def test_of_beats_the_newest_waits() -> None:
    queue = BeatQueue()
    for number in range(3):
        assert queue.put([Beat(number, 0, (), ()), BeatAcked(number, ())])
    assert queue.take() == [Beat(2, 0, (), ()), BeatAcked(2, ())]
    assert queue.take() == []
    queue.put([Beat(9, 0, (), ())])
    queue.clear()
    assert queue.take() == []


def test_a_link_waits_longer_with_each_failure_to_a_limit() -> None:
    options = PeerOptions(backoff_min_s=0.1, backoff_max_s=1.0)
    rng = Random(1)
    for failures, longest_s in ((0, 0.1), (1, 0.2), (2, 0.4), (4, 1.0), (500, 1.0)):
        waits = [backoff_s(failures, options, rng) for _ in range(200)]
        assert longest_s / 2 <= min(waits) < 0.6 * longest_s
        assert 0.9 * longest_s < max(waits) <= longest_s


def test_options_are_what_the_operator_said() -> None:
    assert options_of(Config()) == PeerOptions()
    config = Config(
        peer_listen="[::1]:0", peer_ca="ca", peer_cert="c", peer_key="k", snapshot_bytes_per_s=5
    )
    options = options_of(config)
    assert (options.listen, options.snapshot_bytes_per_s) == (("::1", 0), 5)
    assert options.tls == Tls(Path("ca"), Path("c"), Path("k"))
    assert advertised_of(config, 40_001) == "[::1]:40001"
    assert advertised_of(Config(), 7_071) == "127.0.0.1:7071"
    assert advertised_of(Config(peer_advertise="here:1"), 7_071) == "here:1"


def test_options_hold_their_relations() -> None:
    with pytest.raises(AssertionError):
        PeerOptions(backoff_min_s=2.0, backoff_max_s=1.0)
    with pytest.raises(AssertionError):
        PeerOptions(queue_bytes_max=0)
