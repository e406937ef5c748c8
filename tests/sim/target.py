"""A target that is slow, fails, and counts: what the nodes of a simulated cluster send their requests to."""

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING

from tickwheel.server.dispatch.transport import (
    ErrorKind,
    Gate,
    Request,
    Response,
    TransportError,
    Withdrawn,
)
from tickwheel.server.model import Ms

if TYPE_CHECKING:
    from tests.sim.cluster_node import SimNode
    from tests.sim.cluster_world import ClusterWorld


class SimTarget:
    """A transport of one life of a node."""

    def __init__(self, world: "ClusterWorld", node: "SimNode") -> None:
        self._world = world
        self._node = node
        self._trouble = world.weather.target_trouble

    async def send(self, request: Request, gate: Gate) -> Response:
        """The last look is at the gate, then the request is there."""
        rng = self._world.rng
        await asyncio.sleep(rng.choice((0.0, 0.001, 0.02, 0.3)))
        if not await gate():
            raise Withdrawn
        headers = {name.lower(): value for name, value in request.headers}
        self._world.record_arrival(self._node, headers)
        await asyncio.sleep(rng.choice((0.0, 0.002, 0.05, 1.5)))
        return self._answer(rng.random(), headers["webhook-id"][:32])

    def _answer(self, chance: float, uid: str) -> Response:
        if chance >= 0.22 * self._trouble:
            return Response(200, {}, b"ok")
        if chance < 0.01:
            self._world.ledger.gone.add(uid)
            return Response(410, {}, b"gone")
        if chance < 0.05:
            return Response(400, {"tickwheel-retry": "no"}, b"never")
        if chance < 0.09:
            raise TransportError(ErrorKind.RESET, sent=True)
        return Response(503, {"retry-after": "1"} if chance < 0.13 else {}, b"busy")

    async def close(self) -> None:
        """Nothing to close."""


def to_ms(text: str) -> Ms:
    """A header's time."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)
