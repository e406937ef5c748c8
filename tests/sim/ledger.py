"""What users were told and what the target saw, and the judgement over both (README: I1, I2, I4, I7, I8, I9)."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tickwheel.server.model import Execution, ExecutionState, Ms, Reason, Status

COMING_MS = 30_000
"""An occurrence that waits in the job's status (buffered, or next in a catch-up) may be this old at the end."""


@dataclass
class Promise:
    """What is known of one creation, from its users' point of view.

    `firm`: nobody disturbed its schedule, but for pausing and resuming. `brief`: it is forgotten soon after its end.
    `moved`: somebody asked for another time, so there may be a second occurrence behind one that arrived.
    `cancelled_at`: so many arrivals had been seen when CANCELLED_BEFORE_DISPATCH was answered; `never_sent`: its only
    occurrence had not arrived when that cancel was asked for, so it must not have arrived between the two either.
    """

    namespace: str
    name: str
    uid: bytes
    once_ms: Ms
    period_ms: int
    created_ms: Ms
    brief: bool = False
    firm: bool = True
    moved: bool = False
    cancelled_at: int = -1
    never_sent: bool = False


@dataclass
class Arrival:
    """One request as the target saw it. `latest_ms`: the latest wall time that the node can have acted on."""

    at_ms: Ms
    latest_ms: Ms
    id: str
    job: str
    scheduled_ms: Ms
    attempt: int
    epoch: int
    life: int


@dataclass
class Ledger:
    """What users were told and what the target saw.

    `started` are executions that a user was told of: (uid, execution id, more than this many attempts). `gone` are the
    uids (hex) to which the target said 410. `pauses` are wall times [from, until) in which the bearer of a name, whoever
    it is, may have been paused.
    """

    promises: dict[bytes, Promise] = field(default_factory=dict[bytes, Promise])
    arrivals: list[Arrival] = field(default_factory=list[Arrival])
    started: list[tuple[bytes, str, int]] = field(default_factory=list[tuple[bytes, str, int]])
    gone: set[str] = field(default_factory=set[str])
    pauses: dict[str, list[tuple[Ms, Ms]]] = field(default_factory=lambda: defaultdict(list))
    pauses_under_way: Counter[str] = field(default_factory=Counter[str])
    refused: int = 0
    answered: int = 0

    def is_firm(self, uid: bytes) -> bool:
        """Whether every occurrence of it is owed."""
        promise = self.promises.get(uid)
        return promise is not None and promise.firm and uid.hex() not in self.gone


@dataclass
class Books:
    """What the node says at the end."""

    executions: dict[bytes, list[Execution]]
    statuses: dict[bytes, Status]
    end_ms: Ms
    clock_stepped: bool


def judge(ledger: Ledger, books: Books) -> list[str]:
    """Every broken guarantee, in words; empty when all held."""
    by_uid: dict[bytes, list[Arrival]] = defaultdict(list)
    for arrival in ledger.arrivals:
        by_uid[bytes.fromhex(arrival.id[:32])].append(arrival)
    wrong = _judge_arrivals(ledger.arrivals) + _judge_cancels(ledger)
    for uid, promise in ledger.promises.items():
        if ledger.is_firm(uid):
            wrong += _judge_promise(promise, by_uid.get(uid, []), books)
            wrong += _judge_skips(promise, ledger.pauses.get(promise.name, []), books)
    return wrong + _judge_records(ledger, books) + _judge_started(ledger)


def _judge_arrivals(arrivals: list[Arrival]) -> list[str]:
    wrong: list[str] = []
    seen: set[tuple[str, int, int]] = set()
    epochs: dict[str, int] = defaultdict(int)
    for arrival in arrivals:
        if arrival.latest_ms < arrival.scheduled_ms:
            wrong.append(f"I2 {arrival.id}: {arrival.scheduled_ms - arrival.latest_ms} ms early")
        key = (arrival.id, arrival.attempt, arrival.epoch)
        if key in seen:
            wrong.append(f"I7 {key} arrived twice")
        seen.add(key)
        if arrival.epoch < epochs[arrival.job]:
            wrong.append(f"I8 {arrival.job}: epoch went back to {arrival.epoch}")
        epochs[arrival.job] = arrival.epoch
    return wrong


def _judge_cancels(ledger: Ledger) -> list[str]:
    """After CANCELLED_BEFORE_DISPATCH nothing arrives, ever."""
    cancelled = {p.uid.hex(): p for p in ledger.promises.values() if p.cancelled_at >= 0}
    return [
        f"I4 {arrival.id} arrived after CANCELLED_BEFORE_DISPATCH"
        for number, arrival in enumerate(ledger.arrivals)
        if (promise := cancelled.get(arrival.id[:32]))
        and (number >= promise.cancelled_at or (promise.never_sent and ":r:" not in arrival.id))
    ]


# --- occurrences ---------------------------------------------------------------------------------


def _judge_promise(promise: Promise, arrivals: list[Arrival], books: Books) -> list[str]:
    """Every occurrence up to the end arrived, or a record says why not, or it is about to come."""
    arrived = {arrival.scheduled_ms for arrival in arrivals}
    records = [e for e in books.executions.get(promise.uid, []) if _excuses(e)]
    excused = {ms for e in records for ms in _covered(promise, e)}
    coming = _coming(promise, books)
    lost = [
        ms
        for ms in _occurrences(promise, books.end_ms)
        if ms not in arrived and ms not in excused and ms not in coming
    ]
    what = f"{promise.name} {promise.uid.hex()}"
    return [f"I1 {what}: occurrence {ms} was lost" for ms in lost]


def _excuses(execution: Execution) -> bool:
    return execution.state in {ExecutionState.SKIPPED, ExecutionState.MISSED}


def _covered(promise: Promise, record: Execution) -> Iterable[Ms]:
    last_ms = max(record.last_ms, record.scheduled_ms)
    return range(record.scheduled_ms, last_ms + 1, promise.period_ms or 1 << 60)


def _judge_skips(promise: Promise, pauses: list[tuple[Ms, Ms]], books: Books) -> list[str]:
    """A record must count what it covers, and a pause must be one that a user asked for."""
    found: list[str] = []
    for record in filter(_excuses, books.executions.get(promise.uid, [])):
        covered = list(_covered(promise, record))
        if len(covered) != record.length:
            found.append(f"a record of {record.length} covers {len(covered)} occurrences")
        if record.reason == Reason.PAUSED and not books.clock_stepped:
            found += [
                f"{ms} is recorded as PAUSED, and nobody paused it then"
                for ms in covered
                if not any(start <= ms < end for start, end in pauses)
            ]
        if record.reason in {Reason.JOB_CANCELLED, Reason.JOB_DELETED, Reason.JOB_DISABLED}:
            found.append(f"{record.reason.name}, and nobody asked for it")
    return [f"I1 {promise.name} {promise.uid.hex()}: {fault}" for fault in found]


def _coming(promise: Promise, books: Books) -> set[Ms]:
    """What the job's status still holds: the buffered occurrence, and those not handled yet."""
    status = books.statuses.get(promise.uid)
    if status is None:
        return set()
    oldest_ms = books.end_ms - COMING_MS
    coming = {
        status.buffered_ms,
        *(e.scheduled_ms for e in books.executions.get(promise.uid, []) if not e.state.ended),
    }
    if status.next_ms:
        coming |= set(range(status.next_ms, books.end_ms + 1, promise.period_ms or 1 << 60))
    return {ms for ms in coming if ms >= oldest_ms}


def _occurrences(promise: Promise, end_ms: Ms) -> list[Ms]:
    if promise.once_ms:
        return [promise.once_ms] if promise.once_ms <= end_ms else []
    first_ms = (promise.created_ms // promise.period_ms + 1) * promise.period_ms
    return list(range(first_ms, end_ms + 1, promise.period_ms))


# --- executions ----------------------------------------------------------------------------------


def _judge_records(ledger: Ledger, books: Books) -> list[str]:
    """What is said to have succeeded was seen by the target."""
    arrived = {arrival.id for arrival in ledger.arrivals}
    return [
        f"I10 {execution.id} is SUCCEEDED and never arrived"
        for executions in books.executions.values()
        for execution in executions
        if execution.state == ExecutionState.SUCCEEDED and execution.id not in arrived
    ]


def _judge_started(ledger: Ledger) -> list[str]:
    """A manual run or a redrive that was acknowledged is attempted."""
    attempts: dict[str, int] = defaultdict(int)
    for arrival in ledger.arrivals:
        attempts[arrival.id] = max(attempts[arrival.id], arrival.attempt)
    return [
        f"I1 {execution}: started by a user, and never attempted after attempt {base}"
        for uid, execution, base in ledger.started
        if ledger.is_firm(uid) and attempts[execution] <= base
    ]
