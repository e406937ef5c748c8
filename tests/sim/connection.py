"""One connection of the simulated network: what is under way between its ends, in order and bounded."""

from collections import deque
from typing import TYPE_CHECKING, Final

from tickwheel.server.cluster import wire
from tickwheel.server.cluster.peer_hello import Caller

if TYPE_CHECKING:
    from tests.sim.network import SimPeers

WINDOW_BYTES: Final = 1 << 20
"""What is under way on one connection before the sender waits."""


class Connection:
    """What is under way between both ends, in order."""

    def __init__(self, target: "SimPeers | None" = None, caller: Caller | None = None) -> None:
        self.target = target
        self.caller = caller
        self.unpacker = wire.Unpacker()
        self.next_sequence = 1
        self.arrives_s = 0.0
        self.arrived = 0
        self._frames: deque[bytes] = deque()  # bounded: by WINDOW_BYTES
        self._bytes = 0

    @property
    def room(self) -> bool:
        """Whether the sender may write."""
        return self._bytes < WINDOW_BYTES

    def put(self, frame: bytes) -> None:
        """It leaves."""
        self._frames.append(frame)
        self._bytes += len(frame)

    def take(self) -> bytes | None:
        """It is read at the other end; None when the connection was cut."""
        self.arrived -= 1
        if not self._frames:
            return None
        frame = self._frames.popleft()
        self._bytes -= len(frame)
        return frame

    def cut(self) -> None:
        """What is under way is lost, and the other end forgets the stream."""
        self._frames.clear()
        self.arrived = 0
        if self.target is not None and self.caller is not None:
            self.target.admission.closed(self.caller)
