"""Floor 3. Whose disks hold a shard: the leader of each shard brings its voters back to what they should be.

    a voter is gone for long, removed, suspect, or draining     ──► a spare host: learner ──► caught up ──► takes its place
    fewer voters than wanted                                    ──► the same, and it is added
    a voter is gone, and there is no spare                      ──► shrink, so that the next loss can be survived too

One change of a shard at a time, each by the replica's joint mode and one compare-and-swap (docs/design/replica.md).

`plan` is pure: what to do next for a shard, if anything.

Must never import: gRPC, protobuf, `runner`, `store`, the doors.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from tickwheel.server.cluster.elect import Election
from tickwheel.server.cluster.host import Host
from tickwheel.server.cluster.ports import OutcomeUnknown
from tickwheel.server.cluster.registry import MemberState, ShardRecord
from tickwheel.server.cluster.view import View
from tickwheel.server.errors import NotLeader, TickwheelError
from tickwheel.server.logs import get_logger
from tickwheel.server.message import NodeId
from tickwheel.server.placement import Site, preference
from tickwheel.server.turn import CasWanted, Event, Outcome

log = get_logger(__name__)

LOOK_S: Final = 0.5
AT_A_TIME: Final = 2
"""Shards of one leader that change at the same time: a copy costs disks and network."""

BEHIND_MAX: Final = 1_000
RETRY_S: Final = 0.2
SHRINK_FROM: Final = 3


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a voter may be gone before it is replaced by a spare, or left out without one."""

    replace_ms: int = 300_000
    shrink_ms: int = 60_000


class Voter(NamedTuple):
    """What is known of a node that is, or might be, a voter. `gone_ms` is 0 while it is there."""

    site: Site
    state: MemberState
    gone_ms: int
    replaced: bool = False
    """Its host is another node's now: the disk was wiped or changed, and it will not come back."""

    @property
    def usable(self) -> bool:
        """True if it may get a shard."""
        return not self.gone_ms and self.state == MemberState.ACTIVE


class Learn(NamedTuple):
    """Begin to feed this node."""

    node: NodeId


class Forget(NamedTuple):
    """Feed this learner no more."""

    node: NodeId


class Change(NamedTuple):
    """Let these be the voters; who was a learner and is among them is none any more."""

    voters: tuple[NodeId, ...]


Plan = Learn | Forget | Change | None


def plan(
    shard: int,
    record: ShardRecord,
    nodes: Mapping[NodeId, Voter],
    replicas: int,
    patience: Patience,
) -> Plan:
    """What the leader of a shard should do about its voters; None when all is as it should be."""
    bad = [v for v in record.voters if v != record.leader and _is_bad(nodes.get(v), patience)]
    for learner in record.learners:
        known = nodes.get(learner)
        if known is None or not known.usable:
            return Forget(learner)
    lacking = len(record.voters) < replicas
    if record.learners:
        return _promote(record, bad, lacking=lacking)
    if lacking or bad:
        spare = _spare(shard, record, bad, nodes)
        if spare:
            return Learn(spare)
    return _shrink(record, nodes, patience)


def _is_bad(voter: Voter | None, patience: Patience) -> bool:
    """True if another node should take its place, when there is one."""
    if voter is None:
        return True
    if voter.state != MemberState.ACTIVE:
        return True
    return bool(voter.gone_ms) and (voter.replaced or voter.gone_ms >= patience.replace_ms)


def _promote(record: ShardRecord, bad: list[NodeId], *, lacking: bool) -> Plan:
    learner = record.learners[0]
    if bad:
        return Change(tuple(learner if v == bad[0] else v for v in record.voters))
    return Change((*record.voters, learner)) if lacking else Forget(learner)


def _spare(
    shard: int, record: ShardRecord, bad: list[NodeId], nodes: Mapping[NodeId, Voter]
) -> NodeId:
    """The node that wants the shard most, on a host that holds no copy but one that goes; "" if there is none."""
    leaving = set(bad[:1])
    kept = [nodes[v].site for v in record.voters if v not in leaving and v in nodes]
    hosts, zones = {site.host for site in kept}, {site.zone for site in kept}
    sites = {
        node: known.site
        for node, known in nodes.items()
        if known.usable and node not in record.voters and known.site.host not in hosts
    }
    order = preference(shard, sites)
    order.sort(key=lambda node: sites[node].zone in zones)
    return order[0] if order else ""


def _shrink(record: ShardRecord, nodes: Mapping[NodeId, Voter], patience: Patience) -> Plan:
    """Of three or more voters one that is gone is left out: then two can lose one more."""
    if len(record.voters) < SHRINK_FROM:
        return None
    for voter in record.voters:
        known = nodes.get(voter)
        if voter != record.leader and (known is None or known.gone_ms >= patience.shrink_ms):
            return Change(tuple(v for v in record.voters if v != voter))
    return None


class Reshape:
    """Carries plans out, for the shards that this node leads."""

    def __init__(  # noqa: PLR0913 - what it watches and what it moves
        self, me: NodeId, view: View, host: Host, election: Election, *, replicas: int,
        now_ms: Callable[[], int], patience: Patience,
    ) -> None:  # fmt: skip
        self._me = me
        self._view = view
        self._host = host
        self._election = election
        self._replicas = replicas
        self._now_ms = now_ms
        self._patience = patience
        self._last_seen: dict[NodeId, tuple[Voter, int]] = {}
        self._changing: set[int] = set()
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Until `stop`."""
        while not self._stop.is_set():
            self._look()
            await asyncio.sleep(LOOK_S)

    def stop(self) -> None:
        """Change nothing any more."""
        self._stop.set()

    # --- looking ---

    def _look(self) -> None:
        nodes = self._nodes()
        if self._election.held is None:
            return  # what is known of the others may be old
        for number, seen in list(self._view.shards.items()):
            if len(self._changing) >= AT_A_TIME:
                return
            if number in self._changing or not self._host.serves(number):
                continue
            wanted = plan(number, seen.record, nodes, self._replicas, self._patience)
            if wanted is not None:
                self._begin(number, wanted)

    def _nodes(self) -> dict[NodeId, Voter]:
        """Everybody who is there, and everybody who was a moment ago."""
        now_ms = self._now_ms()
        for node, seen in self._view.nodes.items():
            self._last_seen[node] = Voter(seen.site, self._view.state(node), 0), now_ms
        hosts = {self._last_seen[node][0].site.host for node in self._view.nodes}
        nodes: dict[NodeId, Voter] = {}
        for seen_shard in self._view.shards.values():
            for voter in seen_shard.record.voters:
                self._last_seen.setdefault(
                    voter, (Voter(Site("", ""), MemberState.ACTIVE, 1), now_ms)
                )
        for node, (known, at_ms) in self._last_seen.items():
            there = node in self._view.nodes
            nodes[node] = Voter(
                known.site,
                self._view.state(node),
                0 if there else max(now_ms - at_ms, 1),
                not there and known.site.host in hosts,
            )
        return nodes

    # --- carrying out ---

    def _begin(self, number: int, wanted: Learn | Forget | Change) -> None:
        replica = self._host.replicas[number]
        match wanted:
            case Learn(node):
                log.info("a node begins to learn", extra={"shard": number, "node": node})
                self._run(number, lambda record: replace(record, learners=(node,)))
            case Forget(node):
                left = tuple(n for n in self._view.shards[number].record.learners if n != node)
                self._run(number, lambda record: replace(record, learners=left))
            case Change(voters):
                if len(replica.configs) != 1 or not self._is_caught_up(number, voters):
                    return
                learners = [n for n in replica.learners if n not in voters]
                self._changing.add(number)
                try:
                    replica.reconfigure(voters, learners)
                except NotLeader:
                    self._changing.discard(number)
                self._host.poke(number)

    def _is_caught_up(self, number: int, voters: tuple[NodeId, ...]) -> bool:
        """A new voter should lack next to nothing: while voters change, commits need both sets."""
        replica = self._host.replicas[number]
        matches, commit = replica.matches(), replica.commit
        record = self._view.shards[number].record
        fresh = [node for node in voters if node not in record.voters]
        return all(matches.get(node, 0) >= commit - BEHIND_MAX for node in fresh)

    def _run(self, number: int, change: Callable[[ShardRecord], ShardRecord]) -> None:
        """Change the learners: no commit depends on them, so a refusal or a doubt only means to look again."""
        self._changing.add(number)

        async def run() -> None:
            try:
                if await self._election.swap(number, change):
                    record = self._view.shards[number].record
                    self._host.replicas[number].set_learners(record.learners)
                    self._host.poke(number)
            except TickwheelError as error:
                log.warning("changing learners: %s", error, extra={"shard": number})
            finally:
                self._changing.discard(number)

        self._election.spawn(run())

    def event(self, number: int, event: Event) -> None:
        """The new voters are caught up: the record may be changed. Or the leadership ended, and the change with it."""
        if isinstance(event, CasWanted):
            self._changing.add(number)
            self._election.spawn(self._change(number, event))
        elif number in self._changing and not self._host.replicas[number].leads:
            self._changing.discard(number)

    async def _change(self, number: int, wanted: CasWanted) -> None:
        """Until it is known how it ended: as long as it is not, commits need both sets of voters."""
        replica = self._host.replicas[number]
        outcome = Outcome.UNKNOWN
        while outcome is Outcome.UNKNOWN and replica.leads and replica.epoch == wanted.epoch:
            outcome = await self._try(number, wanted)
            if outcome is Outcome.UNKNOWN:
                await asyncio.sleep(RETRY_S)
        self._changing.discard(number)
        if replica.epoch == wanted.epoch:
            log.info("voters changed: %s", outcome.value, extra={"shard": number})
            replica.reconfigured(outcome)
            self._host.poke(number)

    async def _try(self, number: int, wanted: CasWanted) -> Outcome:
        """Swap the record. Where an earlier try succeeded unseen, the record says so."""

        def change(record: ShardRecord) -> ShardRecord:
            return replace(
                record, voters=wanted.voters, learners=wanted.learners, config=record.config + 1
            )

        record = self._view.shards[number].record
        if record.epoch == wanted.epoch and record.voters == wanted.voters:
            return Outcome.DONE
        if record.epoch != wanted.epoch or record.leader != self._me:
            return Outcome.REFUSED
        try:
            if await self._election.swap(number, change):
                return Outcome.DONE
        except OutcomeUnknown:
            return Outcome.UNKNOWN
        except TickwheelError as error:
            log.warning("changing voters: %s", error, extra={"shard": number})
            return Outcome.UNKNOWN
        return Outcome.UNKNOWN  # the record was not as it was read: look at it again
