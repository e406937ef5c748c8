"""What may happen next, and what the world looks like after it.

`options` lists the moves of a kind that are possible in a state; `after` carries one out. A call of another node comes
in three kinds: "call" (asked, carried out, answered at once), "half" (asked, carried out, the answer is still under
way or lost), "post" (the question itself is under way). What is under way may arrive in any order, twice, or never.
That a process pauses needs no move: any node may do nothing for any time while the others go on.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.model.rules import Rules
from tests.model.scopes import Scope
from tests.model.state import (
    Breach,
    Entry,
    Lead,
    Msg,
    Node,
    State,
    Txn,
    at,
    epoch_at,
)


class Move(NamedTuple):
    """One step: its kind and what it is about."""

    kind: str
    node: str = ""
    peer: str = ""
    how: str = ""
    first: int = 0
    many: int = 0
    voters: str = ""
    msg: Msg | None = None
    txn: Txn | None = None


Moves = Iterator[Move]


class LogMoves:
    """A scope under its rules: messages and the log."""

    def __init__(
        self, scope: Scope, broken: str = "", masked: frozenset[str] = frozenset()
    ) -> None:
        """`masked`: invariants that only restate the broken rule, left out so that its harm must show."""
        self.scope = scope
        self.names = scope.names
        self.broken = broken
        self.masked = masked
        self.rules: Rules = scope.rules(broken)
        self.kinds: dict[str, Callable[[State], Moves]] = {
            name.removeprefix("_may_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("_may_")
        }

    def start(self) -> State:
        """The first state."""
        return self.scope.start()

    def options(self, state: State, kind: str) -> list[Move]:
        """The moves of one kind."""
        return list(self.kinds[kind](state))

    def after(self, state: State, move: Move) -> State:
        """The state after the move; raises Breach where an invariant breaks in the move itself."""
        done: Callable[[State, Move], State] = getattr(self, f"_do_{move.kind}")
        return done(state, move)

    # --- helpers ---------------------------------------------------------------------------------

    def at(self, name: str) -> int:
        """The place of a node."""
        return at(self.names, name)

    def node(self, state: State, name: str) -> Node:
        """A node by its name."""
        return state.nodes[at(self.names, name)]

    def lead(self, state: State, name: str) -> Lead:
        """What the node keeps as a leader; it must be one."""
        lead = self.node(state, name).lead
        assert lead is not None
        return lead

    def put(self, state: State, name: str, node: Node) -> State:
        """The state with one node changed."""
        place = at(self.names, name)
        return state._replace(nodes=(*state.nodes[:place], node, *state.nodes[place + 1 :]))

    def put_lead(self, state: State, name: str, lead: Lead | None) -> State:
        """The state with one leader's memory changed."""
        return self.put(state, name, self.node(state, name)._replace(lead=lead))

    def put_live(self, state: State, name: str, live: bool) -> State:
        """The state with a session there or not; what rests on an older session of the node falls."""
        place = at(self.names, name)
        lives = (*state.live[:place], live, *state.live[place + 1 :])
        rec = state.rec._replace(held=False) if state.rec.leader == name else state.rec
        txns = tuple(t for t in state.txns if not (t.kind == "take" and t.by == name))
        return state._replace(live=lives, rec=rec, txns=txns)

    def living(self, state: State) -> Iterator[tuple[str, Node]]:
        """The nodes that exist."""
        for name, node in zip(self.names, state.nodes, strict=True):
            if not node.dead:
                yield name, node

    def leaders(self, state: State) -> Iterator[tuple[str, Node, Lead]]:
        """Those who lead, or believe that they do."""
        for name, node in self.living(state):
            if node.lead and node.lead.leading:
                yield name, node, node.lead

    @staticmethod
    def spend(state: State, what: str) -> State:
        """One less of a bounded thing."""
        left: int = getattr(state.budget, what)
        return state._replace(budget=state.budget._replace(**{what: left - 1}))

    # --- messages --------------------------------------------------------------------------------

    def post(self, state: State, msgs: tuple[Msg, ...]) -> State:
        """Put messages under way; those for which there is no room are lost."""
        for msg in msgs:
            if msg not in state.msgs and len(state.msgs) < self.scope.msgs_max:
                state = state._replace(msgs=tuple(sorted((*state.msgs, msg))))
        return state

    def vouch(self, state: State, msg: Msg) -> None:
        """L5: what an ack or a promise says is on disk when it leaves without waiting for an fsync."""
        node = self.node(state, msg.src)
        kept = node.disk.log[: msg.idx] == node.mem.log[: msg.idx]
        kept = kept and len(node.disk.log) >= msg.idx
        if msg.kind == "promise":
            kept = kept and node.disk.promise >= msg.epoch
        if not kept and "L5" not in self.masked:
            raise Breach("L5", f"{msg.src} answers {msg.kind} before its fsync")

    def take_in(self, state: State, msg: Msg, *, sync: bool) -> tuple[State, tuple[Msg, ...]]:
        """The receiver works on a message; its answers that may leave now."""
        node, answers = self.rules.receive(self.node(state, msg.dst), msg)
        early = {"ack_before_fsync": "ack", "promise_before_fsync": "promise"}.get(self.broken)
        now = tuple(a for a in answers if a.kind in {"heard", early})
        later = tuple(a for a in answers if a not in now)
        node = node._replace(owed=(*node.owed, *later))
        state = self.put(state, msg.dst, node)
        for answer in now:
            if answer.kind != "heard":
                self.vouch(state, answer)
        if sync and not now:
            state, now = self.sync(state, msg.dst)
        return state, now

    def sync(self, state: State, name: str) -> tuple[State, tuple[Msg, ...]]:
        """An fsync: what the process believes is on disk, and what waited for it may leave."""
        node = self.node(state, name)
        disk = node.mem
        if self.broken == "promise_volatile":
            disk = disk._replace(promise=max(1, epoch_at(disk.log, len(disk.log))))
        state = self.put(state, name, node._replace(disk=disk, owed=()))
        return state, node.owed

    def ask(self, state: State, msg: Msg, how: str) -> State:
        """A call in one of its three kinds."""
        if how == "post":
            return self.post(state, (msg,))
        state, answers = self.take_in(state, msg, sync=True)
        for answer in answers:
            if how == "half" or answer.dst != msg.src or answer.epoch != msg.epoch:
                state = self.post(state, (answer,))
            else:
                state, _ = self.take_in(state, answer, sync=False)
        return state

    def _may_deliver(self, state: State) -> Moves:
        for msg in state.msgs:
            if not self.node(state, msg.dst).dead:
                yield Move("deliver", how="last", msg=msg)
                yield Move("deliver", how="and again", msg=msg)

    def _do_deliver(self, state: State, move: Move) -> State:
        assert move.msg is not None
        if move.how == "last":
            state = self._do_drop(state, move)
        state, answers = self.take_in(state, move.msg, sync=False)
        return self.post(state, answers)

    def _may_drop(self, state: State) -> Moves:
        for msg in state.msgs:
            yield Move("drop", msg=msg)

    def _do_drop(self, state: State, move: Move) -> State:
        return state._replace(msgs=tuple(m for m in state.msgs if m != move.msg))

    def _may_fsync(self, state: State) -> Moves:
        for name, node in self.living(state):
            if node.disk != node.mem or node.owed:
                yield Move("fsync", name)

    def _do_fsync(self, state: State, move: Move) -> State:
        state, answers = self.sync(state, move.node)
        return self.post(state, answers)

    # --- the log ---------------------------------------------------------------------------------

    def _may_propose(self, state: State) -> Moves:
        for name, node, lead in self.leaders(state):
            if not self.rules.serving(lead) or len(node.mem.log) >= self.scope.log_max:
                continue
            written = {entry.kind for entry in node.mem.log}
            for kind in self.scope.kinds:
                if kind == "w" or kind not in written:  # decide sees what was cancelled or started
                    yield Move("propose", name, how=kind)

    def _do_propose(self, state: State, move: Move) -> State:
        node = self.node(state, move.node)
        entry = Entry(self.lead(state, move.node).epoch, move.how, move.node)
        mem = node.mem._replace(log=(*node.mem.log, entry))
        return self.written(self.put(state, move.node, node._replace(mem=mem)), move.node)

    def written(self, state: State, name: str) -> State:
        """A leader's own write: synced later, by a move of its own, or at once in a coarse scope."""
        return self.sync(state, name)[0] if self.scope.coarse else state

    def _may_append(self, state: State) -> Moves:
        for name, node, lead in self.leaders(state):
            for peer, _ in self.living(state):
                if peer == name or peer in self.scope.deaf:
                    continue
                for first, count in self._spans(node, lead.match[self.at(peer)]):
                    for how in (
                        ("call",) if self.scope.coarse and self.scope.hold else self.scope.hows
                    ):
                        yield Move("append", name, peer, how, first, count)

    def _spans(self, node: Node, match: int) -> set[tuple[int, int]]:
        """Which entries to send, (first, how many): from the match or the end on, one or all, or none."""
        size, base = len(node.mem.log), node.mem.base
        first = max(base, match)
        if self.scope.coarse:
            return {
                (first, size - first),
                (first, size - first if self.scope.hold else min(1, size - first)),
            }
        firsts = {first, max(base, size - 1)}
        return {(f, count) for f in firsts for count in (min(1, size - f), size - f)}

    def _do_append(self, state: State, move: Move) -> State:
        node, lead = self.node(state, move.node), self.lead(state, move.node)
        log = node.mem.log
        msg = Msg(
            "append", move.node, move.peer, lead.epoch, move.first, epoch_at(log, move.first),
            log[move.first : move.first + move.many], lead.commit,
            life=lead.lives[self.at(move.peer)],
        )  # fmt: skip
        return self.ask(state, msg, move.how)

    def _may_snap(self, state: State) -> Moves:
        for name, _, lead in self.leaders(state):
            if not state.budget.snap or not self.rules.serving(lead):
                return
            for peer, _ in self.living(state):
                for how in self.scope.hows if peer != name else ():
                    yield Move("snap", name, peer, how, lead.commit)

    def _do_snap(self, state: State, move: Move) -> State:
        lead, node = self.lead(state, move.node), self.node(state, move.node)
        msg = Msg(
            "snap", move.node, move.peer, lead.epoch, move.first,
            entries=node.mem.log[: move.first], commit=move.first,
            life=lead.lives[self.at(move.peer)],
        )  # fmt: skip
        return self.ask(self.spend(state, "snap"), msg, move.how)

    def _may_compact(self, state: State) -> Moves:
        for name, node in self.living(state):
            known = node.lead.commit if node.lead else node.commit
            if node.mem.base < known <= self.rules.synced(node):
                yield Move("compact", name, first=known)

    def _do_compact(self, state: State, move: Move) -> State:
        node = self.node(state, move.node)
        mem, disk = node.mem._replace(base=move.first), node.disk._replace(base=move.first)
        return self.put(state, move.node, node._replace(mem=mem, disk=disk))

    def _may_commit(self, state: State) -> Moves:
        for name, node, _ in self.leaders(state):
            index = self.rules.can_commit(node, name)
            if index:
                yield Move("commit", name, first=index)

    def _do_commit(self, state: State, move: Move) -> State:
        node, lead = self.node(state, move.node), self.lead(state, move.node)
        lead = lead._replace(commit=move.first)
        state = self.put(state, move.node, node._replace(commit=move.first, lead=lead))
        return self.remember(state, lead.epoch, node.mem.log[: move.first])

    def remember(self, state: State, epoch: int, prefix: tuple[Entry, ...]) -> State:
        """The observer notes a committed prefix and holds it against all it knows."""
        ghost = state.ghost
        known = ghost.committed
        size = min(len(known), len(prefix))
        if known[:size] != prefix[:size]:
            raise Breach("L4", "two committed prefixes differ")
        longest = known if len(known) > len(prefix) else prefix
        for name, node, lead in self.leaders(state):
            if lead.epoch > epoch and node.mem.log[: len(prefix)] != prefix:
                raise Breach(
                    "L4", f"leader {name} of epoch {lead.epoch} lacks what epoch {epoch} commits"
                )
        sizes = dict(ghost.by_epoch)
        sizes[epoch] = max(sizes.get(epoch, 0), len(prefix))
        by_epoch = tuple(sorted(sizes.items()))
        return state._replace(ghost=ghost._replace(committed=longest, by_epoch=by_epoch))
