"""Floor 5. What the shards of a cluster's node go through: follow, lead, let go.

    follower     committed entries ──► table (flushed as a leader's); no wheel
    Leading      epoch, empty wheel ──► the next ten seconds from the due index ──► the runner drives it ──► widen
    resign       at once: nothing more is sent or answered; who waits is told to ask again

Must never import: the doors.
"""

from collections.abc import Callable, Sequence

from tickwheel.server import codec
from tickwheel.server.cluster.host import Host
from tickwheel.server.keeper import Keeper
from tickwheel.server.logs import get_logger
from tickwheel.server.message import LogEntry
from tickwheel.server.runner import Runner
from tickwheel.server.slot import Slot
from tickwheel.server.turn import Event, Leading

log = get_logger(__name__)


class Leaderships:
    """Implements the host's `Hooks`; what it does not do itself it passes on to `more`."""

    def __init__(
        self,
        slots: dict[int, Slot],
        runner: Runner,
        keeper: Keeper,
        host: Host,
        more: Callable[[int, Event], None],
    ) -> None:
        self._slots = slots
        self._runner = runner
        self._keeper = keeper
        self._host = host
        self._more = more
        self.on_change: Callable[[], None] = lambda: None
        """Called when a shard begins to be served here, or is not any more."""

    def apply(self, shard: int, entries: Sequence[LogEntry]) -> None:
        """Bring a follower's table up to date."""
        slot = self._slots.get(shard)
        if slot is None:
            return  # a snapshot takes its place, which holds all this
        table = slot.shard.table
        before_bytes = table.bytes_held
        for entry in entries:
            assert entry.index == slot.applied + 1, "entries are applied in order, each once"
            if entry.payload:
                effects = codec.decode_effects(entry.payload)
                slot.shard.apply(effects)
                slot.reached(entry.index, effects)
            slot.index = slot.applied = entry.index
            slot.shard.epoch = entry.epoch
        self._runner.table_bytes += table.bytes_held - before_bytes

    def resign(self, shard: int) -> None:
        """The leadership is over."""
        log.info("resigned", extra={"shard": shard, "epoch": self._slots[shard].shard.epoch})
        self._runner.resign(shard)
        self.on_change()

    def event(self, shard: int, event: Event) -> None:
        """A leadership begins, or something for others."""
        if isinstance(event, Leading):
            self._runner.spawn(self._lead(shard, event.epoch))
        self._more(shard, event)

    async def _lead(self, shard: int, epoch: int) -> None:
        """Load what is due next, then serve and fire; unless the leadership ended meanwhile."""
        slot = self._slots[shard]
        slot.shard.lead(epoch, self._runner.clock.now_ms())
        await self._keeper.load_first(slot)
        replica = self._host.replicas[shard]
        if replica.leads and replica.epoch == epoch:
            self._host.serve(shard)
            self._runner.begin(slot)
            self.on_change()
            log.info("leading", extra={"shard": shard, "epoch": epoch})
