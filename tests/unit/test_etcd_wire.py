"""What goes to etcd and comes from it, and what its errors mean; the options; the file that remembers a lease."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from tickwheel.etcd import kv_pb2 as kv
from tickwheel.etcd import rpc_service_pb2 as rpc
from tickwheel.server.cluster.etcd_link import EtcdOptions, Rotation, metadata
from tickwheel.server.cluster.etcd_session import FILE_NAME, SessionFile
from tickwheel.server.cluster.etcd_wire import Keys, Verdict, judge, outdated, refusal
from tickwheel.server.cluster.ports import (
    Compare,
    Delete,
    Done,
    Event,
    Item,
    LeaseGone,
    Put,
    Refused,
    Relation,
    Target,
    absent,
    value_is,
    version_is,
)
from tickwheel.server.errors import (
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    TickwheelError,
    Unauthenticated,
)

KEYS = Keys("/t/")
CODE = grpc.StatusCode
BASE: dict[str, Any] = {"endpoints": ("a:1",)}


# --- bytes on the wire: what etcd's own encoder writes for the same message -------------------


def test_the_messages_have_etcds_numbers() -> None:
    put = rpc.PutRequest(key=b"k", value=b"v", lease=5)
    assert put.SerializeToString().hex() == "0a016b1201761805"
    compare = rpc.Compare(result=rpc.Compare.NOT_EQUAL, target=rpc.Compare.LEASE, key=b"k", lease=1)
    assert compare.SerializeToString().hex() == "080310041a016b4001"
    create = rpc.WatchCreateRequest(
        key=b"k", start_revision=2, progress_notify=True, watch_id=1, fragment=True
    )
    assert create.SerializeToString().hex() == "0a016b1802200138014001"
    response = rpc.WatchResponse.FromString(bytes.fromhex("280132017838015a00"))
    assert (response.compact_revision, response.cancel_reason) == (1, "x")
    assert response.fragment
    assert len(response.events) == 1


@pytest.mark.parametrize(
    ("service", "methods"),
    [
        ("KV", {"Range", "Put", "DeleteRange", "Txn"}),
        ("Watch", {"Watch"}),
        ("Lease", {"LeaseGrant", "LeaseRevoke", "LeaseKeepAlive", "LeaseTimeToLive"}),
        ("Auth", {"Authenticate"}),
        ("Maintenance", {"Status"}),
    ],
)
def test_the_services_have_etcds_names(service: str, methods: set[str]) -> None:
    found = rpc.DESCRIPTOR.services_by_name[service]
    assert found.full_name == f"etcdserverpb.{service}"
    assert {method.name for method in found.methods} == methods


# --- keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "x/", "/x", "x"])
def test_a_prefix_begins_and_ends_with_a_slash(prefix: str) -> None:
    with pytest.raises(InvalidArgument):
        Keys(prefix)


def test_a_key_goes_out_and_comes_back() -> None:
    assert KEYS.full("nodes/1") == b"/t/nodes/1"
    assert KEYS.short(b"/t/nodes/1") == "nodes/1"
    assert KEYS.short(b"/t/\xff") == "\N{REPLACEMENT CHARACTER}"
    with pytest.raises(AssertionError):
        KEYS.short(b"/u/nodes/1")


@pytest.mark.parametrize(
    ("prefix", "end"), [("nodes/", b"/t/nodes0"), ("", b"/t0"), ("ü", b"/t/\xc3\xbd")]
)
def test_a_range_ends_after_all_that_begin_so(prefix: str, end: bytes) -> None:
    assert KEYS.end(prefix) == end


def test_an_event_becomes_plain() -> None:
    pair = kv.KeyValue(
        key=b"/t/a", value=b"v", create_revision=2, mod_revision=3, version=2, lease=9
    )
    dead = kv.KeyValue(key=b"/t/b", mod_revision=4)
    found = KEYS.events([kv.Event(kv=pair), kv.Event(type=kv.Event.DELETE, kv=dead)])
    assert found == [Event("a", Item("a", b"v", 2, 3, 2, 9), 3), Event("b", None, 4)]


def test_a_transaction_reads_what_it_compared_once() -> None:
    request = KEYS.transaction(
        [absent("a"), version_is("a", 3), value_is("b", b"v")], [Put("a", b"1", 5), Delete("c")]
    )
    assert [c.WhichOneof("target_union") for c in request.compare] == [
        "create_revision",
        "version",
        "value",
    ]
    assert [o.request_range.key for o in request.failure] == [b"/t/a", b"/t/b"]
    assert request.success[0].request_put.lease == 5
    assert request.success[1].request_delete_range.key == b"/t/c"


def test_an_outcome_becomes_plain() -> None:
    header = rpc.ResponseHeader(revision=8)
    assert KEYS.outcome(rpc.TxnResponse(header=header, succeeded=True)) == Done(8)
    pair = kv.KeyValue(key=b"/t/a", mod_revision=3)
    responses = [
        rpc.ResponseOp(response_range=rpc.RangeResponse(kvs=[pair])),
        rpc.ResponseOp(response_range=rpc.RangeResponse()),
    ]
    refused = KEYS.outcome(rpc.TxnResponse(header=header, responses=responses))
    assert refused == Refused((Item("a", b"", 0, 3, 0, 0),), 8)


@pytest.mark.parametrize(
    ("compares", "then"),
    [
        ([], [Put("k", b""), Delete("k")]),
        ([], [Put("", b"")]),
        ([absent("")], []),
        ([absent("k")] * 129, []),
        ([], [Delete(f"{n}") for n in range(129)]),
        ([], [Put("k", bytes((1 << 20) + 1))]),
        ([Compare("k", Target.VALUE, Relation.EQUAL, 1)], []),
        ([Compare("k", Target.LEASE, Relation.EQUAL, b"1")], []),
    ],
)
def test_a_wrong_transaction_is_refused(compares: list[Compare], then: list[Put | Delete]) -> None:
    with pytest.raises(InvalidArgument):
        KEYS.transaction(compares, then)


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "details", "verdict"),
    [
        (CODE.UNAVAILABLE, "failed to connect to all addresses; last error: x", Verdict.NOT_DONE),
        (CODE.UNAVAILABLE, "etcdserver: no leader", Verdict.NOT_DONE),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Verdict.NOT_DONE),
        (CODE.UNAVAILABLE, "Socket closed", Verdict.UNKNOWN),
        (CODE.UNAVAILABLE, "etcdserver: request timed out", Verdict.UNKNOWN),
        (
            CODE.UNAVAILABLE,
            "etcdserver: request timed out, possibly due to connection lost",
            Verdict.UNKNOWN,
        ),
        (CODE.UNAVAILABLE, "etcdserver: server stopped", Verdict.UNKNOWN),
        (CODE.UNAVAILABLE, "etcdserver: leader changed", Verdict.UNKNOWN),
        (CODE.DEADLINE_EXCEEDED, "Deadline Exceeded", Verdict.UNKNOWN),
        (CODE.DEADLINE_EXCEEDED, "failed to connect to all addresses", Verdict.UNKNOWN),
        (CODE.CANCELLED, "", Verdict.UNKNOWN),
        (CODE.INTERNAL, "Internal error from Core", Verdict.UNKNOWN),
        (CODE.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max", Verdict.UNKNOWN),
        (CODE.RESOURCE_EXHAUSTED, "grpc: received message larger than max", Verdict.REFUSED),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Verdict.REFUSED),
        (CODE.UNAUTHENTICATED, "etcdserver: invalid auth token", Verdict.STALE),
        (CODE.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", Verdict.STALE),
        (CODE.PERMISSION_DENIED, "etcdserver: permission denied", Verdict.REFUSED),
        (CODE.NOT_FOUND, "etcdserver: requested lease not found", Verdict.REFUSED),
    ],
)
def test_what_is_known_after_an_error(
    code: grpc.StatusCode, details: str, verdict: Verdict
) -> None:
    assert judge(code, details) == verdict


@pytest.mark.parametrize(
    ("code", "details", "error"),
    [
        (CODE.NOT_FOUND, "etcdserver: requested lease not found", LeaseGone),
        (CODE.INVALID_ARGUMENT, "etcdserver: duplicate key given", InvalidArgument),
        (CODE.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user", Unauthenticated),
        (CODE.INVALID_ARGUMENT, "etcdserver: user name is empty", Unauthenticated),
        (CODE.UNAUTHENTICATED, "etcdserver: invalid auth token", Unauthenticated),
        (CODE.PERMISSION_DENIED, "etcdserver: permission denied", PermissionDenied),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space", ResourceExhausted),
        (CODE.OUT_OF_RANGE, "etcdserver: mvcc: required revision", FailedPrecondition),
    ],
)
def test_a_refusal_has_an_error_of_ours(
    code: grpc.StatusCode, details: str, error: type[TickwheelError]
) -> None:
    made = refusal(code, details)
    assert type(made) is error
    assert made.message == details
    assert made.reason.startswith("ETCD_")


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("3.3.27", True),
        ("2.3.8", True),
        ("3.4.23", True),
        ("3.4.30", True),
        ("3.4.31", False),
        ("3.5.0", True),
        ("3.5.1", True),
        ("3.5.12", True),
        ("3.5.13", False),
        ("3.5.13-rc.0", False),
        ("3.6.0", False),
        ("4.0.0", False),
        ("next", False),
        ("3.5", False),
    ],
)
def test_versions(version: str, old: bool) -> None:
    assert outdated(version) is old


# --- options ---------------------------------------------------------------------------------


def test_options_of_plain_text() -> None:
    options = EtcdOptions(endpoints=("a:2379", "http://b:2379"))
    assert not options.secure
    assert options.addresses == ("a:2379", "b:2379")
    assert options.credentials() is None


def test_options_of_tls(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("roots")
    assert EtcdOptions(endpoints=("https://a:2379",)).secure
    options = EtcdOptions(endpoints=("a:2379", "https://b:2379"), ca_file=file)
    assert options.secure
    assert options.addresses == ("a:2379", "b:2379")
    assert options.credentials() is not None


def test_a_password_is_not_shown() -> None:
    assert "s3cret" not in repr(EtcdOptions(endpoints=("a:1",), user="u", password="s3cret"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"endpoints": ()},
        {"endpoints": ("a:1",) * 17},
        {"prefix": "x"},
        {"cert_file": Path("c"), "ca_file": Path("a")},
        {"cert_file": Path("c"), "key_file": Path("k")},
        {"user": "u"},
        {"password": "p"},
        {"endpoints": ("http://a:1", "https://b:1")},
        {"timeout_ms": 0},
        {"watch_silence_ms": 500, "watch_probe_ms": 500},
    ],
)
def test_options_that_contradict_each_other_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        EtcdOptions(**(BASE | wrong))


def test_a_rotation_goes_on_once_however_many_saw_the_failure() -> None:
    rotation = Rotation(3, seed=1)
    first = rotation.index
    rotation.leave(first)
    rotation.leave(first)
    assert rotation.index == (first + 1) % 3
    assert {Rotation(3, seed).index for seed in range(50)} == {0, 1, 2}


def test_metadata_holds_a_token_if_there_is_one() -> None:
    assert metadata("") == (("hasleader", "true"),)
    assert metadata("t") == (("hasleader", "true"), ("token", "t"))


# --- what a lease is remembered in -----------------------------------------------------------


def test_a_lease_is_remembered(tmp_path: Path) -> None:
    memory = SessionFile(tmp_path)
    assert memory.load() == 0
    memory.save(7)
    memory.save((1 << 63) - 1)
    assert SessionFile(tmp_path).load() == (1 << 63) - 1
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"lease": "x"}', "\0"])
def test_a_file_that_cant_be_read_remembers_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    assert SessionFile(tmp_path).load() == 0
