"""The variants: which clusters, which faults and how many of them, how often a walk tries what."""

from dataclasses import dataclass, field, replace

from tests.model.rules import Rules
from tests.model.state import Budget, Disk, Entry, Ghost, Lead, Node, Record, State, at, put

WEIGHTS: dict[str, float] = {
    "append": 30, "commit": 40, "propose": 10, "fence": 40, "adopt": 40, "take": 3, "begin": 20,
    "beat": 12, "tick": 8, "skew": 2, "deliver": 10, "drop": 1, "fsync": 40, "fire": 4, "once": 4,
    "reconfig": 4, "cas": 10, "reread": 6, "etcd": 3, "release": 0.5, "down": 0.3, "crash": 1.5,
    "wipe": 0.3, "lose": 0.5, "revoke": 1.5, "register": 10, "compact": 1.5, "snap": 2, "arm": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Scope:
    """A cluster and the bounds of what may happen to it."""

    name: str
    names: str
    voters: str
    hold: int = 6  # L; 0: no time at all, and nobody waits
    margin: int = 2  # twice what one clock may be off its share
    epochs_max: int = 8
    log_max: int = 9
    msgs_max: int = 6
    steps: int = 120
    hows: tuple[str, ...] = ("call", "call", "call", "half", "post")
    kinds: str = "wcs"  # what a leader may write
    voters_max: int = 4
    budget: Budget = field(default_factory=Budget)
    weights: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    coarse: bool = (
        False  # appends send all, only beats may lose their answer, every write is synced
    )
    tiny: bool = False  # every state within a few seconds
    deaf: str = ""  # a cut network: no append reaches these
    takers: str = ""  # who may take over (by symmetry the first may be named); empty: everyone
    shapes: tuple[
        str, ...
    ] = ()  # the voter sets that a change may aim at; empty: any single change

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
_LEASE = _weights(
    beat=25, tick=4, skew=2, fire=3, append=20, propose=1, take=3, revoke=1.5, register=10,
    reconfig=0, snap=0.2, compact=0.2, fsync=40, arm=2, crash=0.7,
)  # fmt: skip

MAJORITY = Scope("majority", "ABCD", "ABC", budget=Budget(wipe=1, lose=1))
LEASE = Scope("lease", "ABC", "ABC", hold=8, weights=_LEASE, log_max=8)
VARIANTS: dict[str, Scope] = {
    scope.name: scope
    for scope in (
        MAJORITY,
        replace(MAJORITY, name="log", hold=0, weights=_LOG, steps=140),
        Scope(
            "plain",  # the log alone: take-overs, crashes, no change of voters
            "ABC",
            "ABC",
            hold=0,
            kinds="w",
            epochs_max=6,
            log_max=5,
            msgs_max=3,
            steps=90,
            hows=("call", "call", "half", "post"),
            weights={
                "append": 30,
                "commit": 30,
                "propose": 8,
                "fence": 30,
                "adopt": 30,
                "take": 8,
                "deliver": 8,
                "fsync": 30,
                "crash": 3,
                "revoke": 6,
                "register": 8,
            },
        ),
        Scope(
            "turns",  # leaders take turns, each with little time: what old epochs leave behind
            "ABC",
            "ABC",
            hold=0,
            coarse=True,
            kinds="w",
            epochs_max=5,
            log_max=4,
            msgs_max=0,
            steps=60,
            hows=("call",),
            weights={
                "append": 6,
                "commit": 12,
                "propose": 4,
                "fence": 15,
                "adopt": 30,
                "take": 8,
                "revoke": 6,
                "register": 10,
            },
        ),
        replace(
            MAJORITY,
            name="change",  # one change of voters after the other, answers of etcd lost or late
            hold=0,
            budget=Budget(),
            weights={**_LOG, "reconfig": 12, "cas": 20, "reread": 15, "etcd": 6, "release": 0.2},
        ),
        Scope("five", "ABCDEF", "ABCDE", voters_max=5, budget=Budget(wipe=1), steps=180),
        Scope("two", "ABC", "AB", voters_max=3),
        Scope("one", "ABC", "A", voters_max=3),
        LEASE,
        replace(
            LEASE,
            name="lease-change",  # a lease while voters change, from one or two of them on
            voters="AB",
            voters_max=3,
            weights={**_LEASE, "reconfig": 6, "cas": 15},
        ),
        replace(
            LEASE,
            name="outage",  # etcd is gone, then comes back without a single session
            weights={**_LEASE, "outage": 2, "revoke": 0.5},
        ),
        replace(LEASE, name="hand-over", weights={**_LEASE, "release": 3, "revoke": 2}),
        replace(
            MAJORITY,
            name="re-seed",
            names="ABC",
            budget=Budget(lose=3),
            weights={**_LOG, "lose": 3, "append": 50, "snap": 2, "deliver": 20, "reconfig": 0},
            hold=0,
        ),
    )
}

# --- exhaustive: small enough that every reachable state is seen -------------------------------------

_FEW = Budget(crash=0, revoke=1, reconfig=0, release=0, late=0, skew=0, snap=0)
_NO_TIME = ("beat", "tick", "skew", "fire", "arm")


def _only(*kinds: str) -> dict[str, float]:
    return dict.fromkeys(kinds, 1.0)


_CORE = ("propose", "append", "commit", "fence", "adopt", "take", "revoke", "deliver", "crash")
_LEASED = (
    "beat",
    "tick",
    "skew",
    "append",
    "commit",
    "fence",
    "adopt",
    "take",
    "deliver",
    "revoke",
)
_TWO = Scope(
    "", "AB", "AB", hold=2, margin=0, tiny=True, epochs_max=3, log_max=4, msgs_max=0, kinds="",
    hows=("call",), coarse=True, weights=_only(*_LEASED, "crash"),
)  # fmt: skip
SEARCHES: dict[str, Scope] = {
    scope.name: scope
    for scope in (
        Scope(
            "x-log", "ABC", "ABC", hold=0, coarse=True, epochs_max=3, log_max=3, msgs_max=0, kinds="w",
            hows=("call",), budget=_FEW._replace(revoke=2, crash=1), weights=_only(*_CORE),
        ),
        replace(_TWO, name="x-two", budget=_FEW._replace(revoke=2, release=1), weights=_only(*_LEASED, "release")),
        replace(_TWO, name="x-start", budget=_FEW._replace(crash=1), weights=_only(*_LEASED, "crash", "register")),
        replace(_TWO, name="x-late", hold=3, msgs_max=1, hows=("call", "half"), budget=_FEW),
        replace(_TWO, name="x-drift", hold=3, margin=1, budget=_FEW._replace(skew=1)),
        replace(_TWO, name="x-queue", budget=_FEW, weights=_only(*_LEASED, "fire", "arm")),
        Scope(
            "x-turns",  # one leader after the other, and a change of voters between
            "ABC", "ABC", hold=0, coarse=True, tiny=True, epochs_max=3, log_max=3, msgs_max=0, kinds="w",
            hows=("call",), budget=_FEW._replace(revoke=1, reconfig=1, late=0), takers="B", shapes=("BC",),
            weights=_only(*_CORE, "reconfig", "cas"),
        ),
        Scope(
            "x-promise", "ABC", "ABC", hold=0, coarse=True, tiny=True, epochs_max=2, log_max=3, msgs_max=0,
            kinds="w", hows=("call",), budget=_FEW._replace(crash=1), takers="C", deaf="C",
            weights=_only(*_CORE),
        ),
        Scope(
            "x-seed",
            "ABC",
            "ABC",
            hold=0,
            epochs_max=2,
            log_max=3,
            msgs_max=1,
            kinds="w",
            hows=("call", "half"),
            budget=_FEW._replace(lose=1),
            coarse=True,
            takers="C",
            deaf="C",
            weights=_only("lose", *_CORE[:-1]),
        ),
        Scope(
            "x-lease", "ABC", "ABC", hold=2, margin=0, epochs_max=2, log_max=3, msgs_max=0, kinds="",
            hows=("call",), budget=_FEW._replace(crash=1), coarse=True, takers="AB",
            weights=_only(*_LEASED, "crash"),
        ),
        Scope(
            "x-release", "ABC", "ABC", hold=2, margin=0, coarse=True, epochs_max=3, log_max=4, msgs_max=0, kinds="",
            hows=("call",), budget=_FEW._replace(release=1),
            weights=_only(*_LEASED, "release"),
        ),
        Scope(
            "x-change", "ABC", "AB", hold=2, margin=0, coarse=True, epochs_max=2, log_max=3, msgs_max=0, kinds="",
            hows=("call",), budget=_FEW._replace(reconfig=1), shapes=("A", "AB", "ABC"),
            weights=_only(*_LEASED, "reconfig", "cas", "reread", "down"),
        ),
        Scope(
            "x-grow", "AB", "A", hold=2, margin=0, coarse=True, tiny=True, epochs_max=2, log_max=3, msgs_max=0, kinds="",
            hows=("call",), budget=_FEW._replace(reconfig=1, revoke=2),
            weights=_only(*_LEASED, "reconfig", "cas", "reread", "down"),
        ),
    )
}  # fmt: skip
VARIANTS["turns-change"] = replace(
    VARIANTS["turns"],
    name="turns-change",
    names="ABCD",
    shapes=("BCD", "BC"),
    takers="BC",
    epochs_max=3,
    steps=45,
    budget=Budget(late=0),
    weights={**VARIANTS["turns"].weights, "reconfig": 5, "cas": 15, "reread": 5},
)
SEARCHES["x-early"] = replace(
    SEARCHES["x-release"],
    name="x-early",  # within one instant: three leaders, the second gives up
    takers="BC",
    weights=_only(
        "beat", "append", "commit", "fence", "adopt", "take", "revoke", "release"
    ),
)  # fmt: skip
