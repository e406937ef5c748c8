"""Floor 2, pure. The first step of a batch: what its commands must know, what of it the table has, what the store must tell.

`collect` is called until it wants nothing: names first, then the jobs behind them, then their live executions. `Rows`
keeps what the table said at that moment, so a flush that ends meanwhile can't take it away; the runner starts over when
a flush ended while it was reading (`Table.thaws`).

Must never import: any driver, `store`; no I/O, no clock.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tickwheel.server.codec import decode_status
from tickwheel.server.command import (
    Abandon,
    Cancel,
    Command,
    Create,
    Delete,
    Due,
    Ended,
    Expire,
    NamedCommand,
    Redrive,
    Resume,
    Update,
)
from tickwheel.server.draft import Rows
from tickwheel.server.fire import OutcomeKind
from tickwheel.server.model import JobRow, Row
from tickwheel.server.table import GONE, Mark, Partly, Table

_OF_A_ROW = (Due, Expire, Abandon)
_OF_LIVE = (Cancel, Delete, Resume, Update)


class Wants:
    """What must be read from the store."""

    __slots__ = ("ended", "jobs", "live", "names")

    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []
        self.jobs: list[Row] = []
        self.live: list[Row] = []
        self.ended: list[Row] = []

    def __bool__(self) -> bool:
        return bool(self.names or self.jobs or self.live or self.ended)


@dataclass(frozen=True, slots=True)
class Found:
    """The store's answer to `Wants`; what is missing in it does not exist there."""

    names: Mapping[tuple[str, str], Row]
    jobs: Mapping[Row, JobRow]
    live: Mapping[Row, bytes]
    ended: Mapping[Row, bytes] = field(default_factory=dict[Row, bytes])


def collect(table: Table, commands: Sequence[Command], rows: Rows) -> Wants:
    """Fill `rows` from the table; return what only the store can tell."""
    wants = Wants()
    starting: set[Row] | None = None
    named: dict[str, list[str]] = {}
    for command in commands:
        if isinstance(command, Create):
            if not command.fresh:
                named.setdefault(command.namespace, []).append(command.name)
        elif isinstance(command, _OF_A_ROW):
            _want_job(table, command.job_row, rows, wants)
            if isinstance(command, Abandon):
                _want_live(table, command.execution_row, rows, wants)
        elif isinstance(command, Ended):
            if starting is None:
                starting = {other.execution_row for other in commands if isinstance(other, Due)}
            _want_ended(table, command, rows, wants, starting)
        else:
            _want_named(table, command, rows, wants)
    for namespace, names in named.items():
        _want_created(table, namespace, names, rows, wants)
    return wants


def merge(rows: Rows, wants: Wants, found: Found) -> bool:
    """Put the store's answer into `rows`; a status that the table already knew stands.

    True when nothing can follow from it: names were asked for, and none of them is there.
    """
    for key in wants.names:
        rows.names[key] = found.names.get(key, 0)
    for row in wants.jobs:
        job = found.jobs.get(row)
        status = rows.statuses.get(row)
        rows.jobs[row] = job if job is None or status is None else job._replace(status=status)
    for row in wants.live:
        rows.live[row] = found.live.get(row)
    for row in wants.ended:
        rows.ended[row] = found.ended.get(row)
    return not (found.names or wants.jobs or wants.live or wants.ended)


def _want_created(
    table: Table, namespace: str, names: Sequence[str], rows: Rows, wants: Wants
) -> None:
    """Creates mostly name what does not exist: nothing is kept of those, `rows` lacks them anyway."""
    for name in table.perhaps(namespace, names):
        row = _want_name(table, (namespace, name), rows, wants)
        if row:
            _want_job(table, row, rows, wants)


def _want_named(table: Table, command: NamedCommand, rows: Rows, wants: Wants) -> None:
    row = _want_name(table, (command.namespace, command.name), rows, wants)
    if row:
        _want_job(table, row, rows, wants, with_live=isinstance(command, _OF_LIVE))
    if isinstance(command, Redrive):
        _want_letter(table, command.row, rows, wants)


def _want_name(table: Table, key: tuple[str, str], rows: Rows, wants: Wants) -> Row:
    row = rows.names.get(key)
    if row is None:
        found = table.find(*key)
        if isinstance(found, int):
            row = rows.names[key] = found
        elif found is GONE:
            row = rows.names[key] = 0
        else:
            wants.names.append(key)
    return row or 0


def _want_job(table: Table, row: Row, rows: Rows, wants: Wants, *, with_live: bool = False) -> None:
    if row not in rows.jobs:
        found = table.job(row)
        if isinstance(found, JobRow):
            rows.jobs[row] = found
        elif found is GONE:
            rows.jobs[row] = None
        else:
            if isinstance(found, Partly):
                rows.statuses[row] = found.status
            wants.jobs.append(row)
            return
    job = rows.jobs[row]
    if with_live and job is not None:
        for live in decode_status(job.status).live:
            _want_live(table, live, rows, wants)


def _want_live(table: Table, row: Row, rows: Rows, wants: Wants) -> None:
    _want_execution(row, table.execution, rows.live, wants.live)


def _want_letter(table: Table, row: Row, rows: Rows, wants: Wants) -> None:
    """What was looked up before the call may have been sent again, and have ended again, since."""
    _want_execution(row, table.ended, rows.ended, wants.ended)


def _want_execution(
    row: Row, look: Callable[[Row], bytes | Mark], known: dict[Row, bytes | None], wanted: list[Row]
) -> None:
    if row in known:
        return
    found = look(row)
    if isinstance(found, bytes):
        known[row] = found
    elif found is GONE:
        known[row] = None
    else:
        wanted.append(row)


def _want_ended(table: Table, command: Ended, rows: Rows, wants: Wants, starting: set[Row]) -> None:
    fire = command.fire
    if fire.execution_row not in starting:
        _want_live(table, fire.execution_row, rows, wants)
    disables = command.outcome.kind == OutcomeKind.DISABLE
    _want_job(table, fire.job_row, rows, wants, with_live=disables)
