"""Tells a story to the machine, a command a line, and writes down what it does: replies, effects, fires.

    create NAME every 1h [key=value ...]    create NAME once +1h         update NAME every 2h [...]
    pause NAME    resume NAME    cancel NAME    delete NAME    run NAME REQUEST    redrive NAME REQUEST
    tick 1h       move the clock, fire, log          fire 1h     the same, but what the leader tells itself waits
    send NAME     ask the gate                       outcome NAME succeeded | retry | fail | disable [after=10m]
    begin COMMAND ...  decide a batch                commit      apply it
    flush         write to the store, forget         crash 1h    another leader takes over, 1h later
    show NAME     the job as applied

Times are told from the beginning of the story: `+1h`. A batch is one `log:` with its effects.
"""

import re
from collections.abc import Callable
from typing import cast

from tests.unit.shard_kit import (
    DAY,
    HOUR,
    MINUTE,
    NAMESPACE,
    NOW,
    SECOND,
    Bench,
    Pending,
    Said,
    change,
    creation,
    every,
    failed,
    once,
)

from tickwheel.server import codec
from tickwheel.server.command import (
    Cancel,
    ChangeReply,
    Delete,
    JobView,
    NamedCommand,
    Pause,
    Redrive,
    Reply,
    Resume,
    Run,
)
from tickwheel.server.errors import TickwheelError
from tickwheel.server.fire import Fire, OutcomeKind
from tickwheel.server.model import (
    Effects,
    Execution,
    ExecutionState,
    MisfirePolicy,
    Ms,
    OverlapPolicy,
    Row,
    Status,
)
from tickwheel.v1 import schedule_pb2

UNITS = {"d": DAY, "h": HOUR, "m": MINUTE, "s": SECOND, "ms": 1}
SPEC_WORDS: dict[str, Callable[[str], object]] = {
    "overlap": OverlapPolicy.__getitem__,
    "misfire": MisfirePolicy.__getitem__,
    "misfire_max": int,
    "max_executions": int,
    "max_attempts": int,
    "url": str,
}

PLAIN: dict[str, Callable[[str, str], NamedCommand]] = {
    "pause": Pause,
    "resume": Resume,
    "cancel": Cancel,
    "delete": Delete,
}


def length(text: str) -> int:
    """Milliseconds of `1h30m`, `-5s`, `250ms`."""
    parts = re.findall(r"(\d+)(ms|[dhms])", text)
    assert parts, f"no length of time: {text!r}"
    total = sum(int(count) * UNITS[unit] for count, unit in parts)
    return -total if text.startswith("-") else total


def span(ms: int) -> str:
    """The inverse: `1h30m`."""
    if ms == 0:
        return "0"
    text, rest = "", abs(ms)
    for unit, size in UNITS.items():
        count, rest = divmod(rest, size)
        text += f"{count}{unit}" if count else ""
    return text if ms > 0 else f"-{text}"


def instant(ms: Ms) -> str:
    """A time, told from the beginning of the story; `-` is none."""
    if not ms:
        return "-"
    return f"+{span(ms - NOW)}" if ms >= NOW else span(ms - NOW)


class Teller(Bench):
    """A bench that writes down what happens."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self.pending: Pending | None = None
        self.letters: dict[str, Row] = {}

    def tell(self, line: str) -> str:
        """Do one line; answer with what happened."""
        verb, *words = line.split()
        self.told = []
        act: Callable[..., None] | None = getattr(self, f"do_{verb}", None)
        if act is None:
            self._ask(verb, *words)
        else:
            act(*words)
        return "\n".join(self.told) or "nothing"

    def commit(self, pending: Pending) -> None:
        if pending.batch.effects is not None:
            self.told.append("log:")
            self.told += [f"  {line}" for line in describe(pending.batch.effects)]
        super().commit(pending)

    # --- users ---

    def _ask(self, *words: str) -> None:
        (reply,) = self.batch(self._command(*words))
        self.told.append(describe_reply(reply))

    def do_begin(self, *words: str) -> None:
        self.pending = self.begin(self._command(*words))
        held = " ".join(str(row) for row in sorted(self.shard.held))
        self.told.append(f"held: {held}" if held else "nothing is held")

    def do_commit(self) -> None:
        assert self.pending is not None, "nothing to commit"
        pending, self.pending = self.pending, None
        self.commit(pending)
        self.told.append(describe_reply(pending.batch.replies[-1]))

    def _command(self, verb: str, name: str, *words: str) -> NamedCommand:
        match verb:
            case "create":
                return creation(name, self._when(*words[:2]), past_ok=True, **said(words[2:]))
            case "update":
                return change(name, self._when(*words[:2]), **said(words[2:]))
            case "run":
                return Run(NAMESPACE, name, words[0])
            case "redrive":
                return Redrive(NAMESPACE, name, self._letter(name), words[0])
            case _:
                return PLAIN[verb](NAMESPACE, name)

    def _when(self, kind: str, text: str) -> schedule_pb2.Schedule:
        return every(length(text)) if kind == "every" else once(NOW + length(text))

    def _letter(self, name: str) -> Row:
        """The job's newest dead letter; also after it was redriven, as a client would repeat its request."""
        for row, data in self.shard.table.active.ended.items():
            execution = codec.decode_execution(data)
            if execution.job == name and execution.state == ExecutionState.FAILED:
                self.letters[name] = row
        return self.letters[name]

    # --- the leader, dispatch, the store ---

    def do_tick(self, by: str = "0s") -> None:
        fires = self.tick(length(by))
        self.told += [describe_fire(fire) for fire in fires]

    def do_fire(self, by: str = "0s") -> None:
        fires = self.tick(length(by), log=False)
        self.told += [describe_fire(fire) for fire in fires]
        self.told += [f"waits: {type(command).__name__}" for command in self.leading]

    def _flight(self, name: str) -> Fire:
        flights = [fire for fire in self.outbox if fire.job == name]
        assert flights, f"nothing of {name} is on its way"
        return flights[0]

    def do_send(self, name: str) -> None:
        fire = self._flight(name)
        if self.shard.may_send(fire):
            self.told.append(f"sent: {fire.job} attempt {fire.attempt}")
        else:
            self.told.append(f"withheld: {fire.job} attempt {fire.attempt}")
            self.give_back(fire)

    def do_outcome(self, name: str, kind: str, after: str = "") -> None:
        wait_ms = length(after.removeprefix("after=")) if after else 0
        outcome = failed(OutcomeKind[kind.upper()], retry_after_ms=wait_ms)
        bad = outcome._replace(start_ms=self.now_ms, end_ms=self.now_ms)
        self.answer(self._flight(name), None if kind == "succeeded" else bad)

    def do_flush(self) -> None:
        rows = self.shard.table.active.rows
        self.flush()
        self.told.append(f"{rows} rows")

    def do_crash(self, by: str) -> None:
        self.crash(length(by))
        self.told.append(f"epoch {self.shard.epoch} at {instant(self.now_ms)}")

    def do_show(self, name: str) -> None:
        self.told.append(describe_status(self.status(name)))


def said(words: tuple[str, ...]) -> Said:
    """`key=value` words; a key that ends in `_ms` in the code is told as a length of time."""
    found: dict[str, object] = {}
    for word in words:
        key, value = word.split("=", 1)
        if key in SPEC_WORDS:
            found[key] = SPEC_WORDS[key](value)
        elif key == "end":
            found["end_ms"] = NOW + length(value)
        else:
            found[f"{key}_ms"] = length(value)
    return cast(Said, found)


# --- in words --------------------------------------------------------------------------------


def describe(effects: Effects) -> list[str]:
    """One line an after-image."""
    lines = [
        f"job {row} {name} {describe_status(codec.decode_status(status))}"
        for row, (_, name, _, _, status, _) in effects.jobs
    ]
    lines += [
        f"status {row} {describe_status(codec.decode_status(data))}"
        for row, data in effects.statuses
    ]
    lines += [f"drop {row} {name}" for row, _, name in effects.drops]
    for word, rows in (("live", effects.live), ("ended", effects.ended)):
        lines += [
            f"{word} {row} {describe_execution(codec.decode_execution(data))}" for row, data in rows
        ]
    return lines


def describe_status(status: Status) -> str:
    """What of a status differs from nothing."""
    parts = [f"{status.state.name} g{status.generation}"]
    parts += [f"next {instant(status.next_ms)} due {instant(status.due_ms)}"]
    for word in ("run", "succeeded", "failed", "skipped"):
        if count := getattr(status, word):
            parts.append(f"{word} {count}")
    if status.buffered_ms:
        parts.append(f"buffered {instant(status.buffered_ms)}")
    if status.live:
        parts.append("live " + " ".join(str(row) for row in status.live))
    return ", ".join(parts)


def describe_execution(execution: Execution) -> str:
    what = f"{execution.job} {instant(execution.scheduled_ms)} {execution.state.name}"
    if execution.length > 1:
        what += f" until {instant(execution.last_ms)} x{execution.length}"
    if execution.attempt:
        what += f" after {execution.attempt}"
    if execution.reason:
        what += f" ({execution.reason.name})"
    return what + (f" due {instant(execution.due_ms)}" if execution.due_ms else "")


def describe_fire(fire: Fire) -> str:
    late = " late" if fire.late else ""
    return (
        f"fire {fire.execution_row} {fire.job} {instant(fire.scheduled_ms)}"
        f" attempt {fire.attempt} g{fire.generation} e{fire.epoch}{late}"
    )


def describe_reply(reply: Reply | TickwheelError) -> str:
    match reply:
        case TickwheelError():
            return f"refused: {reply.code} {reply.reason}"
        case ChangeReply():
            attempt = f"({reply.attempt})" if reply.attempt else ""
            return f"reply: {reply.cancellation.name}{attempt}"
        case JobView():
            return f"reply: row {reply.row} {reply.status.state.name}, running {reply.running}"
        case _:
            return "reply: done"
