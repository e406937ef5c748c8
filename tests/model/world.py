"""All moves together: time, the right to fire, what is sent, and the faults of machines."""

from tests.model.etcd_moves import EtcdMoves
from tests.model.log_moves import Move, Moves
from tests.model.state import NOBODY, Breach, Disk, Log, Msg, Node, State


class World(EtcdMoves):
    """The whole model of one shard."""

    # --- time --------------------------------------------------------------------------------------

    def _may_tick(self, state: State) -> Moves:
        if self.scope.hold and self._runs(state):
            yield Move("tick")

    @staticmethod
    def _runs(state: State) -> bool:
        """Is there anything that time wears off?"""
        leads = any(node.lead and any(node.lead.left) for node in state.nodes)
        aged = any(msg.kind in {"beat", "heard"} for msg in state.msgs)
        return leads or aged or any(node.hold for node in state.nodes)

    def _do_tick(self, state: State, move: Move) -> State:
        assert move.kind == "tick"
        return self.pass_time(state, self.names)

    def pass_time(self, state: State, names: str) -> State:
        """A tick on the clocks of these nodes."""
        nodes = tuple(
            self._older(node) if name in names else node
            for name, node in zip(self.names, state.nodes, strict=True)
        )
        msgs: list[Msg] = []
        for msg in state.msgs:
            clock = {"beat": msg.src, "heard": msg.dst}.get(msg.kind, "")
            aged = msg._replace(age=msg.age + 1) if clock and clock in names else msg
            if aged.age < self.scope.hold:
                msgs.append(aged)
        return state._replace(nodes=nodes, msgs=tuple(sorted(msgs)))

    @staticmethod
    def _older(node: Node) -> Node:
        lead = node.lead
        if lead and any(lead.left):
            lead = lead._replace(left=tuple(max(0, left - 1) for left in lead.left))
        return node._replace(hold=max(0, node.hold - 1), lead=lead)

    def _may_skew(self, state: State) -> Moves:
        if not (self.scope.hold and state.budget.skew and self._runs(state)):
            return
        for name, node in self.living(state):
            yield Move("skew", name, how="slow" if node.fast else "fast")

    def _do_skew(self, state: State, move: Move) -> State:
        """One clock ticks alone, or all but one; none is ever more than one tick off its share."""
        fast = move.how == "fast"
        others = "".join(name for name in self.names if name != move.node)
        state = self.pass_time(self.spend(state, "skew"), move.node if fast else others)
        return self.put(state, move.node, self.node(state, move.node)._replace(fast=fast))

    def _may_beat(self, state: State) -> Moves:
        for name, node in self.living(state):
            lead = node.lead
            if not self.scope.hold or lead is None:
                continue
            if lead.leading or self.broken == "early_heartbeat":
                for peer, _ in self.living(state):
                    for how in self.scope.hows if peer != name else ():
                        yield Move("beat", name, peer, how)

    def _do_beat(self, state: State, move: Move) -> State:
        msg = Msg("beat", move.node, move.peer, self.lead(state, move.node).epoch)
        return self.ask(state, msg, move.how)

    # --- what the right is for -----------------------------------------------------------------------

    def applied(self, state: State, name: str) -> Log:
        """What the leader has applied."""
        return self.node(state, name).mem.log[: self.lead(state, name).commit]

    def _may_fire(self, state: State) -> Moves:
        for name, node, lead in self.leaders(state):
            cancelled = any(entry.kind == "c" for entry in self.applied(state, name))
            if not cancelled and (lead.armed or self.rules.entitled(node, name)):
                yield Move("fire", name)

    def _do_fire(self, state: State, move: Move) -> State:
        epoch, ghost = self.lead(state, move.node).epoch, state.ghost
        if any(entry.kind == "c" for entry in ghost.committed):
            raise Breach("I4", f"{move.node} fires a job whose cancel was acknowledged")
        if epoch < ghost.fired:
            raise Breach("I8", f"{move.node} fires at epoch {epoch} after one of {ghost.fired}")
        return state._replace(ghost=ghost._replace(fired=epoch))

    def _may_arm(self, state: State) -> Moves:
        for name, node, lead in self.leaders(state):
            queues = self.broken == "check_when_queued" and not lead.armed
            if queues and self.rules.entitled(node, name):
                yield Move("arm", name)

    def _do_arm(self, state: State, move: Move) -> State:
        return self.put_lead(state, move.node, self.lead(state, move.node)._replace(armed=True))

    def _may_once(self, state: State) -> Moves:
        for name, node, lead in self.leaders(state):
            log = node.mem.log if self.broken == "start_uncommitted" else self.applied(state, name)
            for entry in log:
                own = entry.epoch == lead.epoch or self.broken == "start_sent_again"
                if entry.kind == "s" and own and not lead.sent:
                    yield Move("once", name)

    def _do_once(self, state: State, move: Move) -> State:
        ghost = state.ghost
        if ghost.once:
            raise Breach("I5", f"{move.node} sends an at-most-once request again")
        state = state._replace(ghost=ghost._replace(once=1))
        lead = self.lead(state, move.node)._replace(sent=True)
        return self.put_lead(state, move.node, lead)

    # --- faults --------------------------------------------------------------------------------------

    def _may_crash(self, state: State) -> Moves:
        if not state.budget.crash:
            return
        for name, node in self.living(state):
            yield Move("crash", name, how="tail lost")
            if node.mem != node.disk:
                yield Move("crash", name, how="tail kept")

    def _do_crash(self, state: State, move: Move) -> State:
        """The process dies and starts anew; its session stays in etcd until it expires or is revoked."""
        node = self.node(state, move.node)
        disk = node.mem if move.how == "tail kept" else node.disk
        return self.put(self.spend(state, "crash"), move.node, self._restarted(node, disk))

    def _restarted(self, node: Node, disk: Disk) -> Node:
        forgets = self.broken == "forget_hold"
        return Node(
            disk, disk, commit=disk.base, life=node.life + 1, fast=node.fast, mute=node.mute,
            mine=False, led=node.led, hold=0 if forgets else self.scope.hold, hold_epoch=NOBODY,
        )  # fmt: skip

    def _may_wipe(self, state: State) -> Moves:
        for name, _ in self.living(state):
            if state.budget.wipe:
                yield Move("wipe", name)

    def _do_wipe(self, state: State, move: Move) -> State:
        """A wiped disk: this store never comes back; what starts there has another name (one of the spares)."""
        node = self.node(state, move.node)._replace(dead=True, lead=None)
        return self.put(self.spend(state, "wipe"), move.node, node)

    def _may_lose(self, state: State) -> Moves:
        for name, _ in self.living(state):
            if state.budget.lose:
                yield Move("lose", name)

    def _do_lose(self, state: State, move: Move) -> State:
        """Its log has rotted. It reads the record's epoch, promises that, and is mute until it is re-seeded."""
        keeps = self.broken == "wiped_keeps_name"
        promise = 1 if keeps or self.broken == "reseed_forgets_promise" else state.rec.epoch
        node = self._restarted(self.node(state, move.node), Disk(promise))
        return self.put(self.spend(state, "lose"), move.node, node._replace(mute=not keeps))
