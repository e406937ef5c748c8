"""The log, applied a second time by simpler means: what each shard must know at each index.

    wal.submit ──► note ──► entries[index]       slot.applied ──► check ──► the same rows, byte for byte?

`check` looks at a shard as its readers do: table (with its cache) over store. After a restart the index must not lie
before one that was applied earlier, for what is applied is acknowledged.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tests.sim.store import DictStore

from tickwheel.server import codec
from tickwheel.server.model import Effects, JobRow, Row
from tickwheel.server.record import Record, RecordType
from tickwheel.server.slot import Slot
from tickwheel.server.table import GONE, UNKNOWN, Partly


@dataclass
class Content:
    """A shard's rows as the log has them up to `index`. An execution that is live is not in `ended`."""

    index: int = 0
    jobs: dict[Row, JobRow] = field(default_factory=dict[Row, JobRow])
    live: dict[Row, bytes] = field(default_factory=dict[Row, bytes])
    ended: dict[Row, bytes] = field(default_factory=dict[Row, bytes])

    def apply(self, effects: Effects) -> None:
        """After-images, each in its place."""
        for row, _, _ in effects.drops:
            self.jobs.pop(
                row, None
            )  # one that was made and deleted by the same batch was never there
        self.jobs.update({row: JobRow(*job) for row, job in effects.jobs})
        for row, status in effects.statuses:
            self.jobs[row] = self.jobs[row]._replace(status=status)
        for row, data in effects.live:
            self.live[row] = data
            self.ended.pop(row, None)
        for row, data in effects.ended:
            self.ended[row] = data
            self.live.pop(row, None)


class Mirror:
    """Every shard's log, and what follows from it."""

    def __init__(self, shards: int) -> None:
        self.content = [Content() for _ in range(shards)]
        self._entries: list[dict[int, bytes]] = [{} for _ in range(shards)]

    def note(self, records: Iterable[Record]) -> None:
        """Entries that are handed to the journal. One that a crash lost gives its index to another."""
        for record in records:
            if record.type == RecordType.ENTRY:
                self._entries[record.shard][record.index] = record.payload

    def check(self, slot: Slot) -> list[str]:
        """What the shard holds that the log does not say, or the other way round."""
        number = slot.shard.number
        content, entries = self.content[number], self._entries[number]
        if slot.applied < content.index:
            return [f"I11 shard {number}: applied went back from {content.index} to {slot.applied}"]
        while content.index < slot.applied:
            content.index += 1
            content.apply(codec.decode_effects(entries.pop(content.index)))
        return [f"I11 shard {number} at {slot.applied}: {what}" for what in unlike(content, slot)]


def unlike(content: Content, slot: Slot) -> Iterator[str]:
    """What the readers of a shard see that is not so at that index."""
    store = slot.store
    assert isinstance(store, DictStore)
    table = slot.shard.table
    named = store.find([(job.namespace, job.name) for job in content.jobs.values()])
    for row, job in content.jobs.items():
        seen = _job_seen(slot, row)
        if seen != job:
            yield f"job {job.name} (row {row}) reads {seen}"
        found = table.find(job.namespace, job.name)
        if (named.get((job.namespace, job.name)) if found is UNKNOWN else found) != row:
            yield f"the name {job.name} leads to {found}, not to row {row}"
    stored_live = store.live(list(content.live))
    for row, data in content.live.items():
        live = table.execution(row)
        if (stored_live.get(row) if live is UNKNOWN else live) != data:
            yield f"live execution {row} reads otherwise"
    stored = {row for row, _ in store.stored_jobs()}
    for row in sorted(stored - content.jobs.keys()):
        if table.job(row) is not GONE:
            yield f"job row {row} was dropped and is still read"
    for row in sorted(store.stored_live() - content.live.keys()):
        if table.execution(row) is not GONE:
            yield f"execution row {row} ended and is still live"


def _job_seen(slot: Slot, row: Row) -> JobRow | None:
    found = slot.shard.table.job(row)
    if isinstance(found, JobRow):
        return found
    if found is GONE:
        return None
    stored = slot.store.jobs([row]).get(row)
    if isinstance(found, Partly) and stored is not None:
        return stored._replace(status=found.status)
    return stored


def check_flushed(content: Content, store: DictStore) -> list[str]:
    """After a flush with nothing new since: the store alone says it all, ended executions too."""
    wrong: list[str] = []
    if dict(store.stored_jobs()) != content.jobs:
        wrong.append("I11 the store's jobs are not those of the log")
    if store.stored_ended() != content.ended:
        wrong.append("I11 the store's ended executions are not those of the log")
    return wrong
