"""A node and a sink as real processes: start, wait until ready, kill, restart, stop. Shared by tests, demo and load.

A node keeps its ports over restarts, so that a client's channel finds it again. Its output goes to one log file, behind
a line for each start. Processes are ended by their own pid, and whoever starts one ends it (`close`).
"""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Self

from bench.sink import Arrival

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.01
READY_S = 60.0
STOP_S = 30.0
PORT_MIN, PORT_MAX = 10_000, 32_000


class NotReady(Exception):
    """The process ended, or was not ready in time. The message ends with what it said last."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has at this moment.

    From below the range that the system takes callers' ports from: a node that is down for a while must find its port
    free when it comes back.
    """
    while True:
        port = random.randrange(PORT_MIN, PORT_MAX)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll until `condition` holds. Raises TimeoutError, naming `what`."""
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {timeout_s} s for {what}")
        time.sleep(POLL_S)


def get(port: int, path: str, timeout_s: float = 60.0) -> tuple[int, bytes]:
    """One HTTP GET on 127.0.0.1: status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def counted(node: "Node", name: str) -> float:
    """The value of a metric without labels, as the node tells it now. Raises LookupError, OSError."""
    _, body = get(node.http_port, "/metrics", timeout_s=5.0)
    for line in body.decode().splitlines():
        found, _, value = line.partition(" ")
        if found == name:
            return float(value)
    raise LookupError(f"{name} is no metric of {node.target}")


def environment() -> dict[str, str]:
    """This process's environment, with the checkout's sources in reach."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


class Node:
    """One `tickwheel serve` on a data directory."""

    def __init__(
        self, data_dir: Path, *, prefix: Sequence[str] = (), options: Sequence[str] = ()
    ) -> None:
        self.data_dir = data_dir
        self.log = data_dir.with_name(data_dir.name + ".log")
        self.grpc_port = free_port()
        self.http_port = free_port()
        self.prefix = list(prefix)
        self.options = list(options)
        self.module: Sequence[str] = ("tickwheel.server",)
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def target(self) -> str:
        """The gRPC address."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def pid(self) -> int:
        """The process that was started (with a prefix, the prefix's)."""
        assert self.process is not None
        return self.process.pid

    def command(self) -> list[str]:
        """The command line."""
        return [
            *self.prefix, sys.executable, "-m", *self.module, "serve",
            "--data-dir", str(self.data_dir), "--grpc-listen", self.target,
            "--http-listen", f"127.0.0.1:{self.http_port}", *self.options,
        ]  # fmt: skip

    def spawn(self) -> None:
        """Start the process; do not wait."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        self.starts += 1
        with self.log.open("ab") as out:
            out.write(f"--- start {self.starts} at {time.time():.3f}\n".encode())
            out.flush()
            self.process = subprocess.Popen(  # noqa: S603 — our own command line
                self.command(), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment()
            )

    def start(self, timeout_s: float = READY_S) -> Self:
        """Start it and wait until it is ready. Raises NotReady."""
        self.spawn()
        self.wait_ready(timeout_s)
        return self

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Wait for `/readyz`. Raises NotReady when the process ends first, or time does."""
        until = time.monotonic() + timeout_s
        while not self.ready():
            code = self.code()
            if code is not None or time.monotonic() > until:
                raise NotReady(f"exit code {code} after {timeout_s} s; {self.tail()}")
            time.sleep(POLL_S)

    def ready(self) -> bool:
        """Whether it answers 200 on `/readyz`."""
        try:
            return get(self.http_port, "/readyz", timeout_s=5.0)[0] == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False

    def code(self) -> int | None:
        """The exit code, None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def kill(self) -> None:
        """`kill -9`, and reap."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self, timeout_s: float = STOP_S) -> int:
        """SIGTERM; the exit code. Raises subprocess.TimeoutExpired when it takes longer."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def wait_exit(self, timeout_s: float = STOP_S) -> int:
        """The exit code of a process that ends by itself."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def tail(self, lines: int = 30) -> str:
        """What it said last."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def rss_bytes(self) -> int:
        """Resident memory, from /proc (Linux)."""
        return self._status_bytes("VmRSS:")

    def rss_peak_bytes(self) -> int:
        """The most it ever was since the process began, from /proc (Linux)."""
        return self._status_bytes("VmHWM:")

    def _status_bytes(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1_024
        raise OSError(f"no {name}")

    def cpu_s(self) -> float:
        """CPU seconds used, user and system, from /proc (Linux)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it, whatever it does."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sink:
    """A `bench.sink` process; it ends when its stdin closes, so it never outlives this one."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.sink", "--with-stdin"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment(),
        )  # fmt: skip
        self.port = int(self._pipe(self.process.stdout).readline())

    def url(self, path: str = "/ok") -> str:
        """The URL of a behaviour."""
        return f"http://127.0.0.1:{self.port}{path}"

    def count(self) -> int:
        """How many requests arrived."""
        return int(get(self.port, "/__count")[1])

    def records(self, start: int = 0) -> list[Arrival]:
        """What arrived, in order, from number `start` on."""
        _, body = get(self.port, f"/__records?from={start}", timeout_s=600.0)
        return [Arrival(*json.loads(line)) for line in body.splitlines()]

    def reset(self) -> None:
        """Forget what arrived."""
        get(self.port, "/__reset")

    def close(self) -> None:
        """End it."""
        self._pipe(self.process.stdin).close()
        self.process.wait(STOP_S)
        self._pipe(self.process.stdout).close()

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
