"""An error that travels between nodes stays the same error."""

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from tickwheel.server import errors
from tickwheel.server.cluster.peer_status import decode, encode
from tickwheel.server.errors import TickwheelError, Violation

KINDS = [kind for kind in TickwheelError.__subclasses__() if kind is not errors.Fatal]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_error_comes_back(kind: type[TickwheelError]) -> None:
    sent = kind(
        "words", reason="REASON", metadata={"a": "b"}, violations=[Violation("f", "d", "R")],
        retry_after_ms=1_500,
    )  # fmt: skip
    got = decode(encode(sent))
    assert type(got) is kind
    assert vars(got) == vars(sent)


def test_an_error_without_details_comes_back() -> None:
    got = decode(encode(errors.Unavailable("later")))
    assert (got.reason, got.metadata, got.violations, got.retry_after_ms) == (
        "UNAVAILABLE", {}, (), None,
    )  # fmt: skip


def test_a_narrower_error_comes_back_as_what_its_code_says() -> None:
    got = decode(encode(errors.NotYetSupported("x")))
    assert (type(got), got.reason) == (errors.InvalidArgument, "NOT_YET_SUPPORTED")


@pytest.mark.parametrize("data", [b"\xff\xff", Status(code=999).SerializeToString()])
def test_what_is_no_status_is_an_internal_error(data: bytes) -> None:
    assert decode(data).code == "INTERNAL"


def test_a_status_of_another_kind_keeps_its_words() -> None:
    got = decode(Status(code=Code.DATA_LOSS, message="m").SerializeToString())
    assert (got.code, got.message) == ("INTERNAL", "m")
