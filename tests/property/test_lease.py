"""At no moment may two nodes act, whatever is lost, late or doubled, whoever restarts, and however clocks drift.

A world without logs: who has promises of Qf voters leads at once. That is earlier than a replica would, so the lease is
tried harder. Every bug planted here must be found.
"""

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from tickwheel.server.lease import Holds, Rights
from tickwheel.server.message import Beat, BeatAcked, NodeId
from tickwheel.server.quorum import fence_quorum

SHARD = 3
STEPS = 800
RATES = (0.9995, 1.0, 1.0004)


class Fencing(NamedTuple):
    epoch: int
    released: bool


class Granted(NamedTuple):
    epoch: int


class Post(NamedTuple):
    sender: NodeId
    to: NodeId
    message: Fencing | Granted | Beat | BeatAcked


class Node:
    def __init__(self, name: NodeId, rng: Random) -> None:
        self.name = name
        self.rate = rng.choice(RATES)
        self.offset_ms = rng.randrange(5000)
        self.promised = 0

    def now_ms(self, world_ms: int) -> int:
        return int(world_ms * self.rate) + self.offset_ms

    def start(self, world_ms: int) -> None:
        """Promises are on disk; what was said to leaders is not."""
        now_ms = self.now_ms(world_ms)
        self.holds, self.rights = Holds(now_ms), Rights(self.name, now_ms)
        self.holds.promised(SHARD, self.promised)
        self.fencing: Fencing | None = None
        self.grants: set[NodeId] = set()
        self.leads = 0


class World:
    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.world_ms = 0
        self.nodes = [
            Node(name, self.rng) for name in "abcde"[: self.rng.choice((1, 2, 3, 3, 3, 3, 4, 5))]
        ]
        self.configs = (tuple(node.name for node in self.nodes),)
        self.by_name = {node.name: node for node in self.nodes}
        self.posts: list[Post] = []
        self.pauses_ms = self.rng.choice(((0, 2, 8), (0, 5, 20)))
        self.cut: set[NodeId] = set()
        self.epoch, self.released = 0, True
        self.acted: set[int] = set()
        for node in self.nodes:
            node.start(0)
        self.world_ms = self.rng.choice((0, 2000))

    def run(self) -> str:
        for _ in range(STEPS):
            self.world_ms += self.rng.choice(self.pauses_ms)
            self.rng.choices(
                (
                    self.deliver,
                    self.beat,
                    self.take_over,
                    self.ask,
                    self.restart,
                    self.release,
                    self.cut_off,
                ),
                (70, 6, 0.5, 3, 1.2, 0.4, 0.6),
            )[0]()
            acting = [node for node in self.nodes if self.acts(node)]
            self.acted.update(node.leads for node in acting)
            if len(acting) > 1:
                return f"{[(node.name, node.leads) for node in acting]} act at {self.world_ms}"
        return ""

    def acts(self, node: Node) -> bool:
        until_ms = node.rights.until_ms(SHARD, self.configs)
        return node.leads > 0 and node.now_ms(self.world_ms) < until_ms

    def any_node(self) -> Node:
        return self.rng.choice(self.nodes)

    def take_over(self) -> None:
        node = self.any_node()
        self.epoch += 1
        node.fencing, node.grants = Fencing(self.epoch, self.released), set()
        self.follow(node)
        self.released = False
        self.fence(node)

    def ask(self) -> None:
        for node in self.nodes:
            self.fence(node)

    def fence(self, node: Node) -> None:
        if node.fencing is not None:
            for peer in self.nodes:
                if peer is node:
                    self.fenced(node, node.name, node.fencing)
                elif peer.name not in node.grants:
                    self.posts.append(Post(node.name, peer.name, node.fencing))

    def follow(self, node: Node) -> None:
        node.leads = 0
        node.rights.leave(SHARD)

    def fenced(self, node: Node, sender: NodeId, fencing: Fencing) -> None:
        epoch = fencing.epoch
        if epoch > node.promised:
            now_ms = node.now_ms(self.world_ms)
            if node.holds.wait_ms(SHARD, epoch, now_ms, released=fencing.released):
                return
            self.follow(node)
            node.promised = epoch
            node.holds.promised(SHARD, epoch)
        if epoch == node.promised:
            self.posts.append(Post(node.name, sender, Granted(epoch)))

    def granted(self, node: Node, sender: NodeId, epoch: int) -> None:
        if node.fencing is None or node.fencing.epoch != epoch or node.promised > epoch:
            return
        node.grants.add(sender)
        if node.name in node.grants and len(node.grants) >= fence_quorum(len(self.nodes)):
            node.fencing = None
            node.leads = epoch
            node.rights.lead(SHARD, epoch)

    def release(self) -> None:
        """A leader stops and says so; or a candidate that never led says so too."""
        for node in self.nodes:
            stands = node.fencing is not None and node.fencing.epoch == self.epoch
            if self.epoch and (node.leads == self.epoch or stands):
                self.follow(node)
                node.fencing = None
                self.released = True

    def cut_off(self) -> None:
        """A node is alone, or all hear each other again."""
        self.cut = set() if self.cut else {self.any_node().name}

    def restart(self) -> None:
        self.any_node().start(self.world_ms)

    def beat(self) -> None:
        """Everybody beats, leader or not; a leader more often."""
        node = self.any_node()
        leading = [node for node in self.nodes if node.leads]
        if leading and self.rng.random() < 0.8:
            node = self.rng.choice(leading)
        beat = node.rights.beat(node.now_ms(self.world_ms), 0)
        self.posts += [Post(node.name, peer.name, beat) for peer in self.nodes if peer is not node]

    def deliver(self) -> None:
        if not self.posts:
            return
        place = 0 if self.rng.random() < 0.7 else self.rng.randrange(len(self.posts))
        post = self.posts[place]
        if self.rng.random() > 0.05:
            del self.posts[place]
        if post.to != post.sender and {post.to, post.sender} & self.cut:
            return
        node = self.by_name[post.to]
        match post.message:
            case Fencing():
                self.fenced(node, post.sender, post.message)
            case Granted(epoch):
                self.granted(node, post.sender, epoch)
            case Beat():
                ack = node.holds.beat(post.message, node.now_ms(self.world_ms))
                self.posts.append(Post(node.name, post.sender, ack))
            case BeatAcked():
                node.rights.acked(post.sender, post.message)


def test_no_two_nodes_act() -> None:
    acted = contested = 0
    for seed in range(400):
        world = World(seed)
        assert world.run() == "", f"seed {seed}"
        acted += len(world.acted)
        contested += len(world.acted) > 1
    assert acted > 300, "leaders did act, or nothing was tried"
    assert contested > 60, "and were followed by others that acted"


# --- bugs made on purpose --------------------------------------------------------------------


def _no_hold() -> Any:
    def none(*_: object, **__: object) -> int:
        return 0

    return patch.object(Holds, "wait_ms", none)


def _restart_forgets() -> Any:
    start = Holds.__init__

    def awake(holds: Holds, started_ms: int) -> None:
        start(holds, started_ms)
        holds._waking_ms = 0

    return patch.object(Holds, "__init__", awake)


def _fences_are_forgotten() -> Any:
    """Neither that a voter was asked nor that it promised changes whom it acks."""
    wait_ms = Holds.wait_ms

    def careless(holds: Holds, shard: int, epoch: int, now_ms: int, *, released: bool) -> int:
        waiting_ms = wait_ms(holds, shard, epoch, now_ms, released=released)
        holds._asked.clear()
        return waiting_ms

    def deaf(*_: object) -> None:
        pass

    return patch.multiple(Holds, wait_ms=careless, promised=deaf)


def _counted_from_the_ack() -> Any:
    """As if the beat had been sent when its ack came, which may be much later."""
    start = Rights.__init__

    def late(rights: Rights, me: NodeId, started_ms: int) -> None:
        start(rights, me, started_ms)
        rights._covered_ms += 500

    return patch.object(Rights, "__init__", late)


def _refusals_are_ignored() -> Any:
    acked = Rights.acked

    def deaf(rights: Rights, peer: NodeId, ack: BeatAcked) -> None:
        acked(rights, peer, ack._replace(refused=()))

    return patch.object(Rights, "acked", deaf)


def _acks_of_old_beats_count() -> Any:
    lead = Rights.lead

    def at_once(rights: Rights, shard: int, epoch: int) -> None:
        lead(rights, shard, epoch)
        rights._terms[shard] = rights._terms[shard]._replace(after_ms=0)

    return patch.object(Rights, "lead", at_once)


def _minority_is_enough() -> Any:
    return patch("tickwheel.server.lease.reached", max)


MUTANTS: dict[str, Callable[[], Any]] = {
    "no hold": _no_hold,
    "a restart forgets what was held": _restart_forgets,
    "holds do not learn of fences": _fences_are_forgotten,
    "counted from the ack": _counted_from_the_ack,
    "refusals are ignored": _refusals_are_ignored,
    "acks of beats from before the leadership count": _acks_of_old_beats_count,
    "a minority is enough": _minority_is_enough,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_found(name: str) -> None:
    with MUTANTS[name]():
        assert any(World(seed).run() for seed in range(2500)), "the world is too kind"
