"""Who is let in: the right cluster, the right store, the newest session, the newest stream."""

import pytest

from tickwheel.internal.v1 import peer_service_pb2 as pb
from tickwheel.server.cluster import peer_hello
from tickwheel.server.cluster.peer_hello import (
    Admission,
    Caller,
    Identity,
    check_answer,
    make_hello,
)
from tickwheel.server.errors import FailedPrecondition, ResourceExhausted

ME = Identity("c0" * 16, "aa" * 16)
B = Identity("c0" * 16, "bb" * 16)
STRANGER = Identity("c1" * 16, "bb" * 16)


def hello(session: int = 1, stream: int = 1, sender: Identity = B) -> pb.Hello:
    """What another node says to this one."""
    return make_hello(sender, ME.store, session, stream=stream, lane=pb.LANE_BULK)


def reason_of(admission: Admission, said: pb.Hello) -> str:
    """Why it is refused."""
    with pytest.raises(FailedPrecondition) as caught:
        admission.identify(said)
    return caught.value.reason


def test_a_caller_is_who_it_says() -> None:
    caller = Admission(ME).identify(hello(session=7, stream=3))
    assert caller == Caller(B.store, 7, 3, pb.LANE_BULK)


def test_whoever_is_wrong_here_is_told_why() -> None:
    admission = Admission(ME)
    assert reason_of(admission, pb.Hello()) == "HELLO_MISSING"
    assert reason_of(admission, hello(sender=STRANGER)) == "WRONG_CLUSTER"
    assert reason_of(admission, make_hello(B, "ee" * 16, 1)) == "WRONG_STORE"


def test_sessions_only_grow() -> None:
    admission = Admission(ME)
    admission.observe(B.store, 5)
    admission.observe(B.store, 4)
    assert reason_of(admission, hello(session=4)) == "STALE_SESSION"
    assert admission.identify(hello(session=6)).session == 6
    assert reason_of(admission, hello(session=5)) == "STALE_SESSION"


def test_a_stream_ends_the_one_before_it_in_its_lane() -> None:
    admission = Admission(ME)
    first, second = (admission.identify(hello(stream=stream)) for stream in (1, 2))
    beats = admission.identify(make_hello(B, ME.store, 1, stream=3, lane=pb.LANE_BEATS))
    admission.open(first)
    admission.open(beats)
    admission.check_current(first)
    admission.open(second)
    with pytest.raises(FailedPrecondition):
        admission.check_current(first)
    with pytest.raises(FailedPrecondition):
        admission.open(first)
    admission.closed(first)
    admission.check_current(second)
    admission.check_current(beats)
    admission.closed(second)
    with pytest.raises(FailedPrecondition):
        admission.check_current(second)


def test_a_session_that_is_over_ends_its_open_streams() -> None:
    admission = Admission(ME)
    caller = admission.identify(hello())
    admission.open(caller)
    admission.observe(B.store, 2)
    with pytest.raises(FailedPrecondition):
        admission.check_current(caller)


def test_strangers_are_forgotten_unless_they_are_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_hello, "SENDERS_MAX", 2)
    admission = Admission(ME)
    callers = [admission.identify(hello(sender=Identity(ME.cluster, digit * 32))) for digit in "12"]
    admission.open(callers[0])
    with pytest.raises(ResourceExhausted):
        admission.identify(hello())
    admission.forget_all_but(frozenset())
    assert admission.identify(hello()).sender == B.store
    with pytest.raises(ResourceExhausted):
        admission.identify(hello(sender=Identity(ME.cluster, "3" * 32)))


def test_who_answers_is_who_was_meant() -> None:
    check_answer(ME, B.store, make_hello(B, ME.store, 1))
    for other in (STRANGER, Identity(ME.cluster, "ee" * 16)):
        with pytest.raises(FailedPrecondition):
            check_answer(ME, B.store, make_hello(other, ME.store, 1))
