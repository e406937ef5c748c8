"""Floor 5. Verdicts remembered: jobs of a bulk load differ in their time and body, and in nothing else.

    job as sent ── its time and body taken out ──► key ──► a job that was examined before and found right
                                                            └─ this time and body put in ──► Prepared

Examining a job costs some 12 µs, this 4. A shape is remembered only after a full examination that found nothing wrong
and cleared nothing away, of a one-off at an instant without window or jitter; everything else is examined each time.

Must never import: rooms below but `command`, `model`, `schedule`, `spec`.
"""

from hashlib import blake2b
from typing import Final, NamedTuple

from tickwheel.server.api.times import NANOS_PER_MS
from tickwheel.server.command import Prepared
from tickwheel.server.model import Once, Window
from tickwheel.server.schedule import compile as compile_schedule
from tickwheel.server.spec import encode_spec, parse_spec
from tickwheel.v1 import job_pb2

SHAPES_MAX: Final = 512
SHAPE_BYTES_MAX: Final = 8_192
SPENT_BYTES_MAX: Final = 64 << 10
"""Of bodies that a shape's message keeps: 512 shapes keep at most 32 MiB."""

DIGEST_BYTES: Final = 16
SECONDS_MAX: Final = 253_000_000_000
"""In the year 9987; times up to here are valid without another look."""

_NANOS: Final = 1_000_000_000
_OPEN: Final = Window()


class Shape:
    """A job that was found right, with its defaults; its time and body are put in for each job.

    A message frees nothing before it is freed itself: the bodies that were put in stay with it. So it is made anew
    from its bytes now and then; and it is never a part of the request it came with, which would stay with it too.
    """

    __slots__ = ("_form", "_job", "_spent_bytes", "labels", "past_ok")

    def __init__(self, job: job_pb2.Job, prepared: Prepared) -> None:
        self._form = encode_spec(job)
        self._job = parse_spec(self._form)
        self._spent_bytes = 0
        self.labels = prepared.labels
        self.past_ok = prepared.past_ok

    def spec(self, time_ms: int, body: bytes) -> bytes:
        """The stored form of a job of this shape."""
        when = self._job.schedule.once.scheduled_time
        when.seconds, when.nanos = time_ms // 1_000, time_ms % 1_000 * NANOS_PER_MS
        self._job.http_target.body = body
        spec = encode_spec(self._job)
        self._spent_bytes += len(body)
        if self._spent_bytes > SPENT_BYTES_MAX:
            self._job = parse_spec(self._form)
            self._spent_bytes = 0
        return spec


class Key(NamedTuple):
    """A job that could have a shape, and was not seen before."""

    shape: bytes
    sent: bytes


class Shapes:
    """A bounded memory of shapes; when it is full it starts anew."""

    def __init__(self, body_bytes_max: int) -> None:
        self._body_bytes_max = body_bytes_max
        self._known: dict[bytes, Shape] = {}

    def look(self, job: job_pb2.Job) -> Prepared | Key | None:
        """The job prepared, if its shape is known; else a key to remember it by, or None if it can't have one.

        The job is as it was when the answer is not `Prepared`.
        """
        once = job.schedule.once
        if not (once.HasField("scheduled_time") and job.HasField("http_target")):
            return None
        if job.HasField("window") or job.HasField("jitter"):
            return None
        seconds, nanos = once.scheduled_time.seconds, once.scheduled_time.nanos
        target = job.http_target
        body = target.body
        if not (0 <= seconds <= SECONDS_MAX and 0 <= nanos < _NANOS):
            return None
        if len(body) > self._body_bytes_max:
            return None
        sent = job.SerializeToString(deterministic=True)
        once.ClearField("scheduled_time")
        target.ClearField("body")
        key = job.SerializeToString(deterministic=True)
        shape = self._known.get(key)
        if shape is not None:
            return _prepared(shape, sent, seconds * 1_000 - -nanos // NANOS_PER_MS, body)
        once.scheduled_time.seconds, once.scheduled_time.nanos = seconds, nanos
        if body:
            target.body = body
        return Key(key, sent)

    def remember(self, key: Key, job: job_pb2.Job, prepared: Prepared) -> None:
        """The job of this key was examined and `prepared`; `job` is its normalised form."""
        whole = prepared.digest == digest_of(key.sent)
        if not whole or len(key.shape) > SHAPE_BYTES_MAX:
            return
        if len(self._known) >= SHAPES_MAX:
            self._known.clear()
        self._known[key.shape] = Shape(job, prepared)


def digest_of(sent: bytes) -> bytes:
    """What tells whether two creates are the same."""
    return blake2b(sent, digest_size=DIGEST_BYTES).digest()


def _prepared(shape: Shape, sent: bytes, time_ms: int, body: bytes) -> Prepared:
    spec = shape.spec(time_ms, body)
    plan = compile_schedule(Once(time_ms), _OPEN)
    return Prepared(spec, digest_of(sent), plan, True, 0, shape.labels, shape.past_ok)
