"""Floor 3. What the runner asks of the devices beside journal and store: so that simulated ones can take their place.

Must never import: any room but `fire`, `model`; no I/O, no clock.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from tickwheel.server.fire import Fire, Outcome, TargetKey
from tickwheel.server.model import Ms


class Clock(Protocol):
    """What the runner asks of the clock."""

    def now_ms(self) -> Ms:
        """Wall time."""
        ...

    def monotonic_ms(self) -> int:
        """Time that only grows, through suspension too."""
        ...

    def monotonic(self) -> float:
        """The same in seconds."""
        ...


class Dispatch(Protocol):
    """What the runner asks of dispatch."""

    def submit(
        self,
        fire: Fire,
        gate: Callable[[Fire], Awaitable[bool]],
        done: Callable[[Fire, Outcome], None],
    ) -> None:
        """Send it when its turn comes."""
        ...

    def room(self) -> int:
        """How many more it takes."""
        ...

    def crowded(self, url: str) -> TargetKey | None:
        """Keep a place for one more of a target, or say by which key `on_room` will call for it."""
        ...

    def places(self, key: TargetKey) -> int:
        """How many places a target may take now. If 0, `on_room` will call for it."""
        ...

    on_room: Callable[[TargetKey], None] | None
    """Called with the key of a target that has places again."""
