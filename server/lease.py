"""Floor 2, pure. The quorum lease: the right to fire and to read, and nothing else gives it. Times are boot time, in ms.

    leader   ── Beat(sent 100, led: shard 3 at epoch 6) ──────────► voter
    leader   ◄───────────────── BeatAcked(100, refused: none) ───── voter, at its time a
    covered until 100 + L (1 - rho)                                 grants no fence above epoch 6 before a + L

The beat was sent before it was acked, and no clock is more than rho faster than another: so the leader's right is over
before the voter helps another leader to begin. A right needs Qc voters, a fence Qf, and any Qc meet any Qf.

`Holds` is the voter's side, `Rights` the leader's; `Suspicions` and `Clocks` are what beats tell besides.

Must never import: any driver; no I/O, no clock.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tickwheel.server.message import Beat, BeatAcked, Led, NodeId
from tickwheel.server.quorum import reached

LEASE_MS = 1_000
"""L. The same on every node of a cluster, or it proves nothing."""

DRIFT_PER_MILLE = 1
"""rho. How much faster one node's boot clock may run than another's."""

SILENT_MS = 1_200
"""A node that was not heard for so long is suspected."""

FRESH_MS = 5_000
"""A life that was never heard is not suspected before it is known for so long: who starts opens stores and connections. If
it dies before it was heard, its lease in etcd ends sooner anyway."""

WALL_OFF_MS_MAX = 1_000
"""A node whose wall clock is further from the majority's must not lead: it would fire early, or late."""

WALL_RIGHT_MS_MAX = 500
"""It may again when it is so near."""

WALL_ODD_MS_MAX = 250
"""Worth a warning."""

WALL_SAMPLES = 5
FOREVER_MS = 1 << 62


# --- the voter -------------------------------------------------------------------------------


class _Hold(NamedTuple):
    """The leader of `epoch` may count on us until then."""

    epoch: int
    until_ms: int


class Holds:
    """What this node said to leaders, for all shards. Lost when the process ends, so it waits after its start."""

    def __init__(self, started_ms: int, lease_ms: int = LEASE_MS) -> None:
        self._lease_ms = lease_ms
        self._waking_ms = started_ms + lease_ms
        self._promised: dict[int, int] = {}  # bounded: by the number of shards
        self._asked: dict[int, int] = {}  # bounded: by the number of shards
        self._holds: dict[int, _Hold] = {}  # bounded: by the number of shards

    def promised(self, shard: int, epoch: int) -> None:
        """From now on no leader below `epoch` is acked for the shard. Said at the start for every promise on disk."""
        self._promised[shard] = max(epoch, self._promised.get(shard, 0))

    def beat(self, beat: Beat, now_ms: int) -> BeatAcked:
        """Ack a leader's beat, and hold to it from now on."""
        refused: list[int] = []
        for shard, epoch in beat.led:
            hold = self._holds.get(shard)
            lowest = max(self._promised.get(shard, 0), self._asked.get(shard, 0))
            if epoch < lowest or (hold is not None and epoch < hold.epoch):
                refused.append(shard)
            else:
                self._holds[shard] = _Hold(epoch, now_ms + self._lease_ms)
        return BeatAcked(beat.sent_ms, tuple(refused))

    def wait_ms(self, shard: int, epoch: int, now_ms: int, *, released: bool) -> int:
        """How long a Fence for `epoch` has to wait; 0 if it may be granted.

        That it was asked for is remembered: no leader below it is acked any more, or one that cannot see that its time
        is over would be held to for ever, beat by beat.

        `released` is said by the leader of `epoch` - 1 alone, so nobody else's hold ends by it. What was acked before
        our start is forgotten; yet if we promised `epoch` - 1, nobody below it was acked since.
        """
        self._asked[shard] = max(epoch, self._asked.get(shard, 0))
        excused = epoch - 1 if released else -1
        until_ms = 0 if self._promised.get(shard, 0) == excused else self._waking_ms
        hold = self._holds.get(shard)
        if hold is not None and hold.epoch < epoch and hold.epoch != excused:
            until_ms = max(until_ms, hold.until_ms)
        return max(until_ms - now_ms, 0)


# --- the leader ------------------------------------------------------------------------------


class _Term(NamedTuple):
    """A leadership. Beats up to `after_ms` did not speak of it."""

    epoch: int
    after_ms: int


class Rights:
    """Until when this node may act as leader, for all shards that it leads."""

    def __init__(self, me: NodeId, started_ms: int, lease_ms: int = LEASE_MS) -> None:
        self._me = me
        self._covered_ms = lease_ms * (1000 - DRIFT_PER_MILLE) // 1000
        self._sent_ms = self._started_ms = started_ms
        self._terms: dict[int, _Term] = {}  # bounded: by the number of shards
        self._acked_ms: dict[NodeId, int] = {}  # bounded: by the number of nodes
        self._refused: dict[int, set[NodeId]] = {}  # bounded: as the two above
        self._known: dict[int, tuple[Sequence[Sequence[NodeId]], int]] = {}

    def lead(self, shard: int, epoch: int) -> None:
        """The shard is led from now on: beats speak of it. Only once its EPOCH_START is committed."""
        self._terms[shard] = _Term(epoch, self._sent_ms)
        self._refused.pop(shard, None)
        self._known.pop(shard, None)

    def leave(self, shard: int) -> None:
        """It is no more."""
        self._terms.pop(shard, None)
        self._refused.pop(shard, None)
        self._known.pop(shard, None)

    def beat(self, now_ms: int, wall_ms: int, unheard: Iterable[NodeId] = ()) -> Beat:
        """One beat, for all nodes."""
        assert now_ms >= self._sent_ms, "boot time does not go back"
        self._sent_ms = now_ms
        led = tuple(Led(shard, term.epoch) for shard, term in sorted(self._terms.items()))
        return Beat(now_ms, wall_ms, led, tuple(sorted(unheard)))

    def acked(self, peer: NodeId, ack: BeatAcked) -> None:
        """A node holds to what that beat spoke of, but for what it refused. An ack of another life is ignored."""
        if not self._started_ms < ack.sent_ms <= self._sent_ms:
            return
        self._acked_ms[peer] = max(ack.sent_ms, self._acked_ms.get(peer, 0))
        for shard in ack.refused:
            term = self._terms.get(shard)
            if term is not None and ack.sent_ms > term.after_ms:
                self._refused.setdefault(shard, set()).add(peer)
        self._known.clear()

    def until_ms(self, shard: int, configs: Sequence[Sequence[NodeId]]) -> int:
        """Until when a quorum of each configuration covers this leader; 0 if it does not. FOREVER_MS: it is alone.

        The end is not covered any more: act only while now < until.
        """
        known = self._known.get(shard)
        if known is not None and (known[0] is configs or known[0] == configs):
            return known[1]
        term = self._terms.get(shard)
        if term is None or not configs:
            return 0
        refused = self._refused.get(shard, set())
        until_ms = min(
            reached([self._covers_ms(voter, term, refused) for voter in voters])
            for voters in configs
        )
        self._known[shard] = configs, until_ms
        return until_ms

    def _covers_ms(self, voter: NodeId, term: _Term, refused: set[NodeId]) -> int:
        if voter == self._me:
            return FOREVER_MS
        sent_ms = self._acked_ms.get(voter, 0)
        if voter in refused or sent_ms <= term.after_ms:
            return 0
        return sent_ms + self._covered_ms


# --- suspicion -------------------------------------------------------------------------------


class _Known(NamedTuple):
    """A node's life, that is its session; since when it is known, when it was heard last, and whether it ever was."""

    session: int
    since_ms: int
    heard_ms: int
    met: bool = False


class Suspicions:
    """Who is silent, and for whom: a node that a majority does not hear may lose its session before that runs out."""

    def __init__(self, me: NodeId, silent_ms: int = SILENT_MS, fresh_ms: int = FRESH_MS) -> None:
        self._me = me
        self._silent_ms = silent_ms
        self._fresh_ms = fresh_ms
        self._known: dict[NodeId, _Known] = {}  # bounded: by the nodes that are registered
        self._told: dict[NodeId, tuple[NodeId, ...]] = {}  # bounded: likewise
        self._said: set[NodeId] = set()

    def registered(self, lives: Iterable[tuple[NodeId, int]], now_ms: int) -> None:
        """These have a session now, each its own. A new one has time to make itself heard."""
        before = self._known
        self._known = {
            node: known
            if (known := before.get(node)) is not None and known.session == session
            else _Known(session, now_ms, now_ms)
            for node, session in sorted(lives)
            if node != self._me
        }
        same = {n for n, known in self._known.items() if known.since_ms < now_ms}
        self._told = {node: told for node, told in self._told.items() if node in same}
        self._said.intersection_update(same)

    def heard(self, sender: NodeId, beat: Beat, now_ms: int) -> None:
        """A beat arrived."""
        known = self._known.get(sender)
        if known is not None:
            self._known[sender] = known._replace(heard_ms=now_ms, met=True)
            self._told[sender] = beat.unheard
            self._said.discard(sender)

    def unheard(self, now_ms: int) -> tuple[NodeId, ...]:
        """Whom this node does not hear: for its own beats."""
        return tuple(
            node
            for node, known in self._known.items()
            if self._silent(node, now_ms)
            and (known.met or now_ms - known.since_ms >= self._fresh_ms)
        )

    def due(self, now_ms: int) -> list[NodeId]:
        """Whom a majority of all registered nodes does not hear, this one among them; each is said once."""
        silent = [node for node in self.unheard(now_ms) if node not in self._said]
        due = [node for node in silent if self._is_majority(self._silent_for(node, now_ms))]
        self._said.update(due)
        return due

    def _silent(self, node: NodeId, now_ms: int) -> bool:
        return now_ms - self._known[node].heard_ms >= self._silent_ms

    def _silent_for(self, node: NodeId, now_ms: int) -> int:
        """How many do not hear it: this node, and those who said so lately."""
        return 1 + sum(
            node in told for teller, told in self._told.items() if not self._silent(teller, now_ms)
        )

    def _is_majority(self, count: int) -> bool:
        return count > (len(self._known) + 1) // 2


# --- wall clocks -----------------------------------------------------------------------------


class Clocks:
    """How far this node's wall clock is from the others', from their beats. What a beat's way may explain does not count."""

    def __init__(self, silent_ms: int = SILENT_MS) -> None:
        self._silent_ms = silent_ms
        self._offsets: dict[NodeId, deque[int]] = {}  # bounded: by the number of nodes
        self._rtts: dict[NodeId, deque[int]] = {}  # bounded: by the number of nodes
        self._heard_ms: dict[NodeId, int] = {}  # bounded: by the number of nodes
        self._wrong = False

    def heard(self, sender: NodeId, beat: Beat, wall_ms: int, now_ms: int) -> None:
        """A beat arrived when our own wall clock showed `wall_ms`."""
        offsets = self._offsets.setdefault(sender, deque(maxlen=WALL_SAMPLES))
        offsets.append(beat.wall_ms - wall_ms)
        self._heard_ms[sender] = now_ms

    def acked(self, sender: NodeId, ack: BeatAcked, now_ms: int) -> None:
        """An answer to a beat of ours arrived: so long it took there and back."""
        rtt_ms = now_ms - ack.sent_ms
        if rtt_ms >= 0:
            self._rtts.setdefault(sender, deque(maxlen=WALL_SAMPLES)).append(rtt_ms)

    def offset_ms(self, node: NodeId) -> int:
        """How far the node's clock is ahead of ours: the median of its last beats. 0 if it was never heard.

        A beat that waited on its way, or here, looks as if the other clock were behind; it waited no longer than the
        last beats and answers took in all.
        """
        offset_ms = _median(self._offsets.get(node, (0,)))
        unsure_ms = _median(self._rtts.get(node, (0,)))
        return max(offset_ms - unsure_ms, 0) if offset_ms > 0 else min(offset_ms + unsure_ms, 0)

    def off_ms(self, now_ms: int) -> int:
        """How far the majority's clock is ahead of ours: the median of all that are heard, ours among them.

        Between two medians the one nearer to our own clock counts: of two nodes nobody knows which one is wrong.
        """
        offsets = sorted([0, *(self.offset_ms(node) for node in self._heard(now_ms))])
        middle = offsets[(len(offsets) - 1) // 2], offsets[len(offsets) // 2]
        return min(middle, key=abs)

    def wrong(self, now_ms: int) -> bool:
        """True if this node must not lead. Once that is so, it takes a clock that is nearly right to end it.

        Who was contradicted by a majority is not right because most of it died: the one that is left must agree.
        """
        heard = self._heard(now_ms)
        if not self._wrong or len(heard) != 1:
            off_ms = abs(self.off_ms(now_ms))
        else:
            off_ms = abs(self.offset_ms(heard[0]))
        self._wrong = off_ms > (WALL_RIGHT_MS_MAX if self._wrong else WALL_OFF_MS_MAX)
        return self._wrong

    def _heard(self, now_ms: int) -> list[NodeId]:
        return [node for node, at_ms in self._heard_ms.items() if now_ms - at_ms < self._silent_ms]


def _median(values: Iterable[int]) -> int:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
