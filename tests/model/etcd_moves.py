"""Moves that concern etcd: sessions, take-over, change of voters, release; every compare-and-swap may be "late".

take     now    carried out and answered              late   under way: carried out at some later time, or never
cas      known  carried out (or refused), answered    lost   carried out, the answer lost       late   as above
release  now / late, as for take
"""

from tests.model.log_moves import LogMoves, Move, Moves
from tests.model.state import (
    NOBODY,
    Breach,
    Disk,
    Lead,
    Msg,
    Record,
    State,
    Txn,
    fence_quorum,
    quorum,
)

TXNS_MAX = 2


class EtcdMoves(LogMoves):
    """What goes through etcd, and the fence that follows a take-over."""

    # --- sessions: they may vanish at any time -----------------------------------------------------

    def _may_revoke(self, state: State) -> Moves:
        for name, live in zip(self.names, state.live, strict=True):
            if live and state.budget.revoke:
                yield Move("revoke", name)

    def _do_revoke(self, state: State, move: Move) -> State:
        return self.put_live(self.spend(state, "revoke"), move.node, live=False)

    def _may_outage(self, state: State) -> Moves:
        if any(state.live) and state.budget.revoke:
            yield Move("outage")

    def _do_outage(self, state: State, move: Move) -> State:
        state = self.spend(state, "revoke")
        assert not move.node
        for name in self.names:
            state = self.put_live(state, name, live=False)
        return state

    def _may_register(self, state: State) -> Moves:
        for name, node in self.living(state):
            if not (node.mine and state.live[self.at(name)]):
                yield Move("register", name)

    def _do_register(self, state: State, move: Move) -> State:
        state = self.put_live(state, move.node, live=True)
        return self.put(state, move.node, self.node(state, move.node)._replace(mine=True))

    # --- take-over ---------------------------------------------------------------------------------

    def _gone(self, state: State, by: str) -> bool:
        """The guard of a take-over: the old leader's session is gone, or it released, or it is the candidate."""
        rec = state.rec
        return not rec.held or rec.released or rec.leader == by

    def _may_take(self, state: State) -> Moves:
        rec = state.rec
        if rec.epoch >= self.scope.epochs_max:
            return
        for name, node in self.living(state):
            alive = node.mine and state.live[self.at(name)] and not node.mute
            if not alive or name not in rec.voters or name not in (self.scope.takers or self.names):
                continue
            busy = node.lead and (self.rules.serving(node.lead) or rec.leader == name)
            if busy and state.live.count(True) == len(state.live):
                continue  # nothing has changed since it began: it goes on with that
            if node.lead and self.rules.serving(node.lead):
                continue
            if not self._gone(state, name) and self.broken != "blind_put":
                continue
            for voters in self._kept(state, name):
                yield Move("take", name, how="now", voters=voters)
                if state.budget.late and len(state.txns) < TXNS_MAX:
                    yield Move("take", name, how="late", voters=voters)

    def _kept(self, state: State, name: str) -> tuple[str, ...]:
        """The voters that a take-over leaves: of two, the dead one goes, which is safe only because Qf is 1."""
        voters = state.rec.voters
        others = [v for v in voters if v != name]
        alone = fence_quorum(voters) == 1 and not any(state.live[self.at(v)] for v in others)
        if self.broken == "majority_shrink":
            return (voters, name)
        return (name,) if alone else (voters,)

    def _do_take(self, state: State, move: Move) -> State:
        rec = state.rec
        txn = Txn("take", move.node, rec.rev, rec.epoch + 1, move.voters)
        if move.how == "late":
            state = self.spend(state, "late")
            return state._replace(txns=tuple(sorted((*state.txns, txn))))
        waived = rec.epoch if rec.released else NOBODY
        return self.begin(self.commit_txn(state, txn), move.node, waived)

    def _may_begin(self, state: State) -> Moves:
        rec = state.rec
        node = self.node(state, rec.leader)
        owns = node.mine and rec.held and not rec.released
        if owns and node.led < rec.epoch and not node.dead and not node.mute:
            yield Move("begin", rec.leader)

    def _do_begin(self, state: State, move: Move) -> State:
        return self.begin(state, move.node, NOBODY)

    def begin(self, state: State, name: str, waived: int) -> State:
        """The record names this session: fence the voters of that very record. An epoch is begun once."""
        rec, node, ghost = state.rec, self.node(state, name), state.ghost
        if any(epoch == rec.epoch for epoch, _, _ in ghost.led):
            raise Breach("L1", f"epoch {rec.epoch} is led twice")
        zeros = (0,) * len(self.names)
        cfg = rec.before if rec.before and self.broken == "stale_config" else rec.voters
        lead = Lead(rec.epoch, cfg, rec.rev, zeros, zeros, zeros, waived=waived)
        led = (*ghost.led, (rec.epoch, name, node.life))
        state = state._replace(ghost=ghost._replace(led=led))
        return self.put(state, name, node._replace(lead=lead, led=rec.epoch))

    def _may_fence(self, state: State) -> Moves:
        for name, node in self.living(state):
            lead = node.lead
            if lead is None or lead.leading:
                continue
            got = {who for who, _, _ in lead.got}
            for peer, voter in self.living(state):
                if peer not in lead.cfg or peer in got:
                    continue
                waits = voter.mute or self.rules.must_wait(voter, lead.waived)
                waits = waits or voter.mem.promise > lead.epoch
                for how in self.scope.hows if peer != name and not self.scope.coarse else ("call",):
                    if not waits or (how == "post" and len(state.msgs) < self.scope.msgs_max):
                        yield Move("fence", name, peer, how)

    def _do_fence(self, state: State, move: Move) -> State:
        lead = self.lead(state, move.node)
        msg = Msg("fence", move.node, move.peer, lead.epoch, idx=lead.waived)
        return self.ask(state, msg, move.how)

    def _may_adopt(self, state: State) -> Moves:
        for name, node in self.living(state):
            if node.lead is None or node.lead.leading:
                continue
            best = self.rules.best(node.lead)
            if best and self._as_promised(state, node.lead, best):
                yield Move("adopt", name, best)

    def _as_promised(self, state: State, lead: Lead, best: str) -> bool:
        """The source has not promised higher since and still holds what its promise said."""
        if self.broken == "fetch_unchecked":
            return True
        source = self.node(state, best)
        _, last, index = next(got for got in lead.got if got[0] == best)
        log = source.disk.log
        same = len(log) == index and (not log or log[-1].epoch == last)
        obeys = source.mem.promise == lead.epoch or self.broken == "fence_no_promise"
        return same and not source.dead and obeys

    def _do_adopt(self, state: State, move: Move) -> State:
        node = self.rules.adopt(
            self.node(state, move.node), move.node, self.node(state, move.peer).disk
        )
        lead = node.lead
        assert lead is not None
        for epoch, size in state.ghost.by_epoch:
            if epoch < lead.epoch and node.mem.log[:size] != state.ghost.committed[:size]:
                raise Breach("L4", f"leader {move.node} of {lead.epoch} lacks a commit of {epoch}")
        return self.written(self.put(state, move.node, node), move.node)

    # --- change of voters --------------------------------------------------------------------------

    def _may_reconfig(self, state: State) -> Moves:
        if not state.budget.reconfig:
            return
        for name, _, lead in self.leaders(state):
            ready = self.rules.serving(lead) or self.broken == "reconfig_before_noop"
            if ready and not lead.want:
                for voters in self._shapes(state, name, lead.cfg):
                    yield Move("reconfig", name, voters=voters)

    def _shapes(self, state: State, name: str, cfg: str) -> list[str]:
        """One added, one replaced, one dropped; the leader stays."""
        if self.scope.shapes:
            return [s for s in self.scope.shapes if s != cfg and name in s]
        spare = [n for n, _ in self.living(state) if n not in cfg]
        fewer = [cfg.replace(v, "") for v in cfg if v != name]
        bases = [cfg, *fewer] if len(cfg) < self.scope.voters_max else fewer
        more = ["".join(sorted(base + new)) for base in bases for new in spare]
        return fewer + more

    def _do_reconfig(self, state: State, move: Move) -> State:
        lead = self.lead(state, move.node)._replace(want=move.voters)
        return self.put_lead(self.spend(state, "reconfig"), move.node, lead)

    def _may_cas(self, state: State) -> Moves:
        blind = self.broken in {"no_catch_up", "no_joint_no_catch_up"}
        for name, node, lead in self.leaders(state):
            if not lead.want:
                continue
            if blind or self.rules.caught_up(node, name, lead.want, lead.commit):
                yield Move("cas", name, how="known")
                yield Move("cas", name, how="lost")
                if state.budget.late and len(state.txns) < TXNS_MAX:
                    yield Move("cas", name, how="late")

    def _do_cas(self, state: State, move: Move) -> State:
        lead = self.lead(state, move.node)
        txn = Txn("config", move.node, lead.rev, lead.epoch, lead.want)
        if move.how == "late":
            state = self.spend(state, "late")
            state = state._replace(txns=tuple(sorted({*state.txns, txn})))
        elif self.holds(state, txn):
            state = self.commit_txn(state, txn)
        if move.how == "known":
            return self._do_reread(state, move)
        lead = lead._replace(unknown=True)
        if self.broken == "unknown_is_failed":
            lead = lead._replace(want="", unknown=False)
        if self.broken == "unknown_is_done":
            lead = lead._replace(cfg=lead.want, want="", unknown=False)
        return self.put_lead(state, move.node, lead)

    def _may_reread(self, state: State) -> Moves:
        for name, _, lead in self.leaders(state):
            if lead.unknown:
                yield Move("reread", name)

    def _do_reread(self, state: State, move: Move) -> State:
        """Done, or superseded; an unchanged record says nothing: the transaction may still be carried out."""
        lead, rec = self.lead(state, move.node), state.rec
        mine = (rec.epoch, rec.leader, rec.released) == (lead.epoch, move.node, False)
        if mine and rec.rev == lead.rev:
            if self.broken == "unchanged_is_failed":
                lead = lead._replace(want="", unknown=False)
            return self.put_lead(state, move.node, lead)
        if mine and rec.voters == lead.want:
            lead = lead._replace(cfg=lead.want, want="", unknown=False, rev=rec.rev)
            return self.put_lead(state, move.node, lead)
        return self.put_lead(state, move.node, None)

    # --- release and step down ---------------------------------------------------------------------

    def _may_release(self, state: State) -> Moves:
        rec = state.rec
        node = self.node(state, rec.leader)
        if node.dead or rec.released or not state.budget.release:
            return
        if node.lead is None or node.lead.epoch == rec.epoch:
            yield Move("release", rec.leader, how="now")
            if state.budget.late and len(state.txns) < TXNS_MAX:
                yield Move("release", rec.leader, how="late")

    def _do_release(self, state: State, move: Move) -> State:
        state = self.spend(state, "release")
        if self.broken != "release_before_stop":
            state = self.put_lead(state, move.node, None)
        rec = state.rec
        txn = Txn("release", move.node, rec.rev, rec.epoch, rec.voters)
        if move.how == "late":
            state = self.spend(state, "late")
            return state._replace(txns=tuple(sorted({*state.txns, txn})))
        return self.commit_txn(state, txn)

    def _may_down(self, state: State) -> Moves:
        for name, node in self.living(state):
            if node.lead:
                yield Move("down", name)

    def _do_down(self, state: State, move: Move) -> State:
        return self.put_lead(state, move.node, None)

    # --- etcd carries out ----------------------------------------------------------------------------

    def _may_etcd(self, state: State) -> Moves:
        for txn in state.txns:
            yield Move("etcd", txn=txn, how="carries out")
            yield Move("etcd", txn=txn, how="loses")

    def _do_etcd(self, state: State, move: Move) -> State:
        txn = move.txn
        assert txn is not None
        state = state._replace(txns=tuple(t for t in state.txns if t != txn))
        if move.how == "loses" or not self.holds(state, txn):
            return state
        return self.commit_txn(state, txn)

    def holds(self, state: State, txn: Txn) -> bool:
        """Do the compares of the transaction hold?"""
        if txn.kind == "take" and self.broken == "blind_put":
            return True
        if state.rec.rev != txn.rev:
            return False
        if txn.kind != "take":
            return True
        kept = (*self._kept(state, txn.by), state.rec.voters)
        return self._gone(state, txn.by) and txn.voters in kept

    def commit_txn(self, state: State, txn: Txn) -> State:
        """The record after the transaction."""
        rec = state.rec
        if txn.kind == "release":
            return state._replace(rec=rec._replace(released=True, rev=rec.rev + 1))
        if txn.kind == "config":
            self.judge_change(state, txn)
            before = rec.voters if self.broken == "stale_config" else ""
            rec = rec._replace(voters=txn.voters, rev=rec.rev + 1, before=before)
            return state._replace(rec=rec)
        rec = Record(
            txn.epoch, txn.by, held=True, released=False, voters=txn.voters, rev=rec.rev + 1,
            before=rec.before,
        )  # fmt: skip
        return state._replace(rec=rec)

    def judge_change(self, state: State, txn: Txn) -> None:
        """L9: a quorum of the new voters has all that is committed, on disk."""
        known = state.ghost.committed
        disks: list[Disk] = [self.node(state, v).disk for v in txn.voters]
        have = sum(disk.log[: len(known)] == known for disk in disks)
        rotten = any(node.mute for node in state.nodes)
        if have < quorum(txn.voters) and not rotten and "L9" not in self.masked:
            raise Breach("L9", f"{txn.voters} become voters without all that is committed")
