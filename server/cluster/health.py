"""Floor 3. Is this node well enough to keep its place? Asked from the session's thread before each renewal.

A leader whose disk hangs must not keep its lease because its network is fine: TiKV's PD saw one do so for 48 minutes
(tikv/pd issue 10671). So the lease is renewed only while

    the loop beats         it set `beat_ms` a moment ago
    the disk writes        no write to the journal is older than a while

Must never import: any other room; no I/O. Only plain attributes, so that any thread may read them.
"""

from collections.abc import Callable
from typing import Final

LOOP_MS_MAX: Final = 1_000
WRITE_MS_MAX: Final = 1_500


class Health:
    """Set on the loop, read in any thread."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self.beat_ms = now_ms()
        self.writing_since_ms = 0
        """When the oldest write that has not ended began; 0 when none is under way."""

    def beat(self) -> None:
        """The loop lives."""
        self.beat_ms = self._now_ms()

    def well(self) -> bool:
        """True while the node may keep its place."""
        return not self.ailing()

    def ailing(self) -> str:
        """What is wrong, for people; empty when nothing is."""
        now_ms = self._now_ms()
        if now_ms - self.beat_ms > LOOP_MS_MAX:
            return "the event loop stands still"
        since_ms = self.writing_since_ms
        if since_ms and now_ms - since_ms > WRITE_MS_MAX:
            return "the journal's disk does not answer"
        return ""
