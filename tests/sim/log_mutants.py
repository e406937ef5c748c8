"""Bugs of a replicated log, each one that somebody made in earnest: bad days that do not find them are too good."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

from tickwheel.server import takeover
from tickwheel.server.lead import Lead
from tickwheel.server.ledger import Ledger
from tickwheel.server.log import Log, _Walk
from tickwheel.server.message import Append, LogEntry, NodeId
from tickwheel.server.quorum import fence_quorum
from tickwheel.server.record import Record, RecordType
from tickwheel.server.replica import Replica
from tickwheel.server.takeover import Takeover
from tickwheel.server.turn import CasWanted


class Mutant(NamedTuple):
    """`wrong`: how what is found may begin. `seeds_max`: found within so many seeds, from 0 on."""

    name: str
    wrong: tuple[str, ...]
    seeds_max: int
    patches: Callable[[], Any]


def _ack_before_fsync() -> Any:
    return patch.object(Ledger, "ack", Ledger.send)


def _promise_before_fsync() -> Any:
    return patch.object(Ledger, "when_synced", Ledger.send)


def _leader_counts_itself_early() -> Any:
    reached = Lead._reached

    def early(lead: Lead, voters: Sequence[NodeId]) -> int:
        ledger, durable = lead._ledger, lead._ledger.durable
        ledger.durable = ledger.log.last_index
        try:
            return reached(lead, voters)
        finally:
            ledger.durable = durable

    return patch.object(Lead, "_reached", early)


def _old_epochs_are_counted() -> Any:
    committed = Lead.committed

    def with_old(lead: Lead) -> int:
        index = committed(lead)
        lead._ledger.commit_to(index)
        return index

    return patch.object(Lead, "committed", with_old)


def _fence_one_short() -> Any:
    def one_less(voters: int) -> int:
        return max(fence_quorum(voters) - 1, 1)

    return patch.object(takeover, "fence_quorum", one_less)


def _promise_is_not_written() -> Any:
    record = Ledger.record

    def forgetful(
        ledger: Ledger, kind: RecordType, epoch: int, index: int, payload: bytes = b""
    ) -> None:
        record(ledger, kind, 0 if kind is RecordType.PROMISE else epoch, index, payload)

    return patch.object(Ledger, "record", forgetful)


def _longest_log_wins() -> Any:
    def longest(takeover: Takeover, voter: NodeId) -> tuple[int, int]:
        return takeover._ends[voter][1], takeover._ends[voter][0]

    return patch.object(Takeover, "_rank", longest)


def _own_log_is_taken() -> Any:
    def selfish(takeover: Takeover, voter: NodeId) -> bool:
        return voter == takeover._me

    return patch.object(Takeover, "_rank", selfish)


def _late_append_cuts() -> Any:
    merge = Ledger.merge

    def cutting(ledger: Ledger, prev_index: int, entries: Sequence[LogEntry]) -> int:
        agreed = merge(ledger, prev_index, entries)
        if ledger.commit <= agreed < ledger.log.last_index:
            ledger.truncate(agreed)
        return agreed

    return patch.object(Ledger, "merge", cutting)


def _new_voters_alone_commit() -> Any:
    def alone(lead: Lead) -> int:
        return lead._reached(lead.configs[-1])

    return patch.object(Lead, "committed", alone)


def _old_voters_alone_commit() -> Any:
    def alone(lead: Lead) -> int:
        return lead._reached(lead.configs[0])

    return patch.object(Lead, "committed", alone)


def _no_catching_up() -> Any:
    def eager(lead: Lead) -> CasWanted | None:
        if len(lead.configs) == 1 or lead._cas_asked:
            return None
        lead._cas_asked = True
        return CasWanted(lead.epoch, lead.configs[1], lead._new_learners)

    return patch.object(Lead, "cas_wanted", eager)


def _no_previous_check() -> Any:
    def trusting(log: Log, index: int, _: int) -> bool:
        return index <= log.last_index

    return patch.object(Log, "holds", trusting)


def _truncated_stays_durable() -> Any:
    def keep(*_: object) -> None:
        pass

    return patch.object(Ledger, "_void", keep)


def _truncations_are_not_replayed() -> Any:
    def ignore(walk: _Walk, record: Record) -> None:
        if walk.entries:
            del walk.entries[record.index - walk.entries[0].index + 2 :]

    return patch.object(_Walk, "_truncate", ignore)


def _commit_beyond_the_match() -> Any:
    on_append = Replica._on_append

    def trusting(replica: Replica, sender: NodeId, message: Append) -> None:
        on_append(replica, sender, message)
        if replica.leader == sender and message.epoch == replica.promised:
            replica._ledger.commit_to(min(message.commit, replica._log.last_index))

    return patch.dict(Replica._HANDLERS, {Append: trusting})


def _lower_epochs_are_heard() -> Any:
    def never(*_: object) -> bool:
        return False

    return patch.object(Replica, "_stale", never)


SAFETY = (
    "own check", "assertion", "committed sequence", "commit", "leader completeness", "log matching", "ack", "apply",
    "truncation",
)  # fmt: skip

MUTANTS = (
    Mutant("an ack leaves before the fsync", ("ack",), 5, _ack_before_fsync),
    Mutant("a promise leaves before the fsync", ("promise",), 5, _promise_before_fsync),
    Mutant("the leader counts itself before its fsync", SAFETY, 20, _leader_counts_itself_early),
    Mutant("entries of old epochs are counted", SAFETY, 50, _old_epochs_are_counted),
    Mutant("the fence is one voter short", SAFETY, 200, _fence_one_short),
    Mutant("promises are not written", ("promise", *SAFETY), 5, _promise_is_not_written),
    Mutant("the longest log wins, whatever its epoch", SAFETY, 1000, _longest_log_wins),
    Mutant("a candidate takes its own log for the best", SAFETY, 200, _own_log_is_taken),
    Mutant("a late append cuts off what later ones brought", SAFETY, 300, _late_append_cuts),
    Mutant("in a change the new voters alone commit", SAFETY, 600, _new_voters_alone_commit),
    Mutant("in a change the old voters alone commit", SAFETY, 100, _old_voters_alone_commit),
    Mutant("voters change before they are caught up", SAFETY, 100, _no_catching_up),
    Mutant("nobody looks at what an append follows", SAFETY, 100, _no_previous_check),
    Mutant("what was truncated counts as on disk", SAFETY, 150, _truncated_stays_durable),
    Mutant("a truncation is replayed one short", SAFETY, 150, _truncations_are_not_replayed),
    Mutant("a follower commits beyond what matches", SAFETY, 150, _commit_beyond_the_match),
    Mutant("lower epochs are heard", SAFETY, 100, _lower_epochs_are_heard),
)
