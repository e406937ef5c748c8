"""Replicas of shard 1 in one process, with journals that never fail and a network that delivers at once, or not."""

from collections.abc import Iterable, Sequence

from tickwheel.server.lead import Pace
from tickwheel.server.log import Log, Recovered
from tickwheel.server.message import Append, LogEntry, Message, NodeId
from tickwheel.server.record import Record
from tickwheel.server.replica import Event, Leadership, Output, Replica, ReplicaOptions, Role

SHARD = 1
SMALL = ReplicaOptions(
    append_bytes_max=130, probe_bytes_max=130, window_bytes_max=260, tail_bytes_max=0,
    snapshot_tail_bytes_max=0,
)  # fmt: skip


class Free:
    """No hold, or one of `ms`."""

    def __init__(self) -> None:
        self.ms = 0
        self.told: list[int] = []

    def wait_ms(self, shard: int, epoch: int, now_ms: int, *, released: bool) -> int:
        return self.ms

    def promised(self, shard: int, epoch: int) -> None:
        self.told.append(epoch)


def entries(*epochs: int, start: int = 1) -> list[LogEntry]:
    """Entries from index `start` on, of these epochs."""
    return [
        LogEntry(start + place, epoch, b"%d" % (start + place))
        for place, epoch in enumerate(epochs)
    ]


def replica(
    me: NodeId = "a", *epochs: int, promised: int | None = None, base: tuple[int, int] = (0, 0),
    options: ReplicaOptions | None = None, holds: Free | None = None, void: bool = False,
) -> Replica:  # fmt: skip
    """One whose log has entries of these epochs behind a base."""
    log = Log(*base, entries(*epochs, start=base[0] + 1))
    found = Recovered(log, log.last_epoch if promised is None else promised, void)
    return Replica(SHARD, me, found, holds=holds or Free(), options=options)


def record(epoch: int, leader: NodeId, voters: str = "abc", learners: str = "") -> Leadership:
    return Leadership(epoch, leader, tuple(voters), tuple(learners))


def synced(one: Replica) -> Output:
    """Take, and let the disk be quick: everything that was said, in one Output."""
    whole = Output()
    while one.ready:
        out = one.take()
        if not out:
            break
        for name in ("records", "now", "synced", "committed", "events"):
            getattr(whole, name).extend(getattr(out, name))
        if out.records:
            one.persisted(out.mark)
        if out.committed:
            one.applied(out.committed[-1].index)
    return whole


def said(one: Replica) -> list[tuple[NodeId, Message]]:
    """What it says now, whether or not it waited for the disk."""
    out = synced(one)
    return out.now + out.synced


class Net:
    """Replicas that hear each other; `cut` nodes neither send nor receive."""

    def __init__(self, replicas: Iterable[Replica]) -> None:
        self.by_name = {one.me: one for one in replicas}
        self.cut: set[NodeId] = set()
        self.events: list[tuple[NodeId, Event]] = []
        self.records: list[tuple[NodeId, Record]] = []
        self.committed: dict[NodeId, list[LogEntry]] = {name: [] for name in self.by_name}

    def __getitem__(self, name: NodeId) -> Replica:
        return self.by_name[name]

    def run(self, now_ms: int = 0) -> None:
        """Until nobody has anything to say."""
        busy = True
        while busy:
            busy = False
            for name, one in self.by_name.items():
                out = synced(one)
                busy = busy or bool(out)
                self.events += [(name, event) for event in out.events]
                self.records += [(name, item) for item in out.records]
                self.committed[name] += out.committed
                self.deliver(name, out.now + out.synced, now_ms)

    def deliver(self, sender: NodeId, pairs: Sequence[tuple[NodeId, Message]], now_ms: int) -> None:
        for to, message in pairs:
            if to in self.by_name and not {sender, to} & self.cut:
                self.by_name[to].receive(sender, message, now_ms)

    def lead(self, name: NodeId, epoch: int, voters: str = "abc", learners: str = "") -> Replica:
        """Make a node the leader."""
        self[name].led(record(epoch, name, voters, learners), 0)
        self.run()
        assert self[name].leads
        return self[name]


def net(names: str = "abc", **kinds: Replica) -> Net:
    """Empty replicas, but for those that are given."""
    return Net(kinds.get(name) or replica(name) for name in names)


def append(epoch: int, prev: tuple[int, int], *items: LogEntry, commit: int = 0) -> Append:
    return Append(SHARD, epoch, *prev, tuple(items), commit)


def at(one: Replica, role: Role) -> bool:
    return one.role == role


def events(of: Net, name: str) -> list[object]:
    return [event for who, event in of.events if who == name]


def far_ahead() -> Net:
    """a leads, and has forgotten what c never got."""
    group = Net(replica(name, options=SMALL) for name in "abc")
    group.cut = {"c"}
    leader = group.lead("a", 1)
    for payload in (b"x", b"y", b"z"):
        leader.propose(payload)
        group.run()
    group.cut = set()
    leader.connected("c")
    group.run()
    return group


def peer_of(leader: Replica, name: str) -> tuple[Pace, int, int]:
    """How a peer is fed: its pace, what agrees, what comes next."""
    assert leader._lead is not None
    peer = leader._lead.peers[name]
    return peer.pace, peer.match, peer.next
