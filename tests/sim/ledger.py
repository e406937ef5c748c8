"""What users were told and what the target saw, and the judgement over both (DESIGN §11: I1, I2, I4, I7, I8, I9)."""

from collections import defaultdict
from dataclasses import dataclass, field

from tickwheel.server.model import Execution, ExecutionState, Ms


@dataclass
class Promise:
    """What is known of one creation, from its users' point of view. `firm`: nobody disturbed its schedule."""

    namespace: str
    name: str
    uid: bytes
    once_ms: Ms
    period_ms: int
    created_ms: Ms
    firm: bool = True
    cancelled_before: bool = False


@dataclass
class Arrival:
    """One request as the target saw it."""

    at_ms: Ms
    id: str
    job: str
    scheduled_ms: Ms
    attempt: int
    epoch: int
    life: int


@dataclass
class Ledger:
    """What users were told and what the target saw."""

    promises: dict[bytes, Promise] = field(default_factory=dict[bytes, Promise])
    arrivals: list[Arrival] = field(default_factory=list[Arrival])
    refused: int = 0
    answered: int = 0


def judge(ledger: Ledger, executions: dict[bytes, list[Execution]], end_ms: Ms) -> list[str]:
    """Every broken guarantee, in words; empty when all held. `executions` is the node's own record at the end."""
    by_uid: dict[bytes, list[Arrival]] = defaultdict(list)
    for arrival in ledger.arrivals:
        by_uid[bytes.fromhex(arrival.id[:32])].append(arrival)
    wrong = _judge_arrivals(ledger.arrivals)
    for uid, promise in ledger.promises.items():
        arrivals = by_uid.get(uid, [])
        if promise.cancelled_before and arrivals:
            wrong.append(
                f"I4 {promise.name}: {len(arrivals)} arrivals after CANCELLED_BEFORE_DISPATCH"
            )
        if promise.firm:
            wrong += _judge_promise(promise, arrivals, executions.get(uid, []), end_ms)
    return wrong


def _judge_arrivals(arrivals: list[Arrival]) -> list[str]:
    wrong: list[str] = []
    seen: set[tuple[str, int, int]] = set()
    epochs: dict[str, int] = defaultdict(int)
    for arrival in arrivals:
        if arrival.at_ms < arrival.scheduled_ms:
            wrong.append(f"I2 {arrival.id}: {arrival.scheduled_ms - arrival.at_ms} ms early")
        key = (arrival.id, arrival.attempt, arrival.epoch)
        if key in seen:
            wrong.append(f"I7 {key} arrived twice")
        seen.add(key)
        if arrival.epoch < epochs[arrival.job]:
            wrong.append(f"I8 {arrival.job}: epoch went back to {arrival.epoch}")
        epochs[arrival.job] = arrival.epoch
    return wrong


def _judge_promise(
    promise: Promise, arrivals: list[Arrival], executions: list[Execution], end_ms: Ms
) -> list[str]:
    """Every occurrence up to the end arrived, or a record says why not."""
    arrived = {arrival.scheduled_ms for arrival in arrivals}
    excused = [
        (e.scheduled_ms, max(e.last_ms, e.scheduled_ms))
        for e in executions
        if e.state in {ExecutionState.SKIPPED, ExecutionState.MISSED}
    ]
    return [
        f"I1 {promise.name} {promise.uid.hex()}: occurrence {at_ms} was lost"
        for at_ms in _occurrences(promise, end_ms)
        if at_ms not in arrived and not any(first <= at_ms <= last for first, last in excused)
    ]


def _occurrences(promise: Promise, end_ms: Ms) -> list[Ms]:
    if promise.once_ms:
        return [promise.once_ms] if promise.once_ms <= end_ms else []
    first_ms = (promise.created_ms // promise.period_ms + 1) * promise.period_ms
    return list(range(first_ms, end_ms + 1, promise.period_ms))
