"""Bugs made on purpose in the protocol and its drivers: a simulation that does not find them is not worth running.

Each is a patch of the server's classes while it is held (`mutants.planted`).
"""

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from tests.sim.mutants import Mutant, Patches

from tickwheel.server import clustered, lead, takeover
from tickwheel.server.cluster.beats import Beats
from tickwheel.server.cluster.host import Host
from tickwheel.server.cluster.reshape import Reshape
from tickwheel.server.lease import Holds, Rights, _Term
from tickwheel.server.ledger import Ledger
from tickwheel.server.log import Recovered, recovered
from tickwheel.server.message import BeatAcked, Fenced, Message, NodeId
from tickwheel.server.record import RecordType
from tickwheel.server.replica import Replica, Role
from tickwheel.server.runner import Runner
from tickwheel.server.turn import CasWanted, Leading, Outcome, Output


def _early_ack() -> Patches:
    """An ack leaves before its entries are fsynced."""
    take = Ledger.take

    def hasty(ledger: Ledger) -> Output:
        out = take(ledger)
        out.now += out.synced
        out.synced = []
        return out

    return [patch.object(Ledger, "take", hasty)]


def _early_fenced() -> Patches:
    """A promise is told before it is fsynced."""

    def at_once(ledger: Ledger, to: NodeId, message: Message) -> None:
        ledger.send(to, message)

    return [patch.object(Ledger, "when_synced", at_once)]


def _zero(*_arguments: object, **_options: object) -> int:
    return 0


def _one(_voters: int) -> int:
    return 1


def _nothing(*_arguments: object) -> None:
    return None


def _no_hold() -> Patches:
    """A voter that acked a beat grants the next fence at once."""
    return [patch.object(Holds, "wait_ms", _zero)]


def _no_waking() -> Patches:
    """A voter that has just started does not wait for what it forgot."""
    init = Holds.__init__

    def awake(holds: Holds, started_ms: int, *rest: Any) -> None:
        init(holds, started_ms, *rest)
        holds._waking_ms = started_ms

    return [patch.object(Holds, "__init__", awake)]


def _right_from_arrival() -> Patches:
    """The right is counted from when the ack arrived, not from when the beat left."""
    receive = Beats.receive

    def late(beats: Beats, sender: NodeId, messages: Any) -> list[Message]:
        rest = receive(beats, sender, messages)
        if any(isinstance(message, BeatAcked) for message in messages):
            beats._rights._acked_ms[sender] = beats._clock.monotonic_ms()
            beats._rights._known.clear()
        return rest

    return [patch.object(Beats, "receive", late)]


def _right_of_old_beats() -> Patches:
    """Acks of beats that did not speak of the leadership count for it."""
    lead = Rights.lead

    def generous(rights: Rights, shard: int, epoch: int) -> None:
        lead(rights, shard, epoch)
        rights._terms[shard] = _Term(epoch, 0)

    return [patch.object(Rights, "lead", generous)]


def _early_serve() -> Patches:
    """A leader serves before its EPOCH_START is committed."""
    start = Replica._start

    def hasty(replica: Replica, takeover: Any) -> None:
        start(replica, takeover)
        replica.role = Role.LEADING
        assert replica._lead is not None
        replica._lead.active = True
        replica._ledger.event(Leading(replica.epoch))

    return [patch.object(Replica, "_start", hasty)]


def _goes_on() -> Patches:
    """A leadership that is over is not ended in the runner."""
    return [patch.object(Host, "_end_if_lost", _nothing)]


def _right_outlives() -> Patches:
    """A leader that stepped down keeps its right, and goes on firing."""

    def stubborn(host: Host, shard: int) -> bool:
        replica = host.replicas.get(shard)
        if replica is None or shard not in host._serving:
            return False
        voters = replica.configs or ((host.me,),)
        return host.rights.until_ms(shard, voters) > host._clock.monotonic_ms() or bool(
            host._serving
        )

    return [patch.object(Host, "may_act", stubborn)]


def _beyond_commit() -> Patches:
    """A follower applies all that it has."""
    on_append = Replica._on_append

    def eager(replica: Replica, sender: NodeId, message: Any) -> None:
        on_append(replica, sender, message)
        replica._ledger.commit_to(replica._log.last_index)

    handlers = {**Replica._HANDLERS}
    handlers = {kind: eager if work is on_append else work for kind, work in handlers.items()}
    return [patch.object(Replica, "_HANDLERS", handlers)]


def _open_gate() -> Patches:
    """The last look before a request leaves does not ask for the right."""

    async def gate(runner: Runner, fire: Any) -> bool:
        slot = runner.slots.get(fire.shard)
        while slot is not None and fire.job_row in slot.shard.held:
            await slot.settled.wait()
        return slot is not None and slot.shard.may_send(fire)

    return [patch.object(Runner, "_gate", gate)]


def _no_promise() -> Patches:
    """A promise is not journalled."""
    record = Ledger.record

    def forgetful(ledger: Ledger, kind: RecordType, *rest: Any, **more: Any) -> None:
        if kind != RecordType.PROMISE:
            record(ledger, kind, *rest, **more)

    return [patch.object(Ledger, "record", forgetful)]


def _forgotten_promise() -> Patches:
    """A start forgets what was promised."""

    def forgetful(*what: Any) -> Recovered:
        found = recovered(*what)
        return found._replace(promised=found.log.last_epoch)

    return [patch.object(clustered, "recovered", forgetful)]


def _old_snapshot() -> Patches:
    """A snapshot is installed whatever the log holds already."""

    def always(replica: Replica, _index: int) -> bool:
        replica._installing = replica.role == Role.FOLLOWER
        return replica._installing

    return [patch.object(Replica, "installing", always)]


def _unknown_is_done() -> Patches:
    """A change of voters whose outcome is not known is taken for done."""
    attempt = Reshape._try

    async def sure(reshape: Reshape, number: int, wanted: CasWanted) -> Outcome:
        outcome = await attempt(reshape, number, wanted)
        return Outcome.DONE if outcome is Outcome.UNKNOWN else outcome

    return [patch.object(Reshape, "_try", sure)]


def _lonely_commit() -> Patches:
    """One voter fewer than a majority is enough to commit."""

    def fewer(values: Sequence[int]) -> int:
        return sorted(values, reverse=True)[max(len(values) // 2 - 1, 0)]

    return [patch.object(lead, "reached", fewer)]


def _ahead_of_disk() -> Patches:
    """What others hold is applied here before it is on this disk."""
    return [patch.object(Ledger, "deliverable", property(lambda ledger: ledger.commit))]


def _short_fence() -> Patches:
    """A candidate does not wait for enough promises."""
    return [patch.object(takeover, "fence_quorum", _one)]


def _lies_of_log() -> Patches:
    """A voter says that its log ends where it is committed."""
    send = Ledger.when_synced

    def modest(ledger: Ledger, to: NodeId, message: Message) -> None:
        if isinstance(message, Fenced):
            message = message._replace(last_index=ledger.log.base_index, last_epoch=0)
        send(ledger, to, message)

    return [patch.object(Ledger, "when_synced", modest)]


I11 = ("I11", "fatal")
MUTANTS = [
    Mutant("an ack leaves before the fsync", I11, 5, _early_ack),
    Mutant("a promise is told before the fsync", I11, 5, _early_fenced),
    Mutant("no hold-off after a beat's ack", I11, 100, _no_hold),
    Mutant("a voter that starts does not wait", I11, 1000, _no_waking),
    Mutant("the right is counted from the ack's arrival", I11, 1000, _right_from_arrival),
    Mutant("acks of older beats give the right", I11, 300, _right_of_old_beats),
    Mutant("serves before EPOCH_START is committed", I11, 5, _early_serve),
    Mutant("resign does not stop firing", (*I11, "I"), 5, _goes_on),
    Mutant("the right outlives the leadership", (*I11, "I"), 5, _right_outlives),
    Mutant("a follower applies beyond the commit", I11, 5, _beyond_commit),
    Mutant("the gate does not ask for the right", ("I8", "I7", "I4"), 100, _open_gate),
    Mutant("a promise is not journalled", I11, 5, _no_promise),
    Mutant("a start forgets its promises", I11, 100, _forgotten_promise),
    Mutant("a snapshot is installed below the commit", I11, 1000, _old_snapshot),
    Mutant("an unknown change of voters is taken for done", I11, 1000, _unknown_is_done),
    Mutant("a minority commits", (*I11, "I"), 100, _lonely_commit),
    Mutant("applied before it is on this disk", I11, 5, _ahead_of_disk),
    Mutant("one promise is enough to lead", I11, 100, _short_fence),
    Mutant("a voter lies about its log", (*I11, "I"), 100, _lies_of_log),
]
