"""A shard's replicas on a bad day: everything that `server/replica.py` and `server/lease.py` must survive, from a seed.

    python -m tests.sim.logs --seeds 0-999          a campaign; the exit code is 1 if a seed was wrong
    python -m tests.sim.logs --seeds 17-17 --show   one seed, step by step

Four nodes, a record that changes by compare-and-swap, a bag of messages that are delivered in any order, twice or
never, journals whose unsynced end a crash takes, clocks that drift. Leaderships change at any moment, whether or not
the last leader is gone, because the log must not depend on time; only the right to act does, and that is checked too.

What is checked, by looking from outside: see `log_judge.Judge`.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from random import Random
from typing import NamedTuple

from tests.sim.log_judge import SHARD, Batch, Flight, Judge, Node, Snapshot, Swap, Wrong, end_of

from tickwheel.server import record as framing
from tickwheel.server.errors import LogBroken
from tickwheel.server.message import Beat, BeatAcked, LogEntry, Message, NodeId
from tickwheel.server.record import RecordType
from tickwheel.server.replica import (
    CasWanted,
    Event,
    FenceFailed,
    Leadership,
    Leading,
    Outcome,
    Output,
    Released,
    ReplicaOptions,
    Role,
    SnapshotWanted,
    SteppedDown,
)

NAMES = "abcd"
STEPS = 500
BAG_MAX = 60
HEAL_ROUNDS_MAX = 1500
OPTIONS = (
    ReplicaOptions(),
    ReplicaOptions(
        append_bytes_max=150, probe_bytes_max=80, window_bytes_max=300, tail_bytes_max=200,
        snapshot_tail_bytes_max=2000, probe_ms=200, ack_ms=300, snapshot_ms=2000,
    ),
    ReplicaOptions(
        append_bytes_max=70, probe_bytes_max=70, window_bytes_max=140, tail_bytes_max=0,
        snapshot_tail_bytes_max=0, probe_ms=100, ack_ms=200, snapshot_ms=500,
    ),
)  # fmt: skip


class World:
    """The nodes, what is between them, and the record."""

    def __init__(self, seed: int, *, show: bool = False) -> None:
        self.rng = Random(seed)
        self.show = show
        self.judge = Judge()
        self.marks: Counter[str] = Counter()
        self.world_ms = 0
        self.steps = 0
        self.bag: list[Flight] = []
        self.swaps: list[Swap] = []
        options = self.rng.choice(OPTIONS)
        self.nodes = [Node(name, options, self.rng) for name in NAMES]
        self.by_name = {node.name: node for node in self.nodes}
        voters = tuple(NAMES[: self.rng.choice((1, 2, 3, 3, 3, 4))])
        self.record = Leadership(0, "", voters, released=True)
        profile = self.rng.choice(PROFILES)
        self.pauses_ms = (
            (0, 0, 1, 2, 5, 20) if profile is PROFILES[-1] else (0, 0, 0, 1, 3, 10, 40, 120)
        )
        self.happenings, self.weights = list(profile), list(accumulate(profile.values()))
        self.record_life = 0
        self.revision = 1
        self.proposed = 0
        for node in self.nodes:
            node.start(node.now_ms(0))

    def say(self, text: str) -> None:
        """For --show."""
        if self.show:
            print(f"{self.steps:5} {self.world_ms:7} {text}")  # noqa: T201

    # --- one node's turn ---

    def turn(self, node: Node) -> None:
        """What a driver does with the Output."""
        replica = node.replica
        rounds = 0
        while replica.ready:
            rounds += 1
            assert rounds < 1000, "it never ends"
            commit = replica.commit
            out = replica.take()
            if replica.commit > commit:
                self.judge.commits(node, self.nodes)
            if out:
                self.carry_out(node, out)

    def carry_out(self, node: Node, out: Output) -> None:
        """In the order of `turn`."""
        replica = node.replica
        if replica.role == Role.STARTING:
            self.judge.started(node)
        if out.records:
            self.journal(node, out)
        else:
            assert not out.synced, "nothing is written that it could wait for"
        for to, message in out.now:
            self.send(node, to, message)
        if out.committed:
            self.judge.handed_out(node, out.committed)
            assert out.committed[0].index == end_of(node.state)[0] + 1
            node.state += out.committed
            replica.applied(out.committed[-1].index)
        for event in out.events:
            self.say(f"{node.name}: {event}")
            self.marks[type(event).__name__] += 1
            self.event(node, event)

    def journal(self, node: Node, out: Output) -> None:
        """Queue records for the disk."""
        self.judge.journaled(node, out.records, node.replica._log)
        for one in out.records:
            self.marks[one.type.name] += 1
            self.say(f"{node.name}: writes {one.type.name} ({one.index}, {one.epoch})")
        based = any(one.type is RecordType.SNAPSHOT_BASE for one in out.records)
        base = tuple(node.state) if based else None
        node.unsynced.append(Batch(out.mark, out.records, out.synced, base))

    def event(self, node: Node, event: Event) -> None:
        """What `elect` and its like do."""
        match event:
            case Leading(epoch):
                node.rights.lead(SHARD, epoch)
            case SteppedDown():
                node.rights.leave(SHARD)
                node.wanted = None
            case Released(epoch):
                node.rights.leave(SHARD)
                self.give_up(node, epoch, released=True)
            case FenceFailed(epoch):
                self.give_up(node, epoch, released=self.rng.random() < 0.5)
            case SnapshotWanted(peer):
                self.bag.append(Flight(node.name, peer, Snapshot(tuple(node.state))))
            case CasWanted():
                node.wanted = event

    def send(self, node: Node, to: NodeId, message: Message) -> None:
        """Into the bag."""
        self.judge.leaves(node, message, self.nodes)
        self.bag.append(Flight(node.name, to, message))

    def sync(self, node: Node, count: int) -> None:
        """The disk has so many batches more."""
        batches, node.unsynced = node.unsynced[:count], node.unsynced[count:]
        for batch in batches:
            self.onto_disk(node, batch)
            for to, message in batch.synced:
                self.send(node, to, message)
        if batches:
            node.replica.persisted(batches[-1].mark)
            self.turn(node)

    def onto_disk(self, node: Node, batch: Batch) -> None:
        """One batch becomes durable."""
        node.journal += batch.records
        if batch.base is not None:
            node.flushed = batch.base
        for one in batch.records:
            if one.type is RecordType.PROMISE:
                node.promised_on_disk = one.epoch

    def deliver(self, flight: Flight) -> None:
        """A message arrives, if anyone is there."""
        node = self.by_name[flight.to]
        if not node.alive:
            return
        now_ms, message = node.now_ms(self.world_ms), flight.message
        self.say(f"{flight.sender} -> {node.name}: {message}")
        self.marks[type(message).__name__] += 1
        match message:
            case Beat():
                self.bag.append(Flight(node.name, flight.sender, node.holds.beat(message, now_ms)))
            case BeatAcked():
                node.rights.acked(flight.sender, message)
            case Snapshot(state):
                self.install(node, state, flight.sender)
            case _:
                node.replica.receive(flight.sender, message, now_ms)
        self.turn(node)

    def install(self, node: Node, state: tuple[LogEntry, ...], giver: str) -> None:
        """A snapshot is put in place."""
        if not node.replica.installing(end_of(state)[0]):
            return
        if self.rng.random() < 0.1:
            node.replica.install_failed()
            return
        node.state = list(state)
        node.replica.snapshot_installed(*end_of(state), giver)
        self.marks["installed"] += 1

    # --- the record ---

    def write(self, new: Leadership) -> None:
        """The record changes."""
        self.record = new
        self.revision += 1
        self.say(f"record {self.revision}: {new}")

    def take_over(self, node: Node) -> None:
        """A voter wins the record, whatever the last leader does."""
        old = self.record
        voters = old.voters
        shrunk = len(voters) == 2 and self.rng.random() < 0.5
        if shrunk:
            voters = (node.name,)
            self.marks["shrunk"] += 1
        released = old.released and not old.leader
        self.write(
            old._replace(
                epoch=old.epoch + 1,
                leader=node.name,
                voters=voters,
                released=released,
                shrunk=shrunk,
            )
        )
        self.record_life = node.life

    def give_up(self, node: Node, epoch: int, *, released: bool) -> None:
        """A leader takes its name out of the record."""
        if (self.record.epoch, self.record.leader) == (epoch, node.name):
            self.write(self.record._replace(leader="", released=released))

    def tell(self, node: Node) -> None:
        """A node sees the record."""
        if not self.record.epoch:
            return
        now_ms = node.now_ms(self.world_ms)
        if self.record.leader != node.name:
            node.replica.following(self.record, now_ms)
        elif self.record_life == node.life:
            if node.replica.epoch < self.record.epoch:
                node.revision = self.revision
            node.replica.led(self.record, now_ms)
        self.turn(node)

    def swap_voters(self, node: Node) -> None:
        """Carry out CasWanted: done, refused, or nobody knows (done all the same, or later, or never)."""
        wanted = node.wanted
        assert wanted is not None
        new = self.record._replace(voters=wanted.voters, learners=wanted.learners)
        if (self.record.epoch, self.record.voters) == (wanted.epoch, wanted.voters):
            outcome = Outcome.DONE
        elif self.revision != node.revision:
            outcome = Outcome.REFUSED
        else:
            outcome = self.rng.choice((Outcome.DONE, Outcome.UNKNOWN, Outcome.UNKNOWN))
            if outcome is Outcome.DONE or self.rng.random() < 0.5:
                self.write(new)
            else:
                self.swaps.append(Swap(node.revision, new))
        self.marks[f"swap {outcome.value}"] += 1
        if outcome is not Outcome.UNKNOWN:
            node.revision = self.revision
            node.wanted = None
        node.replica.reconfigured(outcome)
        self.turn(node)

    def land(self, swap: Swap) -> None:
        """A late compare-and-swap reaches the record."""
        if self.revision == swap.revision:
            self.marks["late swap"] += 1
            self.write(swap.new)

    # --- what may happen ---

    def step(self) -> None:
        """One thing happens."""
        self.steps += 1
        self.world_ms += self.rng.choice(self.pauses_ms)
        self.rng.choices(self.happenings, cum_weights=self.weights)[0](self)
        self.judge.acting(self.nodes, self.world_ms)

    def living(self) -> Node | None:
        """Any living node."""
        living = [node for node in self.nodes if node.alive]
        return self.rng.choice(living) if living else None

    def leading(self) -> Node | None:
        """Any node that thinks it leads."""
        leading = [node for node in self.nodes if node.alive and node.replica.leads]
        return self.rng.choice(leading) if leading else None

    def happen_deliver(self) -> None:
        if not self.bag:
            return
        place = self.rng.randrange(len(self.bag))
        if self.rng.random() < 0.5:
            place = 0
        flight = self.bag[place]
        if self.rng.random() > 0.1:  # else it stays, and comes again
            del self.bag[place]
        while len(self.bag) > BAG_MAX:
            del self.bag[self.rng.randrange(len(self.bag))]
        self.deliver(flight)

    def happen_loss(self) -> None:
        if self.bag:
            del self.bag[self.rng.randrange(len(self.bag))]

    def happen_sync(self) -> None:
        waiting = [node for node in self.nodes if node.alive and node.unsynced]
        if waiting:
            node = self.rng.choice(waiting)
            self.sync(node, self.rng.randint(1, len(node.unsynced)))

    def happen_tick(self) -> None:
        if (node := self.living()) is not None:
            node.replica.tick(node.now_ms(self.world_ms))
            self.turn(node)

    def happen_beat(self) -> None:
        if (node := self.living()) is not None:
            beat = node.rights.beat(node.now_ms(self.world_ms), 0)
            for name in NAMES:
                if name != node.name:
                    self.bag.append(Flight(node.name, name, beat))

    def happen_propose(self) -> None:
        if (node := self.leading()) is not None and node.replica.accepts:
            for _ in range(self.rng.choice((1, 1, 2, 6))):
                self.proposed += 1
                node.replica.propose(f"{self.proposed}".encode())
            self.turn(node)

    def happen_take_over(self) -> None:
        living = [self.by_name[name] for name in self.record.voters if self.by_name[name].alive]
        if living:
            node = self.rng.choice(living)
            self.take_over(node)
            if self.rng.random() < 0.9:
                self.tell(node)

    def happen_tell(self) -> None:
        if (node := self.living()) is not None:
            self.tell(node)

    def happen_crash(self) -> None:
        if (node := self.living()) is not None:
            self.crash(node)

    def happen_bounce(self) -> None:
        """A crash, and at once a new life."""
        if (node := self.living()) is not None:
            self.crash(node)
            self.begin(node)

    def crash(self, node: Node) -> None:
        """What was not synced may be lost, from some batch on."""
        self.say(f"{node.name} crashes")
        survive = self.rng.randint(0, len(node.unsynced))
        for batch in node.unsynced[:survive]:
            self.onto_disk(node, batch)
        node.unsynced = []
        node.alive = False
        self.marks["crash"] += 1

    def happen_start(self) -> None:
        dead = [node for node in self.nodes if not node.alive]
        if dead:
            self.begin(self.rng.choice(dead))

    def begin(self, node: Node) -> None:
        """A new life."""
        self.say(f"{node.name} starts")
        node.start(node.now_ms(self.world_ms))
        self.turn(node)

    def happen_flush(self) -> None:
        """The store is flushed, and the journal's oldest records go."""
        if (node := self.living()) is None:
            return
        if any(batch.base is not None for batch in node.unsynced):
            return
        node.flushed = tuple(node.state)
        through, count = end_of(node.flushed)[0], 0
        while count < len(node.journal):
            one = node.journal[count]
            if one.type is RecordType.ENTRY and one.index > through:
                break
            count += 1
        count = self.rng.randint(0, count)
        marks = {SHARD: node.mark}
        framing.advance(marks, node.journal[:count])
        node.mark = marks[SHARD]
        del node.journal[:count]

    def happen_reconfigure(self) -> None:
        node = self.leading()
        if node is None or not node.replica.accepts or len(node.replica.configs) > 1:
            return
        names = [name for name in NAMES if name == node.name or self.rng.random() < 0.6]
        learners = [name for name in NAMES if name not in names and self.rng.random() < 0.5]
        if (tuple(names),) == node.replica.configs:
            node.replica.set_learners(learners)
        else:
            self.say(f"{node.name}: to voters {names}")
            node.replica.reconfigure(names, learners)
        self.turn(node)

    def happen_swap(self) -> None:
        wanting = [node for node in self.nodes if node.alive and node.wanted is not None]
        if wanting:
            self.swap_voters(self.rng.choice(wanting))

    def happen_late_swap(self) -> None:
        if self.swaps:
            self.land(self.swaps.pop(self.rng.randrange(len(self.swaps))))

    def happen_abandon(self) -> None:
        if (node := self.leading()) is not None:
            self.marks["abandoned"] += node.replica.abandon_reconfigure()
            self.turn(node)

    def happen_release(self) -> None:
        if (node := self.leading()) is not None and node.replica.accepts:
            node.replica.release()
            self.turn(node)

    def happen_link(self) -> None:
        """A connection breaks and is made again."""
        if (node := self.living()) is not None:
            peer = self.rng.choice(NAMES)
            node.replica.disconnected(peer)
            self.turn(node)
            node.replica.connected(peer)
            self.turn(node)

    # --- afterwards ---

    def heal(self) -> None:
        """Everything works again: the shard must become whole."""
        self.say("heal")
        self.bag = []
        for node in self.nodes:
            if not node.alive:
                self.begin(node)
        lost_ms, goal = self.world_ms, None
        for _ in range(HEAL_ROUNDS_MAX):
            self.steps += 1
            self.world_ms += 50
            self.calm_round()
            leader = self.by_name.get(self.record.leader)
            if leader is not None and leader.replica.leads:
                lost_ms = self.world_ms
                settled = leader.replica.accepts and len(leader.replica.configs) == 1
                if settled and goal is None and leader.acts(self.world_ms):
                    goal = leader.replica.propose(b"the last one"), self.record.epoch
                    self.turn(leader)
            elif self.world_ms - lost_ms > 4_000:
                lost_ms, goal = self.world_ms, None
                voter = self.by_name[self.rng.choice(self.record.voters)]
                self.take_over(voter)
            if goal is not None and self.whole(goal):
                return
        raise Wrong("liveness: the shard did not become whole again")

    def whole(self, goal: tuple[int, int]) -> bool:
        voters = [self.by_name[name] for name in self.record.voters]
        return all(end_of(node.state) >= goal for node in voters)

    def calm_round(self) -> None:
        """Everything that is under way arrives; some time passes."""
        beating = self.steps % 4 == 0
        for node in self.nodes:
            self.tell(node)
            node.replica.tick(node.now_ms(self.world_ms))
            self.turn(node)
            if node.wanted is not None:
                self.swap_voters(node)
            if beating:
                beat = node.rights.beat(node.now_ms(self.world_ms), 0)
                self.bag += [Flight(node.name, to, beat) for to in NAMES if to != node.name]
        while self.bag or any(node.unsynced for node in self.nodes):
            bag, self.bag = self.bag, []
            for flight in bag:
                self.deliver(flight)
            for node in self.nodes:
                self.sync(node, len(node.unsynced))
        self.judge.acting(self.nodes, self.world_ms)


Odds = dict[Callable[[World], None], float]

_ODDS: Odds = {
    World.happen_deliver: 50,
    World.happen_sync: 20,
    World.happen_tick: 8,
    World.happen_beat: 3,
    World.happen_propose: 8,
    World.happen_tell: 3,
    World.happen_take_over: 1.2,
    World.happen_loss: 2,
    World.happen_crash: 0.8,
    World.happen_bounce: 0.5,
    World.happen_start: 1.5,
    World.happen_flush: 2,
    World.happen_reconfigure: 1,
    World.happen_swap: 3,
    World.happen_late_swap: 1,
    World.happen_abandon: 0.2,
    World.happen_release: 0.3,
    World.happen_link: 1,
}
PROFILES: tuple[Odds, ...] = (
    _ODDS,
    # the log: many leaderships that get nowhere, nothing else
    _ODDS | {World.happen_beat: 0.3, World.happen_take_over: 3, World.happen_reconfigure: 0.2},
    # voters that change all the time
    _ODDS | {World.happen_reconfigure: 5, World.happen_swap: 6, World.happen_late_swap: 2, World.happen_beat: 0.5,
             World.happen_tick: 12},
    # the lease: leaderships that act, and are contested
    _ODDS | {World.happen_beat: 4, World.happen_deliver: 90, World.happen_sync: 30, World.happen_propose: 0.5,
             World.happen_crash: 0.1, World.happen_bounce: 1.5, World.happen_flush: 0, World.happen_loss: 0,
             World.happen_reconfigure: 0.2, World.happen_release: 0.6, World.happen_link: 0.1},
)  # fmt: skip


class Verdict(NamedTuple):
    """What a seed showed. `wrong` is empty if every rule held."""

    seed: int
    wrong: str
    committed: int
    marks: Counter[str]


def run_seed(seed: int, *, steps: int = STEPS, show: bool = False) -> Verdict:
    """One bad day."""
    world = World(seed, show=show)
    wrong = ""
    try:
        for _ in range(steps):
            world.step()
        world.heal()
    except Wrong as error:
        wrong = str(error)
    except LogBroken as error:
        wrong = f"own check {error.metadata['rule']}: {error}"
    except AssertionError as error:
        wrong = f"assertion: {error}"
    for node in world.nodes:
        for kind, count in node.replica.ignored.items():
            world.marks[f"ignored {kind}"] += count
    return Verdict(seed, wrong, len(world.judge.committed), world.marks)


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="replicas of a shard on many bad days")
    parser.add_argument("--seeds", default="0-199", help="FIRST-LAST")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args(arguments)
    first, last = map(int, options.seeds.split("-"))
    marks: Counter[str] = Counter()
    wrong = committed = 0
    for seed in range(first, last + 1):
        verdict = run_seed(seed, steps=options.steps, show=options.show)
        marks += verdict.marks
        committed += verdict.committed
        if verdict.wrong:
            wrong += 1
            print(f"seed {seed}: {verdict.wrong}")  # noqa: T201
    print(f"{last - first + 1} seeds, {wrong} wrong, {committed} entries committed")  # noqa: T201
    print(", ".join(f"{name} {count}" for name, count in sorted(marks.items())))  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
