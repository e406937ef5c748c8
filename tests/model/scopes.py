"""The variants: which clusters, which faults and how many of them, how often a walk tries what."""

from dataclasses import dataclass, field, replace

from tests.model.rules import Rules
from tests.model.state import Budget, Disk, Entry, Ghost, Lead, Node, Record, State, at, put

WEIGHTS: dict[str, float] = {
    "append": 30, "commit": 40, "propose": 10, "fence": 40, "adopt": 40, "take": 5, "begin": 20,
    "beat": 12, "tick": 8, "skew": 2, "deliver": 10, "drop": 1, "fsync": 8, "fire": 4, "once": 4,
    "reconfig": 4, "cas": 10, "reread": 6, "etcd": 3, "release": 0.5, "down": 0.3, "crash": 1.5,
    "wipe": 0.3, "lose": 0.5, "revoke": 3, "register": 6, "compact": 1.5, "snap": 2, "arm": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Scope:
    """A cluster and the bounds of what may happen to it."""

    name: str
    names: str
    voters: str
    hold: int = 6  # L; 0: no time at all, and nobody waits
    margin: int = 2  # twice what one clock may be off its share
    epochs_max: int = 6
    log_max: int = 7
    msgs_max: int = 6
    steps: int = 120
    hows: tuple[str, ...] = ("call", "half", "post")
    kinds: str = "wcs"  # what a leader may write
    voters_max: int = 4
    budget: Budget = field(default_factory=Budget)
    weights: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    shapes: tuple[str, ...] = ()  # the voter sets that a change may aim at; empty: any single change

    def rules(self, broken: str = "") -> Rules:
        """The rules for this cluster, one of them broken perhaps."""
        return Rules(self.names, self.hold, self.margin, broken)

    def start(self) -> State:
        """A leads epoch 1 and its EPOCH_START is on every voter; by symmetry it could be any of them."""
        log = (Entry(1, "n", "A"),)
        size = len(self.names)
        nodes: list[Node] = []
        for name in self.names:
            disk = Disk(1, log if name in self.voters else ())
            nodes.append(Node(disk, disk, commit=len(disk.log)))
        zeros = (0,) * size
        match = zeros
        for voter in self.voters:
            match = put(match, at(self.names, voter), 1)
        lead = Lead(1, self.voters, 1, match, zeros, zeros, leading=True, commit=1, noop=1)
        nodes[0] = nodes[0]._replace(lead=lead, led=1)
        ghost = Ghost(log, ((1, 1),), ((1, "A", 0),))
        record = Record(1, "A", held=True, released=False, voters=self.voters, rev=1)
        return State(tuple(nodes), (True,) * size, record, ghost, self.budget)


def _weights(**changed: float) -> dict[str, float]:
    return {**WEIGHTS, **changed}


_LOG = _weights(beat=0, tick=0, skew=0, fire=0, arm=0)
_TIME = _weights(beat=30, tick=20, skew=5, fire=10, reconfig=2, propose=5, snap=1, compact=1)

MAJORITY = Scope("majority", "ABCD", "ABC", budget=Budget(wipe=1, lose=1))
VARIANTS: dict[str, Scope] = {
    scope.name: scope
    for scope in (
        MAJORITY,
        replace(MAJORITY, name="log", hold=0, weights=_LOG, steps=140),
        replace(MAJORITY, name="lease", weights=_TIME, steps=160, log_max=6),
        Scope("five", "ABCDEF", "ABCDE", voters_max=5, budget=Budget(wipe=1), steps=180),
        Scope("two", "ABC", "AB", voters_max=3),
        Scope("two-lease", "ABC", "AB", voters_max=3, weights=_TIME, steps=160, log_max=6),
        Scope("one", "ABC", "A", voters_max=3),
        replace(
            MAJORITY,
            name="outage",  # etcd is gone, then comes back without a single session
            weights={**_TIME, "outage": 2, "revoke": 0.5},
            steps=160,
        ),
        replace(MAJORITY, name="hand-over", weights={**_TIME, "release": 4}, steps=160),
        replace(
            MAJORITY,
            name="re-seed",
            budget=Budget(lose=3),
            weights={**_LOG, "lose": 3, "append": 50, "snap": 4, "deliver": 20},
            hold=0,
        ),
    )
}
