"""The protocol's rules, each node for itself: what it does with a message, what a leader may conclude.

Nothing here sees more than the node it speaks of: no ghost, no other node, no etcd. Every rule that the document gives a
reason for can be broken by naming a mutation (`mutations.py`), at one line each.
"""

from dataclasses import dataclass

from tests.model.state import (
    NOBODY,
    Disk,
    Entry,
    Lead,
    Log,
    Msg,
    Node,
    at,
    epoch_at,
    fence_quorum,
    put,
    quorum,
)

Answer = tuple[Node, tuple[Msg, ...]]


@dataclass(frozen=True)
class Rules:
    """The rules for one shard. `hold`: L in ticks; `margin`: what the leader takes off it for drift of clocks."""

    names: str
    hold: int
    margin: int
    broken: str = ""

    # --- what a voter or learner does with a message ---------------------------------------------

    def receive(self, node: Node, msg: Msg) -> Answer:
        """The node after the message, and its answers; acks and promises may leave only after an fsync."""
        match msg.kind:
            case "append":
                return self._append(node, msg)
            case "snap":
                return self._snap(node, msg)
            case "fence":
                return self._fence(node, msg)
            case "beat":
                return self._beat(node, msg)
            case "ack":
                return self._ack(node, msg), ()
            case "promise":
                return self._promise(node, msg), ()
            case _:
                return self._heard(node, msg), ()

    def _obey(self, node: Node, epoch: int) -> Node:
        """Take the promise of the epoch on; whoever led or wanted to lead a lower one stops before that."""
        lead = node.lead if node.lead and node.lead.epoch >= epoch else None
        mem = node.mem._replace(promise=max(node.mem.promise, epoch))
        return node._replace(lead=lead, mem=mem)

    def _append(self, node: Node, msg: Msg) -> Answer:
        if msg.epoch < node.mem.promise and self.broken != "old_leader_appends":
            return node, ()
        joined = self.join(node.mem, msg)
        if (
            joined is None
        ):  # mismatch: says that nothing of this append matched, and which life it is
            none = Msg("ack", msg.dst, msg.src, msg.epoch, life=node.life)
            return self._obey(node, msg.epoch), (none,)
        log, match = joined
        node = self._obey(node, msg.epoch)
        node = node._replace(mem=node.mem._replace(log=log))
        known = msg.commit if self.broken == "commit_beyond_match" else min(msg.commit, match)
        node = node._replace(commit=max(node.commit, min(known, len(log))))
        # Re-seeded: all that this leader's own commit covers is here, and the leader knows this life.
        whole = msg.life == node.life and 0 < msg.commit <= match
        if node.mute and whole and epoch_at(log, msg.commit) == msg.epoch:
            node = node._replace(mute=False)
        index = len(log) if self.broken == "ack_own_end" else match
        ack = Msg("ack", msg.dst, msg.src, msg.epoch, idx=index, life=node.life)
        return node, (ack,)

    def join(self, mem: Disk, msg: Msg) -> tuple[Log, int] | None:
        """The log with the message's entries in it and the index up to which it equals the leader's; None: mismatch."""
        log = mem.log
        skip = max(0, mem.base - msg.idx)  # what lies below the base is committed, and equal
        prev, entries = msg.idx + skip, msg.entries[skip:]
        match = msg.idx + len(msg.entries)
        if skip and not entries:
            return log, match
        if prev > len(log) or (not skip and epoch_at(log, prev) != msg.last):
            return None
        for offset, entry in enumerate(entries):
            place = prev + offset
            if place == len(log) or log[place].epoch != entry.epoch:
                return (*log[:place], *entries[offset:]), match
        if self.broken == "cut_to_append":
            return log[:match], match
        return log, match

    def _snap(self, node: Node, msg: Msg) -> Answer:
        if msg.epoch < node.mem.promise:
            return node, ()
        node = self._obey(node, msg.epoch)
        if msg.idx <= node.commit and self.broken != "snap_below_commit":
            return node, ()
        log, index = node.mem.log, msg.idx
        holds = node.mem.base <= index <= len(log) and (
            epoch_at(log, index) == epoch_at(msg.entries, index)
            or self.broken == "snap_keeps_suffix"
        )
        mem = node.mem._replace(log=msg.entries + (log[index:] if holds else ()), base=index)
        ack = Msg("ack", msg.dst, msg.src, msg.epoch, idx=index, life=node.life)
        return node._replace(mem=mem, commit=max(index, node.commit)), (ack,)

    def _fence(self, node: Node, msg: Msg) -> Answer:
        if msg.epoch < node.mem.promise or node.mute or self.must_wait(node, msg.idx):
            return node, ()
        if self.broken != "fence_no_promise":
            node = self._obey(node, msg.epoch)
        log = node.mem.log
        last = epoch_at(log, len(log))
        promise = Msg("promise", msg.dst, msg.src, msg.epoch, len(log), last, life=node.life)
        return node, (promise,)

    def must_wait(self, node: Node, released: int) -> bool:
        """Is a heartbeat's ack, or a start, less than L ago, and not to a leader that has released itself?"""
        if self.broken == "waive_any_hold" and released != NOBODY:
            return False
        waived = released != NOBODY and node.hold_epoch == released
        return node.hold > 0 and not waived

    def _beat(self, node: Node, msg: Msg) -> Answer:
        if msg.epoch < max(node.mem.promise, node.hold_epoch):
            return node, ()
        if self.broken != "no_hold":
            node = node._replace(hold=self.hold, hold_epoch=msg.epoch)
        heard = Msg("heard", msg.dst, msg.src, msg.epoch, age=msg.age, life=node.life)
        return node, (heard,)

    # --- what a candidate or leader does with an answer -------------------------------------------

    def _known(self, node: Node, msg: Msg) -> Lead | None:
        """The leader's state if the answer is for it and of the sender's current life, which it notes."""
        lead = node.lead
        if lead is None or lead.epoch != msg.epoch or not lead.leading:
            return None
        place = at(self.names, msg.src)
        if msg.life < lead.lives[place]:
            return lead if self.broken == "old_life_counts" else None
        if msg.life == lead.lives[place]:
            return lead
        return lead._replace(
            lives=put(lead.lives, place, msg.life),
            match=put(lead.match, place, 0),
            left=put(lead.left, place, 0),
        )

    def _ack(self, node: Node, msg: Msg) -> Node:
        lead = self._known(node, msg)
        if lead is None:
            return node
        place = at(self.names, msg.src)
        match = put(lead.match, place, max(lead.match[place], min(msg.idx, len(node.mem.log))))
        return node._replace(lead=lead._replace(match=match))

    def _heard(self, node: Node, msg: Msg) -> Node:
        lead = self._known(node, msg)
        if lead is None:
            return node
        place = at(self.names, msg.src)
        age = 0 if self.broken == "lease_from_arrival" else msg.age
        margin = 0 if self.broken == "no_drift_margin" else self.margin
        left = put(lead.left, place, max(lead.left[place], self.hold - margin - age))
        return node._replace(lead=lead._replace(left=left))

    def _promise(self, node: Node, msg: Msg) -> Node:
        lead = node.lead
        if lead is None or lead.epoch != msg.epoch or lead.leading:
            return node
        if any(who == msg.src for who, _, _ in lead.got):
            return node
        got = tuple(sorted((*lead.got, (msg.src, msg.last, msg.idx))))
        return node._replace(lead=lead._replace(got=got))

    # --- what a leader may conclude ---------------------------------------------------------------

    def configs(self, lead: Lead) -> tuple[str, ...]:
        """The voter sets that must all agree: two while a change is under way or its result unknown."""
        if lead.want and self.broken not in {"no_joint", "no_joint_no_catch_up"}:
            return (lead.cfg, lead.want)
        return (lead.cfg,)

    def best(self, lead: Lead) -> str:
        """Whose log to adopt; empty while the fence is not complete."""
        voters = [who for who in lead.got if who[0] in lead.cfg]
        need = fence_quorum(lead.cfg)
        if self.broken == "no_fence":
            need = 1
        if self.broken == "fence_one_short":
            need -= 1
        if len(voters) < max(need, 1):
            return ""
        if self.broken == "longest_log":
            return max(voters, key=lambda who: (who[2], who[0]))[0]
        return max(voters, key=lambda who: (who[1], who[2], who[0]))[0]

    def adopt(self, node: Node, name: str, chosen: Disk) -> Node:
        """The leader with the best log of its fence, and the EPOCH_START on top of it."""
        lead = node.lead
        assert lead is not None
        log = chosen.log
        if self.broken == "cut_to_commit":
            log = log[: node.commit]
        noop = () if self.broken == "count_old_epochs" else (Entry(lead.epoch, "n", name),)
        log = (*log, *noop)
        mem = Disk(max(node.mem.promise, lead.epoch), log, max(node.mem.base, chosen.base))
        base_commit = max(node.commit, mem.base)
        lead = lead._replace(
            leading=True, got=(), noop=len(log) if noop else 0, commit=min(base_commit, len(log))
        )
        return node._replace(mem=mem, lead=lead)

    def serving(self, lead: Lead) -> bool:
        """Its EPOCH_START is committed and applied: it may take writes, read, fire and change voters."""
        return lead.leading and (lead.commit >= lead.noop or self.broken == "serve_early")

    def caught_up(self, node: Node, name: str, voters: str, index: int) -> bool:
        """Does a quorum of these voters hold the log up to the index, on disk?"""
        lead = node.lead
        assert lead is not None
        own = len(node.mem.log) if self.broken == "count_self_unsynced" else self.synced(node)
        held = 0
        for voter in voters:
            held += (own if voter == name else lead.match[at(self.names, voter)]) >= index
        return held >= quorum(voters)

    def synced(self, node: Node) -> int:
        """How many entries of the believed log are on disk."""
        index = 0
        for mine, theirs in zip(node.disk.log, node.mem.log, strict=False):
            if mine != theirs:
                break
            index += 1
        return index

    def can_commit(self, node: Node, name: str) -> int:
        """The highest index that may be called committed now; 0: none above what is."""
        lead = node.lead
        assert lead is not None
        for index in range(len(node.mem.log), lead.commit, -1):
            own = node.mem.log[index - 1].epoch == lead.epoch
            if not own and self.broken != "count_old_epochs":
                return 0
            if all(self.caught_up(node, name, cfg, index) for cfg in self.configs(lead)):
                return index
        return 0

    def right(self, lead: Lead, name: str) -> bool:
        """Does a quorum of acks, counted from when the beats were SENT, cover now, in every configuration?"""
        configs = (lead.cfg,) if self.broken == "right_by_old_config" else self.configs(lead)
        for voters in configs:
            heard = sum(v == name or lead.left[at(self.names, v)] > 0 for v in voters)
            if heard < quorum(voters):
                return False
        return True

    def entitled(self, node: Node, name: str) -> bool:
        """May this process fire and answer reads at this instant?"""
        lead = node.lead
        return lead is not None and self.serving(lead) and self.right(lead, name)
