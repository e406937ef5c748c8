"""Floor 3. The session's thread: drives `Life` over a connection of its own, so that a busy loop does not cost the lease.

    loop's thread                       session's thread
    LeaseThread() ───── start ────────► Life.run(): ask ─► gRPC, file, pause ─► reply ─► ask ...
    on_held(held) ◄─ call_soon_threadsafe ── Gained
    close() ────────── closing ───────► revoke, end

A dead loop must not keep the lease either: that is what `healthy` is for, which looks at the loop's beat. A daemon: a
process that must go at once does not wait for etcd, and its lease runs out.

Must never import: other rooms of floor 3.
"""

import asyncio
import json
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc

from tickwheel.etcd import rpc_service_pb2 as rpc
from tickwheel.etcd import rpc_service_pb2_grpc as stubs
from tickwheel.server.clock import Clock
from tickwheel.server.cluster import etcd_life as life
from tickwheel.server.cluster.etcd_life import Fault, Life, Reply
from tickwheel.server.cluster.etcd_link import CHANNEL_OPTIONS, EtcdOptions, Rotation, metadata
from tickwheel.server.cluster.etcd_wire import AUTH_OFF, Keys, Verdict, judge
from tickwheel.server.cluster.ports import Held, Put, Registration, absent
from tickwheel.server.files import sync_directory
from tickwheel.server.logs import get_logger

log = get_logger(__name__)
T = TypeVar("T")

FILE_NAME: Final = "session.json"
CLOSE_TIMEOUT_S: Final = 3.0
_TRY_SHARE: Final = 4
"""One try of a call takes at most this part of the lease's time to live."""


class SessionFile:
    """`session.json` in the data directory: the lease of whoever holds the directory's lock. Implements LeaseMemory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME

    def load(self) -> int:
        """Return the lease that was saved last; 0 if there is none, or none that can be read."""
        try:
            lease = json.loads(self._path.read_text())["lease"]
        except FileNotFoundError:
            return 0
        except (ValueError, KeyError, TypeError):
            log.warning("the saved lease can't be read; the old one will run out by itself")
            return 0
        return lease if isinstance(lease, int) else 0

    def save(self, lease: int) -> None:
        """Write beside it, sync, rename, sync the directory."""
        draft = self._path.with_name(FILE_NAME + ".new")
        with draft.open("w") as file:
            json.dump({"lease": lease}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self._path)
        sync_directory(self._path.parent)


class _Line:
    """The thread's connection to one member, and its token. One try a call; a failed one goes on to the next member."""

    def __init__(self, options: EtcdOptions, timeout_s: float) -> None:
        self._options = options
        self.members = len(options.addresses)
        self._timeout_s = timeout_s
        self._credentials = options.credentials()
        self._rotation = Rotation(self.members, secrets.randbits(32))
        self._channel: grpc.Channel | None = None
        self._token: str | None = None

    def call(self, send: Callable[[grpc.Channel, dict[str, Any]], T]) -> T:
        """Send it once. Raises RpcError, after which the next call asks another member."""
        if self._channel is None:
            self._channel = self._open()
        try:
            return send(self._channel, self._arguments(self._channel))
        except grpc.RpcError as error:
            verdict = judge(*_status(error))
            if verdict == Verdict.STALE:
                self._token = None
            elif verdict != Verdict.REFUSED:
                self.close()
                self._rotation.leave(self._rotation.index)
            raise

    def close(self) -> None:
        """Drop the connection."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _open(self) -> grpc.Channel:
        address = self._options.addresses[self._rotation.index]
        if self._credentials is None:
            return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        return grpc.secure_channel(address, self._credentials, options=CHANNEL_OPTIONS)

    def _arguments(self, channel: grpc.Channel) -> dict[str, Any]:
        if self._options.user and self._token is None:
            self._token = self._authenticate(channel)
        return {"timeout": self._timeout_s, "metadata": metadata(self._token or "")}

    def _authenticate(self, channel: grpc.Channel) -> str:
        request = rpc.AuthenticateRequest(name=self._options.user, password=self._options.password)
        try:
            return stubs.AuthStub(channel).Authenticate(request, timeout=self._timeout_s).token
        except grpc.RpcError as error:
            if AUTH_OFF in _status(error)[1]:
                return ""
            raise


def _status(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    assert isinstance(error, grpc.Call), "what a stub raises has a status"
    return error.code(), error.details() or ""


class LeaseThread:
    """Implements `ports.Session`. Made, started and closed in the loop's thread."""

    def __init__(
        self,
        options: EtcdOptions,
        registration: Registration,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        draw_lease: Callable[[], int],
    ) -> None:
        self._registration = registration
        self._clock = clock
        self._loop = loop
        self._draw_lease = draw_lease
        self._held: Held | None = None
        self._life: Life | None = None
        self._keys = Keys(options.prefix)
        self._line = _Line(options, registration.ttl_s / _TRY_SHARE)
        self._closing = threading.Event()
        self._complained = self._troubled = False
        self._thread = threading.Thread(target=self._run, name="etcd-session", daemon=True)

    # --- the port ---

    @property
    def held(self) -> Held | None:
        """See `ports.Session`."""
        return self._held

    @property
    def deadline_ms(self) -> int:
        """See `ports.Session`."""
        return self._life.deadline_ms if self._life else 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    async def close(self) -> None:
        """See `ports.Session`. Takes no longer than 3 s."""
        self._closing.set()
        await asyncio.to_thread(self._thread.join, CLOSE_TIMEOUT_S)
        self._held = None

    # --- the thread ---

    def _run(self) -> None:
        try:
            self._drive()
        except Exception:
            log.exception("the session with etcd ends: its lease runs out")
        finally:
            self._line.close()

    def _drive(self) -> None:
        self._life = Life(self._guarded(), self._registration.memory.load(), self._draw_lease)
        program = self._life.run()
        ask = next(program)
        while not self._closing.is_set():
            ask = program.send(self._do(ask))
        program.close()
        if self._life.lease:
            self._revoke(self._life.lease)
            self._life.deadline_ms = 0

    def _revoke(self, lease: int) -> None:
        """Each member is asked once, and one more time in all, for the first may have forgotten who asks.

        Not longer: whoever closes waits for it.
        """
        for _ in range(self._line.members + 1):
            if self._do(life.Revoke(lease)).fault == Fault.NONE:
                return

    def _guarded(self) -> Registration:
        """The same, but a health check that raises says no instead of ending the thread."""
        given = self._registration

        def healthy() -> bool:
            try:
                return given.healthy()
            except Exception:
                if not self._complained:
                    log.exception("the health check fails: the lease is not renewed")
                self._complained = True
                return False

        return Registration(
            key=given.key,
            value=given.value,
            ttl_s=given.ttl_s,
            healthy=healthy,
            on_held=given.on_held,
            on_lost=given.on_lost,
            memory=given.memory,
        )

    def _do(self, ask: life.Ask) -> Reply:
        sent_ms = self._clock.monotonic_ms()
        reply = Reply(sent_ms, sent_ms)
        try:
            reply = self._perform(ask, reply)
        except grpc.RpcError as error:
            reply = reply._replace(fault=_fault(ask, *_status(error)))
            self._note_trouble(reply.fault, _status(error))
        except OSError as error:
            log.error("the lease can't be saved: %s", error)  # noqa: TRY400 - the error says it all
            reply = reply._replace(fault=Fault.FAILED)
        return reply._replace(now_ms=self._clock.monotonic_ms())

    def _perform(self, ask: life.Ask, reply: Reply) -> Reply:
        match ask:
            case life.Pause(ms):
                self._closing.wait(ms / 1_000)
            case life.Save(lease):
                self._registration.memory.save(lease)
            case life.Gained(held):
                log.info("registered in etcd", extra={"lease": f"{held.lease:x}"})
                self._tell(held, self._registration.on_held, held)
            case life.Lost(held):
                log.warning("etcd ended the session", extra={"lease": f"{held.lease:x}"})
                self._tell(None, self._registration.on_lost, held)
            case life.Blocked(item):
                log.error(
                    "another process is registered as this store (was its directory copied?); waiting",
                    extra={"key": item.key, "lease": f"{item.lease:x}"},
                )
            case _:
                reply = self._line.call(lambda channel, how: self._send(ask, channel, how, reply))
                self._note_trouble(reply.fault, None)
        return reply

    def _note_trouble(self, fault: Fault, status: tuple[grpc.StatusCode, str] | None) -> None:
        """Say once that etcd doesn't answer the session, and once that it does again."""
        troubled = fault == Fault.FAILED
        if troubled and not self._troubled and status is not None:
            log.warning("the session gets no answer from etcd: %s: %s", status[0].name, status[1])
        elif self._troubled and not troubled:
            log.info("the session is answered by etcd again")
        self._troubled = troubled

    def _send(
        self, ask: life.Ask, channel: grpc.Channel, how: dict[str, Any], reply: Reply
    ) -> Reply:
        leases = stubs.LeaseStub(channel)
        match ask:
            case life.Revoke(lease):
                leases.LeaseRevoke(rpc.LeaseRevokeRequest(id=lease), **how)
            case life.Grant(lease, ttl_s):
                granted = leases.LeaseGrant(rpc.LeaseGrantRequest(id=lease, ttl=ttl_s), **how)
                return reply._replace(ttl_s=granted.ttl)
            case life.Renew(lease):
                return _renew(leases, lease, how, reply)
            case life.Probe(lease):
                left = leases.LeaseTimeToLive(rpc.LeaseTimeToLiveRequest(id=lease), **how)
                return reply._replace(ttl_s=0 if left.ttl < 0 else max(left.ttl, 1))
            case life.Register():
                return self._register(ask, channel, how, reply)
            case _:
                raise AssertionError(f"not for etcd: {ask}")
        return reply

    def _register(
        self, ask: life.Register, channel: grpc.Channel, how: dict[str, Any], reply: Reply
    ) -> Reply:
        keys = self._keys
        request = keys.transaction([absent(ask.key)], [Put(ask.key, ask.value, ask.lease)])
        read = rpc.RequestOp(request_range=rpc.RangeRequest(key=keys.full(ask.key)))
        request.success.append(read)
        response = stubs.KVStub(channel).Txn(request, **how)
        pair = response.responses[-1].response_range.kvs[0]
        return reply._replace(item=keys.item(pair))

    def _tell(self, held: Held | None, callback: Callable[[Held], None], argument: Held) -> None:
        def deliver() -> None:
            if not self._closing.is_set():
                self._held = held
                callback(argument)

        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError:  # the loop is closed: nobody is there to be told
            self._closing.set()


def _renew(leases: stubs.LeaseStub, lease: int, how: dict[str, Any], reply: Reply) -> Reply:
    """One request, one answer, on a stream of its own: so that it is known when the request of an answer left."""
    stream = leases.LeaseKeepAlive(iter([rpc.LeaseKeepAliveRequest(id=lease)]), **how)
    try:
        for response in stream:
            return reply._replace(ttl_s=response.ttl)
    finally:
        stream.cancel()
    return reply._replace(fault=Fault.FAILED)


def _fault(ask: life.Ask, code: grpc.StatusCode, details: str) -> Fault:
    if "lease not found" in details:
        return Fault.NONE if isinstance(ask, life.Revoke | life.Probe) else Fault.LEASE_GONE
    return Fault.FAILED
