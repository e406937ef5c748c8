"""Floor 5. The door for operators: `/metrics`, `/healthz`, `/readyz` over HTTP.

    /healthz    200 while the process turns
    /readyz     200 when the node fires on time, else 503 with the reasons, one a line
    /metrics    Prometheus text

Ready means "is firing": a node whose wheel has an overdue head is not ready, however healthy its sockets look.

Must never import: any room below the doors.
"""

import logging
from collections.abc import Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tickwheel.server.logs import get_logger


def is_ours(record: logging.LogRecord) -> bool:
    """Whether a line speaks of a fault of this side. A request that is no HTTP got its 400: anyone can send millions."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_log = get_logger(f"{__name__}.http")
_log.addFilter(is_ours)


def make_app(registry: CollectorRegistry, unready: Callable[[], list[str]]) -> web.Application:
    """The application; `unready` names what keeps the node from firing on time, empty when nothing does."""

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        reasons = unready()
        if reasons:
            return web.Response(status=503, text="".join(f"{reason}\n" for reason in reasons))
        return web.Response(text="ready\n")

    async def metrics(_request: web.Request) -> web.Response:
        headers = {"Content-Type": CONTENT_TYPE_LATEST}
        return web.Response(body=generate_latest(registry), headers=headers)

    app = web.Application(client_max_size=64 * 1024)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app


class OpsServer:
    """The listener; port 0 takes a free one, `port` tells which."""

    def __init__(self, app: web.Application) -> None:
        self._runner = web.AppRunner(app, access_log=None, logger=_log, shutdown_timeout=1.0)
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen. OSError when the address is taken."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        address = self._runner.addresses[0]
        self.port = int(address[1])

    async def stop(self) -> None:
        """Close the listener and what is open."""
        await self._runner.cleanup()
