"""Floor 1. What the replicas of a shard say to each other: values, one-way, that may be lost, late, doubled, reordered.

    leader ── Append ──────────► voter, learner ── Acked (fsynced) | Rejected ──► leader
    candidate ── Fence ────────► voter ── Fenced (promise fsynced) | FenceRefused ──► candidate
    candidate ── Fetch ────────► the voter with the best log ── Fetched | FetchRefused ──► candidate
    node ── Beat ──────────────► node ── BeatAcked ──► node           once a pair of nodes, for all their shards

Every message of a shard carries the epoch in whose name it is sent. A node is named by the uuid of its store (32
hexadecimal digits), and whoever carries messages adds the sender and the sender's session, so that a reply of a former
life is not taken for one of this life.

Must never import: anything of this project; no I/O, no clock.
"""

from typing import NamedTuple

NodeId = str
"""The uuid of a node's store, as 32 hexadecimal digits."""


class LogEntry(NamedTuple):
    """One entry of a shard's log. An empty payload is an EPOCH_START: it does nothing but begin its epoch."""

    index: int  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    epoch: int
    payload: bytes


class Append(NamedTuple):
    """Take these behind (prev_index, prev_epoch), or say that you do not have that. No entries: a probe, or a commit."""

    shard: int
    epoch: int
    prev_index: int
    prev_epoch: int
    entries: tuple[LogEntry, ...]
    commit: int


class Acked(NamedTuple):
    """My log agrees with the leader's up to `match`, and it is fsynced."""

    shard: int
    epoch: int
    match: int


class Rejected(NamedTuple):
    """I do not have what your Append goes behind. `hint` is the highest index that may agree; try there."""

    shard: int
    epoch: int
    hint: int


class Superseded(NamedTuple):
    """I promised a higher epoch than the one you speak for."""

    shard: int
    epoch: int
    promised: int


class Fence(NamedTuple):
    """Join no epoch below `epoch` any more. `released`: the last leader stopped by itself, so nothing is waited for."""

    shard: int
    epoch: int
    released: bool


class Fenced(NamedTuple):
    """Promised, and fsynced. My log ends at (last_index, last_epoch)."""

    shard: int
    epoch: int
    last_index: int
    last_epoch: int


class FenceRefused(NamedTuple):
    """Not yet: I told a leader of a lower epoch that it may act for `wait_ms` more. Ask again then."""

    shard: int
    epoch: int
    wait_ms: int


class Fetch(NamedTuple):
    """Give me your log behind (after_index, after_epoch), or as far back as we agree."""

    shard: int
    epoch: int
    after_index: int
    after_epoch: int


class Fetched(NamedTuple):
    """Entries behind (prev_index, prev_epoch), in order; `last_index` is where my log ends."""

    shard: int
    epoch: int
    prev_index: int
    prev_epoch: int
    entries: tuple[LogEntry, ...]
    last_index: int


class FetchRefused(NamedTuple):
    """I can't: what comes behind your index is no longer among my entries, or you are superseded."""

    shard: int
    epoch: int
    first_index: int


class Led(NamedTuple):
    """A shard that the sender of a Beat leads."""

    shard: int
    epoch: int


class Beat(NamedTuple):
    """I live. `sent_ms` is my boot time, handed back; `unheard` are the nodes that I have not heard for too long."""

    sent_ms: int
    wall_ms: int
    led: tuple[Led, ...]
    unheard: tuple[NodeId, ...]


class BeatAcked(NamedTuple):
    """For L from now I join no fence against what you lead, but for `refused`, where I promised a higher epoch."""

    sent_ms: int
    refused: tuple[int, ...]


Message = (
    Append | Acked | Rejected | Superseded | Fence | Fenced | FenceRefused
    | Fetch | Fetched | FetchRefused | Beat | BeatAcked
)  # fmt: skip
