"""Shapes: what they say of a job is what an examination says, whatever its time and body."""

from random import Random

import pytest
from tests.bad_input import good_job
from tests.fake_scheduler import TAKES_ALL

from tickwheel.server.api import shapes
from tickwheel.server.api.convert import Converter
from tickwheel.server.api.shapes import Key, Shapes, digest_of, form_of
from tickwheel.server.command import Prepared
from tickwheel.v1 import job_pb2

NOW = 1_800_000_000_000
BODY_BYTES_MAX = 50_000


def job(
    seconds: int = 4_000_000_000, nanos: int = 0, body: bytes = b"body", path: str = "hook"
) -> job_pb2.Job:
    made = good_job()
    made.schedule.once.scheduled_time.seconds = seconds
    made.schedule.once.scheduled_time.nanos = nanos
    made.http_target.url = f"https://example.com/{path}"
    made.http_target.headers.add(name="x-team", value="a")
    made.http_target.body = body
    made.retry_policy.max_attempts = 7
    made.labels["team"] = "a"
    made.description = "nightly"
    return made


def copy(of: job_pb2.Job) -> job_pb2.Job:
    made = job_pb2.Job()
    made.CopyFrom(of)
    return made


def examined(of: job_pb2.Job) -> Prepared:
    """By a converter that has seen no job yet."""
    return Converter(TAKES_ALL, body_bytes_max=BODY_BYTES_MAX).prepare(copy(of), NOW)


def remembering(of: job_pb2.Job) -> Shapes:
    known = Shapes(BODY_BYTES_MAX)
    key = known.look(of)
    assert isinstance(key, Key)
    known.remember(key, examined(of))
    return known


def assert_same(found: Prepared | Key | None, of: job_pb2.Job) -> None:
    assert isinstance(found, Prepared)
    right = examined(of)
    assert found._replace(plan=right.plan) == right
    for ms in (0, NOW, 3_999_999_999_999, 4_000_000_000_000, 4_000_000_000_001, 1 << 60):
        assert found.plan.next_after(ms) == right.plan.next_after(ms)


def test_other_times_and_bodies_of_any_length_are_recognised() -> None:
    """The lengths of target and body, as protobuf writes them, take one, two and three bytes here."""
    known = remembering(job())
    chance = Random(1)
    lengths = [1, 2, 60, 127, 128, 129, 255, 4_000, 16_383, 16_384, 20_000]
    hits = 0
    for _ in range(2):
        for length in lengths:
            one = job(4_000_000_000 + chance.randrange(10**6), body=chance.randbytes(length))
            found = known.look(one)
            if isinstance(found, Key):
                known.remember(found, examined(one))
            else:
                assert_same(found, one)
                hits += 1
    assert hits >= len(lengths) + 4, "one shape a number of bytes that the lengths take"


def test_without_a_body_it_is_a_shape_of_its_own() -> None:
    known = remembering(job(body=b""))
    assert_same(known.look(job(4_000_000_001, body=b"")), job(4_000_000_001, body=b""))
    assert isinstance(known.look(job()), Key)


@pytest.mark.parametrize("nanos", [1_000_000, 123_000_000, 123_456_789, 999_000_000])
def test_times_are_rounded_up_to_milliseconds(nanos: int) -> None:
    known = remembering(job(nanos=nanos))
    assert_same(known.look(job(4_000_000_001, nanos)), job(4_000_000_001, nanos))


def test_a_time_that_grows_or_shrinks_when_it_is_rounded_is_examined() -> None:
    known = remembering(job(nanos=999_000_000))
    assert known.look(job(nanos=999_999_999)) is None


@pytest.mark.parametrize("body", [b"example", b"nightly", b"team", b"x-", b"\x08", b"a", b'"'])
def test_a_body_that_is_found_elsewhere_too_misleads_nobody(body: bytes) -> None:
    known = Shapes(BODY_BYTES_MAX)
    for seconds in (4_000_000_000, 4_000_000_001):
        one = job(seconds, body=body)
        found = known.look(one)
        if isinstance(found, Key):
            known.remember(found, examined(one))
        elif found is not None:
            assert_same(found, one)


def test_another_job_is_another_shape() -> None:
    known = remembering(job())
    for change in ("url", "header", "label", "description", "policy", "past"):
        other = job()
        match change:
            case "url":
                other.http_target.url = "https://example.com/hooj"
            case "header":
                other.http_target.headers[0].value = "b"
            case "label":
                other.labels["team"] = "b"
            case "description":
                other.description = "nightlY"
            case "policy":
                other.retry_policy.max_attempts = 8
            case _:
                other.schedule.once.past_policy = 2  # type: ignore[assignment]
        assert not isinstance(known.look(other), Prepared), change


def test_a_clue_alone_is_not_believed() -> None:
    """The first bytes of a target are no part of the clue: here they tell a GET's URL from another of its length."""
    known = remembering(job())
    (clue, shape) = next(iter(known._known.items()))
    known._known[clue] = shape._replace(sent=shape.sent._replace(middle=shape.sent.middle[::-1]))
    assert known.look(job(4_000_000_001)) is None


@pytest.mark.parametrize("field", ["window", "jitter", "delay", "every", "worker_target"])
def test_what_can_have_no_shape(field: str) -> None:
    one = job()
    match field:
        case "window":
            one.window.start_time.seconds = 1
        case "jitter":
            one.jitter.seconds = 1
        case "delay":
            one.schedule.once.delay.seconds = 60
        case "every":
            one.schedule.every.period.seconds = 60
        case _:
            one.worker_target.task_type = "t"
    assert Shapes(BODY_BYTES_MAX).look(one) is None


def test_a_time_out_of_range_and_a_body_too_long_are_examined() -> None:
    known = remembering(job(shapes.SECONDS_MAX))
    assert known.look(job(shapes.SECONDS_MAX + 1)) is None
    assert known.look(job(body=b"x" * (BODY_BYTES_MAX + 1))) is None
    assert known.look(job_pb2.Job()) is None


def test_what_was_cleared_away_first_is_not_remembered() -> None:
    known = Shapes(BODY_BYTES_MAX)
    one = job()
    one.etag = "x"
    key = known.look(one)
    assert isinstance(key, Key)
    known.remember(key, examined(one))
    assert not known._known


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "SHAPES_MAX", 2)
    known = Shapes(BODY_BYTES_MAX)
    for path in ("a", "b", "c"):
        key = known.look(job(path=path))
        assert isinstance(key, Key)
        known.remember(key, examined(job(path=path)))
    assert len(known._known) == 1
    big = job(path="p" * shapes.SHAPE_BYTES_MAX)
    key = known.look(big)
    assert isinstance(key, Key)
    known.remember(key, examined(job())._replace(digest=digest_of(key.sent)))
    assert len(known._known) == 1


def test_a_form_that_does_not_hold_is_none() -> None:
    """A time of 1 s has other bytes than one of 0 s, which has none; so no form is made of it."""
    assert form_of(job(1).SerializeToString(deterministic=True)) is None
    long = job()
    long.schedule.once.time_zone = "x" * 200
    assert form_of(long.SerializeToString(deterministic=True)) is None
    assert form_of(job().SerializeToString(deterministic=True)) is not None


def test_a_job_that_is_stored_with_a_longer_or_shorter_time_is_not_remembered() -> None:
    assert not remembering(job(nanos=999_999_999))._known


def moulded(of: job_pb2.Job) -> tuple[Shapes, bytes]:
    """Shapes that know the job by its bytes alone."""
    known, data = remembering(of), of.SerializeToString(deterministic=True)
    assert known.known(data) is None, "nobody of that length came by yet"
    assert isinstance(known.look(of), Prepared)
    return known, data


def test_a_job_is_known_by_its_bytes_alone() -> None:
    known, data = moulded(job(body=b"four"))
    assert_same(known.known(data), job(body=b"four"))
    other = job(4_000_000_001, body=b"4our")
    assert_same(known.known(other.SerializeToString(deterministic=True)), other)
    longer = job(body=b"fives")
    assert known.known(longer.SerializeToString(deterministic=True)) is None


@pytest.mark.parametrize("nanos", [0, 5_000_000, 999_999_999])
def test_bytes_with_one_changed_are_known_for_what_they_are_or_not_at_all(nanos: int) -> None:
    """Nothing that protobuf would read as another job, or write in another way, is taken for this one."""
    one = job(3_999_999_999, nanos=nanos, body=b"body")
    known = Shapes(BODY_BYTES_MAX)
    for of in (job(3_999_999_999, nanos=5_000_000, body=b"body"), one):
        key = known.look(of)
        if isinstance(key, Key):
            known.remember(key, examined(of))
        known.look(of)
    data = one.SerializeToString(deterministic=True)
    recognised = 0
    for at in range(len(data)):
        for flip in (1, 2, 8, 0x40, 0x80, 0xFF):
            changed = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
            found = known.known(changed)
            if found is not None:
                recognised += 1
                read = job_pb2.Job.FromString(changed)
                assert read.SerializeToString(deterministic=True) == changed
                assert_same(found, read)
    assert recognised == 0 if nanos == 999_999_999 else recognised > 20


@pytest.mark.parametrize("data", [b"", b"x", b"12345", b"123456", bytes(300), b"\xff" * 300])
def test_junk_is_not_known(data: bytes) -> None:
    known, right = moulded(job())
    assert known.known(data) is None
    assert known.known(right[:-1]) is None
    assert known.known(right + b"\x00") is None


def test_the_moulds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "MOULDS_MAX", 3)
    known, _ = moulded(job())
    for length in range(1, 50):
        known.look(job(body=b"x" * length))
        assert len(known._moulds) <= 3
