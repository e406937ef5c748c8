"""The judge: what was promised (every acknowledged operation) held against what the target saw. Pure.

The driver of a run writes down each operation as it was sent and answered (`Job`, `Operation`); the sink what arrived
(`bench.sink.Arrival`); the server what it did not attempt and why (`Excuse`, from its list of executions). `check` joins
them and reports each broken guarantee by name (README, "What is promised"):

    lost          acknowledged, due before the horizon, never arrived, and no record or policy says why          I1
    early         arrived before its scheduled time                                                            I2
    after_cancel  arrived although a cancel was answered CANCELLED_BEFORE_DISPATCH                               I4
    at_most_once  such an execution arrived more than once                                                       I5
    duplicate     arrived again after a success, and no kill explains it                                         I6
    repeated      one (execution, attempt, epoch) twice                                                          I7
    shared_id     two occurrences with one id                                                                    I7
    two_ids       one occurrence with two ids                                                                    I6
    epoch_back    a job's epoch went down                                                                        I8
    second_job    one name, created once by the caller, fired under two uids                                     I9
    stranger      arrived for a job that nobody created, or for a time that its schedule does not name

Duplicates that a kill explains (the answer may not have reached the journal) are counted apart, as `at_kill`. In a
cluster (`History.changes`) the rule is narrower: the second request must carry a higher epoch than the first, so another
leader sent it, and the first must have been on its way, or answered less than `grace_ms` ago, while a fault lasted.
Example: a job due at 1000 that was acknowledged and of which nothing arrived by the horizon is `lost`:

>>> job = Job("j", "ab" * 16, due_ms=1000)
>>> check(History([job], [], horizon_ms=5000)).counts["lost"]
1
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

from bench.histogram import Histogram
from bench.sink import Arrival

VIOLATIONS = (
    "lost", "early", "after_cancel", "at_most_once", "duplicate", "repeated", "shared_id", "two_ids", "epoch_back",
    "second_job", "stranger",
)  # fmt: skip
EXAMPLES_MAX = 10
UID_DIGITS = 32
BEFORE_DISPATCH = "CANCELLED_BEFORE_DISPATCH"
TOO_LATE = ("ALREADY_DISPATCHED", "COMPLETED")


class Operation(NamedTuple):
    """A cancel, delete, pause or update. `answer` is empty when the call failed and its outcome is unknown.

    `due_ms` is the new due time of an update that moved the job.
    """

    kind: str
    sent_ms: int
    answered_ms: int = 0
    answer: str = ""
    due_ms: int = 0


@dataclass(slots=True)
class Job:
    """One creation. `uid` (hex) is empty when it was never acknowledged, so nothing was promised of it.

    A one-off has `due_ms`; a job of `period_ms` has the occurrences `due_ms + k x period_ms`, k >= 0.
    """

    name: str
    uid: str
    due_ms: int
    period_ms: int = 0
    at_most_once: bool = False
    operations: list[Operation] = field(default_factory=list[Operation])


class Excuse(NamedTuple):
    """The server's record that the occurrences first..last of a job were not attempted, or that nobody saw the end."""

    uid: str
    first_ms: int
    last_ms: int
    reason: str


class Outage(NamedTuple):
    """The node was killed at `start_ms` and ready again at `end_ms`."""

    start_ms: int
    end_ms: int


class Change(NamedTuple):
    """In a cluster: leaders may have changed between a fault at `start_ms` and `end_ms`, when all was served again."""

    start_ms: int
    end_ms: int
    kind: str


@dataclass(slots=True)
class History:
    """All there is to judge. What is due after `horizon_ms` is not judged yet.

    `grace_ms`: so long after a target's answer the outcome may still be on its way to the journal.
    """

    jobs: Sequence[Job]
    arrivals: Sequence[Arrival]
    horizon_ms: int
    excuses: Sequence[Excuse] = ()
    outages: Sequence[Outage] = ()
    grace_ms: int = 1_000
    changes: Sequence[Change] = ()


@dataclass(slots=True)
class Report:
    """Counts of each broken guarantee, a few examples of each, and how late things were (µs)."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VIOLATIONS, 0))
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    jobs: int = 0
    acknowledged: int = 0
    expected: int = 0
    excused: int = 0
    arrivals: int = 0
    executions: int = 0
    retries: int = 0
    at_kill: int = 0
    at_change: dict[str, int] = field(default_factory=dict[str, int])
    """Of `at_kill`, by the kind of change that explains them."""

    lag_us: Histogram = field(default_factory=Histogram)
    outage_lag_us: Histogram = field(default_factory=Histogram)

    @property
    def clean(self) -> bool:
        """True when no guarantee was broken."""
        return not any(self.counts.values())

    def add(self, kind: str, example: str) -> None:
        """Enter one violation."""
        assert kind in self.counts, kind
        self.counts[kind] += 1
        if len(self.examples[kind]) < EXAMPLES_MAX:
            self.examples[kind].append(example)

    def summary(self) -> dict[str, Any]:
        """What goes into a results file."""
        numbers = {
            name: getattr(self, name)
            for name in ("jobs", "acknowledged", "expected", "excused", "arrivals", "executions", "retries", "at_kill")
        }  # fmt: skip
        lags = {"lag_ms": self.lag_us.ms(), "outage_lag_ms": self.outage_lag_us.ms()}
        return {**numbers, **self.counts, **lags}


def scheduled_ms(arrival: Arrival) -> int:
    """`Tickwheel-Scheduled-Time` in ms: RFC 3339, or a number of ms. -1 where it is neither."""
    text = arrival.scheduled
    if text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return -1
    return round(moment.timestamp() * 1_000)


def uid_of(arrival: Arrival) -> str:
    """The uid that leads every execution id."""
    return arrival.id[:UID_DIGITS]


def name_of(arrival: Arrival) -> str:
    """The job's own name, without the collections before it."""
    return arrival.job.rpartition("/")[2]


def check(history: History) -> Report:
    """Judge a whole run."""
    report = Report(jobs=len(history.jobs), arrivals=len(history.arrivals))
    by_id: dict[str, list[Arrival]] = defaultdict(list)
    by_uid: dict[str, list[Arrival]] = defaultdict(list)
    for arrival in sorted(history.arrivals, key=lambda a: a.arrival_us):
        by_id[arrival.id].append(arrival)
        by_uid[uid_of(arrival)].append(arrival)
    report.executions = len(by_id)
    _check_executions(history, by_id, report)
    _check_ids(history.arrivals, report)
    _check_strangers(history, by_uid, report)
    excuses: dict[str, list[Excuse]] = defaultdict(list)
    for excuse in history.excuses:
        excuses[excuse.uid].append(excuse)
    for job in history.jobs:
        if job.uid:
            report.acknowledged += 1
            mine = by_uid.get(job.uid, [])
            _check_lost(history, job, mine, excuses.get(job.uid, []), report)
            _check_cancelled(job, mine, report)
            _check_epochs(mine, report)
    return report


# --- one execution ---------------------------------------------------------------------------


def _check_executions(history: History, by_id: dict[str, list[Arrival]], report: Report) -> None:
    once_only = {job.uid for job in history.jobs if job.at_most_once}
    kills = sorted(outage.start_ms for outage in history.outages)
    for id_, arrivals in by_id.items():
        due = scheduled_ms(arrivals[0])
        for arrival in arrivals:
            if arrival.arrival_us < due * 1_000:
                report.add("early", f"{id_} by {due * 1_000 - arrival.arrival_us} us")
        _record_lag(history, due, arrivals[0], report)
        if len(arrivals) > 1:
            if id_[:UID_DIGITS] in once_only:
                report.add("at_most_once", f"{id_} x {len(arrivals)}")
            _check_again(arrivals, kills, history, report)


def _check_again(
    arrivals: list[Arrival], kills: list[int], history: History, report: Report
) -> None:
    """A second arrival is a retry (the first was refused), explained by a kill between, or a duplicate."""
    seen: set[tuple[int, int]] = set()
    for arrival in arrivals:
        key = (arrival.attempt, arrival.epoch)
        if key in seen:
            report.add("repeated", f"{arrival.id} attempt {key[0]} epoch {key[1]}")
        seen.add(key)
    for first, second in pairwise(arrivals):
        sent_ms, again_ms = first.arrival_us // 1_000, second.arrival_us // 1_000
        until_ms = sent_ms + first.delay_ms + history.grace_ms
        if _killed_between(kills, sent_ms, again_ms, until_ms):
            report.at_kill += 1
        elif not _succeeded(first):
            report.retries += 1
        elif kind := _changed_between(history.changes, first, second, until_ms):
            report.at_kill += 1
            report.at_change[kind] = report.at_change.get(kind, 0) + 1
        else:
            report.add("duplicate", f"{first} then {second}")


def _killed_between(kills: list[int], first_ms: int, second_ms: int, until_ms: int) -> bool:
    """A kill after the first arrival, before the second, and before the outcome was surely journalled."""
    at = bisect_left(kills, first_ms)
    return at < len(kills) and kills[at] <= min(second_ms, until_ms)


def _changed_between(
    changes: Sequence[Change], first: Arrival, second: Arrival, until_ms: int
) -> str:
    """The kind of the change of leader that explains a second request, "" if none does."""
    if second.epoch <= first.epoch:
        return ""
    sent_ms, again_ms = first.arrival_us // 1_000, second.arrival_us // 1_000
    for change in changes:
        if sent_ms <= change.end_ms and change.start_ms <= min(until_ms, again_ms):
            return change.kind
    return ""


def _record_lag(history: History, due: int, first: Arrival, report: Report) -> None:
    windows = [(o.start_ms, o.end_ms) for o in history.outages]
    windows += [(c.start_ms, c.end_ms) for c in history.changes]
    at_ms = first.arrival_us // 1_000
    shadowed = any(start_ms <= at_ms and due <= end_ms for start_ms, end_ms in windows)
    histogram = report.outage_lag_us if shadowed else report.lag_us
    histogram.record(first.arrival_us - due * 1_000)


def _check_ids(arrivals: Iterable[Arrival], report: Report) -> None:
    """Id ↔ occurrence is one to one, within one uid."""
    occurrence_of: dict[str, tuple[str, str]] = {}
    id_of: dict[tuple[str, str, str], str] = {}
    for arrival in arrivals:
        occurrence = (arrival.job, arrival.scheduled)
        if occurrence_of.setdefault(arrival.id, occurrence) != occurrence:
            report.add("shared_id", f"{arrival.id}: {occurrence_of[arrival.id]} and {occurrence}")
        named = id_of.setdefault((*occurrence, uid_of(arrival)), arrival.id)
        if named != arrival.id:
            report.add("two_ids", f"{occurrence}: {named} and {arrival.id}")


# --- one job ---------------------------------------------------------------------------------


def _check_strangers(history: History, by_uid: dict[str, list[Arrival]], report: Report) -> None:
    jobs = {job.uid: job for job in history.jobs if job.uid}
    unanswered = {job.name for job in history.jobs if not job.uid}
    uids_of: dict[str, set[str]] = defaultdict(set)
    for uid, arrivals in by_uid.items():
        name = name_of(arrivals[0])
        uids_of[name].add(uid)
        if uid not in jobs:
            if name not in unanswered:
                report.add("stranger", f"{arrivals[0].id} of {name}")
            continue
        for arrival in arrivals:
            if not _named(jobs[uid], scheduled_ms(arrival)):
                report.add("stranger", f"{arrival.id}: {arrival.scheduled} is no occurrence")
    creations: dict[str, int] = defaultdict(int)
    for job in history.jobs:
        creations[job.name] += 1
    for name, uids in uids_of.items():
        if creations[name] and len(uids) > creations[name]:
            report.add("second_job", f"{name}: {sorted(uids)}")


def _named(job: Job, time_ms: int) -> bool:
    """Whether the schedule, in one of its versions, names this instant."""
    if job.period_ms:
        return time_ms >= job.due_ms and (time_ms - job.due_ms) % job.period_ms == 0
    return time_ms == job.due_ms or any(o.due_ms == time_ms for o in job.operations)


def _promised(job: Job, horizon_ms: int) -> Iterator[set[int]]:
    """The occurrences that must have been attempted by the horizon, as far as no operation took the promise back.

    Each as the times that it may have: more than one where updates overlapped, since nobody knows which was the last.
    """
    if any(_may_end(o) for o in job.operations):
        return
    if job.period_ms:
        yield from ({due} for due in range(job.due_ms, horizon_ms + 1, job.period_ms))
        return
    moves = [o for o in job.operations if _moves(o)]
    if any(not move.answer or _taken_back(job, move) for move in moves):
        return  # either due time may be the true one, or none
    dues = {move.due_ms for move in moves if not _superseded(move, moves)} or {job.due_ms}
    if max(dues) <= horizon_ms:
        yield dues


def _moves(operation: Operation) -> bool:
    """An update that gave a one-off another time, or may have."""
    return operation.kind == "update" and operation.due_ms > 0 and operation.answer != "COMPLETED"


def _superseded(move: Operation, moves: Iterable[Operation]) -> bool:
    """True if another update was sent when this one was answered already."""
    return any(other.sent_ms > move.answered_ms for other in moves)


def _taken_back(job: Job, update: Operation) -> bool:
    """True if a cancel that found an attempt on its way may have ended what the update had put off."""
    return any(
        other.kind == "cancel"
        and other.answer != "COMPLETED"
        and (not other.answered_ms or other.answered_ms >= update.sent_ms)
        for other in job.operations
    )


def _may_end(operation: Operation) -> bool:
    """A cancel, delete or pause that took effect, or may have."""
    return operation.kind in ("cancel", "delete", "pause") and operation.answer not in TOO_LATE


def _check_lost(
    history: History, job: Job, arrivals: list[Arrival], excuses: list[Excuse], report: Report
) -> None:
    arrived = {scheduled_ms(arrival) for arrival in arrivals}
    for dues in _promised(job, history.horizon_ms):
        report.expected += 1
        if dues & arrived:
            continue
        due = min(dues)
        if _excused(job, due, excuses):
            report.excused += 1
        else:
            report.add("lost", f"{job.name} {job.uid} due {due} {job.operations or ''}")


def _excused(job: Job, due: int, excuses: list[Excuse]) -> bool:
    """A record excuses a recurring job (misfire, overlap) and an attempt that may be made once only; never a one-off."""
    may = job.period_ms or job.at_most_once
    return bool(may) and any(e.first_ms <= due <= e.last_ms for e in excuses)


def _check_cancelled(job: Job, arrivals: list[Arrival], report: Report) -> None:
    """After the answer CANCELLED_BEFORE_DISPATCH nothing arrives. A cancelled one-off also cannot have succeeded before."""
    for operation in job.operations:
        if operation.answer != BEFORE_DISPATCH:
            continue
        moved_to = _times_named_since(job, operation)
        once = operation.kind == "cancel" and not job.period_ms and not _revived(job, operation)
        for arrival in arrivals:
            if operation.kind == "update" and scheduled_ms(arrival) in moved_to:
                continue
            late = arrival.arrival_us > operation.answered_ms * 1_000
            if late or (once and _succeeded(arrival)):
                told = f"{arrival.id} at {arrival.arrival_us} us, {operation} of {job.operations}"
                report.add("after_cancel", told)


def _revived(job: Job, cancel: Operation) -> bool:
    """True if an update may have given a one-off that was over another time, and this cancel is about that one."""
    return any(
        other.kind == "update"
        and other.sent_ms <= cancel.answered_ms
        and other.answer in {"", "ALREADY_DISPATCHED"}
        for other in job.operations
    )


def _times_named_since(job: Job, operation: Operation) -> set[int]:
    """Where this update, or one that was not over before it began, moved the job."""
    return {
        other.due_ms
        for other in job.operations
        if other.due_ms and (not other.answered_ms or other.answered_ms >= operation.sent_ms)
    }


def _succeeded(arrival: Arrival) -> bool:
    return 200 <= arrival.status < 300


def _check_epochs(arrivals: list[Arrival], report: Report) -> None:
    for first, second in pairwise(arrivals):
        if second.epoch < first.epoch:
            report.add("epoch_back", f"{second.id}: {first.epoch} then {second.epoch}")
