"""Floor 5. Verdicts remembered: jobs of a bulk load differ in their time and body, and in nothing else.

    as sent     head│time│before│ n │middle│ m │body│tail        n  bytes of the target, m  bytes of the body
    as stored   head│time│before│ n │middle│ m │body│tail        the same, with all defaults

Examining a job costs some 12 µs, this 2. A job found right is kept as two `Form`s, as it was sent and as it is stored: its
bytes around time and body. Another job is of this shape if the form as sent, with its time and body, gives the very
bytes that were sent; then the other form with them is what is stored. So a slip in how forms are cut or looked up costs
time, and can't mistake one job for another. That a form holds for other times and bodies than those it was cut from is
tried out when it is made.

Jobs of one shape and one length have their bodies in one place. So the bytes alone say whether a job fits the `Mould`
that the last one of its length came out of: it needs not even be read.

A shape is remembered only after a full examination that found nothing wrong and cleared nothing away, of a one-off at an
instant without window or jitter; everything else is examined each time.

Must never import: rooms below but `command`, `schedule`, `spec`.
"""

from functools import lru_cache
from hashlib import blake2b
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from tickwheel.server.api.times import NANOS_PER_MS
from tickwheel.server.command import Prepared
from tickwheel.server.model import Ms
from tickwheel.server.schedule import InstantPlan
from tickwheel.server.spec import encode_spec, parse_spec
from tickwheel.v1 import job_pb2

SHAPES_MAX: Final = 512
MOULDS_MAX: Final = 4_096
SHAPE_BYTES_MAX: Final = 8_192
DIGEST_BYTES: Final = 16
SECONDS_MAX: Final = 253_000_000_000
"""In the year 9987; times up to here are valid without another look."""

_NANOS: Final = 1_000_000_000
_TIME_AT: Final = 6
"""Where a job's bytes have its scheduled_time: behind tag and length of schedule, once and scheduled_time itself."""


@lru_cache(4_096)
def _varint(number: int) -> bytes:
    """A length as protobuf writes it: seven bits a byte, the lowest first, the top bit says that more follow."""
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


class Form(NamedTuple):
    """The bytes of a job around its time and body. `target_bytes` counts neither the body nor its length."""

    head: bytes
    before: bytes
    target_bytes: int
    middle: bytes
    tail: bytes

    def between(self, body_bytes: int) -> bytes:
        """What is between the time and a body of that length, which is 0 only if it was."""
        length = _varint(body_bytes) if body_bytes else b""
        target = _varint(self.target_bytes + len(length) + body_bytes)
        return b"".join((self.before, target, self.middle, length))

    def join(self, time: bytes, body: bytes) -> bytes:
        """The job with another time, of as many bytes, and another body, which is empty only if it was."""
        return b"".join((self.head, time, self.between(len(body)), body, self.tail))


class Shape(NamedTuple):
    """A job that was found right: its form as sent and as stored, and what else is prepared of it."""

    sent: Form
    stored: Form
    labels: str
    past_ok: bool


class Mould(NamedTuple):
    """A shape for a body of a certain length: what is before the time, between time and body, and behind the body."""

    head: bytes
    between: bytes
    tail: bytes
    stored_head: bytes
    stored_between: bytes
    stored_tail: bytes
    labels: str
    past_ok: bool

    @classmethod
    def of(cls, shape: Shape, body_bytes: int) -> "Mould":
        """Cut the shape's forms for it."""
        sent, stored, labels, past_ok = shape
        return cls(
            sent.head, sent.between(body_bytes), sent.tail,
            stored.head, stored.between(body_bytes), stored.tail, labels, past_ok,
        )  # fmt: skip


Clue = tuple[bytes, bytes, bytes]
"""What a shape is looked up by: bytes that jobs of one shape share, mostly."""


class Key(NamedTuple):
    """A job that could have a shape, and was not seen before."""

    clue: Clue
    sent: bytes


class Shapes:
    """A bounded memory of shapes; when it is full it starts anew."""

    def __init__(self, body_bytes_max: int) -> None:
        self._body_bytes_max = body_bytes_max
        self._known: dict[Clue, Shape] = {}
        self._moulds: dict[tuple[int, bytes], Mould] = {}  # by bytes of the job, and of its time

    def known(self, sent: bytes) -> Prepared | None:
        """The job of these bytes prepared, if it came out of the mould that was last used for one as long."""
        mould = self._moulds.get((len(sent), sent[_TIME_AT - 1 : _TIME_AT]))
        if mould is None:
            return None
        head, between, tail, stored_head, stored_between, stored_tail, labels, past_ok = mould
        time_end = _TIME_AT + sent[_TIME_AT - 1]
        body_at, body_end = time_end + len(between), len(sent) - len(tail)
        fits = sent[:_TIME_AT] == head and sent[time_end:body_at] == between
        if not fits or sent[body_end:] != tail:
            return None
        time = sent[_TIME_AT:time_end]
        time_ms, stored_time = _read_time(time)
        if len(stored_time) != len(time):
            return None
        body = sent[body_at:body_end]
        spec = b"".join((stored_head, stored_time, stored_between, body, stored_tail))
        return Prepared(spec, digest_of(sent), InstantPlan(time_ms), True, 0, labels, past_ok)

    def look(self, job: job_pb2.Job) -> Prepared | Key | None:
        """The job prepared, if its shape is known; else a key to remember it by, or None if it can't have one."""
        sent = job.SerializeToString(deterministic=True)
        found = self.known(sent)
        if found is not None:
            return found
        body = job.http_target.body
        if len(sent) <= _TIME_AT or len(body) > self._body_bytes_max:
            return None
        clue = _clue(sent, body)
        shape = self._known.get(clue)
        if shape is None:
            return Key(clue, sent) if _may_have_shape(job) else None
        time = sent[_TIME_AT : _TIME_AT + sent[_TIME_AT - 1]]
        if shape.sent.join(time, body) != sent:
            return None
        if len(self._moulds) >= MOULDS_MAX:
            self._moulds.clear()
        self._moulds[len(sent), sent[_TIME_AT - 1 : _TIME_AT]] = Mould.of(shape, len(body))
        return self.known(sent)

    def remember(self, key: Key, prepared: Prepared) -> None:
        """The job of this key was examined, and found to be `prepared`."""
        if prepared.digest != digest_of(key.sent):
            return  # something was cleared away first
        sent, stored = form_of(key.sent), form_of(prepared.spec)
        if sent is None or stored is None or sent.head[-1:] != stored.head[-1:]:
            return
        if len(sent.middle) + len(sent.tail) > SHAPE_BYTES_MAX:
            return
        if len(self._known) >= SHAPES_MAX:
            self._known.clear()
        self._known[key.clue] = Shape(sent, stored, prepared.labels, prepared.past_ok)


def _read_time(time: bytes) -> tuple[Ms, bytes]:
    """The milliseconds of a timestamp, rounded up, and its bytes then; no bytes if it is none that a shape can have."""
    try:
        read = Timestamp.FromString(time)
    except DecodeError:
        return 0, b""
    read.DiscardUnknownFields()
    seconds, nanos = read.seconds, read.nanos
    valid = 0 <= seconds <= SECONDS_MAX and 0 <= nanos < _NANOS
    # Written otherwise than protobuf writes it, or with more than belongs there, it is none either.
    if not valid or read.SerializeToString() != time:
        return 0, b""
    time_ms = seconds * 1_000 - -nanos // NANOS_PER_MS
    return time_ms, _stamp(time_ms) if nanos % NANOS_PER_MS else time


def digest_of(sent: bytes) -> bytes:
    """What tells whether two creates are the same."""
    return blake2b(sent, digest_size=DIGEST_BYTES).digest()


def form_of(data: bytes) -> Form | None:
    """The form of a serialised one-off with an HTTP target; None if it does not hold for other times and bodies."""
    job = parse_spec(data)
    body, time = job.http_target.body, job.schedule.once.scheduled_time
    stamp = time.SerializeToString()
    target_bytes = job.http_target.ByteSize()
    length = _varint(len(body)) if body else b""
    at = data.find(body, _TIME_AT + len(stamp)) if body else len(data)
    target_at = 2 + data[1] + 1
    form = Form(
        data[:_TIME_AT],
        data[_TIME_AT + len(stamp) : target_at],
        target_bytes - len(length) - len(body),
        data[target_at + len(_varint(target_bytes)) : at - len(length)],
        data[at + len(body) :],
    )
    if form.join(stamp, body) != data:
        return None
    time.seconds ^= 1
    job.http_target.body = body and bytes(byte ^ 0xFF for byte in body) + bytes(200)
    holds = form.join(time.SerializeToString(), job.http_target.body) == encode_spec(job)
    return form if holds else None


def _clue(sent: bytes, body: bytes) -> Clue:
    """The length of the body is cut off, and the three bytes where the length of the target begins."""
    if not body:
        return sent[:_TIME_AT], sent[sent[1] + 6 :], b""
    at = sent.find(body, _TIME_AT)
    middle = sent[sent[1] + 6 : max(at - len(_varint(len(body))), 0)]
    return sent[:_TIME_AT], middle, sent[at + len(body) :]


def _may_have_shape(job: job_pb2.Job) -> bool:
    return (
        job.schedule.once.HasField("scheduled_time")
        and job.HasField("http_target")
        and not job.HasField("window")
        and not job.HasField("jitter")
    )


def _stamp(time_ms: int) -> bytes:
    seconds, ms = divmod(time_ms, 1_000)
    return Timestamp(seconds=seconds, nanos=ms * NANOS_PER_MS).SerializeToString()
