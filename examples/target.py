"""A target to try things on: prints what arrives, and does the work of each id once.

    python examples/target.py [port]        default 9000; ctrl-c stops it

The path says how it answers: `/ok` at once, `/slow` after 3 s, `/fail` with 503. The ids are remembered in memory here;
a real receiver writes the id into its own database, in the transaction that does the work.
"""

import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

DEFAULT_PORT = 9_000
SLOW_S = 3.0

done: set[str] = set()
lock = Lock()


class Receiver(BaseHTTPRequestHandler):
    """Answers 204, or 503 where the path asks for it."""

    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        """Say what came, and whether its work was done before."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fails = self.path.startswith("/fail")
        with lock:
            key = self.headers.get("Idempotency-Key", "")
            known = key in done
            if key and not fails:
                done.add(key)
        what = "fails" if fails else "repeat" if known else "new"
        job = self.headers.get("Tickwheel-Job", "-").rpartition("/")[2]
        due = self.headers.get("Tickwheel-Scheduled-Time", "-")
        attempt = self.headers.get("Tickwheel-Attempt", "-")
        print(f"{what:6} {job} due {due} attempt {attempt} id {key}", flush=True)
        if self.path.startswith("/slow"):
            time.sleep(SLOW_S)
        self.send_response(503 if fails else 204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """One line a request is enough."""


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_PORT
    with suppress(KeyboardInterrupt):
        ThreadingHTTPServer(("127.0.0.1", port), Receiver).serve_forever()
