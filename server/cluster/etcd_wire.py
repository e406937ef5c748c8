"""Floor 3. Between the plain values of `ports` and etcd's messages; and what a gRPC status says of a call. Pure.

What is known after an error, and nothing more is assumed:

    the connection was never ready, "no leader", "too many requests"     NOT_DONE   nothing happened: try elsewhere
    an expired token                                                     STALE      nothing happened: log in again
    any other answer that etcd itself gives ("etcdserver: ...")          REFUSED    nothing happened, nor will
    its time-outs, its stop, a change of leader; a broken connection;
    a deadline; whatever is not known                                    UNKNOWN    it may have happened, or may yet

Must never import: the clock, threads, asyncio.
"""

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

import grpc

from tickwheel.etcd import kv_pb2 as kv
from tickwheel.etcd import rpc_service_pb2 as rpc
from tickwheel.server.cluster.ports import (
    Change,
    Compare,
    Delete,
    Done,
    Event,
    Item,
    LeaseGone,
    Put,
    Refused,
    Target,
)
from tickwheel.server.errors import (
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    TickwheelError,
    Unauthenticated,
)

OPERATIONS_MAX: Final = 128
"""Of each kind in a transaction: etcd's default `--max-txn-ops`."""

REQUEST_BYTES_MAX: Final = 1 << 20
"""Of a transaction's values: below etcd's default `--max-request-bytes` of 1.5 MiB."""

COMPACTED: Final = "required revision has been compacted"
FUTURE: Final = "required revision is a future revision"
AUTH_OFF: Final = "authentication is not enabled"

_SAID_BY_ETCD: Final = ("etcdserver: ", "auth: ", "grpc: received message larger")
_NOT_DONE: Final = ("etcdserver: no leader", "etcdserver: too many requests")
_UNKNOWN: Final = (
    "etcdserver: request timed out",
    "etcdserver: server stopped",
    "etcdserver: leader changed",
    "etcdserver: not leader",
    "etcdserver: unhealthy cluster",
)
_STALE: Final = (
    "etcdserver: invalid auth token",
    "etcdserver: revision of auth store is old",
    "etcdserver: user name is empty",
)
_NEVER_CONNECTED: Final = "failed to connect to all addresses"


# --- keys ------------------------------------------------------------------------------------


class Keys:
    """The names below one prefix. Raises InvalidArgument for a prefix or key that can't be one."""

    __slots__ = ("_prefix",)

    def __init__(self, prefix: str) -> None:
        if not prefix.startswith("/") or not prefix.endswith("/"):
            raise InvalidArgument(f"the prefix of etcd's keys begins and ends with /: {prefix!r}")
        self._prefix = prefix.encode()

    def full(self, key: str) -> bytes:
        """Return a key as etcd knows it."""
        return self._prefix + key.encode()

    def short(self, key: bytes) -> str:
        """Return a key as the cluster knows it."""
        assert key.startswith(self._prefix), "etcd answers what was asked for"
        return key[len(self._prefix) :].decode("utf-8", "replace")

    def end(self, prefix: str) -> bytes:
        """Return the first key after all that begin so."""
        start = self.full(prefix)
        return start[:-1] + bytes([start[-1] + 1])

    def item(self, pair: kv.KeyValue) -> Item:
        """Return the plain form of a pair."""
        return Item(
            self.short(pair.key),
            pair.value,
            pair.create_revision,
            pair.mod_revision,
            pair.version,
            pair.lease,
        )

    def events(self, found: Iterable[kv.Event]) -> list[Event]:
        """Return the plain form of events, in their order."""
        return [
            Event(
                self.short(event.kv.key),
                None if event.type == kv.Event.DELETE else self.item(event.kv),
                event.kv.mod_revision,
            )
            for event in found
        ]

    # --- transactions ---

    def transaction(self, compares: Sequence[Compare], then: Sequence[Change]) -> rpc.TxnRequest:
        """Return the request; if it is refused, it answers with what was compared. Raises InvalidArgument."""
        check(compares, then)
        keys = dict.fromkeys(self.full(compare.key) for compare in compares)
        return rpc.TxnRequest(
            compare=[self._compare(compare) for compare in compares],
            success=[self._change(change) for change in then],
            failure=[rpc.RequestOp(request_range=rpc.RangeRequest(key=key)) for key in keys],
        )

    def outcome(self, response: rpc.TxnResponse) -> Done | Refused:
        """Return the plain form of what a transaction did."""
        revision = response.header.revision
        if response.succeeded:
            return Done(revision)
        pairs = (pair for found in response.responses for pair in found.response_range.kvs)
        return Refused(tuple(self.item(pair) for pair in pairs), revision)

    def _compare(self, compare: Compare) -> rpc.Compare:
        made = rpc.Compare(
            key=self.full(compare.key),
            target=rpc.Compare.CompareTarget.ValueType(compare.target.value),
            result=rpc.Compare.CompareResult.ValueType(compare.relation.value),
        )
        operand = compare.operand
        if isinstance(operand, bytes):
            made.value = operand
        else:
            setattr(made, _OPERAND[compare.target], operand)
        return made

    def _change(self, change: Change) -> rpc.RequestOp:
        key = self.full(change.key)
        if isinstance(change, Delete):
            return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))
        put = rpc.PutRequest(key=key, value=change.value, lease=change.lease)
        return rpc.RequestOp(request_put=put)


_OPERAND: Final = {
    Target.VERSION: "version",
    Target.CREATE_REVISION: "create_revision",
    Target.MOD_REVISION: "mod_revision",
    Target.LEASE: "lease",
}


def check(compares: Sequence[Compare], then: Sequence[Change]) -> None:
    """Refuse what etcd would refuse, before it is sent. Raises InvalidArgument."""
    if len(compares) > OPERATIONS_MAX or len(then) > OPERATIONS_MAX:
        raise InvalidArgument(
            f"a transaction has at most {OPERATIONS_MAX} comparisons and {OPERATIONS_MAX} changes"
        )
    if len({change.key for change in then}) < len(then):
        raise InvalidArgument("a transaction changes each key at most once")
    if any(not key for key in (*(c.key for c in compares), *(c.key for c in then))):
        raise InvalidArgument("a key is not empty")
    for compare in compares:
        if isinstance(compare.operand, bytes) is not (compare.target == Target.VALUE):
            raise InvalidArgument(f"{compare.target.name} compares with another type")
    if sum(len(put.value) for put in then if isinstance(put, Put)) > REQUEST_BYTES_MAX:
        raise InvalidArgument(f"a transaction writes at most {REQUEST_BYTES_MAX} bytes")


# --- errors ----------------------------------------------------------------------------------


class Verdict(Enum):
    """What a failed call left behind; the table is at the top."""

    NOT_DONE = "nothing happened: try elsewhere"
    STALE = "nothing happened: log in again"
    REFUSED = "nothing happened, nor will"
    UNKNOWN = "it may have happened, or may yet"


def judge(code: grpc.StatusCode, details: str) -> Verdict:
    """Tell what is known after a call that ended so."""
    if code == grpc.StatusCode.UNAVAILABLE and details.startswith(_NEVER_CONNECTED):
        return Verdict.NOT_DONE
    if not details.startswith(_SAID_BY_ETCD) or details.startswith(_UNKNOWN):
        return Verdict.UNKNOWN
    if details.startswith(_NOT_DONE):
        return Verdict.NOT_DONE
    return Verdict.STALE if details.startswith(_STALE) else Verdict.REFUSED


def refusal(code: grpc.StatusCode, details: str) -> TickwheelError:
    """Return the error that a caller sees of what etcd refused."""
    if "requested lease not found" in details:
        return LeaseGone(details)
    known = {
        grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
        grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
        grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
        grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    }
    if "authentication failed" in details or "user name is empty" in details:
        return Unauthenticated(details, reason="ETCD_UNAUTHENTICATED")
    return known.get(code, FailedPrecondition)(details, reason=f"ETCD_{code.name}")


# --- versions --------------------------------------------------------------------------------

RECOMMENDED: Final = "3.4.31 or 3.5.13"
_FIXED: Final = {(3, 4): 31, (3, 5): 13}
_OLDEST: Final = (3, 4)


def outdated(version: str) -> bool:
    """Whether a server lacks the fixes of leases that 3.4.31 and 3.5.13 have; False if it can't be told."""
    try:
        major, minor, patch = (int(part) for part in version.partition("-")[0].split("."))
    except ValueError:
        return False
    return (major, minor) < _OLDEST or patch < _FIXED.get((major, minor), 0)
